//! A sync that loses its log goes on in rounds, and ends exact.

use super::*;
use crate::tracking::{Round, Sync};

/// Writes until logging stops.
fn overflow(machine: &Machine, byte: u8) {
    let disk = machine.disk("d").unwrap();
    let mut at = 0;
    while machine.info().disks[0].logged {
        write(&**disk, at % (SIZE - 60_000), &[byte; 60_000]).unwrap();
        at += 4096;
    }
}

fn open(dir: &std::path::Path) -> Arc<Machine> {
    let mut machine = machine(dir, &["d"], SIZE);
    machine.disks[0].log_limit = Some(8 << 20);
    Machine::open_in(&machine, BOOT).unwrap()
}

fn copy(replica: &mut Replica, machine: &Machine, sync: &Sync) {
    replica.copy(machine, "d", sync.tracking, sync.scope, sync.size).unwrap();
}

/// Ends the sync with a cut, and compares.
fn close(replica: &mut Replica, machine: &Machine, dir: &std::path::Path, sync: &Sync) {
    let cut = machine.cut().unwrap();
    replica.apply(&cut.disks[0]).unwrap();
    machine.end_sync("d", sync.tracking).unwrap();
    machine.release(cut.id).unwrap();
    assert!(replica.disks["d"] == contents(dir, "d"), "the replica is what the disk is");
}

fn next(machine: &Machine, sync: &Sync, complete: bool, logged: bool) -> Sync {
    machine.next_round("d", None, Round { id: sync.round, complete }, logged).unwrap()
}

#[test]
fn a_sync_that_loses_its_log_goes_on_in_rounds() {
    let dir = tempfile::tempdir().unwrap();
    let (machine, mut replica) = (open(dir.path()), Replica::default());
    let first = machine.begin_sync("d", None).unwrap();
    assert!(first.logged);
    overflow(&machine, 1);
    machine.sync_extents("d", first.tracking, 0).expect_err("the stretch is over");
    let same = next(&machine, &first, false, true);
    assert_eq!((same.round, same.scope, same.logged), (first.round, SyncScope::Whole, false));
    assert_ne!(same.tracking, first.tracking);
    copy(&mut replica, &machine, &same);
    let disk = machine.disk("d").unwrap();
    write(&**disk, 5000, &[2; 9000]).unwrap();
    let second = next(&machine, &same, true, false);
    assert_eq!((second.scope, second.logged, second.follows), (SyncScope::Dirty, false, Some(first.round)));
    // The reply was lost: it is not skipped, and what is written now is of the next.
    write(&**disk, 100_000, &[3; 10]).unwrap();
    assert_eq!(next(&machine, &same, true, false).round, second.round);
    assert!(
        machine.cut().is_err() && machine.end_sync("d", second.tracking).is_err(),
        "no end without a log"
    );
    copy(&mut replica, &machine, &second);
    write(&**disk, 200_000, &[4; 10]).unwrap();
    let last = next(&machine, &second, true, true);
    assert!(last.logged);
    write(&**disk, 300_000, &[5; 10]).unwrap();
    copy(&mut replica, &machine, &last);
    write(&**disk, 400_000, &[6; 10]).unwrap();
    close(&mut replica, &machine, dir.path(), &last);
}

#[test]
fn a_last_round_that_loses_its_log_is_followed_by_another() {
    let dir = tempfile::tempdir().unwrap();
    let (machine, mut replica) = (open(dir.path()), Replica::default());
    let mut sync = machine.begin_sync("d", None).unwrap();
    copy(&mut replica, &machine, &sync);
    for byte in 1..4 {
        // A cut of it is shipped and released, and what that held is written again without a log.
        write(&**machine.disk("d").unwrap(), 0, &[9; 4096]).unwrap();
        let cut = machine.cut().unwrap();
        replica.apply(&cut.disks[0]).unwrap();
        machine.release(cut.id).unwrap();
        overflow(&machine, byte);
        sync = next(&machine, &sync, true, true);
        assert_eq!((sync.logged, sync.scope), (true, SyncScope::Dirty));
        copy(&mut replica, &machine, &sync);
    }
    close(&mut replica, &machine, dir.path(), &sync);
}

#[test]
fn a_sync_that_begins_again_includes_what_earlier_rounds_copied() {
    let dir = tempfile::tempdir().unwrap();
    let (machine, mut replica) = (open(dir.path()), Replica::default());
    replica.cycle(&machine).unwrap();
    let known = replica.known["d"];
    overflow(&machine, 1);
    let dirty = machine.begin_sync("d", Some(known)).unwrap();
    assert_eq!(dirty.scope, SyncScope::Dirty);
    overflow(&machine, 2);
    let have = Round { id: dirty.round, complete: true };
    let second = machine.next_round("d", Some(known), have, false).unwrap();
    assert!(machine.info().disks[0].bases.contains(&known));
    // Nobody remembers the rounds, and what they shipped was given up.
    let stranger = Round { id: uuid::Uuid::new_v4(), complete: true };
    let again = machine.next_round("d", Some(known), stranger, false).unwrap();
    assert_eq!(
        again.scope,
        SyncScope::Marked,
        "all that differs is still known, and some of it may not differ"
    );
    assert_ne!(again.round, second.round);
    copy(&mut replica, &machine, &again);
    close(&mut replica, &machine, dir.path(), &again);
    // The same for one in mid-round that still leads from what the vault has.
    replica.cycle(&machine).unwrap();
    let known = replica.known["d"];
    overflow(&machine, 3);
    let dirty = machine.begin_sync("d", Some(known)).unwrap();
    overflow(&machine, 4);
    next(&machine, &dirty, false, false);
    let again = machine.begin_sync("d", Some(known)).unwrap();
    assert_eq!(again.scope, SyncScope::Dirty, "all that differs is still known");
    copy(&mut replica, &machine, &again);
    close(&mut replica, &machine, dir.path(), &again);
}

/// Whatever dies in whichever round: what the first round copied differs still, and is marked.
#[test]
fn a_power_loss_in_any_round_costs_the_marked_regions_only() {
    for (logged, boot) in [(false, "another"), (true, "another"), (false, BOOT), (true, BOOT)] {
        let dir = tempfile::tempdir().unwrap();
        let (machine, mut replica) = (open(dir.path()), Replica::default());
        replica.cycle(&machine).unwrap();
        let known = replica.known["d"];
        overflow(&machine, 1);
        let first = machine.begin_sync("d", Some(known)).unwrap();
        overflow(&machine, 2);
        machine.next_round("d", Some(known), Round { id: first.round, complete: true }, logged).unwrap();
        // Idle and synced, and yet the vault has nothing of it.
        let disk = machine.disk("d").unwrap();
        disk.flush().unwrap();
        (0..3).for_each(|_| disk.clear_intent());
        let _ = disk;
        drop(machine);
        let mut settings = super::machine(dir.path(), &["d"], SIZE);
        settings.disks[0].log_limit = Some(8 << 20);
        let machine = Machine::open_in(&settings, boot).unwrap();
        let again = machine.begin_sync("d", Some(known)).unwrap();
        assert_eq!(again.scope, SyncScope::Marked, "logged {logged}, boot {boot}");
        copy(&mut replica, &machine, &again);
        close(&mut replica, &machine, dir.path(), &again);
    }
}
