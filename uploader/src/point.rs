//! An entry of a machine's line, version 1 (plain) and 2 (encrypted): a point, or the claim that begins a generation. Numbers
//! are little-endian.
//!
//! ```text
//! prefix   8  "LBENTRY" and the version
//!          4  length of the header       4  length of the list of deltas, as stored
//!          8  length of the embedded delta, or zero
//!          8  zero
//!         16  version 2: the salt
//!         16  mark of what stands before, and the header
//! header      JSON: see `Header`
//! deltas      zstd of JSON: a list of `DeltaRef`, in the order in which they apply; version 2: sealed
//! embedded    a delta, byte for byte as it would be as an object
//! seal    32  SHA-256 of everything before
//! ```
//!
//! The *mark* is a digest in version 1. In version 2 it is a [mark](crate::cipher) under the entry's own key: the header is
//! readable by everybody and nobody can change it. A point names its parent's mark, so that no other entry can
//! stand in for it: not even one that this writer sealed for the same number and then gave up.
//!
//! The header can be read, and believed, from the entry's first bytes alone: that is what listings do. A point is its
//! parent with its deltas applied, newest write winning; a disk marked *whole* needs nothing of the parent. A claim
//! has no disks and no deltas, and names as its parent the point that its generation forks from.

use std::io::Read as _;
use std::ops::Range;

use bytes::Bytes;
use jiff::Timestamp;
use nbd_proxy::tracking::GroupCut;
use nbd_proxy::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::cipher::{DIRECTORY, HEADER, Named, Salt, Units};
use crate::delta::{Encoded, IndexRef};
use crate::digest::{Digest, sha256};
use crate::keys::PointId;
use crate::line::Owner;

/// The first bytes of every entry, but for the version that follows.
pub const MAGIC: [u8; 7] = *b"LBENTRY";
const PLAIN: u8 = 1;
const SEALED: u8 = 2;
/// Length of the prefix before its salt and mark.
const FIELDS_LEN: usize = 32;
const MARK_LEN: usize = 16;
const SEAL_LEN: usize = 32;
const HEADER_MAX: usize = 16 << 20;
const LIST_MAX: u64 = 256 << 20;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EntryKind {
    /// The beginning of a generation.
    Claim,
    /// A point: what the disks could have shown after a crash at its instant.
    Crash,
    /// A point taken while the guest held its file systems still.
    Application,
}

/// A disk at a point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PointDisk {
    /// Its name within the machine.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// The unbroken stretch of records that led here.
    pub tracking: Uuid,
    /// The point's own deltas cover every byte of the disk: nothing of its parent is needed.
    pub whole: bool,
    /// What could not be read of the live disk when it was last copied: the point shows there what was written since, what
    /// the point before shows, or zeroes. In order, and empty almost always.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<Gap>,
}

/// A range of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gap {
    /// Where it starts.
    pub offset: u64,
    /// Its length.
    pub len: u64,
}

impl Gap {
    /// `gaps` in order, those that touch joined.
    pub fn joined(mut gaps: Vec<Self>) -> Vec<Self> {
        gaps.sort_unstable();
        gaps.dedup_by(|next, last| {
            let touch = next.offset <= last.offset + last.len;
            if touch {
                last.len = last.len.max(next.offset + next.len - last.offset);
            }
            touch
        });
        gaps
    }
}

/// What an entry says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// The machine.
    pub machine: String,
    /// Its number on the line.
    pub number: u64,
    /// The generation it belongs to, or begins.
    pub generation: u64,
    /// Who wrote it.
    pub writer: Uuid,
    /// The host it was written on, for people.
    pub host: String,
    /// What it is.
    pub kind: EntryKind,
    /// The point before it, or the point its generation forks from.
    pub parent: Option<PointId>,
    /// The parent's mark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_mark: Option<Digest>,
    /// The instant of the cut, by the proxy's clock; of the claim, by the writer's.
    pub time: Timestamp,
    /// The machine's disks at that instant.
    pub disks: Vec<PointDisk>,
    /// Bytes of its deltas as stored.
    pub bytes: u64,
    /// Bytes of disks that its deltas cover.
    pub logical: u64,
    /// The cut of a consistency group that it is the machine's share of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupCut>,
}

impl Header {
    /// The entry's id.
    pub fn id(&self) -> PointId {
        PointId { generation: self.generation, number: self.number }
    }

    /// Who wrote it, in which generation.
    pub fn owner(&self) -> Owner {
        Owner { writer: self.writer, generation: self.generation }
    }

    /// It is a point, not a claim.
    pub fn is_point(&self) -> bool {
        self.kind != EntryKind::Claim
    }
}

/// A delta that a point consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeltaRef {
    /// Its name in the machine's folder of deltas; without one it is embedded in the entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its bytes as stored.
    pub size: u64,
    /// Bytes of disks that it covers.
    pub logical: u64,
    /// Where its index is.
    pub index: IndexRef,
    /// What it is sealed under.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub salt: Option<Salt>,
}

impl DeltaRef {
    /// Names `delta`, which is the object `name`, or embedded.
    pub fn to(delta: &Encoded, name: Option<String>) -> Self {
        Self { name, size: delta.size, logical: delta.logical, index: delta.index, salt: delta.salt }
    }
}

/// A whole entry, verified.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What it says about itself.
    pub header: Header,
    /// Tells it from any other of the same name.
    pub mark: Digest,
    /// Its deltas, in the order in which they apply.
    pub deltas: Vec<DeltaRef>,
    /// Where in the entry the embedded delta is; empty if there is none.
    pub embedded: Range<usize>,
}

/// The bytes of the entry `named`.
pub fn encode(
    named: &Named,
    header: &Header,
    deltas: &[DeltaRef],
    embedded: Option<&Encoded>,
) -> Result<Bytes> {
    let unwritable = |e: &dyn std::fmt::Display| {
        Error::new(Kind::InvalidInput, header.id().to_string(), format!("cannot write the entry: {e}"))
    };
    let (salt, units) = named.sealer()?;
    let head = serde_json::to_vec(header).map_err(|e| unwritable(&e))?;
    let list = serde_json::to_vec(deltas).map_err(|e| unwritable(&e))?;
    let list = units.seal(DIRECTORY, zstd::bulk::compress(&list, 3).map_err(|e| unwritable(&e))?)?;
    let embedded = embedded.map(Encoded::to_vec).unwrap_or_default();
    let len = |bytes: &[u8]| u32::try_from(bytes.len()).map_err(|e| unwritable(&e));

    let mut out = Vec::with_capacity(128 + head.len() + list.len() + embedded.len());
    out.extend_from_slice(&MAGIC);
    out.push(if salt.is_some() { SEALED } else { PLAIN });
    out.extend_from_slice(&len(&head)?.to_le_bytes());
    out.extend_from_slice(&len(&list)?.to_le_bytes());
    out.extend_from_slice(&(embedded.len() as u64).to_le_bytes());
    out.extend_from_slice(&[0; 8]);
    out.extend(salt.iter().flat_map(|salt| salt.0));
    let mark = units.mark(HEADER, &[&out[..], &head].concat())?;
    out.extend_from_slice(&mark.0);
    out.extend_from_slice(&head);
    out.extend_from_slice(&list);
    out.extend_from_slice(&embedded);
    let seal = sha256(&out);
    out.extend_from_slice(&seal);
    Ok(out.into())
}

/// What an entry's prefix states.
struct Prefix {
    salt: Option<Salt>,
    mark: Digest,
    /// Where the header begins.
    end: usize,
    header: usize,
    list: usize,
    embedded: usize,
}

fn decode_prefix(bytes: &[u8]) -> Result<Prefix, &'static str> {
    const SHORT: &str = "it is shorter than any entry";
    let fields = bytes.get(..FIELDS_LEN).ok_or(SHORT)?;
    if fields[..7] != MAGIC {
        return Err("this is no entry of a line");
    }
    let salt = match fields[7] {
        PLAIN => None,
        SEALED => Some(Salt(*bytes[FIELDS_LEN..].first_chunk().ok_or(SHORT)?)),
        _ => return Err("this entry has a version that this program does not know"),
    };
    let mark_at = FIELDS_LEN + salt.map_or(0, |salt| salt.0.len());
    let mark = Digest(*bytes.get(mark_at..).and_then(<[u8]>::first_chunk).ok_or(SHORT)?);
    let (mut header, mut list, mut embedded) = ([0; 4], [0; 4], [0; 8]);
    header.copy_from_slice(&fields[8..12]);
    list.copy_from_slice(&fields[12..16]);
    embedded.copy_from_slice(&fields[16..24]);
    let (header, list) = (u32::from_le_bytes(header).into(), u32::from_le_bytes(list).into());
    let size =
        |n: u64| usize::try_from(n).ok().filter(|n| *n <= 1 << 40).ok_or("it states an impossible length");
    let (header, list, embedded) = (size(header)?, size(list)?, size(u64::from_le_bytes(embedded))?);
    let prefix = Prefix { salt, mark, end: mark_at + MARK_LEN, header, list, embedded };
    if prefix.header > HEADER_MAX { Err("it states an impossible length") } else { Ok(prefix) }
}

/// How many bytes from an entry's start suffice for [`decode_header`], given its first bytes.
pub fn header_end(object: &str, start: &[u8]) -> Result<usize> {
    let prefix = decode_prefix(start).map_err(|what| unreadable(object, what))?;
    Ok(prefix.end + prefix.header)
}

/// The mark in an entry's first bytes, unchecked.
pub fn mark(object: &str, start: &[u8]) -> Result<Digest> {
    decode_prefix(start).map(|prefix| prefix.mark).map_err(|what| unreadable(object, what))
}

/// The header in an entry's first bytes, unchecked: for those who have no key.
pub fn clear_header(object: &str, start: &[u8]) -> Result<Header> {
    let prefix = decode_prefix(start).map_err(|what| unreadable(object, what))?;
    let header = start.get(prefix.end..prefix.end + prefix.header);
    let header = header.ok_or_else(|| unreadable(object, "its header is cut off"))?;
    serde_json::from_slice(header).map_err(|e| unreadable(object, &format!("its header: {e}")))
}

/// Reads the header out of the first bytes of the entry `named`.
pub fn decode_header(named: &Named, start: &[u8]) -> Result<Header> {
    let prefix = decode_prefix(start).map_err(|what| unreadable(&named.object, what))?;
    checked_header(named, &prefix, &named.opener(prefix.salt)?, start)
}

fn checked_header(named: &Named, prefix: &Prefix, units: &Units, start: &[u8]) -> Result<Header> {
    let corrupt = |what: &str| unreadable(&named.object, what);
    let header = start.get(prefix.end..prefix.end + prefix.header);
    let header = header.ok_or_else(|| corrupt("its header is cut off"))?;
    let marked = [&start[..prefix.end - MARK_LEN], header].concat();
    if !units.is_marked(HEADER, &marked, prefix.mark) {
        return Err(corrupt(
            "its header does not match its mark: it was changed, or belongs under another name",
        ));
    }
    serde_json::from_slice(header).map_err(|e| corrupt(&format!("its header: {e}")))
}

/// How many bytes from an entry's start suffice for [`decode_start`], given its first bytes.
pub fn list_end(object: &str, start: &[u8]) -> Result<usize> {
    let prefix = decode_prefix(start).map_err(|what| unreadable(object, what))?;
    Ok(prefix.end + prefix.header + prefix.list)
}

/// Reads what the entry `named` says about itself and which deltas it consists of out of its first bytes. Without
/// encryption nothing guards the list there: it says what the entry means to have, and nothing is read by it.
pub fn decode_start(named: &Named, start: &[u8]) -> Result<(Header, Vec<DeltaRef>)> {
    let corrupt = |what: &str| unreadable(&named.object, what);
    let prefix = decode_prefix(start).map_err(corrupt)?;
    let units = named.opener(prefix.salt)?;
    let header = checked_header(named, &prefix, &units, start)?;
    let list_at = prefix.end + prefix.header;
    let list = start.get(list_at..list_at + prefix.list);
    let list = units.open(
        &named.object,
        DIRECTORY,
        list.ok_or_else(|| corrupt("its list of deltas is cut off"))?,
    )?;
    let list = decode_list(&list).map_err(|e| corrupt(&format!("its list of deltas: {e}")))?;
    Ok((header, list))
}

/// Reads the whole entry `named`.
pub fn decode(named: &Named, bytes: &[u8]) -> Result<Entry> {
    let corrupt = |what: &str| unreadable(&named.object, what);
    let prefix = decode_prefix(bytes).map_err(corrupt)?;
    let list_at = prefix.end + prefix.header;
    let embedded_at = list_at + prefix.list;
    let seal_at = embedded_at + prefix.embedded;
    if bytes.len() != seal_at + SEAL_LEN {
        return Err(corrupt("its length is not what it states"));
    }
    if sha256(&bytes[..seal_at]) != bytes[seal_at..] {
        return Err(corrupt("it does not match its SHA-256"));
    }
    let units = named.opener(prefix.salt)?;
    let header = checked_header(named, &prefix, &units, bytes)?;
    let list = units.open(&named.object, DIRECTORY, &bytes[list_at..embedded_at])?;
    let deltas: Vec<DeltaRef> =
        decode_list(&list).map_err(|e| corrupt(&format!("its list of deltas: {e}")))?;
    let embedded = deltas.iter().filter(|delta| delta.name.is_none()).map(|delta| delta.size);
    if embedded.sum::<u64>() != prefix.embedded as u64 {
        return Err(corrupt("its list does not describe what is embedded"));
    }
    Ok(Entry { header, mark: prefix.mark, deltas, embedded: embedded_at..seal_at })
}

fn decode_list(stored: &[u8]) -> std::io::Result<Vec<DeltaRef>> {
    let mut list = Vec::new();
    zstd::Decoder::new(stored)?.take(LIST_MAX).read_to_end(&mut list)?;
    Ok(serde_json::from_slice(&list)?)
}

/// The owner of an entry, for the line.
pub fn owner_of(named: &Named, entry: &[u8]) -> Result<Owner> {
    decode_header(named, entry).map(|header| header.owner())
}

fn unreadable(object: &str, what: &str) -> Error {
    Error::corrupt(object, format!("cannot read the entry: {what}"))
}

#[cfg(test)]
mod tests;
