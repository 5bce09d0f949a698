//! An entry of a machine's line, version 1: a point, or the claim that begins a generation. Numbers are little-endian.
//!
//! ```text
//! prefix   8  "LBENTRY" and the version
//!          4  length of the header       4  length of the list of deltas, as stored
//!          8  length of the embedded delta, or zero
//!          8  zero
//!         16  digest of the 32 bytes before and the header
//! header      JSON: see `Header`
//! deltas      zstd of JSON: a list of `DeltaRef`, in the order in which they apply
//! embedded    a delta, byte for byte as it would be as an object
//! seal    32  SHA-256 of everything before
//! ```
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

use crate::delta::{Encoded, IndexRef};
use crate::digest::{Digest, sha256};
use crate::keys::PointId;
use crate::line::Owner;

/// The first bytes of every entry; the last of them is the version.
pub const MAGIC: [u8; 8] = *b"LBENTRY\x01";
const PREFIX_LEN: usize = 48;
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
}

/// A whole entry, verified.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What it says about itself.
    pub header: Header,
    /// Its deltas, in the order in which they apply.
    pub deltas: Vec<DeltaRef>,
    /// Where in the entry the embedded delta is; empty if there is none.
    pub embedded: Range<usize>,
}

/// The bytes of an entry.
pub fn encode(header: &Header, deltas: &[DeltaRef], embedded: Option<&Encoded>) -> Result<Bytes> {
    let unwritable = |e: &dyn std::fmt::Display| {
        Error::new(Kind::InvalidInput, header.id().to_string(), format!("cannot write the entry: {e}"))
    };
    let head = serde_json::to_vec(header).map_err(|e| unwritable(&e))?;
    let list = serde_json::to_vec(deltas).map_err(|e| unwritable(&e))?;
    let list = zstd::bulk::compress(&list, 3).map_err(|e| unwritable(&e))?;
    let embedded = embedded.map(Encoded::to_vec).unwrap_or_default();
    let len = |bytes: &[u8]| u32::try_from(bytes.len()).map_err(|e| unwritable(&e));

    let mut out = Vec::with_capacity(PREFIX_LEN + head.len() + list.len() + embedded.len() + SEAL_LEN);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&len(&head)?.to_le_bytes());
    out.extend_from_slice(&len(&list)?.to_le_bytes());
    out.extend_from_slice(&(embedded.len() as u64).to_le_bytes());
    out.extend_from_slice(&[0; 8]);
    let digest = header_digest(&out, &head);
    out.extend_from_slice(&digest.0);
    out.extend_from_slice(&head);
    out.extend_from_slice(&list);
    out.extend_from_slice(&embedded);
    let seal = sha256(&out);
    out.extend_from_slice(&seal);
    Ok(out.into())
}

fn header_digest(prefix: &[u8], header: &[u8]) -> Digest {
    Digest::of(&[prefix, header].concat())
}

/// The lengths that an entry's prefix states.
struct Prefix {
    header: usize,
    list: usize,
    embedded: usize,
}

fn decode_prefix(bytes: &[u8]) -> Result<Prefix, &'static str> {
    let prefix = bytes.get(..PREFIX_LEN).ok_or("it is shorter than any entry")?;
    if prefix[..7] != MAGIC[..7] {
        return Err("this is no entry of a line");
    }
    if prefix[7] != MAGIC[7] {
        return Err("this entry has a version that this program does not know");
    }
    let (mut header, mut list, mut embedded) = ([0; 4], [0; 4], [0; 8]);
    header.copy_from_slice(&prefix[8..12]);
    list.copy_from_slice(&prefix[12..16]);
    embedded.copy_from_slice(&prefix[16..24]);
    let (header, list) = (u32::from_le_bytes(header).into(), u32::from_le_bytes(list).into());
    let size =
        |n: u64| usize::try_from(n).ok().filter(|n| *n <= 1 << 40).ok_or("it states an impossible length");
    let prefix =
        Prefix { header: size(header)?, list: size(list)?, embedded: size(u64::from_le_bytes(embedded))? };
    if prefix.header > HEADER_MAX { Err("it states an impossible length") } else { Ok(prefix) }
}

/// How many bytes from an entry's start suffice for [`decode_header`], given its first bytes.
pub fn header_end(object: &str, start: &[u8]) -> Result<usize> {
    let prefix = decode_prefix(start).map_err(|what| unreadable(object, what))?;
    Ok(PREFIX_LEN + prefix.header)
}

/// Reads the header out of an entry's first bytes. `object` names the entry in errors.
pub fn decode_header(object: &str, start: &[u8]) -> Result<Header> {
    let corrupt = |what: &str| unreadable(object, what);
    let prefix = decode_prefix(start).map_err(corrupt)?;
    let header =
        start.get(PREFIX_LEN..PREFIX_LEN + prefix.header).ok_or_else(|| corrupt("its header is cut off"))?;
    if header_digest(&start[..32], header).0 != start[32..PREFIX_LEN] {
        return Err(corrupt("its header does not match its digest"));
    }
    serde_json::from_slice(header).map_err(|e| corrupt(&format!("its header: {e}")))
}

/// How many bytes from an entry's start suffice for [`decode_start`], given its first bytes.
pub fn list_end(object: &str, start: &[u8]) -> Result<usize> {
    let prefix = decode_prefix(start).map_err(|what| unreadable(object, what))?;
    Ok(PREFIX_LEN + prefix.header + prefix.list)
}

/// Reads what an entry says about itself and which deltas it consists of out of its first bytes. The list is not
/// covered by the header's digest: it says what an entry means to have, and nothing is read by it.
pub fn decode_start(object: &str, start: &[u8]) -> Result<(Header, Vec<DeltaRef>)> {
    let header = decode_header(object, start)?;
    let prefix = decode_prefix(start).map_err(|what| unreadable(object, what))?;
    let list_at = PREFIX_LEN + prefix.header;
    let list = start.get(list_at..list_at + prefix.list);
    let list = list.ok_or_else(|| unreadable(object, "its list of deltas is cut off"))?;
    let list = decode_list(list).map_err(|e| unreadable(object, &format!("its list of deltas: {e}")))?;
    Ok((header, list))
}

/// Reads a whole entry. `object` names it in errors.
pub fn decode(object: &str, bytes: &[u8]) -> Result<Entry> {
    let corrupt = |what: &str| unreadable(object, what);
    let prefix = decode_prefix(bytes).map_err(corrupt)?;
    let list_at = PREFIX_LEN + prefix.header;
    let embedded_at = list_at + prefix.list;
    let seal_at = embedded_at + prefix.embedded;
    if bytes.len() != seal_at + SEAL_LEN {
        return Err(corrupt("its length is not what it states"));
    }
    if sha256(&bytes[..seal_at]) != bytes[seal_at..] {
        return Err(corrupt("it does not match its SHA-256"));
    }
    let header = decode_header(object, bytes)?;
    let deltas: Vec<DeltaRef> = decode_list(&bytes[list_at..embedded_at])
        .map_err(|e| corrupt(&format!("its list of deltas: {e}")))?;
    let embedded = deltas.iter().filter(|delta| delta.name.is_none()).map(|delta| delta.size);
    if embedded.sum::<u64>() != prefix.embedded as u64 {
        return Err(corrupt("its list does not describe what is embedded"));
    }
    Ok(Entry { header, deltas, embedded: embedded_at..seal_at })
}

fn decode_list(stored: &[u8]) -> std::io::Result<Vec<DeltaRef>> {
    let mut list = Vec::new();
    zstd::Decoder::new(stored)?.take(LIST_MAX).read_to_end(&mut list)?;
    Ok(serde_json::from_slice(&list)?)
}

/// The owner of an entry, for the line.
pub fn owner_of(object: &str, entry: &[u8]) -> Result<Owner> {
    decode_header(object, entry).map(|header| header.owner())
}

fn unreadable(object: &str, what: &str) -> Error {
    Error::corrupt(object, format!("cannot read the entry: {what}"))
}

#[cfg(test)]
mod tests;
