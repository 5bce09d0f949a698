use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug, PartialEq)]
enum At {
    Zero,
    Stream(u32, u64),
}

impl Source for At {
    fn advanced(&self, by: u64) -> Self {
        match self {
            Self::Zero => Self::Zero,
            Self::Stream(which, at) => Self::Stream(*which, at + by),
        }
    }
}

proptest! {
    #[test]
    fn what_is_inserted_last_wins(inserts in prop::collection::vec((0u64..200, 0u64..60, 0u32..4), 0..60)) {
        let mut map = IntervalMap::default();
        let mut model = vec![None; 300];
        for (round, (start, len, kind)) in inserts.into_iter().enumerate() {
            let value = if kind == 0 { At::Zero } else { At::Stream(kind, round as u64 * 1000) };
            map.insert(start, len, value.clone());
            for at in start..start + len {
                model[usize::try_from(at).unwrap()] = Some(value.advanced(at - start));
            }
        }
        let mut seen = vec![None; 300];
        let mut last_end = 0;
        for (start, len, value) in map.iter() {
            prop_assert!(len > 0 && start >= last_end, "ranges overlap or are empty");
            last_end = start + len;
            for at in start..start + len {
                seen[usize::try_from(at).unwrap()] = Some(value.advanced(at - start));
            }
        }
        prop_assert_eq!(seen, model);
    }
}

#[test]
fn a_sequential_run_is_one_range() {
    let mut map = IntervalMap::default();
    for block in [0u64, 2, 1, 3] {
        map.insert(block * 10, 10, At::Stream(1, 500 + block * 10));
    }
    assert_eq!(map.len(), 1);
    map.insert(15, 5, At::Zero);
    assert_eq!(map.len(), 3);
}

#[test]
fn dropping_the_upper_half_keeps_the_lower_one_whole() {
    let mut map = IntervalMap::default();
    for block in 0u64..10 {
        map.insert(block * 10, 4, At::Stream(1, block * 100));
    }
    let end = map.drop_upper_half().unwrap();
    assert_eq!((map.len(), end), (5, 50));
    assert!(map.iter().all(|(start, len, _)| start + len <= end));
}
