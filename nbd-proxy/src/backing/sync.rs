//! Concurrent flushes share one fdatasync.
//!
//! A flush may be served by a sync only if that sync *began* after the flush arrived, else a write acknowledged in between
//! would be missed. So: whoever arrives while a sync runs waits for the next one; all who wait share it.
//!
//! A failed sync is final: the kernel reports an error once and then forgets which pages it was about, so a later
//! success would be a lie. From then on every flush fails.

use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default)]
struct State {
    /// Syncs begun so far.
    begun: u64,
    /// Syncs ended so far; `begun - ended` is 0 or 1.
    ended: u64,
    failed: bool,
}

/// Shares syncs among the flushes of one device.
#[derive(Debug, Default)]
pub struct SharedSync {
    state: Mutex<State>,
    ended: Condvar,
}

impl SharedSync {
    /// Returns when a sync that began after this call has ended well. `sync` is run by one of those who wait for it.
    pub fn flush(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut state = self.lock();
        let needed = state.begun + 1;
        while !state.failed && state.begun < needed && state.begun != state.ended {
            state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if !state.failed && state.begun < needed {
            return self.lead(state, sync);
        }
        while !state.failed && state.ended < needed {
            state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.failed { Err(failed()) } else { Ok(()) }
    }

    /// Fails if an earlier sync did.
    pub fn check(&self) -> io::Result<()> {
        if self.lock().failed { Err(failed()) } else { Ok(()) }
    }

    /// Makes every flush from now on fail.
    pub fn fail(&self) {
        self.lock().failed = true;
        self.ended.notify_all();
    }

    fn lead(
        &self,
        mut state: MutexGuard<'_, State>,
        sync: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        state.begun += 1;
        drop(state);
        let result = sync();
        let mut state = self.lock();
        state.ended += 1;
        state.failed |= result.is_err();
        self.ended.notify_all();
        result
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn failed() -> io::Error {
    io::Error::other("an earlier sync of this disk failed; what it covered may be lost")
}
