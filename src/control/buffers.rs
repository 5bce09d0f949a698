//! Buffers that are used again. What is read of a live disk comes in pieces of up to 1 MiB; a fresh buffer for each would cost about as
//! much, in page faults and zeroes, as the reading itself.
//!
//! At most [`KEPT`] buffers wait for their next use in each process; a lent one comes back when the last who holds its bytes drops them.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// How many are kept: as many as are read at the same time.
const KEPT: usize = 4;

static IDLE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// A buffer of a given length, with whatever it held before.
#[derive(Debug)]
pub struct Lent(Vec<u8>);

impl Lent {
    /// A buffer of `len` bytes, all of which are to be overwritten.
    pub fn new(len: usize) -> Self {
        let mut buffer = idle().pop().unwrap_or_default();
        buffer.resize(len, 0);
        Self(buffer)
    }

    /// The buffer, as bytes that may be shared.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }

    /// The buffer, to be filled.
    pub fn as_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut idle = idle();
        if idle.len() < KEPT {
            idle.push(std::mem::take(&mut self.0));
        }
    }
}

fn idle() -> MutexGuard<'static, Vec<Vec<u8>>> {
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}
