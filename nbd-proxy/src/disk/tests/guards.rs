//! Guards that nothing else would miss: each test goes red when its guard is taken out (`scripts/mutate`).

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::power::Host;
use super::{BOOT, SIZE};
use crate::Kind;
use crate::device::{BlockDevice, Write, ZeroMode};
use crate::disk::TrackedDisk;
use crate::disk::state::StateFile;
use crate::disk::testing::{FailingDisk, Replica, contents, machine, settings, write};
use crate::durable::failpoint::{Action, arm};
use crate::machine::Machine;
use crate::tracking::SyncScope;

/// A machine with the disk `d`, exact in the replica.
fn protected(dir: &std::path::Path) -> (Arc<Machine>, Arc<TrackedDisk>, Replica) {
    let machine = Machine::open_in(&machine(dir, &["d"], SIZE), BOOT).unwrap();
    let disk = Arc::clone(machine.disk("d").unwrap());
    write(&*disk, 0, &[1; 4096]).unwrap();
    let mut replica = Replica::default();
    replica.cycle(&machine).unwrap();
    (machine, disk, replica)
}

/// Does `act` on a thread of its own, and returns when that waits for another thread. It must not be done.
fn waiting<T: Send + 'static>(
    disk: &Arc<TrackedDisk>,
    act: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    let thread = std::thread::spawn(act);
    while disk.lock().waiters == 0 && !thread.is_finished() {
        std::thread::yield_now();
    }
    assert!(!thread.is_finished(), "it did not wait");
    thread
}

fn is_marked(disk: &TrackedDisk, range: &Range<u64>) -> bool {
    (0..3).for_each(|_| disk.clear_intent());
    disk.lock().intent.marked().covers(range)
}

#[test]
fn a_write_waits_for_an_overlapping_one_in_flight() {
    let dir = tempfile::tempdir().unwrap();
    let (machine, disk, mut replica) = protected(dir.path());
    let half = disk.begin_write(0, &[2; 1024]);
    let later = Arc::clone(&disk);
    let writer = waiting(&disk, move || write(&*later, 512, &[3; 1024]));
    disk.end_write(half);
    writer.join().unwrap().unwrap();
    replica.cycle(&machine).unwrap();
    assert_eq!(replica.disks["d"], contents(dir.path(), "d"));
    assert_eq!(replica.disks["d"][511..513], [2, 3]);
}

#[test]
fn nothing_behind_a_gap_in_the_log_reaches_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (machine, disk, mut replica) = protected(dir.path());
    let gap = disk.take_room(0, &[2; 512]);
    let later = Arc::clone(&disk);
    let writer = waiting(&disk, move || write(&*later, 8192, &[3; 512]));
    assert_eq!(contents(dir.path(), "d")[8192], 0, "a reader of the log would stop before its record");
    disk.append_record(&gap);
    writer.join().unwrap().unwrap();
    disk.end_write(gap);
    replica.cycle(&machine).unwrap();
    assert_eq!(replica.disks["d"], contents(dir.path(), "d"));
}

#[test]
fn a_fast_zero_that_is_refused_leaves_no_record() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path(), "d", SIZE, Some(1 << 30));
    let (backing, failing) = FailingDisk::open(&settings.path);
    let disk = Arc::new(TrackedDisk::open_on(Box::new(backing), "m", &settings, BOOT).unwrap());
    let machine = Machine::over("m".to_owned(), vec![Arc::clone(&disk)]);
    Replica::default().cycle(&machine).unwrap();
    write(&*disk, 0, &[1; 4096]).unwrap();
    let before = machine.info().disks[0].log_bytes;
    failing.store(true, Ordering::SeqCst);
    let refused = disk.zero(0, 4096, ZeroMode { fast: true, ..ZeroMode::default() }).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(rustix::io::Errno::OPNOTSUPP.raw_os_error()));
    assert_eq!(machine.info().disks[0].log_bytes, before);
}

#[test]
fn a_cut_waits_for_the_writes_that_are_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let (machine, disk, mut replica) = protected(dir.path());
    let half = disk.begin_write(4096, &[2; 512]);
    let cutting = Arc::clone(&machine);
    let cut = waiting(&disk, move || cutting.cut());
    disk.end_write(half);
    let cut = cut.join().unwrap().unwrap();
    replica.apply(&cut.disks[0]).unwrap();
    assert_eq!(replica.disks["d"], contents(dir.path(), "d"));
}

#[test]
fn a_cut_whose_log_broke_before_it_was_settled_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (machine, disk, mut replica) = protected(dir.path());
    let half = disk.begin_write(4096, &[2; 512]);
    let cutting = Arc::clone(&machine);
    let cut = waiting(&disk, move || cutting.cut());
    disk.lose_log("the test says so");
    assert_eq!(cut.join().unwrap().unwrap_err().kind, Kind::NotReady);
    disk.end_write(half);
    assert_eq!(replica.cycle(&machine).unwrap(), [SyncScope::Dirty]);
    assert_eq!(replica.disks["d"], contents(dir.path(), "d"));
}

#[test]
fn no_write_goes_on_without_a_record_before_that_is_durable() {
    let dir = tempfile::tempdir().unwrap();
    let (machine, disk, mut replica) = protected(dir.path());
    let (looked, waited) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (see, wait, other) = (Arc::clone(&looked), Arc::clone(&waited), Arc::clone(&disk));
    let guard = arm(&[]);
    guard.watch(move |point| {
        if point == "StateWritten.Sync.before" && !see.swap(true, Ordering::SeqCst) {
            let writer = Arc::clone(&other);
            let thread = std::thread::spawn(move || write(&*writer, 0, &[2; 512]).unwrap());
            while other.lock().waiters == 0 && !thread.is_finished() {
                std::thread::yield_now();
            }
            wait.store(!thread.is_finished(), Ordering::SeqCst);
        }
    });
    disk.stop_logging("the test says so").unwrap();
    drop(guard);
    assert!(looked.load(Ordering::SeqCst), "the state was written");
    assert!(
        waited.load(Ordering::SeqCst),
        "a write went on while the state on disk still said that all have records"
    );
    assert_eq!(replica.cycle(&machine).unwrap(), [SyncScope::Dirty]);
    assert_eq!(replica.disks["d"], contents(dir.path(), "d"));
}

#[test]
fn logging_begins_behind_the_last_write_without_a_record() {
    let dir = tempfile::tempdir().unwrap();
    let (machine, disk, mut replica) = protected(dir.path());
    disk.stop_logging("the test says so").unwrap();
    let (range, known) = (500_000..500_512, replica.known["d"]);
    let ticket = disk.lock().ranges.take(std::iter::once(range.clone()));
    let beginning = Arc::clone(&machine);
    let sync = waiting(&disk, move || beginning.begin_sync("d", Some(known)));
    disk.backing.write_batch(&[Write { offset: range.start, data: &[2; 512], fua: false }], &mut Vec::new());
    let mut tracker = disk.lock();
    tracker.mark(std::iter::once(range));
    tracker.ranges.release(ticket);
    disk.unlock(tracker);
    assert_eq!(sync.join().unwrap().unwrap().scope, SyncScope::Dirty);
    replica.cycle(&machine).unwrap();
    assert_eq!(replica.disks["d"], contents(dir.path(), "d"));
}

#[test]
fn a_sync_that_loses_its_log_lacks_nothing_that_it_had_released() {
    let dir = tempfile::tempdir().unwrap();
    let (machine, disk, mut replica) = protected(dir.path());
    disk.stop_logging("the test says so").unwrap();
    write(&*disk, 0, &[2; 4096]).unwrap();
    assert_eq!(machine.begin_sync("d", Some(replica.known["d"])).unwrap().scope, SyncScope::Dirty);
    // Shipped and released within a sync of which no point comes: its log is lost, and who shipped it forgets.
    write(&*disk, 500_000, &[3; 4096]).unwrap();
    let cut = machine.cut().unwrap();
    machine.release(cut.id).unwrap();
    disk.stop_logging("the test says so again").unwrap();
    assert_eq!(replica.cycle(&machine).unwrap(), [SyncScope::Dirty]);
    assert_eq!(replica.disks["d"], contents(dir.path(), "d"));
}

#[test]
fn a_partial_sync_is_for_who_has_its_base() {
    let dir = tempfile::tempdir().unwrap();
    let (machine, disk, replica) = protected(dir.path());
    disk.stop_logging("the test says so").unwrap();
    assert_eq!(machine.begin_sync("d", Some(replica.known["d"])).unwrap().scope, SyncScope::Dirty);
    let stranger = Some(uuid::Uuid::new_v4());
    assert_eq!(machine.begin_sync("d", stranger).unwrap().scope, SyncScope::Whole);
}

#[test]
fn a_cut_includes_the_one_that_was_not_released() {
    let dir = tempfile::tempdir().unwrap();
    let (machine, disk, _) = protected(dir.path());
    write(&*disk, 0, &[2; 4096]).unwrap();
    machine.cut().unwrap();
    write(&*disk, 500_000, &[3; 512]).unwrap();
    let cut = machine.cut().unwrap();
    assert_eq!(disk.next_change(cut.id, 0).unwrap(), Some(0..4096));
    assert_eq!(machine.info().disks[0].dirty_bytes, 8192);
}

#[test]
fn no_mark_goes_while_something_is_open() {
    let dir = tempfile::tempdir().unwrap();
    let (machine, disk, mut replica) = protected(dir.path());
    let place = 0..512;
    write(&*disk, 0, &[2; 512]).unwrap();
    assert!(is_marked(&disk, &place), "no cut has it");
    let cut = machine.cut().unwrap();
    assert!(is_marked(&disk, &place), "the cut that is out may never be committed");
    replica.apply(&cut.disks[0]).unwrap();
    let half = disk.begin_write(0, &[3; 512]);
    machine.release(cut.id).unwrap();
    assert!(is_marked(&disk, &place), "a write is in flight");
    disk.end_write(half);
    disk.stop_logging("the test says so").unwrap();
    machine.begin_sync("d", Some(replica.known["d"])).unwrap();
    assert!(is_marked(&disk, &place), "the sync has not copied it");
    replica.cycle(&machine).unwrap();
    disk.stop_logging("the test says so").unwrap();
    machine.begin_sync("d", Some(replica.known["d"])).unwrap();
    write(&*disk, 0, &[4; 512]).unwrap();
    let cut = machine.cut().unwrap();
    machine.release(cut.id).unwrap();
    assert!(is_marked(&disk, &place), "of what is released within a sync no point may come");
    replica.cycle(&machine).unwrap();
    assert!(!is_marked(&disk, &place), "the vault has it");
    assert_eq!(replica.disks["d"], contents(dir.path(), "d"));
}

#[test]
fn what_a_failed_sync_lost_is_read_past_the_page_cache() {
    let mut host = Host::new();
    let mut replica = Replica::default();
    host.check(&mut replica);
    write(host.disk(), 0, &[1; 4096]).unwrap();
    host.fail_sync();
    host.open();
    host.check(&mut replica);
    // The vault has what was read, and syncs seem to succeed again: the mark goes.
    (0..3).for_each(|_| host.disk().clear_intent());
    host.lose_power(2);
    host.check(&mut replica);
}

#[test]
fn what_a_failed_sync_lost_is_not_shipped_though_nothing_tells_of_it() {
    let mut host = Host::new();
    let mut replica = Replica::default();
    write(host.disk(), 0, &[1; 4096]).unwrap();
    host.fail_sync();
    // The state is what says so.
    std::fs::remove_file(host.log_folder().join("state")).unwrap();
    host.open();
    host.check(&mut replica);
    host.lose_power(2);
    host.check(&mut replica);
}

#[test]
fn before_anybody_is_served_the_state_says_that_the_disk_is_open() {
    let mut host = Host::new();
    let state = host.log_folder().join("state");
    let is_clean = || StateFile::open(&state).unwrap().1.state.unwrap().clean;
    host.machine().close().unwrap();
    assert!(is_clean());
    host.open();
    assert!(!is_clean());
}

#[test]
fn a_log_goes_only_after_the_state_says_that_it_does_not_count() {
    let mut host = Host::new();
    let mut replica = Replica::default();
    host.check(&mut replica);
    (0..13).for_each(|at| write(host.disk(), at << 20, &[7; 1 << 20]).unwrap());
    let segments = |host: &Host| {
        let entries = std::fs::read_dir(host.log_folder()).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        let mut found: Vec<_> =
            paths.filter(|path| path.extension().is_some_and(|end| end == "seg")).collect();
        found.sort();
        found
    };
    std::fs::remove_file(&segments(&host)[0]).unwrap();
    let damaged = segments(&host);
    // What the next open saw, the one after it must see as well, unless it was told.
    let dead = arm(&[("StateWritten.Sync.before", Action::Die, 1)]);
    host.open();
    drop(dead);
    assert_eq!(segments(&host), damaged);
    host.open();
    assert!(!host.machine().info().disks[0].logged);
    host.check(&mut replica);
}

#[test]
fn a_note_is_lifted_only_when_the_state_is_right_again() {
    let mut host = Host::new();
    let mut replica = Replica::default();
    host.check(&mut replica);
    let refused = arm(&[("StateWritten.Sync.before", Action::Fail, 0)]);
    host.disk().stop_logging("the test says so").unwrap();
    drop(refused);
    write(host.disk(), 5_000_000, &[1; 4096]).unwrap();
    // The next open dies before its state is durable. What it wrote may be there after a kill; after a power loss it may not.
    let state = host.log_folder().join("state");
    let before = std::fs::read(&state).unwrap();
    let dead = arm(&[("StateWritten.Sync.before", Action::Die, 1)]);
    host.open();
    drop(dead);
    std::fs::write(&state, before).unwrap();
    host.open();
    assert_eq!(replica.cycle(host.machine()).unwrap(), [SyncScope::Whole]);
    host.check(&mut replica);
}

#[test]
fn segments_of_an_earlier_stretch_do_not_count() {
    let mut host = Host::new();
    let mut replica = Replica::default();
    host.check(&mut replica);
    write(host.disk(), 0, &[1; 4096]).unwrap();
    let old = host.machine().cut().unwrap().disks.remove(0).segments.remove(0).path;
    let bytes = std::fs::read(&old).unwrap();
    host.disk().stop_logging("the test says so").unwrap();
    write(host.disk(), 0, &[2; 4096]).unwrap();
    host.check(&mut replica);
    // A file system brings it back.
    std::fs::write(&old, bytes).unwrap();
    host.open();
    assert!(host.machine().info().disks[0].logged);
    assert_eq!(replica.cycle(host.machine()).unwrap(), []);
    host.check(&mut replica);
}

#[test]
fn a_kill_after_a_release_costs_no_sync() {
    let mut host = Host::new();
    let mut replica = Replica::default();
    host.check(&mut replica);
    for byte in 0..3 {
        write(host.disk(), 0, &[byte; 4096]).unwrap();
        host.check(&mut replica);
    }
    host.open();
    assert_eq!(replica.cycle(host.machine()).unwrap(), []);
}

#[test]
fn a_map_that_is_kept_again_marks_everything() {
    let mut host = Host::new();
    let mut replica = Replica::default();
    host.check(&mut replica);
    let refused = arm(&[("IntentWritten.Sync.before", Action::Fail, 0)]);
    write(host.disk(), 5_000_000, &[1; 65_536]).unwrap();
    drop(refused);
    replica.cycle(host.machine()).unwrap();
    // The vault has it, and the disk was never synced.
    host.lose_power(2);
    let info = host.machine().info().disks.remove(0);
    assert!(info.dirty_bytes >= info.size, "{info:?}");
    host.check(&mut replica);
}

#[test]
fn a_whole_copy_ships_nothing_that_a_power_loss_could_take_back_unmarked() {
    let mut host = Host::new();
    host.write_outside(5_000_000, &[1; 65_536]);
    let mut replica = Replica::default();
    host.check(&mut replica);
    host.lose_power(2);
    host.check(&mut replica);
}
