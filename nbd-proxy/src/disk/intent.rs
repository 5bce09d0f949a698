//! The intent map: after a power loss, which regions of the disk may differ from what the vault has.
//!
//! The log is never synced on the guest's path, so a power loss voids it. What remains is one bit per region of about 4 MiB,
//! durable *before* the first write to the region reaches the backing, and a stamp that says until when a change of the image may
//! be our own. A write to a marked region under a valid stamp costs nothing; another costs one small sync, shared by all who wait.
//!
//! This is the map in memory, without I/O, behind the tracker's mutex; `file` is the one on disk, `mark` moves between them.
//!
//! Rules, and why each is needed:
//! * *Known* is a subset of what is durable. A write is admitted in the critical section that found its regions known, and is
//!   in flight from then on: whoever clears a bit looks at the writes in flight in one critical section with taking the bit out of
//!   *known*, so no write slips in between.
//! * One save at a time. A set that comes while a clear is being written waits, and is written after it: the file never goes back.
//! * A bit is cleared only if the region has no write in flight, none since a sync of the backing began that has ended well,
//!   none that the vault has not committed, and none for a while (a hot region would be marked again at once). Until the
//!   backing is synced, the disk may come back older than the vault, in just that region.
//! * After a failed sync nothing is cleared: what the backing holds is not known any more.
//! * A save that fails leaves *known* as it was: the other slot still counts, and it holds all of *known*.

pub mod file;

use std::ops::Range;

use bitvec::boxed::BitBox;
use bitvec::vec::BitVec;

/// The least size of a region, in bytes.
const REGION: u64 = 4 << 20;
/// The most regions: larger disks get larger regions, so that a save stays one small write.
const MOST: u64 = 1 << 19;
/// Sequential writers mark at most so many regions ahead: as many as are marked right behind them.
const AHEAD: usize = 16;
/// Beyond so many saves for unmarked regions between two looks for something to clear, each save marks twice as many …
const BURST: u32 = 32;
/// … up to so many doublings. What was marked in vain is cleared at the next look.
const DOUBLINGS: u32 = 8;
/// A stamp allows changes for so many seconds.
const ALLOWANCE: i64 = 10;

/// A set of regions of one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Regions {
    bits: BitBox,
    region: u64,
}

impl Regions {
    /// No region of a disk of `size` bytes.
    pub fn none(size: u64) -> Self {
        let mut region = REGION;
        while size.div_ceil(region) > MOST {
            region *= 2;
        }
        let count = usize::try_from(size.div_ceil(region)).unwrap_or(usize::MAX);
        Self { bits: BitVec::repeat(false, count).into_boxed_bitslice(), region }
    }

    /// All regions of a disk of `size` bytes.
    pub fn all(size: u64) -> Self {
        let mut all = Self::none(size);
        all.bits.fill(true);
        all
    }

    /// Whether no region is in the set.
    pub fn is_empty(&self) -> bool {
        self.bits.not_any()
    }

    /// Adds every region that `range` touches.
    pub fn add(&mut self, range: &Range<u64>) {
        match self.touched(range) {
            // Almost every write touches one region only.
            touched if touched.len() == 1 => self.bits.set(touched.start, true),
            touched => self.bits[touched].fill(true),
        }
    }

    /// Whether every region that `range` touches is in the set.
    pub fn covers(&self, range: &Range<u64>) -> bool {
        match self.touched(range) {
            touched if touched.len() == 1 => self.bits[touched.start],
            touched => self.bits[touched].all(),
        }
    }

    /// The set as consecutive ranges of bytes; the last may reach past the end of the disk.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.bits.iter_ones().map(|index| self.range(index))
    }

    /// Takes out the regions whose range is `unfit`.
    pub fn drop_if(&mut self, unfit: impl Fn(&Range<u64>) -> bool) {
        let unfit: Vec<_> = self.bits.iter_ones().filter(|index| unfit(&self.range(*index))).collect();
        unfit.into_iter().for_each(|index| self.bits.set(index, false));
    }

    /// The set as bytes, and how they are taken back.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.bits.len().div_ceil(8)];
        for index in self.bits.iter_ones() {
            bytes[index / 8] |= 1 << (index % 8);
        }
        bytes
    }

    /// The set of a disk of `size` bytes that [`Regions::to_bytes`] gave; `None` if it was one of another size.
    pub fn from_bytes(size: u64, bytes: &[u8]) -> Option<Self> {
        let mut regions = Self::none(size);
        if bytes.len() != regions.bits.len().div_ceil(8) {
            return None;
        }
        for index in 0..regions.bits.len() {
            regions.bits.set(index, bytes[index / 8] >> (index % 8) & 1 == 1);
        }
        Some(regions)
    }

    fn merge(&mut self, other: &Self) {
        *self.bits.as_mut_bitslice() |= other.bits.as_bitslice();
    }

    fn take(&mut self) -> Self {
        let empty =
            Self { bits: BitVec::repeat(false, self.bits.len()).into_boxed_bitslice(), region: self.region };
        std::mem::replace(self, empty)
    }

    fn remove(&mut self, other: &Self) {
        for index in other.bits.iter_ones() {
            self.bits.set(index, false);
        }
    }

    fn touched(&self, range: &Range<u64>) -> Range<usize> {
        let place = |region: u64| usize::try_from(region).unwrap_or(usize::MAX).min(self.bits.len());
        // A power of two.
        let shift = self.region.trailing_zeros();
        place(range.start >> shift)..place((range.end + self.region - 1) >> shift)
    }

    fn range(&self, index: usize) -> Range<u64> {
        let start = index as u64 * self.region;
        start..start + self.region
    }
}

/// What is made durable: one slot of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marks {
    /// The regions that may differ from the vault.
    pub regions: Regions,
    /// Until then, in seconds of the Unix epoch, a change of the image may be our own.
    pub until: i64,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Intent {
    known: Regions,
    until: i64,
    /// Asked for by writes that wait.
    wanted: Regions,
    /// Written since the last look for something to clear.
    recent: Regions,
    /// Written since a sync of the backing began that ended well.
    unsynced: Regions,
    /// Syncs of the backing under way, and what each covers: nothing is synced before its sync has ended.
    syncing: Vec<(Sync, Regions)>,
    next_sync: u64,
    /// Saves for unmarked regions, halved at each look for something to clear.
    misses: u32,
    /// Written since the last save.
    busy: bool,
    saving: bool,
    sync_failed: bool,
    trust: Trust,
}

/// Names a sync of the backing that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sync(u64);

/// Whether the map can be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// What it says is durable.
    Kept,
    /// It cannot be written, and nobody knows yet: no write may go on.
    Lost,
    /// It cannot be written, and the next open will know: writes go on without it.
    Forgone,
}

impl Intent {
    /// The map as it was found on disk, nothing of it known to be synced.
    pub fn new(found: Marks) -> Self {
        let mut none = found.regions.clone();
        none.bits.fill(false);
        Self {
            wanted: none,
            recent: found.regions.clone(),
            unsynced: found.regions.clone(),
            known: found.regions,
            syncing: Vec::new(),
            next_sync: 0,
            until: found.until,
            misses: 0,
            busy: false,
            saving: false,
            sync_failed: false,
            trust: Trust::Kept,
        }
    }

    /// Whether writes to `ranges` may be admitted at `now`.
    pub fn allows(&self, mut ranges: impl Iterator<Item = Range<u64>>, now: i64) -> bool {
        match self.trust {
            Trust::Kept => now <= self.until && ranges.all(|range| self.known.covers(&range)),
            Trust::Lost => false,
            Trust::Forgone => true,
        }
    }

    /// Whether the map can be relied on.
    pub fn trust(&self) -> Trust {
        self.trust
    }

    /// Says that it can be relied on no more, or that this is known.
    pub fn set_trust(&mut self, trust: Trust) {
        self.trust = trust;
    }

    /// A write waits for `range`. Behind a sequential writer, as many regions as are known right before it are marked ahead; under
    /// a burst of writes all over the disk, its neighbourhood is, and the larger the longer that lasts.
    pub fn want(&mut self, range: &Range<u64>) {
        self.wanted.add(range);
        let touched = self.known.touched(range);
        let behind =
            self.known.bits[..touched.start].iter().rev().take(AHEAD).take_while(|known| **known).count();
        let ahead = touched.end..(touched.end + behind).min(self.known.bits.len());
        self.wanted.bits[ahead].fill(true);
        let around = 1usize << (self.misses / BURST).min(DOUBLINGS);
        let end = touched.end.next_multiple_of(around).min(self.known.bits.len());
        self.wanted.bits[touched.start / around * around..end].fill(true);
    }

    /// Somebody is saving it.
    pub fn is_saving(&self) -> bool {
        self.saving
    }

    /// Takes the turn to save, and what is to be saved at `now`; none if somebody is at it.
    pub fn begin_save(&mut self, now: i64) -> Option<Marks> {
        if self.saving || self.trust != Trust::Kept {
            return None;
        }
        self.saving = true;
        self.busy = false;
        self.misses = self.misses.saturating_add(u32::from(!self.wanted.is_empty()));
        let mut regions = self.known.clone();
        regions.merge(&self.wanted);
        Some(Marks { regions, until: (now + ALLOWANCE).max(self.until) })
    }

    /// Takes the turn to save a map of everything where writes went on without one; none if they did not.
    pub fn begin_restore(&mut self, size: u64, now: i64) -> Option<Marks> {
        if self.saving || self.trust != Trust::Forgone {
            return None;
        }
        self.saving = true;
        Some(Marks { regions: Regions::all(size), until: now + ALLOWANCE })
    }

    /// The save has ended.
    pub fn end_save(&mut self, marks: Marks, durable: bool) {
        self.saving = false;
        if durable {
            self.wanted.remove(&marks.regions);
            self.known = marks.regions;
            self.until = marks.until;
            self.trust = Trust::Kept;
        } else if self.trust == Trust::Kept {
            self.trust = Trust::Lost;
        }
    }

    /// The regions that need no mark any more as far as this map can tell: idle since the last call, and synced.
    pub fn idle(&mut self) -> Regions {
        self.misses /= 2;
        let recent = self.recent.take();
        let mut idle = self.known.clone();
        for held in [&recent, &self.unsynced, &self.wanted] {
            idle.remove(held);
        }
        self.syncing.iter().for_each(|(_, covered)| idle.remove(covered));
        if self.sync_failed {
            idle.bits.fill(false);
        }
        idle
    }

    /// Begins a save of the map without `idle`, none of which is open; none if there is nothing to save or somebody is at it.
    pub fn begin_clear(&mut self, now: i64, idle: &Regions) -> Option<Marks> {
        if self.saving || self.trust != Trust::Kept || idle.is_empty() {
            return None;
        }
        self.known.remove(idle);
        self.begin_save(now)
    }

    /// A write to `range` is through.
    pub fn wrote(&mut self, range: &Range<u64>) {
        self.recent.add(range);
        self.unsynced.add(range);
        self.busy = true;
    }

    /// A sync of the backing begins.
    pub fn begin_sync(&mut self) -> Sync {
        let sync = Sync(self.next_sync);
        self.next_sync += 1;
        let covered = self.unsynced.take();
        self.syncing.push((sync, covered));
        sync
    }

    /// That sync has ended. Returns whether it is the first that failed.
    pub fn end_sync(&mut self, sync: Sync, well: bool) -> bool {
        let covered = self.syncing.iter().position(|(other, _)| *other == sync);
        let covered = covered.map(|index| self.syncing.swap_remove(index).1);
        if well {
            return false;
        }
        covered.iter().for_each(|covered| self.unsynced.merge(covered));
        !std::mem::replace(&mut self.sync_failed, true)
    }

    /// That sync has been lost on its way: nothing of it counts, and nothing is wrong with the next.
    pub fn abandon_sync(&mut self, sync: Sync) {
        if let Some(index) = self.syncing.iter().position(|(other, _)| *other == sync) {
            let (_, covered) = self.syncing.swap_remove(index);
            self.unsynced.merge(&covered);
        }
    }

    /// The regions that hold something which no sync has covered.
    pub fn at_risk(&self) -> Regions {
        let mut at_risk = self.unsynced.clone();
        self.syncing.iter().for_each(|(_, covered)| at_risk.merge(covered));
        at_risk
    }

    /// Whether a sync has failed since the open.
    pub fn sync_failed(&self) -> bool {
        self.sync_failed
    }

    /// Whether regions would be cleared if the backing were synced.
    pub fn waits_for_sync(&self) -> bool {
        !self.sync_failed && !self.unsynced.is_empty()
    }

    /// Whether the stamp should be renewed, for writes go on and it ends soon.
    pub fn ends_soon(&self, now: i64) -> bool {
        self.busy && self.until < now + ALLOWANCE / 2
    }

    /// The regions that are marked.
    pub fn marked(&self) -> &Regions {
        &self.known
    }
}

#[cfg(test)]
mod tests;
