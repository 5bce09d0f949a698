//! Reads a delta out of its object, or out of the entry that embeds it.

use std::ops::Range;

use bytes::Bytes;
use nbd_proxy::{Error, Result};

use super::format::{self, Frame, HEADER_LEN, Index, IndexRef, MAGIC, TRAILER_LEN};
use crate::digest::Digest;
use crate::store::Store;

/// Where a delta's bytes are: an object, and where in it the delta starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The object.
    pub key: String,
    /// Where the delta's first byte is in it.
    pub base: u64,
}

/// A delta that can be read.
#[derive(Clone, Debug)]
pub struct DeltaReader {
    store: Store,
    place: Place,
    /// What it holds.
    pub index: Index,
}

impl DeltaReader {
    /// Opens the delta at `place`, whose index is where `index` says: one request.
    pub async fn open(store: Store, place: Place, index: &IndexRef) -> Result<Self> {
        let start = place.base + index.offset;
        let stored = store.get_range(&place.key, start..start + u64::from(index.len)).await?;
        Self::with_index(store, place, index, &stored)
    }

    /// Opens the delta at `place` whose stored index is at hand.
    pub fn with_index(store: Store, place: Place, index: &IndexRef, stored: &[u8]) -> Result<Self> {
        let index = format::decode_index(&store.name_of(&place.key), index, stored)?;
        Ok(Self { store, place, index })
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
        unpack(&self.name(), &self.index.frames[frame], stored)
    }
}

fn unpack(object: &str, frame: &Frame, stored: &[u8]) -> Result<Vec<u8>> {
    let corrupt = |what: &str| {
        let place = format!("frame of {} bytes at {}", frame.len, frame.offset);
        Error::corrupt(object, format!("the delta's {place} cannot be read: {what}"))
    };
    let raw_len = usize::try_from(frame.raw_len).map_err(|_| corrupt("too long"))?;
    let raw = if frame.len == frame.raw_len {
        stored.to_vec()
    } else {
        zstd::bulk::decompress(stored, raw_len).map_err(|e| corrupt(&e.to_string()))?
    };
    if raw.len() != raw_len || Digest::of(&raw) != frame.digest {
        return Err(corrupt("its content does not match its digest"));
    }
    Ok(raw)
}

/// Takes a whole delta apart: every checksum is verified. `object` names it in errors.
pub fn check(object: &str, delta: &[u8]) -> Result<(IndexRef, Index)> {
    let corrupt = |what: &str| Error::corrupt(object, format!("cannot read the delta: {what}"));
    let len = delta.len() as u64;
    if len < HEADER_LEN + TRAILER_LEN {
        return Err(corrupt("it is shorter than any delta"));
    }
    if delta[..8] != MAGIC {
        return Err(corrupt("it does not start as a delta of a known version does"));
    }
    let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
    let trailer = at(len - TRAILER_LEN);
    let reference = format::decode_trailer(&delta[trailer..]).map_err(corrupt)?;
    if reference.offset.checked_add(reference.len.into()) != Some(len - TRAILER_LEN) {
        return Err(corrupt("its index is not where the trailer says"));
    }
    let index = format::decode_index(object, &reference, &delta[at(reference.offset)..trailer])?;
    for frame in &index.frames {
        let stored = &delta[at(frame.offset)..at(frame.offset + u64::from(frame.len))];
        unpack(object, frame, stored)?;
    }
    Ok((reference, index))
}
