//! A machine: its disks, and what the uploader may ask of them.
//!
//! [`cut`] is the instant at which the logs of all disks roll over; [`group`] makes it one instant over several machines; [`guest`]
//! has the guest hold still meanwhile.
//!
//! Nothing of a cut is durable here. A proxy that dies forgets it, and its segments, still in the folder, join the next one:
//! shipping a record again is harmless, for the newest record of a block wins and the last one says what the disk is.
//! A cut that was not released when the next is asked for is merged back in the same way.

mod cut;
pub mod group;
pub mod guest;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use uuid::Uuid;

use self::group::Group;
use self::guest::Guest;
use crate::device::Extent;
use crate::disk::{DiskSettings, TrackedDisk};
use crate::ticker::Ticker;
use crate::tracking::{Cut, CutDisk, CutRequest, MachineInfo, Round, Sync};
use crate::{Error, Kind, Result};

/// What a machine is opened with.
#[derive(Clone, Debug)]
pub struct MachineSettings {
    /// The machine's name.
    pub name: String,
    /// Its disks, in the order in which the cut locks them.
    pub disks: Vec<DiskSettings>,
}

/// A protected machine, open.
#[derive(Debug)]
pub struct Machine {
    name: String,
    disks: Vec<Arc<TrackedDisk>>,
    cutting: Mutex<Cutting>,
    idle: Condvar,
    ticker: OnceLock<Ticker>,
    /// Segments are being made ahead by a thread.
    preparing: Arc<AtomicBool>,
    guest: OnceLock<Box<dyn Guest>>,
    membership: OnceLock<Membership>,
}

/// A machine's place in its consistency group.
#[derive(Debug)]
struct Membership {
    group: Arc<Group>,
    place: usize,
}

#[derive(Debug, Default)]
struct Cutting {
    busy: bool,
    /// The cut that is out: its id and, for each disk, the number of its last segment (0: none).
    out: Option<(Uuid, Vec<u64>)>,
}

impl Machine {
    /// Opens, locks and recovers all disks, or none.
    ///
    /// # Errors
    /// What [`crate::backing::RawDisk::open`] says, or a folder for the log that cannot be used.
    pub fn open(settings: &MachineSettings) -> Result<Arc<Self>> {
        let machine = Self::open_in(settings, &boot_id()?)?;
        let ticker = Ticker::start(&machine.disks)
            .map_err(|error| Error::io("start a thread for", Path::new(&settings.name), error))?;
        let _ = machine.ticker.set(ticker);
        Ok(machine)
    }

    /// The same in a given boot of the host.
    pub(crate) fn open_in(settings: &MachineSettings, boot: &str) -> Result<Arc<Self>> {
        let machine = |disks| Self::over(settings.name.clone(), disks);
        let mut disks = Vec::with_capacity(settings.disks.len());
        for disk in &settings.disks {
            match TrackedDisk::open(&settings.name, disk, boot) {
                Ok(disk) => disks.push(Arc::new(disk)),
                Err(error) => {
                    // Those that are open lose nothing because another is not.
                    machine(disks).close()?;
                    return Err(error);
                }
            }
        }
        Ok(machine(disks))
    }

    /// A machine of disks that are open.
    pub(crate) fn over(name: String, disks: Vec<Arc<TrackedDisk>>) -> Arc<Self> {
        disks.iter().for_each(TrackedDisk::watch_backing);
        Arc::new(Self {
            name,
            disks,
            cutting: Mutex::default(),
            idle: Condvar::new(),
            ticker: OnceLock::new(),
            preparing: Arc::default(),
            guest: OnceLock::new(),
            membership: OnceLock::new(),
        })
    }

    /// The machine's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The disks in configuration order.
    pub fn disks(&self) -> &[Arc<TrackedDisk>] {
        &self.disks
    }

    /// The disk called `name`.
    ///
    /// # Errors
    /// `NotFound`, naming the disks there are.
    pub fn disk(&self, name: &str) -> Result<&Arc<TrackedDisk>> {
        self.disks.iter().find(|disk| disk.name() == name).ok_or_else(|| {
            let names: Vec<_> = self.disks.iter().map(|disk| disk.name()).collect();
            Error::new(Kind::NotFound, format!("{}/{name}", self.name), "the machine has no such disk")
                .remedy(format!("its disks are {}", names.join(", ")))
        })
    }

    /// How the machine stands.
    pub fn info(&self) -> MachineInfo {
        MachineInfo { name: self.name.clone(), disks: self.disks.iter().map(|disk| disk.info()).collect() }
    }

    /// The guest that holds still for application-consistent cuts. The first one that is set stays.
    pub fn attend(&self, guest: Box<dyn Guest>) {
        let _ = self.guest.set(guest);
    }

    /// Rolls the logs of all disks over now, at one instant.
    ///
    /// # Errors
    /// As [`Machine::cut_as`] says.
    pub fn cut(&self) -> Result<Cut> {
        self.cut_as(&CutRequest::default())
    }

    /// The same, as `request` wants it. A cut that is out is merged into this one.
    ///
    /// # Errors
    /// `NotReady` while a disk is not logged, `Unavailable` while a log folder hangs.
    pub fn cut_as(&self, request: &CutRequest) -> Result<Cut> {
        self.take_turn().out = None;
        let share = match self.membership.get() {
            Some(Membership { group, place }) => group.share(self, *place, request),
            None => cut::alone(self, request.application),
        };
        let result = share.and_then(|share| share.settle(self));
        let last = |disk: &CutDisk| disk.segments.last().map_or(0, |segment| segment.segment);
        self.end_turn(result.as_ref().ok().map(|cut| (cut.id, cut.disks.iter().map(last).collect())));
        result
    }

    /// The vault has everything up to `cut` durably. An unknown cut is nobody's fault: it was made by a proxy that died, and its
    /// records are in a later one.
    pub fn release(&self, cut: Uuid) -> Result<()> {
        let released = self.take_turn().out.take_if(|(id, _)| *id == cut);
        let last = released.map_or(Vec::new(), |(_, last)| last);
        let result = self.disks.iter().zip(last).try_for_each(|(disk, last)| disk.release(last));
        self.end_turn(None);
        result
    }

    /// Turns logging on for a disk and says what has to be copied to make it exact; asked again, it answers the same. `known`
    /// is the tracking id under which the vault was last exact.
    pub fn begin_sync(&self, disk: &str, known: Option<Uuid>) -> Result<Sync> {
        self.disk(disk)?.begin_sync(known)
    }

    /// Goes on with a sync that has lost its log: with the same round if that is not complete, else with one of what was written
    /// since it began, logged or not. A round that is not known any more begins the sync anew, as [`Machine::begin_sync`] does.
    pub fn next_round(&self, disk: &str, known: Option<Uuid>, have: Round, logged: bool) -> Result<Sync> {
        self.disk(disk)?.next_round(known, have, logged)
    }

    /// What a sync copies at or after byte `from`; empty at the end. May be partial.
    ///
    /// # Errors
    /// `NotReady` when that sync is over, for example because logging stopped.
    pub fn sync_extents(&self, disk: &str, tracking: Uuid, from: u64) -> Result<Vec<Extent>> {
        self.disk(disk)?.sync_extents(tracking, from)
    }

    /// Reads the live disk: at most 1 MiB.
    pub fn read(&self, disk: &str, offset: u64, len: u32) -> Result<Vec<u8>> {
        let mut buf = vec![0; usize::try_from(len).unwrap_or(0)];
        self.read_into(disk, offset, &mut buf)?;
        Ok(buf)
    }

    /// The same, all of `buf`.
    pub fn read_into(&self, disk: &str, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.disk(disk)?.read_live(offset, buf)
    }

    /// The point with the whole sync is committed. Durable on return.
    ///
    /// # Errors
    /// `NotReady` when that sync is over, for example because logging stopped.
    pub fn end_sync(&self, disk: &str, tracking: Uuid) -> Result<()> {
        self.disk(disk)?.end_sync(tracking)
    }

    /// Makes everything durable, after the server has stopped. The next open goes on where this one stopped. Every disk is
    /// closed as well as it can be; the first error is told.
    pub fn close(&self) -> Result<()> {
        self.disks.iter().map(|disk| disk.close()).fold(Ok(()), Result::and)
    }

    /// A disk whose records and what the vault has do not add up to what it is.
    fn inexact(&self) -> Option<String> {
        let inexact = |disk: &&Arc<TrackedDisk>| {
            let tracker = disk.lock();
            !tracker.is_logged() || tracker.sync.is_some()
        };
        self.disks.iter().find(inexact).map(|disk| disk.label())
    }

    /// The one who cuts or releases now: a release must not meet the next cut's bitmap.
    fn take_turn(&self) -> MutexGuard<'_, Cutting> {
        let mut cutting = self.lock();
        while cutting.busy {
            cutting = self.idle.wait(cutting).unwrap_or_else(PoisonError::into_inner);
        }
        cutting.busy = true;
        cutting
    }

    fn end_turn(&self, out: Option<(Uuid, Vec<u64>)>) {
        let mut cutting = self.lock();
        cutting.busy = false;
        cutting.out = out.or(cutting.out.take());
        drop(cutting);
        self.idle.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Cutting> {
        self.cutting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What names this boot of the host: the page cache of another boot is gone.
fn boot_id() -> Result<String> {
    let path = PathBuf::from("/proc/sys/kernel/random/boot_id");
    let id =
        std::fs::read_to_string(&path).map_err(|error| Error::io("read the host's boot id", &path, error))?;
    Ok(id.trim().to_owned())
}

#[cfg(test)]
mod tests;
