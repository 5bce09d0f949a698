//! The bytes of a delta, version 1 (plain) and 2 (encrypted). Numbers are little-endian.
//!
//! ```text
//! header   8  "LBDELTA" and the version
//!         16  version 2: the salt
//! frames      one after the other; each a zstd stream, or its raw bytes where zstd would not shrink them
//! index       zstd: see below
//! trailer  8  "LBDELTA" and the version
//!          8  where the index starts
//!          4  its length as stored         4  its length raw
//!         16  digest of the raw index; version 2: of the stored index
//!          8  zero
//!         16  digest of the 48 bytes before
//! ```
//!
//! The frames' raw contents, put end to end, are the *stream*. Each disk's extents are sorted and disjoint; an extent
//! either reads as zero or takes the next bytes of the stream, so where its bytes are need not be written down. An
//! extent may span frames. The raw index is, in varints (seven bits a byte, lowest first, shortest form only):
//!
//! ```text
//! number of frames; for each: length as stored, length raw, 16 bytes of digest of the raw content
//! number of disks; for each: length of the name, the name, number of extents;
//!     for each: gap to the end of the extent before, 2 × length + (1 if it reads as zero)
//! for each cell of each extent with data, in that order: 16 bytes of digest of its content
//! ```
//!
//! In version 2 each frame, and the index, is a unit of its own: what version 1 stores, sealed, which makes it 16 bytes longer.
//! Frames are numbered from zero, the index is the [directory](crate::cipher::DIRECTORY). Lengths in the raw index are those before sealing.
//!
//! A *cell* is what an extent has of a 64 KiB range of the disk: extents are cut into cells where the disk's address is a
//! multiple of that. With their digests, a disk is compared with what the vault has of it without fetching a frame.
//!
//! A digest is the first 16 bytes of a SHA-256. A frame's position is the sum of what is stored before it. Every
//! decoder here takes arbitrary bytes and either returns what an encoder could have written or says why not: what
//! decodes encodes to the same bytes again.

use nbd_proxy::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::cipher::{DIRECTORY, Salt, Units};
use crate::digest::Digest;

/// The first and the last bytes of every delta, but for the version that follows.
pub const MAGIC: [u8; 7] = *b"LBDELTA";
/// Length of the trailer.
pub const TRAILER_LEN: u64 = 64;
/// No frame's raw content is longer.
pub const FRAME_MAX: u32 = 1 << 20;
/// No raw index is longer.
pub const INDEX_MAX: u32 = 64 << 20;
/// Extents are hashed in pieces that end where a disk's address is a multiple of this.
pub const CELL: u64 = 64 << 10;

const END_MAX: u64 = 1 << 62;
const TAG: u32 = 16;

/// What of a delta's layout depends on whether it is encrypted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// Version 1.
    #[default]
    Plain,
    /// Version 2.
    Sealed,
}

impl Form {
    fn of(version: u8) -> Option<Self> {
        [Self::Plain, Self::Sealed].into_iter().find(|form| form.version() == version)
    }

    fn version(self) -> u8 {
        match self {
            Self::Plain => 1,
            Self::Sealed => 2,
        }
    }

    /// Length of the header.
    pub fn header_len(self) -> u64 {
        match self {
            Self::Plain => 8,
            Self::Sealed => 24,
        }
    }

    /// How much longer a frame is as stored than before it was sealed.
    pub fn overhead(self) -> u32 {
        match self {
            Self::Plain => 0,
            Self::Sealed => TAG,
        }
    }
}

/// Where a delta's index is, and its digest: what the trailer says, and what a point repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexRef {
    /// Where it starts.
    pub offset: u64,
    /// Its length as stored.
    pub len: u32,
    /// Its length raw.
    pub raw_len: u32,
    /// Digest of the raw index; of an encrypted delta, of the stored one.
    pub digest: Digest,
}

/// One compressed unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Where it starts in the object.
    pub offset: u64,
    /// Where its raw content starts in the stream.
    pub start: u64,
    /// Its length as stored.
    pub len: u32,
    /// Its length raw.
    pub raw_len: u32,
    /// Digest of its raw content.
    pub digest: Digest,
}

/// A run of changed bytes of one disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it starts on the disk.
    pub offset: u64,
    /// Its length, never zero.
    pub len: u64,
    /// Where its bytes start in the stream; `None` if it reads as zero.
    pub at: Option<u64>,
}

impl Extent {
    fn cells(&self) -> usize {
        let count = (self.offset + self.len).div_ceil(CELL) - self.offset / CELL;
        if self.at.is_some() { usize::try_from(count).unwrap_or(usize::MAX) } else { 0 }
    }
}

/// A stretch of a disk as a delta knows it by heart: a cell, or a whole extent that reads as zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hashed {
    /// Where it starts on the disk.
    pub offset: u64,
    /// Its length.
    pub len: u64,
    /// The digest of its content; `None` if it reads as zero.
    pub digest: Option<Digest>,
}

/// What a delta holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    /// How the delta is laid out.
    pub form: Form,
    /// Its frames in stream order.
    pub frames: Vec<Frame>,
    /// Disks by name, each with its extents in address order.
    pub disks: Vec<(String, Vec<Extent>)>,
    /// Digests of the cells, in the order of the disks and their extents.
    pub cells: Vec<Digest>,
}

impl Index {
    /// The raw index.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put(&mut out, self.frames.len() as u64);
        for frame in &self.frames {
            put(&mut out, u64::from(frame.len.saturating_sub(self.form.overhead())));
            put(&mut out, frame.raw_len.into());
            out.extend_from_slice(&frame.digest.0);
        }
        put(&mut out, self.disks.len() as u64);
        for (name, extents) in &self.disks {
            put(&mut out, name.len() as u64);
            out.extend_from_slice(name.as_bytes());
            put(&mut out, extents.len() as u64);
            let mut end = 0;
            for extent in extents {
                put(&mut out, extent.offset - end);
                put(&mut out, extent.len << 1 | u64::from(extent.at.is_none()));
                end = extent.offset + extent.len;
            }
        }
        self.cells.iter().for_each(|digest| out.extend_from_slice(&digest.0));
        out
    }

    /// Reads a raw index of a delta of this form whose frames end where `frames_end` says.
    pub fn decode(raw: &[u8], form: Form, frames_end: u64) -> Result<Self, &'static str> {
        let mut input = Input(raw);
        let frames = decode_frames(&mut input, form, frames_end)?;
        let stream = frames.last().map_or(0, |last| last.start + u64::from(last.raw_len));
        let mut at = 0;
        let count = input.count(2)?;
        let mut disks = Vec::with_capacity(count);
        for _ in 0..count {
            let len = input.count(1)?;
            let name = std::str::from_utf8(input.take(len)?).map_err(|_| "a disk's name is not UTF-8")?;
            disks.push((name.to_owned(), decode_extents(&mut input, &mut at)?));
        }
        if at != stream {
            return Err("extents and frames do not hold the same number of bytes");
        }
        // Bounded by the stream, and so by the frames: no extent can ask for more than there are bytes to hash.
        let count = disks.iter().flat_map(|(_, extents)| extents).map(Extent::cells).sum::<usize>();
        let digests = input.take(count.saturating_mul(16))?;
        if !input.0.is_empty() {
            return Err("bytes are left over after the index");
        }
        let cells = digests.chunks_exact(16).map(digest).collect();
        Ok(Self { form, frames, disks, cells })
    }

    /// The frame that holds the stream's byte `at`.
    pub fn frame_at(&self, at: u64) -> usize {
        self.frames.partition_point(|frame| frame.start <= at).saturating_sub(1)
    }

    /// What the delta knows of `disk` without its frames, in address order.
    pub fn hashed(&self, disk: &str) -> impl Iterator<Item = Hashed> {
        let before = self.disks.iter().take_while(|(name, _)| name != disk);
        let skip = before.flat_map(|(_, extents)| extents).map(Extent::cells).sum();
        let mut digests = self.cells.iter().skip(skip);
        let mut extents = self.extents(disk).iter();
        let mut rest: Option<Extent> = None;
        std::iter::from_fn(move || {
            let extent = rest.take().or_else(|| extents.next().copied())?;
            let Extent { offset, len, at } = extent;
            let Some(at) = at else { return Some(Hashed { offset, len, digest: None }) };
            let now = len.min(CELL - offset % CELL);
            rest = (now < len).then(|| Extent { offset: offset + now, len: len - now, at: Some(at + now) });
            Some(Hashed { offset, len: now, digest: Some(*digests.next()?) })
        })
    }

    /// The extents of `disk`; none if the delta does not touch it.
    pub fn extents(&self, disk: &str) -> &[Extent] {
        self.disks.iter().find(|(name, _)| name == disk).map_or(&[], |(_, extents)| extents)
    }
}

fn decode_frames(input: &mut Input<'_>, form: Form, frames_end: u64) -> Result<Vec<Frame>, &'static str> {
    let count = input.count(18)?;
    let mut frames = Vec::with_capacity(count);
    let (mut offset, mut start) = (form.header_len(), 0);
    for _ in 0..count {
        let (len, raw_len) = (input.number()?, input.number()?);
        let small = |n: u64| u32::try_from(n).ok().filter(|n| (1..=FRAME_MAX).contains(n));
        let (Some(len), Some(raw_len)) = (small(len), small(raw_len)) else {
            return Err("a frame has an impossible length");
        };
        if len > raw_len {
            return Err("a frame is stored longer than it is");
        }
        let digest = digest(input.take(16)?);
        let len = len + form.overhead();
        frames.push(Frame { offset, start, len, raw_len, digest });
        offset += u64::from(len);
        start += u64::from(raw_len);
    }
    if offset != frames_end {
        return Err("the frames do not end where the index starts");
    }
    Ok(frames)
}

fn digest(bytes: &[u8]) -> Digest {
    let mut digest = [0; 16];
    digest.copy_from_slice(bytes);
    Digest(digest)
}

fn decode_extents(input: &mut Input<'_>, at: &mut u64) -> Result<Vec<Extent>, &'static str> {
    let count = input.count(2)?;
    let mut extents = Vec::with_capacity(count);
    let mut end = 0u64;
    for _ in 0..count {
        let (gap, tagged) = (input.number()?, input.number()?);
        let (len, zero) = (tagged >> 1, tagged & 1 == 1);
        let offset = end.checked_add(gap).ok_or("an extent lies past every disk's end")?;
        end = offset
            .checked_add(len)
            .filter(|end| *end <= END_MAX)
            .ok_or("an extent lies past every disk's end")?;
        if len == 0 {
            return Err("an extent is empty");
        }
        extents.push(Extent { offset, len, at: (!zero).then_some(*at) });
        if !zero {
            *at = at.checked_add(len).ok_or("the stream is longer than anything")?;
        }
    }
    Ok(extents)
}

/// The header of a delta, which is sealed under `salt` if there is one.
pub fn encode_header(salt: Option<Salt>) -> Vec<u8> {
    let form = if salt.is_some() { Form::Sealed } else { Form::Plain };
    let mut out = MAGIC.to_vec();
    out.push(form.version());
    out.extend(salt.iter().flat_map(|salt| salt.0));
    out
}

/// The salt in the header at the start of `bytes`.
pub fn decode_header(bytes: &[u8]) -> Result<(Form, Option<Salt>), &'static str> {
    let form = form(bytes)?;
    let salt = bytes.get(8..).and_then(<[u8]>::first_chunk).map(|salt| Salt(*salt));
    match form {
        Form::Plain => Ok((form, None)),
        Form::Sealed if salt.is_none() => Err("it is shorter than any delta"),
        Form::Sealed => Ok((form, salt)),
    }
}

fn form(start: &[u8]) -> Result<Form, &'static str> {
    match start.split_first_chunk() {
        Some((magic, [version, ..])) if *magic == MAGIC => {
            Form::of(*version).ok_or("this delta has a version that this program does not know")
        }
        _ => Err("this is no delta"),
    }
}

/// The trailer of a delta whose index is where `index` says.
pub fn encode_trailer(form: Form, index: &IndexRef) -> [u8; 64] {
    let mut out = [0; 64];
    out[..7].copy_from_slice(&MAGIC);
    out[7] = form.version();
    out[8..16].copy_from_slice(&index.offset.to_le_bytes());
    out[16..20].copy_from_slice(&index.len.to_le_bytes());
    out[20..24].copy_from_slice(&index.raw_len.to_le_bytes());
    out[24..40].copy_from_slice(&index.digest.0);
    let digest = Digest::of(&out[..48]);
    out[48..].copy_from_slice(&digest.0);
    out
}

/// Reads a trailer.
pub fn decode_trailer(trailer: &[u8]) -> Result<(Form, IndexRef), &'static str> {
    let trailer: &[u8; 64] = trailer.try_into().map_err(|_| "a trailer has 64 bytes")?;
    let form = form(trailer)?;
    if Digest::of(&trailer[..48]).0 != trailer[48..] || trailer[40..48] != [0; 8] {
        return Err("the trailer does not match its digest");
    }
    let (mut offset, mut len, mut raw_len, mut digest) = ([0; 8], [0; 4], [0; 4], [0; 16]);
    offset.copy_from_slice(&trailer[8..16]);
    len.copy_from_slice(&trailer[16..20]);
    raw_len.copy_from_slice(&trailer[20..24]);
    digest.copy_from_slice(&trailer[24..40]);
    let index = IndexRef {
        offset: u64::from_le_bytes(offset),
        len: u32::from_le_bytes(len),
        raw_len: u32::from_le_bytes(raw_len),
        digest: Digest(digest),
    };
    Ok((form, index))
}

/// Reads the index that `index` describes out of its stored bytes. `object` names the delta in errors.
pub fn decode_index(object: &str, units: &Units, index: &IndexRef, stored: &[u8]) -> Result<Index> {
    let corrupt = |what: &str| Error::corrupt(object, format!("the delta's index cannot be read: {what}"));
    let form = if units.overhead() == 0 { Form::Plain } else { Form::Sealed };
    if index.raw_len > INDEX_MAX {
        return Err(corrupt("it is longer than any index"));
    }
    let matches = |bytes: &[u8]| match Digest::of(bytes) == index.digest {
        true => Ok(()),
        false => Err(corrupt("it does not match its digest")),
    };
    if form == Form::Sealed {
        matches(stored)?;
    }
    let packed = units.open(object, DIRECTORY, stored)?;
    let raw_len = usize::try_from(index.raw_len).map_err(|_| corrupt("it is longer than any index"))?;
    let raw = zstd::bulk::decompress(&packed, raw_len).map_err(|e| corrupt(&e.to_string()))?;
    if raw.len() != raw_len {
        return Err(corrupt("it has another length than its place says"));
    }
    if form == Form::Plain {
        matches(&raw)?;
    }
    Index::decode(&raw, form, index.offset).map_err(corrupt)
}

fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    out.push(number.to_le_bytes()[0]);
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], &'static str> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or("the index ends early")?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u64, &'static str> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err("a number is too large");
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                let shortest = byte != 0 || shift == 0;
                return if shortest { Ok(number) } else { Err("a number is not in its shortest form") };
            }
        }
        Err("a number is too long")
    }

    /// A count of things that take at least `each` bytes, so that what is reserved for them is bounded by the input.
    fn count(&mut self, each: usize) -> Result<usize, &'static str> {
        let count = usize::try_from(self.number()?).map_err(|_| "the index ends early")?;
        if count > self.0.len() / each { Err("the index ends early") } else { Ok(count) }
    }
}
