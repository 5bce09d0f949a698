//! The bitmap against a plain set of block numbers.

use proptest::prelude::*;

use super::{BLOCK, CHUNK, DirtyBitmap};

const BLOCKS: u64 = CHUNK + 100;
const SIZE: u64 = BLOCKS * BLOCK - 700;

fn empty() -> Vec<bool> {
    vec![false; usize::try_from(BLOCKS).unwrap()]
}

fn set(model: &mut [bool], offset: u64, len: u64) {
    let block = |byte: u64| usize::try_from(byte).unwrap();
    model[block(offset / BLOCK)..block((offset + len).div_ceil(BLOCK))].fill(true);
}

fn blocks(map: &DirtyBitmap) -> Vec<bool> {
    let mut out = empty();
    let mut from = 0;
    while let Some((offset, len)) = map.next_run(from) {
        assert!(len > 0 && offset >= from);
        set(&mut out, offset, len);
        from = offset + len;
    }
    out
}

#[derive(Clone, Debug)]
enum Step {
    Mark(u64, u64),
    Freeze,
    Drop,
    MergeBack,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..SIZE, 0..40 * BLOCK).prop_map(|(offset, len)| Step::Mark(offset, len.min(SIZE - offset))),
        1 => (0..SIZE).prop_map(|offset| Step::Mark(offset, SIZE - offset)),
        1 => Just(Step::Freeze),
        1 => Just(Step::Drop),
        1 => Just(Step::MergeBack),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Live bits and what was dropped cover every write; nothing is dirty that was not written.
    #[test]
    fn freeze_drop_and_merge_back_never_lose_a_block(steps in prop::collection::vec(step(), 1..30)) {
        let (mut live, mut frozen) = (DirtyBitmap::new(SIZE), None::<DirtyBitmap>);
        let (mut live_model, mut frozen_model) = (empty(), empty());
        for step in steps {
            match step {
                Step::Mark(offset, len) => {
                    live.mark(offset, len);
                    if len > 0 { set(&mut live_model, offset, len); }
                }
                Step::Freeze if frozen.is_none() => {
                    frozen = Some(live.freeze());
                    frozen_model = std::mem::replace(&mut live_model, empty());
                }
                Step::Freeze => {}
                Step::Drop => { frozen = None; frozen_model = empty(); }
                Step::MergeBack => {
                    if let Some(map) = frozen.take() { live.merge(map); }
                    for (live, frozen) in live_model.iter_mut().zip(&mut frozen_model) { *live |= std::mem::take(frozen); }
                }
            }
            prop_assert_eq!(&blocks(&live), &live_model);
            prop_assert_eq!(live.bytes(), live_model.iter().filter(|set| **set).count() as u64 * BLOCK);
        }
    }
}
