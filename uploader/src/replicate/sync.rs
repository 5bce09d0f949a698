//! Which disks have to be copied, and what the copy may rely on.
//!
//! Order is what makes a fuzzy copy exact. A stretch is read, packed, uploaded and written into the journal before the
//! next cut is taken; the cut's log goes into the journal behind it. So a block whose copy is older than a write has
//! that write in a later log, whatever the timing, and torn reads are overwritten the same way: a write is in the log
//! before it reaches the disk.
//!
//! If we die: what is in the journal counts, the rest is read again. A cut that was not released is part of the next.
//!
//! What is known to be different is shipped (scope *dirty*, and a disk that the vault has nothing of). What only may differ
//! (*marked*; *whole*, when the vault has the disk) is compared first, and equal bytes stay where they are. The next point then
//! is not *whole*: it relies on its parent. Why that is right:
//!
//! * Compared is with what the next point would show if it were committed with the journal as it is: its parent's chain and,
//!   over it, all that the journal has, abandoned attempts and shipped logs included ([`held`](super::held)). What an
//!   abandoned attempt left there is thereby either confirmed or overwritten. After a restart it is built anew, from the journal
//!   as it then is.
//! * After it was built, only copies and logs of this sync join the journal. A byte left out as equal was equal when it was
//!   read. If it is written after logging began, the last record of it is in a log that comes later, and wins; if not, it is now
//!   what it was then.
//! * The parent must be the point that was compared with ([`SyncDisk::against`]). The line can get an entry of ours in
//!   between, from a put that was on its way when an earlier step was dropped. It is found before we append, or by our
//!   append; [`State::remember`](super::state::State::remember) then drops the plan for every disk that relied on the
//!   point before, and they are compared again. A foreign entry ends the generation: nothing is appended at all.
//! * A new generation forks from the newest point there is, whoever wrote it. That point is compared with like any other: what
//!   counts is what the vault says, not who knew it.
//! * A disk that has grown is compared, or copied, up to its new end; what the chain says beyond an old end counts as it will
//!   count for a reader of the next point. One that has shrunk is new: nothing is relied on.
//! * A chain that cannot be read is not relied upon: the disk is shipped as a whole.
//!
//! A whole compare reads the disk from end to end, so it waits for the *resync window*, or for an operator who wants it
//! now. Nothing of the machine begins before: no point could be made of it, and logs that nobody ships would fill up. What
//! the proxy does meanwhile is what it did before: it marks what is written, or logs as long as there is room.

use nbd_proxy::tracking::{CutRequest, DiskInfo, MachineInfo, SyncScope};
use nbd_proxy::{Error, Kind, Result};
use uuid::Uuid;

use super::copy;
use super::engine::{Waits, Work};
use super::journal::Journal;
use super::ship;
use super::state::{Known, SyncDisk, SyncState};
use crate::jobs::JobKind;
use crate::keys::PointId;
use crate::listing;

/// The cause of a sync that the operator asked for.
pub(super) const ASKED: &str = "asked for by `lifeboat resync`";

/// What the newest point has of a disk.
enum Head {
    /// Nothing: the disk is new to the vault.
    Nothing,
    /// The disk.
    Disk(PointId),
    /// It cannot be read.
    Unreadable(Error),
}

/// A disk that is not exact, and that no sync makes exact as it is.
struct Fresh<'a> {
    disk: &'a DiskInfo,
    known: Option<Known>,
    /// The plan that does not fit any more.
    planned: Option<SyncDisk>,
}

impl Work<'_> {
    /// Begins a sync for each disk that is not exact, and ends what a sync that was committed left open. Nothing begins if
    /// one of them has to wait.
    pub async fn plan_sync(&mut self, info: &MachineInfo) -> Result<Option<Waits>> {
        let mut fresh = Vec::new();
        for disk in &info.disks {
            let state = &self.ready.state;
            let planned =
                state.sync.iter().flat_map(|sync| &sync.disks).find(|planned| planned.name == disk.name);
            let known = state.disks.get(&disk.name).cloned();
            let same = |tracking: Uuid, size: u64| tracking == disk.tracking && size == disk.size;
            match (planned, known) {
                (Some(planned), _)
                    if same(planned.tracking, planned.size)
                        && disk.syncing
                        && (disk.logged || !planned.logged) => {}
                (None, Some(known)) if same(known.tracking, known.size) && disk.logged => {
                    if disk.syncing {
                        self.ctx.source.end_sync(&disk.name, disk.tracking).await?;
                    }
                }
                (planned, known) => {
                    let planned = planned.filter(|planned| planned.size == disk.size).cloned();
                    fresh.push(Fresh { disk, known, planned });
                }
            }
        }
        if let Some(waits) = self.waits(&fresh).await? {
            return Ok(Some(waits));
        }
        let mut begun = Vec::new();
        for fresh in fresh {
            begun.push(self.begin(info, fresh).await?);
        }
        self.plan(info, begun)?;
        Ok(None)
    }

    /// Whether a sync of one of `disks` would be a whole compare, and would be so at a time when nobody wants it.
    async fn waits(&mut self, fresh: &[Fresh<'_>]) -> Result<Option<Waits>> {
        let (settings, state) = (&self.ctx.settings, &self.ready.state);
        let Some(until) = settings.resync_window.opens(&settings.clock.now()) else { return Ok(None) };
        if state.resync_asked || state.start_now {
            return Ok(None);
        }
        let mut waiting = Vec::new();
        // What has begun goes on.
        for Fresh { disk, known, .. } in fresh.iter().filter(|fresh| fresh.planned.is_none()) {
            let whole = known.as_ref().is_none_or(|known| !disk.bases.contains(&known.tracking));
            if whole && !matches!(self.head(disk).await?, Head::Nothing) {
                waiting.push(*disk);
            }
        }
        let cause = waiting.iter().map(|disk| format!("disk {}: {}", disk.name, disk.cause));
        let cause = cause.collect::<Vec<_>>().join("; ");
        let disks: Vec<_> = waiting.into_iter().map(|disk| disk.name.clone()).collect();
        Ok((!disks.is_empty()).then_some(Waits { until, cause, disks }))
    }

    async fn begin(&mut self, info: &MachineInfo, fresh: Fresh<'_>) -> Result<SyncDisk> {
        let Fresh { disk, known, planned } = fresh;
        let head = self.head(disk).await?;
        let base = known.as_ref().map(|known| known.tracking);
        let sync = match planned {
            None => self.ctx.source.begin_sync(&disk.name, base).await?,
            Some(planned) => {
                let copied = self.copied(&planned);
                let complete = copied.next >= planned.size;
                let logged = complete && Self::log_next(&planned, info);
                let have = planned.have(complete);
                let sync = self.ctx.source.next_round(&disk.name, base, have, logged).await?;
                if let Some(goes_on) = planned.goes_on(&sync, &copied) {
                    return self.counted(goes_on).await;
                }
                sync
            }
        };
        if sync.scope != SyncScope::Whole && known.is_none() {
            let message = "the proxy offers a partial copy where the vault holds nothing to build upon";
            return Err(Error::new(Kind::InvalidInput, &disk.name, message));
        }
        let asked = self.ready.state.resync_asked;
        let mut cause = if asked { ASKED.to_owned() } else { sync.cause };
        // What an attempt before has shipped is there to be compared with even if no point is.
        let shipped = self.ready.journal.as_ref().is_some_and(|journal| !journal.deltas().is_empty());
        let (whole, compare, against) = match (sync.scope, head) {
            (SyncScope::Dirty, _) => (false, false, None),
            (SyncScope::Marked, _) => (false, true, self.ready.state.point),
            (SyncScope::Whole, Head::Disk(point)) => (false, true, Some(point)),
            (SyncScope::Whole, Head::Nothing) => (true, shipped, None),
            (SyncScope::Whole, Head::Unreadable(error)) => {
                cause = not_compared(&cause, &error);
                (true, false, None)
            }
        };
        let known = known.filter(|_| sync.scope != SyncScope::Whole);
        let grown = known.as_ref().map(|known| known.size).filter(|size| *size < sync.size);
        self.counted(SyncDisk {
            name: disk.name.clone(),
            size: sync.size,
            tracking: sync.tracking,
            attempt: Uuid::new_v4(),
            round: sync.round,
            number: 0,
            logged: sync.logged,
            scope: sync.scope,
            tail: grown.unwrap_or(sync.size),
            whole,
            compare,
            against,
            unreadable: known.map(|known| known.unreadable).unwrap_or_default(),
            cause,
            total: 0,
        })
        .await
    }

    /// The same with its total.
    pub async fn counted(&self, mut disk: SyncDisk) -> Result<SyncDisk> {
        let mut at = 0;
        disk.total = 0;
        while at < disk.size {
            let extents = copy::extents(&*self.ctx.source, &disk, at).await?;
            let Some(last) = extents.last() else { break };
            at = last.offset + last.len;
            disk.total += extents.iter().filter(|extent| !extent.hole).map(|extent| extent.len).sum::<u64>();
        }
        let SyncDisk { name, cause, scope, compare, total, number, logged, .. } = &disk;
        tracing::info!(machine = %self.ctx.settings.machine, disk = %name, %cause, ?scope, compare, total,
            round = number + 1, logged, "sync begins");
        Ok(disk)
    }

    /// What the newest point has of `disk`. Of one that has shrunk it has nothing: such a disk is a new one of that size, which
    /// the proxy opens only when the operator means it.
    async fn head(&mut self, disk: &DiskInfo) -> Result<Head> {
        let Some(point) = self.ready.state.point else { return Ok(Head::Nothing) };
        if self.ready.newest.as_ref().is_none_or(|newest| newest.id() != point) {
            match listing::find(&self.ready.vault, &self.ctx.settings.machine, point).await {
                Ok(header) => self.ready.newest = Some(header),
                Err(e) if unreadable(&e) => return Ok(Head::Unreadable(e)),
                Err(e) => return Err(e),
            }
        }
        let disks = self.ready.newest.iter().flat_map(|newest| &newest.disks);
        let held = disks.into_iter().any(|held| held.name == disk.name && held.size <= disk.size);
        Ok(if held { Head::Disk(point) } else { Head::Nothing })
    }

    /// `disk` cannot be compared because of `error`: all of it will be shipped.
    pub async fn rely_on_nothing(&mut self, disk: &SyncDisk, error: &Error) -> Result<()> {
        tracing::warn!(machine = %self.ctx.settings.machine, disk = %disk.name, %error,
            "what the vault has of the disk cannot be read; everything is shipped again");
        let sync = self.ctx.source.begin_sync(&disk.name, None).await?;
        let fresh = SyncDisk {
            tracking: sync.tracking,
            attempt: Uuid::new_v4(),
            round: sync.round,
            number: 0,
            logged: sync.logged,
            scope: sync.scope,
            tail: disk.size,
            whole: true,
            compare: false,
            against: None,
            unreadable: Vec::new(),
            cause: not_compared(&disk.cause, error),
            total: 0,
            ..disk.clone()
        };
        let fresh = self.counted(fresh).await?;
        let planned = self.ready.state.sync.iter_mut().flat_map(|sync| &mut sync.disks);
        planned.filter(|planned| planned.name == fresh.name).for_each(|planned| *planned = fresh.clone());
        self.ready.state.save(&self.ctx.settings.state_dir)
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

    /// Ships the log so far, so that it can be released; `false` means that tracking changed.
    pub async fn intermediate_cut(&mut self) -> Result<bool> {
        let Some(cut) = self.cut(CutRequest::default()).await? else { return Ok(false) };
        let mut packing = ship::pack_cut(&cut, &self.ready.vault.cipher).await?;
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

/// What a resync can mend: the vault has lost, or spoiled, what the disk would be compared with.
pub(super) fn unreadable(error: &Error) -> bool {
    matches!(error.kind, Kind::Corrupt | Kind::NotFound)
}

fn not_compared(cause: &str, error: &Error) -> String {
    format!("{cause}; shipped as a whole, because the vault's head cannot be read: {error}")
}

/// Why `disks` are copied, for people: once if it is one reason.
fn causes(disks: &[SyncDisk]) -> String {
    match disks.split_first() {
        Some((first, rest)) if rest.iter().all(|disk| disk.cause == first.cause) => first.cause.clone(),
        _ => disks.iter().map(|disk| format!("{}: {}", disk.name, disk.cause)).collect::<Vec<_>>().join("; "),
    }
}
