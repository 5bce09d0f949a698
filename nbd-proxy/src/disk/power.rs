//! A backing that loses its power while this host goes on: another server's disk, whose server died.
//!
//! Such a backing tells us before it answers anything again. What no flush has covered may be on it or not, in any mixture, while the
//! log, and maybe the vault, has all of it. The disk is the truth, so:
//! 1. The stretch ends. What the vault has under its id is a base from which the regions without a flush may differ, and whatever
//!    else is dirty: the sync that follows compares those. Every region that may differ is in the intent map still, for a mark goes
//!    only after a sync of the backing; so if we die here, the next open compares the same regions and more.
//! 2. A client must not take for durable what is gone: its next flush fails, once, and so does each that was under way. That this is
//!    owed is part of the durable state, for the client may outlive us.
//!
//! A cut that was made before the loss stays: it shows what the disk did show. One made after it comes from the sync.
//!
//! If we were killed, nothing tells whether the server lost anything meanwhile, unless its process is the same as before: then it has
//! what it had. If not, the next flush fails as well, for what was not flushed before the kill may be gone.

use std::io;
use std::sync::{Arc, Weak};

use super::TrackedDisk;
use super::sample::Sample;
use super::state::DiskState;
use super::switch::end_stretch;
use super::tracker::{Mode, Tracker};
use crate::backing::{Backing, Watcher};

const LOST: &str = "the disk's server was lost with writes that were not flushed";

impl Watcher for TrackedDisk {
    fn power_lost(&self) {
        let mut tracker = self.lock_for_saving();
        tracker.losses += 1;
        let unlogged = tracker.mode == Mode::Unlogged;
        if matches!(tracker.mode, Mode::Logged | Mode::Starting) {
            end_stretch(&mut tracker, LOST);
        }
        tracker.suspect_unsynced();
        let bytes = tracker.dirty_bytes();
        tracing::warn!(
            disk = self.label(),
            cause = LOST,
            bytes,
            "what was not flushed will be compared with the vault"
        );
        if unlogged {
            let state = self.take_turn(&mut tracker);
            self.unlock(tracker);
            if let Err(error) = self.save(&state) {
                tracing::error!(disk = self.label(), %error, "that a client's flush has to fail cannot be recorded");
            }
            return;
        }
        // If it cannot be recorded, writes fail until it can; an open after our death compares all the same.
        let _ = self.switch_off(tracker);
    }
}

impl TrackedDisk {
    /// Hears of losses of the backing from now on.
    pub(crate) fn watch_backing(self: &Arc<Self>) {
        let watcher: Weak<Self> = Arc::downgrade(self);
        self.backing.watch(watcher);
    }

    /// A client wants what it has written to be durable, or to know that it is not.
    pub(super) fn flush_for_client(&self) -> io::Result<()> {
        // A loss while this one is under way is told by it, and by the next: it may have taken what came after this one.
        let losses = self.lock().losses;
        let synced = self.sync_backing();
        let told = {
            let mut tracker = self.lock();
            let news = tracker.told < losses;
            tracker.told = tracker.told.max(losses);
            news
        };
        if !told {
            return synced;
        }
        tracing::warn!(
            disk = self.label(),
            "a client was told that writes which it had not flushed may be lost"
        );
        let mut tracker = self.lock_for_saving();
        let state = self.take_turn(&mut tracker);
        self.unlock(tracker);
        if let Err(error) = self.save(&state) {
            // It will be told once more after a restart.
            tracing::debug!(disk = self.label(), %error, "that a client was told cannot be recorded");
        }
        Err(io::Error::other(LOST))
    }

    /// Looks which server answers now, for the state to say.
    pub(super) fn refresh_server(&self) {
        if self.backing.loses_alone() {
            let server = self.backing.server();
            self.lock().server = server;
        }
    }

    /// What to remember of a disk that does not tell when it was changed.
    pub(super) fn sample(&self) -> Option<Sample> {
        if self.backing.tells_changes() {
            return None;
        }
        let written: Vec<u64> = {
            let (tracker, mut at) = (self.lock(), 0);
            let next = std::iter::from_fn(|| {
                let (start, len) = tracker.dirty.next_run(at)?;
                at = start + len;
                Some(start)
            });
            next.take(64).filter(|start| *start < self.backing_size()).collect()
        };
        Sample::take(&*self.backing, written.into_iter())
            .inspect_err(
                |error| tracing::warn!(disk = self.label(), %error, "no sample of the disk could be taken"),
            )
            .ok()
    }
}

/// What the tracker of a disk that is opened must know of its backing, if that is not here.
pub(super) fn take_from_afar(tracker: &mut Tracker, backing: &dyn Backing, state: Option<&DiskState>) {
    tracker.server = backing.server();
    tracker.losses = u64::from(state.is_some_and(|state| has_untold_loss(state, backing, &tracker.server)));
    if state.is_none() && !backing.tells_changes() {
        tracing::warn!(
            disk = %backing.path().display(),
            "this disk does not tell when it was changed: changes behind Lifeboat's back are noticed only where a sample shows \
             them, at the next start; after one, run `lifeboat resync`"
        );
    }
}

/// Whether something that was not flushed may be gone, and its client does not know.
fn has_untold_loss(state: &DiskState, backing: &dyn Backing, server: &Option<String>) -> bool {
    let remembers = server.is_some() && *server == state.afar.server;
    state.afar.untold || (backing.loses_alone() && !state.clean && !remembers)
}
