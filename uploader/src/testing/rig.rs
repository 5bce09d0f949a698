//! A machine behind a real proxy, in a folder of its own, with an oracle of what its disks hold.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use nbd_proxy::device::{BlockDevice as _, Extent, Write, ZeroMode};
use nbd_proxy::disk::DiskSettings;
use nbd_proxy::machine::{Machine, MachineSettings};
use nbd_proxy::tracking::{Cut, CutRequest, MachineInfo, Sync};
use nbd_proxy::{Error, Kind, Result};
use tempfile::TempDir;
use uuid::Uuid;

use super::Random;
use crate::jobs::Jobs;
use crate::replicate::Settings;
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
    /// A disk that overflows right after the next cut.
    overflow: Option<String>,
    random: Random,
}

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
            overflow: None,
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
        let rig = Self::new(&[], 0);
        let path = rig.dir.path().join(format!("{name}.img"));
        std::fs::File::create(&path).unwrap().set_len(size).unwrap();
        let disk = DiskSettings {
            name: name.to_owned(),
            path,
            log_dir: None,
            read_only: false,
            log_limit: Some(1 << 30),
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
        let at = usize::try_from(offset).unwrap();
        self.oracle.get_mut(disk).unwrap()[at..at + data.len()].copy_from_slice(data);
    }

    fn random_write(&mut self) {
        let names: Vec<String> = self.oracle.keys().cloned().collect();
        let name = &names[self.random.size(names.len())];
        let size = self.oracle[name].len();
        let longest = [512, 5000, 40_000, 200_000][self.random.size(4)];
        let len = 1 + self.random.size(longest.min(size));
        let at = self.random.size(size - len + 1);
        if self.random.below(4) == 0 {
            let machine = self.machine.as_ref().expect("the proxy runs");
            let mode = ZeroMode { punch: self.random.below(2) == 0, fast: false, fua: false };
            machine.disk(name).unwrap().zero(at as u64, len as u64, mode).unwrap();
            self.oracle.get_mut(name).unwrap()[at..at + len].fill(0);
        } else {
            let data = self.random.bytes(len);
            self.write(&name.clone(), at as u64, &data);
        }
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
        self.ask(|_, machine| machine.begin_sync(disk, known))
    }

    async fn sync_extents(&self, disk: &str, tracking: Uuid, from: u64) -> Result<Vec<Extent>> {
        self.ask(|_, machine| machine.sync_extents(disk, tracking, from))
    }

    async fn read(&self, disk: &str, offset: u64, len: u32) -> Result<Bytes> {
        self.ask(|inner, machine| {
            inner.read += u64::from(len);
            machine.read(disk, offset, len).map(Bytes::from)
        })
    }

    async fn end_sync(&self, disk: &str, tracking: Uuid) -> Result<()> {
        self.ask(|_, machine| machine.end_sync(disk, tracking))
    }
}
