//! A segment gives back what was written, and nothing else.

use proptest::prelude::*;
use uuid::Uuid;

use super::folder::{Folder, has_room};
use super::format::{HEADER_LEN, Header, RECORD_LEN};
use super::segment::{Entry, SegmentFile, SegmentWriter};
use super::{Record, SegmentReader, format};
use crate::Kind;
use crate::tracking::SegmentRef;

const SIZE: u64 = 1 << 30;

fn header(segment: u64) -> Header {
    Header { log: Uuid::new_v4(), segment, disk: Uuid::new_v4(), tracking: Uuid::new_v4(), size: SIZE }
}

fn create(path: &std::path::Path, header: Header) -> SegmentWriter {
    let file = std::fs::File::create_new(path).unwrap();
    SegmentWriter::over(SegmentFile::begin(file, path.to_owned(), header).unwrap())
}

fn write(path: &std::path::Path, header: Header, entries: &[(u64, Option<Vec<u8>>)]) -> SegmentRef {
    let mut writer = create(path, header);
    for (offset, data) in entries {
        let len = data.as_ref().map_or(512, |data| data.len() as u64);
        writer.append(Entry { offset: *offset, len, data: data.as_deref() }).unwrap();
    }
    writer.seal().unwrap()
}

fn read(segment: &SegmentRef) -> crate::Result<Vec<(u64, Option<Vec<u8>>)>> {
    let mut reader = SegmentReader::open(segment)?;
    let mut out = Vec::new();
    while let Some(Record { offset, len, data }) = reader.next_record()? {
        let data = data.map(|at| {
            let mut buf = vec![0; usize::try_from(len).unwrap()];
            reader.read_at(at, &mut buf).unwrap();
            buf
        });
        out.push((offset, data));
    }
    Ok(out)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn records_come_back_in_order_with_their_data(
        entries in prop::collection::vec((0..SIZE / 2, prop::option::of(prop::collection::vec(any::<u8>(), 1..5000))), 0..40)
    ) {
        let dir = tempfile::tempdir().unwrap();
        let segment = write(&dir.path().join("s"), header(3), &entries);
        prop_assert_eq!(read(&segment).unwrap(), entries);
    }

    #[test]
    fn a_flipped_bit_anywhere_in_the_records_is_found(at in 0usize..2000, bit in 0u8..8) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let entries = vec![(0, Some(vec![1; 900])), (4096, None), (9000, Some(vec![2; 900]))];
        let segment = write(&path, header(1), &entries);
        let mut bytes = std::fs::read(&path).unwrap();
        let at = 4096 + at % (bytes.len() - 4096);
        bytes[at] ^= 1 << bit;
        std::fs::write(&path, bytes).unwrap();
        let error = read(&segment).unwrap_err();
        prop_assert_eq!(error.kind, Kind::Corrupt);
        prop_assert!(error.object.contains(&*path.to_string_lossy()));
    }

    #[test]
    fn arbitrary_bytes_are_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..9000), keep in any::<bool>()) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let mut file = if keep { header(1).encode() } else { Vec::new() };
        file.extend(bytes);
        std::fs::write(&path, file).unwrap();
        if let Ok(mut reader) = SegmentReader::open_any(&path) {
            while let Ok(Some(_)) = reader.next_record() {}
        }
    }
}

#[test]
fn a_truncated_segment_is_named_not_shortened() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let segment = write(&path, header(1), &[(0, Some(vec![7; 4096])), (8192, Some(vec![8; 4096]))]);
    let len = std::fs::metadata(&path).unwrap().len();
    for cut in [len - 1, len - 4096, len - 4096 - RECORD_LEN as u64, HEADER_LEN, 100, 0] {
        std::fs::File::options().write(true).open(&path).unwrap().set_len(cut).unwrap();
        assert_eq!(read(&segment).unwrap_err().kind, Kind::Corrupt, "cut at {cut}");
    }
}

#[test]
fn a_recycled_file_shows_none_of_its_old_records() {
    let first = header(1);
    // The same log goes on in the same file, or another one has a segment of the same number.
    for second in [Header { segment: 2, ..first.clone() }, Header { log: Uuid::new_v4(), ..first.clone() }] {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path(), 1 << 20).unwrap();
        let writer = recycle(&folder, first.clone(), second);
        let new = writer.seal().unwrap();
        assert_eq!(read(&new).unwrap(), vec![]);
        let mut reader = SegmentReader::open_any(&new.path).unwrap();
        assert_eq!(reader.next_record().unwrap(), None);
    }
}

/// The segment `second`, begun in the file of `first`, which had records.
fn recycle(folder: &Folder, first: Header, second: Header) -> SegmentWriter {
    let mut writer = SegmentWriter::over(folder.create(first).unwrap());
    for number in 0..10 {
        writer.append(Entry { offset: number * 4096, len: 4096, data: Some(&[9; 4096]) }).unwrap();
    }
    let old = writer.seal().unwrap();
    folder.retire(&old.path).unwrap();
    assert!(folder.segments().unwrap().is_empty(), "a retired segment is no segment");
    SegmentWriter::over(folder.create(second).unwrap())
}

#[test]
fn a_record_in_another_s_place_is_none() {
    let seed = header(1).seed();
    let mut record = [0; RECORD_LEN];
    format::encode_record(seed, 5, 0, 512, None, &mut record);
    assert!(format::decode_record(seed, 5, SIZE, &record).is_some());
    assert!(format::decode_record(seed, 4, SIZE, &record).is_none());
}

/// Killed between the rename of a kept file and its new header.
#[test]
fn a_retired_segment_is_one_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::open(dir.path(), 1 << 20).unwrap();
    let mut writer = SegmentWriter::over(folder.create(header(1)).unwrap());
    writer.append(Entry { offset: 0, len: 512, data: None }).unwrap();
    folder.retire(&writer.seal().unwrap().path).unwrap();
    let kept = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
    std::fs::rename(kept, dir.path().join("000000000002.seg")).unwrap();
    assert!(folder.segments().unwrap().is_empty(), "an old segment has come back under another name");
}

#[test]
fn the_log_leaves_a_reserve() {
    let gib = 1 << 30;
    assert!(has_room(10 * gib, gib, gib / 2));
    assert!(!has_room(10 * gib, gib, gib), "2 % stay free");
    assert!(has_room(1000 * gib, 3 * gib, 2 * gib), "or 1 GiB");
    assert!(!has_room(1000 * gib, 2 * gib, 2 * gib));
}

#[test]
fn a_segment_swapped_with_another_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let one = write(&dir.path().join("1"), header(1), &[(0, Some(vec![1; 512]))]);
    let two = write(&dir.path().join("2"), header(2), &[(0, Some(vec![2; 512]))]);
    std::fs::copy(&two.path, &one.path).unwrap();
    assert_eq!(read(&one).unwrap_err().kind, Kind::Corrupt);
}

/// Golden bytes of version 1: these must read for ever.
#[test]
fn version_1_reads_as_it_was_written() {
    let header = Header {
        log: Uuid::from_u128(1),
        segment: 7,
        disk: Uuid::from_u128(2),
        tracking: Uuid::from_u128(3),
        size: 1 << 20,
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("golden");
    let mut writer = create(&path, header.clone());
    writer.append(Entry { offset: 4096, len: 3, data: Some(b"abc") }).unwrap();
    writer.append(Entry { offset: 0, len: 512, data: None }).unwrap();
    let segment = writer.seal().unwrap();
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(crc32c::crc32c(&bytes), 4_124_150_266, "golden checksum of the whole file");
    assert_eq!(SegmentReader::open(&segment).unwrap().header(), &header);
}
