//! The dirty bitmap of an unlogged disk, kept over a clean restart.
//!
//! ```text
//!     0   8  magic "LBBITMAP"
//!     8  16  the disk's id
//!    24  16  the tracking id that the state names
//!    40   8  size of the disk in bytes
//!    48   4  1 if much of it may not differ at all
//!    52   4  CRC-32C of bytes 8..52 and of the runs
//!    56   8  number of runs
//!    64 16n  runs of dirty blocks: offset and length in bytes
//! ```
//!
//! Written and synced before the state says "clean" and believed only with such a state: one that is left over means nothing. All
//! numbers are little-endian.

use std::path::Path;

use uuid::Uuid;

use crate::bitmap::DirtyBitmap;
use crate::durable::{self, Step};
use crate::{Error, Result};

const MAGIC: &[u8; 8] = b"LBBITMAP";
const HEAD: usize = 64;

/// Saves `dirty`; durable on return.
pub fn save(path: &Path, disk: Uuid, tracking: Uuid, dirty: &DirtyBitmap, suspect: bool) -> Result<()> {
    let mut runs = Vec::new();
    let mut count = 0u64;
    let mut at = 0;
    while let Some((offset, len)) = dirty.next_run(at) {
        runs.extend_from_slice(&offset.to_le_bytes());
        runs.extend_from_slice(&len.to_le_bytes());
        count += 1;
        at = offset + len;
    }
    runs.splice(0..0, count.to_le_bytes());
    let mut head = Vec::with_capacity(HEAD);
    head.extend_from_slice(MAGIC);
    head.extend_from_slice(disk.as_bytes());
    head.extend_from_slice(tracking.as_bytes());
    head.extend_from_slice(&dirty.size().to_le_bytes());
    head.extend_from_slice(&u32::from(suspect).to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&head[8..]), &runs);
    head.extend_from_slice(&crc.to_le_bytes());
    head.extend_from_slice(&runs);
    durable::write(Step::BitmapSaved, path, &head)
        .map_err(|error| Error::io("save the dirty bitmap", path, error))
}

/// What was saved for this disk under `tracking`, and whether much of it may not differ; `None` if that is not there or not whole.
pub fn load(path: &Path, disk: Uuid, tracking: Uuid, size: u64) -> Result<Option<(DirtyBitmap, bool)>> {
    let saved = durable::read(path).map_err(|error| Error::io("read the dirty bitmap", path, error))?;
    Ok(saved.and_then(|bytes| decode(&bytes, disk, tracking, size)))
}

fn decode(bytes: &[u8], disk: Uuid, tracking: Uuid, size: u64) -> Option<(DirtyBitmap, bool)> {
    let number = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
    let word = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    let crc = crc32c::crc32c_append(crc32c::crc32c(bytes.get(8..52)?), bytes.get(56..)?);
    let ours = bytes.get(0..8)? == MAGIC
        && bytes.get(8..24)? == disk.as_bytes()
        && bytes.get(24..40)? == tracking.as_bytes()
        && number(40)? == size
        && word(52)? == crc;
    let runs = bytes.get(HEAD..)?.chunks_exact(16);
    if !ours || runs.len() as u64 != number(56)? {
        return None;
    }
    let mut dirty = DirtyBitmap::new(size);
    for run in runs {
        let (offset, len) = run.split_at(8);
        dirty.mark(u64::from_le_bytes(offset.try_into().ok()?), u64::from_le_bytes(len.try_into().ok()?));
    }
    Some((dirty, word(48)? == 1))
}

#[cfg(test)]
mod tests;
