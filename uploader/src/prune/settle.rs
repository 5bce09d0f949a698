//! What leads from one kept point to the next, once the points between them are gone.
//!
//! The deltas between them are looked at newest first. A byte that a later one has is dead in all earlier ones; so the
//! *living* bytes of different deltas never overlap. From that follows where things go. Deltas that stay as they are keep
//! their order among themselves, since their dead bytes are still in them and must lose; packs hold living bytes only, so nothing
//! that stays has a later word about any of them, and they may stand last, in whatever order.
//!
//! A disk that some point between them covers *whole* needs nothing of what is older. A delta that has such older
//! bytes does not stay as it is, unless it has nothing that is alive: the point it now belongs to would show them.
//!
//! What is remembered of covered bytes is bounded: when it has grown too large, what was settled so far is closed,
//! and what is older is settled by itself and stands before it.

use std::collections::HashSet;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use nbd_proxy::{Error, Result};

use super::Mode;
use super::covered::{self, Covered};
use super::pack::{Batch, Piece};
use super::plan::{Gap, Plan};
use super::survey::{Entry, Survey};
use crate::blockmap;
use crate::catalogue::{Catalogue, Kept, KeptDelta};
use crate::delta::reader::{DeltaReader, Place};
use crate::keys::{self, PointId};
use crate::line;
use crate::point::{self, DeltaRef, Header};
use crate::vault::Vault;

/// Smaller deltas are packed together.
const SMALL: u64 = 8 << 20;
/// Points, and indexes of deltas, fetched ahead; a large index takes some 20 MiB.
const PARALLEL: usize = 4;

/// What came of it.
#[derive(Debug)]
pub(super) struct Settled {
    /// What is to be published.
    pub catalogue: Catalogue,
    /// Bytes, as stored, of the deltas that were packed anew.
    pub repacked: u64,
    /// Bytes of the packs.
    pub written: u64,
}

/// Settles every gap of `plan`. In a rehearsal nothing is written, and the catalogue names only what stays as it is.
pub(super) async fn settle(vault: &Vault, survey: &Survey, plan: &Plan, mode: Mode) -> Result<Settled> {
    let old = &survey.catalogue;
    let mut catalogue = old.next();
    catalogue.floor = plan.floor;
    let claims = survey.above().map(|entry| &entry.header).filter(|header| !header.is_point());
    catalogue.claims.extend(claims.filter(|claim| claim.number <= plan.floor).cloned());
    catalogue.points = Vec::with_capacity(plan.gaps.len());
    let (mut repacked, mut written) = (0, 0);
    for gap in &plan.gaps {
        let [.., last] = gap.path[..] else { continue };
        if let ([_], Some(kept)) = (&gap.path[..], old.point(last.number)) {
            catalogue.points.push(kept.clone());
            continue;
        }
        let mut layer = Layer::new(vault, survey, plan.floor, mode);
        let kept = layer.settle(gap, last).await?;
        repacked += layer.repacked;
        written += layer.written;
        catalogue.points.push(kept);
    }
    Ok(Settled { catalogue, repacked, written })
}

/// A delta on the way, newest first; or the end of a point's deltas, with the disks that it covers whole.
enum Step {
    Delta(DeltaRef, Box<Source>),
    End(Vec<String>),
}

/// Where a delta is, and its index as far as that is at hand.
struct Source {
    place: Place,
    embedded: Option<DeltaReader>,
}

/// Deltas that were looked at with one memory of what is covered.
#[derive(Default)]
struct Segment {
    /// Those that stay as they are, newest first.
    stay: Vec<KeptDelta>,
    packs: Vec<KeptDelta>,
    /// How many were to be packed anew.
    candidates: usize,
    /// The first of them and its place among those that stay, if only its size speaks against it.
    lone: Option<(usize, KeptDelta)>,
}

/// One gap on the way.
struct Layer<'a> {
    vault: &'a Vault,
    survey: &'a Survey,
    floor: u64,
    mode: Mode,
    covered: Covered,
    /// Newest first; the last one is growing.
    segments: Vec<Segment>,
    batch: Batch,
    repacked: u64,
    written: u64,
}

impl<'a> Layer<'a> {
    fn new(vault: &'a Vault, survey: &'a Survey, floor: u64, mode: Mode) -> Self {
        let segments = vec![Segment::default()];
        let (covered, batch) = (Covered::default(), Batch::default());
        Self { vault, survey, floor, mode, covered, segments, batch, repacked: 0, written: 0 }
    }

    async fn settle(&mut self, gap: &Gap, last: PointId) -> Result<Kept> {
        let Entry { mut header, mark, stored, .. } = self.described(last)?;
        let disks: HashSet<String> = header.disks.iter().map(|disk| disk.name.clone()).collect();
        let vault = self.vault;
        let newest_first: Vec<PointId> = gap.path.iter().rev().copied().collect();
        let survey = self.survey;
        let steps = stream::iter(newest_first)
            .map(|id| steps_of(vault, survey, id))
            .buffered(PARALLEL)
            .map_ok(|steps| stream::iter(steps.into_iter().map(Ok)))
            .try_flatten()
            .map_ok(|step| open(vault, step))
            .try_buffered(PARALLEL);
        let mut steps = std::pin::pin!(steps);
        while let Some((step, reader)) = steps.try_next().await? {
            match (step, reader) {
                (Step::Delta(reference, _), Some(reader)) => self.take(&disks, reference, reader).await?,
                (Step::End(whole), _) => whole.iter().for_each(|disk| self.covered.shut(disk)),
                (Step::Delta(..), None) => {}
            }
        }
        self.end_segment().await?;
        let deltas = self.in_order();
        for disk in &mut header.disks {
            disk.whole = self.covered.is_shut(&disk.name);
            if gap.parent.is_none() && !disk.whole {
                return Err(blockmap::without_base(&header.machine, last, &disk.name));
            }
        }
        header.parent = gap.parent;
        header.parent_mark =
            gap.parent.map(|parent| self.described(parent)).transpose()?.map(|parent| parent.mark);
        header.bytes = deltas.iter().map(|kept| kept.delta.size).sum();
        header.logical = deltas.iter().map(|kept| kept.delta.logical).sum();
        Ok(Kept { header, mark, stored, deltas })
    }

    fn described(&self, id: PointId) -> Result<Entry> {
        let kept = self.survey.catalogue.point(id.number).map(|kept| Entry {
            header: kept.header.clone(),
            mark: kept.mark,
            stored: kept.stored,
            names: Vec::new(),
        });
        kept.or_else(|| self.survey.entries.get(&id.number).cloned()).ok_or_else(|| {
            Error::corrupt(&self.survey.catalogue.machine, format!("point {id} is not in the vault"))
        })
    }

    /// Decides what becomes of a delta, all later ones having been looked at.
    async fn take(
        &mut self,
        disks: &HashSet<String>,
        reference: DeltaRef,
        reader: DeltaReader,
    ) -> Result<()> {
        let mut life = Life::default();
        for (disk, extents) in &reader.index.disks {
            if !disks.contains(disk) {
                extents.iter().for_each(|extent| life.see(extent.len, extent.at.is_some()));
                continue;
            }
            let shut = self.covered.is_shut(disk);
            life.stale |= shut;
            let number = self.batch.disk(disk);
            for extent in extents {
                life.see(extent.len, extent.at.is_some());
                if shut {
                    continue;
                }
                self.covered.add(disk, extent.offset, extent.len, |offset, len| {
                    let at = extent.at.map(|at| at + (offset - extent.offset));
                    life.live(Piece { disk: number, offset, len, at });
                });
            }
        }
        self.settle_one(reference, reader, life).await?;
        if self.covered.is_full(covered::FULL) {
            self.end_segment().await?;
            self.segments.push(Segment::default());
            self.covered.forget();
        }
        Ok(())
    }

    async fn settle_one(&mut self, reference: DeltaRef, reader: DeltaReader, life: Life) -> Result<()> {
        let live = life.of(reference.size);
        let Some(segment) = self.segments.last_mut().filter(|_| !life.pieces.is_empty()) else {
            return Ok(());
        };
        let external = reference.name.is_some();
        let mostly_alive = external && !life.stale && live * 3 >= reference.size * 2;
        if mostly_alive && reference.size >= SMALL {
            segment.stay.push(KeptDelta { delta: reference, live });
            return Ok(());
        }
        segment.candidates += 1;
        segment.lone = (segment.candidates == 1 && mostly_alive)
            .then(|| (segment.stay.len(), KeptDelta { delta: reference.clone(), live }));
        self.repacked += reference.size;
        self.batch.add(reader, life.pieces);
        if self.batch.is_full() { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<()> {
        let batch = std::mem::take(&mut self.batch);
        if self.mode == Mode::Rehearse {
            return Ok(());
        }
        let packs = batch.write(self.vault, &self.survey.catalogue.machine, self.floor).await?;
        self.written += packs.iter().map(|pack| pack.delta.size).sum::<u64>();
        if let Some(segment) = self.segments.last_mut() {
            segment.lone = None;
            segment.packs.extend(packs);
        }
        Ok(())
    }

    /// Closes the segment that is growing. To pack one small delta all by itself would gain nothing.
    async fn end_segment(&mut self) -> Result<()> {
        let lone = self.segments.last_mut().filter(|segment| segment.candidates == 1);
        if let Some((segment, (place, kept))) =
            lone.and_then(|segment| segment.lone.take().map(|lone| (segment, lone)))
        {
            self.repacked -= kept.delta.size;
            segment.stay.insert(place, kept);
            self.batch = Batch::default();
            return Ok(());
        }
        self.flush().await
    }

    fn in_order(&mut self) -> Vec<KeptDelta> {
        let oldest_first = std::mem::take(&mut self.segments).into_iter().rev();
        oldest_first.flat_map(|segment| segment.stay.into_iter().rev().chain(segment.packs)).collect()
    }
}

/// How much of a delta is alive.
#[derive(Default)]
struct Life {
    pieces: Vec<Piece>,
    /// Bytes with data and bytes in all; and those of them that are alive.
    data: u64,
    len: u64,
    live_data: u64,
    live_len: u64,
    /// It has bytes of a disk that a later point covers whole.
    stale: bool,
}

impl Life {
    fn see(&mut self, len: u64, data: bool) {
        self.len += len;
        self.data += if data { len } else { 0 };
    }

    fn live(&mut self, piece: Piece) {
        self.live_len += piece.len;
        self.live_data += if piece.at.is_some() { piece.len } else { 0 };
        self.pieces.push(piece);
    }

    /// How much of `size` stored bytes is alive: by data, or by length where there is no data at all.
    fn of(&self, size: u64) -> u64 {
        let (live, all) = if self.data > 0 { (self.live_data, self.data) } else { (self.live_len, self.len) };
        let share = u128::from(size) * u128::from(live) / u128::from(all.max(1));
        u64::try_from(share).unwrap_or(size)
    }
}

/// The deltas of a point, newest first, and then what it covers whole.
async fn steps_of(vault: &Vault, survey: &Survey, id: PointId) -> Result<Vec<Step>> {
    let machine = &survey.catalogue.machine;
    let object = |name: &str, salt| Source {
        place: Place { key: keys::delta(machine, name), base: 0, salt },
        embedded: None,
    };
    let whole = |header: &Header| {
        let whole = header.disks.iter().filter(|disk| disk.whole);
        Step::End(whole.map(|disk| disk.name.clone()).collect())
    };
    if let Some(kept) = survey.catalogue.point(id.number) {
        let step = |kept: &KeptDelta| {
            Step::Delta(kept.delta.clone(), Box::new(object(kept.name(), kept.delta.salt)))
        };
        let mut steps: Vec<Step> = kept.deltas.iter().rev().map(step).collect();
        steps.push(whole(&kept.header));
        return Ok(steps);
    }
    let key = keys::line_entry(&keys::line_folder(machine), id.number);
    let bytes = vault.store.get(&key, line::ENTRY_LIMIT).await?;
    let name = vault.store.name_of(&key);
    let entry = point::decode(&vault.named(&key), &bytes)?;
    let mut base = entry.embedded.start;
    let mut steps = Vec::with_capacity(entry.deltas.len() + 1);
    for delta in entry.deltas {
        let source = match &delta.name {
            Some(name) => object(name, delta.salt),
            None => {
                let place = Place { key: key.clone(), base: base as u64, salt: delta.salt };
                let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX).saturating_add(base);
                let index = at(delta.index.offset)..at(delta.index.offset + u64::from(delta.index.len));
                let stored =
                    bytes.get(index).ok_or_else(|| Error::corrupt(&name, "its index lies outside"))?;
                base = at(delta.size);
                let reader = DeltaReader::with_index(vault, place.clone(), &delta.index, stored)?;
                Source { place, embedded: Some(reader) }
            }
        };
        steps.push(Step::Delta(delta, Box::new(source)));
    }
    steps.reverse();
    steps.push(whole(&entry.header));
    Ok(steps)
}

/// The step with its delta's index.
async fn open(vault: &Vault, mut step: Step) -> Result<(Step, Option<DeltaReader>)> {
    let reader = match &mut step {
        Step::End(_) => None,
        Step::Delta(reference, source) => Some(match source.embedded.take() {
            Some(reader) => reader,
            None => DeltaReader::open(vault, source.place.clone(), &reference.index).await?,
        }),
    };
    Ok((step, reader))
}
