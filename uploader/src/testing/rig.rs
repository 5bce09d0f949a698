//! A machine behind a real proxy, in a folder of its own, with an oracle of what its disks hold.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use nbd_proxy::device::{BlockDevice as _, Extent, Write, ZeroMode};
use nbd_proxy::disk::DiskSettings;
use nbd_proxy::machine::{Machine, MachineSettings};
use nbd_proxy::tracking::{Cut, CutRequest, MachineInfo, Round, Sync, SyncScope};
use nbd_proxy::{Error, Kind, Result};
use tempfile::TempDir;
use uuid::Uuid;

use super::Random;
use crate::elapsed::Elapsed;
use crate::jobs::Jobs;
use crate::replicate::{Clock, OnFenced, ResyncWindow, Settings};
use crate::source::Source;

pub(crate) type Disks = BTreeMap<String, Vec<u8>>;

struct Inner {
    settings: MachineSettings,
    machine: Option<Arc<Machine>>,
    oracle: Disks,
    cuts: BTreeMap<Timestamp, Disks>,
    /// Bytes that the uploader read of the live disks.
    read: u64,
    write_between: bool,
    /// How much the guest writes, and how far into each disk, whenever a piece is read.
    hot: Option<(usize, usize)>,
    /// What syncs were about.
    scopes: BTreeSet<String>,
    /// Ranges that cannot be read, as (disk, offset, end).
    spoilt: Vec<(String, u64, u64)>,
    /// Pieces to read until the proxy dies.
    reads_left: Option<u64>,
    /// A disk that overflows right after the next cut.
    overflow: Option<String>,
    /// Whole syncs of disks that the vault was exact about become marked ones.
    marks: bool,
    /// What was ever written, by whomever, in regions.
    regions: BTreeMap<String, BTreeSet<u64>>,
    /// The regions that a marked sync names, by its tracking id.
    marked: BTreeMap<Uuid, BTreeSet<u64>>,
    /// The same by the sync's first round.
    marked_rounds: BTreeMap<Uuid, BTreeSet<u64>>,
    random: Random,
}

/// The length of a region that is marked.
const REGION: u64 = 128 << 10;

/// See the module. Clones are the same machine.
#[derive(Clone)]
pub(crate) struct Rig {
    inner: Arc<Mutex<Inner>>,
    dir: Arc<TempDir>,
}

impl Rig {
    pub fn new(sizes: &[(&str, u64)], seed: u64) -> Self {
        Self::with_log_limit(sizes, seed, 1 << 30)
    }

    pub fn with_log_limit(sizes: &[(&str, u64)], seed: u64, limit: u64) -> Self {
        let dir = TempDir::new().unwrap();
        let inner = Inner {
            settings: MachineSettings { name: "m".to_owned(), disks: Vec::new() },
            machine: None,
            oracle: Disks::new(),
            cuts: BTreeMap::new(),
            read: 0,
            write_between: false,
            hot: None,
            scopes: BTreeSet::new(),
            spoilt: Vec::new(),
            reads_left: None,
            overflow: None,
            marks: false,
            regions: BTreeMap::new(),
            marked: BTreeMap::new(),
            marked_rounds: BTreeMap::new(),
            random: Random::new(seed),
        };
        let rig = Self { inner: Arc::new(Mutex::new(inner)), dir: Arc::new(dir) };
        for (name, size) in sizes {
            rig.add_disk(name, *size, limit);
        }
        rig.start_proxy();
        rig
    }

    /// A machine with one disk too large for an oracle: write with [`Rig::write_through`].
    pub fn sparse(name: &str, size: u64) -> Self {
        Self::unwatched(name, size, Some(1 << 30))
    }

    /// The same with the log that is wanted, or the default.
    pub fn unwatched(name: &str, size: u64, log_limit: Option<u64>) -> Self {
        let rig = Self::new(&[], 0);
        let path = rig.dir.path().join(format!("{name}.img"));
        std::fs::File::create(&path).unwrap().set_len(size).unwrap();
        let disk = DiskSettings {
            name: name.to_owned(),
            path,
            log_dir: None,
            read_only: false,
            log_limit,
            upstream: Default::default(),
        };
        rig.with(|inner| inner.settings.disks.push(disk));
        rig.start_proxy();
        rig
    }

    /// Writes what no oracle follows.
    pub fn write_through(&self, disk: &str, offset: u64, data: &[u8]) {
        self.with(|inner| inner.write_device(disk, offset, data));
    }

    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        act(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds a disk; the proxy has to be started again to see it.
    pub fn add_disk(&self, name: &str, size: u64, limit: u64) {
        let path = self.dir.path().join(format!("{name}.img"));
        std::fs::File::create(&path).unwrap().set_len(size).unwrap();
        let disk = DiskSettings {
            name: name.to_owned(),
            path,
            log_dir: None,
            read_only: false,
            log_limit: Some(limit),
            upstream: Default::default(),
        };
        self.with(|inner| {
            inner.settings.disks.push(disk);
            inner.oracle.insert(name.to_owned(), vec![0; usize::try_from(size).unwrap()]);
        });
    }

    /// Takes a disk out of the machine; the proxy has to be started again to see it.
    pub fn remove_disk(&self, name: &str) {
        self.with(|inner| {
            inner.settings.disks.retain(|disk| disk.name != name);
            inner.oracle.remove(name);
        });
    }

    /// Kills the proxy: nothing is closed in order.
    pub fn kill_proxy(&self) {
        self.with(|inner| inner.machine = None);
    }

    /// Ends the proxy in good order.
    pub fn close_proxy(&self) {
        self.with(|inner| inner.machine.take().expect("the proxy runs").close().unwrap());
    }

    /// Writes to the image behind the proxy's back; it must not run.
    pub fn write_outside(&self, disk: &str, offset: u64, data: &[u8]) {
        self.with(|inner| {
            assert!(inner.machine.is_none(), "the proxy runs");
            let path = &inner.settings.disks.iter().find(|each| each.name == disk).unwrap().path;
            let file = std::fs::File::options().write(true).open(path).unwrap();
            file.write_all_at(data, offset).unwrap();
            inner.note(disk, offset, data);
        });
    }

    /// Gives the disk another size; the proxy must not run.
    pub fn resize(&self, disk: &str, size: u64) {
        self.with(|inner| {
            let path = &inner.settings.disks.iter().find(|each| each.name == disk).unwrap().path;
            std::fs::File::options().write(true).open(path).unwrap().set_len(size).unwrap();
            inner.oracle.get_mut(disk).unwrap().resize(usize::try_from(size).unwrap(), 0);
        });
    }

    /// Random changes behind the proxy's back, which is closed and started for it.
    pub fn churn_outside(&self, count: usize) {
        self.close_proxy();
        for _ in 0..count {
            let (name, at, data) = self.with(Inner::random_change);
            self.write_outside(&name, at, &data);
        }
        self.start_proxy();
    }

    /// From now on, syncs after a loss of tracking name the regions that may differ, as after a power loss.
    pub fn mark(&self, on: bool) {
        self.with(|inner| inner.marks = on);
    }

    /// The guest writes a lot whenever the uploader reads, or not.
    pub fn set_hot(&self, on: bool) {
        self.with(|inner| inner.hot = on.then_some((300 << 10, 200 << 10)));
    }

    /// What syncs were about: scopes, and whether a round followed another.
    pub fn scopes(&self) -> BTreeSet<String> {
        self.with(|inner| inner.scopes.clone())
    }

    /// From now on, these ranges of `disk` cannot be read.
    pub fn spoil(&self, disk: &str, ranges: &[(u64, u64)]) {
        let ranges = ranges.iter().map(|(offset, len)| (disk.to_owned(), *offset, offset + len)).collect();
        self.with(|inner| inner.spoilt = ranges);
    }

    /// Kills the proxy when the uploader has read so many pieces more.
    pub fn kill_proxy_after(&self, reads: u64) {
        self.with(|inner| inner.reads_left = Some(reads));
    }

    pub fn start_proxy(&self) {
        self.with(|inner| {
            inner.machine = None;
            inner.machine = Some(Machine::open(&inner.settings).unwrap());
        });
    }

    pub fn set_log_limit(&self, limit: u64) {
        self.with(|inner| inner.settings.disks.iter_mut().for_each(|disk| disk.log_limit = Some(limit)));
    }

    pub fn write(&self, disk: &str, offset: u64, data: &[u8]) {
        self.with(|inner| inner.write(disk, offset, data));
    }

    /// `count` random writes and zeroes of odd offsets and lengths, on random disks.
    pub fn churn(&self, count: usize) {
        self.with(|inner| (0..count).for_each(|_| inner.random_write()));
    }

    /// From now on, the guest writes between any two requests of the uploader.
    pub fn write_between(&self, on: bool) {
        self.with(|inner| inner.write_between = on);
    }

    /// From now on, the guest writes `bytes` within the first `area` bytes of each disk whenever the uploader reads.
    pub fn rewrite(&self, bytes: usize, area: usize) {
        self.with(|inner| inner.hot = Some((bytes, area)));
    }

    /// Fills the log of `disk` until it is dropped: at once, or right after the next cut.
    pub fn overflow(&self, disk: &str, after_cut: bool) {
        self.with(
            |inner| {
                if after_cut { inner.overflow = Some(disk.to_owned()) } else { inner.overflow(disk) }
            },
        );
    }

    /// What the disks held at each cut.
    pub fn cuts(&self) -> BTreeMap<Timestamp, Disks> {
        self.with(|inner| inner.cuts.clone())
    }

    pub fn bytes_read(&self) -> u64 {
        self.with(|inner| inner.read)
    }

    /// Settings for the loop, local state beside the disks.
    pub fn settings(&self) -> Settings {
        Settings {
            machine: "m".to_owned(),
            interval: Duration::from_secs(3600),
            state_dir: self.dir.path().to_owned(),
            jobs: Jobs::open(&self.dir.path().join("jobs")).unwrap(),
            retry_gaps: vec![Duration::from_millis(2)],
            host: "here".to_owned(),
            resync_window: ResyncWindow::Always,
            clock: Clock::new(jiff::ZonedDateTime::now),
            elapsed: Elapsed::of_host(),
            on_fenced: OnFenced::Branch,
            copy_limit: None,
            group: None,
            app_consistent_every: None,
        }
    }

    pub fn folder(&self) -> &std::path::Path {
        self.dir.path()
    }

    fn ask<T>(&self, act: impl FnOnce(&mut Inner, &Machine) -> Result<T>) -> Result<T> {
        self.with(|inner| {
            let gone = || Error::new(Kind::Unavailable, "proxy", "is not running");
            let machine = inner.machine.clone().ok_or_else(gone)?;
            if inner.write_between {
                inner.random_write();
            }
            act(inner, &machine)
        })
    }
}

impl Inner {
    fn overflow(&mut self, disk: &str) {
        let data = self.random.bytes(100_000);
        let logged = |inner: &Self| {
            let info = inner.machine.as_ref().expect("the proxy runs").info();
            info.disks.iter().any(|shown| shown.name == disk && shown.logged)
        };
        while logged(self) {
            self.write(disk, 5000, &data);
        }
    }

    fn write_device(&self, disk: &str, offset: u64, data: &[u8]) {
        let machine = self.machine.as_ref().expect("the proxy runs");
        for (number, piece) in data.chunks(1 << 20).enumerate() {
            let at = offset + (number << 20) as u64;
            let mut results = Vec::new();
            let write = Write { offset: at, data: piece, fua: false };
            machine.disk(disk).unwrap().write_batch(&[write], &mut results);
            results.into_iter().for_each(|result| result.unwrap());
        }
    }

    fn write(&mut self, disk: &str, offset: u64, data: &[u8]) {
        self.write_device(disk, offset, data);
        self.note(disk, offset, data);
    }

    /// Somebody has written.
    fn note(&mut self, disk: &str, offset: u64, data: &[u8]) {
        let at = usize::try_from(offset).unwrap();
        self.oracle.get_mut(disk).unwrap()[at..at + data.len()].copy_from_slice(data);
        let regions = offset / REGION..=(offset + data.len() as u64 - 1) / REGION;
        self.regions.entry(disk.to_owned()).or_default().extend(regions);
    }

    fn random_change(&mut self) -> (String, u64, Vec<u8>) {
        let names: Vec<String> = self.oracle.keys().cloned().collect();
        let name = names[self.random.size(names.len())].clone();
        let size = self.oracle[&name].len();
        let longest = [512, 5000, 40_000, 200_000][self.random.size(4)];
        let len = 1 + self.random.size(longest.min(size));
        let at = self.random.size(size - len + 1);
        let zero = self.random.below(4) == 0;
        let data = if zero { vec![0; len] } else { self.random.bytes(len) };
        (name, at as u64, data)
    }

    fn random_write(&mut self) {
        let (name, at, data) = self.random_change();
        if data.iter().all(|byte| *byte == 0) {
            let machine = self.machine.as_ref().expect("the proxy runs");
            let mode = ZeroMode { punch: self.random.below(2) == 0, fast: false, fua: false };
            machine.disk(&name).unwrap().zero(at, data.len() as u64, mode).unwrap();
            self.note(&name, at, &data);
        } else {
            self.write(&name, at, &data);
        }
    }

    fn rewrite(&mut self) {
        let Some((bytes, area)) = self.hot else { return };
        let names: Vec<String> = self.oracle.keys().cloned().collect();
        let mut left = bytes;
        while left > 0 {
            let len = left.min(1 + self.random.size(60_000));
            let (at, data) = (self.random.size(area - len), self.random.bytes(len));
            names.iter().for_each(|name| self.write(name, at as u64, &data));
            left -= len;
        }
    }

    /// Makes a marked sync of a whole one, if what the vault has may be relied upon.
    fn mark(&mut self, disk: &str, known: Option<Uuid>, sync: Sync) -> Sync {
        if !self.marks || known.is_none() || sync.scope != SyncScope::Whole {
            self.marked.remove(&sync.tracking);
            self.marked_rounds.remove(&sync.round);
            return sync;
        }
        let regions = self.regions.get(disk).cloned().unwrap_or_default();
        self.marked.insert(sync.tracking, regions.clone());
        self.marked_rounds.insert(sync.round, regions);
        Sync { scope: SyncScope::Marked, ..sync }
    }

    fn marked_extents(&self, tracking: Uuid, size: u64, from: u64) -> Option<Vec<Extent>> {
        let regions = self.marked.get(&tracking)?.range(from / REGION..);
        let extent = |region: &u64| {
            let (start, end) = ((region * REGION).max(from), ((region + 1) * REGION).min(size));
            Extent { offset: start, len: end - start, hole: false }
        };
        // A few at a time, so that asking again is tried too.
        Some(regions.take(3).map(extent).collect())
    }
}

impl Source for Rig {
    async fn machine(&self) -> Result<MachineInfo> {
        self.ask(|_, machine| Ok(machine.info()))
    }

    async fn cut(&self, request: CutRequest) -> Result<Cut> {
        // Nobody writes while the lock is held: the oracle is what the disks hold at the cut.
        self.ask(|inner, machine| {
            let cut = machine.cut_as(&request)?;
            inner.cuts.insert(cut.time, inner.oracle.clone());
            if let Some(disk) = inner.overflow.take() {
                inner.overflow(&disk);
            }
            Ok(cut)
        })
    }

    async fn release(&self, cut: Uuid) -> Result<()> {
        self.ask(|_, machine| machine.release(cut))
    }

    async fn begin_sync(&self, disk: &str, known: Option<Uuid>) -> Result<Sync> {
        self.ask(|inner, machine| Ok(inner.mark(disk, known, machine.begin_sync(disk, known)?))).inspect(
            |sync| {
                self.with(|inner| inner.scopes.insert(format!("{:?}", sync.scope)));
            },
        )
    }

    async fn next_round(&self, disk: &str, known: Option<Uuid>, have: Round, logged: bool) -> Result<Sync> {
        self.ask(|inner, machine| {
            let sync = machine.next_round(disk, known, have, logged)?;
            // The round goes on under another name.
            let regions = inner.marked_rounds.get(&sync.round).cloned();
            if let Some(regions) = regions {
                inner.marked.insert(sync.tracking, regions);
                return Ok(Sync { scope: SyncScope::Marked, ..sync });
            }
            if sync.follows.is_some() || sync.round == have.id {
                inner.marked.remove(&sync.tracking);
                return Ok(sync);
            }
            Ok(inner.mark(disk, known, sync))
        })
        .inspect(|sync| {
            self.with(|inner| inner.scopes.insert(format!("{:?} again", sync.scope)));
        })
    }

    async fn sync_extents(&self, disk: &str, tracking: Uuid, from: u64) -> Result<Vec<Extent>> {
        self.ask(|inner, machine| {
            let named = machine.sync_extents(disk, tracking, from)?;
            let size = machine.disk(disk)?.size();
            Ok(inner.marked_extents(tracking, size, from).unwrap_or(named))
        })
    }

    async fn read(&self, disk: &str, offset: u64, len: u32) -> Result<Bytes> {
        self.ask(|inner, machine| {
            let end = offset + u64::from(len);
            if inner.spoilt.iter().any(|(name, from, to)| name == disk && *from < end && offset < *to) {
                return Err(Error::new(Kind::Io, disk, format!("cannot read {len} bytes at {offset}: EIO")));
            }
            inner.read += u64::from(len);
            inner.rewrite();
            inner.reads_left = inner.reads_left.map(|left| left.saturating_sub(1));
            if inner.reads_left == Some(0) {
                (inner.machine, inner.reads_left) = (None, None);
            }
            machine.read(disk, offset, len).map(Bytes::from)
        })
    }

    async fn end_sync(&self, disk: &str, tracking: Uuid) -> Result<()> {
        self.ask(|_, machine| machine.end_sync(disk, tracking))
    }
}
