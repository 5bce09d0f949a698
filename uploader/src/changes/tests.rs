use std::fs::File;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use nbd_proxy::log::SegmentWriter;
use nbd_proxy::log::format::Header;
use nbd_proxy::log::segment::{Entry, SegmentFile};
use proptest::prelude::*;
use tempfile::TempDir;
use uuid::Uuid;

use super::*;
use crate::delta::reader::check;
use crate::testing::Random;

const SIZE: u64 = 200_000;

/// A write of a test: where, how long, and whether it is zeroes.
type Change = (u64, u64, bool);

fn create(path: PathBuf, header: Header) -> SegmentWriter {
    let file = File::create_new(&path).unwrap();
    SegmentWriter::over(SegmentFile::begin(file, path, header).unwrap())
}

fn segments(dir: &Path, changes: &[Vec<Change>], model: &mut [u8]) -> Vec<SegmentRef> {
    let log = Uuid::new_v4();
    let mut random = Random::new(changes.len() as u64);
    let mut sealed = Vec::new();
    for (number, changes) in changes.iter().enumerate() {
        let number = number as u64;
        let header = Header { log, segment: number, disk: Uuid::nil(), tracking: Uuid::nil(), size: SIZE };
        let mut writer = create(dir.join(number.to_string()), header);
        for (offset, len, zero) in changes {
            let (offset, len) = (*offset, (*len).min(SIZE - *offset));
            let data = random.bytes(usize::try_from(len).unwrap());
            let range = usize::try_from(offset).unwrap()..usize::try_from(offset + len).unwrap();
            if *zero {
                model[range].fill(0);
            } else {
                model[range].copy_from_slice(&data);
            }
            writer.append(Entry { offset, len, data: (!zero).then_some(&data[..]) }).unwrap();
        }
        sealed.push(writer.seal().unwrap());
    }
    sealed
}

fn cut(segments: Vec<SegmentRef>) -> Cut {
    let disk = CutDisk { name: "d".to_owned(), size: SIZE, tracking: Uuid::nil(), segments };
    Cut { id: Uuid::new_v4(), time: Timestamp::UNIX_EPOCH, disks: vec![disk], ..Cut::default() }
}

/// Applies deltas to `disk`, and checks that each byte is in one at most. Returns how many there are.
fn apply(cut: &Cut, ranges_max: usize, disk: &mut [u8]) -> usize {
    let mut deltas = Vec::new();
    pack_bounded(cut, &Cipher::None, ranges_max, &mut |delta| {
        deltas.push(delta.to_vec());
        Ok(())
    })
    .unwrap();
    let mut seen = vec![false; disk.len()];
    for delta in &deltas {
        let (_, index) = check("d", &Cipher::None, delta).unwrap();
        let mut stream = Vec::new();
        for frame in &index.frames {
            let at = usize::try_from(frame.offset).unwrap();
            let stored = &delta[at..at + frame.len as usize];
            let raw = frame.len == frame.raw_len;
            stream.extend(if raw {
                stored.to_vec()
            } else {
                zstd::bulk::decompress(stored, frame.raw_len as usize).unwrap()
            });
        }
        for extent in index.extents("d") {
            for n in 0..extent.len {
                let at = usize::try_from(extent.offset + n).unwrap();
                assert!(!std::mem::replace(&mut seen[at], true), "byte {at} is shipped twice");
                disk[at] = extent.at.map_or(0, |from| stream[usize::try_from(from + n).unwrap()]);
            }
        }
    }
    deltas.len()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn the_newest_write_wins_in_however_many_passes(
        changes in prop::collection::vec(
            prop::collection::vec((0..SIZE, 1u64..30_000, prop::bool::weighted(0.2)), 0..20), 1..4),
        ranges_max in 2usize..40,
    ) {
        let dir = TempDir::new().unwrap();
        let before = Random::new(9).bytes(usize::try_from(SIZE).unwrap());
        let mut model = before.clone();
        let cut = cut(segments(dir.path(), &changes, &mut model));
        for limit in [ranges_max, RANGES_MAX] {
            let mut disk = before.clone();
            apply(&cut, limit, &mut disk);
            prop_assert!(disk == model, "limit {}", limit);
        }
    }
}

#[test]
fn nothing_changed_is_no_delta() {
    let dir = TempDir::new().unwrap();
    let mut model = vec![0; usize::try_from(SIZE).unwrap()];
    let cut = cut(segments(dir.path(), &[vec![]], &mut model));
    assert_eq!(apply(&cut, RANGES_MAX, &mut model), 0);
}

#[test]
fn a_segment_that_lost_records_is_named() {
    let dir = TempDir::new().unwrap();
    let mut model = vec![0; usize::try_from(SIZE).unwrap()];
    let mut segments = segments(dir.path(), &[vec![(0, 5000, false)]], &mut model);
    segments[0].records += 1;
    let error = pack(&cut(segments), &Cipher::None, &mut |_| Ok(())).unwrap_err();
    assert_eq!(error.kind, nbd_proxy::Kind::Corrupt);
    assert!(error.object.ends_with("/0"), "{error}");
}

/// Far more changed ranges than one map holds, and more bytes than one delta.
#[test]
fn a_huge_change_becomes_several_deltas_of_disjoint_addresses() {
    let dir = TempDir::new().unwrap();
    let size = 256u64 << 20;
    let header = Header { log: Uuid::new_v4(), segment: 0, disk: Uuid::nil(), tracking: Uuid::nil(), size };
    let mut writer = create(dir.path().join("s"), header);
    let mut random = Random::new(4);
    let noise: Vec<u8> = (0..1 << 20).map(|_| random.next().to_le_bytes()[3]).collect();
    for mib in (0..80u64).rev() {
        writer.append(Entry { offset: mib << 20, len: 1 << 20, data: Some(&noise) }).unwrap();
    }
    let disk =
        CutDisk { name: "d".to_owned(), size, tracking: Uuid::nil(), segments: vec![writer.seal().unwrap()] };
    let cut = Cut { disks: vec![disk], ..Cut::default() };
    let mut ends = vec![0];
    let mut sizes = Vec::new();
    pack(&cut, &Cipher::None, &mut |delta| {
        let (_, index) = check("d", &Cipher::None, &delta.to_vec())?;
        let extents = index.extents("d");
        let (first, last) = (extents.first().unwrap(), extents.last().unwrap());
        assert_eq!(first.offset, *ends.last().unwrap(), "deltas follow each other");
        ends.push(last.offset + last.len);
        sizes.push(delta.size);
        Ok(())
    })
    .unwrap();
    assert_eq!(ends.last(), Some(&(80 << 20)));
    assert!(sizes.len() == 3 && sizes.iter().all(|size| *size < 36 << 20), "{sizes:?}");
}
