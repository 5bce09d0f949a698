//! The folder that holds a disk's segments: their names, how they are made, recycled and removed.
//!
//! A file is a segment by its name, which it gets when its header is written and loses before it is used for another: after a kill at
//! any moment the segments present are a suffix of the log, never a log with a gap or with an old segment come back. One
//! that cannot be read was not left so by us: it is damaged. Recycled files keep their blocks and their pages in the cache, which is
//! what makes them worth keeping.
//!
//! Space: the segments that hold records, each counted with the space allocated to it, stay below the log's limit (`disk::tracker`).
//! Beyond it there is the segment made ahead, and no more: used files are kept only within what the segments had taken.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::format::Header;
use super::reader::SegmentReader;
use super::segment::SegmentFile;
use crate::durable::{self, Step};
use crate::{Error, Result};

/// How many used files are kept for reuse: as many as the last cut gave back, within these bounds.
const FEWEST_BLANKS: usize = 2;
const MOST_BLANKS: usize = 16;
/// See `has_room`.
const RESERVE_CEILING: u64 = 1 << 30;

/// A disk's segments on disk.
#[derive(Debug)]
pub struct Folder {
    dir: PathBuf,
    /// Space preallocated for a segment, in bytes.
    segment_bytes: u64,
    blanks: Mutex<Vec<PathBuf>>,
}

impl Folder {
    /// Opens the folder `dir`, which must exist. Files left blank by an earlier run are reused.
    pub fn open(dir: &Path, segment_bytes: u64) -> Result<Self> {
        let mut blanks = Vec::new();
        for (name, path) in list(dir)? {
            if name.ends_with(".blank") {
                blanks.push(path);
            }
        }
        for extra in blanks.drain(FEWEST_BLANKS.min(blanks.len())..) {
            remove(&extra)?;
        }
        Ok(Self { dir: dir.to_owned(), segment_bytes, blanks: Mutex::new(blanks) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Space preallocated for a segment, in bytes.
    pub fn segment_bytes(&self) -> u64 {
        self.segment_bytes
    }

    /// Makes the segment that `header` describes, in a used file if there is one. Its space is allocated, so that appends
    /// within [`Folder::segment_bytes`] do not run out of it.
    pub fn create(&self, header: Header) -> Result<SegmentFile> {
        let path = self.dir.join(format!("{:012}.seg", header.segment));
        let used = self.blanks().pop();
        let blank = used.unwrap_or_else(|| self.new_blank());
        let file = durable::open_or_create(Step::SegmentMade, &blank)
            .map_err(|error| Error::io("create the segment", &blank, error))?;
        let begun = self
            .allocate(&file, &blank)
            .and_then(|()| SegmentFile::begin(file, path.clone(), header))
            .and_then(|segment| {
                let named = durable::rename(Step::SegmentNamed, &blank, &path);
                named.map(|()| segment).map_err(|error| Error::io("name the segment", &path, error))
            });
        if begun.is_err() {
            remove(&blank)?;
        }
        begun
    }

    /// The segments present, by rising number.
    ///
    /// # Errors
    /// `Corrupt` if one is not readable.
    pub fn segments(&self) -> Result<Vec<SegmentReader>> {
        let mut found = Vec::new();
        for (name, path) in list(&self.dir)? {
            if !name.ends_with(".seg") {
                continue;
            }
            found.push(SegmentReader::open_any(&path)?);
        }
        found.sort_by_key(|reader| reader.header().segment);
        Ok(found)
    }

    /// Ends the life of `segments`, which are the oldest of the log, oldest first. A busy disk gets its files back for the
    /// next cut; an idle one shrinks to a few.
    pub fn retire_oldest<'a>(&self, segments: impl ExactSizeIterator<Item = &'a Path>) -> Result<()> {
        let keep = segments.len().clamp(FEWEST_BLANKS, MOST_BLANKS);
        for path in segments {
            self.retire_keeping(path, keep)?;
        }
        let surplus = {
            let mut blanks = self.blanks();
            let kept = keep.min(blanks.len());
            blanks.split_off(kept)
        };
        surplus.iter().try_for_each(|path| remove(path))
    }

    /// Removes a segment whose log is void, and the blank files with it: its space is needed, or a late writer may still have
    /// it open.
    pub fn discard(&self, path: &Path) -> Result<()> {
        let blanks = std::mem::take(&mut *self.blanks());
        blanks.iter().try_for_each(|blank| remove(blank))?;
        remove(path)
    }

    /// Whether the log's space is taken from the file system that `path` is on.
    pub fn shares_space_with(&self, path: &Path) -> bool {
        matches!((fs::metadata(&self.dir), fs::metadata(path)), (Ok(dir), Ok(other)) if dir.dev() == other.dev())
    }

    /// Ends the life of one segment. Call it for the oldest first.
    pub fn retire(&self, path: &Path) -> Result<()> {
        self.retire_keeping(path, FEWEST_BLANKS)
    }

    fn retire_keeping(&self, path: &Path, keep: usize) -> Result<()> {
        if self.blanks().len() >= keep {
            return remove(path);
        }
        let blank = self.new_blank();
        match durable::rename(Step::SegmentKept, path, &blank) {
            Ok(()) => self.blanks().push(blank),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("keep the segment file", path, error)),
        }
        Ok(())
    }

    /// A name of its own: segment numbers may start again after everything was retired.
    fn new_blank(&self) -> PathBuf {
        self.dir.join(format!("{}.blank", uuid::Uuid::new_v4()))
    }

    /// Ends the life of every segment, oldest first.
    pub fn retire_all(&self) -> Result<()> {
        let mut paths: Vec<_> = list(&self.dir)?
            .into_iter()
            .filter(|(name, _)| name.ends_with(".seg"))
            .map(|(_, path)| path)
            .collect();
        paths.sort();
        paths.iter().try_for_each(|path| remove(path))
    }

    /// Makes the folder's entries durable.
    pub fn sync(&self) -> Result<()> {
        durable::sync_folder(Step::LogClosed, &self.dir)
            .map_err(|error| Error::io("sync the log folder", &self.dir, error))
    }

    fn allocate(&self, file: &File, path: &Path) -> Result<()> {
        let len = file.metadata().map_err(|error| Error::io("look at the segment", path, error))?.len();
        if len >= self.segment_bytes {
            return Ok(());
        }
        self.keep_reserve(path)?;
        match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, self.segment_bytes) {
            Ok(()) => Ok(()),
            // A file system without fallocate: the space is taken as records come, and running out breaks the log then. The length
            // is there all the same: a segment that is shorter was cut short.
            Err(rustix::io::Errno::OPNOTSUPP) => file
                .set_len(self.segment_bytes)
                .map_err(|error| Error::io("give the segment its length", path, error)),
            Err(error) => Err(Error::io("allocate the segment", path, error.into())),
        }
    }

    fn keep_reserve(&self, path: &Path) -> Result<()> {
        let space = rustix::fs::statvfs(&self.dir)
            .map_err(|error| Error::io("look at the free space beside", path, error.into()))?;
        let (total, free) = (space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize);
        if !has_room(total, free, self.segment_bytes) {
            return Err(Error::io("allocate the segment", path, std::io::ErrorKind::StorageFull.into())
                .remedy("free space there, or set log_dir to a folder on another file system"));
        }
        Ok(())
    }

    fn blanks(&self) -> std::sync::MutexGuard<'_, Vec<PathBuf>> {
        self.blanks.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Whether `needed` bytes can be taken from a file system. The log leaves some of it free: 2 %, at most 1 GiB.
pub(super) fn has_room(total: u64, free: u64, needed: u64) -> bool {
    free >= needed + (total / 50).min(RESERVE_CEILING)
}

fn list(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let entries = fs::read_dir(dir).map_err(|error| Error::io("list the log folder", dir, error))?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| Error::io("list the log folder", dir, error))?;
        found.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    found.sort();
    Ok(found)
}

fn remove(path: &Path) -> Result<()> {
    durable::remove(Step::SegmentRemoved, path)
        .map(drop)
        .map_err(|error| Error::io("remove the segment", path, error))
}
