//! The real disk behind an export: a raw file or a block device.
//!
//! [`RawDisk`] is one [`BlockDevice`](crate::device::BlockDevice) for both; `lock` keeps other writers out with QEMU's
//! own lock bytes; `sync` lets concurrent flushes share one fdatasync.

mod lock;
mod raw;
mod sync;

pub use lock::Access;
pub use raw::{Identity, RawDisk};

#[cfg(test)]
mod tests;
