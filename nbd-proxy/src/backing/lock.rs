//! Keeps a second writer off a disk image, in the way QEMU does, so that each sees the other.
//!
//! QEMU's file driver (block/file-posix.c, "RAW_LOCK_PERM_BASE") places open-file-description read locks on single bytes:
//! byte 100 + p says "I use permission p", byte 200 + p says "I do not share permission p". Whoever opens an image
//! first takes its own bytes and then looks whether somebody holds a byte that conflicts; both sides do both, so at least one of two
//! simultaneous openers sees the other. The locks belong to the descriptor that does the I/O and die with it: a kill -9 leaves none.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::{Error, Kind, Result};

/// What this process wants to do with an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read it, and let others write.
    ReadOnly,
    /// Write it, and let nobody else write or resize.
    ReadWrite,
}

const USED: i64 = 100;
const UNSHARED: i64 = 200;
/// QEMU's permission bits: consistent read, write, write unchanged, resize.
const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// Takes the lock bytes for `access` on `file`, which is open at `path`.
///
/// # Errors
/// `InUse` if another process holds a conflicting one.
pub fn take(file: &File, path: &Path, access: Access) -> Result<()> {
    let (used, unshared): (&[i64], &[i64]) = match access {
        Access::ReadOnly => (&[CONSISTENT_READ], &[]),
        Access::ReadWrite => (&[CONSISTENT_READ, WRITE], &[WRITE, RESIZE]),
    };
    let mine = used.iter().map(|p| USED + p).chain(unshared.iter().map(|p| UNSHARED + p));
    for byte in mine {
        let lock = byte_lock(byte, libc::F_RDLCK);
        fcntl(file, FcntlArg::F_OFD_SETLK(&lock))
            .map_err(|error| Error::io("lock the disk", path, std::io::Error::from(error)))?;
    }
    let theirs = used.iter().map(|p| UNSHARED + p).chain(unshared.iter().map(|p| USED + p));
    for byte in theirs {
        let mut lock = byte_lock(byte, libc::F_WRLCK);
        fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock))
            .map_err(|error| Error::io("look at the locks of the disk", path, std::io::Error::from(error)))?;
        if i32::from(lock.l_type) != libc::F_UNLCK {
            return Err(in_use(path, holder(file)));
        }
    }
    if access == Access::ReadWrite && is_block_device(file) {
        exclude_mounts(path)?;
    }
    Ok(())
}

fn in_use(path: &Path, holder: Option<String>) -> Error {
    let holder = holder.unwrap_or_else(|| "another process (QEMU, qemu-nbd or another Lifeboat)".to_owned());
    Error::new(Kind::InUse, path.display().to_string(), format!("cannot lock the disk: {holder} has it open"))
        .remedy("stop the VM or tool that uses the image directly, and attach it through Lifeboat's export")
}

/// Who holds lock bytes of the file, as far as this user may see. The kernel does not say who holds these locks, but each descriptor
/// says which locks it has.
fn holder(file: &File) -> Option<String> {
    let ours = file.metadata().ok()?;
    let myself = (std::process::id().to_string(), file.as_raw_fd().to_string());
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let pid = process.file_name().to_string_lossy().into_owned();
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else { continue };
        for descriptor in descriptors.flatten() {
            let fd = descriptor.file_name().to_string_lossy().into_owned();
            let same = fs::metadata(descriptor.path())
                .is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino()));
            let info = || fs::read_to_string(process.path().join("fdinfo").join(&fd)).unwrap_or_default();
            if same && (&pid, &fd) != (&myself.0, &myself.1) && info().contains("OFDLCK") {
                let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                return Some(format!("process {pid} ({})", name.trim_end()));
            }
        }
    }
    None
}

/// A mounted block device, or one that is part of an array, refuses an exclusive open.
fn exclude_mounts(path: &Path) -> Result<()> {
    use rustix::fs::{Mode, OFlags};
    match rustix::fs::open(path, OFlags::RDWR | OFlags::EXCL | OFlags::CLOEXEC, Mode::empty()) {
        Ok(_) => Ok(()),
        Err(rustix::io::Errno::BUSY) => Err(in_use(path, None)),
        Err(error) => Err(Error::io("open the block device exclusively", path, error.into())),
    }
}

fn is_block_device(file: &File) -> bool {
    use std::os::unix::fs::FileTypeExt;
    file.metadata().is_ok_and(|meta| meta.file_type().is_block_device())
}

fn byte_lock(byte: i64, kind: i32) -> libc::flock {
    libc::flock {
        l_type: i16::try_from(kind).unwrap_or_default(),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}
