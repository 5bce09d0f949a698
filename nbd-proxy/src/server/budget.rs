//! Memory of connections: a share for each, handed out while it lasts.
//!
//! A connection works with a receive buffer, a reply buffer and a limit on what its slow requests may hold. All three
//! come in two sizes. Full shares are given while the budget lasts; connections beyond it get small ones and handle
//! big payloads in smaller pieces, so that the process stays within `budget + connections × small` however many clients
//! come. Buffers are touched lazily: a connection with small requests never costs its share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Sizes that a connection works with, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    /// Receive buffer.
    pub(super) inbox: usize,
    /// Largest piece of a read that is answered at once.
    pub(super) chunk: usize,
    /// Data that slow requests and unsent replies may hold.
    pub(super) in_flight: usize,
}

const FULL: Sizes = Sizes { inbox: 1 << 20, chunk: 1 << 20, in_flight: 4 << 20 };
const SMALL: Sizes = Sizes { inbox: 68 << 10, chunk: 32 << 10, in_flight: 96 << 10 };

impl Sizes {
    fn total(self) -> usize {
        self.inbox + self.chunk + self.in_flight
    }
}

/// What is left for full shares.
#[derive(Debug)]
pub(super) struct Budget(AtomicUsize);

impl Budget {
    /// A budget of so many bytes.
    pub(super) fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self(AtomicUsize::new(bytes)))
    }

    /// A full share if there is one left, else a small one.
    pub(super) fn share(self: &Arc<Self>) -> Share {
        let take = |left: usize| left.checked_sub(FULL.total());
        match self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, take) {
            Ok(_) => Share { sizes: FULL, from: Some(Arc::clone(self)) },
            Err(_) => Share { sizes: SMALL, from: None },
        }
    }
}

/// A connection's share; given back when dropped.
#[derive(Debug)]
pub(super) struct Share {
    /// What the connection may use.
    pub(super) sizes: Sizes,
    from: Option<Arc<Budget>>,
}

impl Drop for Share {
    fn drop(&mut self) {
        if let Some(budget) = &self.from {
            budget.0.fetch_add(self.sizes.total(), Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests;
