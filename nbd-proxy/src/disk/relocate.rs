//! The folder of the change log goes away under a running proxy: deleted, renamed, or its file system unmounted.
//!
//! What is open stays writable, but the next open will not find it: what is recorded there would be lost, or, worse, an older
//! state would be found in its place. So once the path does not lead to the open state file any more:
//! 1. logging stops, for its segments cannot be handed on;
//! 2. the old place is told that nothing in it counts, for it may come back. If it cannot be told, a note beside the image says
//!    so, and stays for as long as this proxy runs;
//! 3. the folder is made again, with the intent map and then the state, both synced before a write goes on.
//!
//! Killed after 1 or 2: the next open finds no state, one that does not count, or the note: the whole disk is compared. After 3: the
//! marked regions are. If the folder cannot be made, the note beside the image is what the next open reads (see `switch`).
//!
//! It is looked at every second or two, and whenever the state is written.

use std::fs;
use std::sync::atomic::Ordering;

use super::TrackedDisk;
use super::mark::unix_now;
use super::state::DiskState;
use crate::durable::{self, Step};
use crate::{Error, Result};

const GONE: &str = "the folder of the change log was removed or replaced";

impl TrackedDisk {
    /// Notices that the folder is gone. Call it every second or two.
    pub(super) fn watch_folder(&self) {
        if self.state.is_in_place() || self.forsaken.load(Ordering::Relaxed) {
            return;
        }
        if self.stop_logging(GONE).is_err() || self.state.is_in_place() {
            return;
        }
        // It went without a log already.
        let mut tracker = self.lock_for_saving();
        let state = self.take_turn(&mut tracker);
        self.unlock(tracker);
        if let Err(error) = self.save(&state) {
            tracing::error!(disk = self.label(), %error, "{GONE}, and cannot be made again");
        }
    }

    /// Makes `state` durable where the next open reads it. The caller has the turn to write it.
    pub(super) fn record(&self, state: &DiskState) -> Result<()> {
        if self.state.is_in_place() {
            return self.state.write(state);
        }
        let void = DiskState { logged: false, intent: false, clean: false, ..state.clone() };
        if let Err(error) = self.state.write(&void) {
            self.forsaken.store(true, Ordering::Relaxed);
            self.void(&error)?;
        }
        let dir = self.folder.path();
        tracing::warn!(disk = self.label(), folder = %dir.display(), "{GONE}; it is made again");
        self.make_folder().map_err(|error| {
            Error::io("make the change log's folder again", dir, error)
                .remedy("set log_dir to a folder on a local file system that stays, and restart the proxy")
        })?;
        self.ends.remake()?;
        self.remake_intent()?;
        self.state.remake(state)?;
        self.folder.sync()
    }

    /// Its three levels, inside a folder that must exist; see `recover`.
    fn make_folder(&self) -> std::io::Result<()> {
        let dir = self.folder.path();
        let mut above: Vec<_> = dir.ancestors().skip(1).take(3).collect();
        // Where the folder that the user named is gone, another must not take its place.
        above.last().map_or(Ok(()), |named| fs::metadata(named).map(drop))?;
        durable::make_folder(Step::FolderRemade, dir)?;
        above.reverse();
        above.into_iter().try_for_each(|level| durable::sync_folder(Step::FolderNamed, level))
    }

    /// The map goes along, unless it was given up.
    fn remake_intent(&self) -> Result<()> {
        let mut tracker = self.lock();
        while tracker.intent.is_saving() {
            tracker = self.wait(tracker);
        }
        let Some(marks) = tracker.intent.begin_save(unix_now()) else { return Ok(()) };
        self.unlock(tracker);
        let remade = self.intent.remake(&marks);
        let mut tracker = self.lock();
        tracker.intent.end_save(marks, remade.is_ok());
        self.unlock(tracker);
        remade
    }

    /// Takes the note beside the image away, unless it has to warn of a place that may come back.
    pub(super) fn lift_void(&self) -> Result<()> {
        match &self.void {
            Some(void) if !self.forsaken.load(Ordering::Relaxed) => void.lift(),
            _ => Ok(()),
        }
    }
}
