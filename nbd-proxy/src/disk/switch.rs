//! How logging stops and how it starts again.
//!
//! ```text
//!            stop_logging: append failed, no segment, limit reached, a failed write that could not be read back
//!   Logged ──────────────► Switching ──(state durable)──► Unlogged
//!     ▲                      ▲ └──(state not durable)──► Broken ──(tried again by the next write)──► Unlogged
//!     └─(drained, frozen)─ Starting ◄──────── begin_sync: log on ────────────────────┘
//! ```
//!
//! Stopping. The state file says `logged: false` under a *new* tracking id before the first unlogged write reaches the
//! backing. Killed before that: the old log is complete, and still counts. Killed after: the next open knows that records do not
//! tell the whole story, and the marked regions are compared with the vault. If the state file cannot be written, a note beside the
//! image says that it is void; if that cannot be written either, writes fail rather than be missed.
//!
//! Starting. Log on, so every write admitted from here has a record; wait until every write admitted without one is
//! through and has marked its blocks; freeze the bitmap: it names all that has no record. Only then does the
//! state file say `logged: true`. Killed before: still unlogged, as above. A dirty bit without a record is always copied.
//!
//! The state file has one writer at a time (`saving`), and what it writes is taken from the tracker in the same critical section
//! that takes the turn: a later state is never overwritten by an earlier one.

use std::io;
use std::sync::MutexGuard;

use uuid::Uuid;

use super::TrackedDisk;
use super::intent::Trust;
use super::state::DiskState;
use super::tracker::{Mode, Syncing, Tracker};
use super::void::Void;
use crate::bitmap::DirtyBitmap;
use crate::device::Extent;
use crate::log::format::MAX_DATA;
use crate::tracking::{Sync, SyncScope};
use crate::{Error, Kind, Result};

/// The most extents in one answer.
const EXTENTS: usize = 1024;

impl TrackedDisk {
    /// Stops logging for `cause` and makes that durable. Returns when writes may go on without records.
    ///
    /// # Errors
    /// It could be written neither to the state file nor beside the image: then no write may go on.
    pub(super) fn stop_logging(&self, cause: &str) -> io::Result<()> {
        let mut tracker = self.lock_for_saving();
        if tracker.mode == Mode::Unlogged && tracker.intent.trust() != Trust::Lost {
            return Ok(());
        }
        if matches!(tracker.mode, Mode::Logged | Mode::Starting) {
            end_stretch(&mut tracker, cause);
        }
        tracker.mode = Mode::Switching;
        let state = self.take_turn(&mut tracker);
        let cause = tracker.cause.clone();
        // Those who wait for an earlier record of the dropped log need wait no longer.
        self.unlock(tracker);
        let saved = self.state.write(&state).or_else(|error| self.void(&error));
        let mut tracker = self.lock();
        tracker.saving = false;
        tracker.mode = if saved.is_ok() { Mode::Unlogged } else { Mode::Broken };
        if saved.is_ok() && tracker.intent.trust() == Trust::Lost {
            tracker.intent.set_trust(Trust::Forgone);
        }
        let leftover = if saved.is_ok() { std::mem::take(&mut tracker.leftover) } else { Vec::new() };
        self.unlock(tracker);
        if let Err(error) = saved {
            tracing::error!(disk = self.label(), %error, "logging stopped and that cannot be recorded: writes fail");
            return Err(rustix::io::Errno::IO.into());
        }
        tracing::warn!(disk = self.label(), cause, "logging stopped; the disk goes on and will be synced");
        // Removed, not recycled: a writer that is still appending to one must not meet the next log in it.
        for path in leftover {
            if let Err(error) = self.folder.discard(&path) {
                tracing::warn!(disk = self.label(), %error, "a segment of the dropped log stays behind");
            }
        }
        Ok(())
    }

    /// The state cannot be written: says beside the image that it is void, which the next open reads first.
    fn void(&self, why: &Error) -> Result<()> {
        let void = self.void.as_ref().ok_or_else(|| Error::new(why.kind, &why.object, &why.message))?;
        tracing::error!(disk = self.label(), error = %why, "tracking cannot be recorded; that is noted beside the image");
        void.declare(&why.to_string())
    }

    /// See [`crate::machine::Machine::begin_sync`].
    pub(crate) fn begin_sync(&self, known: Option<Uuid>) -> Result<Sync> {
        self.restore_intent();
        self.start_logging(known)?;
        let mut tracker = self.lock_for_saving();
        if tracker.mode != Mode::Logged {
            return Err(self.not_logged(&tracker));
        }
        // Logged all along, or a dirty sync begun, but the caller has lost what the vault has: everything is copied, under
        // the same id.
        let usable = tracker.sync.as_ref().is_some_and(|sync| sync.base.is_none() || sync.base == known);
        if !usable {
            let released = DirtyBitmap::new(self.backing.size());
            tracker.sync = Some(Syncing { scope: SyncScope::Whole, base: None, copy: None, released });
        }
        // A new attempt includes what earlier attempts shipped: their deltas may have been given up.
        if let Some(Syncing { copy: Some(copy), released, .. }) = &mut tracker.sync {
            copy.merge(released.freeze());
        }
        let state = self.take_turn(&mut tracker);
        let whole = tracker.sync.as_ref().is_none_or(|sync| sync.scope == SyncScope::Whole);
        let sync = Sync {
            tracking: tracker.tracking,
            scope: tracker.sync.as_ref().map_or(SyncScope::Whole, |sync| sync.scope),
            cause: tracker.cause.clone(),
            size: self.backing.size(),
        };
        self.unlock(tracker);
        self.save(&state)?;
        self.void.as_ref().map_or(Ok(()), Void::lift)?;
        // What was written before we looked may be in the page cache only: a copy of it must not outlive it unmarked.
        if whole && self.sync_backing().is_err() {
            self.mark_all().map_err(|error| Error::io("mark all regions of", self.backing.path(), error))?;
        }
        tracing::info!(disk = self.label(), scope = ?sync.scope, cause = sync.cause, "sync");
        Ok(sync)
    }

    /// See [`crate::machine::Machine::sync_extents`].
    pub(crate) fn sync_extents(&self, tracking: Uuid, from: u64) -> Result<Vec<Extent>> {
        let size = self.backing.size();
        let mut out = Vec::new();
        {
            let tracker = self.lock();
            let sync = self.current_sync(&tracker, tracking)?;
            if let Some(copy) = &sync.copy {
                let mut at = from;
                while at < size && out.len() < EXTENTS {
                    let Some((start, len)) = copy.next_run(at) else { break };
                    // The first run may have begun before `from`, and the last block may reach past the end.
                    let (offset, end) = (start.max(from), (start + len).min(size));
                    out.push(Extent { offset, len: end - offset, hole: false });
                    at = end;
                }
                return Ok(out);
            }
        }
        if from < size {
            self.backing
                .extents(from, size - from, &mut out)
                .map_err(|error| Error::io("find what is allocated in", self.backing.path(), error))?;
            out.truncate(EXTENTS);
        }
        Ok(out)
    }

    /// See [`crate::machine::Machine::read`].
    pub(crate) fn read_live(&self, offset: u64, len: u32) -> Result<Vec<u8>> {
        let fits = offset.checked_add(u64::from(len)).is_some_and(|end| end <= self.backing.size());
        if !fits || u64::from(len) > MAX_DATA {
            return Err(Error::new(
                Kind::InvalidInput,
                self.label(),
                format!("cannot read {len} bytes at {offset}"),
            ));
        }
        let mut buf = vec![0; usize::try_from(len).unwrap_or(0)];
        self.backing.read(&mut buf, offset).map_err(|error| {
            Error::io(&format!("read {len} bytes at {offset} of"), self.backing.path(), error)
        })?;
        Ok(buf)
    }

    /// See [`crate::machine::Machine::end_sync`].
    pub(crate) fn end_sync(&self, tracking: Uuid) -> Result<()> {
        let mut tracker = self.lock_for_saving();
        if tracker.tracking == tracking && tracker.mode == Mode::Logged && tracker.sync.is_none() {
            return Ok(());
        }
        self.current_sync(&tracker, tracking)?;
        tracker.sync = None;
        let state = self.take_turn(&mut tracker);
        self.unlock(tracker);
        self.save(&state)
    }

    /// Turns logging on if it is off; if another thread is doing that, waits for it.
    fn start_logging(&self, known: Option<Uuid>) -> Result<()> {
        let mut tracker = self.lock();
        while tracker.mode == Mode::Unlogged && tracker.spare.is_none() {
            self.unlock(tracker);
            self.make_spare()?;
            tracker = self.lock();
        }
        while tracker.mode == Mode::Starting {
            tracker = self.wait(tracker);
        }
        if tracker.mode != Mode::Unlogged {
            return Ok(());
        }
        let Some(spare) = tracker.spare.take() else { return Err(self.not_logged(&tracker)) };
        tracker.start_log(spare, Vec::new());
        tracker.mode = Mode::Starting;
        let epoch = tracker.epoch;
        let horizon = tracker.ranges.horizon();
        while tracker.epoch == epoch && !tracker.drained(horizon) {
            tracker = self.wait(tracker);
        }
        if tracker.epoch != epoch {
            return Err(self.not_logged(&tracker));
        }
        let base = std::mem::take(&mut tracker.bases).into_iter().find(|base| Some(*base) == known);
        let unrecorded = tracker.dirty.freeze();
        let scope = match base {
            None => SyncScope::Whole,
            Some(_) if tracker.suspect => SyncScope::Marked,
            Some(_) => SyncScope::Dirty,
        };
        tracker.suspect = false;
        tracker.sync = Some(Syncing {
            scope,
            copy: base.is_some().then_some(unrecorded),
            base,
            released: DirtyBitmap::new(self.backing.size()),
        });
        tracker.mode = Mode::Logged;
        self.unlock(tracker);
        Ok(())
    }

    fn current_sync<'a>(&self, tracker: &'a Tracker, tracking: Uuid) -> Result<&'a Syncing> {
        let current =
            tracker.sync.as_ref().filter(|_| tracker.tracking == tracking && tracker.mode == Mode::Logged);
        current.ok_or_else(|| {
            Error::new(Kind::NotReady, self.label(), format!("sync {tracking} is over: {}", tracker.cause))
        })
    }

    /// The tracker, when nobody is writing the state file.
    pub(super) fn lock_for_saving(&self) -> MutexGuard<'_, Tracker> {
        let mut tracker = self.lock();
        while tracker.saving {
            tracker = self.wait(tracker);
        }
        tracker
    }

    /// Takes the turn to write the state file, and what is to be written.
    pub(super) fn take_turn(&self, tracker: &mut Tracker) -> DiskState {
        tracker.saving = true;
        self.state_of(tracker)
    }

    pub(super) fn save(&self, state: &DiskState) -> Result<()> {
        let saved = self.state.write(state);
        let mut tracker = self.lock();
        tracker.saving = false;
        self.unlock(tracker);
        saved
    }

    /// What the state file should say now.
    pub(super) fn state_of(&self, tracker: &Tracker) -> DiskState {
        DiskState {
            disk: self.id,
            tracking: tracker.tracking,
            logged: tracker.mode == Mode::Logged,
            sync: tracker.sync.as_ref().map(|sync| sync.scope),
            bases: bases_of(tracker),
            cause: tracker.cause.clone(),
            intent: tracker.intent.trust() == Trust::Kept,
            sync_failed: tracker.intent.sync_failed(),
            boot: self.boot.clone(),
            mount: self.mount.clone(),
            image: self.backing.found().clone(),
            clean: false,
        }
    }
}

/// The ids under which the vault may be exact, and from which the intent map names every difference after a crash.
fn bases_of(tracker: &Tracker) -> Vec<Uuid> {
    match (&tracker.mode, &tracker.sync) {
        (Mode::Logged, Some(sync)) => sync.base.into_iter().chain([tracker.tracking]).collect(),
        (Mode::Logged, None) => vec![tracker.tracking],
        _ => tracker.bases.clone(),
    }
}

/// Ends the stretch of records: a new tracking id, and a bitmap that names every difference from what the vault has under
/// the old one, as far as that can be told. What is in flight is among them: its record is gone.
pub(super) fn end_stretch(tracker: &mut Tracker, cause: &str) {
    tracker.merge_back();
    tracker.mark_in_flight();
    match tracker.sync.take() {
        // Nothing of this stretch was ever shipped: the one before still counts.
        None if tracker.mode == Mode::Starting => {}
        None => (tracker.bases, tracker.suspect) = (vec![tracker.tracking], false),
        // Whether the vault has the sync's point is not known here. If it has, only later writes differ from it.
        Some(sync) => {
            tracker.dirty.merge(sync.released);
            if let Some(copy) = sync.copy {
                tracker.dirty.merge(copy);
            }
            tracker.bases = sync.base.into_iter().chain([tracker.tracking]).collect();
            tracker.suspect = sync.scope == SyncScope::Marked;
        }
    }
    tracker.tracking = Uuid::new_v4();
    cause.clone_into(&mut tracker.cause);
    tracker.drop_log();
}
