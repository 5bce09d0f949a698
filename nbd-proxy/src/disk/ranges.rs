//! Writes in flight, so that overlapping ones go one after another: log order and disk order must agree.
//!
//! The list is short (a VM has a few dozen writes in flight), so a plain scan beats a tree.

use std::ops::Range;

/// One admission: the ranges of a batch, taken together or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// The ranges being written now.
#[derive(Debug, Default)]
pub struct Ranges {
    held: Vec<(Range<u64>, Ticket)>,
    next: u64,
}

impl Ranges {
    /// Whether any of `wanted` overlaps a write in flight.
    pub fn conflicts(&self, mut wanted: impl Iterator<Item = Range<u64>>) -> bool {
        !self.held.is_empty()
            && wanted.any(|w| self.held.iter().any(|(h, _)| w.start < h.end && h.start < w.end))
    }

    /// Takes `wanted`, which must not conflict.
    pub fn take(&mut self, wanted: impl Iterator<Item = Range<u64>>) -> Ticket {
        let ticket = Ticket(self.next);
        self.next += 1;
        self.held.extend(wanted.map(|range| (range, ticket)));
        ticket
    }

    /// Gives a ticket's ranges back.
    pub fn release(&mut self, ticket: Ticket) {
        self.held.retain(|(_, holder)| *holder != ticket);
    }

    /// Everything being written now.
    pub fn held(&self) -> impl Iterator<Item = &Range<u64>> {
        self.held.iter().map(|(range, _)| range)
    }

    /// The ticket that the next admission will get: every earlier one is smaller.
    pub fn horizon(&self) -> Ticket {
        Ticket(self.next)
    }

    /// Whether every admission before `horizon` has been released.
    pub fn drained(&self, horizon: Ticket) -> bool {
        self.held.iter().all(|(_, holder)| *holder >= horizon)
    }
}
