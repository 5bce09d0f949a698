use proptest::prelude::*;

use super::*;

const KIND: Kind = Kind {
    what: "test",
    magic: b"LBTESTS1",
    made: Step::StateMade,
    filled: Step::StateFilled,
    written: Step::StateWritten,
};
const ROOM: usize = 5000;

/// A file with the records 1 to `count`, and what it holds.
fn written(count: u8) -> (tempfile::TempDir, PathBuf, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("slots");
    let (slots, kept) = open(&path).unwrap();
    assert_eq!(kept, Kept::Nothing);
    (1..=count).for_each(|number| slots.write(&content(number)).unwrap());
    let bytes = std::fs::read(&path).unwrap();
    (dir, path, bytes)
}

fn content(number: u8) -> Vec<u8> {
    vec![number; 3000 + usize::from(number)]
}

fn open(path: &Path) -> Result<(Slots, Kept)> {
    Slots::open(path, &KIND, ROOM)
}

fn kept(path: &Path, bytes: &[u8]) -> Kept {
    std::fs::write(path, bytes).unwrap();
    open(path).unwrap().1
}

/// The slot that the last of `count` records went to: the first record fills both.
fn newest(count: u8, slot: usize) -> usize {
    usize::from((count + 1) % 2) * slot
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Power fails while a record is written: any of its sectors may be there, and the record before it counts unless all are.
    #[test]
    fn a_torn_write_leaves_the_record_before_it(kept_sectors in prop::collection::vec(any::<bool>(), 24), count in 2u8..6) {
        let (_dir, path, before) = written(count);
        let (slots, _) = open(&path).unwrap();
        slots.write(&content(count + 1)).unwrap();
        let after = std::fs::read(&path).unwrap();
        let mut torn = before.clone();
        for (at, there) in (0..before.len()).step_by(SECTOR).zip(kept_sectors.iter().cycle()) {
            if *there {
                torn[at..at + SECTOR].copy_from_slice(&after[at..at + SECTOR]);
            }
        }
        let expected = if torn == after { count + 1 } else { count };
        prop_assert_eq!(kept(&path, &torn), Kept::Record(content(expected)));
        // And goes on from there.
        let (slots, _) = open(&path).unwrap();
        slots.write(b"next").unwrap();
        prop_assert_eq!(open(&path).unwrap().1, Kept::Record(b"next".to_vec()));
    }

    /// A byte that was never written so, wherever: the newest record, or the word that it is not known.
    #[test]
    fn a_damaged_byte_is_never_taken_for_a_torn_write(at in 0usize..16384, bit in 0u8..8, count in 1u8..6) {
        let (_dir, path, mut bytes) = written(count);
        let slot = bytes.len() / 2;
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        let in_newest = at / slot * slot == newest(count, slot);
        match kept(&path, &bytes) {
            Kept::Record(record) => prop_assert!(record == content(count) && !in_newest),
            Kept::Damaged(_) => prop_assert!(in_newest),
            Kept::Nothing => prop_assert!(false, "nothing"),
        }
    }
}

#[test]
fn what_was_cut_short_wiped_or_mixed_up_is_damage() {
    let (_dir, path, bytes) = written(3);
    let slot = bytes.len() / 2;
    for len in [1, SECTOR, slot, bytes.len() - 1] {
        assert!(matches!(kept(&path, &bytes[..len]), Kept::Damaged(_)), "cut at {len}");
    }
    assert_eq!(kept(&path, &[]), Kept::Nothing);
    for (from, to) in
        [(0, slot), (slot, 2 * slot), (0, SECTOR), (newest(3, slot) + SECTOR, newest(3, slot) + PAGE)]
    {
        let mut wiped = bytes.clone();
        wiped[from..to].fill(0);
        let kept = kept(&path, &wiped);
        assert!(
            matches!(&kept, Kept::Damaged(_)) || kept == Kept::Record(content(3)),
            "{from} to {to}: {kept:?}"
        );
    }
    let mut wiped = bytes.clone();
    wiped[newest(3, slot)..newest(3, slot) + slot].fill(0);
    assert!(matches!(kept(&path, &wiped), Kept::Damaged(_)), "the older slot must not count for the newest");
    // Another run goes on, with a later sequence than any.
    let (slots, _) = open(&path).unwrap();
    slots.write(&content(9)).unwrap();
    assert_eq!(open(&path).unwrap().1, Kept::Record(content(9)));
}

#[test]
fn a_newer_version_is_named_and_its_file_left_alone() {
    let (_dir, path, bytes) = written(2);
    let slot = bytes.len() / 2;
    let mut one = bytes.clone();
    // The newer version need not have sectors.
    one[..slot].fill(7);
    one[..8].copy_from_slice(b"LBTESTS2");
    std::fs::write(&path, &one).unwrap();
    let error = open(&path).unwrap_err();
    assert_eq!(error.kind, crate::Kind::InvalidInput);
    assert!(error.message.contains("newer Lifeboat (format 2)") && !error.remedy.is_empty(), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), one);
    // One flipped bit does not make a newer version.
    let mut flipped = bytes;
    flipped[7] = b'3';
    assert!(matches!(kept(&path, &flipped), Kept::Record(_) | Kept::Damaged(_)));
}

#[test]
fn a_file_that_was_removed_is_noticed_and_made_again() {
    let (_dir, path, _) = written(2);
    let (slots, _) = open(&path).unwrap();
    assert!(slots.is_in_place());
    std::fs::remove_file(&path).unwrap();
    assert!(!slots.is_in_place());
    std::fs::write(&path, b"").unwrap();
    assert!(!slots.is_in_place(), "another file stands there");
    slots.remake(&content(3)).unwrap();
    assert!(slots.is_in_place());
    slots.write(&content(4)).unwrap();
    assert_eq!(open(&path).unwrap().1, Kept::Record(content(4)));
}
