//! A raw file or block device as a [`BlockDevice`].
//!
//! Everything goes through the page cache: that is what makes a cached read one system call without waiting, and what
//! survives a kill of this process. `write_batch` gives adjacent writes to the kernel as one.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::{Errno, ReadWriteFlags};
use serde::{Deserialize, Serialize};

use super::Backing;
use super::lock::{self, Access};
use super::runs::Runs;
use super::sync::SharedSync;
use crate::device::{BlockDevice, Capabilities, Extent, Write, ZeroMode};
use crate::durable::{self, Op, Step};
use crate::log::segment::write_all_vectored_at;
use crate::{Error, Kind, Result};

/// Zeroes are written in pieces of this many bytes where the file system cannot make them itself.
const ZEROES: &[u8] = &[0; 64 << 10];
/// Slices per vectored write, below the kernel's limit of 1024.
const SLICES: usize = 512;

/// What tells one state of a backing from another while nobody of ours has it open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    device: u64,
    inode: u64,
    /// Size in bytes.
    pub size: u64,
    ctime: i64,
    ctime_nsec: i64,
}

impl Identity {
    /// Of a disk of which nothing but its size can be told.
    pub(super) fn of_size(size: u64) -> Self {
        Self { device: 0, inode: 0, size, ctime: 0, ctime_nsec: 0 }
    }

    /// Whether it was changed after `time`, in seconds of the Unix epoch, as far as that can be told.
    pub fn changed_after(&self, time: i64) -> bool {
        self.ctime > time
    }

    /// Whether it is the same file or device, whatever was written to it; devices are numbered anew if the host has `rebooted`.
    pub fn is_same_file(&self, other: &Self, rebooted: bool) -> bool {
        (rebooted || self.device == other.device) && (self.inode, self.size) == (other.inode, other.size)
    }

    /// Whether nothing but the device's number is different.
    pub fn is_same_but_device(&self, other: &Self) -> bool {
        Self { device: other.device, ..self.clone() } == *other
    }
}

/// The real disk behind an export.
#[derive(Debug)]
pub struct RawDisk {
    file: File,
    path: PathBuf,
    size: u64,
    access: Access,
    found: Identity,
    block_device: bool,
    /// The file system can punch holes.
    punch: bool,
    /// The file system can zero a range and keep it allocated.
    zero_range: bool,
    nowait: AtomicBool,
    sync: SharedSync,
    runs: Runs,
}

impl RawDisk {
    /// Opens and locks the disk at `path`.
    ///
    /// # Errors
    /// `NotFound`, `Denied`, `InUse` (QEMU or another Lifeboat has it), `InvalidInput` (a folder, a pipe, an empty file).
    pub fn open(path: &Path, access: Access) -> Result<Self> {
        let file =
            File::options().read(true).write(access == Access::ReadWrite).open(path).map_err(|error| {
                let remedy = match error.kind() {
                    io::ErrorKind::IsADirectory => "name the disk image itself, not its folder",
                    io::ErrorKind::NotFound => {
                        "check the path, or create the image first (truncate -s SIZE FILE)"
                    }
                    _ => "check the owner and the mode of the image, or set read_only = true for this disk",
                };
                Error::io("open the disk", path, error).remedy(remedy)
            })?;
        let kind = file.metadata().map_err(|error| Error::io("look at the disk", path, error))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let what =
                if kind.is_dir() { "it is a folder" } else { "it is neither a file nor a block device" };
            return Err(Error::new(
                Kind::InvalidInput,
                path.display().to_string(),
                format!("cannot use as a disk: {what}"),
            )
            .remedy("name a raw disk image or a block device"));
        }
        lock::take(&file, path, access)?;
        // Seeking to the end gives the size of a block device too.
        let size = rustix::fs::seek(&file, SeekFrom::End(0))
            .map_err(|error| Error::io("find the size of the disk", path, error.into()))?;
        if size == 0 {
            return Err(Error::new(
                Kind::InvalidInput,
                path.display().to_string(),
                "cannot use as a disk: it is empty",
            )
            .remedy("give it a size first (truncate -s SIZE FILE)"));
        }
        let block_device = kind.is_block_device();
        // The identity is taken first: the look at what fallocate can do may touch the change time.
        let found = identity(&file, path, size, block_device)?;
        let writable = access == Access::ReadWrite;
        Ok(Self {
            punch: writable && can_punch(&file, block_device, size),
            zero_range: writable && can_zero_range(&file, block_device),
            found,
            path: path.to_owned(),
            size,
            access,
            block_device,
            nowait: AtomicBool::new(true),
            sync: SharedSync::default(),
            runs: Runs::default(),
            file,
        })
    }

    /// Writes the slices from `offset` on as one piece.
    fn write_run(&self, slices: &mut [IoSlice<'_>], offset: u64, fua: bool) -> io::Result<()> {
        if !fua {
            return write_all_vectored_at(&self.file, slices, offset).map(drop);
        }
        self.sync.check()?;
        durable::take(Step::BackingWritten, Op::Sync, || self.write_durably(slices, offset)).inspect_err(
            |error| {
                if !is_refusal(error) {
                    self.sync.fail();
                }
            },
        )
    }

    fn write_durably(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut slices = slices;
        let mut at = offset;
        while !slices.is_empty() {
            match rustix::io::pwritev2(&self.file, slices, at, ReadWriteFlags::DSYNC) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    at += n as u64;
                    IoSlice::advance_slices(&mut slices, n);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn fallocate(&self, flags: FallocateFlags, offset: u64, len: u64) -> io::Result<()> {
        loop {
            match rustix::fs::fallocate(&self.file, flags, offset, len) {
                Err(Errno::INTR) => {}
                other => return other.map_err(io::Error::from),
            }
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let step = usize::try_from(end - at).unwrap_or(usize::MAX).min(ZEROES.len());
            self.file.write_all_at(&ZEROES[..step], at)?;
            at += step as u64;
        }
        Ok(())
    }

    fn data_from(&self, offset: u64) -> io::Result<u64> {
        match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Ok(at) => Ok(at.min(self.size)),
            Err(Errno::NXIO) => Ok(self.size),
            Err(error) => Err(error.into()),
        }
    }

    fn hole_from(&self, offset: u64) -> io::Result<u64> {
        match rustix::fs::seek(&self.file, SeekFrom::Hole(offset)) {
            Ok(at) => Ok(at.min(self.size)),
            Err(Errno::NXIO) => Ok(self.size),
            Err(error) => Err(error.into()),
        }
    }
}

impl Backing for RawDisk {
    fn path(&self) -> &Path {
        &self.path
    }

    fn found(&self) -> &Identity {
        &self.found
    }

    fn identity(&self) -> Result<Identity> {
        identity(&self.file, &self.path, self.size, self.block_device)
    }

    fn drop_cache(&self) {
        // Only clean pages go, which after a failed sync is all that were to be synced.
        let _ = rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed);
    }

    fn file(&self) -> Option<&Path> {
        (!self.block_device).then_some(&self.path)
    }

    fn tells_changes(&self) -> bool {
        !self.block_device
    }
}

impl BlockDevice for RawDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            read_only: self.access == Access::ReadOnly,
            trim: self.punch,
            // A block device may still refuse, and that must be known before anything is logged.
            fast_zero: self.punch && self.zero_range && !self.block_device,
            rotational: false,
            preferred_block: 4096,
        }
    }

    fn try_read(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        if !self.nowait.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let wanted = buf.len();
        match rustix::io::preadv2(&self.file, &mut [IoSliceMut::new(buf)], offset, ReadWriteFlags::NOWAIT) {
            Ok(n) => Ok(n == wanted),
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Err(Errno::OPNOTSUPP) => {
                self.nowait.store(false, Ordering::Relaxed);
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn write_batch(&self, writes: &[Write<'_>], results: &mut Vec<io::Result<()>>) {
        let mut rest = writes;
        while let Some(first) = rest.first() {
            let mut end = first.offset;
            let run = rest
                .iter()
                .take(SLICES)
                .take_while(|write| {
                    let joins = write.offset == end && write.fua == first.fua;
                    end += write.data.len() as u64;
                    joins
                })
                .count();
            let (now, later) = rest.split_at(run);
            let result = if let [only] = now
                && !only.fua
            {
                self.file.write_all_at(only.data, only.offset)
            } else {
                let mut slices: Vec<_> = now.iter().map(|write| IoSlice::new(write.data)).collect();
                self.write_run(&mut slices, first.offset, first.fua)
            };
            match result {
                Ok(()) => results.extend(now.iter().map(|_| Ok(()))),
                // Which of a run got through is unknown: each is tried, and fails or not, by itself.
                Err(_) if run > 1 => {
                    results.extend(now.iter().map(|write| {
                        self.write_run(&mut [IoSlice::new(write.data)], write.offset, write.fua)
                    }))
                }
                Err(error) => results.push(Err(error)),
            }
            rest = later;
        }
    }

    fn zero(&self, offset: u64, len: u64, mode: ZeroMode) -> io::Result<()> {
        let flags = FallocateFlags::KEEP_SIZE
            | match mode.punch {
                true => FallocateFlags::PUNCH_HOLE,
                false => FallocateFlags::ZERO_RANGE,
            };
        let able = if mode.punch { self.punch } else { self.zero_range };
        let made = if able { self.fallocate(flags, offset, len) } else { Err(Errno::OPNOTSUPP.into()) };
        match made {
            // A block device also refuses (EINVAL) ranges that are not aligned to its sectors.
            Err(error) if is_one_of(&error, &[Errno::OPNOTSUPP, Errno::INVAL]) && !mode.fast => {
                self.write_zeroes(offset, len)?;
            }
            other => other?,
        }
        self.runs.forget(offset, offset + len);
        if mode.fua { self.flush() } else { Ok(()) }
    }

    fn flush(&self) -> io::Result<()> {
        if self.access == Access::ReadOnly {
            return Ok(());
        }
        self.sync.flush(|| durable::sync(Step::BackingFlushed, &self.file))
    }

    fn extents(&self, offset: u64, len: u64, out: &mut Vec<Extent>) -> io::Result<()> {
        let end = offset + len;
        if self.block_device {
            out.push(Extent { offset, len, hole: false });
            return Ok(());
        }
        let mut at = offset;
        // A very fragmented range is answered in parts: the caller asks again.
        for _ in 0..4096 {
            if at >= end {
                break;
            }
            if let Some(known) = self.runs.end_of(at) {
                let stop = known.min(end);
                out.push(Extent { offset: at, len: stop - at, hole: false });
                at = stop;
                continue;
            }
            let data = self.data_from(at)?.min(end);
            if data > at {
                out.push(Extent { offset: at, len: data - at, hole: true });
                at = data;
                continue;
            }
            // The hole may have been filled, or the data punched, since: never an empty extent.
            let hole = self.hole_from(at)?.max(at + 1);
            self.runs.learn(at, hole);
            let hole = hole.min(end);
            out.push(Extent { offset: at, len: hole - at, hole: false });
            at = hole;
        }
        merge(out);
        Ok(())
    }

    fn cache(&self, offset: u64, len: u64) -> io::Result<()> {
        let len = std::num::NonZeroU64::new(len);
        rustix::fs::fadvise(&self.file, offset, len, rustix::fs::Advice::WillNeed).map_err(io::Error::from)
    }
}

/// Whether a durable write was refused as a write, rather than lost by a sync: that ends nothing for others.
fn is_refusal(error: &io::Error) -> bool {
    is_one_of(error, &[Errno::NOSPC, Errno::DQUOT, Errno::FBIG, Errno::INVAL])
}

fn is_one_of(error: &io::Error, errnos: &[Errno]) -> bool {
    errnos.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Joins adjacent extents of one status, which a change between two looks can leave.
fn merge(extents: &mut Vec<Extent>) {
    extents.dedup_by(|next, last| {
        let joins = last.hole == next.hole && last.offset + last.len == next.offset;
        if joins {
            last.len += next.len;
        }
        joins
    });
}

/// A block device has no change time that could be trusted; its identity is its number and size.
fn identity(file: &File, path: &Path, size: u64, block_device: bool) -> Result<Identity> {
    let meta = file.metadata().map_err(|error| Error::io("look at the disk", path, error))?;
    Ok(match block_device {
        true => Identity { device: meta.rdev(), inode: 0, size, ctime: 0, ctime_nsec: 0 },
        false => Identity {
            device: meta.dev(),
            inode: meta.ino(),
            size,
            ctime: meta.ctime(),
            ctime_nsec: meta.ctime_nsec(),
        },
    })
}

/// Whether holes can be punched. On a file, a range past the end is tried, which changes nothing.
fn can_punch(file: &File, block_device: bool, size: u64) -> bool {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    block_device || rustix::fs::fallocate(file, flags, size.next_multiple_of(4096), 4096).is_ok()
}

/// Whether the file system zeroes ranges: trying it past the end would leave blocks there, so the ones known to are named
/// (magic numbers of linux/magic.h: ext4, XFS, Btrfs).
fn can_zero_range(file: &File, block_device: bool) -> bool {
    const KNOWN: [i64; 3] = [0xEF53, 0x5846_5342, 0x9123_683E];
    block_device || rustix::fs::fstatfs(file).is_ok_and(|fs| KNOWN.contains(&fs.f_type))
}
