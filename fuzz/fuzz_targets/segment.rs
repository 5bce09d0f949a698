//! Any bytes as a segment file. No fuzzer guesses a checksum, so every second input is given a true header and true
//! record headers with whatever numbers it asks for. What is read lies on the disk and in the file, and carries its data.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use nbd_proxy::log::format::{Header, RECORD_LEN, Seed, encode_record};
use nbd_proxy::log::reader::SegmentReader;
use uuid::Uuid;

const SIZE: u64 = 1 << 20;

/// Rewritten for every input, in memory where the system has such a place.
static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    let shm = PathBuf::from("/dev/shm");
    let folder = if shm.is_dir() { shm } else { std::env::temp_dir() };
    folder.join(format!("lifeboat-fuzz-{}.seg", std::process::id()))
});

fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else { return };
    let bytes = if first & 1 == 0 { rest.to_vec() } else { segment(rest) };
    std::fs::write(&*FILE, &bytes).expect("room for a small file");
    let Ok(mut reader) = SegmentReader::open_any(&FILE) else { return };
    let size = reader.header().size;
    while let Ok(Some(record)) = reader.next_record() {
        assert!(record.offset.checked_add(record.len).is_some_and(|end| end <= size), "a record lies on the disk");
        assert!(reader.position() <= bytes.len() as u64, "a record lies in the file");
        assert!(reader.records() <= bytes.len() as u64 / RECORD_LEN as u64, "every record takes room");
    }
});

fn segment(mut rest: &[u8]) -> Vec<u8> {
    let header =
        Header { log: Uuid::from_u128(1), segment: 2, disk: Uuid::from_u128(3), tracking: Uuid::from_u128(4), size: SIZE };
    let mut bytes = header.encode();
    let seed = Seed::new(header.log, header.segment);
    let mut number = 0;
    while let Some((fields, more)) = rest.split_first_chunk::<8>() {
        let [skip, data, offset @ .., high] = *fields;
        let offset = u64::from_le_bytes([offset[0], offset[1], offset[2], offset[3], offset[4], 0, 0, high]);
        let (data, more) = more.split_at(usize::from(data).min(more.len()));
        let mut record = [0; RECORD_LEN];
        // A gap in the numbers, a length without data, a zero range of any length: all with a true checksum.
        number += u64::from(skip == 1);
        let len = if skip == 2 { offset.rotate_left(17) } else { data.len() as u64 };
        let data = (skip != 3).then_some(data);
        encode_record(seed, number, offset, len, data, &mut record);
        bytes.extend_from_slice(&record);
        bytes.extend_from_slice(data.unwrap_or_default());
        number += 1;
        rest = more;
    }
    bytes
}
