//! Opening a disk: what is believed of what the last run left behind.
//!
//! After a crash the disk is the truth; opening never writes the backing. What the state file, the intent map and the host say decides:
//!
//! | left behind | means | so |
//! |---|---|---|
//! | nothing, or a note that it is void | a new disk, or tracking could not be recorded | unlogged, whole sync, past the page cache if nothing is known |
//! | clean, the image as it was left | everything is durable and agrees | the log goes on; without one, the saved bitmap |
//! | clean, another image | changed outside | new stretch, whole sync |
//! | not clean, another image (inode, size), or changed later than the stamp allows | changed outside | new stretch, whole sync |
//! | not clean, same boot and mount, logged | the process died; the page cache has every acknowledged write, in log and backing | records past the applied mark are read back; the log goes on |
//! | not clean, same boot and mount, unlogged or in a partial sync | the process died and its bitmap with it | new stretch, marked regions |
//! | not clean, another boot or mount | power loss: nothing of the log was synced, every record is void | new stretch, marked regions |
//! | not clean, after a failed sync | the page cache may show what is not on the disk | it is dropped; new stretch, marked regions |
//! | not clean, and the disk is another server's | that may have lost what was not flushed | new stretch, marked regions |
//! | clean, of a disk without a change time, and a sample differs | changed outside | new stretch, whole sync |
//! | not clean, and the intent map is not kept or not readable | nothing tells where the disk may differ | new stretch, whole sync |
//! | a log or a saved bitmap that should go on, and is not whole | its blocks lie in the marked regions | new stretch, marked regions; whole sync if the map is not readable |
//! | a state file that is lost or damaged | no crash does that | new stretch, whole sync |
//! | a state file or an intent map of a newer version | it may say what we do not know | refused |
//! | smaller than before | somebody cut it short | refused |
//!
//! *Marked regions*: every byte that may differ from any point the vault may hold under one of the state's `bases` lies in a region
//! that the intent map marks: marks are durable before the first write, and go only when the vault has the region and the
//! backing is synced.
//!
//! Reading back: a write that was in flight may be recorded and not on the backing, or half on it. Its record stays, and a
//! record of what is really there follows it in a new log, before anyone is served. Replayed in order, the newest wins: the
//! next point is what the disk is. Cuts that were out are forgotten; their segments join the next cut.
//!
//! Killed while opening: before the state file is written nothing has changed but new segments under the same stretch, which say
//! what is on the backing and so are true in any order behind the old, and an intent map that marks no less. What does not count any
//! more goes only after the state file says so: the log's segments, and the marks that were there when everything begins anew.
//! A clean close leaves marks that may be unreadable, or were not kept: then all regions are marked before the state file relies on them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Condvar, Mutex};

use uuid::Uuid;

use super::TrackedDisk;
use super::bitmap_file;
use super::ends::Ends;
use super::intent::file::IntentFile;
use super::intent::{Intent, Marks, Regions};
use super::left::{FoundLog, Left, Place};
use super::mark::unix_now;
use super::power::take_from_afar;
use super::state::{DiskState, StateFile};
use super::switch::{end_stretch, give_round_up};
use super::tracker::{Mode, Syncing, Tracker};
use super::verdict::{Era, Verdict, judge};
use super::void::Void;
use crate::backing::upstream::{self, Address, UpstreamDisk};
use crate::backing::{Access, Backing, RawDisk};
use crate::durable::{self, Step};
use crate::log::SegmentWriter;
use crate::log::folder::Folder;
use crate::log::format::Header;
use crate::tracking::{SegmentRef, SyncScope};
use crate::{Error, Kind, Result};

/// The largest default for the log of one disk, in bytes.
const LOG_CEILING: u64 = 64 << 30;
/// Segments are at most this long, so that a disk of any size holds little space idle.
const SEGMENT_CEILING: u64 = 64 << 20;
const SEGMENT_FLOOR: u64 = 2 << 20;

/// What a disk is opened with.
#[derive(Clone, Debug)]
pub struct DiskSettings {
    /// The disk's name within its machine.
    pub name: String,
    /// The raw image or block device, or the address of an export of another NBD server.
    pub path: PathBuf,
    /// Where the change log goes; default: the folder of `path`.
    pub log_dir: Option<PathBuf>,
    /// Serve it read-only.
    pub read_only: bool,
    /// The most the change log may take, in bytes; default: half the disk, at most 64 GiB.
    pub log_limit: Option<u64>,
    /// How patient it is with another NBD server.
    pub upstream: upstream::Settings,
}

impl TrackedDisk {
    /// Opens and locks a disk of `machine`, and recovers its tracking. `boot` names the host's boot.
    pub(crate) fn open(machine: &str, settings: &DiskSettings, boot: &str) -> Result<Self> {
        let access = if settings.read_only { Access::ReadOnly } else { Access::ReadWrite };
        let backing: Box<dyn Backing> = if Address::is_meant(&settings.path) {
            Box::new(UpstreamDisk::open(&settings.path, access, settings.upstream)?)
        } else {
            Box::new(RawDisk::open(&settings.path, access)?)
        };
        Self::open_on(backing, machine, settings, boot)
    }

    /// The same on a backing that is open already.
    pub(crate) fn open_on(
        backing: Box<dyn Backing>,
        machine: &str,
        settings: &DiskSettings,
        boot: &str,
    ) -> Result<Self> {
        let dir = folder_of(machine, settings)?;
        let size = backing.size();
        let was_used = is_used(&dir)?;
        let (state_file, was) = StateFile::open(&dir.join("state"))?;
        let id = was.state.as_ref().map_or_else(Uuid::new_v4, |state| state.disk);
        let (intent_file, marks) = IntentFile::open(&dir.join("intent"), id, size)?;
        let void = backing.file().and_then(Void::beside);
        let noted = void.as_ref().map(Void::read).transpose()?.flatten();
        let limit = settings.log_limit.unwrap_or_else(|| default_log_limit(size));
        let segment_bytes = (limit / 8).clamp(SEGMENT_FLOOR, SEGMENT_CEILING) & !4095;
        let folder = Folder::open(&dir, segment_bytes)?;
        let ends = Ends::open(&dir.join("ends"))?;
        let era = Era::now(boot, [backing.path(), &dir]);
        let verdict = judge(&was, noted, &*backing, &era, marks.as_ref())?;
        let marks = marks.filter(|_| was.state.as_ref().is_some_and(|state| state.intent));
        let place = Place { folder: &folder, ends: &ends, disk: id, size };
        let (verdict, left) = place.take_stock(verdict, was.state.as_ref(), marks.is_some())?;
        let (tracking, cause) = match (&verdict, &was.state) {
            (Verdict::GoOn, Some(state)) => (state.tracking, state.cause.clone()),
            (Verdict::GoOn, None) => (Uuid::new_v4(), String::new()),
            (Verdict::Compare(cause) | Verdict::Anew(cause), _) => (Uuid::new_v4(), cause.clone()),
        };
        let anew = matches!(verdict, Verdict::Anew(_));
        let regions = if anew { Regions::none(size) } else { Regions::all(size) };
        let marks = marks.filter(|_| !anew).unwrap_or(Marks { regions, until: 0 });
        let mut tracker = Tracker::new(size, tracking, cause, Intent::new(marks), segment_bytes, limit);
        take_from_afar(&mut tracker, &*backing, was.state.as_ref());
        let disk = Self {
            machine: machine.to_owned(),
            name: settings.name.clone(),
            folder,
            ends,
            state: state_file,
            intent: intent_file,
            void,
            forsaken: AtomicBool::new(false),
            id,
            boot: era.boot,
            mount: era.mount,
            log: Uuid::new_v4(),
            tracker: Mutex::new(tracker),
            changed: Condvar::new(),
            backing,
        };
        if let (Verdict::Anew(cause), true) = (&verdict, was_used) {
            tracing::warn!(disk = disk.label(), cause, "tracking starts anew; the whole disk will be synced");
        }
        disk.take_up(left, was.state.filter(|_| !anew))?;
        disk.rely_on_what_was_taken_up(anew)?;
        Ok(disk)
    }

    /// Goes on with what is `left`.
    fn take_up(&self, left: Left, state: Option<DiskState>) -> Result<()> {
        let Some(state) = state else { return Ok(()) };
        self.lock().bases = state.bases;
        match left {
            Left::Log(found) => self.resume_log(found, state.sync),
            Left::Blocks(dirty, suspect) => {
                let mut tracker = self.lock();
                (tracker.dirty, tracker.suspect) = (dirty, suspect);
                Ok(())
            }
            Left::Marks => {
                let mut tracker = self.lock();
                tracker.suspect_marked();
                let (cause, bytes) = (tracker.cause.clone(), tracker.dirty_bytes());
                tracing::warn!(
                    disk = self.label(),
                    cause,
                    bytes,
                    "the marked regions will be compared with the vault"
                );
                Ok(())
            }
            Left::Nothing => Ok(()),
        }
    }

    /// From here on the last run's "clean" no longer counts: durable before the first request. The order is explained above.
    fn rely_on_what_was_taken_up(&self, anew: bool) -> Result<()> {
        if !anew {
            self.save_marks_at_open()?;
        }
        let (state, logged) = {
            let tracker = self.lock();
            (self.state_of(&tracker), tracker.mode == Mode::Logged)
        };
        self.state.write(&state)?;
        if anew {
            self.save_marks_at_open()?;
        }
        if !logged {
            self.folder.retire_all()?;
        }
        self.lift_void()
    }

    fn save_marks_at_open(&self) -> Result<()> {
        let marks = self.lock().intent.begin_save(unix_now());
        let Some(marks) = marks else { return Ok(()) };
        self.intent.write(&marks)?;
        self.lock().intent.end_save(marks, true);
        Ok(())
    }

    /// Makes everything durable and says so, after the last request. The next open goes on where this one stopped.
    pub(crate) fn close(&self) -> Result<()> {
        self.watch_folder();
        let on = self.backing.path();
        self.sync_backing().map_err(|error| Error::io("sync the disk", on, error))?;
        let mut tracker = self.lock_for_saving();
        // What a partial sync has left to do is worth keeping; its log is not.
        let partial = tracker.sync.as_ref().is_some_and(|sync| sync.copy.is_some());
        if (partial && tracker.mode == Mode::Logged) || tracker.mode == Mode::Starting {
            let cause = tracker.cause.clone();
            end_stretch(&mut tracker, &cause);
            tracker.mode = Mode::Unlogged;
        }
        if tracker.mode == Mode::Unlogged {
            give_round_up(&mut tracker);
        }
        let mut state = self.state_of(&tracker);
        let unlogged = (!state.logged).then(|| (tracker.dirty.clone(), tracker.suspect));
        let files = tracker.open_files();
        let finished = tracker.all_finished();
        self.unlock(tracker);
        for (file, applied) in files {
            let sync = |error| Error::io("sync the segment", file.path(), error);
            file.mark_applied(applied).map_err(sync)?;
            file.sync().map_err(sync)?;
        }
        for segment in finished {
            let sync = |error| Error::io("sync the segment", &segment.path, error);
            fs::File::open(&segment.path)
                .and_then(|file| durable::sync(Step::SegmentSettled, &file))
                .map_err(sync)?;
        }
        if let Some((dirty, suspect)) = unlogged {
            bitmap_file::save(&self.folder.path().join("bitmap"), self.id, state.tracking, &dirty, suspect)?;
        }
        self.ends.sync()?;
        self.folder.sync()?;
        state.clean = true;
        state.image = self.backing.identity()?;
        state.afar.sample = self.sample();
        self.record(&state)
    }

    fn resume_log(&self, found: FoundLog, sync: Option<SyncScope>) -> Result<()> {
        let mut segments = found.segments;
        self.lock().next_segment = found.next;
        segments.extend(self.read_back(&found.unsure)?);
        self.make_spare()?;
        let mut tracker = self.lock();
        tracker.dirty.merge(found.dirty);
        let Some(spare) = tracker.spare.take() else { return Err(self.not_logged(&tracker)) };
        let made = spare.header().segment;
        tracker.start_log(spare, segments);
        tracker.mode = Mode::Logged;
        tracker.sync = sync.map(|scope| Syncing::new(scope, None, None, self.backing.size()));
        drop(tracker);
        // Those in between have been replaced.
        found
            .empty
            .iter()
            .filter(|(number, _)| *number > made)
            .try_for_each(|(_, path)| self.folder.retire(path))
    }

    /// Records what is really on the backing in `ranges`, in new segments.
    fn read_back(&self, ranges: &[(u64, u64)]) -> Result<Vec<SegmentRef>> {
        let mut segments = Vec::new();
        let mut writer: Option<SegmentWriter> = None;
        for (start, end) in merged(ranges) {
            let failed = |error| Error::io("read back after a crash", self.backing.path(), error);
            self.each_piece(start, end, |entry| {
                if writer
                    .as_ref()
                    .is_none_or(|writer| writer.bytes() + entry.record_bytes() > self.folder.segment_bytes())
                {
                    if let Some(full) = writer.take() {
                        segments.push(full.seal().map_err(std::io::Error::other)?);
                    }
                    writer = Some(self.recovery_segment().map_err(std::io::Error::other)?);
                }
                writer.as_mut().map_or(Ok(()), |writer| writer.append(entry).map_err(std::io::Error::other))
            })
            .map_err(failed)?;
        }
        if let Some(last) = writer {
            segments.push(last.seal()?);
        }
        Ok(segments)
    }

    fn recovery_segment(&self) -> Result<SegmentWriter> {
        let (segment, tracking) = {
            let mut tracker = self.lock();
            tracker.next_segment += 1;
            (tracker.next_segment - 1, tracker.tracking)
        };
        let header = Header { log: self.log, segment, disk: self.id, tracking, size: self.backing.size() };
        self.folder.create(header).map(SegmentWriter::over)
    }
}

/// Of a disk of `size` bytes.
pub(super) fn default_log_limit(size: u64) -> u64 {
    (size / 2).min(LOG_CEILING)
}

/// Whether something was ever recorded in the disk's own folder: then it is no new disk, whatever is missing now.
fn is_used(dir: &Path) -> Result<bool> {
    let entries = fs::read_dir(dir).map_err(|error| Error::io("list the log folder", dir, error))?;
    Ok(entries.flatten().any(|entry| entry.metadata().is_ok_and(|meta| meta.len() > 0)))
}

/// Sorted, and joined where they touch: a hot block is read back once.
fn merged(ranges: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut sorted = ranges.to_vec();
    sorted.sort_unstable();
    let mut out: Vec<(u64, u64)> = Vec::new();
    for (start, end) in sorted {
        match out.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => out.push((start, end)),
        }
    }
    out
}

fn is_block_device(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device())
}

/// The disk's own folder: made if absent, inside a folder that must exist.
fn folder_of(machine: &str, settings: &DiskSettings) -> Result<PathBuf> {
    let parent = match &settings.log_dir {
        Some(dir) => dir.clone(),
        None if is_block_device(&settings.path) || Address::is_meant(&settings.path) => {
            return Err(Error::new(
                Kind::InvalidInput,
                format!("{machine}/{}", settings.name),
                format!("{} is no file: its change log has no default place", settings.path.display()),
            )
            .remedy("set log_dir for this disk to a folder on a local file system"));
        }
        None => settings.path.parent().map_or_else(|| PathBuf::from("."), Path::to_owned),
    };
    let parent = if parent.as_os_str().is_empty() { PathBuf::from(".") } else { parent };
    if !parent.is_dir() {
        return Err(Error::new(
            Kind::NotFound,
            parent.display().to_string(),
            "the folder for the change log is not there",
        )
        .remedy("create it, or set log_dir to a folder that exists"));
    }
    let dir = parent.join("lifeboat-logs").join(machine).join(&settings.name);
    durable::make_folder(Step::DiskFolder, &dir).map_err(|error| {
        Error::io("create the change log's folder", &dir, error).remedy("set log_dir to a writable folder")
    })?;
    Ok(dir)
}
