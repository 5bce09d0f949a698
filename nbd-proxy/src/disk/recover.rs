//! Opening a disk: what is believed of what the last run left behind.
//!
//! After a crash the disk is the truth; opening never writes the backing. What the state file and the host say decides:
//!
//! | left behind | means | so |
//! |---|---|---|
//! | nothing | a new disk | unlogged, whole sync |
//! | clean, the image as it was left | log and backing are durable and agree | the log goes on |
//! | clean, another image | changed outside | new stretch, whole sync |
//! | not clean, same boot, logged | the process died; the page cache has every acknowledged write, in log and backing | records past the applied mark are read back; the log goes on |
//! | not clean, same boot, unlogged | the process died in an unlogged stretch and its bitmap with it | whole sync |
//! | not clean, another boot | power loss: nothing of the log was synced, every record is void | new stretch, whole sync |
//! | not clean, same boot, image changed later than the log | written to outside after the process died | new stretch, whole sync |
//! | not clean, same boot, another image (inode, size) | replaced outside | new stretch, whole sync |
//!
//! Reading back: a write that was in flight may be recorded and not on the backing, or half on it. Its record stays, and a
//! record of what is really there follows it in a new log, before anyone is served. Replayed in order, the newest wins: the
//! next point is what the disk is. Cuts that were out are forgotten; their segments join the next cut.
//!
//! Killed while opening: before the state file is written nothing has changed but new segments under the same stretch, which say
//! what is on the backing and so are true in any order behind the old.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex};

use uuid::Uuid;

use super::TrackedDisk;
use super::state::{DiskState, StateFile};
use super::tracker::{Mode, Syncing, Tracker};
use crate::backing::{Access, Backing, Identity, RawDisk};
use crate::bitmap::DirtyBitmap;
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
/// How much later than its record a write may reach the disk, in seconds, before somebody else is suspected. Suspecting
/// wrongly costs a resync.
const SLACK: i64 = 5;

/// What a disk is opened with.
#[derive(Clone, Debug)]
pub struct DiskSettings {
    /// The disk's name within its machine.
    pub name: String,
    /// The raw image or block device.
    pub path: PathBuf,
    /// Where the change log goes; default: the folder of `path`.
    pub log_dir: Option<PathBuf>,
    /// Serve it read-only.
    pub read_only: bool,
    /// The most the change log may take, in bytes; default: half the disk, at most 64 GiB.
    pub log_limit: Option<u64>,
}

/// The log that goes on, and what must be known of it.
struct Found {
    segments: Vec<SegmentRef>,
    /// What the records cover.
    dirty: DirtyBitmap,
    /// Extents of records that may not have reached the backing, as (offset, end).
    unsure: Vec<(u64, u64)>,
}

impl TrackedDisk {
    /// Opens and locks a disk of `machine`, and recovers its tracking. `boot` names the host's boot.
    pub(crate) fn open(machine: &str, settings: &DiskSettings, boot: &str) -> Result<Self> {
        let access = if settings.read_only { Access::ReadOnly } else { Access::ReadWrite };
        Self::open_on(Box::new(RawDisk::open(&settings.path, access)?), machine, settings, boot)
    }

    /// The same on a backing that is open already.
    pub(crate) fn open_on(
        backing: Box<dyn Backing>,
        machine: &str,
        settings: &DiskSettings,
        boot: &str,
    ) -> Result<Self> {
        let dir = folder_of(machine, settings)?;
        let (state_file, state) = StateFile::open(&dir.join("state"))?;
        let limit = settings.log_limit.unwrap_or((backing.size() / 2).min(LOG_CEILING));
        let segment_bytes = (limit / 8).clamp(SEGMENT_FLOOR, SEGMENT_CEILING) & !4095;
        let fresh = state.is_none();
        let folder = Folder::open(&dir, segment_bytes)?;
        let last_written = folder.last_written()?;
        let verdict = match &state {
            Some(state) => judge(state, backing.found(), boot, last_written),
            None => Err("new disk".to_owned()),
        };
        let (tracking, cause) = match (&verdict, &state) {
            (Ok(()), Some(state)) => (state.tracking, state.cause.clone()),
            (Err(cause), _) => (Uuid::new_v4(), cause.clone()),
            (Ok(()), None) => (Uuid::new_v4(), String::new()),
        };
        let tracker = Tracker::new(backing.size(), tracking, cause, segment_bytes, limit);
        let disk = Self {
            machine: machine.to_owned(),
            name: settings.name.clone(),
            folder,
            state: state_file,
            id: state.as_ref().map_or_else(Uuid::new_v4, |state| state.disk),
            boot: boot.to_owned(),
            log: Uuid::new_v4(),
            tracker: Mutex::new(tracker),
            changed: Condvar::new(),
            backing,
        };
        match (verdict, state) {
            (Ok(()), Some(state)) if state.logged => disk.resume_log(&state)?,
            (Ok(()), _) => disk.folder.retire_all()?,
            (Err(cause), _) => {
                disk.folder.retire_all()?;
                if !fresh {
                    tracing::warn!(
                        disk = disk.label(),
                        cause,
                        "tracking starts anew; the whole disk will be synced"
                    );
                }
            }
        }
        // From here on the last run's "clean" no longer counts: durable before the first request.
        let state = disk.state_of(&disk.lock());
        disk.state.write(&state)?;
        Ok(disk)
    }

    /// Makes everything durable and says so, after the last request. The next open goes on where this one stopped.
    pub(crate) fn close(&self) -> Result<()> {
        let on = self.backing.path();
        self.backing.flush().map_err(|error| Error::io("sync the disk", on, error))?;
        let (mut state, files) = {
            let tracker = self.lock();
            (self.state_of(&tracker), tracker.open_files())
        };
        for (file, applied) in files {
            let sync = |error| Error::io("sync the segment", file.path(), error);
            file.mark_applied(applied).map_err(sync)?;
            file.sync().map_err(sync)?;
        }
        let finished = self.lock().all_finished();
        for segment in finished {
            let sync = |error| Error::io("sync the segment", &segment.path, error);
            fs::File::open(&segment.path).and_then(|file| file.sync_data()).map_err(sync)?;
        }
        self.folder.sync()?;
        // A dirty sync's bitmap is in memory only; an unlogged stretch's as well: only a complete log is worth a clean mark.
        state.clean = state.logged && state.sync != Some(SyncScope::Dirty);
        state.image = self.backing.identity()?;
        self.state.write(&state)
    }

    fn resume_log(&self, state: &DiskState) -> Result<()> {
        let found = match self.read_log(state) {
            Ok(found) => found,
            Err(error) if error.kind == Kind::Corrupt => {
                tracing::warn!(disk = self.label(), %error, "the change log is damaged; the whole disk will be synced");
                let mut tracker = self.lock();
                tracker.tracking = Uuid::new_v4();
                tracker.cause = format!("change log damaged: {error}");
                return self.folder.retire_all();
            }
            Err(error) => return Err(error),
        };
        let mut segments = found.segments;
        self.lock().next_segment = segments.last().map_or(1, |last| last.segment + 1);
        segments.extend(self.read_back(&found.unsure)?);
        self.make_spare()?;
        let mut tracker = self.lock();
        tracker.dirty.merge(found.dirty);
        let Some(spare) = tracker.spare.take() else { return Err(self.not_logged(&tracker)) };
        tracker.start_log(spare, segments);
        tracker.mode = Mode::Logged;
        tracker.sync = state.sync.map(|scope| Syncing::new(scope, None, None, self.backing.size()));
        Ok(())
    }

    /// What the segments in the folder say. `Corrupt` if they cannot be all that was logged.
    fn read_log(&self, state: &DiskState) -> Result<Found> {
        let mut found =
            Found { segments: Vec::new(), dirty: DirtyBitmap::new(self.backing.size()), unsure: Vec::new() };
        for mut reader in self.folder.segments()? {
            let header = reader.header().clone();
            let path = reader.path().to_owned();
            if header.disk != self.id || header.tracking != state.tracking {
                self.folder.retire(&path)?;
                continue;
            }
            let applied = reader.applied();
            while let Some(record) = reader.next_record()? {
                found.dirty.mark(record.offset, record.len);
                if reader.records() > applied {
                    found.unsure.push((record.offset, record.offset + record.len));
                }
            }
            let object = path.display().to_string();
            if reader.records() < applied {
                let have = reader.records();
                return Err(Error::corrupt(object, format!("{have} readable records of at least {applied}")));
            }
            if found.segments.last().is_some_and(|last| last.segment + 1 != header.segment) {
                return Err(Error::corrupt(object, "an earlier segment of the log is missing"));
            }
            found.segments.push(SegmentRef {
                path,
                log: header.log,
                segment: header.segment,
                records: reader.records(),
                bytes: reader.position(),
            });
        }
        // The spare, and an active segment without a write. One with a later segment behind it stays: its first record was
        // still being written when later ones were complete.
        while let Some(empty) = found.segments.pop_if(|last| last.records == 0) {
            self.folder.retire(&empty.path)?;
        }
        Ok(found)
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

/// Whether the last run's log, last written to at `last_written`, still leads to what the disk is now; if not, why.
fn judge(state: &DiskState, now: &Identity, boot: &str, last_written: i64) -> Result<(), String> {
    if state.clean {
        return if state.image == *now { Ok(()) } else { Err("image changed outside Lifeboat".to_owned()) };
    }
    if !state.image.is_same_file(now) {
        return Err("image replaced or resized outside Lifeboat".to_owned());
    }
    if state.boot != boot {
        return Err("the host lost power or was reset while the disk was open".to_owned());
    }
    // A record is appended before its write, so the disk cannot have changed much later than the log.
    if state.logged && now.changed_after(last_written + SLACK) {
        return Err("image changed outside Lifeboat after the proxy died".to_owned());
    }
    if state.sync == Some(SyncScope::Dirty) {
        return Err("the proxy died during a catch-up".to_owned());
    }
    Ok(())
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
        None if is_block_device(&settings.path) => {
            return Err(Error::new(
                Kind::InvalidInput,
                format!("{machine}/{}", settings.name),
                format!("{} is a device: its change log has no default place", settings.path.display()),
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
    fs::create_dir_all(&dir).map_err(|error| {
        Error::io("create the change log's folder", &dir, error).remedy("set log_dir to a writable folder")
    })?;
    Ok(dir)
}
