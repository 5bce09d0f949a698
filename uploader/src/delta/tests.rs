use std::collections::BTreeMap;

use proptest::prelude::*;

use super::format::Form;
use super::reader::check;
use super::writer::{LARGE_FRAME, SMALL_FRAME, frame_size};
use super::*;
use crate::cipher::Cipher;
use crate::testing::Random;

/// What a delta says of its disks, byte by byte.
fn replay(delta: &[u8]) -> BTreeMap<String, BTreeMap<u64, u8>> {
    let (_, index) = check("d", &Cipher::None, delta).unwrap();
    let mut stream = Vec::new();
    for frame in &index.frames {
        let at = usize::try_from(frame.offset).unwrap();
        let stored = &delta[at..at + frame.len as usize];
        let raw = if frame.len == frame.raw_len {
            stored.to_vec()
        } else {
            zstd::bulk::decompress(stored, frame.raw_len as usize).unwrap()
        };
        stream.extend(raw);
    }
    let mut disks = BTreeMap::new();
    for (name, extents) in &index.disks {
        let bytes: &mut BTreeMap<u64, u8> = disks.entry(name.clone()).or_default();
        for extent in extents {
            for n in 0..extent.len {
                let byte = extent.at.map_or(0, |at| stream[usize::try_from(at + n).unwrap()]);
                assert_eq!(bytes.insert(extent.offset + n, byte), None, "a byte stands twice");
            }
        }
    }
    disks
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]
    #[test]
    fn what_is_packed_is_read_back(
        runs in prop::collection::vec((0u64..20_000, 1usize..9000, 0u8..4, prop::bool::ANY), 0..30),
        frame in 100usize..20_000,
    ) {
        let mut writer = DeltaWriter::new(frame, &Cipher::None).unwrap();
        let mut expected: BTreeMap<String, BTreeMap<u64, u8>> = BTreeMap::new();
        let mut random = Random::new(frame as u64);
        let (mut at, mut disk) = (0, String::new());
        for (number, (gap, len, kind, next_disk)) in runs.into_iter().enumerate() {
            if number == 0 || next_disk {
                disk = format!("disk{number}");
                writer.begin_disk(&disk);
                at = 0;
            }
            at += gap;
            let data = match kind {
                0 => vec![0; len],
                1 => [vec![0; len / 2], random.bytes(len - len / 2)].concat(),
                _ => random.bytes(len),
            };
            if kind == 0 && gap % 2 == 0 {
                writer.zero(at, len as u64).unwrap();
            } else {
                writer.data(at, &data).unwrap();
            }
            expected.entry(disk.clone()).or_default().extend((at..).zip(data));
            at += len as u64;
        }
        let encoded = writer.finish().unwrap();
        let bytes = encoded.to_vec();
        prop_assert_eq!(encoded.size, bytes.len() as u64);
        let logical: usize = expected.values().map(BTreeMap::len).sum();
        prop_assert_eq!(encoded.logical, logical as u64);
        prop_assert!(replay(&bytes) == expected);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), end in 0u64..500) {
        let _ = check("d", &Cipher::None, &bytes);
        let _ = format::decode_trailer(&bytes);
        if let Ok(index) = Index::decode(&bytes, Form::Plain, end) {
            prop_assert_eq!(index.encode(), bytes, "what decodes encodes to the same bytes");
        }
    }

    #[test]
    fn a_changed_index_decodes_to_something_else_or_not_at_all(at in 0usize..1000, bit in 0u8..8) {
        let (raw, end) = sample_index();
        let mut changed = raw.clone();
        let at = at % changed.len();
        changed[at] ^= 1 << bit;
        if let Ok(index) = Index::decode(&changed, Form::Plain, end) {
            prop_assert_eq!(index.encode(), changed);
        }
    }
}

fn sample() -> Vec<u8> {
    let mut random = Random::new(1);
    let mut writer = DeltaWriter::new(4096, &Cipher::None).unwrap();
    writer.begin_disk("root");
    writer.data(512, &random.bytes(10_000)).unwrap();
    writer.zero(100_000, 1 << 40).unwrap();
    writer.begin_disk("data");
    writer.data(0, b"some words").unwrap();
    writer.finish().unwrap().to_vec()
}

/// The extents and the raw stream of a checked delta.
fn replay_small(delta: &[u8]) -> nbd_proxy::Result<(Index, Vec<u8>)> {
    let (_, index) = check("vault/d", &Cipher::None, delta)?;
    let mut stream = Vec::new();
    for frame in &index.frames {
        let at = usize::try_from(frame.offset).unwrap();
        let stored = &delta[at..at + frame.len as usize];
        stream.extend(zstd::bulk::decompress(stored, frame.raw_len as usize).unwrap());
    }
    Ok((index, stream))
}

fn sample_index() -> (Vec<u8>, u64) {
    let (reference, index) = check("d", &Cipher::None, &sample()).unwrap();
    (index.encode(), reference.offset)
}

#[test]
fn every_flipped_byte_is_found() {
    let good = sample();
    let shown = replay_small(&good).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        match replay_small(&bad) {
            Err(error) => {
                assert_eq!((error.kind, error.object.as_str()), (nbd_proxy::Kind::Corrupt, "vault/d"))
            }
            // zstd has bits that mean nothing: what is shown must be the same.
            Ok(same) => assert!(same == shown, "byte {at}"),
        }
    }
    for len in 0..good.len() {
        check("d", &Cipher::None, &good[..len]).expect_err("truncated");
    }
}

#[test]
fn whole_blocks_of_zeroes_cost_nothing() {
    let mut writer = DeltaWriter::new(SMALL_FRAME, &Cipher::None).unwrap();
    writer.begin_disk("d");
    let mut data = vec![0; 1 << 20];
    data[10_000] = 1;
    writer.data(4096, &data).unwrap();
    writer.data(1 << 30, &[0; 100]).unwrap();
    let bytes = writer.finish().unwrap().to_vec();
    let (_, index) = check("d", &Cipher::None, &bytes).unwrap();
    let extents = index.extents("d");
    let data: Vec<_> = extents.iter().filter(|extent| extent.at.is_some()).collect();
    assert_eq!((data[0].offset, data[0].len), (4096 + 8192, 4096));
    assert_eq!((data[1].offset, data[1].len), (1 << 30, 100), "less than a block is not looked at");
    assert_eq!(extents.iter().map(|extent| extent.len).sum::<u64>(), (1 << 20) + 100);
}

#[test]
fn changes_out_of_order_are_refused() {
    let mut writer = DeltaWriter::new(SMALL_FRAME, &Cipher::None).unwrap();
    assert!(writer.data(0, b"x").is_err(), "no disk was begun");
    writer.begin_disk("d");
    writer.data(100, b"abc").unwrap();
    assert!(writer.data(102, b"x").is_err());
    writer.data(103, b"x").unwrap();
}

#[test]
fn each_cell_has_its_digest() {
    let mut random = Random::new(3);
    let mut writer = DeltaWriter::new(LARGE_FRAME, &Cipher::None).unwrap();
    writer.begin_disk("before");
    writer.data(0, &random.bytes(100_000)).unwrap();
    writer.begin_disk("d");
    let data = random.bytes(200_000);
    // In pieces that know nothing of cells.
    for (number, piece) in data.chunks(7000).enumerate() {
        writer.data(60_000 + number as u64 * 7000, piece).unwrap();
    }
    writer.zero(260_000, 1 << 30).unwrap();
    writer.data(2 << 30, b"alone").unwrap();
    let (_, index) = check("d", &Cipher::None, &writer.finish().unwrap().to_vec()).unwrap();
    let hashed: Vec<_> = index.hashed("d").collect();
    let mut at = 60_000;
    for cell in &hashed[..4] {
        assert_eq!(cell.offset, at);
        let from = usize::try_from(at - 60_000).unwrap();
        let content = &data[from..from + usize::try_from(cell.len).unwrap()];
        assert_eq!(cell.digest, Some(crate::digest::Digest::of(content)));
        at += cell.len;
        assert!(at % format::CELL == 0 || at == 260_000);
    }
    assert_eq!(hashed[4], format::Hashed { offset: 260_000, len: 1 << 30, digest: None });
    assert_eq!(hashed[5].digest, Some(crate::digest::Digest::of(b"alone")));
    assert_eq!(hashed.len(), 6);
}

/// The promise on cost: scattered 4 KiB blocks, half of whose content is compressible.
#[test]
fn scattered_blocks_cost_what_they_are() {
    let mut random = Random::new(7);
    let mut offsets: Vec<u64> = (0..2000).map(|_| random.below((8 << 30) / 4096) * 4096).collect();
    offsets.sort_unstable();
    offsets.dedup();
    let mut all = Vec::new();
    let mut writer = DeltaWriter::new(frame_size(4096 * 2000, 2000), &Cipher::None).unwrap();
    writer.begin_disk("d");
    for offset in &offsets {
        let mut block = random.bytes(4096);
        block[2048..].fill(0x11);
        writer.data(*offset, &block).unwrap();
        all.extend(block);
    }
    let size = writer.finish().unwrap().size;
    let plain = zstd::bulk::compress(&all, 1).unwrap().len() as u64;
    println!("{size} bytes for blocks that zstd -1 packs into {plain}");
    assert!(size * 10 <= plain * 11 + (64 << 10) * 10, "{size} against {plain}");
}

#[test]
fn long_runs_get_long_frames() {
    assert_eq!(frame_size(4096 * 100, 100), SMALL_FRAME);
    assert_eq!(frame_size(100 << 20, 100), LARGE_FRAME);
    assert_eq!(frame_size(0, 0), SMALL_FRAME);
}

/// The bytes of version 1 stay readable for ever.
#[test]
fn the_bytes_of_version_1() {
    let mut writer = DeltaWriter::new(SMALL_FRAME, &Cipher::None).unwrap();
    writer.begin_disk("root");
    writer.data(4096, &[0xab; 16]).unwrap();
    writer.zero(8192, 4096).unwrap();
    let (reference, index) = check("d", &Cipher::None, &writer.finish().unwrap().to_vec()).unwrap();
    // One frame of 16 bytes (stored in 14 or so, or raw), one disk, two extents.
    assert_eq!(reference.offset, 8 + u64::from(index.frames[0].len));
    let mut raw = vec![1, index.frames[0].len.to_le_bytes()[0], 16];
    raw.extend_from_slice(&crate::digest::Digest::of(&[0xab; 16]).0);
    raw.extend_from_slice(&[1, 4]);
    raw.extend_from_slice(b"root");
    // 4096 is 0x80 0x20; 2 × 16; the gap 8192 - 4112 = 4080 is 0xf0 0x1f; 2 × 4096 + 1 is 0x81 0x40.
    raw.extend_from_slice(&[2, 0x80, 0x20, 32, 0xf0, 0x1f, 0x81, 0x40]);
    // The one cell.
    raw.extend_from_slice(&crate::digest::Digest::of(&[0xab; 16]).0);
    assert_eq!(index.encode(), raw);
}
