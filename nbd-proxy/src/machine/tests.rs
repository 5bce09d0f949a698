//! The cut over several disks is one instant.

mod interleavings;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::Machine;
use crate::device::BlockDevice;
use crate::disk::testing::{Replica, contents, machine, write};
use crate::log::SegmentReader;

const SIZE: u64 = 1 << 20;

/// Write A on one disk and, after its reply, B on the other, thousands of times, with cuts: no cut has B without A.
#[test]
fn no_cut_has_a_write_without_what_it_depended_on() {
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::open_in(&machine(dir.path(), &["a", "b"], SIZE), "boot").unwrap();
    let mut replica = Replica::default();
    replica.cycle(&machine).unwrap();
    let (stop, acknowledged) = (AtomicBool::new(false), [const { AtomicU64::new(0) }; 4]);
    let cuts = std::thread::scope(|scope| {
        for (lane, acknowledged) in acknowledged.iter().enumerate() {
            let (machine, stop) = (&machine, &stop);
            scope.spawn(move || {
                let offset = lane as u64 * 4096;
                for number in 1u64.. {
                    write(&**machine.disk("a").unwrap(), offset, &number.to_le_bytes()).unwrap();
                    write(&**machine.disk("b").unwrap(), offset, &number.to_le_bytes()).unwrap();
                    acknowledged.store(number, Ordering::SeqCst);
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                }
            });
        }
        let mut cuts = 0;
        let began = std::time::Instant::now();
        while began.elapsed().as_secs() < 2 || cuts <= 10 {
            let floor: Vec<_> = acknowledged.iter().map(|number| number.load(Ordering::SeqCst)).collect();
            replica.cycle(&machine).unwrap();
            for (lane, floor) in floor.iter().enumerate() {
                let number = |disk: &str| {
                    let at = lane * 4096;
                    u64::from_le_bytes(replica.disks[disk][at..at + 8].try_into().unwrap())
                };
                let (a, b) = (number("a"), number("b"));
                assert!(a == b || a == b + 1, "lane {lane}: the cut has A {a} and B {b}");
                assert!(b >= *floor, "lane {lane}: {floor} was acknowledged before the cut, which has {b}");
            }
            cuts += 1;
        }
        stop.store(true, Ordering::SeqCst);
        cuts
    });
    assert!(cuts > 10, "{cuts} cuts");
    replica.cycle(&machine).unwrap();
    for disk in ["a", "b"] {
        assert_eq!(replica.disks[disk], contents(dir.path(), disk));
    }
}

/// What a third party reads of a cut names every record in it, those included whose writes were under way.
#[test]
fn the_changes_of_a_cut_hold_what_was_in_flight_at_its_instant() {
    const LARGE: u64 = 16 << 20;
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::open_in(&machine(dir.path(), &["d"], LARGE), "boot").unwrap();
    Replica::default().cycle(&machine).unwrap();
    let disk = machine.disk("d").unwrap();
    let stop = AtomicBool::new(false);
    let records = std::thread::scope(|scope| {
        for lane in 0..4_u64 {
            let (disk, stop) = (disk, &stop);
            scope.spawn(move || {
                // Blocks that come again only much later: what one cut misses, no later write of its interval marks.
                for number in 0.. {
                    let block = (number * 4 + lane) % (LARGE / 4096);
                    write(&**disk, block * 4096, &[7; 512]).unwrap();
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                }
            });
        }
        let (mut records, mut missing) = (0, Vec::new());
        let began = std::time::Instant::now();
        while records < 3000 && began.elapsed().as_secs() < 30 {
            let cut = machine.cut().unwrap();
            for segment in &cut.disks[0].segments {
                let mut reader = SegmentReader::open(segment).unwrap();
                while let Some(record) = reader.next_record().unwrap() {
                    let change = disk.next_change(cut.id, record.offset).unwrap();
                    missing.extend(
                        (!change.is_some_and(|it| it.contains(&record.offset))).then_some(record.offset),
                    );
                    records += 1;
                }
            }
            machine.release(cut.id).unwrap();
            let over = disk.cut_out().is_none() && disk.next_change(cut.id, 0).is_err();
            missing.extend((!over).then_some(u64::MAX));
        }
        stop.store(true, Ordering::SeqCst);
        assert!(missing.is_empty(), "writes of a cut that are not among its changes: {missing:?}");
        records
    });
    assert!(records > 1000, "{records} records");
}

#[test]
fn a_second_segment_records_while_the_first_is_in_transit() {
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::open_in(&machine(dir.path(), &["d"], SIZE), "boot").unwrap();
    let mut replica = Replica::default();
    replica.cycle(&machine).unwrap();
    let disk = machine.disk("d").unwrap();
    write(&**disk, 0, &[1; 4096]).unwrap();
    let first = machine.cut().unwrap();
    write(&**disk, 4096, &[2; 4096]).unwrap();
    replica.apply(&first.disks[0]).unwrap();
    assert_eq!(
        (replica.disks["d"][0], replica.disks["d"][4096]),
        (1, 0),
        "the cut is what was written before it"
    );
    machine.release(first.id).unwrap();
    let second = machine.cut().unwrap();
    assert_eq!(second.disks[0].segments.len(), 1, "what was released is gone");
    replica.apply(&second.disks[0]).unwrap();
    assert_eq!(replica.disks["d"], contents(dir.path(), "d"));
}

#[test]
fn a_cut_that_was_not_released_joins_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::open_in(&machine(dir.path(), &["d"], SIZE), "boot").unwrap();
    let mut replica = Replica::default();
    replica.cycle(&machine).unwrap();
    let disk = machine.disk("d").unwrap();
    write(&**disk, 0, &[1; 4096]).unwrap();
    let lost = machine.cut().unwrap();
    write(&**disk, 4096, &[2; 4096]).unwrap();
    let cut = machine.cut().unwrap();
    assert_eq!(cut.disks[0].segments.len(), 2);
    machine.release(lost.id).unwrap();
    assert_eq!(machine.cut().unwrap().disks[0].segments.len(), 2, "an old cut's release is of no effect");
    assert_eq!(machine.info().disks[0].dirty_bytes, 8192);
}

#[test]
fn an_idle_cut_holds_nothing_and_costs_no_segment() {
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::open_in(&machine(dir.path(), &["d"], SIZE), "boot").unwrap();
    Replica::default().cycle(&machine).unwrap();
    for _ in 0..3 {
        let cut = machine.cut().unwrap();
        assert!(cut.disks[0].segments.is_empty());
        machine.release(cut.id).unwrap();
    }
}

#[test]
fn a_clean_close_keeps_what_was_not_shipped() {
    let dir = tempfile::tempdir().unwrap();
    let settings = machine(dir.path(), &["d"], SIZE);
    let running = Machine::open_in(&settings, "boot").unwrap();
    let mut replica = Replica::default();
    replica.cycle(&running).unwrap();
    write(&**running.disk("d").unwrap(), 512, &[1; 100]).unwrap();
    running.close().unwrap();
    drop(running);
    // Even another boot: after a clean close the log is durable.
    let running = Machine::open_in(&settings, "the next boot").unwrap();
    assert_eq!(replica.cycle(&running).unwrap(), []);
    assert_eq!(replica.disks["d"], contents(dir.path(), "d"));
    running.disk("d").unwrap().flush().unwrap();
}
