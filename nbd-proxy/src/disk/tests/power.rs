//! Whatever dies, and whenever: what tracking names covers every difference between disk and vault.
//!
//! `LIFEBOAT_ROUNDS` is the number of cases of the property (30; 1,000 in `scripts/soak`).

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use crate::device::{BlockDevice, ZeroMode};
use crate::disk::TrackedDisk;
use crate::disk::testing::losing::{LosingDisk, Platter};
use crate::disk::testing::{End, Replica, settings, write};
use crate::durable::failpoint::{self, ANY, Action, arm};
use crate::machine::Machine;
use crate::tracking::SyncScope;

/// Several regions.
const SIZE: u64 = (14 << 20) + 512;

#[derive(Clone, Debug)]
enum Step {
    Write(u64, u8, usize),
    Zero(u64, u64),
    Flush,
    /// Looks for marks to take off, twice: what was written before the first is not idle before the second.
    Clear,
    Cycle(End),
    /// A cut that nobody takes.
    LostCut,
    LogBreaks,
    SyncFails,
    Kill,
    Close,
    PowerLoss(u64),
    /// The proxy dies at the so manieth failpoint that it passes in this step, or after the step, and the host with it or not.
    Dies(Box<Step>, u64, Option<u64>),
    /// The proxy is down, after a clean close or not, and somebody takes a file of its folder away.
    Vanishes(bool, &'static str),
}

/// Files of the folder: by name, or of the segments the first, one in the middle, the last or all.
const FILES: [&str; 8] = ["state", "intent", "ends", "bitmap", "first", "middle", "last", "all"];

fn step() -> impl Strategy<Value = Step> {
    let dies = (calm(), 1..24u64, prop::option::of(any::<u64>()));
    prop_oneof![
        4 => calm(),
        1 => dies.prop_map(|(step, nth, power)| Step::Dies(Box::new(step), nth, power)),
    ]
}

fn calm() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (0..SIZE - 70_000, any::<u8>(), 1..70_000usize).prop_map(|(at, byte, len)| Step::Write(at, byte, len)),
        2 => (0..SIZE - 1, 1..2_000_000u64).prop_map(|(at, len)| Step::Zero(at, len.min(SIZE - at))),
        3 => Just(Step::Flush),
        3 => Just(Step::Clear),
        4 => Just(Step::Cycle(End::Told)),
        1 => Just(Step::Cycle(End::Committed)),
        2 => Just(Step::Cycle(End::Abandoned)),
        1 => Just(Step::LostCut),
        2 => Just(Step::LogBreaks),
        1 => Just(Step::SyncFails),
        2 => Just(Step::Kill),
        1 => Just(Step::Close),
        3 => any::<u64>().prop_map(Step::PowerLoss),
        3 => (any::<bool>(), 0..FILES.len()).prop_map(|(clean, which)| Step::Vanishes(clean, FILES[which])),
    ]
}

pub(super) struct Host {
    dir: tempfile::TempDir,
    platter: Arc<Mutex<Platter>>,
    boot: u32,
    machine: Option<Arc<Machine>>,
}

impl Host {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut host = Self { dir, platter: Arc::default(), boot: 0, machine: None };
        host.open();
        host
    }

    pub(super) fn open(&mut self) {
        // The last proxy is gone before the next one opens the disk.
        self.machine = None;
        let settings = settings(self.dir.path(), "d", SIZE, Some(1 << 30));
        let backing = LosingDisk::open(&settings.path, &self.platter);
        let opened = TrackedDisk::open_on(Box::new(backing), "m", &settings, &self.boot.to_string());
        let Some(disk) = unless_dead(opened) else { return };
        self.machine = Some(Machine::over("m".to_owned(), vec![Arc::new(disk)]));
    }

    pub(super) fn machine(&self) -> &Machine {
        self.machine.as_ref().unwrap()
    }

    pub(super) fn disk(&self) -> &TrackedDisk {
        self.machine().disk("d").unwrap()
    }

    /// A sync of the disk fails, and what it was to make durable is gone.
    pub(super) fn fail_sync(&self) {
        self.platter.lock().unwrap().fail_sync = true;
        assert!(self.disk().flush().is_err());
        self.platter.lock().unwrap().fail_sync = false;
    }

    /// Where the log is.
    pub(super) fn log_folder(&self) -> PathBuf {
        self.dir.path().join("lifeboat-logs/m/d")
    }

    /// Somebody writes while the proxy is down, and does not sync.
    pub(super) fn write_outside(&mut self, offset: u64, data: &[u8]) {
        self.machine = None;
        let backing = LosingDisk::open(&self.dir.path().join("d.img"), &self.platter);
        write(&backing, offset, data).unwrap();
        drop(backing);
        self.open();
    }

    /// The host loses power: unsynced sectors are kept or lost as `seed` says, and the log, never synced, with them.
    pub(super) fn lose_power(&mut self, seed: u64) {
        self.machine = None;
        let mut random = seed | 1;
        self.platter.lock().unwrap().lose_power(|| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random & 1 == 1
        });
        for entry in std::fs::read_dir(self.log_folder()).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "seg") && seed & 2 == 0 {
                std::fs::write(path, b"what the file system had not written yet").unwrap();
            }
        }
        self.boot += 1;
        self.open();
    }

    fn apply(&mut self, step: &Step, replica: &mut Replica) {
        let disk = self.disk();
        match step {
            Step::Write(at, byte, len) => drop(unless_dead(write(disk, *at, &vec![*byte; *len]))),
            Step::Zero(at, len) => drop(unless_dead(disk.zero(*at, *len, ZeroMode::default()))),
            // Flushes fail for good once one has failed; the guest has to live with that.
            Step::Flush => drop(disk.flush()),
            Step::Clear => (disk.clear_intent(), disk.clear_intent()).0,
            Step::Cycle(end) => drop(replica.cycle_until(self.machine(), *end)),
            Step::LostCut => drop(self.machine().cut()),
            Step::LogBreaks => drop(unless_dead(disk.stop_logging("the test says so"))),
            Step::SyncFails => self.fail_sync(),
            Step::Kill => self.open(),
            Step::Close => {
                // After a failed sync there is no clean close.
                drop(self.machine().close());
                self.open();
            }
            Step::PowerLoss(seed) => self.lose_power(*seed),
            Step::Dies(step, nth, power) => {
                let armed = arm(&[(ANY, Action::Die, *nth)]);
                self.apply(step, replica);
                drop(armed);
                match power {
                    Some(seed) => self.lose_power(*seed),
                    None => self.open(),
                }
            }
            Step::Vanishes(clean, which) => {
                if *clean {
                    drop(self.machine().close());
                }
                self.machine = None;
                self.take_away(which);
                self.open();
            }
        }
    }

    fn take_away(&self, which: &str) {
        let folder = self.log_folder();
        let names = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        let mut segments: Vec<_> =
            names.filter(|path| path.extension().is_some_and(|end| end == "seg")).collect();
        segments.sort();
        let gone = match which {
            "first" => segments.drain(..1.min(segments.len())).collect(),
            "middle" if segments.len() > 2 => vec![segments.remove(1)],
            "middle" => Vec::new(),
            "last" => segments.pop().into_iter().collect(),
            "all" => segments,
            name => vec![folder.join(name)],
        };
        // A bitmap is there only at times.
        gone.iter().for_each(|path| drop(std::fs::remove_file(path)));
    }

    /// The next point is the disk, byte for byte.
    pub(super) fn check(&self, replica: &mut Replica) {
        replica.cycle(self.machine()).unwrap();
        let platter = self.platter.lock().unwrap();
        let wrong = platter.cache.iter().zip(&replica.disks["d"]).position(|(disk, vault)| disk != vault);
        assert_eq!(wrong, None, "the vault differs from the disk at this byte");
    }
}

/// What came of a step that must succeed, unless the proxy died in it.
fn unless_dead<T, E: std::fmt::Debug>(result: Result<T, E>) -> Option<T> {
    assert!(result.is_ok() || failpoint::is_dead(), "{:?}", result.err());
    result.ok()
}

fn cases() -> u32 {
    std::env::var("LIFEBOAT_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(30)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]
    #[test]
    fn what_tracking_names_covers_every_difference(steps in prop::collection::vec(step(), 1..40)) {
        let mut host = Host::new();
        let mut replica = Replica::default();
        for step in &steps {
            host.apply(step, &mut replica);
        }
        host.check(&mut replica);
        // And what the vault holds now is a base to go on from.
        host.lose_power(3);
        host.check(&mut replica);
    }
}

#[test]
fn a_power_loss_costs_only_the_marked_regions() {
    let mut host = Host::new();
    let mut replica = Replica::default();
    (0..14).for_each(|at| write(host.disk(), at << 20, &[1; 1 << 20]).unwrap());
    host.check(&mut replica);
    host.disk().flush().unwrap();
    (0..2).for_each(|_| host.disk().clear_intent());
    write(host.disk(), 9 << 20, &[2; 4096]).unwrap();
    host.lose_power(2);
    let info = &host.machine().info().disks[0];
    assert!(!info.logged && info.cause.contains("power"), "{info:?}");
    assert_eq!(info.dirty_bytes, 4 << 20, "one region was written since it was last synced and in the vault");
    assert_eq!(replica.cycle(host.machine()).unwrap(), [SyncScope::Marked]);
    host.check(&mut replica);
}

#[test]
fn a_clean_restart_keeps_the_bitmap() {
    let mut host = Host::new();
    let mut replica = Replica::default();
    host.check(&mut replica);
    host.disk().stop_logging("the test says so").unwrap();
    write(host.disk(), 5_000_000, &[1; 4096]).unwrap();
    host.machine().close().unwrap();
    host.open();
    assert_eq!(host.machine().info().disks[0].dirty_bytes, 8192);
    assert_eq!(replica.cycle(host.machine()).unwrap(), [SyncScope::Dirty]);
    host.check(&mut replica);
}

#[test]
fn an_intent_map_that_cannot_be_written_is_foregone_only_when_the_next_open_will_know() {
    let mut host = Host::new();
    let mut replica = Replica::default();
    host.check(&mut replica);
    let refused = arm(&[("IntentWritten.Sync.before", Action::Fail, 0)]);
    write(host.disk(), 5_000_000, &[1; 4096]).unwrap();
    drop(refused);
    let info = host.machine().info().disks.remove(0);
    assert!(!info.logged && info.cause.contains("intent map"), "{info:?}");
    host.lose_power(1);
    assert_eq!(replica.cycle(host.machine()).unwrap(), [SyncScope::Whole]);
    host.check(&mut replica);
}

#[test]
fn when_neither_can_be_recorded_a_note_beside_the_image_voids_them() {
    let mut host = Host::new();
    let mut replica = Replica::default();
    host.check(&mut replica);
    let points = ["IntentWritten.Sync.before", "StateWritten.Sync.before"];
    let refused = arm(&points.map(|point| (point, Action::Fail, 0)));
    write(host.disk(), 5_000_000, &[1; 4096]).unwrap();
    drop(refused);
    assert!(host.dir.path().join(".d.img.lifeboat-void").exists());
    host.open();
    assert!(host.machine().info().disks[0].cause.contains("could not be recorded"));
    assert!(!host.dir.path().join(".d.img.lifeboat-void").exists(), "lifted once the state is right again");
    assert_eq!(replica.cycle(host.machine()).unwrap(), [SyncScope::Whole]);
    host.check(&mut replica);
}

#[test]
fn a_log_that_is_not_all_there_is_never_taken_for_whole() {
    for (clean, which) in FILES.iter().flat_map(|which| [(false, *which), (true, *which)]) {
        let mut host = Host::new();
        let mut replica = Replica::default();
        host.check(&mut replica);
        // Over several segments, and the last of them without a record.
        for at in 0..13 {
            write(host.disk(), at << 20, &[7; 1 << 20]).unwrap();
            drop(host.machine().cut());
        }
        host.apply(&Step::Vanishes(clean, which), &mut replica);
        let logged = host.machine().info().disks[0].logged;
        let harmless = match which {
            "intent" => clean,
            "bitmap" => true,
            _ => false,
        };
        assert_eq!(logged, harmless, "{which} gone, clean {clean}");
        host.check(&mut replica);
    }
}

#[test]
fn without_the_marks_a_clean_disk_goes_on_with_all_of_it_marked() {
    let mut host = Host::new();
    let mut replica = Replica::default();
    host.check(&mut replica);
    write(host.disk(), 5_000_000, &[1; 4096]).unwrap();
    host.apply(&Step::Vanishes(true, "intent"), &mut replica);
    assert!(host.machine().info().disks[0].logged);
    // The log with that write is void now, and it stands in no other place.
    host.lose_power(2);
    assert_eq!(replica.cycle(host.machine()).unwrap(), [SyncScope::Marked]);
    host.check(&mut replica);
}

#[test]
fn a_damaged_log_stays_damaged_until_the_state_says_that_it_does_not_count() {
    let mut host = Host::new();
    let mut replica = Replica::default();
    host.check(&mut replica);
    (0..13).for_each(|at| write(host.disk(), at << 20, &[7; 1 << 20]).unwrap());
    host.machine = None;
    host.take_away("first");
    // The next open dies right before it would write its state.
    let state = host.dir.path().join("lifeboat-logs/m/d/state");
    let before = std::fs::read(&state).unwrap();
    host.open();
    host.machine = None;
    std::fs::write(&state, before).unwrap();
    host.open();
    assert!(!host.machine().info().disks[0].logged);
    host.check(&mut replica);
}

#[test]
fn what_a_failed_sync_left_in_the_page_cache_is_not_copied_even_if_nothing_tells_of_it() {
    let mut host = Host::new();
    let mut replica = Replica::default();
    write(host.disk(), 0, &[1]).unwrap();
    host.apply(&Step::SyncFails, &mut replica);
    host.apply(&Step::Vanishes(false, "state"), &mut replica);
    host.check(&mut replica);
    host.lose_power(3);
    host.check(&mut replica);
}
