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
//! Rounds. A sync that loses its log need not begin again: as long as the process lives, a bitmap has every block that was
//! written since the round began, with a record or without. The round goes on without a log; when all it named is copied, that
//! bitmap is the next round. A write in flight when it is frozen marks its blocks afterwards, on its way out, and so is of the
//! round after; only the last round, which logs, has to wait for such writes first. Under churn that no log can hold, the
//! caller makes rounds without a log until one is small enough for a log to outlive it. What earlier rounds copied stays in a
//! bitmap of its own until the sync's point is committed: it keeps its marks in the intent map, and whoever begins the sync again
//! copies it again. So a kill or a power loss in any round costs the marked regions, as elsewhere, and not the whole disk.
//!
//! The state file has one writer at a time (`saving`), and what it writes is taken from the tracker in the same critical section
//! that takes the turn: a later state is never overwritten by an earlier one.

use std::io;
use std::sync::MutexGuard;

use uuid::Uuid;

use super::TrackedDisk;
use super::intent::Trust;
use super::state::{Afar, DiskState};
use super::tracker::{Mode, Syncing, Tracker};
use crate::device::Extent;
use crate::log::format::MAX_DATA;
use crate::tracking::{Round, Sync, SyncScope};
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
        self.switch_off(tracker)
    }

    /// Makes it durable that the stretch has ended.
    pub(super) fn switch_off(&self, mut tracker: MutexGuard<'_, Tracker>) -> io::Result<()> {
        tracker.mode = Mode::Switching;
        let state = self.take_turn(&mut tracker);
        let cause = tracker.cause.clone();
        // Those who wait for an earlier record of the dropped log need wait no longer.
        self.unlock(tracker);
        let saved = self.record(&state).or_else(|error| self.void(&error));
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
    pub(super) fn void(&self, why: &Error) -> Result<()> {
        let void = self.void.as_ref().ok_or_else(|| Error::new(why.kind, &why.object, &why.message))?;
        tracing::error!(disk = self.label(), error = %why, "tracking cannot be recorded; that is noted beside the image");
        void.declare(&why.to_string())
    }

    /// See [`crate::machine::Machine::begin_sync`].
    pub(crate) fn begin_sync(&self, known: Option<Uuid>) -> Result<Sync> {
        self.forget_rounds();
        self.restore_intent();
        self.start_logging(known, None)?;
        let mut tracker = self.lock_for_saving();
        if tracker.mode != Mode::Logged {
            return Err(self.not_logged(&tracker));
        }
        // Logged all along, or a dirty sync begun, but the caller has lost what the vault has: everything is copied, under
        // the same id.
        let usable = tracker.sync.as_ref().is_some_and(|sync| {
            sync.scope == SyncScope::Whole || (sync.base.is_some() && sync.base == known)
        });
        if !usable {
            tracker.sync = Some(Syncing::new(SyncScope::Whole, None, None, self.backing.size()));
        }
        // A new attempt includes what earlier attempts shipped: their deltas may have been given up.
        if let Some(Syncing { copy: Some(copy), released, earlier, before, .. }) = &mut tracker.sync {
            copy.merge(released.freeze());
            copy.merge(earlier.freeze());
            *before = None;
        }
        self.answer(tracker)
    }

    /// See [`crate::machine::Machine::next_round`].
    pub(crate) fn next_round(&self, known: Option<Uuid>, have: Round, logged: bool) -> Result<Sync> {
        self.restore_intent();
        let mut tracker = self.lock_for_saving();
        let current = tracker.sync.as_ref().map(|sync| (sync.round, sync.before));
        match current {
            Some((round, _)) if round == have.id && have.complete && tracker.mode == Mode::Unlogged => {
                if logged {
                    self.unlock(tracker);
                    self.start_logging(known, Some(have.id))?;
                    tracker = self.lock_for_saving();
                } else {
                    let written = tracker.dirty.freeze();
                    tracker.suspect = false;
                    tracker.sync = tracker.sync.take().map(|sync| sync.next(written, self.backing.size()));
                }
            }
            Some((round, _)) if round == have.id => {}
            // It is under way: the reply to an earlier request was lost.
            Some((_, before)) if have.complete && before == Some(have.id) => {}
            _ => {
                self.unlock(tracker);
                return self.begin_sync(known);
            }
        }
        self.answer(tracker)
    }

    /// Makes the sync under way durable, and tells it.
    fn answer(&self, mut tracker: MutexGuard<'_, Tracker>) -> Result<Sync> {
        let Some(Syncing { scope, round, before, .. }) = &tracker.sync else {
            return Err(self.not_logged(&tracker));
        };
        let (scope, round, follows) = (*scope, *round, *before);
        let state = self.take_turn(&mut tracker);
        let whole = tracker.sync.as_ref().is_none_or(|sync| sync.scope == SyncScope::Whole);
        let sync = Sync {
            tracking: tracker.tracking,
            scope,
            cause: tracker.cause.clone(),
            size: self.backing.size(),
            round,
            follows,
            logged: tracker.mode == Mode::Logged,
        };
        self.unlock(tracker);
        self.save(&state)?;
        self.lift_void()?;
        // What was written before we looked may be in the page cache only: a copy of it must not outlive it unmarked.
        if whole && self.sync_backing().is_err() {
            self.mark_all().map_err(|error| Error::io("mark all regions of", self.backing.path(), error))?;
        }
        tracing::info!(disk = self.label(), scope = ?sync.scope, cause = sync.cause, logged = sync.logged, "sync");
        Ok(sync)
    }

    /// Whoever begins anew has given up the round that was to go on without a log.
    fn forget_rounds(&self) {
        let mut tracker = self.lock_for_saving();
        if tracker.mode == Mode::Unlogged {
            give_round_up(&mut tracker);
        }
        self.unlock(tracker);
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
    pub(crate) fn read_live(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let len = buf.len() as u64;
        let fits = offset.checked_add(len).is_some_and(|end| end <= self.backing.size());
        if !fits || len > MAX_DATA {
            return Err(Error::new(
                Kind::InvalidInput,
                self.label(),
                format!("cannot read {len} bytes at {offset}"),
            ));
        }
        self.backing.read(buf, offset).map_err(|error| {
            Error::io(&format!("read {len} bytes at {offset} of"), self.backing.path(), error)
        })
    }

    /// See [`crate::machine::Machine::end_sync`].
    pub(crate) fn end_sync(&self, tracking: Uuid) -> Result<()> {
        let mut tracker = self.lock_for_saving();
        let logged = tracker.tracking == tracking && tracker.mode == Mode::Logged;
        if logged && tracker.sync.is_none() {
            return Ok(());
        }
        self.current_sync(&tracker, tracking)?;
        if !logged {
            return Err(self.not_logged(&tracker));
        }
        tracker.sync = None;
        let state = self.take_turn(&mut tracker);
        self.unlock(tracker);
        self.save(&state)
    }

    /// Turns logging on if it is off, for a sync that begins or for the round after `complete`; if another thread is doing
    /// that, waits for it.
    fn start_logging(&self, known: Option<Uuid>, complete: Option<Uuid>) -> Result<()> {
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
        let first = spare.header().segment;
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
        let last = tracker.sync.take_if(|sync| Some(sync.round) == complete);
        give_round_up(&mut tracker);
        let (unrecorded, size) = (tracker.dirty.freeze(), self.backing.size());
        let base = std::mem::take(&mut tracker.bases).into_iter().find(|base| Some(*base) == known);
        let partial = if tracker.suspect { SyncScope::Marked } else { SyncScope::Dirty };
        tracker.suspect = false;
        tracker.sync = Some(match (last, base) {
            (Some(last), base) => Syncing { base, ..last.next(unrecorded, size) },
            (None, Some(_)) => Syncing::new(partial, base, Some(unrecorded), size),
            (None, None) => Syncing::new(SyncScope::Whole, None, None, size),
        });
        tracker.mode = Mode::Logged;
        let tracking = tracker.tracking;
        self.unlock(tracker);
        self.ends.begin_at(tracking, first)
    }

    fn current_sync<'a>(&self, tracker: &'a Tracker, tracking: Uuid) -> Result<&'a Syncing> {
        let live = matches!(tracker.mode, Mode::Logged | Mode::Unlogged);
        let current = tracker.sync.as_ref().filter(|_| tracker.tracking == tracking && live);
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
        let saved = self.record(state);
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
            afar: Afar {
                server: tracker.server.clone(),
                untold: tracker.losses > tracker.told,
                sample: None,
            },
        }
    }
}

/// The ids under which the vault may be exact, and from which the intent map names every difference after a crash.
pub(super) fn bases_of(tracker: &Tracker) -> Vec<Uuid> {
    match (&tracker.mode, &tracker.sync) {
        (Mode::Logged, Some(sync)) => sync.base.into_iter().chain([tracker.tracking]).collect(),
        (Mode::Logged, None) => vec![tracker.tracking],
        _ => tracker.bases.clone(),
    }
}

/// Of a stretch that has ended: what its sync's rounds named differs still, for all that is known. What earlier ones copied may
/// stand in the vault already.
pub(super) fn give_round_up(tracker: &mut Tracker) {
    let Some(sync) = tracker.sync.take() else { return };
    if sync.copy.is_some() {
        tracker.suspect |= sync.scope == SyncScope::Marked || sync.before.is_some();
    }
    tracker.dirty.merge(sync.all());
}

/// Ends the stretch of records: a new tracking id, and a bitmap that names every difference from what the vault has under
/// the old one, or from what the round of the sync under way copies, as far as that can be told. What is in flight is among
/// them: its record is gone.
pub(super) fn end_stretch(tracker: &mut Tracker, cause: &str) {
    tracker.merge_back();
    tracker.mark_in_flight();
    match &mut tracker.sync {
        // Nothing of this stretch was ever shipped: the one before still counts.
        _ if tracker.mode == Mode::Starting => {}
        None => (tracker.bases, tracker.suspect) = (vec![tracker.tracking], false),
        // Its round may go on: the bitmap has what was written since it began, and what it copies stays with it. Whether the vault
        // has the sync's point is not known here. If it has, only later writes differ from it.
        Some(sync) => {
            tracker.dirty.merge(sync.released.freeze());
            tracker.bases = sync.base.into_iter().chain([tracker.tracking]).collect();
        }
    }
    tracker.tracking = Uuid::new_v4();
    cause.clone_into(&mut tracker.cause);
    tracker.drop_log();
}
