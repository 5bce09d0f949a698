//! The dirty bitmap: which blocks were written since the vault last had them. One bit per block of 4 KiB.
//!
//! Bits live in chunks that are allocated when first set, so an idle disk of any size costs a pointer per 128 MiB and a
//! fully dirty one 32 MiB per TiB. The cut's rule is QEMU's: *freeze* (take the map, go on with an empty successor), then *drop* what was
//! frozen once the vault has it, or *merge* it back.

use bitvec::boxed::BitBox;
use bitvec::vec::BitVec;

/// Bytes per bit.
pub const BLOCK: u64 = 4096;
/// Bits per chunk: 4 KiB of memory for 128 MiB of disk.
const CHUNK: u64 = CHUNK_BITS as u64;
const CHUNK_BITS: usize = 32768;

/// A set of dirty blocks.
#[derive(Clone, Debug)]
pub struct DirtyBitmap {
    chunks: Vec<Option<BitBox>>,
    size: u64,
    blocks: u64,
    set: u64,
}

impl DirtyBitmap {
    /// An empty set for a disk of `size` bytes.
    pub fn new(size: u64) -> Self {
        let blocks = size.div_ceil(BLOCK);
        let chunks = usize::try_from(blocks.div_ceil(CHUNK)).unwrap_or(usize::MAX);
        Self { chunks: vec![None; chunks], size, blocks, set: 0 }
    }

    /// Size of the disk in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Dirty bytes, in whole blocks.
    pub fn bytes(&self) -> u64 {
        self.set * BLOCK
    }

    /// Marks every block that `[offset, offset + len)` touches.
    pub fn mark(&mut self, offset: u64, len: u64) {
        if len == 0 {
            return;
        }
        let mut at = offset / BLOCK;
        let end = (offset + len).div_ceil(BLOCK).min(self.blocks);
        while at < end {
            let (chunk, from) = position(at);
            let stop = end.min((at / CHUNK + 1) * CHUNK);
            let to = from + usize::try_from(stop - at).unwrap_or(0);
            let bits = self.chunks[chunk].get_or_insert_with(empty_chunk);
            let part = &mut bits[from..to];
            let before = part.count_ones();
            part.fill(true);
            self.set += (to - from - before) as u64;
            at = stop;
        }
    }

    /// Takes the set and leaves an empty one in its place.
    #[must_use]
    pub fn freeze(&mut self) -> Self {
        let empty =
            Self { chunks: vec![None; self.chunks.len()], size: self.size, blocks: self.blocks, set: 0 };
        std::mem::replace(self, empty)
    }

    /// Adds everything in `other`, a set for the same disk.
    pub fn merge(&mut self, other: Self) {
        for (mine, theirs) in self.chunks.iter_mut().zip(other.chunks) {
            match (mine.as_mut(), theirs) {
                (_, None) => {}
                (None, Some(bits)) => {
                    self.set += bits.count_ones() as u64;
                    *mine = Some(bits);
                }
                (Some(have), Some(bits)) => {
                    let before = have.count_ones();
                    *have.as_mut_bitslice() |= bits.as_bitslice();
                    self.set += (have.count_ones() - before) as u64;
                }
            }
        }
    }

    /// The first run of dirty blocks at or after byte `from`, as (offset, length) in bytes. The last block of a disk may
    /// reach past its end.
    pub fn next_run(&self, from: u64) -> Option<(u64, u64)> {
        let start = self.find(from / BLOCK, true)?;
        let end = self.find(start, false).unwrap_or(self.blocks);
        Some((start * BLOCK, (end - start) * BLOCK))
    }

    /// The first block at or after `at` that is dirty (or clean).
    fn find(&self, at: u64, dirty: bool) -> Option<u64> {
        let mut at = at;
        while at < self.blocks {
            let (chunk, from) = position(at);
            let found = match (&self.chunks[chunk], dirty) {
                (None, false) => Some(0),
                (None, true) => None,
                (Some(bits), true) => bits[from..].first_one(),
                (Some(bits), false) => bits[from..].first_zero(),
            };
            match found {
                Some(step) => return Some(at + step as u64).filter(|found| *found < self.blocks),
                None => at = (at / CHUNK + 1) * CHUNK,
            }
        }
        None
    }
}

fn empty_chunk() -> BitBox {
    BitVec::repeat(false, CHUNK_BITS).into_boxed_bitslice()
}

fn position(block: u64) -> (usize, usize) {
    // Both fit: there are at most 2^52 blocks, and a chunk has 2^15.
    (usize::try_from(block / CHUNK).unwrap_or(usize::MAX), usize::try_from(block % CHUNK).unwrap_or(0))
}

#[cfg(test)]
mod tests;
