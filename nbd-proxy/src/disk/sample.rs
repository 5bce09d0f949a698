//! A few blocks of a disk, remembered over a clean restart, of a disk that does not tell when it was changed.
//!
//! Whoever uses such a disk behind our back is noticed if he touches one of these blocks: where partition tables and superblocks
//! are, evenly all over, and what was written last, for that is where file systems keep what they write at every mount. It
//! is a sample: a change elsewhere goes unseen, and the operator was told so when the disk was first protected.

use std::io;

use serde::{Deserialize, Serialize};

use crate::backing::Backing;

/// Bytes at each end of the disk.
const ENDS: u64 = 64 << 10;
const BLOCK: u64 = 4096;
/// Blocks between, and blocks that were written last.
const EVENLY: u64 = 64;
const WRITTEN: usize = 32;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Offsets of blocks that were written last.
    written: Vec<u64>,
    crc: u32,
}

impl Sample {
    /// Remembers what is there now; of `written` as much as there is room for.
    pub fn take(backing: &dyn Backing, written: impl Iterator<Item = u64>) -> io::Result<Self> {
        let written: Vec<_> = written.map(|offset| offset / BLOCK * BLOCK).take(WRITTEN).collect();
        Ok(Self { crc: checksum(backing, &written)?, written })
    }

    /// Whether something else is there now. What cannot be read cannot be told apart.
    pub fn differs(&self, backing: &dyn Backing) -> bool {
        checksum(backing, &self.written).is_ok_and(|crc| crc != self.crc)
    }
}

fn checksum(backing: &dyn Backing, written: &[u64]) -> io::Result<u32> {
    let size = backing.size();
    let evenly = (1..EVENLY).map(|part| (size / EVENLY * part / BLOCK * BLOCK, BLOCK));
    let places = [(0, ENDS), (size.saturating_sub(ENDS), ENDS)].into_iter().chain(evenly);
    let mut crc = 0;
    let mut buf = Vec::new();
    for (offset, len) in places.chain(written.iter().map(|offset| (*offset, BLOCK))) {
        let len = len.min(size.saturating_sub(offset));
        buf.resize(usize::try_from(len).map_err(io::Error::other)?, 0);
        backing.read(&mut buf, offset)?;
        crc = crc32c::crc32c_append(crc, &buf);
    }
    Ok(crc)
}
