//! A delta or an entry taken apart for people: read from a file, every checksum verified. What is encrypted is shown as far as it
//! is clear, or wholly if the vault it comes from is at hand, opened with a key.

use std::fmt;
use std::path::Path;

use nbd_proxy::{Error, Kind, Result};
use serde::Serialize;

use crate::catalogue::{self, Catalogue};
use crate::cipher::Named;
use crate::delta::format::decode_trailer;
use crate::delta::reader;
use crate::delta::{Index, IndexRef};
use crate::digest::hex;
use crate::keys;
use crate::point::{self, DeltaRef, EntryKind, Header};
use crate::vault::Vault;

/// What a file holds.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case", tag = "type")]
pub enum Description {
    /// A delta.
    Delta(DeltaSummary),
    /// An entry of a line: a point or a claim.
    Entry(Box<EntrySummary>),
    /// A catalogue.
    Catalogue(Box<Catalogue>),
    /// An encrypted delta, without the key: its trailer.
    SealedDelta(SealedDelta),
    /// An encrypted entry, without the key: its header. That nobody changed it cannot be told.
    SealedEntry(Box<SealedEntry>),
}

/// What is clear of an encrypted delta.
#[derive(Clone, Debug, Serialize)]
pub struct SealedDelta {
    /// Its size in bytes.
    pub size: u64,
    /// Where its index is.
    pub index: IndexRef,
}

/// What is clear of an encrypted entry.
#[derive(Clone, Debug, Serialize)]
pub struct SealedEntry {
    /// What it says about itself, unverified.
    pub header: Header,
}

/// A delta in numbers.
#[derive(Clone, Debug, Serialize)]
pub struct DeltaSummary {
    /// Its size in bytes.
    pub size: u64,
    /// Its frames.
    pub frames: usize,
    /// Raw bytes in its frames.
    pub raw: u64,
    /// Where its index is.
    pub index: IndexRef,
    /// Its disks.
    pub disks: Vec<DiskChanges>,
}

/// What a delta holds of a disk.
#[derive(Clone, Debug, Serialize)]
pub struct DiskChanges {
    /// The disk.
    pub name: String,
    /// Runs of changed bytes.
    pub extents: usize,
    /// Bytes with data.
    pub data: u64,
    /// Bytes that read as zero.
    pub zero: u64,
}

/// An entry in numbers.
#[derive(Clone, Debug, Serialize)]
pub struct EntrySummary {
    /// What it says about itself.
    pub header: Header,
    /// Its deltas in the order in which they apply.
    pub deltas: Vec<DeltaRef>,
    /// The delta embedded in it.
    pub embedded: Option<DeltaSummary>,
}

/// Takes the file at `path` apart; if it is encrypted, with what opens `vault`.
pub fn describe(path: &Path, vault: Option<&Vault>) -> Result<Description> {
    let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    let object = path.display().to_string();
    let Some(vault) = vault.filter(|_| is_sealed(&bytes)) else { return clear(&object, &bytes) };
    // An entry is bound to its name: that of the file as it lies in a vault, or, of a copy, what its header says. A delta is not.
    let in_vault = object.rfind(&format!("/{}/", keys::MACHINES)).map(|at| object[at + 1..].to_owned());
    let key = match in_vault {
        Some(key) => key,
        None if bytes.starts_with(&point::MAGIC) => {
            let header = point::clear_header(&object, &bytes)?;
            keys::line_entry(&keys::line_folder(&header.machine), header.number)
        }
        None => String::new(),
    };
    decode(&Named { cipher: vault.cipher.clone(), key, object }, &bytes)
}

/// Whether `bytes` begin as an encrypted delta, entry or catalogue does.
pub fn is_sealed(bytes: &[u8]) -> bool {
    let magics = [point::MAGIC, crate::delta::format::MAGIC, catalogue::MAGIC];
    magics.iter().any(|magic| bytes.starts_with(magic)) && bytes.get(7) == Some(&2)
}

/// Takes `bytes` apart as far as that goes without a key.
fn clear(object: &str, bytes: &[u8]) -> Result<Description> {
    if !is_sealed(bytes) {
        return decode(&Named::plain(object), bytes);
    }
    if bytes.starts_with(&point::MAGIC) {
        let header = point::clear_header(object, bytes)?;
        return Ok(Description::SealedEntry(Box::new(SealedEntry { header })));
    }
    if bytes.starts_with(&catalogue::MAGIC) {
        let remedy = "name the vault and its key, and the file by the name that it has in the vault";
        return Err(Error::new(Kind::Denied, object, "is an encrypted catalogue").remedy(remedy));
    }
    let trailer = bytes.last_chunk::<64>().map(|trailer| &trailer[..]).unwrap_or_default();
    let (_, index) = decode_trailer(trailer)
        .map_err(|what| Error::corrupt(object, format!("cannot read the delta: {what}")))?;
    Ok(Description::SealedDelta(SealedDelta { size: bytes.len() as u64, index }))
}

/// Takes the object `named` apart. Takes arbitrary bytes.
pub fn decode(named: &Named, bytes: &[u8]) -> Result<Description> {
    let object = &named.object;
    match bytes.get(..7) {
        Some(start) if *start == crate::delta::format::MAGIC => delta(named, bytes).map(Description::Delta),
        Some(start) if *start == point::MAGIC => {
            let entry = point::decode(named, bytes)?;
            let embedded = &bytes[entry.embedded.clone()];
            let embedded = if embedded.is_empty() { None } else { Some(delta(named, embedded)?) };
            let (header, deltas) = (entry.header, entry.deltas);
            Ok(Description::Entry(Box::new(EntrySummary { header, deltas, embedded })))
        }
        Some(start) if *start == catalogue::MAGIC => {
            catalogue::decode(named, bytes).map(|catalogue| Description::Catalogue(Box::new(catalogue)))
        }
        _ => {
            let message = "is neither a delta nor an entry of a line nor a catalogue";
            Err(Error::new(Kind::InvalidInput, object.as_str(), message).remedy("name a file from a vault"))
        }
    }
}

fn delta(named: &Named, bytes: &[u8]) -> Result<DeltaSummary> {
    let (index_ref, index) = reader::check(&named.object, &named.cipher, bytes)?;
    let Index { frames, disks, .. } = index;
    let summary = |(name, extents): (String, Vec<crate::delta::Extent>)| {
        let sum =
            |data: bool| extents.iter().filter(|extent| extent.at.is_some() == data).map(|e| e.len).sum();
        DiskChanges { name, extents: extents.len(), data: sum(true), zero: sum(false) }
    };
    Ok(DeltaSummary {
        size: bytes.len() as u64,
        frames: frames.len(),
        raw: frames.iter().map(|frame| u64::from(frame.raw_len)).sum(),
        index: index_ref,
        disks: disks.into_iter().map(summary).collect(),
    })
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Delta(delta) => delta.fmt(f),
            Self::Entry(entry) => entry.fmt(f),
            Self::Catalogue(catalogue) => catalogue.fmt(f),
            Self::SealedDelta(delta) => {
                let place = format!("{} bytes at {}", delta.index.len, delta.index.offset);
                writeln!(f, "encrypted delta: {} bytes, of them an index of {place}", delta.size)?;
                f.write_str(WITHOUT)
            }
            Self::SealedEntry(entry) => {
                write_header(f, &entry.header)?;
                f.write_str(WITHOUT)
            }
        }
    }
}

impl fmt::Display for DeltaSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "delta: {} bytes, {} frames holding {} raw bytes", self.size, self.frames, self.raw)?;
        writeln!(
            f,
            "index: at {}, {} bytes, digest {}",
            self.index.offset,
            self.index.len,
            hex(&self.index.digest.0)
        )?;
        for disk in &self.disks {
            let (name, extents) = (&disk.name, disk.extents);
            writeln!(
                f,
                "disk {name}: {extents} extents, {} data bytes, {} zero bytes",
                disk.data, disk.zero
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Catalogue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "catalogue {} of {}: floor {}", self.number, self.machine, self.floor)?;
        for kept in &self.points {
            let (live, size) = kept
                .deltas
                .iter()
                .fold((0, 0), |(live, size), kept| (live + kept.live, size + kept.delta.size));
            let parent = kept.header.parent.map_or_else(|| "nothing".to_owned(), |parent| parent.to_string());
            let (id, time, deltas) = (kept.header.id(), kept.header.time, kept.deltas.len());
            writeln!(f, "point {id} of {time}: {deltas} deltas over {parent}, {live} of {size} bytes alive")?;
        }
        for claim in &self.claims {
            writeln!(f, "claim {} of {}", claim.id(), claim.time)?;
        }
        self.pins.iter().try_for_each(|pin| writeln!(f, "pinned: {pin}"))
    }
}

const WITHOUT: &str = "the rest is encrypted, and nothing of this is verified: name the vault and its key";

fn write_header(f: &mut fmt::Formatter<'_>, header: &Header) -> fmt::Result {
    let what = if header.is_point() { "point" } else { "claim" };
    let what = if header.kind == EntryKind::Application { "application-consistent point" } else { what };
    writeln!(f, "{what} {} of {}, {} on host {}", header.id(), header.machine, header.time, header.host)?;
    writeln!(f, "writer: {}", header.writer)?;
    if let Some(parent) = header.parent {
        writeln!(f, "parent: {parent}")?;
    }
    if let Some(group) = &header.group {
        writeln!(f, "group {}: cut {} of {}", group.name, group.cut, group.members.join(", "))?;
    }
    for disk in &header.disks {
        let whole = if disk.whole { ", whole" } else { "" };
        writeln!(f, "disk {}: {} bytes{whole}, tracking {}", disk.name, disk.size, disk.tracking)?;
        for gap in &disk.unreadable {
            writeln!(f, "  {} bytes at {} could not be read", gap.len, gap.offset)?;
        }
    }
    Ok(())
}

impl fmt::Display for EntrySummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header = &self.header;
        write_header(f, header)?;
        for delta in &self.deltas {
            let name = delta.name.as_ref().map(|name| keys::delta(&header.machine, name));
            let name = name.unwrap_or_else(|| "embedded".to_owned());
            writeln!(f, "delta {name}: {} bytes, covering {} bytes of disks", delta.size, delta.logical)?;
        }
        self.embedded.as_ref().map_or(Ok(()), |delta| delta.fmt(f))
    }
}

#[cfg(test)]
mod tests;
