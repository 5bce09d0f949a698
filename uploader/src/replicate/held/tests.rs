use super::*;
use crate::delta::format::Extent;
use crate::replicate::compare::Compare;
use crate::testing::Random;

const MIB: u64 = 1 << 20;

fn wanted(folder: &Path, size: u64) -> Wanted {
    let (machine, disk) = ("m".to_owned(), "d".to_owned());
    Wanted { machine, disk, size, head: None, journal: Vec::new(), folder: folder.to_owned() }
}

/// An index of `d` with the digests that `seed` makes, beside another disk's.
fn index(extents: Vec<Extent>, seed: u64) -> Index {
    let other = Extent { offset: 0, len: 100, at: Some(0) };
    let mut index =
        Index { disks: vec![("c".to_owned(), vec![other]), ("d".to_owned(), extents)], ..Index::default() };
    let mut random = Random::new(seed);
    index.cells = (0..100_000).map(|_| Digest::of(&random.next().to_le_bytes())).collect();
    index
}

fn random_extents(random: &mut Random, size: u64, count: u64) -> Vec<Extent> {
    let (mut at, mut extents) = (0, Vec::new());
    while at < size {
        let offset = at + random.below(size / count);
        let longest = [4096, 300_000, 100 * MIB][random.size(3)];
        let len = 1 + random.below(longest);
        let data = (len < MIB).then_some(0);
        extents.push(Extent { offset, len, at: data });
        at = offset + len;
    }
    // The last ones may lie beyond the end: the disk was larger once.
    extents
}

fn held(folder: &Path, size: u64, newest_first: &[Index]) -> Held {
    let mut held = Held::create(&wanted(folder, size)).unwrap();
    newest_first.iter().for_each(|index| held.add(index, "d").unwrap());
    held.scratch.flush().unwrap();
    held
}

#[test]
fn each_window_shows_what_the_newest_delta_says() {
    let dir = tempfile::tempdir().unwrap();
    let size = 300 * MIB + 512;
    for seed in 0..8 {
        let mut random = Random::new(seed);
        let deltas: Vec<Index> =
            (0..5).map(|n| index(random_extents(&mut random, size, 40), 10 * seed + n)).collect();
        let mut all = IntervalMap::default();
        for hashed in deltas.iter().rev().flat_map(|index| index.hashed("d")) {
            let Hashed { offset, len, digest } = hashed;
            let cell = |digest| Content::Cell { offset, len, digest };
            all.insert(offset, len.min(size.saturating_sub(offset)), digest.map_or(Content::Zero, cell));
        }
        let held = held(dir.path(), size, &deltas);
        let (mut at, mut windows) = (0, 0);
        while at < size {
            let window = held.window(at).unwrap();
            let map = window.map.unwrap();
            let clip = |(start, len, content): (u64, u64, &Content)| {
                let (from, to) = (start.max(window.start), (start + len).min(window.end));
                (from, to, *content)
            };
            let expected: Vec<_> = all.touching(window.start, window.end).map(clip).collect();
            let shown: Vec<_> = map.touching(window.start, window.end).map(clip).collect();
            assert!(shown == expected, "seed {seed}, window at {at}");
            assert!(!shown.is_empty() || held.is_empty(at).0);
            (at, windows) = (window.end, windows + 1);
        }
        assert_eq!(windows, 5);
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the scratch file has no name");
}

#[test]
fn a_window_with_too_much_to_tell_travels_undecided() {
    let dir = tempfile::tempdir().unwrap();
    let extents = (0..RANGES_MAX as u64 + 1).map(|n| Extent { offset: 16 * n, len: 8, at: Some(8 * n) });
    let mut deltas = [index(extents.collect(), 1)];
    deltas[0].cells = vec![Digest::of(b"x"); RANGES_MAX + 2];
    let held = std::sync::Arc::new(held(dir.path(), 128 * MIB, &deltas));
    assert!(held.window(0).unwrap().map.is_none());
    let mut compare = Compare::new(std::sync::Arc::clone(&held));
    assert_eq!(compare.data(0, &[0; 1 << 20]).unwrap(), [(0, MIB)]);
    assert_eq!(
        compare.hole(2 * MIB, 100 * MIB).unwrap(),
        [(2 * MIB, 62 * MIB)],
        "the next window knows only zeroes"
    );
    assert_eq!(compare.undecided, MIB);
}

#[test]
fn windows_grow_with_the_disk_so_that_memory_does_not() {
    let dir = tempfile::tempdir().unwrap();
    for size in [0, 1, 4 << 40, (1 << 50) + 1] {
        let held = held(dir.path(), size, &[]);
        assert!(held.last.len() as u64 <= WINDOWS, "{} windows", held.last.len());
        assert!(held.window.is_multiple_of(WINDOW));
    }
}
