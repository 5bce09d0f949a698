//! What an error means for the next attempt: when it is, or that there is none before an operator has acted.
//!
//! [`Error::is_transient`] is the list of what a later attempt may find mended; it is retried for ever, after the configured gaps,
//! the last of which repeats. Everything else stops replication: trying again what cannot mend itself would only hide it.
//! Two errors are in between:
//!
//! * *Denied*: credentials expire and are renewed. The vault is opened anew at once, which loads them again; if that is denied too,
//!   it is final. Once is once in [`RELOAD_AGAIN`], for a long copy outlives many tokens.
//! * A store that *asks to be left alone* for longer than the gap is left alone for so long.

use std::time::Duration;

use nbd_proxy::{Error, Kind};

use crate::store;

/// A refusal so long after credentials were loaded again is another one: no token lives shorter.
const RELOAD_AGAIN: Duration = Duration::from_secs(10 * 60);

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Try again after so long.
    In(Duration),
    /// Wait for an operator.
    Stop,
}

/// Attempts that failed in a row.
#[derive(Debug)]
pub(super) struct Retry {
    gaps: Vec<Duration>,
    failures: usize,
    /// When credentials were last loaded again after a refusal.
    reloaded: Option<Duration>,
}

impl Retry {
    pub fn new(gaps: Vec<Duration>) -> Self {
        Self { gaps, failures: 0, reloaded: None }
    }

    /// How many attempts have failed in a row.
    pub fn failures(&self) -> usize {
        self.failures
    }

    /// An attempt went well, or somebody asked for one: all begins anew.
    pub fn begin_again(&mut self) {
        self.failures = 0;
        self.reloaded = None;
    }

    /// An attempt failed at `now`.
    pub fn after(&mut self, error: &Error, now: Duration) -> Next {
        if error.kind == Kind::Denied
            && self.reloaded.is_none_or(|last| now.saturating_sub(last) >= RELOAD_AGAIN)
        {
            self.reloaded = Some(now);
            return Next::In(Duration::ZERO);
        }
        if !error.is_transient() {
            return Next::Stop;
        }
        let gap = self.gaps.get(self.failures).or(self.gaps.last()).copied().unwrap_or(RELOAD_AGAIN);
        self.failures += 1;
        Next::In(gap.max(store::asked_to_wait(error).unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests;
