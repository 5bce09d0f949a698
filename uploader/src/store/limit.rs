//! How fast a vault is written to, by the hour of the week: one limit for everything that a process writes.
//!
//! An object goes out in one request and cannot be slowed down on its way, so the limit is kept over time: whoever wants to write waits,
//! in turn, until what was written before is paid off at the rate of the hour, and then owes for his own. Over any stretch, no more than the
//! rate and one object beyond it goes out. A small object does not wait, it only owes: a point of 20 KB behind a
//! copy's 32 MiB would be late for nothing. The hour is looked at again while waiting, so that a limit ends when it says.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::ZonedDateTime;
use jiff::civil::{Time, Weekday};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::clock::Clock;

/// Objects up to this size do not wait.
const SMALL: u64 = 256 << 10;
/// How often those who wait look whether the hour has changed.
const LOOK: Duration = Duration::from_secs(5);

/// Hours of some days of the week, in local time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct When {
    /// The days; the hours belong to the day on which they begin.
    pub days: Vec<Weekday>,
    /// When they begin.
    pub from: Time,
    /// When they end; on the next day if that is not later.
    pub to: Time,
}

impl When {
    fn holds(&self, now: &ZonedDateTime) -> bool {
        let (today, time) = (now.weekday(), now.time());
        if self.from < self.to {
            return self.days.contains(&today) && (self.from..self.to).contains(&time);
        }
        let since_today = self.days.contains(&today) && time >= self.from;
        since_today || (self.days.contains(&today.previous()) && time < self.to)
    }
}

/// One line of the limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hours {
    /// When it holds; always if absent.
    pub when: Option<When>,
    /// Bytes a second; as many as can be if absent.
    pub rate: Option<u64>,
}

/// See the module.
#[derive(Debug)]
pub struct Limit {
    hours: Vec<Hours>,
    clock: Clock,
    turn: Semaphore,
    owed: Mutex<Owed>,
}

#[derive(Debug)]
struct Owed {
    bytes: f64,
    at: Instant,
}

impl Limit {
    /// The first of `hours` that holds counts; if none does there is no limit.
    pub fn new(hours: Vec<Hours>, clock: Clock) -> Self {
        let owed = Mutex::new(Owed { bytes: 0.0, at: Instant::now() });
        Self { hours, clock, turn: Semaphore::new(1), owed }
    }

    /// Waits until `bytes` may be written.
    pub async fn take(&self, bytes: u64) {
        if bytes <= SMALL {
            self.pay_off(self.rate(), Some(bytes));
            return;
        }
        // The semaphore is never closed.
        let _turn = self.turn.acquire().await;
        loop {
            let rate = self.rate();
            let Some(wait) = self.pay_off(rate, None) else {
                self.pay_off(rate, Some(bytes));
                return;
            };
            tokio::time::sleep(wait.min(LOOK)).await;
        }
    }

    /// Bytes a second now.
    fn rate(&self) -> Option<u64> {
        let now = self.clock.now();
        let holds = |hours: &&Hours| hours.when.as_ref().is_none_or(|when| when.holds(&now));
        self.hours.iter().find(holds)?.rate
    }

    /// Takes off what was paid at `rate` since the last time, and puts on `more`. How long until nothing is owed; `None` if nothing is.
    #[expect(clippy::cast_precision_loss, reason = "a byte more or less in 2^53")]
    fn pay_off(&self, rate: Option<u64>, more: Option<u64>) -> Option<Duration> {
        let mut owed = self.owed.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let paid = rate.map_or(f64::INFINITY, |rate| rate as f64 * (now - owed.at).as_secs_f64());
        owed.bytes = (owed.bytes - paid).max(0.0) + rate.map_or(0.0, |_| more.unwrap_or(0) as f64);
        owed.at = now;
        let wait = owed.bytes / rate.map_or(f64::INFINITY, |rate| rate.max(1) as f64);
        (wait > 0.0).then(|| Duration::try_from_secs_f64(wait).unwrap_or(Duration::MAX))
    }
}

#[cfg(test)]
mod tests;
