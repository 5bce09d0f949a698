use super::*;
use crate::nbd::wire::CHUNK_LEN;
use crate::testing::{BLOCK, MemDevice};

const FRAMING: Framing = Framing::Structured;

fn answer(len: usize) -> Answer {
    Answer { tag: Tag { cookie: 1, offset: 0 }, offset: 0, len, whole: false, last: true, wait: true }
}

fn block(device: &MemDevice, index: usize) {
    let offset = (index * BLOCK) as u64;
    device.write_batch(&[crate::device::Write { offset, data: &[1; BLOCK], fua: false }], &mut Vec::new());
}

#[test]
fn a_very_fragmented_range_fits_its_room() {
    let device = MemDevice::new(1 << 20);
    (0..256).step_by(2).for_each(|index| block(&device, index));
    let answer = answer(1 << 20);
    let mut out = Staging::new(answer.room());
    assert!(fill(&device, FRAMING, &answer, &mut out, &mut Vec::new()).unwrap());
    let (mut bytes, mut at, mut chunks) = (out.bytes(), 0, 0);
    while let [head @ .., _] = bytes
        && head.len() >= CHUNK_LEN
    {
        let word = |from: usize| u32::from_be_bytes(bytes[from..from + 4].try_into().unwrap());
        let payload = word(16) as usize;
        at += match word(4) & 0xffff {
            1 => payload - 8,
            _ => word(28) as usize,
        };
        assert_eq!(word(4) >> 16 == 1, at == 1 << 20, "the last chunk says that it is the last");
        bytes = &bytes[CHUNK_LEN + payload..];
        chunks += 1;
    }
    assert_eq!((at, chunks), (1 << 20, MAX_CHUNKS + 1));
}

#[test]
fn a_failure_or_a_wait_leaves_the_buffer_as_it_was() {
    let device = MemDevice::new(1 << 20);
    block(&device, 3);
    let mut out = Staging::new(2 << 20);
    out.put(b"before");
    device.bad_byte.store(3 * 4096, std::sync::atomic::Ordering::SeqCst);
    assert!(fill(&device, FRAMING, &answer(1 << 16), &mut out, &mut Vec::new()).is_err());
    device.bad_byte.store(u64::MAX, std::sync::atomic::Ordering::SeqCst);
    device.cold.store(true, std::sync::atomic::Ordering::SeqCst);
    let impatient = Answer { wait: false, ..answer(1 << 16) };
    assert!(!fill(&device, FRAMING, &impatient, &mut out, &mut Vec::new()).unwrap());
    assert_eq!(out.bytes(), b"before");
}
