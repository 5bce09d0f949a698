//! The log's folder goes away, or cannot be used: the disk goes on, what is known of it stays known, and why it has no log is said.

use super::{BOOT, SIZE};
use crate::Kind;
use crate::disk::recover::default_log_limit;
use crate::disk::testing::{Replica, contents, machine, settings, write};
use crate::machine::{Machine, MachineSettings};
use crate::tracking::SyncScope;

struct Stage {
    dir: tempfile::TempDir,
    settings: MachineSettings,
    replica: Replica,
}

impl Stage {
    /// A protected disk with its log in `logs`.
    fn new() -> (Self, std::sync::Arc<Machine>) {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = machine(dir.path(), &["d"], SIZE);
        std::fs::create_dir(dir.path().join("logs")).unwrap();
        settings.disks[0].log_dir = Some(dir.path().join("logs"));
        let running = Machine::open_in(&settings, BOOT).unwrap();
        let mut stage = Self { dir, settings, replica: Replica::default() };
        stage.replica.cycle(&running).unwrap();
        write(&**running.disk("d").unwrap(), 0, &[1; 5000]).unwrap();
        (stage, running)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn ticks(machine: &Machine) {
        machine.disk("d").unwrap().tick(std::time::Instant::now());
    }

    fn open(&self, boot: &str) -> std::sync::Arc<Machine> {
        Machine::open_in(&self.settings, boot).unwrap()
    }

    #[track_caller]
    fn follows(&mut self, machine: &Machine, expected: &[SyncScope]) {
        assert_eq!(self.replica.cycle(machine).unwrap(), expected, "{:?}", machine.info());
        assert!(self.replica.disks["d"] == contents(self.dir.path(), "d"), "not exact");
    }
}

/// Says that there is no log and that its folder is why, and takes writes.
#[track_caller]
fn goes_on_without(running: &Machine) {
    let info = running.info().disks.remove(0);
    assert!(!info.logged && info.cause.contains("folder of the change log"), "{info:?}");
    write(&**running.disk("d").unwrap(), 500_000, &[2; 5000]).unwrap();
}

#[test]
fn a_deleted_log_folder_is_made_again_and_what_was_known_outlives_the_proxy() {
    for killed in [false, true] {
        let (mut stage, running) = Stage::new();
        std::fs::remove_dir_all(stage.path("logs/lifeboat-logs")).unwrap();
        write(&**running.disk("d").unwrap(), 9000, &[4; 100]).unwrap();
        Stage::ticks(&running);
        goes_on_without(&running);
        if !killed {
            running.close().unwrap();
        }
        drop(running);
        let running = stage.open(BOOT);
        stage.follows(&running, &[if killed { SyncScope::Marked } else { SyncScope::Dirty }]);
        stage.follows(&running, &[]);
    }
}

#[test]
fn a_deleted_log_folder_is_logged_to_again_without_a_restart() {
    let (mut stage, running) = Stage::new();
    std::fs::remove_dir_all(stage.path("logs/lifeboat-logs/m")).unwrap();
    Stage::ticks(&running);
    goes_on_without(&running);
    stage.follows(&running, &[SyncScope::Dirty]);
    write(&**running.disk("d").unwrap(), 700_000, &[6; 5000]).unwrap();
    drop(running);
    let running = stage.open(BOOT);
    stage.follows(&running, &[]);
}

#[test]
fn a_folder_that_goes_while_there_is_no_log_is_made_again_too() {
    let (mut stage, running) = Stage::new();
    running.disk("d").unwrap().lose_log("the test says so");
    std::fs::remove_dir_all(stage.path("logs/lifeboat-logs")).unwrap();
    Stage::ticks(&running);
    write(&**running.disk("d").unwrap(), 500_000, &[2; 5000]).unwrap();
    drop(running);
    let running = stage.open(BOOT);
    stage.follows(&running, &[SyncScope::Marked]);
}

/// As when the log's file system is unmounted, and mounted again after the proxy: what it has was overtaken.
#[test]
fn an_old_log_folder_that_comes_back_is_not_believed() {
    let (mut stage, running) = Stage::new();
    std::fs::rename(stage.path("logs/lifeboat-logs"), stage.path("away")).unwrap();
    Stage::ticks(&running);
    goes_on_without(&running);
    drop(running);
    std::fs::remove_dir_all(stage.path("logs/lifeboat-logs")).unwrap();
    std::fs::rename(stage.path("away"), stage.path("logs/lifeboat-logs")).unwrap();
    let running = stage.open(BOOT);
    stage.follows(&running, &[SyncScope::Whole]);
}

#[test]
fn without_a_place_for_the_folder_the_note_beside_the_image_says_so() {
    let (mut stage, running) = Stage::new();
    std::fs::rename(stage.path("logs"), stage.path("away")).unwrap();
    Stage::ticks(&running);
    goes_on_without(&running);
    assert!(stage.path(".d.img.lifeboat-void").exists());
    Stage::ticks(&running);
    write(&**running.disk("d").unwrap(), 600_000, &[9; 5000]).unwrap();
    drop(running);
    // The next start is refused until there is a place, and then knows.
    let error = Machine::open_in(&stage.settings, BOOT).unwrap_err();
    assert_eq!(error.kind, Kind::NotFound);
    assert!(error.object.ends_with("logs") && error.remedy.contains("log_dir"), "{error}");
    std::fs::rename(stage.path("away"), stage.path("logs")).unwrap();
    let running = stage.open(BOOT);
    stage.follows(&running, &[SyncScope::Whole]);
}

#[test]
fn a_cut_that_finds_no_place_for_a_segment_ends_the_log() {
    let (mut stage, running) = Stage::new();
    running.disk("d").unwrap().lock().spare = None;
    std::fs::remove_dir_all(stage.path("logs/lifeboat-logs")).unwrap();
    assert_eq!(running.cut().unwrap_err().kind, Kind::NotReady);
    assert!(running.info().disks[0].cause.contains("no new log segment"), "{:?}", running.info());
    stage.follows(&running, &[SyncScope::Dirty]);
}

#[test]
fn a_log_dir_that_is_no_folder_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = settings(dir.path(), "d", SIZE, None);
    for (place, kind) in [("gone", Kind::NotFound), ("d.img", Kind::NotFound)] {
        disk.log_dir = Some(dir.path().join(place));
        let settings = MachineSettings { name: "m".to_owned(), disks: vec![disk.clone()] };
        let error = Machine::open_in(&settings, BOOT).unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.object.ends_with(place) && error.remedy.contains("log_dir"), "{error}");
    }
    // A file stands where the folder would be made.
    disk.log_dir = Some(dir.path().to_owned());
    std::fs::write(dir.path().join("lifeboat-logs"), b"").unwrap();
    let settings = MachineSettings { name: "m".to_owned(), disks: vec![disk] };
    let error = Machine::open_in(&settings, BOOT).unwrap_err();
    assert!(error.object.contains("lifeboat-logs") && error.remedy.contains("log_dir"), "{error}");
}

#[test]
fn a_log_takes_half_its_disk_and_never_more_than_64_gib() {
    assert_eq!(default_log_limit(10 << 30), 5 << 30);
    assert_eq!(default_log_limit(128 << 30), 64 << 30);
    assert_eq!(default_log_limit(100 << 40), 64 << 30);
}

/// A vault that can be read and not be written to: each attempt cuts, and each cut takes a segment.
#[test]
fn cuts_that_are_never_released_stay_within_the_limit_too() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = machine(dir.path(), &["d"], SIZE);
    settings.disks[0].log_limit = Some(16 << 20);
    let running = Machine::open_in(&settings, BOOT).unwrap();
    let mut replica = Replica::default();
    replica.cycle(&running).unwrap();
    let disk = running.disk("d").unwrap();
    let segments = || -> u64 {
        let entries = std::fs::read_dir(dir.path().join("lifeboat-logs/m/d")).unwrap();
        entries.filter(|entry| entry.as_ref().unwrap().path().extension().is_some()).count() as u64
    };
    let mut refused = 0;
    for round in 0..30 {
        write(&**disk, 4096 * round, &[1; 4096]).unwrap();
        refused += u64::from(running.cut().is_err());
        assert!(segments() * disk.folder.segment_bytes() <= (16 << 20) + disk.folder.segment_bytes());
    }
    assert!(refused > 0 && running.info().disks[0].cause.contains("log_limit"), "{:?}", running.info());
    assert_eq!(replica.cycle(&running).unwrap(), [SyncScope::Dirty]);
    assert!(replica.disks["d"] == contents(dir.path(), "d"));
}

/// On disk, the log takes no more than its limit and the segment made ahead, whatever is kept for reuse.
#[test]
fn the_log_takes_no_more_space_than_its_limit_and_one_segment() {
    const LIMIT: u64 = 16 << 20;
    let dir = tempfile::tempdir().unwrap();
    let mut settings = machine(dir.path(), &["d"], 64 << 20);
    settings.disks[0].log_limit = Some(LIMIT);
    let running = Machine::open_in(&settings, BOOT).unwrap();
    let mut replica = Replica::default();
    replica.cycle(&running).unwrap();
    let disk = running.disk("d").unwrap();
    let taken = || -> u64 {
        let entries = std::fs::read_dir(dir.path().join("lifeboat-logs/m/d")).unwrap();
        let segments = entries.map(|entry| entry.unwrap()).filter(|entry| entry.path().extension().is_some());
        segments.map(|entry| entry.metadata().unwrap().len()).sum()
    };
    let (mut unlogged, mut most) = (0, 0);
    for round in 0..60u64 {
        write(&**disk, round % 60 * (1 << 20), &vec![7; 700_000]).unwrap();
        most = most.max(taken());
        let info = running.info().disks.remove(0);
        unlogged += u64::from(!info.logged);
        assert!(info.log_bytes <= LIMIT, "{info:?}");
        assert!(info.logged || info.cause.contains("log_limit"), "{info:?}");
        if round % 7 == 6 || !info.logged && round % 3 == 0 {
            replica.cycle(&running).unwrap();
        }
        most = most.max(taken());
    }
    for _ in 0..40 {
        write(&**disk, 0, &vec![7; 700_000]).unwrap();
        most = most.max(taken());
    }
    let segment = disk.folder.segment_bytes();
    assert!(unlogged > 0 || !running.info().disks[0].logged, "the limit was reached");
    assert!(most > LIMIT - 2 * segment, "it was used: {most}");
    assert!(most <= LIMIT + segment, "{most} bytes of {LIMIT}, segments of {segment}");
}
