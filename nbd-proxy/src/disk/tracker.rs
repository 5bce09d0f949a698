//! What a tracked disk knows of its writes: plain state behind one mutex, no I/O.
//!
//! The mutex is held for a few dozen instructions at a time and never over I/O. Lock order: the trackers of a machine's
//! disks in configuration order; nothing else is taken while one is held.
//!
//! A segment's life: *active* (records are reserved in it) → *sealed* (a roll or a cut replaced it) → *finished* (no writer
//! is left: every record is on the backing, or followed by one of what is) → retired (the vault has it).

mod blocks;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use uuid::Uuid;

use super::intent::Intent;
use super::ranges::{Ranges, Ticket};
use super::watermark::Watermark;
use crate::bitmap::DirtyBitmap;
use crate::log::format::HEADER_LEN;
use crate::log::segment::SegmentFile;
use crate::tracking::{SegmentRef, SyncScope};

/// How many records may be applied before the segment's mark is rewritten: what a kill costs in reading back.
const MARK_EVERY: u64 = 1024;

/// How writes are being tracked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Each write has a record.
    Logged,
    /// On the way from unlogged to logged: each new write has a record, but some in flight may have none.
    Starting,
    /// The way from logged to unlogged: new writes wait until that is durable.
    Switching,
    /// Writes only mark the bitmap.
    Unlogged,
    /// The log is gone and that could not be made durable: a write tries that again, and fails if it still cannot be.
    Broken,
}

/// Room for records in a segment.
#[derive(Clone, Debug)]
pub struct Reservation {
    /// The file to write to.
    pub file: Arc<SegmentFile>,
    /// The number of the first record.
    pub first: u64,
    /// How many records.
    pub count: u64,
    /// File position of the first record.
    pub at: u64,
    epoch: u64,
}

/// Where a cut fell in one disk's log.
#[derive(Clone, Copy, Debug)]
pub struct Boundary {
    /// The log it belongs to.
    pub epoch: u64,
    /// The first segment after the cut.
    segment: u64,
}

/// What became of the wish for room.
#[derive(Debug)]
pub enum Reserve {
    /// Here it is.
    Ready(Reservation),
    /// The active segment is full and there is no spare: make one and ask again.
    NeedSpare,
    /// Another segment would pass the limit.
    Full,
}

#[derive(Debug)]
struct Open {
    file: Arc<SegmentFile>,
    records: u64,
    bytes: u64,
    appended: Watermark,
    applied: Watermark,
    marked: u64,
    writers: u64,
    sealed: bool,
}

/// A sync under way.
#[derive(Debug)]
pub struct Syncing {
    /// What it copies.
    pub scope: SyncScope,
    /// The id under which the vault was exact before; only with it are `copy` and `earlier` enough.
    pub base: Option<Uuid>,
    /// The blocks a dirty sync copies.
    pub copy: Option<DirtyBitmap>,
    /// Blocks of cuts released since the round began: their deltas count only once the sync's point is committed.
    pub released: DirtyBitmap,
    /// Blocks that earlier rounds copied or released: they, too, count only then, and a sync that begins again includes them.
    pub earlier: DirtyBitmap,
    /// Names what `copy` names.
    pub round: Uuid,
    /// The round before it.
    pub before: Option<Uuid>,
}

impl Syncing {
    /// The first round of a sync that copies `copy`, or everything, of a disk of `size` bytes.
    pub fn new(scope: SyncScope, base: Option<Uuid>, copy: Option<DirtyBitmap>, size: u64) -> Self {
        let (released, earlier) = (DirtyBitmap::new(size), DirtyBitmap::new(size));
        Self { scope, base, copy, released, earlier, round: Uuid::new_v4(), before: None }
    }

    /// The round that follows: it copies what was `written` since this one began.
    pub fn next(self, written: DirtyBitmap, size: u64) -> Self {
        let (base, before) = (self.base, Some(self.round));
        let earlier = self.all();
        Self { before, earlier, ..Self::new(SyncScope::Dirty, base, Some(written), size) }
    }

    /// All that it has to copy and has copied, as far as blocks name it.
    pub fn all(self) -> DirtyBitmap {
        let mut all = self.earlier;
        all.merge(self.released);
        if let Some(copy) = self.copy {
            all.merge(copy);
        }
        all
    }
}

/// The state of one disk's tracking.
#[derive(Debug)]
pub struct Tracker {
    /// How writes are being tracked.
    pub mode: Mode,
    /// The stretch of records that is going on, or the one that the next sync will begin.
    pub tracking: Uuid,
    /// While unlogged: the ids under which the vault may be exact and from which `dirty` names every difference.
    pub bases: Vec<Uuid>,
    /// While unlogged: much of what `dirty` names may not differ at all.
    pub suspect: bool,
    /// Why the disk is, or was last, not exact.
    pub cause: String,
    /// Writes in flight.
    pub ranges: Ranges,
    /// Blocks written since the last cut.
    pub dirty: DirtyBitmap,
    /// The cut that is out, and its blocks.
    pub frozen: Option<(Uuid, DirtyBitmap)>,
    /// Blocks of a later cut that another machine asked for and this one has not taken yet.
    pub pending: Option<DirtyBitmap>,
    /// The sync under way.
    pub sync: Option<Syncing>,
    /// Which regions may differ from the vault after a power loss.
    pub intent: Intent,
    /// When regions were last looked at for clearing.
    pub last_clear: Option<Instant>,
    /// How often the backing may have lost what was not flushed, and of how many of those a client's flush has told.
    pub losses: u64,
    /// See `losses`.
    pub told: u64,
    /// Names what remembers what was not flushed; see [`crate::backing::Backing::server`].
    pub server: Option<String>,
    /// Threads waiting on the disk's condition variable.
    pub waiters: usize,
    /// Somebody is writing the state file.
    pub saving: bool,
    /// Somebody is making the spare.
    pub making: bool,
    /// Files of a dropped log, to be removed once it is durable that they no longer count.
    pub leftover: Vec<PathBuf>,
    /// Counts logs: what belongs to an earlier one no longer matters.
    pub epoch: u64,
    /// The number the next segment gets.
    pub next_segment: u64,
    /// A segment made ahead, so that a roll needs no I/O.
    pub spare: Option<SegmentFile>,
    /// Applied marks to be written by whoever releases the mutex next.
    pub marks: Vec<(Arc<SegmentFile>, u64)>,
    open: Vec<Open>,
    finished: BTreeMap<u64, SegmentRef>,
    segment_bytes: u64,
    limit: u64,
}

impl Tracker {
    /// A disk of `size` bytes without a log.
    pub fn new(
        size: u64,
        tracking: Uuid,
        cause: String,
        intent: Intent,
        segment_bytes: u64,
        limit: u64,
    ) -> Self {
        Self {
            mode: Mode::Unlogged,
            tracking,
            bases: Vec::new(),
            suspect: false,
            cause,
            ranges: Ranges::default(),
            dirty: DirtyBitmap::new(size),
            frozen: None,
            pending: None,
            sync: None,
            intent,
            last_clear: None,
            losses: 0,
            told: 0,
            server: None,
            waiters: 0,
            saving: false,
            making: false,
            leftover: Vec::new(),
            epoch: 0,
            next_segment: 1,
            spare: None,
            marks: Vec::new(),
            open: Vec::new(),
            finished: BTreeMap::new(),
            segment_bytes,
            limit,
        }
    }

    /// Starts a log in `segment`, after the `recovered` segments.
    pub fn start_log(&mut self, segment: SegmentFile, recovered: Vec<SegmentRef>) {
        self.finished = recovered.into_iter().map(|segment| (segment.segment, segment)).collect();
        self.activate(segment);
    }

    /// Forgets the log. Its writers will find that their reservation is of another epoch. The files it leaves behind
    /// join [`Tracker::leftover`].
    pub fn drop_log(&mut self) {
        self.epoch += 1;
        let finished = std::mem::take(&mut self.finished).into_values().map(|segment| segment.path);
        let open = self.open.drain(..).map(|open| open.file.path().to_owned());
        let spare = self.spare.take().map(|file| file.path().to_owned());
        self.leftover.extend(finished.chain(open).chain(spare));
    }

    /// Room for `count` records of `bytes` in all.
    pub fn reserve(&mut self, count: u64, bytes: u64) -> Reserve {
        let full =
            self.active().is_none_or(|open| open.records > 0 && open.bytes + bytes > self.segment_bytes);
        if full {
            if self.allocated() + self.segment_bytes > self.limit {
                return Reserve::Full;
            }
            match self.spare.take() {
                Some(spare) => self.roll(spare),
                None => return Reserve::NeedSpare,
            }
        }
        match self.reserve_in(self.open.len() - 1, count, bytes) {
            Some(reservation) => {
                self.open.last_mut().into_iter().for_each(|open| open.writers += 1);
                Reserve::Ready(reservation)
            }
            None => Reserve::NeedSpare,
        }
    }

    /// Room for one more record in a segment that `reservation` keeps open, sealed or not.
    pub fn reserve_after(&mut self, reservation: &Reservation, bytes: u64) -> Option<Reservation> {
        let at = self.find(reservation)?;
        self.reserve_in(at, 1, bytes)
    }

    /// The records of `reservation` are complete.
    pub fn appended(&mut self, reservation: &Reservation) {
        if let Some(at) = self.find(reservation) {
            self.open[at].appended.complete(reservation.first, reservation.first + reservation.count);
        }
    }

    /// Whether every earlier record of the segment is complete as well; `None` if that log is gone.
    pub fn is_in_order(&self, reservation: &Reservation) -> Option<bool> {
        self.find(reservation).map(|at| self.open[at].appended.below() >= reservation.first)
    }

    /// The records of `reservation` are on the backing (or corrected).
    pub fn applied(&mut self, reservation: &Reservation) {
        let Some(open) = self.find(reservation).map(|at| &mut self.open[at]) else { return };
        open.applied.complete(reservation.first, reservation.first + reservation.count);
        let below = open.applied.below();
        if below >= open.marked + MARK_EVERY {
            open.marked = below;
            self.marks.push((open.file.clone(), below));
        }
    }

    /// The writer of `reservation` is done with its segment.
    pub fn done(&mut self, reservation: &Reservation) {
        if let Some(at) = self.find(reservation) {
            self.open[at].writers -= 1;
            self.finish();
        }
    }

    /// Whether each write has a record.
    pub fn is_logged(&self) -> bool {
        self.mode == Mode::Logged
    }

    /// Whether the active segment has records, so that a cut must seal it.
    fn has_records(&self) -> bool {
        self.active().is_some_and(|open| open.records > 0)
    }

    /// Whether a cut needs no I/O.
    pub fn can_cut(&self) -> bool {
        self.spare.is_some() || !self.has_records()
    }

    /// Seals the active segment if it holds anything.
    fn seal(&mut self) -> Boundary {
        if self.has_records()
            && let Some(spare) = self.spare.take()
        {
            self.roll(spare);
        }
        let active = self.active().map_or(0, |open| open.file.header().segment);
        Boundary { epoch: self.epoch, segment: active }
    }

    /// Whether every segment before `boundary` is finished.
    pub fn is_settled(&self, boundary: Boundary) -> bool {
        self.open.iter().all(|open| open.file.header().segment >= boundary.segment)
    }

    /// The finished segments before `boundary`, oldest first. Later ones may have rolled over since: they are another cut's.
    pub fn finished(&self, boundary: Boundary) -> Vec<SegmentRef> {
        self.finished.range(..boundary.segment).map(|(_, segment)| segment.clone()).collect()
    }

    /// All finished segments.
    pub fn all_finished(&self) -> Vec<SegmentRef> {
        self.finished.values().cloned().collect()
    }

    /// Takes the finished segments up to number `last` out, oldest first.
    pub fn take_finished(&mut self, last: u64) -> Vec<SegmentRef> {
        let later = self.finished.split_off(&(last + 1));
        std::mem::replace(&mut self.finished, later).into_values().collect()
    }

    /// Bytes of records held on local disk.
    pub fn log_bytes(&self) -> u64 {
        let finished: u64 = self.finished.values().map(|segment| segment.bytes - HEADER_LEN).sum();
        finished + self.open.iter().map(|open| open.bytes - HEADER_LEN).sum::<u64>()
    }

    /// Whether every write admitted before `horizon` is through.
    pub fn drained(&self, horizon: Ticket) -> bool {
        self.ranges.drained(horizon)
    }

    /// The open files, for the clean close.
    pub fn open_files(&self) -> Vec<(Arc<SegmentFile>, u64)> {
        self.open.iter().map(|open| (open.file.clone(), open.applied.below())).collect()
    }

    fn active(&self) -> Option<&Open> {
        self.open.last().filter(|open| !open.sealed)
    }

    fn activate(&mut self, file: SegmentFile) {
        let number = file.header().segment;
        debug_assert!(
            self.open.last().is_none_or(|open| open.file.header().segment < number),
            "numbers rise"
        );
        debug_assert!(self.finished.keys().all(|finished| *finished < number), "numbers rise");
        self.open.push(Open {
            file: Arc::new(file),
            records: 0,
            bytes: HEADER_LEN,
            appended: Watermark::default(),
            applied: Watermark::default(),
            marked: 0,
            writers: 0,
            sealed: false,
        });
    }

    fn roll(&mut self, spare: SegmentFile) {
        if let Some(open) = self.open.last_mut() {
            open.sealed = true;
        }
        self.activate(spare);
        self.finish();
    }

    /// Moves sealed segments without writers to the finished ones.
    fn finish(&mut self) {
        let (finished, marks) = (&mut self.finished, &mut self.marks);
        self.open.retain(|open| {
            let done = open.sealed && open.writers == 0;
            if done {
                let header = open.file.header();
                debug_assert_eq!(open.applied.below(), open.records, "finished means applied");
                marks.push((open.file.clone(), open.records));
                finished.insert(
                    header.segment,
                    SegmentRef {
                        path: open.file.path().to_owned(),
                        log: header.log,
                        segment: header.segment,
                        records: open.records,
                        bytes: open.bytes,
                    },
                );
            }
            !done
        });
    }

    fn reserve_in(&mut self, index: usize, count: u64, bytes: u64) -> Option<Reservation> {
        let epoch = self.epoch;
        let open = self.open.get_mut(index)?;
        let (first, at) = (open.records, open.bytes);
        open.records += count;
        open.bytes += bytes;
        Some(Reservation { file: open.file.clone(), first, count, at, epoch })
    }

    fn find(&self, reservation: &Reservation) -> Option<usize> {
        let number = reservation.file.header().segment;
        let found = self.open.iter().position(|open| open.file.header().segment == number);
        found.filter(|_| reservation.epoch == self.epoch)
    }

    /// Whether a cut has taken the segment that may stand ready beyond the limit: there must be no other.
    pub fn is_over_limit(&self) -> bool {
        self.allocated() > self.limit.max(self.segment_bytes)
    }

    /// Space that the segments take or were promised.
    fn allocated(&self) -> u64 {
        let finished: u64 = self.finished.values().map(|segment| segment.bytes.max(self.segment_bytes)).sum();
        finished + self.open.iter().map(|open| open.bytes.max(self.segment_bytes)).sum::<u64>()
    }
}
