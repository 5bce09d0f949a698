//! The tracked disk keeps its promises, one disk at a time.

mod afar;
mod damage;
mod folder;
mod guards;
mod marks;
mod power;
mod rounds;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::TrackedDisk;
use super::intent::Marks;
use super::mark::unix_now;
use super::testing::{FailingDisk, Replica, contents, machine, settings, write};
use crate::device::{BlockDevice, Write, ZeroMode};
use crate::durable::failpoint::{Action, arm};
use crate::machine::Machine;
use crate::tracking::SyncScope;
use crate::{Kind, Result};

const SIZE: u64 = 1 << 20;
const BOOT: &str = "this boot";

#[derive(Clone, Debug)]
enum Step {
    Batch(Vec<(u64, u8, u64)>),
    Zero(u64, u64, bool),
    Cycle,
    /// A cut that nobody releases.
    LostCut,
    Kill,
    Close,
    PowerLoss,
    TouchedOutside,
    LogBreaks,
}

fn step() -> impl Strategy<Value = Step> {
    let one = (0..SIZE - 9000, any::<u8>(), 1..9000u64);
    prop_oneof![
        8 => prop::collection::vec(one, 1..12).prop_map(Step::Batch),
        3 => (0..SIZE - 1, 1..SIZE, any::<bool>()).prop_map(|(at, len, punch)| Step::Zero(at, len.min(SIZE - at), punch)),
        3 => Just(Step::Cycle),
        1 => Just(Step::LostCut),
        2 => Just(Step::Kill),
        1 => Just(Step::Close),
        1 => Just(Step::PowerLoss),
        1 => Just(Step::TouchedOutside),
        1 => Just(Step::LogBreaks),
    ]
}

fn apply(machine: &Machine, step: &Step) {
    let disk = machine.disk("d").unwrap();
    match step {
        Step::Batch(writes) => {
            let data: Vec<_> =
                writes.iter().map(|(_, byte, len)| vec![*byte; usize::try_from(*len).unwrap()]).collect();
            let batch: Vec<_> = writes
                .iter()
                .zip(&data)
                .map(|((offset, ..), data)| Write { offset: *offset, data, fua: false })
                .collect();
            let mut results = Vec::new();
            disk.write_batch(&batch, &mut results);
            assert!(results.len() == batch.len() && results.iter().all(Result::is_ok));
        }
        Step::Zero(at, len, punch) => {
            disk.zero(*at, *len, ZeroMode { punch: *punch, ..ZeroMode::default() }).unwrap();
        }
        Step::LogBreaks => disk.stop_logging("the test says so").unwrap(),
        Step::LostCut => drop(machine.cut()),
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    /// After any sequence of writes, lost cuts, kills, power losses, outside changes and broken logs, what tracking hands on makes the replica
    /// equal to the disk, and what a clean or killed run leaves needs no sync.
    #[test]
    fn every_point_restores(steps in prop::collection::vec(step(), 1..40)) {
        let dir = tempfile::tempdir().unwrap();
        let settings = machine(dir.path(), &["d"], SIZE);
        let mut boot = 0;
        let open = |boot: u32| Machine::open_in(&settings, &boot.to_string()).unwrap();
        let mut running = open(boot);
        let mut replica = Replica::default();
        let mut broken = true;
        for step in &steps {
            apply(&running, step);
            match step {
                Step::Cycle => {
                    let scopes = replica.cycle(&running).unwrap();
                    prop_assert_eq!(!scopes.is_empty(), broken, "a sync exactly when records do not suffice");
                    broken = false;
                    prop_assert_eq!(&replica.disks["d"], &contents(dir.path(), "d"));
                }
                Step::LogBreaks | Step::PowerLoss | Step::TouchedOutside => broken = true,
                _ => {}
            }
            let reopened = match step {
                Step::Kill => true,
                Step::Close => { running.close().unwrap(); true }
                Step::TouchedOutside => { running.close().unwrap(); true }
                Step::PowerLoss => { boot += 1; true }
                _ => false,
            };
            if reopened {
                drop(running);
                if matches!(step, Step::TouchedOutside) {
                    std::thread::sleep(std::time::Duration::from_millis(10));
                    let image = std::fs::File::options().write(true).open(dir.path().join("d.img")).unwrap();
                    std::os::unix::fs::FileExt::write_all_at(&image, b"outside", 4096).unwrap();
                }
                running = open(boot);
            }
        }
        replica.cycle(&running).unwrap();
        prop_assert_eq!(&replica.disks["d"], &contents(dir.path(), "d"));
    }
}

#[test]
fn recovery_leaves_the_backing_alone() {
    let dir = tempfile::tempdir().unwrap();
    let settings = machine(dir.path(), &["d"], SIZE);
    let running = Machine::open_in(&settings, BOOT).unwrap();
    Replica::default().cycle(&running).unwrap();
    write(&**running.disk("d").unwrap(), 100, &[1; 5000]).unwrap();
    drop(running);
    // In flight when the process died: recorded, not on the backing.
    let image = std::fs::File::options().write(true).open(dir.path().join("d.img")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&image, &[9; 2500], 100).unwrap();
    let before = contents(dir.path(), "d");
    let running = Machine::open_in(&settings, BOOT).unwrap();
    assert_eq!(contents(dir.path(), "d"), before, "the disk is the truth");
    let cut = running.cut().unwrap();
    let mut replica = Replica::default();
    replica.disks.insert("d".to_owned(), vec![0; usize::try_from(SIZE).unwrap()]);
    replica.apply(&cut.disks[0]).unwrap();
    assert_eq!(replica.disks["d"], before, "what was really there follows the record");
}

#[test]
fn a_write_the_backing_refused_is_corrected_in_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path(), "d", SIZE, Some(1 << 30));
    let (backing, failing) = FailingDisk::open(&settings.path);
    let disk = Arc::new(TrackedDisk::open_on(Box::new(backing), "m", &settings, BOOT).unwrap());
    let machine = Machine::over("m".to_owned(), vec![disk.clone()]);
    let mut replica = Replica::default();
    write(&*disk, 0, &[3; 65536]).unwrap();
    replica.cycle(&machine).unwrap();
    failing.store(true, Ordering::SeqCst);
    assert_eq!(write(&*disk, 4096, &[4; 8192]).unwrap_err().raw_os_error(), Some(5));
    assert!(disk.zero(32768, 8192, ZeroMode { punch: true, ..ZeroMode::default() }).is_err());
    failing.store(false, Ordering::SeqCst);
    assert_eq!(replica.cycle(&machine).unwrap(), [], "no sync: the log tells what is there");
    assert_eq!(replica.disks["d"], contents(dir.path(), "d"));
    assert_eq!(replica.disks["d"][8191], 4, "half of the torn write is there");
    assert_eq!(replica.disks["d"][8192], 3);
}

#[test]
fn a_full_log_never_fails_a_write_and_costs_only_the_dirty_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = machine(dir.path(), &["d"], 64 << 20);
    settings.disks[0].log_limit = Some(8 << 20);
    let machine = Machine::open_in(&settings, BOOT).unwrap();
    let disk = machine.disk("d").unwrap();
    write(&**disk, 40 << 20, &[5; 1 << 20]).unwrap();
    let mut replica = Replica::default();
    assert_eq!(replica.cycle(&machine).unwrap(), [SyncScope::Whole]);
    for round in 0..16 {
        write(&**disk, round << 20, &[6; 1 << 20]).unwrap();
    }
    let info = &machine.info().disks[0];
    assert!(!info.logged && info.cause.contains("limit"), "{info:?}");
    assert_eq!(info.log_bytes, 0, "the log's space is given back");
    assert_eq!(machine.cut().unwrap_err().kind, Kind::NotReady);
    assert_eq!(replica.cycle(&machine).unwrap(), [SyncScope::Dirty]);
    assert_eq!(replica.disks["d"], contents(dir.path(), "d"));
    assert_eq!(replica.cycle(&machine).unwrap(), []);
}

#[test]
fn a_lost_log_is_a_new_stretch() {
    let dir = tempfile::tempdir().unwrap();
    let settings = machine(dir.path(), &["d"], SIZE);
    let running = Machine::open_in(&settings, BOOT).unwrap();
    let mut replica = Replica::default();
    replica.cycle(&running).unwrap();
    let before = running.info().disks[0].tracking;
    write(&**running.disk("d").unwrap(), 0, &[1; 4096]).unwrap();
    let cut = running.cut().unwrap();
    drop(running);
    // A bit flips in a record that the applied mark vouches for.
    let path = &cut.disks[0].segments[0].path;
    let mut bytes = std::fs::read(path).unwrap();
    bytes[5000] ^= 1;
    std::fs::write(path, bytes).unwrap();
    let running = Machine::open_in(&settings, BOOT).unwrap();
    assert_ne!(running.info().disks[0].tracking, before);
    assert_eq!(replica.cycle(&running).unwrap(), [SyncScope::Marked], "what it told lies in marked regions");
    assert_eq!(replica.disks["d"], contents(dir.path(), "d"));
}

#[test]
fn a_log_that_cannot_be_recorded_as_broken_fails_the_write() {
    let dir = tempfile::tempdir().unwrap();
    let settings = machine(dir.path(), &["d"], SIZE);
    let machine = Machine::open_in(&settings, BOOT).unwrap();
    Replica::default().cycle(&machine).unwrap();
    let disk = machine.disk("d").unwrap();
    let refused = arm(&[("StateWritten.Sync.before", Action::Fail, 0)]);
    // Nor can it be noted beside the image.
    let note = dir.path().join(".d.img.lifeboat-void");
    std::fs::create_dir(&note).unwrap();
    assert!(disk.stop_logging("the test says so").is_err());
    let before = contents(dir.path(), "d");
    assert!(write(&**disk, 0, &[1; 4096]).is_err());
    assert_eq!(contents(dir.path(), "d"), before, "a write that cannot be accounted for does not happen");
    drop(refused);
    write(&**disk, 0, &[1; 4096]).unwrap();
    assert!(!machine.info().disks[0].logged);
}

#[test]
fn overlapping_writes_agree_with_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let settings = machine(dir.path(), &["d"], SIZE);
    let machine = Machine::open_in(&settings, BOOT).unwrap();
    let mut replica = Replica::default();
    replica.cycle(&machine).unwrap();
    for round in 0..20 {
        std::thread::scope(|scope| {
            for thread in 0..8u8 {
                let disk = machine.disk("d").unwrap();
                scope.spawn(move || {
                    for step in 0..50u64 {
                        let offset = (step * 37 + u64::from(thread) * 11) % 40 * 512;
                        write(&**disk, offset, &vec![thread * 16 + round; 512 * (1 + usize::from(thread))])
                            .unwrap();
                    }
                });
            }
        });
        replica.cycle(&machine).unwrap();
        assert_eq!(replica.disks["d"], contents(dir.path(), "d"), "round {round}");
    }
}

#[test]
fn a_second_opener_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let settings = machine(dir.path(), &["d"], SIZE);
    let _running = Machine::open_in(&settings, BOOT).unwrap();
    assert_eq!(Machine::open_in(&settings, BOOT).unwrap_err().kind, Kind::InUse);
}

#[test]
fn the_log_gives_its_space_back_before_the_guest_hears_that_there_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path(), "d", SIZE, Some(1 << 30));
    let log = dir.path().join("lifeboat-logs/m/d");
    let (backing, failing) = FailingDisk::full_beside(&settings.path, log);
    let disk = Arc::new(TrackedDisk::open_on(Box::new(backing), "m", &settings, BOOT).unwrap());
    let machine = Machine::over("m".to_owned(), vec![disk.clone()]);
    let mut replica = Replica::default();
    replica.cycle(&machine).unwrap();
    write(&*disk, 65536, &[1; 4096]).unwrap();
    failing.store(true, Ordering::SeqCst);
    write(&*disk, 0, &[7; 8192]).unwrap();
    disk.zero(4096, 100, ZeroMode::default()).unwrap();
    assert!(machine.info().disks[0].cause.contains("space"), "{:?}", machine.info());
    failing.store(false, Ordering::SeqCst);
    assert_eq!(replica.cycle(&machine).unwrap(), [SyncScope::Dirty]);
    assert_eq!(replica.disks["d"], contents(dir.path(), "d"));
}

#[test]
fn writes_outside_after_a_kill_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let settings = machine(dir.path(), &["d"], SIZE);
    let running = Machine::open_in(&settings, BOOT).unwrap();
    let mut replica = Replica::default();
    replica.cycle(&running).unwrap();
    write(&**running.disk("d").unwrap(), 0, &[1; 4096]).unwrap();
    // The proxy died a minute ago; then somebody wrote to the image.
    let disk = running.disk("d").unwrap();
    let regions = disk.lock().intent.marked().clone();
    disk.intent.write(&Marks { regions, until: unix_now() - 60 }).unwrap();
    drop(running);
    let image = std::fs::File::options().write(true).open(dir.path().join("d.img")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&image, b"outside", 500_000).unwrap();
    let running = Machine::open_in(&settings, BOOT).unwrap();
    assert!(running.info().disks[0].cause.contains("outside"), "{:?}", running.info());
    assert_eq!(replica.cycle(&running).unwrap(), [SyncScope::Whole]);
    assert_eq!(replica.disks["d"], contents(dir.path(), "d"));
}

#[test]
fn a_sync_begun_again_includes_what_its_first_attempt_shipped() {
    let dir = tempfile::tempdir().unwrap();
    let running = Machine::open_in(&machine(dir.path(), &["d"], SIZE), BOOT).unwrap();
    let mut replica = Replica::default();
    replica.cycle(&running).unwrap();
    let disk = running.disk("d").unwrap();
    disk.stop_logging("the test says so").unwrap();
    write(&**disk, 0, &[1; 4096]).unwrap();
    let known = Some(replica.known["d"]);
    assert_eq!(running.begin_sync("d", known).unwrap().scope, SyncScope::Dirty);
    // Shipped and released within the first attempt, which is then given up.
    write(&**disk, 500_000, &[2; 4096]).unwrap();
    let cut = running.cut().unwrap();
    running.release(cut.id).unwrap();
    assert_eq!(replica.cycle(&running).unwrap(), [SyncScope::Dirty]);
    assert_eq!(replica.disks["d"], contents(dir.path(), "d"));
}

/// A slow maker of spares must not be overtaken: segments become active in the order of their numbers.
#[test]
fn segments_become_active_in_the_order_of_their_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = machine(dir.path(), &["d"], SIZE);
    settings.disks[0].log_limit = Some(16 << 20);
    let machine = Machine::open_in(&settings, BOOT).unwrap();
    let mut replica = Replica::default();
    replica.cycle(&machine).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let disk = machine.disk("d").unwrap();
            scope.spawn(move || {
                for step in 0..150u8 {
                    write(&**disk, thread * 200_000, &vec![step; 150_000]).unwrap();
                }
            });
        }
        for _ in 0..60 {
            // A cut may fall into a stretch without a log; the numbers are checked where segments are activated.
            let _ = replica.cycle(&machine);
        }
    });
    replica.cycle(&machine).unwrap();
    assert_eq!(replica.disks["d"], contents(dir.path(), "d"));
}
