//! The real disk behind an export: a raw file or a block device.
//!
//! [`RawDisk`] is one [`BlockDevice`](crate::device::BlockDevice) for both; `lock` keeps other writers out with QEMU's
//! own lock bytes; `sync` lets concurrent flushes share one fdatasync.

mod lock;
mod raw;
mod runs;
mod sync;

pub use lock::Access;
pub use raw::{Identity, RawDisk};

use std::path::Path;

use crate::Result;
use crate::device::BlockDevice;

/// A device that is somebody's real disk: tracking needs to tell its states apart.
pub trait Backing: BlockDevice + std::fmt::Debug {
    /// Where it is, for messages.
    fn path(&self) -> &Path;

    /// What told its state from others when it was opened.
    fn found(&self) -> &Identity;

    /// What tells its present state from others.
    fn identity(&self) -> Result<Identity>;

    /// Has later reads come from the disk rather than from memory, as far as can be: after a failed sync they may differ.
    fn drop_cache(&self);
}

#[cfg(test)]
mod tests;
