//! What the vault has of a disk, as hashes ordered by address, in a scratch file: so that a disk of any size, over a
//! history of any length, is compared in bounded memory.
//!
//! The deltas are gone through once, newest first: those of the sync's own journal, then the chain of the point that the
//! next one will name as its parent, down to the disk's base. What each index says of the disk is cut by *windows* of the
//! address space and appended to the file as one chunk per window, which names the window's chunk before it. Followed from the
//! last, a window's chunks come oldest first, and newest wins. In memory are one number per window, and one window.
//!
//! The file is never synced and has no name once it is open: a death leaves nothing behind, and the next attempt begins
//! again. It takes 32 bytes per cell, 0.05 % of a full disk.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use futures_util::{StreamExt as _, stream};
use nbd_proxy::{Error, Result, durable};

use super::ship;
use crate::blockmap::{self, Chain, Found};
use crate::delta::format::{Hashed, Index};
use crate::delta::reader::Place;
use crate::digest::Digest;
use crate::intervals::{self, IntervalMap};
use crate::keys::{self, PointId};
use crate::point::DeltaRef;
use crate::vault::Vault;

/// A window is at least this long …
const WINDOW: u64 = 64 << 20;
/// … and longer where there would be more than these: half a MiB of memory.
const WINDOWS: u64 = 64 << 10;
/// Ranges of a window that are told apart; about 10 MiB. Beyond it nothing in the window is known.
const RANGES_MAX: usize = 100_000;
/// Indexes fetched at the same time, as far as there is room for them.
const PARALLEL: usize = 16;

const CHUNK_HEAD: usize = 16;
const RECORD: usize = 32;
/// Marks a record of a range that reads as zero.
const ZERO: u64 = 1 << 63;
/// Stands for "no chunk".
const NONE: u64 = u64::MAX;

/// What a range is known to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// It reads as zero.
    Zero,
    /// It is, or is a part of, a cell with this digest.
    Cell { offset: u64, len: u64, digest: Digest },
}

impl intervals::Source for Content {
    /// A part of a cell says which cell it is a part of.
    fn advanced(&self, _by: u64) -> Self {
        *self
    }
}

/// A window of the address space. What its map does not name reads as zero.
pub(super) struct Window {
    pub start: u64,
    pub end: u64,
    /// `None` if there is too much to tell.
    pub map: Option<IntervalMap<Content>>,
}

/// Which disk, as held by what.
pub(super) struct Wanted {
    pub machine: String,
    pub disk: String,
    /// The size that the next point will have.
    pub size: u64,
    /// The point that the next one builds on, with its mark.
    pub head: Option<(PointId, Option<Digest>)>,
    /// What the next point will hold besides, in the order in which it applies.
    pub journal: Vec<DeltaRef>,
    /// Where the scratch file may be.
    pub folder: PathBuf,
}

/// See the module.
pub(super) struct Held {
    scratch: BufWriter<File>,
    path: PathBuf,
    written: u64,
    /// Where each window's last chunk is.
    last: Vec<u64>,
    window: u64,
    size: u64,
}

/// Goes through all deltas that `wanted` names.
pub(super) async fn build(vault: Vault, wanted: Wanted) -> Result<Held> {
    let mut held = Held::create(&wanted)?;
    let object = |delta: &DeltaRef| {
        let key = keys::delta(&wanted.machine, delta.name.as_deref()?);
        Some(Found::Object(Place { key, base: 0, salt: delta.salt }, delta.index))
    };
    let journal: Vec<Found> = wanted.journal.iter().rev().filter_map(object).collect();
    held.add_all(&vault, &wanted.disk, journal).await?;
    let mut chain = Chain::new(&vault, &wanted.machine);
    let mut next = wanted.head;
    while let Some((point, mark)) = next {
        let mut ancestor = chain.entry(point, mark).await?;
        ancestor.deltas.reverse();
        held.add_all(&vault, &wanted.disk, ancestor.deltas).await?;
        if ancestor.header.disks.iter().any(|disk| disk.name == wanted.disk && disk.whole) {
            break;
        }
        let no_base = || blockmap::without_base(&wanted.machine, point, &wanted.disk);
        next = Some((ancestor.header.parent.ok_or_else(no_base)?, ancestor.header.parent_mark));
    }
    held.scratch.flush().map_err(|e| Error::io("write", &held.path, e))?;
    Ok(held)
}

impl Held {
    fn create(wanted: &Wanted) -> Result<Self> {
        let path = wanted.folder.join(format!("{}.compare", wanted.machine));
        let file = durable::scratch(&path).map_err(|e| Error::io("create and unlink", &path, e))?;
        let window = wanted.size.div_ceil(WINDOWS).next_power_of_two().max(WINDOW);
        let windows = usize::try_from(wanted.size.div_ceil(window)).unwrap_or(0);
        let scratch = BufWriter::with_capacity(256 << 10, file);
        Ok(Self { scratch, path, written: 0, last: vec![NONE; windows], window, size: wanted.size })
    }

    /// Adds `deltas`, newest first.
    async fn add_all(&mut self, vault: &Vault, disk: &str, deltas: Vec<Found>) -> Result<()> {
        let open = |found: Found| async move {
            // A decoded index takes up to three times the memory of a raw one, which is there as well for a while.
            let raw = if let Found::Object(_, index) = &found { u64::from(index.raw_len) } else { 0 };
            let room = ship::room(4 * raw).await?;
            Ok::<_, Error>((found.open(vault).await?, room))
        };
        let mut opened = stream::iter(deltas).map(open).buffered(PARALLEL);
        while let Some(delta) = opened.next().await {
            let (reader, _room) = delta?;
            self.add(&reader.index, disk)?;
        }
        Ok(())
    }

    /// Adds what `index` says of `disk`; it is older than all that was added.
    fn add(&mut self, index: &Index, disk: &str) -> Result<()> {
        let mut records: Vec<u8> = Vec::new();
        let mut open = 0;
        for Hashed { offset, len, digest } in index.hashed(disk) {
            let (mut at, end) = (offset, (offset + len).min(self.size));
            while at < end {
                let number = at / self.window;
                if number != open {
                    self.chunk(open, &mut records)?;
                    open = number;
                }
                match digest {
                    // A cell never crosses a window: both ends of a window are ends of cells. It stays whole at the disk's
                    // end, where a part of it cannot be compared.
                    Some(digest) => {
                        record(&mut records, offset, len, &digest.0);
                        at = end;
                    }
                    None => {
                        let stop = end.min((number + 1) * self.window);
                        record(&mut records, at, (stop - at) | ZERO, &[0; 16]);
                        at = stop;
                    }
                }
            }
        }
        self.chunk(open, &mut records)
    }

    /// Appends the records of a window.
    fn chunk(&mut self, window: u64, records: &mut Vec<u8>) -> Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        let Some(last) = usize::try_from(window).ok().and_then(|window| self.last.get_mut(window)) else {
            return Err(Error::corrupt(self.path.display().to_string(), "a range lies past the disk's end"));
        };
        let mut head = [0; CHUNK_HEAD];
        head[..8].copy_from_slice(&last.to_le_bytes());
        head[8..].copy_from_slice(&(records.len() as u64).to_le_bytes());
        *last = self.written;
        self.written += (CHUNK_HEAD + records.len()) as u64;
        let written = self.scratch.write_all(&head).and_then(|()| self.scratch.write_all(records));
        records.clear();
        written.map_err(|e| {
            Error::io("write the scratch file of a compare", &self.path, e)
                .remedy("the state folder needs room for 0.05 % of the disk")
        })
    }

    /// Whether nothing but zeroes is known in the window around `at`; and where it ends.
    pub fn is_empty(&self, at: u64) -> (bool, u64) {
        let number = at / self.window;
        let last = usize::try_from(number).ok().and_then(|number| self.last.get(number));
        (last.is_none_or(|last| *last == NONE), ((number + 1) * self.window).min(self.size))
    }

    /// The window around `at`.
    pub fn window(&self, at: u64) -> Result<Window> {
        let number = at / self.window;
        let (start, end) = (number * self.window, ((number + 1) * self.window).min(self.size));
        let mut map = IntervalMap::default();
        let mut next = usize::try_from(number).ok().and_then(|n| self.last.get(n)).copied().unwrap_or(NONE);
        while next != NONE {
            let mut head = [0; CHUNK_HEAD];
            self.read(&mut head, next)?;
            let mut records = vec![0; usize::try_from(number_at(&head, 8)).unwrap_or(0)];
            self.read(&mut records, next + CHUNK_HEAD as u64)?;
            for record in records.chunks_exact(RECORD) {
                let (offset, tagged) = (number_at(record, 0), number_at(record, 8));
                let len = tagged & !ZERO;
                let mut digest = [0; 16];
                digest.copy_from_slice(&record[16..]);
                let cell = Content::Cell { offset, len, digest: Digest(digest) };
                let content = if tagged & ZERO == 0 { cell } else { Content::Zero };
                map.insert(offset, len.min(end.saturating_sub(offset)), content);
            }
            if map.len() > RANGES_MAX {
                return Ok(Window { start, end, map: None });
            }
            next = number_at(&head, 0);
        }
        Ok(Window { start, end, map: Some(map) })
    }

    fn read(&self, buffer: &mut [u8], at: u64) -> Result<()> {
        let read = self.scratch.get_ref().read_exact_at(buffer, at);
        read.map_err(|e| Error::io("read the scratch file", Path::new(&self.path), e))
    }
}

fn record(records: &mut Vec<u8>, offset: u64, tagged: u64, digest: &[u8; 16]) {
    records.extend_from_slice(&offset.to_le_bytes());
    records.extend_from_slice(&tagged.to_le_bytes());
    records.extend_from_slice(digest);
}

fn number_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

#[cfg(test)]
mod tests;
