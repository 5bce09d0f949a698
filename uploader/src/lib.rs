//! The vault: points, deltas, restore and the replication loop.

pub mod source;
