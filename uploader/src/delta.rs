//! Deltas: the packed changes between two cuts, in one object for all disks of a machine.
//!
//! [`format`](mod@format) is the byte table, [`writer`] packs, [`reader`] reads. Frames are compressed and hashed on all cores by
//! `pool`.

pub mod format;
pub mod reader;
pub mod writer;

mod pool;

pub use format::{Extent, Frame, Index, IndexRef};
pub use writer::{DeltaWriter, Encoded};

#[cfg(test)]
mod tests;
