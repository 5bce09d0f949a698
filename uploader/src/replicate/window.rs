//! When whole compares may begin by themselves, and the clock that says so.

use std::fmt;
use std::sync::Arc;

use jiff::ZonedDateTime;
use jiff::civil::Time;

/// The hours of the day in which a whole compare may begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResyncWindow {
    /// All of them.
    #[default]
    Always,
    /// From one time of the day to another, maybe over midnight; never the same.
    Daily {
        /// When it opens.
        from: Time,
        /// When it closes.
        to: Time,
    },
}

impl ResyncWindow {
    /// When the window opens next; `None` if it is open.
    pub fn opens(&self, now: &ZonedDateTime) -> Option<ZonedDateTime> {
        let Self::Daily { from, to } = *self else { return None };
        let time = now.time();
        let open = if from < to { (from..to).contains(&time) } else { time >= from || time < to };
        if open {
            return None;
        }
        // A clock that is put forward over the opening opens it where it lands.
        let today = now.date().to_datetime(from).to_zoned_datetime(now.time_zone().clone()).ok();
        let tomorrow =
            || now.date().tomorrow().ok()?.to_datetime(from).to_zoned_datetime(now.time_zone().clone()).ok();
        today.filter(|today| today > now).or_else(tomorrow)
    }
}

type Tell = dyn Fn() -> ZonedDateTime + Send + Sync;

/// Tells the local time.
#[derive(Clone)]
pub struct Clock(Arc<Tell>);

impl Clock {
    /// A clock that asks `tell`.
    pub fn new(tell: impl Fn() -> ZonedDateTime + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }

    /// The local time.
    pub fn now(&self) -> ZonedDateTime {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

#[cfg(test)]
mod tests;
