//! What the intent map costs the writes: one sync per cold region, shared by all who wait for it.

use std::sync::Barrier;

use super::BOOT;
use crate::disk::testing::{machine, write};
use crate::machine::Machine;

const REGION: u64 = 4 << 20;
const REGIONS: u64 = 24;
const WRITERS: u64 = 8;

#[test]
fn a_cold_region_costs_one_sync_whoever_waits_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let running = Machine::open_in(&machine(dir.path(), &["d"], REGIONS * REGION), BOOT).unwrap();
    let disk = running.disk("d").unwrap();
    let saves = || disk.intent.saves();
    let (before, together) = (saves(), Barrier::new(usize::try_from(WRITERS).unwrap()));
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let together = &together;
            scope.spawn(move || {
                // Backwards and with gaps, so that nothing is marked ahead.
                for region in (0..REGIONS).rev().step_by(3) {
                    together.wait();
                    write(&**disk, region * REGION + writer * 4096, &[1; 4096]).unwrap();
                }
            });
        }
    });
    let cold = REGIONS / 3;
    // One more if the stamp ran out meanwhile.
    assert!((cold..=cold + 1).contains(&(saves() - before)), "{} saves", saves() - before);
    let warm = saves();
    (0..100).for_each(|at| write(&**disk, 2 * REGION + at * 4096, &[2; 4096]).unwrap());
    assert!(saves() - warm <= 1, "a region that is marked costs nothing");
}

#[test]
fn a_sequential_writer_waits_for_few_syncs() {
    let dir = tempfile::tempdir().unwrap();
    let running = Machine::open_in(&machine(dir.path(), &["d"], REGIONS * REGION), BOOT).unwrap();
    let disk = running.disk("d").unwrap();
    let before = disk.intent.saves();
    for at in 0..REGIONS * 4 {
        write(&**disk, at * (1 << 20), &[3; 4096]).unwrap();
    }
    // As many regions ahead as are marked right behind: 1, 2, 4, 8, 16.
    assert!(disk.intent.saves() - before <= 7, "{} saves", disk.intent.saves() - before);
}
