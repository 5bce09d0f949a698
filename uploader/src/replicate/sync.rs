//! Copying: which disks have to be copied, and the copy itself.
//!
//! Order is what makes a fuzzy copy exact. A stretch is read, packed, uploaded and written into the journal before the
//! next cut is taken; the cut's log goes into the journal behind it. So a block whose copy is older than a write has
//! that write in a later log, whatever the timing, and torn reads are overwritten the same way: a write is in the log
//! before it reaches the disk.
//!
//! If we die: what is in the journal counts, the rest is read again. A cut that was not released is part of the next.

use std::pin::pin;
use std::time::Instant;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use nbd_proxy::device::Extent;
use nbd_proxy::tracking::{CutRequest, DiskInfo, MachineInfo, SyncScope};
use nbd_proxy::{Error, Kind, Result};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::engine::Work;
use super::journal::Journal;
use super::ship::{self, Exit, Packing, Turn};
use super::state::{SyncDisk, SyncState};
use super::status::Phase;
use crate::commit::Uploaded;
use crate::delta::DeltaWriter;
use crate::delta::writer::LARGE_FRAME;
use crate::jobs::JobKind;
use crate::source::AnySource;

/// The cause of a sync that the operator asked for.
pub(super) const ASKED: &str = "asked for by `lifeboat resync`";
/// The live disk is read in pieces of at most this many bytes …
const PIECE: u64 = 1 << 20;
/// … a few of them at a time.
const READS: usize = 4;

impl Work<'_> {
    /// Begins a sync for each disk that is not exact, and ends what a sync that was committed left open.
    pub async fn plan_sync(&mut self, info: &MachineInfo) -> Result<()> {
        let mut fresh = Vec::new();
        for disk in &info.disks {
            let state = &self.ready.state;
            let planned =
                state.sync.iter().flat_map(|sync| &sync.disks).find(|planned| planned.name == disk.name);
            let known = state.disks.get(&disk.name).filter(|known| known.size == disk.size);
            let same =
                |tracking: Uuid, size: u64| tracking == disk.tracking && size == disk.size && disk.logged;
            match (planned, known) {
                (Some(planned), _) if same(planned.tracking, planned.size) && disk.syncing => {}
                (None, Some(known)) if same(known.tracking, known.size) => {
                    if disk.syncing {
                        self.ctx.source.end_sync(&disk.name, disk.tracking).await?;
                    }
                }
                (_, known) => fresh.push(self.begin(disk, known.map(|known| known.tracking)).await?),
            }
        }
        self.plan(info, fresh)
    }

    async fn begin(&self, disk: &DiskInfo, known: Option<Uuid>) -> Result<SyncDisk> {
        let sync = self.ctx.source.begin_sync(&disk.name, known).await?;
        let whole = sync.scope == SyncScope::Whole;
        if !whole && known.is_none() {
            let message = "the proxy offers a partial copy where the vault holds nothing to build upon";
            return Err(Error::new(Kind::InvalidInput, &disk.name, message));
        }
        let mut total = 0;
        let mut at = 0;
        while at < sync.size {
            let extents = self.ctx.source.sync_extents(&disk.name, sync.tracking, at).await?;
            let Some(last) = extents.last() else { break };
            at = last.offset + last.len;
            total += extents.iter().filter(|extent| !extent.hole).map(|extent| extent.len).sum::<u64>();
        }
        let asked = self.ready.state.resync_asked;
        let cause = if asked { ASKED.to_owned() } else { sync.cause };
        tracing::info!(machine = %self.ctx.settings.machine, disk = %disk.name, %cause, whole, total, "sync begins");
        let (name, tracking, size) = (disk.name.clone(), sync.tracking, sync.size);
        Ok(SyncDisk { name, size, tracking, attempt: Uuid::new_v4(), whole, cause, total })
    }

    /// Writes the plan down: disks that left the machine go, `fresh` ones replace earlier attempts.
    fn plan(&mut self, info: &MachineInfo, fresh: Vec<SyncDisk>) -> Result<()> {
        let settings = &self.ctx.settings;
        let state = &mut self.ready.state;
        let mut changed = !fresh.is_empty();
        if state.sync.is_none() && changed {
            let kind = if state.point.is_none() { JobKind::InitialReplication } else { JobKind::Resync };
            let job = settings.jobs.start(kind, &settings.machine, &causes(&fresh))?.id;
            state.sync = Some(SyncState { id: Uuid::new_v4(), job, disks: Vec::new() });
        }
        let Some(sync) = &mut state.sync else { return Ok(()) };
        let before = sync.disks.len();
        sync.disks.retain(|planned| info.disks.iter().any(|disk| disk.name == planned.name));
        changed |= sync.disks.len() != before;
        for disk in fresh {
            sync.disks.retain(|planned| planned.name != disk.name);
            sync.disks.push(disk);
        }
        if changed {
            let place = |name: &str| info.disks.iter().position(|disk| disk.name == name);
            sync.disks.sort_by_key(|planned| place(&planned.name));
            let id = sync.id;
            state.save(&settings.state_dir)?;
            if self.ready.journal.is_none() {
                self.ready.journal = Some(Journal::open(&settings.state_dir, &settings.machine, id)?);
            }
        }
        Ok(())
    }

    /// Copies what the sync under way has not copied yet; `false` means that tracking changed.
    pub async fn copy_all(&mut self) -> Result<bool> {
        let Some(sync) = self.ready.state.sync.clone() else { return Ok(true) };
        for (number, disk) in sync.disks.iter().enumerate() {
            while self.copied(disk).0 < disk.size {
                self.show_copy(number, &sync, disk);
                let Some(turn) = self.turn().await? else { return Ok(false) };
                self.stretch(disk, turn).await?;
            }
            self.show_copy(number, &sync, disk);
        }
        Ok(true)
    }

    /// Waits for the turn to copy, shipping the log whenever it is time; `None` means that tracking changed.
    async fn turn(&mut self) -> Result<Option<Turn>> {
        // One place in the queue, kept over the cuts.
        let mut waiting = pin!(Turn::to_copy());
        loop {
            let due = |ctx: &super::context::Context| ctx.last_cut + ctx.settings.interval;
            if Instant::now() >= due(self.ctx) && !self.intermediate_cut().await? {
                return Ok(None);
            }
            if let Ok(turn) = tokio::time::timeout_at(due(self.ctx).into(), &mut waiting).await {
                return turn.map(Some);
            }
        }
    }

    /// Where copying `disk` goes on, and how many bytes of data were copied.
    fn copied(&self, disk: &SyncDisk) -> (u64, u64) {
        let copied = self.ready.journal.as_ref().map(|journal| journal.copied(disk.attempt));
        copied.map_or((0, 0), |copied| (copied.next, copied.bytes))
    }

    fn show_copy(&self, number: usize, sync: &SyncState, disk: &SyncDisk) {
        let (_, done) = self.copied(disk);
        let percent = (done.min(disk.total) * 100).checked_div(disk.total).unwrap_or(100);
        let counts = self.ready.vault.store.counts();
        self.ctx.status.send_modify(|status| {
            status.phase = Phase::Syncing;
            status.activity = format!("disk {} of {}, {percent} %", number + 1, sync.disks.len());
            if let Some(shown) = status.disks.iter_mut().find(|shown| shown.name == disk.name) {
                shown.bytes_done = done;
                shown.bytes_total = disk.total.max(done);
            }
        });
        let all = |of: fn(&Self, &SyncDisk) -> u64| sync.disks.iter().map(|disk| of(self, disk)).sum();
        let (done, total) = (all(|this, disk| this.copied(disk).1), all(|_, disk| disk.total));
        tracing::debug!(machine = %self.ctx.settings.machine, disk = %disk.name, done, total, puts = counts.puts,
            "copying");
        // The record is for people: a copy goes on without it.
        if let Ok(Some(mut job)) = self.ctx.settings.jobs.get(sync.job) {
            (job.bytes_done, job.bytes_total) = (done, total);
            let _ = self.ctx.settings.jobs.save(&job);
        }
    }

    /// Copies one stretch of `disk`: until it ends, or until it is time for an intermediate cut.
    async fn stretch(&mut self, disk: &SyncDisk, turn: Turn) -> Result<()> {
        let (from, _) = self.copied(disk);
        // Shipping a cut may take longer than the interval; copying gets its share all the same.
        let interval = self.ctx.settings.interval;
        let deadline = (self.ctx.last_cut + interval).max(Instant::now() + interval / 2);
        let (items, pieces) = mpsc::channel(READS);
        let name = disk.name.clone();
        let mut packing = Packing::start(turn, move |exit| pack_copy(&name, pieces, exit))?;
        let target = super::ship::Target {
            vault: &self.ready.vault,
            machine: &self.ctx.settings.machine,
            number: self.ready.state.head + 1,
        };
        let Some(journal) = self.ready.journal.as_mut() else { return Ok(()) };
        let record = |uploaded: Uploaded, piece: Stretch| {
            journal.copy(disk.attempt, piece.next, piece.bytes, Some(uploaded))
        };
        let ship = target.ship(Vec::new(), &mut packing.packed, record);
        let feed = feed(&*self.ctx.source, disk, from, deadline, items);
        let (ended, ()) = tokio::try_join!(feed, ship)?;
        packing.end().await?;
        if ended && journal.copied(disk.attempt).next < disk.size {
            journal.copy(disk.attempt, disk.size, 0, None)?;
        }
        Ok(())
    }

    /// Ships the log so far, so that it can be released; `false` means that tracking changed.
    async fn intermediate_cut(&mut self) -> Result<bool> {
        let Some(cut) = self.cut(CutRequest::default()).await? else { return Ok(false) };
        let mut packing = ship::pack_cut(&cut).await?;
        let mut uploaded = Vec::new();
        let keep = |delta, ()| {
            uploaded.push(delta);
            Ok(())
        };
        self.target().ship(Vec::new(), &mut packing.packed, keep).await?;
        let packed = packing.end().await;
        if self.changed().await? {
            return Ok(false);
        }
        packed?;
        if let Some(journal) = &mut self.ready.journal {
            uploaded.iter().try_for_each(|delta| journal.log(delta))?;
        }
        self.ctx.source.release(cut.id).await?;
        Ok(true)
    }
}

/// Why `disks` are copied, for people: once if it is one reason.
fn causes(disks: &[SyncDisk]) -> String {
    match disks.split_first() {
        Some((first, rest)) if rest.iter().all(|disk| disk.cause == first.cause) => first.cause.clone(),
        _ => disks.iter().map(|disk| format!("{}: {}", disk.name, disk.cause)).collect::<Vec<_>>().join("; "),
    }
}

/// A piece of the live disk; without data it reads as zero.
struct Piece {
    offset: u64,
    len: u64,
    data: Option<Bytes>,
}

/// What a delta of copies covers.
#[derive(Default)]
struct Stretch {
    next: u64,
    bytes: u64,
}

/// Reads `disk` from `from` on until it ends (`true`) or the deadline is there.
async fn feed(
    source: &dyn AnySource,
    disk: &SyncDisk,
    from: u64,
    deadline: Instant,
    items: mpsc::Sender<Piece>,
) -> Result<bool> {
    let mut at = from;
    while at < disk.size {
        let extents = source.sync_extents(&disk.name, disk.tracking, at).await?;
        if disk.whole {
            check_gapless(disk, at, &extents)?;
        }
        if extents.is_empty() {
            return Ok(true);
        }
        let read = |piece| read(source, &disk.name, piece);
        let begin = at;
        let pieces = extents.into_iter().flat_map(move |extent| split(extent, begin));
        let mut reads = stream::iter(pieces).map(read).buffered(READS);
        while let Some(piece) = reads.next().await {
            let piece = piece?;
            at = piece.offset + piece.len;
            // Nobody takes it: packing has failed, and says why where it is waited for.
            if items.send(piece).await.is_err() || Instant::now() >= deadline {
                return Ok(at >= disk.size);
            }
        }
    }
    Ok(true)
}

/// A whole copy must name every byte: what it left out would read as zero.
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

/// The part of `extent` from `from` on, in pieces.
fn split(extent: Extent, from: u64) -> impl Iterator<Item = (u64, u64, bool)> {
    let (start, end, hole) = (extent.offset.max(from), extent.offset + extent.len, extent.hole);
    let step = if hole { end.saturating_sub(start).max(1) } else { PIECE };
    let count = end.saturating_sub(start).div_ceil(step);
    (0..count).map(move |number| {
        let offset = start + number * step;
        (offset, step.min(end - offset), hole)
    })
}

async fn read(source: &dyn AnySource, disk: &str, (offset, len, hole): (u64, u64, bool)) -> Result<Piece> {
    if hole {
        return Ok(Piece { offset, len, data: None });
    }
    let asked = u32::try_from(len).unwrap_or(u32::MAX);
    let data = source.read(disk, offset, asked).await?;
    if data.len() as u64 != len {
        let message = format!("the proxy read {} bytes at {offset} where {len} were asked for", data.len());
        return Err(Error::new(Kind::Io, disk, message));
    }
    Ok(Piece { offset, len, data: Some(data) })
}

/// Packs pieces as they come; runs on a thread of its own.
fn pack_copy(disk: &str, mut pieces: mpsc::Receiver<Piece>, exit: &Exit<Stretch>) -> Result<()> {
    let begin = || {
        let mut writer = DeltaWriter::new(LARGE_FRAME);
        writer.begin_disk(disk);
        writer
    };
    let (mut writer, mut stretch) = (begin(), Stretch::default());
    while let Some(piece) = pieces.blocking_recv() {
        match &piece.data {
            Some(data) => writer.data(piece.offset, data)?,
            None => writer.zero(piece.offset, piece.len)?,
        }
        stretch.next = piece.offset + piece.len;
        stretch.bytes += piece.data.map_or(0, |data| data.len() as u64);
        if writer.is_full() {
            let full = std::mem::replace(&mut writer, begin());
            exit.hand_on(full.finish()?, std::mem::take(&mut stretch))?;
        }
    }
    if writer.is_empty() { Ok(()) } else { exit.hand_on(writer.finish()?, stretch) }
}
