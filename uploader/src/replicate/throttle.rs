//! How fast live disks are read for copying: a bucket that fills at the limit's rate and may be overdrawn by one piece.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What an idle while saves up.
const BURST: Duration = Duration::from_millis(100);

/// See the module.
#[derive(Debug)]
pub(super) struct Throttle {
    /// Bytes a second.
    limit: Option<u64>,
    /// When the bucket is, or was, paid off.
    even: Mutex<Instant>,
}

impl Throttle {
    pub fn new(limit: Option<u64>) -> Self {
        Self { limit, even: Mutex::new(Instant::now()) }
    }

    /// Waits until `bytes` may be read.
    pub async fn take(&self, bytes: u64) {
        if let Some(until) = self.due(bytes, Instant::now()) {
            tokio::time::sleep_until(until.into()).await;
        }
    }

    /// When `bytes` that are wanted at `now` may be read; `None` if at once.
    fn due(&self, bytes: u64, now: Instant) -> Option<Instant> {
        let limit = self.limit?;
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(limit.max(1));
        let takes = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let mut even = self.even.lock().unwrap_or_else(PoisonError::into_inner);
        let start = (*even).max(now.checked_sub(BURST).unwrap_or(now));
        *even = start + takes;
        (start > now).then_some(start)
    }
}

#[cfg(test)]
mod tests;
