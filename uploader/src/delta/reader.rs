//! Reads a delta out of its object, or out of the entry that embeds it.

use std::ops::Range;

use bytes::Bytes;
use nbd_proxy::{Error, Result};

use super::format::{self, Frame, Index, IndexRef, TRAILER_LEN};
use crate::cipher::{Cipher, DELTA, Salt, Units};
use crate::digest::Digest;
use crate::store::Store;
use crate::vault::Vault;

/// Where a delta's bytes are: an object, and where in it the delta starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The object.
    pub key: String,
    /// Where the delta's first byte is in it.
    pub base: u64,
    /// What the delta is sealed under, as whoever refers to it says.
    pub salt: Option<Salt>,
}

/// A delta that can be read.
#[derive(Clone, Debug)]
pub struct DeltaReader {
    store: Store,
    place: Place,
    units: Units,
    /// What it holds.
    pub index: Index,
}

impl DeltaReader {
    /// Opens the delta at `place`, whose index is where `index` says: one request.
    pub async fn open(vault: &Vault, place: Place, index: &IndexRef) -> Result<Self> {
        let start = place.base + index.offset;
        let stored = vault.store.get_range(&place.key, start..start + u64::from(index.len)).await?;
        Self::with_index(vault, place, index, &stored)
    }

    /// Opens the delta at `place` whose stored index is at hand.
    pub fn with_index(vault: &Vault, place: Place, index: &IndexRef, stored: &[u8]) -> Result<Self> {
        let object = vault.store.name_of(&place.key);
        let units = vault.cipher.opener(&object, DELTA, place.salt)?;
        let index = format::decode_index(&object, &units, index, stored)?;
        Ok(Self { store: vault.store.clone(), place, units, index })
    }

    /// How people name the object.
    pub fn name(&self) -> String {
        self.store.name_of(&self.place.key)
    }

    /// Where the delta's bytes are.
    #[cfg(test)]
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// Fetches `frames`, which must follow each other, in one request; they come unchecked and packed.
    pub async fn fetch(&self, frames: Range<usize>) -> Result<Bytes> {
        let run = &self.index.frames[frames];
        let (Some(first), Some(last)) = (run.first(), run.last()) else { return Ok(Bytes::new()) };
        let (start, end) =
            (self.place.base + first.offset, self.place.base + last.offset + u64::from(last.len));
        self.store.get_range(&self.place.key, start..end).await
    }

    /// Unpacks and verifies a frame.
    pub fn unpack(&self, frame: usize, stored: &[u8]) -> Result<Vec<u8>> {
        unpack(&self.name(), &self.units, frame, &self.index.frames[frame], stored)
    }
}

/// Opens, unpacks and verifies frame `number`.
pub fn unpack(object: &str, units: &Units, number: usize, frame: &Frame, stored: &[u8]) -> Result<Vec<u8>> {
    let corrupt = |what: &str| {
        let place = format!("frame of {} bytes at {}", frame.len, frame.offset);
        Error::corrupt(object, format!("the delta's {place} cannot be read: {what}"))
    };
    let raw_len = usize::try_from(frame.raw_len).map_err(|_| corrupt("too long"))?;
    let content = units.open(object, number as u64, stored)?;
    let raw = if content.len() == raw_len {
        content.into_owned()
    } else {
        zstd::bulk::decompress(&content, raw_len).map_err(|e| corrupt(&e.to_string()))?
    };
    if raw.len() != raw_len || Digest::of(&raw) != frame.digest {
        return Err(corrupt("its content does not match its digest"));
    }
    Ok(raw)
}

/// Takes a whole delta apart: every unit is opened, every checksum verified. `object` names it in errors.
pub fn check(object: &str, cipher: &Cipher, delta: &[u8]) -> Result<(IndexRef, Index)> {
    let corrupt = |what: &str| Error::corrupt(object, format!("cannot read the delta: {what}"));
    let len = delta.len() as u64;
    let (form, salt) = format::decode_header(delta).map_err(corrupt)?;
    if len < form.header_len() + TRAILER_LEN {
        return Err(corrupt("it is shorter than any delta"));
    }
    let units = cipher.opener(object, DELTA, salt)?;
    let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
    let trailer = at(len - TRAILER_LEN);
    let (trailer_form, reference) = format::decode_trailer(&delta[trailer..]).map_err(corrupt)?;
    if trailer_form != form {
        return Err(corrupt("it begins in one version and ends in another"));
    }
    if reference.offset.checked_add(reference.len.into()) != Some(len - TRAILER_LEN) {
        return Err(corrupt("its index is not where the trailer says"));
    }
    let index = format::decode_index(object, &units, &reference, &delta[at(reference.offset)..trailer])?;
    for (number, frame) in index.frames.iter().enumerate() {
        let stored = &delta[at(frame.offset)..at(frame.offset + u64::from(frame.len))];
        unpack(object, &units, number, frame, stored)?;
    }
    Ok((reference, index))
}
