//! Keeps the intent map on disk ahead of the writes and, later, behind them; see `intent` for the rules.
//!
//! Whoever finds regions unmarked saves the map, with what others wait for as well; they look again when it is done. If
//! the map cannot be saved, the disk goes on without it only when the next open will know: that is a change of mode, made durable
//! like the others (`switch`), and writes wait for it.
//!
//! [`TrackedDisk::tick`] is called every second or two: it looks after the folder (`relocate`), renews the stamp while writes go on, so that they need not, and clears what need not be marked any more.

use std::io;
use std::ops::Range;
use std::sync::MutexGuard;
use std::time::{Duration, Instant, SystemTime};

use super::TrackedDisk;
use super::intent::Marks;
use super::tracker::Tracker;
use crate::backing::Lost;

/// How often regions are cleared. One that was written in between stays: marking it again would cost the guest a sync.
const CLEAR_EVERY: Duration = Duration::from_secs(30);

impl TrackedDisk {
    /// Waits until the intent of writing to `ranges` may be durable; the caller looks again.
    pub(super) fn mark_intent<'a>(
        &'a self,
        mut tracker: MutexGuard<'a, Tracker>,
        ranges: &[Range<u64>],
        now: i64,
    ) -> io::Result<MutexGuard<'a, Tracker>> {
        ranges.iter().for_each(|range| tracker.intent.want(range));
        match tracker.intent.begin_save(now) {
            Some(marks) => {
                self.unlock(tracker);
                self.save_intent(marks)?;
                Ok(self.lock())
            }
            None if tracker.intent.trust() == super::intent::Trust::Lost => {
                self.unlock(tracker);
                self.stop_logging(LOST)?;
                Ok(self.lock())
            }
            None => Ok(self.wait(tracker)),
        }
    }

    /// Marks every region; durable on return.
    pub(super) fn mark_all(&self) -> io::Result<()> {
        let all = vec![Range { start: 0, end: self.backing.size() }];
        let mut tracker = self.lock();
        while !tracker.intent.allows(all.iter().cloned(), unix_now()) {
            tracker = self.mark_intent(tracker, &all, unix_now())?;
        }
        Ok(())
    }

    /// Syncs the backing; what was written before may lose its mark once the vault has it.
    pub(super) fn sync_backing(&self) -> io::Result<()> {
        let sync = {
            let mut tracker = self.lock();
            if tracker.intent.sync_failed() {
                return Err(io::Error::other(
                    "an earlier sync of this disk failed; what it covered may be lost",
                ));
            }
            tracker.intent.begin_sync()
        };
        let synced = self.backing.flush();
        let mut tracker = self.lock();
        let first = if synced.as_ref().is_err_and(Lost::is) {
            tracker.intent.abandon_sync(sync);
            false
        } else {
            tracker.intent.end_sync(sync, synced.is_ok())
        };
        self.unlock(tracker);
        if first {
            self.note_failed_sync();
        }
        synced
    }

    /// Regular work; call it every second or two. `now` is monotonic.
    pub(crate) fn tick(&self, now: Instant) {
        self.watch_folder();
        let clear = {
            let mut tracker = self.lock();
            let due = tracker.last_clear.is_none_or(|last| now.duration_since(last) >= CLEAR_EVERY);
            if due {
                tracker.last_clear = Some(now);
            }
            due
        };
        self.refresh_server();
        if clear {
            self.clear_intent();
        }
        let unix = unix_now();
        let marks = {
            let mut tracker = self.lock();
            if tracker.intent.ends_soon(unix) { tracker.intent.begin_save(unix) } else { None }
        };
        // If it fails, the next write says so.
        let _ = marks.map(|marks| self.save_intent(marks));
    }

    /// Takes the mark off regions that have been idle since the last time, are synced and are in the vault.
    pub(crate) fn clear_intent(&self) {
        if self.lock().intent.waits_for_sync() {
            // The guest may never flush. A failure is told by its next flush.
            let _ = self.sync_backing();
        }
        let marks = self.lock().begin_clear(unix_now());
        let _ = marks.map(|marks| self.save_intent(marks));
    }

    /// Tries to keep a map again where writes went on without one: whatever was written meanwhile, all of it is marked.
    pub(super) fn restore_intent(&self) {
        let marks = self.lock().intent.begin_restore(self.backing.size(), unix_now());
        let Some(marks) = marks else { return };
        let saved = self.intent.write(&marks);
        let mut tracker = self.lock();
        tracker.intent.end_save(marks, saved.is_ok());
        self.unlock(tracker);
        if let Err(error) = saved {
            tracing::warn!(disk = self.label(), %error, "still without an intent map: after a power loss the whole disk is compared");
        }
    }

    fn save_intent(&self, marks: Marks) -> io::Result<()> {
        let saved = self.intent.write(&marks);
        let mut tracker = self.lock();
        tracker.intent.end_save(marks, saved.is_ok());
        self.unlock(tracker);
        match saved {
            Ok(()) => Ok(()),
            Err(error) => {
                tracing::error!(disk = self.label(), %error, "the intent map cannot be written");
                self.stop_logging(LOST)
            }
        }
    }

    /// Makes it durable, as well as can be, that the page cache may show what is not on the disk.
    fn note_failed_sync(&self) {
        tracing::error!(disk = self.label(), "a sync of the disk failed: its flushes fail from now on");
        let mut tracker = self.lock_for_saving();
        let state = self.take_turn(&mut tracker);
        self.unlock(tracker);
        if let Err(error) = self.save(&state) {
            tracing::error!(disk = self.label(), %error, "the failed sync cannot be recorded");
        }
    }
}

#[cfg(feature = "measure")]
impl TrackedDisk {
    /// Goes on without an intent map, which is durably known: what it costs can be measured so. A sync that begins restores it.
    ///
    /// # Errors
    /// That cannot be made durable.
    pub fn forgo_intent_map(&self) -> crate::Result<()> {
        let mut tracker = self.lock_for_saving();
        tracker.intent.set_trust(super::intent::Trust::Forgone);
        let state = self.take_turn(&mut tracker);
        self.unlock(tracker);
        self.save(&state)
    }
}

const LOST: &str = "the intent map cannot be written";

/// Seconds of the Unix epoch, by the clock that change times are taken from.
pub(super) fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
