//! The block map of a point: which delta holds each byte of each disk.
//!
//! A point is its parent with its deltas applied. Going from the point to its ancestors until every wanted disk has
//! met a point that covers it whole gives the deltas that matter; inserting them oldest first, newest winning, gives
//! the map. What no delta covers reads as zero, and the whole base makes sure that this is never a gap.
//!
//! Entries are numbered, so ancestors are fetched many at a time without waiting for each to name its parent; what was
//! fetched in vain (claims, entries of a lost branch) is dropped. Of an embedded delta only the index stays in memory.
//! What lies at or below the floor of the newest catalogue is taken from there.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use nbd_proxy::{Error, Kind, Result};

use crate::branches::{self, Branch};
use crate::catalogue::{self, Catalogue};
use crate::commit;
use crate::delta::format::IndexRef;
use crate::delta::reader::{DeltaReader, Place};
use crate::digest::Digest;
use crate::intervals::{self, IntervalMap};
use crate::keys::{self, PointId};
use crate::line::Line;
use crate::point::{self, DeltaRef, Header, PointDisk};
use crate::vault::Vault;

/// Entries and indexes fetched at the same time.
const PARALLEL: usize = 16;

/// Where the bytes of a range are: a delta, by its place in [`BlockMap::deltas`], and a position in its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// The range reads as zero.
    Zero,
    /// The range's bytes are in a delta.
    Data {
        /// Which delta.
        delta: u32,
        /// Where in its stream.
        at: u64,
    },
}

impl intervals::Source for Held {
    fn advanced(&self, by: u64) -> Self {
        match *self {
            Self::Zero => Self::Zero,
            Self::Data { delta, at } => Self::Data { delta, at: at + by },
        }
    }
}

/// One disk in a [`BlockMap`].
#[derive(Clone, Debug)]
pub struct DiskMap {
    /// The disk at the point.
    pub disk: PointDisk,
    /// Where each range is held; what is not in it reads as zero.
    pub map: IntervalMap<Held>,
}

impl DiskMap {
    /// Bytes that have to be fetched and written.
    pub fn data_bytes(&self) -> u64 {
        self.map.iter().filter(|(_, _, held)| **held != Held::Zero).map(|(_, len, _)| len).sum()
    }
}

/// See the module.
#[derive(Debug)]
pub struct BlockMap {
    /// The point.
    pub header: Header,
    /// Its disks, or those that were asked for, in the point's order.
    pub disks: Vec<DiskMap>,
    /// The deltas that hold the bytes.
    pub deltas: Vec<DeltaReader>,
}

/// A delta on the way: what it is and whether its index is at hand.
pub(crate) enum Found {
    Embedded(Box<DeltaReader>),
    Object(Place, IndexRef),
}

impl Found {
    pub(crate) async fn open(self, vault: &Vault) -> Result<DeltaReader> {
        match self {
            Self::Embedded(reader) => Ok(*reader),
            Self::Object(place, index) => DeltaReader::open(vault, place, &index).await,
        }
    }
}

/// Builds the map of `disks` (all, if none are named) at `point`.
pub async fn load(vault: &Vault, machine: &str, point: PointId, disks: &[String]) -> Result<BlockMap> {
    along(vault, Chain::new(vault, machine), point, disks).await
}

/// The same by `catalogue`, which the caller holds the point by.
pub async fn load_held(
    vault: &Vault,
    catalogue: &Arc<Catalogue>,
    point: PointId,
    disks: &[String],
) -> Result<BlockMap> {
    along(vault, Chain::by(vault, Arc::clone(catalogue)), point, disks).await
}

async fn along(vault: &Vault, mut chain: Chain<'_>, point: PointId, disks: &[String]) -> Result<BlockMap> {
    let machine = chain.machine.clone();
    let first = chain.entry(point, None).await?;
    let disks = wanted(&first.header, disks)?;
    let mut missing: HashSet<String> = disks.iter().map(|disk| disk.name.clone()).collect();
    let header = first.header.clone();

    let mut found = Vec::new();
    let mut next = Some(first);
    while let Some(ancestor) = next.take() {
        for disk in ancestor.header.disks.iter().filter(|disk| disk.whole) {
            missing.remove(&disk.name);
        }
        let (parent, mark) = (ancestor.header.parent, ancestor.header.parent_mark);
        found.push(ancestor);
        if missing.is_empty() {
            break;
        }
        let parent = parent.ok_or_else(|| no_base(&machine, &header, &missing))?;
        next = Some(chain.entry(parent, mark).await?);
    }
    assemble(vault, header, disks, found).await
}

async fn assemble(
    vault: &Vault,
    header: Header,
    disks: Vec<PointDisk>,
    mut found: Vec<Ancestor>,
) -> Result<BlockMap> {
    found.reverse();
    let mut bases = BTreeMap::new();
    let mut order = Vec::new();
    for ancestor in found {
        for disk in ancestor.header.disks.iter().filter(|disk| disk.whole) {
            bases.insert(disk.name.clone(), order.len());
        }
        order.extend(ancestor.deltas);
    }
    let open = |found: Found| async move {
        let mut reader = found.open(vault).await?;
        // What is fetched is verified by frames.
        reader.index.cells = Vec::new();
        Ok::<_, Error>(reader)
    };
    let deltas: Vec<DeltaReader> = stream::iter(order).map(open).buffered(PARALLEL).try_collect().await?;
    let map_of = |disk: PointDisk| {
        let base = bases.get(&disk.name).copied().unwrap_or(0);
        disk_map(&deltas, base, disk)
    };
    let disks = disks.into_iter().map(map_of).collect::<Result<_>>()?;
    Ok(BlockMap { header, disks, deltas })
}

/// The map of one disk, from the delta number `base` on.
fn disk_map(deltas: &[DeltaReader], base: usize, disk: PointDisk) -> Result<DiskMap> {
    let mut map = IntervalMap::default();
    for (number, reader) in deltas.iter().enumerate().skip(base) {
        let delta =
            u32::try_from(number).map_err(|_| Error::corrupt(reader.name(), "the chain has no end"))?;
        for extent in reader.index.extents(&disk.name) {
            // An earlier, larger size of the disk may have left changes past today's end.
            let len = extent.len.min(disk.size.saturating_sub(extent.offset));
            let held = extent.at.map_or(Held::Zero, |at| Held::Data { delta, at });
            map.insert(extent.offset, len, held);
        }
    }
    Ok(DiskMap { disk, map })
}

fn wanted(header: &Header, names: &[String]) -> Result<Vec<PointDisk>> {
    for name in names {
        if !header.disks.iter().any(|disk| disk.name == *name) {
            let has: Vec<_> = header.disks.iter().map(|disk| disk.name.as_str()).collect();
            let message = format!("point {} of {} has no such disk", header.id(), header.machine);
            let remedy = format!("its disks are: {}", has.join(", "));
            return Err(Error::new(Kind::NotFound, name, message).remedy(remedy));
        }
    }
    let chosen = |disk: &&PointDisk| names.is_empty() || names.contains(&disk.name);
    Ok(header.disks.iter().filter(chosen).cloned().collect())
}

fn no_base(machine: &str, header: &Header, missing: &HashSet<String>) -> Error {
    let mut names: Vec<_> = missing.iter().map(String::as_str).collect();
    names.sort_unstable();
    without_base(machine, header.id(), &names.join(", "))
}

pub(crate) fn without_base(machine: &str, point: PointId, disks: &str) -> Error {
    Error::corrupt(machine, format!("the chain of point {point} ends without a base for: {disks}"))
}

/// An entry on the way from a point to its base.
pub(crate) struct Ancestor {
    pub header: Header,
    pub mark: Digest,
    pub deltas: Vec<Found>,
}

fn kept_ancestor(machine: &str, kept: &catalogue::Kept) -> Ancestor {
    let place = |kept: &catalogue::KeptDelta| Place {
        key: keys::delta(machine, kept.name()),
        base: 0,
        salt: kept.delta.salt,
    };
    let found = |delta: &catalogue::KeptDelta| Found::Object(place(delta), delta.delta.index);
    Ancestor { header: kept.header.clone(), mark: kept.mark, deltas: kept.deltas.iter().map(found).collect() }
}

/// The ancestor, if it has the mark that its child says.
fn same_version(name: String, ancestor: Ancestor, mark: Option<Digest>) -> Result<Ancestor> {
    if mark.is_none_or(|mark| mark == ancestor.mark) {
        return Ok(ancestor);
    }
    Err(Error::corrupt(name, "is another version of what the point after it was built on"))
}

/// Fetches a machine's entries, a window of numbers at a time.
pub(crate) struct Chain<'a> {
    vault: &'a Vault,
    machine: String,
    line: Line,
    /// What is at or below the floor; the newest, from the first look on, unless it was given.
    catalogue: Option<Arc<Catalogue>>,
    /// The branch that the first point stands on; `line` is its entries as long as ancestors stand there too.
    branch: Option<Branch>,
    ahead: BTreeMap<u64, Result<Option<Ancestor>>>,
    misses: usize,
}

impl<'a> Chain<'a> {
    pub fn new(vault: &'a Vault, machine: &str) -> Self {
        Self {
            vault,
            machine: machine.to_owned(),
            line: commit::line(vault, machine),
            catalogue: None,
            branch: None,
            ahead: BTreeMap::new(),
            misses: 0,
        }
    }

    pub fn by(vault: &'a Vault, catalogue: Arc<Catalogue>) -> Self {
        let chain = Self::new(vault, &catalogue.machine);
        Self { catalogue: Some(catalogue), ..chain }
    }

    /// The point `id`, wherever it stands, which has the mark that its child says.
    pub async fn entry(&mut self, id: PointId, mark: Option<Digest>) -> Result<Ancestor> {
        if self.branch.take_if(|branch| !branch.holds(id)).is_some() {
            // From the fork on down it is the line.
            self.line = commit::line(self.vault, &self.machine);
            self.ahead.clear();
        }
        let found = self.here(id, mark).await;
        let elsewhere = matches!(&found, Err(e) if matches!(e.kind, Kind::NotFound | Kind::Corrupt));
        if !elsewhere || self.branch.is_some() {
            return found;
        }
        let Some(branch) = branches::holding(self.vault, &self.machine, id).await? else { return found };
        self.line = branch.line(self.vault, &self.machine);
        self.branch = Some(branch);
        self.ahead.clear();
        self.here(id, mark).await
    }

    /// The point `id` of this line. Going to ever lower numbers, most are there already.
    async fn here(&mut self, id: PointId, mark: Option<Digest>) -> Result<Ancestor> {
        let catalogue = match &self.catalogue {
            Some(catalogue) => Arc::clone(catalogue),
            None => Arc::new(catalogue::newest(self.vault, &self.machine).await?),
        };
        self.catalogue = Some(Arc::clone(&catalogue));
        // Numbers of a branch are above what the line had reached, and no floor is about them.
        let floor = if self.branch.is_some() { 0 } else { catalogue.floor };
        if id.number <= floor {
            let kept = catalogue.point(id.number).filter(|kept| kept.header.id() == id);
            let kept = kept.ok_or_else(|| self.pruned(id))?;
            let name = format!("point {id} of {}", self.machine);
            return same_version(name, kept_ancestor(&self.machine, kept), mark);
        }
        self.ahead.retain(|number, _| *number <= id.number);
        if !self.ahead.contains_key(&id.number) {
            // The first point may be its own base: look further only when it is not.
            let window = if self.misses == 0 { 1 } else { PARALLEL as u64 };
            self.misses += 1;
            let lowest = id.number.saturating_sub(window - 1).max(floor + 1);
            let this = &*self;
            let fetch = |number| async move { (number, this.fetch(number).await) };
            let fetched: Vec<_> =
                stream::iter(lowest..=id.number).map(fetch).buffer_unordered(PARALLEL).collect().await;
            self.ahead.extend(fetched);
        }
        let name = self.vault.store.name_of(&self.line.key(id.number));
        match self.ahead.remove(&id.number).unwrap_or(Ok(None))? {
            Some(ancestor) if ancestor.header.id() == id && ancestor.header.is_point() => {
                same_version(name, ancestor, mark)
            }
            Some(other) => {
                Err(Error::corrupt(name, format!("is entry {}, where point {id} must be", other.header.id())))
            }
            None => Err(Error::new(
                Kind::NotFound,
                name,
                format!("cannot read point {id}: there is no such entry"),
            )),
        }
    }

    fn pruned(&self, id: PointId) -> Error {
        let message = format!("has no point {id}: it was pruned");
        Error::new(Kind::NotFound, &self.machine, message)
            .remedy("`lifeboat points` lists the machine's points")
    }

    /// The entry `number`, whatever any catalogue says; nothing if there is none.
    pub async fn fetch(&self, number: u64) -> Result<Option<Ancestor>> {
        let Some(bytes) = self.line.read(number).await? else { return Ok(None) };
        let key = self.line.key(number);
        let name = self.vault.store.name_of(&key);
        let entry = point::decode(&self.vault.named(&key), &bytes)?;
        if entry.header.machine != self.machine || entry.header.number != number {
            return Err(Error::corrupt(
                name,
                "is the entry of another machine or number: objects were moved",
            ));
        }
        let mut base = entry.embedded.start;
        let mut deltas = Vec::with_capacity(entry.deltas.len());
        for delta in &entry.deltas {
            let Some(object) = &delta.name else {
                deltas.push(self.embedded(&key, &bytes, base, delta)?);
                base += usize::try_from(delta.size).unwrap_or(usize::MAX);
                continue;
            };
            let place = Place { key: keys::delta(&self.machine, object), base: 0, salt: delta.salt };
            deltas.push(Found::Object(place, delta.index));
        }
        Ok(Some(Ancestor { header: entry.header, mark: entry.mark, deltas }))
    }

    fn embedded(&self, key: &str, entry: &[u8], base: usize, delta: &DeltaRef) -> Result<Found> {
        let start = usize::try_from(delta.index.offset).unwrap_or(usize::MAX).saturating_add(base);
        let len = usize::try_from(delta.index.len).unwrap_or(usize::MAX);
        let stored = entry.get(start..start.saturating_add(len));
        let stored =
            stored.ok_or_else(|| Error::corrupt(self.vault.store.name_of(key), "its index lies outside"))?;
        let place = Place { key: key.to_owned(), base: base as u64, salt: delta.salt };
        let reader = DeltaReader::with_index(self.vault, place, &delta.index, stored)?;
        Ok(Found::Embedded(Box::new(reader)))
    }
}
