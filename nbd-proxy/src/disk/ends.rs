//! Which segments a log must have at least: without this, a log whose first or last files somebody removed looks like a shorter one.
//!
//! ```text
//! cell, 32 bytes: the first for the lowest number that must be there, the second for the highest
//!     0  16  the tracking id
//!    16   8  the segment's number
//!    24   4  CRC-32C of bytes 0..24
//!    28   4  zero
//! ```
//!
//! A cell is written before the segments below it go, or after the one it names was made: whatever a kill comes between, all that
//! must be there is there. It is not synced while the disk is open: under another boot the log does not count anyway. A clean close
//! syncs it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use uuid::Uuid;

use crate::durable::{self, Step};
use crate::{Error, Result};

const CELL: usize = 32;
const SUMMED: usize = 24;

/// The open file.
#[derive(Debug)]
pub struct Ends {
    file: Mutex<Arc<File>>,
    path: PathBuf,
}

impl Ends {
    /// Opens or makes the file.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self { file: Mutex::new(Arc::new(open(path)?)), path: path.to_owned() })
    }

    /// Makes the file again at its path, empty.
    pub fn remake(&self) -> Result<()> {
        let file = Arc::new(open(&self.path)?);
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = file;
        Ok(())
    }

    /// The lowest and the highest number of the segments of `tracking` that must be there; `None` if that cannot be told.
    pub fn of(&self, tracking: Uuid) -> Option<(u64, u64)> {
        let mut cells = [0; 2 * CELL];
        self.file().read_exact_at(&mut cells, 0).ok()?;
        let (first, last) = cells.split_at(CELL);
        Some((decode(first, tracking)?, decode(last, tracking)?))
    }

    /// From `number` on there must be segments of `tracking`.
    pub fn begin_at(&self, tracking: Uuid, number: u64) -> Result<()> {
        self.write(0, tracking, number)
    }

    /// Up to `number` there are segments of `tracking`.
    pub fn reach(&self, tracking: Uuid, number: u64) -> Result<()> {
        self.write(CELL as u64, tracking, number)
    }

    /// Makes durable what was written.
    pub fn sync(&self) -> Result<()> {
        durable::sync(Step::EndsClosed, &self.file())
            .map_err(|error| Error::io("sync the ends of the log", &self.path, error))
    }

    fn file(&self) -> Arc<File> {
        Arc::clone(&self.file.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn write(&self, at: u64, tracking: Uuid, number: u64) -> Result<()> {
        let mut cell = [0; CELL];
        cell[..16].copy_from_slice(tracking.as_bytes());
        cell[16..SUMMED].copy_from_slice(&number.to_le_bytes());
        let crc = crc32c::crc32c(&cell[..SUMMED]);
        cell[SUMMED..28].copy_from_slice(&crc.to_le_bytes());
        self.file()
            .write_all_at(&cell, at)
            .map_err(|error| Error::io("write the ends of the log", &self.path, error))
    }
}

fn open(path: &Path) -> Result<File> {
    durable::open_or_create(Step::EndsMade, path).map_err(|error| {
        Error::io("open the ends of the log", path, error)
            .remedy("the folder of the change log (log_dir) must exist and be writable")
    })
}

fn decode(cell: &[u8], tracking: Uuid) -> Option<u64> {
    let crc = u32::from_le_bytes(cell.get(SUMMED..28)?.try_into().ok()?);
    let ours = crc == crc32c::crc32c(cell.get(..SUMMED)?) && cell.get(..16)? == tracking.as_bytes();
    ours.then(|| cell.get(16..SUMMED)?.try_into().ok().map(u64::from_le_bytes)).flatten()
}
