//! A disk whose every write is known: the decorator between the NBD server and the backing.
//!
//! Files and their questions: `write` — what happens to a request; `switch` — how logging stops and starts again; `mark` — how
//! the intent map is kept ahead of the writes; `power` — what a backing loses that is not here; `recover`, `verdict` and `left` — what an
//! open finds after a crash; `tracker` and `intent` — the state behind them, without I/O. `state` and `intent::file` (both over `slots`),
//! `ends`, `bitmap_file`, `sample` and `void` are what survives a restart; `relocate` — what if their folder goes away.
//!
//! Invariants, each with the test that holds it:
//! * An acknowledged write is on the backing and has a record, or is marked in a bitmap of an unlogged stretch
//!   that is durably known as such (`every_point_restores`, `a_killed_proxy_misses_nothing`).
//! * Log order and disk order agree for overlapping writes (`overlapping_writes_agree_with_the_log`).
//! * Recovery never writes the backing (`recovery_leaves_the_backing_alone`).
//! * The tracking id changes whenever records alone no longer lead from what the vault has to what the disk is
//!   (`a_lost_log_is_a_new_stretch`).

mod bitmap_file;
mod ends;
mod intent;
mod left;
mod mark;
mod power;
mod ranges;
mod recover;
mod relocate;
mod sample;
mod slots;
mod state;
mod switch;
mod tracker;
mod verdict;
mod void;
mod watermark;
mod write;

use std::sync::atomic::AtomicBool;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use self::ends::Ends;
use self::intent::file::IntentFile;
pub use self::recover::DiskSettings;
use self::state::StateFile;
use self::switch::bases_of;
pub(crate) use self::tracker::Boundary;
use self::tracker::{Mode, Tracker};
use self::void::Void;
use crate::backing::Backing;
use crate::log::folder::Folder;
use crate::log::format::Header;
use crate::tracking::{CutDisk, DiskInfo};
use crate::{Error, Kind, Result};

/// Why a log ends that has taken what it may.
const LIMIT: &str = "the change log reached its limit (log_limit)";

/// A disk of a machine, open and tracked.
#[derive(Debug)]
pub struct TrackedDisk {
    machine: String,
    name: String,
    backing: Box<dyn Backing>,
    folder: Folder,
    ends: Ends,
    state: StateFile,
    intent: IntentFile,
    void: Option<Void>,
    /// A place that the next open may read says what does not count any more, and could not be told so: the note beside the image stays.
    forsaken: AtomicBool,
    /// Random, made when the disk was first opened.
    id: Uuid,
    /// The host's boot.
    boot: String,
    /// The mounts of image and log.
    mount: String,
    /// Random, made at this open: the log's id.
    log: Uuid,
    tracker: Mutex<Tracker>,
    changed: Condvar,
}

impl TrackedDisk {
    /// The disk's name within its machine.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `MACHINE/DISK`, as messages name it.
    pub fn label(&self) -> String {
        format!("{}/{}", self.machine, self.name)
    }

    /// How the disk stands.
    pub fn info(&self) -> DiskInfo {
        let tracker = self.lock();
        DiskInfo {
            name: self.name.clone(),
            size: self.backing_size(),
            tracking: tracker.tracking,
            logged: tracker.is_logged(),
            cause: tracker.cause.clone(),
            syncing: tracker.sync.is_some(),
            bases: bases_of(&tracker),
            dirty_bytes: tracker.dirty_bytes(),
            log_bytes: tracker.log_bytes(),
            clients: 0,
            trouble: self.backing.trouble(),
        }
    }

    /// Whether a cut can roll the log without I/O.
    pub(crate) fn is_prepared(&self) -> bool {
        let tracker = self.lock();
        tracker.mode != Mode::Logged || tracker.spare.is_some()
    }

    /// Makes sure of that. Called before the cut, while writes go on.
    pub(crate) fn prepare_cut(&self) -> Result<()> {
        if self.is_prepared() {
            return Ok(());
        }
        // Cuts that are not released take segments too, however little was written.
        let cause = if self.lock().is_over_limit() {
            LIMIT.to_owned()
        } else {
            let Err(error) = self.make_spare() else { return Ok(()) };
            format!("no new log segment: {error}")
        };
        // Without another segment no cut can ever be taken of this log.
        if let Err(error) = self.stop_logging(&cause) {
            tracing::error!(disk = self.label(), %error, "the broken log could not be marked as such");
        }
        Err(self.not_logged(&self.lock()))
    }

    /// Waits until everything before `boundary` is on the backing, and lists it.
    pub(crate) fn settle(&self, boundary: Boundary) -> Result<CutDisk> {
        let mut tracker = self.lock();
        while tracker.epoch == boundary.epoch && !tracker.is_settled(boundary) {
            tracker = self.wait(tracker);
        }
        if tracker.epoch != boundary.epoch || tracker.mode != Mode::Logged {
            return Err(self.not_logged(&tracker));
        }
        let (tracking, segments) = (tracker.tracking, tracker.finished(boundary));
        self.unlock(tracker);
        Ok(CutDisk { name: self.name.clone(), size: self.backing_size(), tracking, segments })
    }

    /// The vault has every segment up to number `last` (0: none), so they go.
    pub(crate) fn release(&self, last: u64) -> Result<()> {
        let (tracking, segments) = {
            let mut tracker = self.lock();
            let frozen = tracker.frozen.take();
            // During a sync what the vault has counts only once the sync's point is committed.
            if let (Some(sync), Some((_, frozen))) = (tracker.sync.as_mut(), frozen) {
                sync.released.merge(frozen);
            }
            (tracker.tracking, tracker.take_finished(last))
        };
        if let Some(newest) = segments.last() {
            self.ends.begin_at(tracking, newest.segment + 1)?;
        }
        self.folder.retire_oldest(segments.iter().map(|segment| segment.path.as_path()))
    }

    /// That a cut is not possible now, and why.
    pub(crate) fn not_logged(&self, tracker: &Tracker) -> Error {
        Error::new(Kind::NotReady, self.label(), format!("writes are not being logged: {}", tracker.cause))
            .remedy("the uploader brings the disk back by a sync; see `lifeboat status`")
    }

    /// Makes a segment ahead of its use, unless there is one. One thread at a time makes it and a number counts only
    /// once its file is there: segments must become active in the order of their numbers, without a gap.
    fn make_spare(&self) -> Result<()> {
        let mut tracker = self.lock();
        while tracker.making {
            tracker = self.wait(tracker);
        }
        if tracker.spare.is_some() {
            return Ok(());
        }
        tracker.making = true;
        let (segment, tracking, epoch) = (tracker.next_segment, tracker.tracking, tracker.epoch);
        drop(tracker);
        let header = Header { log: self.log, segment, disk: self.id, tracking, size: self.backing_size() };
        let made = self.folder.create(header).and_then(|file| {
            // Known only when it is there.
            self.ends.reach(tracking, segment).map(|()| file)
        });
        let mut tracker = self.lock();
        tracker.making = false;
        let mut stale = None;
        let result = made.map(|file| {
            tracker.next_segment += 1;
            let current = tracker.epoch == epoch;
            *(if current { &mut tracker.spare } else { &mut stale }) = Some(file);
        });
        self.unlock(tracker);
        stale.map_or(result, |file| self.folder.discard(file.path()))
    }

    fn backing_size(&self) -> u64 {
        self.backing.size()
    }

    /// The tracker. See its module for what may be done while it is held.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Tracker> {
        self.tracker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for another thread to change the tracker.
    fn wait<'a>(&self, mut tracker: MutexGuard<'a, Tracker>) -> MutexGuard<'a, Tracker> {
        tracker.waiters += 1;
        let mut tracker = self.changed.wait(tracker).unwrap_or_else(PoisonError::into_inner);
        tracker.waiters -= 1;
        tracker
    }

    /// Gives the tracker back, wakes whoever waits for it, and writes the marks that fell due.
    fn unlock(&self, mut tracker: MutexGuard<'_, Tracker>) {
        let marks = std::mem::take(&mut tracker.marks);
        let waiters = tracker.waiters;
        drop(tracker);
        if waiters > 0 {
            self.changed.notify_all();
        }
        for (file, applied) in marks {
            if let Err(error) = file.mark_applied(applied) {
                // A stale mark only means that a recovery reads more back.
                tracing::debug!(disk = self.label(), %error, "cannot write the applied mark");
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
