//! The copy of one disk: read, compared if that makes sense, packed, shipped, written down.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use nbd_proxy::device::Extent;
use nbd_proxy::tracking::SyncScope;
use nbd_proxy::{Error, Kind, Result};
use tokio::sync::{mpsc, oneshot};

use super::compare::Compare;
use super::engine::Work;
use super::held::{self, Held, Wanted};
use super::journal::Copied;
use super::ship::{Exit, Packing, Turn};
use super::state::{SyncDisk, SyncState};
use super::status::Phase;
use super::sync::unreadable;
use super::throttle::Throttle;
use crate::cipher::Cipher;
use crate::commit::Uploaded;
use crate::delta::DeltaWriter;
use crate::delta::format::CELL;
use crate::delta::writer::LARGE_FRAME;
use crate::point::Gap;
use crate::source::AnySource;

/// The live disk is read in pieces of at most this many bytes, which cut no cell in two …
const PIECE: u64 = 1 << 20;
/// … a few of them at a time.
const READS: usize = 4;
/// Where that fails, it is read in pieces of a cell, and where that fails, in pieces of this.
const SECTOR: u64 = 4096;
/// With more places than these that cannot be read, a disk is no disk any more.
const UNREADABLE_MAX: usize = 1000;
/// Progress is durable, and shown, at least this often.
const SHOW: Duration = Duration::from_secs(10);

impl Work<'_> {
    /// Copies what the sync under way has not copied yet; `false` means that tracking changed.
    pub async fn copy_all(&mut self) -> Result<bool> {
        let Some(sync) = self.ready.state.sync.clone() else { return Ok(true) };
        for (number, disk) in sync.disks.iter().enumerate() {
            while self.copied(disk).next < disk.size {
                self.show_copy(number, &sync, disk);
                let held = if disk.compare { self.held(disk).await? } else { Some(None) };
                let Some(held) = held else { return Ok(false) };
                let Some(turn) = self.or_cut(Turn::to_copy()).await? else { return Ok(false) };
                self.stretch(disk, turn?, held).await?;
            }
            self.show_copy(number, &sync, disk);
        }
        Ok(true)
    }

    /// Waits for `what`, shipping the log whenever it is time; `None` means that tracking changed.
    async fn or_cut<T>(&mut self, what: impl Future<Output = T>) -> Result<Option<T>> {
        // Kept over the cuts: one place in a queue, one way through the vault.
        let mut waiting = pin!(what);
        let logged = |disk: &SyncDisk| disk.logged;
        if !self.ready.state.sync.iter().flat_map(|sync| &sync.disks).all(logged) {
            // There can be no cut.
            return Ok(Some(waiting.await));
        }
        loop {
            let due = self.ctx.last_cut + self.ctx.settings.interval;
            if Instant::now() >= due && !self.intermediate_cut().await? {
                return Ok(None);
            }
            let due = self.ctx.last_cut + self.ctx.settings.interval;
            if let Ok(done) = tokio::time::timeout_at(due.into(), &mut waiting).await {
                return Ok(Some(done));
            }
        }
    }

    /// What `disk` is compared with: the vault's head, and over it what the journal has by now. `None` means that the plan
    /// or tracking changed.
    async fn held(&mut self, disk: &SyncDisk) -> Result<Option<Option<Arc<Held>>>> {
        if let Some((attempt, held)) = &self.ready.held
            && *attempt == disk.attempt
        {
            return Ok(Some(Some(Arc::clone(held))));
        }
        self.ready.held = None;
        let journal = self.ready.journal.iter().flat_map(|journal| journal.deltas());
        let wanted = Wanted {
            machine: self.ctx.settings.machine.clone(),
            disk: disk.name.clone(),
            size: disk.size,
            head: disk.against.map(|point| (point, self.ready.state.mark_of(point))),
            journal: journal.map(|delta| delta.reference().clone()).collect(),
            folder: self.ctx.settings.state_dir.clone(),
        };
        let vault = self.ready.vault.clone();
        let Some(built) = self.or_cut(held::build(vault, wanted)).await? else { return Ok(None) };
        match built {
            Ok(held) => {
                let held = Arc::new(held);
                self.ready.held = Some((disk.attempt, Arc::clone(&held)));
                Ok(Some(Some(held)))
            }
            Err(error) if unreadable(&error) => {
                self.rely_on_nothing(disk, &error).await?;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// How far the copy of `disk` is.
    pub fn copied(&self, disk: &SyncDisk) -> Copied {
        self.ready.journal.as_ref().map(|journal| journal.copied(disk.attempt)).unwrap_or_default()
    }

    fn show_copy(&self, number: usize, sync: &SyncState, disk: &SyncDisk) {
        let now = self.copied(disk);
        let percent = (now.read.min(disk.total) * 100).checked_div(disk.total).unwrap_or(100);
        let counts = self.ready.vault.store.counts();
        self.ctx.status.send_modify(|status| {
            status.phase = Phase::Syncing;
            let round = if disk.number == 0 { String::new() } else { format!(", round {}", disk.number + 1) };
            status.activity = format!("disk {} of {}{round}, {percent} %", number + 1, sync.disks.len());
            if let Some(shown) = status.disks.iter_mut().find(|shown| shown.name == disk.name) {
                shown.progress(&now, disk.total);
            }
        });
        let mut all = Copied::default();
        sync.disks.iter().for_each(|disk| all.add(&self.copied(disk)));
        let total = sync.disks.iter().map(|disk| disk.total).sum();
        tracing::debug!(machine = %self.ctx.settings.machine, disk = %disk.name, done = all.read, total,
            shipped = all.shipped, undecided = all.undecided, puts = counts.puts, "copying");
        // The record is for people: a copy goes on without it.
        if let Ok(Some(mut job)) = self.ctx.settings.jobs.get(sync.job) {
            (job.bytes_done, job.bytes_total) = (all.read, total);
            (job.bytes_shipped, job.bytes_undecided) = (all.shipped, all.undecided);
            let _ = self.ctx.settings.jobs.save(&job);
        }
    }

    /// Copies one stretch of `disk`: until it ends, or until it is time for an intermediate cut.
    async fn stretch(&mut self, disk: &SyncDisk, turn: Turn, held: Option<Arc<Held>>) -> Result<()> {
        let from = self.copied(disk).next;
        // Shipping a cut may take longer than the interval; copying gets its share all the same.
        let interval = self.ctx.settings.interval;
        let due = (self.ctx.last_cut + interval).max(Instant::now() + interval / 2);
        let deadline = due.min(Instant::now() + SHOW);
        let (items, pieces) = mpsc::channel(READS);
        let (last, rest) = oneshot::channel();
        let name = disk.name.clone();
        let compare = held.map(Compare::new);
        let cipher = self.ready.vault.cipher.clone();
        let mut packing = Packing::start(turn, move |exit| {
            let rest = pack_copy(&name, &cipher, pieces, compare, exit)?;
            // Nobody asks when the step was dropped.
            let _ = last.send(rest);
            Ok(())
        })?;
        let target = super::ship::Target {
            vault: &self.ready.vault,
            machine: &self.ctx.settings.machine,
            entry: self.ready.state.next_entry(),
        };
        let Some(journal) = self.ready.journal.as_mut() else { return Ok(()) };
        let record = |uploaded: Uploaded, copied: Copied| journal.copy(disk.attempt, copied, Some(uploaded));
        let ship = target.ship(Vec::new(), &mut packing.packed, record);
        let live = Live { source: &*self.ctx.source, disk, throttle: &self.ctx.throttle };
        let feed = live.feed(from, deadline, items);
        let (ended, ()) = tokio::try_join!(feed, ship)?;
        packing.end().await?;
        let mut rest: Copied = rest.await.unwrap_or_default();
        if ended {
            rest.next = disk.size;
        }
        // What did not have to travel has been dealt with as well.
        if rest.next > journal.copied(disk.attempt).next {
            journal.copy(disk.attempt, rest, None)?;
        }
        Ok(())
    }
}

/// What is read next of `disk`, at or after `at`.
pub(super) async fn extents(source: &dyn AnySource, disk: &SyncDisk, at: u64) -> Result<Vec<Extent>> {
    let tail = |from: u64| Extent { offset: from, len: disk.size - from, hole: false };
    if at >= disk.tail {
        return Ok(vec![tail(at)]);
    }
    let mut extents = source.sync_extents(&disk.name, disk.tracking, at).await?;
    if disk.scope == SyncScope::Whole {
        check_gapless(disk, at, &extents)?;
    }
    extents.retain(|extent| extent.offset < disk.tail);
    for extent in &mut extents {
        extent.len = extent.len.min(disk.tail - extent.offset);
    }
    if extents.is_empty() && disk.tail < disk.size {
        extents.push(tail(disk.tail));
    }
    Ok(extents)
}

/// A whole copy must name every byte: what it left out would read as what the vault has.
fn check_gapless(disk: &SyncDisk, from: u64, extents: &[Extent]) -> Result<()> {
    let mut at = from;
    for extent in extents {
        if extent.offset > at {
            break;
        }
        at = at.max(extent.offset + extent.len);
    }
    let covered = extents.last().map(|last| last.offset + last.len);
    if covered == Some(at) {
        return Ok(());
    }
    Err(Error::corrupt(&disk.name, format!("the proxy left a gap at {at} in what is to be copied")))
}

/// A piece of the live disk.
struct Piece {
    offset: u64,
    len: u64,
    content: Content,
}

enum Content {
    Data(Bytes),
    /// It reads as zero.
    Hole,
    /// It cannot be read: what the vault has of it stays as it is.
    Unreadable,
}

/// A live disk that is being copied.
struct Live<'a> {
    source: &'a dyn AnySource,
    disk: &'a SyncDisk,
    throttle: &'a Throttle,
}

impl Live<'_> {
    /// Reads the disk from `from` on until it ends (`true`) or the deadline is there.
    async fn feed(&self, from: u64, deadline: Instant, items: mpsc::Sender<Piece>) -> Result<bool> {
        let mut at = from;
        while at < self.disk.size {
            let extents = extents(self.source, self.disk, at).await?;
            if extents.is_empty() {
                return Ok(true);
            }
            let begin = at;
            let pieces = extents.into_iter().flat_map(move |extent| split(extent, begin, PIECE));
            let mut reads = stream::iter(pieces).map(|piece| self.read(piece)).buffered(READS);
            while let Some(pieces) = reads.next().await {
                for piece in pieces? {
                    at = piece.offset + piece.len;
                    // Nobody takes it: packing has failed, and says why where it is waited for.
                    if items.send(piece).await.is_err() {
                        return Ok(false);
                    }
                }
                if Instant::now() >= deadline {
                    return Ok(at >= self.disk.size);
                }
            }
        }
        Ok(true)
    }

    /// Reads a piece; what cannot be read of it comes as pieces of its own.
    async fn read(&self, (offset, len, hole): (u64, u64, bool)) -> Result<Vec<Piece>> {
        if hole {
            return Ok(vec![Piece { offset, len, content: Content::Hole }]);
        }
        self.throttle.take(len).await;
        let mut pieces = Vec::new();
        let mut rest = vec![(offset, len)];
        while let Some((offset, len)) = rest.pop() {
            let content = match self.read_once(offset, len).await {
                Ok(data) => Content::Data(data),
                Err(error) if error.kind != Kind::Io => return Err(error),
                Err(error) if len <= SECTOR => {
                    tracing::warn!(disk = %self.disk.name, offset, len, %error, "the live disk cannot be read");
                    Content::Unreadable
                }
                Err(_) => {
                    let step = if len > CELL { CELL } else { SECTOR };
                    let parts = split(Extent { offset, len, hole: false }, offset, step);
                    let parts: Vec<_> = parts.map(|(offset, len, _)| (offset, len)).collect();
                    rest.extend(parts.into_iter().rev());
                    continue;
                }
            };
            pieces.push(Piece { offset, len, content });
        }
        Ok(pieces)
    }

    async fn read_once(&self, offset: u64, len: u64) -> Result<Bytes> {
        let data = self.source.read(&self.disk.name, offset, u32::try_from(len).unwrap_or(u32::MAX)).await?;
        if data.len() as u64 == len {
            return Ok(data);
        }
        let message = format!("the proxy read {} bytes at {offset} where {len} were asked for", data.len());
        Err(Error::corrupt(&self.disk.name, message))
    }
}

/// The part of `extent` from `from` on, cut where the disk's address is a multiple of `step`.
fn split(extent: Extent, from: u64, step: u64) -> impl Iterator<Item = (u64, u64, bool)> {
    let (mut at, end, hole) = (extent.offset.max(from), extent.offset + extent.len, extent.hole);
    std::iter::from_fn(move || {
        let stop = if hole { end } else { end.min((at / step + 1) * step) };
        let piece = (at < end).then(|| (at, stop - at, hole));
        at = stop;
        piece
    })
}

/// Packs pieces as they come, or what of them has to travel; runs on a thread of its own. Returns what came after the last
/// delta.
fn pack_copy(
    disk: &str,
    cipher: &Cipher,
    mut pieces: mpsc::Receiver<Piece>,
    mut compare: Option<Compare>,
    exit: &Exit<Copied>,
) -> Result<Copied> {
    let begin = || {
        let mut writer = DeltaWriter::new(LARGE_FRAME, cipher)?;
        writer.begin_disk(disk);
        Ok::<_, Error>(writer)
    };
    let (mut writer, mut copied) = (begin()?, Copied::default());
    while let Some(Piece { offset, len, content }) = pieces.blocking_recv() {
        let everything = [(offset, len)];
        let before = compare.as_ref().map_or(0, |compare| compare.undecided);
        let travels = match (&mut compare, &content) {
            (_, Content::Unreadable) => &[],
            (None, _) => &everything[..],
            (Some(compare), Content::Data(data)) => compare.data(offset, data)?,
            (Some(compare), Content::Hole) => compare.hole(offset, len)?,
        };
        for (start, len) in travels {
            match &content {
                Content::Data(data) => {
                    let index = |at: u64| usize::try_from(at - offset).unwrap_or(usize::MAX);
                    writer.data(*start, &data[index(*start)..index(start + len)])?;
                }
                _ => writer.zero(*start, *len)?,
            }
            copied.shipped += len;
        }
        copied.next = offset + len;
        copied.undecided += compare.as_ref().map_or(0, |compare| compare.undecided) - before;
        match content {
            Content::Data(data) => copied.read += data.len() as u64,
            Content::Hole => {}
            Content::Unreadable => {
                copied.unreadable.push(Gap { offset, len });
                copied.unreadable = Gap::joined(copied.unreadable);
                if copied.unreadable.len() > UNREADABLE_MAX {
                    return Err(too_much(disk));
                }
            }
        }
        if writer.is_full() {
            let full = std::mem::replace(&mut writer, begin()?);
            exit.hand_on(full.finish()?, std::mem::take(&mut copied))?;
        }
    }
    if !writer.is_empty() {
        exit.hand_on(writer.finish()?, std::mem::take(&mut copied))?;
    }
    Ok(copied)
}

fn too_much(disk: &str) -> Error {
    let message = format!("more than {UNREADABLE_MAX} places of it cannot be read: it is not copied further");
    Error::new(Kind::Io, format!("disk {disk}"), message)
        .remedy("look after the disk; points stay as they are")
}
