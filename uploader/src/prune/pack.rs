//! Living bytes of many deltas, packed into few.
//!
//! Pieces are written in the order of their addresses, whichever delta they come from, so a pack is as well ordered as a
//! fresh copy of the disk. A batch is bounded by what it fetches: the frames that hold living bytes, as they are stored.

use std::collections::HashMap;
use std::thread;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use nbd_proxy::{Error, Kind, Result};
use tokio::sync::oneshot;

use crate::catalogue::KeptDelta;
use crate::cipher::Cipher;
use crate::commit::{self, EntryId};
use crate::delta::reader::DeltaReader;
use crate::delta::{DeltaWriter, Encoded, writer};
use crate::vault::Vault;

/// A batch is full with this many stored bytes to fetch …
const FULL_STORED: u64 = 48 << 20;
/// … or this many pieces.
const FULL_PIECES: usize = 300_000;
/// Raw bytes of frames that are kept unpacked.
const UNPACKED: usize = 48 << 20;
/// Stored bytes of one request at most, unless a single frame is longer.
const RUN_MAX: u64 = 4 << 20;
/// Requests at the same time.
const PARALLEL: usize = 8;

/// Living bytes of one delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// The disk, as numbered by [`Batch::disk`].
    pub disk: u32,
    /// Where on the disk.
    pub offset: u64,
    /// How many.
    pub len: u64,
    /// Where in the delta's stream; nothing if they read as zero.
    pub at: Option<u64>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Batch {
    disks: Vec<String>,
    /// The deltas, and which of their frames are needed.
    sources: Vec<(DeltaReader, Vec<usize>)>,
    pieces: Vec<(Piece, u32)>,
    stored: u64,
}

impl Batch {
    /// The number of `disk`.
    pub fn disk(&mut self, disk: &str) -> u32 {
        let known = self.disks.iter().position(|known| known == disk);
        let number = known.unwrap_or_else(|| {
            self.disks.push(disk.to_owned());
            self.disks.len() - 1
        });
        u32::try_from(number).unwrap_or(u32::MAX)
    }

    /// Adds the living `pieces` of a delta.
    pub fn add(&mut self, mut reader: DeltaReader, pieces: Vec<Piece>) {
        let index = &reader.index;
        let mut frames: Vec<usize> = Vec::new();
        for (at, len) in pieces.iter().filter_map(|piece| Some((piece.at?, piece.len))) {
            frames.extend(index.frame_at(at)..=index.frame_at(at + len - 1));
        }
        frames.sort_unstable();
        frames.dedup();
        self.stored += frames.iter().map(|frame| u64::from(index.frames[*frame].len)).sum::<u64>();
        (reader.index.disks, reader.index.cells) = (Vec::new(), Vec::new());
        let source = u32::try_from(self.sources.len()).unwrap_or(u32::MAX);
        self.sources.push((reader, frames));
        self.pieces.extend(pieces.into_iter().map(|piece| (piece, source)));
    }

    pub fn is_full(&self) -> bool {
        self.stored >= FULL_STORED || self.pieces.len() >= FULL_PIECES
    }

    /// Writes the batch as packs of `machine`, under names that were drawn for entry `number`.
    pub async fn write(self, vault: &Vault, machine: &str, number: u64) -> Result<Vec<KeptDelta>> {
        if self.pieces.is_empty() {
            return Ok(Vec::new());
        }
        let frames = self.fetch().await?;
        let cipher = vault.cipher.clone();
        let mut kept = Vec::new();
        for pack in on_a_thread(move || self.pack(&Frames(frames), cipher)).await? {
            let uploaded = commit::upload(vault, machine, EntryId::Line(number), pack).await?;
            let delta = uploaded.reference().clone();
            kept.push(KeptDelta { live: delta.size, delta });
        }
        Ok(kept)
    }

    /// The frames that are needed, as they are stored.
    async fn fetch(&self) -> Result<HashMap<(u32, usize), Bytes>> {
        let sources = (0u32..).zip(&self.sources);
        let runs = sources.flat_map(|(number, (reader, frames))| {
            runs(reader, frames).into_iter().map(move |run| (number, reader, run))
        });
        let runs: Vec<_> = runs.collect();
        let fetch = |(number, reader, run): (u32, &DeltaReader, std::ops::Range<usize>)| {
            let reader = reader.clone();
            async move {
                let stored = reader.fetch(run.clone()).await?;
                Ok::<_, Error>((number, reader, run, stored))
            }
        };
        let mut fetched = stream::iter(runs).map(fetch).buffer_unordered(PARALLEL);
        let mut all = HashMap::new();
        while let Some((number, reader, run, stored)) = fetched.try_next().await? {
            let start = reader.index.frames[run.start].offset;
            for frame in run {
                let place = reader.index.frames[frame];
                let at = |offset: u64| usize::try_from(offset - start).unwrap_or(usize::MAX);
                let bytes = stored.slice(at(place.offset)..at(place.offset + u64::from(place.len)));
                all.insert((number, frame), bytes);
            }
        }
        Ok(all)
    }

    fn pack(mut self, frames: &Frames, cipher: Cipher) -> Result<Vec<Encoded>> {
        self.pieces.sort_unstable_by_key(|(piece, _)| (piece.disk, piece.offset));
        let data = self.pieces.iter().filter(|(piece, _)| piece.at.is_some());
        let (bytes, count) = data.fold((0, 0), |(bytes, count), (piece, _)| (bytes + piece.len, count + 1));
        let mut packs =
            Packs { frame_size: writer::frame_size(bytes, count), cipher, done: Vec::new(), open: None };
        let mut cache = Unpacked::default();
        for (piece, number) in &self.pieces {
            let disk = &self.disks[piece.disk as usize];
            let reader = &self.sources[*number as usize].0;
            let Some(at) = piece.at else {
                packs.writer(disk)?.zero(piece.offset, piece.len)?;
                continue;
            };
            let mut done = 0;
            while done < piece.len {
                let frame = reader.index.frame_at(at + done);
                let from =
                    usize::try_from(at + done - reader.index.frames[frame].start).unwrap_or(usize::MAX);
                let raw = cache.get((*number, frame), reader, frames)?;
                let rest = raw.get(from..).unwrap_or_default();
                let take = rest.len().min(usize::try_from(piece.len - done).unwrap_or(usize::MAX));
                if take == 0 {
                    return Err(Error::corrupt(reader.name(), "its extents and its frames do not agree"));
                }
                packs.writer(disk)?.data(piece.offset + done, &rest[..take])?;
                done += take as u64;
            }
        }
        packs.finish()
    }
}

/// Packing waits for the threads that compress, so it must not take one of the runtime's.
async fn on_a_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let failed = |e: &dyn std::fmt::Display| {
        Error::new(Kind::Io, "prune", format!("the packing thread ended early: {e}"))
    };
    let (done, result) = oneshot::channel();
    // Who waited may be gone.
    let run = move || drop(done.send(work()));
    thread::Builder::new().name("pack".to_owned()).spawn(run).map_err(|e| failed(&e))?;
    result.await.map_err(|e| failed(&e))?
}

/// Runs of `frames` that are fetched together.
fn runs(reader: &DeltaReader, frames: &[usize]) -> Vec<std::ops::Range<usize>> {
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    let all = &reader.index.frames;
    for frame in frames {
        let end = all[*frame].offset + u64::from(all[*frame].len);
        match runs.last_mut().filter(|run| run.end == *frame && end - all[run.start].offset <= RUN_MAX) {
            Some(run) => run.end += 1,
            None => runs.push(*frame..*frame + 1),
        }
    }
    runs
}

/// Packs that are being written, one after the other.
struct Packs {
    frame_size: usize,
    cipher: Cipher,
    done: Vec<Encoded>,
    open: Option<DeltaWriter>,
}

impl Packs {
    /// The pack that `disk`'s next bytes go to.
    fn writer(&mut self, disk: &str) -> Result<&mut DeltaWriter> {
        if let Some(full) = self.open.take_if(|writer| writer.is_full()) {
            self.done.push(full.finish()?);
        }
        let writer = match &mut self.open {
            Some(writer) => writer,
            none => none.insert(DeltaWriter::new(self.frame_size, &self.cipher)?),
        };
        writer.begin_disk(disk);
        Ok(writer)
    }

    fn finish(mut self) -> Result<Vec<Encoded>> {
        self.done.extend(self.open.take().map(DeltaWriter::finish).transpose()?);
        Ok(self.done)
    }
}

/// Frames as they are stored.
struct Frames(HashMap<(u32, usize), Bytes>);

/// Frames that were unpacked and verified, the latest used of them.
#[derive(Default)]
struct Unpacked {
    frames: HashMap<(u32, usize), (u64, Vec<u8>)>,
    bytes: usize,
    uses: u64,
}

impl Unpacked {
    fn get(&mut self, key: (u32, usize), reader: &DeltaReader, frames: &Frames) -> Result<&[u8]> {
        self.uses += 1;
        let uses = self.uses;
        if !self.frames.contains_key(&key) {
            let missing = || Error::corrupt(reader.name(), "a frame that is needed was not fetched");
            let raw = reader.unpack(key.1, frames.0.get(&key).ok_or_else(missing)?)?;
            self.make_room(raw.len());
            self.bytes += raw.len();
            self.frames.insert(key, (uses, raw));
        }
        let frame = self.frames.get_mut(&key);
        Ok(frame.map_or(&[], |(used, raw)| {
            *used = uses;
            raw.as_slice()
        }))
    }

    fn make_room(&mut self, len: usize) {
        while self.bytes + len > UNPACKED {
            let oldest = self.frames.iter().min_by_key(|(_, (used, _))| *used).map(|(key, _)| *key);
            let Some((_, raw)) = oldest.and_then(|key| self.frames.remove(&key)) else { return };
            self.bytes -= raw.len();
        }
    }
}
