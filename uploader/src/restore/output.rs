//! A disk's file while it is being restored.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use nbd_proxy::durable::{self, Step};
use nbd_proxy::{Error, Kind, Result};
use rustix::fs::FlockOperation;
use sha2::{Digest as _, Sha256};

use super::{final_path, taken};
use crate::digest;

/// See the module above: a partial file, locked, until it is published; removed when dropped before that.
pub(super) struct Output {
    pub name: String,
    pub path: PathBuf,
    pub size: u64,
    partial: PathBuf,
    file: File,
    published: AtomicBool,
}

impl Output {
    /// Begins the file of `disk`; what an earlier restore left of it is replaced.
    pub fn create(folder: &Path, disk: &str, size: u64) -> Result<Self> {
        let partial = folder.join(format!(".{disk}.raw.partial"));
        let file = loop {
            let open = durable::open_or_create(Step::RestoreMade, &partial);
            let file = open.map_err(|e| Error::io("create", &partial, e))?;
            if let Some(file) = lock(file, &partial)? {
                break file;
            }
        };
        let output = Self {
            name: disk.to_owned(),
            path: final_path(folder, disk),
            size,
            partial,
            file,
            published: AtomicBool::new(false),
        };
        output
            .file
            .set_len(0)
            .and_then(|()| output.file.set_len(size))
            .map_err(|e| output.failed("size", e))?;
        Ok(output)
    }

    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.file.write_all_at(bytes, offset).map_err(|e| self.failed("write", e))
    }

    /// SHA-256 of the whole file, read back.
    pub fn sha256(&self) -> Result<String> {
        let mut file = &self.file;
        file.seek(SeekFrom::Start(0)).map_err(|e| self.failed("read back", e))?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer).map_err(|e| self.failed("read back", e))? {
                0 => break,
                n => hasher.update(&buffer[..n]),
            }
        }
        Ok(digest::hex(&hasher.finalize()))
    }

    /// Makes the file durable and gives it its name.
    pub fn publish(&self, force: bool) -> Result<()> {
        durable::sync(Step::RestoreSynced, &self.file).map_err(|e| self.failed("sync", e))?;
        let rename = if force { durable::rename } else { durable::rename_to_new };
        match rename(Step::RestoreNamed, &self.partial, &self.path) {
            Ok(()) => self.published.store(true, Relaxed),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Err(taken(&self.path)),
            Err(e) => return Err(Error::io("rename to", &self.path, e)),
        }
        durable::sync_name(Step::RestoreKept, &self.path)
            .map_err(|e| Error::io("sync the folder of", &self.path, e))
    }

    fn failed(&self, what: &str, error: io::Error) -> Error {
        let error = Error::io(what, &self.partial, error);
        if error.kind == Kind::NoSpace {
            error.remedy("make room, or restore to another folder")
        } else {
            error
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if !self.published.load(Relaxed) {
            // Nothing depends on it: what stays is replaced by the next restore.
            let _ = durable::remove(Step::RestoreGivenUp, &self.partial);
        }
    }
}

/// Locks the partial file, unless that is not its name any more: between opening and locking another restore may have
/// published, or removed, the file. What is published must never be touched again.
fn lock(file: File, partial: &Path) -> Result<Option<File>> {
    if let Err(e) = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        let message = "another restore to this folder is running";
        return Err(
            Error::new(Kind::InUse, partial.display().to_string(), message).source(io::Error::from(e))
        );
    }
    let locked = file.metadata().map_err(|e| Error::io("look at", partial, e))?;
    match fs::symlink_metadata(partial) {
        Ok(named) if (named.dev(), named.ino()) == (locked.dev(), locked.ino()) => Ok(Some(file)),
        Ok(_) => Ok(None),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("look at", partial, e)),
    }
}

/// Refuses early what cannot fit.
pub(super) fn check_space(folder: &Path, needed: u64) -> Result<()> {
    let stat =
        rustix::fs::statvfs(folder).map_err(|e| Error::io("ask for free space in", folder, e.into()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free >= needed {
        return Ok(());
    }
    let message = format!("has {} MiB free, the restore writes {} MiB", free >> 20, needed.div_ceil(1 << 20));
    let remedy = "make room, or restore to another folder";
    Err(Error::new(Kind::NoSpace, folder.display().to_string(), message).remedy(remedy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_published_before_we_locked_it_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let partial = dir.path().join(".a.raw.partial");
        let first = Output::create(dir.path(), "a", 3).unwrap();
        first.write_at(b"abc", 0).unwrap();
        // Another restore has opened the file, and is slow to lock it.
        let late = || File::options().read(true).write(true).open(&partial).unwrap();
        let (opened, reopened) = (late(), late());
        assert_eq!(lock(opened, &partial).unwrap_err().kind, Kind::InUse);
        first.publish(false).unwrap();
        drop(first);
        assert!(lock(reopened.try_clone().unwrap(), &partial).unwrap().is_none(), "the name is gone");
        drop(reopened);
        let second = Output::create(dir.path(), "a", 5).unwrap();
        let published = File::open(dir.path().join("a.raw")).unwrap();
        assert!(lock(published, &partial).unwrap().is_none(), "the name is another file's");
        drop(second);
        assert_eq!(fs::read(dir.path().join("a.raw")).unwrap(), b"abc");
    }
}
