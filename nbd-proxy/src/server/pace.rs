//! What a small write costs lately, and so whether a batch is worth spreading over processors.

use std::time::Duration;

/// Handing work to another thread pays off from this cost of a single write on.
const WORTHWHILE: u64 = 15_000;
/// No lane gets fewer writes.
const MIN_WRITES: usize = 2;

/// A moving average of the cost of one write.
#[derive(Debug, Default)]
pub(super) struct Pace {
    nanos: u64,
}

impl Pace {
    /// `count` writes took so long.
    pub(super) fn note(&mut self, took: Duration, count: usize) {
        let count = u64::try_from(count.max(1)).unwrap_or(u64::MAX);
        let each = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX) / count;
        // A single stall must not decide: what one batch can add is bounded.
        self.nanos = (self.nanos * 7 + each.min(8 * WORTHWHILE)) / 8;
    }

    /// How many threads should share a batch of `count` writes, at most `limit`.
    pub(super) fn lanes(&self, count: usize, limit: usize) -> usize {
        if self.nanos < WORTHWHILE {
            return 1;
        }
        limit.min(count / MIN_WRITES).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_costly_writes_are_spread() {
        let mut pace = Pace::default();
        assert_eq!(pace.lanes(16, 4), 1);
        (0..30).for_each(|_| pace.note(Duration::from_micros(16 * 3), 16));
        assert_eq!(pace.lanes(16, 4), 1, "3 us each");
        pace.note(Duration::from_secs(1), 1);
        assert_eq!(pace.lanes(16, 4), 4, "a stall counts");
        (0..5).for_each(|_| pace.note(Duration::from_micros(3), 1));
        assert_eq!(pace.lanes(16, 4), 1, "but not for long");
        (0..30).for_each(|_| pace.note(Duration::from_micros(16 * 50), 16));
        assert_eq!([1, 3, 4, 16].map(|count| pace.lanes(count, 4)), [1, 1, 2, 4]);
    }
}
