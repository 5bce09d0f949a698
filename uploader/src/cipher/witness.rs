//! Watches every unit that any test seals: a nonce that meets its key twice for different content ends the test there and
//! then. What GCM keeps secret, and what its tags are worth, both rest on that never happening.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use crate::digest::Digest;

static SEEN: LazyLock<Mutex<HashMap<(Digest, u64), Digest>>> = LazyLock::new(Mutex::default);

/// The unit `number` was sealed under `key`.
pub(super) fn saw(key: Digest, number: u64, content: &[u8]) {
    let content = Digest::of(content);
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    let first = *seen.entry((key, number)).or_insert(content);
    assert_eq!(first, content, "two contents were sealed under one key and one nonce, as unit {number}");
}

/// How many units all tests of this process have sealed so far.
pub(super) fn count() -> usize {
    SEEN.lock().unwrap_or_else(PoisonError::into_inner).len()
}
