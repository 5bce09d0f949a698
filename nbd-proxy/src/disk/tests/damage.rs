//! What the log's folder may suffer between two runs: each file cut short, flipped in any part, of another disk, of a newer version,
//! or gone. The disk is followed exactly all the same, and what that costs is said; or it is refused, and nothing is touched.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{BOOT, SIZE};
use crate::backing::{Access, Backing as _, RawDisk};
use crate::disk::state::StateFile;
use crate::disk::testing::{Replica, contents, machine, write};
use crate::machine::{Machine, MachineSettings};
use crate::tracking::SyncScope;
use crate::{Kind, Result};

/// How the last run ended.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Left {
    Killed,
    Closed,
    /// Without a log.
    Unlogged,
}

/// A disk of which the vault lacks some writes, and what its proxy left behind.
struct Past {
    dir: tempfile::TempDir,
    settings: MachineSettings,
    replica: Replica,
    files: BTreeMap<PathBuf, Vec<u8>>,
}

impl Past {
    fn new(left: Left) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = machine(dir.path(), &["d"], SIZE);
        settings.disks[0].log_limit = Some(16 << 20);
        let running = Machine::open_in(&settings, BOOT).unwrap();
        let mut replica = Replica::default();
        replica.cycle(&running).unwrap();
        let disk = running.disk("d").unwrap();
        write(&**disk, 0, &[1; 3000]).unwrap();
        replica.cycle(&running).unwrap();
        if left == Left::Unlogged {
            disk.stop_logging("the test says so").unwrap();
        }
        for number in 0..4u8 {
            write(&**disk, 100_000 * u64::from(number), &[7 + number; 1200]).unwrap();
        }
        if left != Left::Killed {
            running.close().unwrap();
        }
        drop(running);
        let mut past = Self { dir, settings, replica, files: BTreeMap::new() };
        past.files = files(&past.folder());
        past
    }

    fn folder(&self) -> PathBuf {
        self.dir.path().join("lifeboat-logs/m/d")
    }

    /// The one file whose name ends so that records something.
    fn file(&self, end: &str) -> (PathBuf, Vec<u8>) {
        let records = |path: &Path, bytes: &[u8]| {
            path.to_string_lossy().ends_with(end) && bytes.windows(500).any(|window| window == [8; 500])
        };
        let named = |path: &Path| path.to_string_lossy().ends_with(end);
        let found = self
            .files
            .iter()
            .find(|(path, bytes)| if end == ".seg" { records(path, bytes) } else { named(path) });
        found.map(|(path, bytes)| (path.clone(), bytes.clone())).unwrap()
    }

    /// The folder as it was left, but for `path`, of whose bytes `change` says what it holds, or that it is gone.
    fn with(&self, path: &Path, change: impl Fn(&[u8]) -> Option<Vec<u8>>) {
        let _ = std::fs::remove_dir_all(self.folder());
        std::fs::create_dir_all(self.folder()).unwrap();
        self.files.iter().for_each(|(path, bytes)| std::fs::write(path, bytes).unwrap());
        let (file, was) = StateFile::open(&self.folder().join("state")).unwrap();
        let mut state = was.state.unwrap();
        if state.clean {
            // The rows before this one have opened the image, which shows.
            state.image =
                RawDisk::open(&self.dir.path().join("d.img"), Access::ReadOnly).unwrap().identity().unwrap();
            file.write(&state).unwrap();
        }
        match change(&std::fs::read(path).unwrap()) {
            Some(bytes) => std::fs::write(path, bytes).unwrap(),
            None => std::fs::remove_file(path).unwrap(),
        }
    }

    /// What it costs to follow the disk from here, and why; the result is exact.
    fn follow(&self, boot: &str, what: &str) -> Result<(Vec<SyncScope>, String)> {
        let running = Machine::open_in(&self.settings, boot)?;
        let cause = running.info().disks.remove(0).cause;
        let mut replica = self.replica.clone();
        let scopes = replica.cycle(&running).unwrap();
        assert!(replica.disks["d"] == contents(self.dir.path(), "d"), "not exact: {what}; {scopes:?}");
        Ok((scopes, cause))
    }
}

fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| (path.clone(), std::fs::read(&path).unwrap())).collect()
}

fn flipped(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut flipped = bytes.to_vec();
    flipped[at] ^= 0x10;
    flipped
}

#[test]
fn a_damaged_segment_costs_the_marked_regions_and_never_a_write() {
    for left in [Left::Killed, Left::Closed] {
        let past = Past::new(left);
        let (path, _) = past.file(".seg");
        let records = 4096..4096 + 4 * 1240;
        let row = |change: &dyn Fn(&[u8]) -> Option<Vec<u8>>, what: &str| {
            past.with(&path, change);
            let (scopes, cause) = past.follow(BOOT, what).unwrap();
            assert!(scopes.is_empty() || scopes == [SyncScope::Marked], "{left:?}: {what}: {scopes:?}");
            assert!(scopes.is_empty() || cause.contains("damaged"), "{what}: {cause}");
            scopes.is_empty()
        };
        assert!(row(&|bytes| Some(bytes.to_vec()), "as it was left"), "no sync");
        let headers = (0..4).flat_map(|record| (0..40).map(move |at| 4096 + record * 1240 + at));
        let data = (0..4).flat_map(|record| [40, 41, 700, 1239].map(|at| 4096 + record * 1240 + at));
        for at in (0..104).step_by(3).chain(512..524).chain(headers).chain(data) {
            row(&|bytes| Some(flipped(bytes, at)), &format!("byte {at} of a segment is wrong"));
        }
        for len in [
            0,
            100,
            4095,
            4096,
            4097,
            4096 + 39,
            4096 + 40,
            4096 + 1240,
            4096 + 2000,
            records.end,
            records.end + 40,
        ] {
            let costs =
                !row(&|bytes| Some(bytes[..len].to_vec()), &format!("a segment is cut to {len} bytes"));
            assert!(costs || len >= records.end, "cut to {len}: it was not noticed");
        }
        let other = Past::new(left).file(".seg").1;
        assert!(!row(&|_| Some(other.clone()), "a segment of another disk"));
        assert!(!row(&|bytes| Some([b"LBSEGMT2", &bytes[8..]].concat()), "a segment of a newer version"));
    }
}

#[test]
fn a_damaged_state_is_said_and_costs_a_whole_sync_or_nothing() {
    for left in [Left::Killed, Left::Closed, Left::Unlogged] {
        let past = Past::new(left);
        let (path, bytes) = past.file("/state");
        let usual = {
            past.with(&path, |bytes| Some(bytes.to_vec()));
            past.follow(BOOT, "as it was left").unwrap().0
        };
        let row = |change: &dyn Fn(&[u8]) -> Option<Vec<u8>>, what: &str| {
            past.with(&path, change);
            let (scopes, cause) = past.follow(BOOT, what).unwrap();
            let whole = scopes == [SyncScope::Whole];
            assert!(whole || scopes == usual, "{left:?}: {what}: {scopes:?}");
            let said = ["damaged", "lost", "replaced", "changed outside", "not readable"];
            assert!(!whole || said.iter().any(|word| cause.contains(word)), "{what}: {cause}");
            whole
        };
        for at in (0..bytes.len()).step_by(211).chain((0..24).map(|at| bytes.len() / 2 + at)) {
            row(&|bytes| Some(flipped(bytes, at)), &format!("byte {at} of the state is wrong"));
        }
        for len in [0, 1, 512, bytes.len() / 2, bytes.len() - 1] {
            assert!(row(&|bytes| Some(bytes[..len].to_vec()), &format!("the state is cut to {len} bytes")));
        }
        assert!(row(&|_| None, "the state is gone"));
        assert!(row(&|_| Some(Past::new(left).file("/state").1), "another disk's state"));
    }
}

#[test]
fn a_damaged_intent_map_is_said_and_costs_a_whole_sync_or_nothing() {
    let past = Past::new(Left::Killed);
    let (path, bytes) = past.file("/intent");
    // The host has lost power: the log is void, and the map is what counts.
    let row = |change: &dyn Fn(&[u8]) -> Option<Vec<u8>>, what: &str| {
        past.with(&path, change);
        let (scopes, cause) = past.follow("another boot", what).unwrap();
        let whole = scopes == [SyncScope::Whole];
        assert!(whole || scopes == [SyncScope::Marked], "{what}: {scopes:?}");
        assert!(!whole || cause.contains("intent map is not readable"), "{what}: {cause}");
        whole
    };
    assert!(!row(&|bytes| Some(bytes.to_vec()), "as it was left"));
    for at in (0..bytes.len()).step_by(101).chain((0..64).map(|at| bytes.len() / 2 + at)) {
        row(&|bytes| Some(flipped(bytes, at)), &format!("byte {at} of the intent map is wrong"));
    }
    for len in [0, 1, 512, bytes.len() / 2, bytes.len() - 1] {
        assert!(row(&|bytes| Some(bytes[..len].to_vec()), &format!("the intent map is cut to {len} bytes")));
    }
    assert!(row(&|_| None, "the intent map is gone"));
    assert!(row(&|_| Some(Past::new(Left::Killed).file("/intent").1), "another disk's map"));
}

#[test]
fn a_damaged_bitmap_costs_the_marked_regions() {
    let past = Past::new(Left::Unlogged);
    let (path, bytes) = past.file("/bitmap");
    let row = |change: &dyn Fn(&[u8]) -> Option<Vec<u8>>, what: &str| {
        past.with(&path, change);
        past.follow(BOOT, what).unwrap().0
    };
    assert_eq!(row(&|bytes| Some(bytes.to_vec()), "as it was left"), [SyncScope::Dirty]);
    for at in 0..bytes.len() {
        let scopes = row(&|bytes| Some(flipped(bytes, at)), &format!("byte {at} of the bitmap is wrong"));
        assert_eq!(scopes, [SyncScope::Marked], "byte {at}");
    }
    for len in [0, 1, 63, 64, bytes.len() - 16, bytes.len() - 1] {
        assert_eq!(
            row(&|bytes| Some(bytes[..len].to_vec()), &format!("the bitmap is cut to {len} bytes")),
            [SyncScope::Marked]
        );
    }
    assert_eq!(row(&|_| None, "the bitmap is gone"), [SyncScope::Marked]);
    let other = Past::new(Left::Unlogged).file("/bitmap").1;
    assert_eq!(row(&|_| Some(other.clone()), "another disk's bitmap"), [SyncScope::Marked]);
    assert_eq!(
        row(&|bytes| Some([b"LBBITMA2", &bytes[8..]].concat()), "a newer version's"),
        [SyncScope::Marked]
    );
}

#[test]
fn damaged_ends_of_the_log_cost_the_marked_regions() {
    let past = Past::new(Left::Killed);
    let (path, bytes) = past.file("/ends");
    for at in 0..bytes.len() {
        past.with(&path, |bytes| Some(flipped(bytes, at)));
        let (scopes, cause) = past.follow(BOOT, &format!("byte {at} of the ends is wrong")).unwrap();
        assert!(
            scopes.is_empty() || scopes == [SyncScope::Marked] && cause.contains("damaged"),
            "{scopes:?} {cause}"
        );
    }
}

#[test]
fn a_folder_of_another_disk_is_not_believed() {
    for left in [Left::Killed, Left::Closed, Left::Unlogged] {
        let (past, other) = (Past::new(left), Past::new(left));
        let _ = std::fs::remove_dir_all(past.folder());
        std::fs::create_dir_all(past.folder()).unwrap();
        for (path, bytes) in &other.files {
            std::fs::write(past.folder().join(path.file_name().unwrap()), bytes).unwrap();
        }
        let (scopes, cause) = past.follow(BOOT, "another disk's folder").unwrap();
        assert_eq!(scopes, [SyncScope::Whole], "{left:?}");
        assert!(cause.contains("outside"), "{cause}");
    }
}

#[test]
fn files_of_a_newer_version_refuse_the_start_and_are_left_alone() {
    let past = Past::new(Left::Closed);
    for name in ["/state", "/intent"] {
        let (path, _) = past.file(name);
        past.with(&path, |bytes| {
            let mut newer = bytes.to_vec();
            newer[..bytes.len() / 2].chunks_mut(512).for_each(|sector| sector[7] = b'2');
            Some(newer)
        });
        let before = files(&past.folder());
        let error = Machine::open_in(&past.settings, BOOT).unwrap_err();
        assert_eq!(error.kind, Kind::InvalidInput, "{error}");
        assert!(error.message.contains("newer Lifeboat") && error.object.ends_with(name), "{error}");
        assert!(!error.remedy.is_empty());
        assert!(files(&past.folder()) == before, "nothing was touched");
    }
}

/// Reads whatever was marked before the map was lost: a clean restart goes on, and what the vault lacks is still found after a power
/// loss.
#[test]
fn a_map_that_is_lost_over_a_restart_marks_everything() {
    for left in [Left::Killed, Left::Closed] {
        let past = Past::new(left);
        let (path, _) = past.file("/intent");
        past.with(&path, |bytes| Some(flipped(&flipped(bytes, 100), bytes.len() / 2 + 100)));
        drop(Machine::open_in(&past.settings, BOOT).unwrap());
        let (scopes, _) = past.follow("another boot", "the map was lost, then power").unwrap();
        assert!(scopes == [SyncScope::Marked] || scopes == [SyncScope::Whole], "{left:?}: {scopes:?}");
    }
}

/// The disk went on without a map, as the state said; that does not make the old one right after a clean restart.
#[test]
fn a_map_that_was_given_up_does_not_come_back_with_a_restart() {
    const REGIONS: u64 = 64 << 20;
    let dir = tempfile::tempdir().unwrap();
    let settings = machine(dir.path(), &["d"], REGIONS);
    let running = Machine::open_in(&settings, BOOT).unwrap();
    let mut replica = Replica::default();
    replica.cycle(&running).unwrap();
    let disk = running.disk("d").unwrap();
    disk.intent.refuse(true);
    write(&**disk, 40 << 20, &[5; 4096]).unwrap();
    disk.intent.refuse(false);
    running.close().unwrap();
    drop(running);
    drop(Machine::open_in(&settings, BOOT).unwrap());
    let running = Machine::open_in(&settings, "another boot").unwrap();
    replica.cycle(&running).unwrap();
    assert!(replica.disks["d"] == contents(dir.path(), "d"), "what was written without a map is missed");
}
