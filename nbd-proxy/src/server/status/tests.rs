use super::*;
use crate::device::Write;
use crate::testing::MemDevice;

const CUT: Uuid = Uuid::from_u128(7);
const BOTH: Contexts = Contexts { allocation: true, changes: Some(CUT) };

fn pairs(device: &MemDevice, cut: Uuid, range: Range<u64>, limit: usize) -> io::Result<Vec<(u64, u32)>> {
    let mut runs = Runs::new(range.start, limit);
    changes(device, cut, range, &mut runs).map(|()| runs.pairs)
}

fn device() -> MemDevice {
    let device = MemDevice::new(1 << 20);
    *device.changes.lock().unwrap() = Some((CUT, vec![(4096, 8192), (16_384, 20_480)]));
    device
}

#[test]
fn changes_are_told_from_any_place_to_the_end_of_the_range() {
    let device = device();
    let all = [(4096, 0), (4096, 1), (8192, 0), (4096, 1), (1_028_096, 0)];
    assert_eq!(pairs(&device, CUT, 0..1 << 20, 99).unwrap(), all);
    assert_eq!(pairs(&device, CUT, 5000..17_000, 99).unwrap(), [(3192, 1), (8192, 0), (616, 1)]);
    assert_eq!(pairs(&device, CUT, 30_000..40_000, 99).unwrap(), [(10_000, 0)]);
    assert_eq!(pairs(&device, CUT, 0..1 << 20, 2).unwrap(), all[..2], "and no more than there is room for");
}

#[test]
fn a_cut_that_is_not_out_is_an_error_and_never_an_answer() {
    let device = device();
    let tag = Tag { cookie: 1, offset: 0 };
    let ask = || answer(&device, Framing::Extended, tag, 0..4096, false, BOTH);
    assert!(ask().is_ok());
    *device.changes.lock().unwrap() = Some((Uuid::nil(), vec![(0, 4096)]));
    assert_eq!(ask().unwrap_err().kind(), io::ErrorKind::InvalidInput, "another cut is out");
    *device.changes.lock().unwrap() = None;
    assert_eq!(ask().unwrap_err().kind(), io::ErrorKind::InvalidInput, "none is out");
}

#[test]
fn a_range_of_many_changes_is_answered_in_parts() {
    let device = MemDevice::new(1);
    let ranges = (0..20_000_u64).map(|n| (n * 8192, n * 8192 + 4096)).collect();
    *device.changes.lock().unwrap() = Some((CUT, ranges));
    let found = pairs(&device, CUT, 0..20_000 * 8192, MAX_EXTENTS).unwrap();
    assert_eq!(found.len(), MAX_EXTENTS);
    assert!(found.iter().enumerate().all(|(n, pair)| *pair == (4096, u32::from(n % 2 == 0))));
}

#[test]
fn one_extent_reaches_as_far_as_its_status() {
    let device = MemDevice::new(1 << 20);
    device.write_batch(&[Write { offset: 8192, data: &[1; 4096], fua: false }], &mut Vec::new());
    let mut runs = Runs::new(0, 1);
    allocation(&device, 0..1 << 20, &mut runs).unwrap();
    assert_eq!(runs.pairs, [(8192, wire::STATE_HOLE_ZERO)]);
}
