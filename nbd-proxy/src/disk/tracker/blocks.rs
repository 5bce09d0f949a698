//! Which blocks the vault lacks, in three stretches, oldest first: of the cut that is out, of one that is pending, and since.
//!
//! A block leaves a bitmap only when the vault has it, or for another bitmap: what breaks, merges back.

use std::ops::Range;

use uuid::Uuid;

use super::{Boundary, Tracker};
use crate::bitmap::DirtyBitmap;
use crate::disk::intent::Marks;

impl Tracker {
    /// The cut `id`: seals the active segment if it holds anything and freezes the bitmap. [`Tracker::can_cut`] must hold.
    pub fn cut(&mut self, id: Uuid) -> Boundary {
        self.merge_back();
        self.frozen = Some((id, self.freeze()));
        self.seal()
    }

    /// The same cut, to be taken later: the one that is out stays as it is, and may be released meanwhile.
    pub fn cut_for_later(&mut self) -> Boundary {
        let newer = self.freeze();
        match &mut self.pending {
            Some(pending) => pending.merge(newer),
            none => *none = Some(newer),
        }
        self.seal()
    }

    /// Whether the cut for later at `boundary` still says what the vault lacks: its log goes on, and nothing is being copied.
    pub fn can_take(&self, boundary: Boundary) -> bool {
        self.epoch == boundary.epoch && self.is_logged() && self.sync.is_none()
    }

    /// The cut for later, `id`, is out now; one that was out and not released joins it.
    pub fn take_pending(&mut self, id: Uuid) {
        let earlier = self.frozen.take();
        let Some(mut blocks) = self.pending.take() else {
            self.frozen = earlier;
            return;
        };
        if let Some((_, earlier)) = earlier {
            blocks.merge(earlier);
        }
        self.frozen = Some((id, blocks));
    }

    /// Undoes what cuts did to the bitmap.
    pub fn merge_back(&mut self) {
        let frozen = self.frozen.take().map(|(_, blocks)| blocks);
        for cut in [frozen, self.pending.take()].into_iter().flatten() {
            self.dirty.merge(cut);
        }
    }

    /// The dirty blocks at this instant. Writes in flight mark theirs at their end, for the next cut; those with records before
    /// the instant are in this one as well, and one block too many does no harm.
    fn freeze(&mut self) -> DirtyBitmap {
        let mut blocks = self.dirty.freeze();
        self.ranges.held().for_each(|range| blocks.mark(range.start, range.end - range.start));
        blocks
    }

    /// Bytes of blocks that the vault does not have.
    pub fn dirty_bytes(&self) -> u64 {
        let frozen = self.frozen.as_ref().map(|(_, blocks)| blocks);
        let cuts = [frozen, self.pending.as_ref()].into_iter().flatten();
        self.dirty.bytes() + cuts.map(DirtyBitmap::bytes).sum::<u64>()
    }

    /// Marks what was written.
    pub fn mark(&mut self, ranges: impl Iterator<Item = Range<u64>>) {
        for range in ranges {
            self.dirty.mark(range.start, range.end - range.start);
            self.intent.wrote(&range);
        }
    }

    /// Whatever is marked in the intent map may differ.
    pub fn suspect_marked(&mut self) {
        for range in self.intent.marked().ranges() {
            self.dirty.mark(range.start, range.end - range.start);
        }
        self.suspect = true;
    }

    /// Whatever no sync of the backing has covered may not be there any more.
    pub fn suspect_unsynced(&mut self) {
        for range in self.intent.at_risk().ranges() {
            self.dirty.mark(range.start, range.end - range.start);
        }
        self.suspect = true;
    }

    /// Marks what is in flight as well: a bitmap that is saved, or stands for a log that is gone, must name it.
    pub fn mark_in_flight(&mut self) {
        let held: Vec<_> = self.ranges.held().cloned().collect();
        self.mark(held.into_iter());
    }

    /// Begins a save of the intent map without the regions that need no mark any more, if there are such.
    pub fn begin_clear(&mut self, now: i64) -> Option<Marks> {
        let mut idle = self.intent.idle();
        idle.drop_if(|range| self.is_open(range));
        self.intent.begin_clear(now, &idle)
    }

    /// Whether `range` has writes in flight or such as the vault may lack.
    fn is_open(&self, range: &Range<u64>) -> bool {
        let sync = self.sync.as_ref();
        let frozen = self.frozen.as_ref().map(|(_, blocks)| blocks);
        let bitmaps = [Some(&self.dirty), frozen, self.pending.as_ref()].into_iter().flatten();
        let of_sync = sync.into_iter().flat_map(|sync| [&sync.released, &sync.earlier]);
        let of_sync = of_sync.chain(sync.and_then(|sync| sync.copy.as_ref()));
        let marked =
            |bitmap: &DirtyBitmap| bitmap.next_run(range.start).is_some_and(|(start, _)| start < range.end);
        bitmaps.chain(of_sync).any(marked) || self.ranges.conflicts(std::iter::once(range.clone()))
    }
}
