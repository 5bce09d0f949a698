//! When whole compares may begin by themselves.

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

#[cfg(test)]
mod tests;
