//! Test parts: a backing that fails on request, and a stand-in for the vault that believes only segments and copies.

pub mod losing;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use uuid::Uuid;

use super::ranges::Ticket;
use super::tracker::{Reservation, Reserve};
use super::{DiskSettings, TrackedDisk};
use crate::Result;
use crate::backing::{Access, Backing, Identity, RawDisk};
use crate::device::{BlockDevice, Capabilities, Extent, Write, ZeroMode};
use crate::log::SegmentReader;
use crate::log::segment::Entry;
use crate::machine::{Machine, MachineSettings};
use crate::tracking::{CutDisk, SyncScope};

/// Settings for a disk image called `name` in `dir`, made if absent.
pub fn settings(dir: &Path, name: &str, size: u64, log_limit: Option<u64>) -> DiskSettings {
    let path = dir.join(format!("{name}.img"));
    if !path.exists() {
        std::fs::File::create(&path).unwrap().set_len(size).unwrap();
    }
    DiskSettings {
        name: name.to_owned(),
        path,
        log_dir: None,
        read_only: false,
        log_limit,
        upstream: Default::default(),
    }
}

/// A machine of `disks` in `dir`.
pub fn machine(dir: &Path, disks: &[&str], size: u64) -> MachineSettings {
    let disks = disks.iter().map(|name| settings(dir, name, size, Some(1 << 30))).collect();
    MachineSettings { name: "m".to_owned(), disks }
}

/// One write as a batch of its own.
pub fn write(disk: &dyn BlockDevice, offset: u64, data: &[u8]) -> io::Result<()> {
    let mut results = Vec::new();
    disk.write_batch(&[Write { offset, data, fua: false }], &mut results);
    results.pop().unwrap()
}

/// What is in an image file.
pub fn contents(dir: &Path, name: &str) -> Vec<u8> {
    std::fs::read(dir.join(format!("{name}.img"))).unwrap()
}

/// How far a cycle gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Nothing is committed: what was uploaded is given up.
    Abandoned,
    /// The point is committed, and the proxy does not hear of it.
    Committed,
    /// The proxy is told.
    Told,
}

impl TrackedDisk {
    /// The first half of a write: it has its room and its record, and nothing of it is on the backing.
    pub fn begin_write(&self, offset: u64, data: &[u8]) -> HalfWritten {
        let half = self.take_room(offset, data);
        self.append_record(&half);
        half
    }

    /// The first quarter: it has its room.
    pub fn take_room(&self, offset: u64, data: &[u8]) -> HalfWritten {
        let range = offset..offset + data.len() as u64;
        let entry = Entry { offset, len: data.len() as u64, data: Some(data) };
        loop {
            let mut tracker = self.lock();
            if let Reserve::Ready(room) = tracker.reserve(1, entry.record_bytes()) {
                let ticket = tracker.ranges.take(std::iter::once(range.clone()));
                return HalfWritten { room, ticket, offset, data: data.to_vec() };
            }
            drop(tracker);
            self.make_spare().unwrap();
        }
    }

    /// The second quarter: it has its record.
    pub fn append_record(&self, half: &HalfWritten) {
        let HalfWritten { room, offset, data, .. } = half;
        let entry = Entry { offset: *offset, len: data.len() as u64, data: Some(data) };
        room.file.append(room.at, room.first, &[entry]).unwrap();
        let mut tracker = self.lock();
        tracker.appended(room);
        self.unlock(tracker);
    }

    /// The second half: on the backing, marked, answered.
    pub fn end_write(&self, half: HalfWritten) {
        let HalfWritten { room, ticket, offset, data } = half;
        let mut results = Vec::new();
        self.backing.write_batch(&[Write { offset, data: &data, fua: false }], &mut results);
        results.pop().unwrap().unwrap();
        let mut tracker = self.lock();
        tracker.mark(std::iter::once(offset..offset + data.len() as u64));
        tracker.applied(&room);
        tracker.done(&room);
        tracker.ranges.release(ticket);
        self.unlock(tracker);
    }

    /// Drops the log, as a failed append does.
    pub fn lose_log(&self, cause: &str) {
        self.stop_logging(cause).unwrap();
    }
}

/// A write that stands between its record and the backing.
pub struct HalfWritten {
    room: Reservation,
    ticket: Ticket,
    offset: u64,
    data: Vec<u8>,
}

/// What a vault would hold: the disks, built from copies and records alone.
#[derive(Clone, Debug, Default)]
pub struct Replica {
    /// Disk name to bytes, for comparison with images.
    pub disks: BTreeMap<String, Vec<u8>>,
    /// Disk name to the tracking id under which it is exact.
    pub known: BTreeMap<String, Uuid>,
}

/// What a cycle has taken, before it is committed.
struct Shipped {
    /// Of the syncs.
    scopes: Vec<SyncScope>,
    /// The disks that they make exact, under which tracking id.
    ended: Vec<(String, Uuid)>,
    cut: Uuid,
}

impl Replica {
    /// Brings every disk that is not exact up by a sync, then cuts and applies. Returns the scopes of the syncs.
    pub fn cycle(&mut self, machine: &Machine) -> Result<Vec<SyncScope>> {
        self.cycle_until(machine, End::Told)
    }

    /// The same, ending where the uploader may die.
    pub fn cycle_until(&mut self, machine: &Machine, end: End) -> Result<Vec<SyncScope>> {
        let before = (self.disks.clone(), self.known.clone());
        let shipped = self.ship(machine);
        if shipped.is_err() || end == End::Abandoned {
            (self.disks, self.known) = before;
        }
        let Shipped { scopes, ended, cut } = shipped?;
        if end == End::Abandoned {
            // Within a sync a cut is released as soon as it is uploaded, whatever becomes of the sync.
            if !scopes.is_empty() {
                machine.release(cut)?;
            }
            return Ok(scopes);
        }
        for (disk, tracking) in &ended {
            self.known.insert(disk.clone(), *tracking);
        }
        if end == End::Committed {
            return Ok(scopes);
        }
        for (disk, tracking) in ended {
            machine.end_sync(&disk, tracking)?;
        }
        machine.release(cut)?;
        Ok(scopes)
    }

    /// All that a point consists of.
    fn ship(&mut self, machine: &Machine) -> Result<Shipped> {
        let mut scopes = Vec::new();
        let mut ended = Vec::new();
        for disk in machine.info().disks {
            let known = self.known.get(&disk.name).copied();
            if disk.logged && known == Some(disk.tracking) {
                if disk.syncing {
                    machine.end_sync(&disk.name, disk.tracking)?;
                }
                continue;
            }
            let sync = machine.begin_sync(&disk.name, known)?;
            scopes.push(sync.scope);
            self.copy(machine, &disk.name, sync.tracking, sync.scope, sync.size)?;
            ended.push((disk.name, sync.tracking));
        }
        let cut = machine.cut()?;
        for disk in &cut.disks {
            self.apply(disk)?;
        }
        Ok(Shipped { scopes, ended, cut: cut.id })
    }

    /// Replays a cut's segments.
    pub fn apply(&mut self, disk: &CutDisk) -> Result<()> {
        let bytes = self.disks.get_mut(&disk.name).unwrap();
        for segment in &disk.segments {
            let mut reader = SegmentReader::open(segment)?;
            while let Some(record) = reader.next_record()? {
                let at = usize::try_from(record.offset).unwrap();
                let target = &mut bytes[at..at + usize::try_from(record.len).unwrap()];
                match record.data {
                    Some(position) => reader.read_at(position, target)?,
                    None => target.fill(0),
                }
            }
        }
        Ok(())
    }

    /// Copies what a round names.
    pub fn copy(
        &mut self,
        machine: &Machine,
        disk: &str,
        tracking: Uuid,
        scope: SyncScope,
        size: u64,
    ) -> Result<()> {
        let size = usize::try_from(size).unwrap();
        let bytes = self.disks.entry(disk.to_owned()).or_default();
        if scope == SyncScope::Whole {
            // Nothing that was there may be relied on.
            *bytes = vec![0xEE; size];
        }
        let mut from = 0;
        loop {
            let extents = machine.sync_extents(disk, tracking, from)?;
            let Some(last) = extents.last() else { return Ok(()) };
            from = last.offset + last.len;
            for extent in extents {
                let (mut at, end) = (extent.offset, extent.offset + extent.len);
                while at < end {
                    let len = u32::try_from((end - at).min(1 << 20)).unwrap();
                    let start = usize::try_from(at).unwrap();
                    let piece = if extent.hole {
                        vec![0; usize::try_from(len).unwrap()]
                    } else {
                        machine.read(disk, at, len)?
                    };
                    bytes[start..start + piece.len()].copy_from_slice(&piece);
                    at += u64::from(len);
                }
            }
        }
    }
}

/// A backing whose writes fail half done while the switch is on; or, with space running out, that has none left as long as
/// there is a change log.
#[derive(Debug)]
pub struct FailingDisk {
    inner: RawDisk,
    /// Fail from now on.
    pub failing: Arc<AtomicBool>,
    /// Fail with ENOSPC while a segment is in this folder.
    full_beside: Option<PathBuf>,
}

impl FailingDisk {
    /// The failing disk at `path`, and its switch.
    pub fn open(path: &Path) -> (Self, Arc<AtomicBool>) {
        let failing = Arc::new(AtomicBool::new(false));
        let inner = RawDisk::open(path, Access::ReadWrite).unwrap();
        (Self { inner, failing: failing.clone(), full_beside: None }, failing)
    }

    /// The disk at `path`, on a file system that is full while a segment is in `log`.
    pub fn full_beside(path: &Path, log: PathBuf) -> (Self, Arc<AtomicBool>) {
        let (disk, failing) = Self::open(path);
        (Self { full_beside: Some(log), ..disk }, failing)
    }

    /// The errno to fail with now.
    fn fails(&self) -> Option<i32> {
        let failing = self.failing.load(Ordering::SeqCst);
        match &self.full_beside {
            _ if !failing => None,
            None => Some(5),
            Some(log) => {
                let mut files = std::fs::read_dir(log).unwrap().map(|entry| entry.unwrap().file_name());
                files
                    .any(|name| [".seg", ".blank"].iter().any(|end| name.to_string_lossy().ends_with(end)))
                    .then_some(28)
            }
        }
    }
}

impl Backing for FailingDisk {
    fn path(&self) -> &Path {
        self.inner.path()
    }
    fn found(&self) -> &Identity {
        self.inner.found()
    }
    fn identity(&self) -> Result<Identity> {
        self.inner.identity()
    }
    fn drop_cache(&self) {
        self.inner.drop_cache();
    }
}

impl BlockDevice for FailingDisk {
    fn size(&self) -> u64 {
        self.inner.size()
    }
    fn capabilities(&self) -> Capabilities {
        let able = self.inner.capabilities();
        Capabilities { fast_zero: able.fast_zero && !self.failing.load(Ordering::SeqCst), ..able }
    }
    fn try_read(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        self.inner.try_read(buf, offset)
    }
    fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.inner.read(buf, offset)
    }
    fn write_batch(&self, writes: &[Write<'_>], results: &mut Vec<io::Result<()>>) {
        let Some(errno) = self.fails() else { return self.inner.write_batch(writes, results) };
        for write in writes {
            // Torn: half of it gets there.
            let half = Write { data: &write.data[..write.data.len() / 2], ..*write };
            self.inner.write_batch(&[half], &mut Vec::new());
            results.push(Err(io::Error::from_raw_os_error(errno)));
        }
    }
    fn zero(&self, offset: u64, len: u64, mode: ZeroMode) -> io::Result<()> {
        if let Some(errno) = self.fails() {
            self.inner.zero(offset, len / 2, mode)?;
            return Err(io::Error::from_raw_os_error(errno));
        }
        self.inner.zero(offset, len, mode)
    }
    fn flush(&self) -> io::Result<()> {
        self.inner.flush()
    }
    fn extents(&self, offset: u64, len: u64, out: &mut Vec<Extent>) -> io::Result<()> {
        self.inner.extents(offset, len, out)
    }
    fn cache(&self, offset: u64, len: u64) -> io::Result<()> {
        self.inner.cache(offset, len)
    }
}
