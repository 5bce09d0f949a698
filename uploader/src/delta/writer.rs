//! Packs changed bytes into a delta.
//!
//! Disks are added one after the other, each disk's extents in address order. Whole 4 KiB blocks that hold only
//! zeroes become zero extents. Frames are cut by raw size; what is in memory is the compressed delta so far and a few
//! frames in flight, so a caller that checks [`DeltaWriter::is_full`] bounds it.
//!
//! The compressed delta is one allocation, and one of a size that allocators take from the system for itself and give
//! back when it is freed. As thousands of frames, allocated here and freed by whoever uploads, it left holes in the
//! heaps of many threads: twice as much memory as was ever in use.

use bytes::Bytes;
use nbd_proxy::{Error, Kind, Result};
use object_store::PutPayload;

use super::format::{self, CELL, Extent, FRAME_MAX, Form, Frame, Index, IndexRef, TRAILER_LEN};
use super::pool::{Packed, Pool};
use crate::cipher::{Cipher, DELTA, DIRECTORY, Salt, Units};
use crate::digest::{Digest, Hasher};

/// Frames of scattered small changes: a later reader of one block fetches one such frame.
pub const SMALL_FRAME: usize = 64 << 10;
/// Frames of long runs: what is read together is compressed together.
pub const LARGE_FRAME: usize = 256 << 10;

/// What a delta that outgrows [`SMALL_BODY`] reserves: a full one, and what may come after the look at `is_full`. glibc
/// never serves 32 MiB and more from a heap. Pages that are not written cost nothing.
const BODY: usize = 36 << 20;
/// Most deltas are smaller than this.
const SMALL_BODY: usize = 1 << 20;

const BLOCK: u64 = 4096;
static ZEROES: [u8; 4096] = [0; 4096];

/// A delta is full at this many stored bytes …
const FULL_STORED: u64 = 32 << 20;
/// … or this many raw bytes, so that what compresses well still becomes durable now and then …
const FULL_RAW: u64 = 256 << 20;
/// … or this many extents, which bounds what a reader's map costs.
const FULL_EXTENTS: usize = 400_000;

/// The frame size for `bytes` in `extents` runs.
pub fn frame_size(bytes: u64, extents: u64) -> usize {
    let long = bytes / extents.max(1) >= SMALL_FRAME as u64;
    if long { LARGE_FRAME } else { SMALL_FRAME }
}

/// A packed delta, ready to be put.
#[derive(Clone, Debug)]
pub struct Encoded {
    pieces: Vec<Bytes>,
    /// Bytes of the object.
    pub size: u64,
    /// Bytes of disks that the delta covers, zeroes included.
    pub logical: u64,
    /// Where its index is.
    pub index: IndexRef,
    /// What it is sealed under.
    pub salt: Option<Salt>,
}

impl Encoded {
    /// The object's bytes, not copied.
    pub fn payload(&self) -> PutPayload {
        self.pieces.iter().cloned().collect()
    }

    /// The object's bytes in one piece.
    pub fn to_vec(&self) -> Vec<u8> {
        self.pieces.concat()
    }
}

/// Packs one delta.
pub struct DeltaWriter {
    frame_size: usize,
    frame: Vec<u8>,
    units: Units,
    salt: Option<Salt>,
    pool: Pool,
    submitted_raw: u64,
    index: Index,
    /// The cell that may go on.
    cell: Option<Hasher>,
    body: Vec<u8>,
    stored: u64,
    stored_raw: u64,
    stream: u64,
    extents: usize,
    logical: u64,
}

impl DeltaWriter {
    /// A writer whose frames hold up to `frame_size` raw bytes.
    pub fn new(frame_size: usize, cipher: &Cipher) -> Result<Self> {
        let (salt, units) = cipher.sealer(DELTA)?;
        let form = if salt.is_some() { Form::Sealed } else { Form::Plain };
        let body = format::encode_header(salt);
        Ok(Self {
            frame_size: frame_size.clamp(1, FRAME_MAX as usize),
            frame: Vec::new(),
            pool: Pool::new(units.clone()),
            units,
            salt,
            submitted_raw: 0,
            index: Index { form, ..Index::default() },
            cell: None,
            body,
            stored: form.header_len(),
            stored_raw: 0,
            stream: 0,
            extents: 0,
            logical: 0,
        })
    }

    /// Whatever is added from now on belongs to `disk`.
    pub fn begin_disk(&mut self, disk: &str) {
        if self.index.disks.last().is_none_or(|(name, _)| name != disk) {
            self.index.disks.push((disk.to_owned(), Vec::new()));
        }
    }

    /// Nothing was added yet.
    pub fn is_empty(&self) -> bool {
        self.extents == 0
    }

    /// This delta should be finished and another one begun.
    pub fn is_full(&self) -> bool {
        let in_flight = self.submitted_raw - self.stored_raw;
        let stored = self.stored + in_flight + self.frame.len() as u64;
        stored >= FULL_STORED || self.stream >= FULL_RAW || self.extents >= FULL_EXTENTS
    }

    /// The disk holds `data` at `offset`, which must not lie before the end of what was added last.
    pub fn data(&mut self, offset: u64, mut data: &[u8]) -> Result<()> {
        let mut offset = offset;
        while !data.is_empty() {
            let (len, zero) = run(offset, data);
            let (now, rest) = data.split_at(len);
            if zero {
                self.zero(offset, len as u64)?;
            } else {
                self.extent(offset, len as u64, Some(self.stream))?;
                self.hash(offset, now);
                self.append(now)?;
            }
            offset += len as u64;
            data = rest;
        }
        Ok(())
    }

    /// The disk reads as zero for `len` bytes at `offset`, which must not lie before the end of what was added last.
    pub fn zero(&mut self, offset: u64, len: u64) -> Result<()> {
        if len == 0 { Ok(()) } else { self.extent(offset, len, None) }
    }

    fn extent(&mut self, offset: u64, len: u64, at: Option<u64>) -> Result<()> {
        let Some((disk, extents)) = self.index.disks.last_mut() else {
            return Err(Error::new(Kind::InvalidInput, "delta", "no disk was begun"));
        };
        self.logical += len;
        if let Some(last) = extents.last_mut() {
            let end = last.offset + last.len;
            if offset < end {
                let message = format!("changes out of order: {offset} comes after {end}");
                return Err(Error::new(Kind::InvalidInput, disk.as_str(), message));
            }
            // Bytes of one disk that touch also touch in the stream, so they can be one extent.
            if offset == end && last.at.is_some() == at.is_some() {
                last.len += len;
                return Ok(());
            }
        }
        extents.push(Extent { offset, len, at });
        self.extents += 1;
        self.end_cell();
        Ok(())
    }

    /// Hashes the extent's next bytes, cell by cell.
    fn hash(&mut self, mut offset: u64, mut data: &[u8]) {
        while !data.is_empty() {
            if offset.is_multiple_of(CELL) {
                self.end_cell();
            }
            let room = usize::try_from(CELL - offset % CELL).unwrap_or(data.len());
            let (now, rest) = data.split_at(room.min(data.len()));
            self.cell.get_or_insert_default().update(now);
            offset += now.len() as u64;
            data = rest;
        }
    }

    fn end_cell(&mut self) {
        self.index.cells.extend(self.cell.take().map(Hasher::digest));
    }

    fn append(&mut self, mut data: &[u8]) -> Result<()> {
        self.stream += data.len() as u64;
        while !data.is_empty() {
            let room = self.frame_size - self.frame.len();
            let (now, rest) = data.split_at(room.min(data.len()));
            self.frame.extend_from_slice(now);
            data = rest;
            if self.frame.len() == self.frame_size {
                self.submit()?;
            }
        }
        Ok(())
    }

    fn submit(&mut self) -> Result<()> {
        let next = Vec::with_capacity(self.frame_size.min(self.frame.capacity()));
        let raw = std::mem::replace(&mut self.frame, next);
        self.submitted_raw += raw.len() as u64;
        if let Some(packed) = self.pool.submit(raw)? {
            self.store(packed)?;
        }
        Ok(())
    }

    fn store(&mut self, packed: Packed) -> Result<()> {
        let small = |len: usize| u32::try_from(len).map_err(|e| cannot_compress(std::io::Error::other(e)));
        let (len, raw_len) = (small(packed.stored.len())?, small(packed.raw_len)?);
        let (offset, start) = (self.stored, self.stored_raw);
        self.index.frames.push(Frame { offset, start, len, raw_len, digest: packed.digest });
        self.stored += u64::from(len);
        self.stored_raw += u64::from(raw_len);
        if self.body.len() + packed.stored.len() > SMALL_BODY.max(self.body.capacity()) {
            self.body.reserve_exact(BODY.saturating_sub(self.body.len()));
        }
        self.body.extend_from_slice(&packed.stored);
        Ok(())
    }

    /// The finished delta.
    pub fn finish(mut self) -> Result<Encoded> {
        if !self.frame.is_empty() {
            self.submit()?;
        }
        for packed in std::mem::take(&mut self.pool).finish()? {
            self.store(packed)?;
        }
        self.end_cell();
        self.index.disks.retain(|(_, extents)| !extents.is_empty());
        let raw = self.index.encode();
        let packed = zstd::bulk::compress(&raw, 3).map_err(cannot_compress)?;
        let stored = self.units.seal(DIRECTORY, packed)?;
        let small = |len: usize| u32::try_from(len).map_err(|e| cannot_compress(std::io::Error::other(e)));
        let index = IndexRef {
            offset: self.stored,
            len: small(stored.len())?,
            raw_len: small(raw.len())?,
            digest: Digest::of(if self.salt.is_some() { &stored } else { &raw }),
        };
        let size = self.stored + u64::from(index.len) + TRAILER_LEN;
        let trailer = Bytes::copy_from_slice(&format::encode_trailer(self.index.form, &index));
        Ok(Encoded {
            pieces: vec![self.body.into(), stored.into(), trailer],
            size,
            logical: self.logical,
            index,
            salt: self.salt,
        })
    }
}

/// The length of the first run of `data`, and whether it consists of whole blocks of zeroes.
fn run(offset: u64, data: &[u8]) -> (usize, bool) {
    let mut len = 0;
    let mut zero = false;
    while len < data.len() {
        let to_boundary = BLOCK - (offset + len as u64) % BLOCK;
        let step = usize::try_from(to_boundary).unwrap_or(data.len()).min(data.len() - len);
        let block_is_zero = data[len..len + step] == ZEROES;
        if len > 0 && block_is_zero != zero {
            break;
        }
        zero = block_is_zero;
        len += step;
    }
    (len, zero)
}

fn cannot_compress(error: std::io::Error) -> Error {
    Error::new(Kind::Io, "delta", format!("cannot compress: {error}")).source(error)
}
