//! Requests of any offset and length on a server that takes whole blocks only.
//!
//! A write of a part of a block is done as a read of the block, a change, and a write. Whoever does that must have the block for
//! itself: neighbours in one block may belong to two writes at a time. So every change holds the blocks that it touches, one range at
//! a time, and waits for whoever holds one of them.

use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The blocks that are being changed.
#[derive(Debug, Default)]
pub struct Held {
    ranges: Mutex<Vec<Range<u64>>>,
    released: Condvar,
}

/// The right to change a range; ends with the value.
#[derive(Debug)]
pub struct Hold<'a> {
    held: &'a Held,
    range: Range<u64>,
}

impl Held {
    /// Waits until nobody changes anything in `range`.
    pub fn take(&self, range: Range<u64>) -> Hold<'_> {
        let mut ranges = self.lock();
        while ranges.iter().any(|held| held.start < range.end && range.start < held.end) {
            ranges = self.released.wait(ranges).unwrap_or_else(PoisonError::into_inner);
        }
        ranges.push(range.clone());
        Hold { held: self, range }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Range<u64>>> {
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.held.lock().retain(|range| *range != self.range);
        self.held.released.notify_all();
    }
}

/// The whole blocks that `offset` and `len` touch.
pub fn around(offset: u64, len: u64, block: u64) -> Range<u64> {
    offset / block * block..(offset + len).next_multiple_of(block)
}

/// The whole blocks within; empty if there are none.
pub fn within(offset: u64, len: u64, block: u64) -> Range<u64> {
    let start = offset.next_multiple_of(block);
    start..((offset + len) / block * block).max(start)
}
