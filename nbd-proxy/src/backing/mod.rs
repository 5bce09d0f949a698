//! The real disk behind an export: a raw file, a block device, or what another NBD server has.
//!
//! [`RawDisk`] is one [`BlockDevice`](crate::device::BlockDevice) for both; `lock` keeps other writers out with QEMU's
//! own lock bytes; `sync` lets concurrent flushes share one fdatasync. [`upstream`] is an export of another NBD server.

mod lock;
mod raw;
mod runs;
mod sync;
pub mod upstream;

pub use lock::Access;
pub use raw::{Identity, RawDisk};

use std::io;
use std::path::Path;
use std::sync::Weak;

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

    /// The regular file that it is, if it is one.
    fn file(&self) -> Option<&Path> {
        Some(self.path())
    }

    /// Whether its identity is another one after somebody else has written to it.
    fn tells_changes(&self) -> bool {
        true
    }

    /// Whether it can lose what was not flushed while this host goes on.
    fn loses_alone(&self) -> bool {
        false
    }

    /// If it can: names what remembers what was not flushed, if that has a name. The same name means that nothing is lost.
    fn server(&self) -> Option<String> {
        None
    }

    /// Who is to hear of such a loss.
    fn watch(&self, _: Weak<dyn Watcher>) {}

    /// What is wrong with it now, for people.
    fn trouble(&self) -> Option<String> {
        None
    }
}

/// Hears that a backing may have lost what was not flushed.
pub trait Watcher: Send + Sync + std::fmt::Debug {
    /// It may have. Called before the backing answers anything again; must not use it.
    fn power_lost(&self);
}

/// The error of a request that no disk has failed: the disk could not be reached, or lost its power on the way. A sync that ends
/// so has made nothing durable, and a later one may.
#[derive(Debug)]
pub struct Lost(String);

impl Lost {
    fn error(message: &str) -> io::Error {
        io::Error::other(Self(message.to_owned()))
    }

    /// Whether `error` is one.
    pub fn is(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Self>())
    }
}

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Lost {}

#[cfg(test)]
mod tests;
