//! Opening the vault, owning the line, and remembering what it has of ours.
//!
//! The line is ours when it ends in an entry of ours. Without local state a claim makes it so; with it, a look at what is above our
//! head tells whether a reply was lost or another writer has taken over. Each costs a listing, when replication starts and after
//! errors.
//!
//! # Fenced
//!
//! When another writer owns the line, this one goes on with a branch, unless the operator has said that it is to stop. The order,
//! and what a death in between leaves:
//!
//! 1. The local state says so, durably, with the number from which the branch begins; a sync under way is given up. From here on the
//!    line is only read. Death: the next start goes on with 2.
//! 2. The branch's claim is made. It is a hold on the fork, which is our newest point. Death: it is found and adopted.
//! 3. The fork is looked for, until the branch has a point. If it is gone (pruned before the claim was there), nothing is built on it: the next
//!    point holds everything.
//!
//! The log of the cut that met the fence was not released, so nothing is lost; its deltas are left to pruning.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nbd_proxy::tracking::CutRequest;
use nbd_proxy::{Error, Kind, Result};
use tokio::sync::watch;
use uuid::Uuid;

use super::held::Held;
use super::journal::Journal;
use super::state::State;
use super::status::{Phase, Status};
use super::throttle::Throttle;
use super::{Connect, Inbox, OnFenced, Settings, Waiter};
use crate::catalogue;
use crate::commit::{self, Committed, Outcome};
use crate::digest::Digest;
use crate::line::{Appended, Writer};
use crate::listing;
use crate::point::{EntryKind, Header, PointDisk};
use crate::source::AnySource;
use crate::store::Counts;
use crate::vault::Vault;

/// What stays the same as long as the loop runs.
pub(super) struct Context {
    pub settings: Settings,
    pub source: Box<dyn AnySource>,
    pub status: watch::Sender<Status>,
    pub connect: Connect,
    pub inbox: Arc<Inbox>,
    /// Those whose cut has been taken.
    pub serving: Vec<Waiter>,
    pub last_cut: Instant,
    /// The next cut is the first since the loop began, or began again: nothing older will do.
    pub fresh: bool,
    /// The newest stretch of time that had its application-consistent point, or its attempt at one.
    pub app_stretch: Option<u128>,
    /// Requests made through vaults that were closed since.
    pub past: Counts,
    pub throttle: Throttle,
}

/// What is known once the vault is open and the line is ours.
pub(super) struct Ready {
    pub vault: Vault,
    /// At work on the line, or on a branch.
    pub writer: Writer,
    pub state: State,
    pub journal: Option<Journal>,
    /// What the disk of an attempt is compared with.
    pub held: Option<(Uuid, Arc<Held>)>,
    /// The newest point's header, once somebody wanted it.
    pub newest: Option<Header>,
}

impl Context {
    /// What the cut that is to become a point must be, for the policy and for those who wait.
    pub fn wanted(&self) -> CutRequest {
        let asked = self.serving.iter().filter_map(|waiter| waiter.asked).map(|asked| asked.elapsed()).min();
        let max_age = if self.fresh { Duration::ZERO } else { asked.unwrap_or(Duration::MAX) };
        let stretch = self.settings.app_stretch();
        let due = stretch.is_some() && stretch != self.app_stretch;
        CutRequest { max_age, application: due || self.serving.iter().any(|waiter| waiter.application) }
    }

    /// Opens the vault and makes sure that the line is ours.
    pub async fn prepare(&mut self) -> Result<Ready> {
        self.status.send_modify(|status| {
            status.phase = Phase::Starting;
            status.activity.clear();
        });
        let vault = (self.connect)().await?.counted_apart();
        self.status.send_modify(|status| status.encryption = Some(vault.cipher.encryption()));
        let (folder, machine) = (&self.settings.state_dir, &self.settings.machine);
        let loaded = State::load(folder, machine)?;
        let wanted = loaded.as_ref().map(|state| (state.paused, state.cancelled, state.start_now));
        let state = loaded.filter(|state| state.vault == vault.id).unwrap_or_else(|| {
            let mut fresh = State::new(machine, vault.id);
            (fresh.paused, fresh.cancelled, fresh.start_now) = wanted.unwrap_or_default();
            fresh
        });
        let writer = self.writer(&vault, &state);
        let mut ready = Ready { vault, writer, state, journal: None, held: None, newest: None };
        if !ready.state.claimed {
            self.claim(&mut ready).await?;
        }
        // Whether an entry that is found ends the sync depends on what the journal has.
        let sync = ready.state.sync.as_ref();
        ready.journal = sync.map(|sync| Journal::open(folder, machine, sync.id)).transpose()?;
        while let Some(there) = ready.writer.find(ready.state.head).await? {
            match there {
                Appended::Foreign(entry) => {
                    let fenced = commit::fenced(ready.writer.line(), &entry)?;
                    self.branch_off(&mut ready, fenced).await?;
                }
                Appended::Ours(entry) => {
                    let next = entry.number == ready.state.head + 1;
                    let adopted = commit::adopted(ready.writer.line(), &entry)?;
                    if next || ready.state.sync.is_none() {
                        self.adopt(&mut ready, &adopted)?;
                    } else {
                        // Only one entry can be on its way. More mean that the local state is an old copy: the sync that it
                        // speaks of is over, and the newest entry tells what is exact.
                        self.remember(&mut ready, &adopted)?;
                    }
                }
                Appended::Created => {}
            }
        }
        self.open_branch(&mut ready).await?;
        Ok(ready)
    }

    fn writer(&self, vault: &Vault, state: &State) -> Writer {
        let (machine, owner) = (&self.settings.machine, state.owner());
        let line = match state.fenced {
            None => commit::line(vault, machine),
            Some(_) => commit::branch(vault, machine, owner),
        };
        Writer::new(line, owner, self.settings.elapsed.clone())
    }

    /// Begins a generation: pick the newest point, then claim; if the head moved meanwhile, pick again.
    async fn claim(&self, ready: &mut Ready) -> Result<()> {
        ready.vault.refuse_unconditional().await?;
        let line = commit::line(&ready.vault, &self.settings.machine);
        let state = &mut ready.state;
        let claim = |newest: Option<(Header, Digest)>| {
            let (newest, mark) = newest.unzip();
            state.head = newest.as_ref().map_or(0, |newest| newest.number);
            state.generation = newest.as_ref().map_or(0, |newest| newest.generation) + 1;
            (state.point, state.point_mark) = match &newest {
                Some(point) if point.is_point() => (Some(point.id()), mark),
                Some(claim) => (claim.parent, claim.parent_mark),
                None => (None, None),
            };
            if let Some(ours) = newest.filter(|newest| newest.writer == state.writer) {
                // A claim of ours whose reply was lost.
                state.generation = ours.generation;
                state.claimed = true;
                state.save(&self.settings.state_dir)?;
                return Ok(None);
            }
            // The writer's id must survive before its first entry exists.
            state.save(&self.settings.state_dir)?;
            Ok(Some(self.header(state, EntryKind::Claim, Timestamp::now(), Vec::new())))
        };
        match commit::claim(line, self.settings.elapsed.clone(), claim).await? {
            None => ready.writer = self.writer(&ready.vault, &ready.state),
            Some((writer, claim)) => {
                ready.writer = writer;
                ready.state.claimed = true;
                self.remember(ready, &claim)?;
            }
        }
        Ok(())
    }

    /// Another writer owns the line, as `fenced` says: goes on with a branch, or fails with that.
    pub async fn branch_off(&self, ready: &mut Ready, fenced: Error) -> Result<()> {
        if self.settings.on_fenced == OnFenced::Refuse || ready.state.fenced.is_some() {
            return Err(fenced);
        }
        let machine = &self.settings.machine;
        let newest = commit::line(&ready.vault, machine).newest_after(ready.state.head).await?;
        let above = newest.map_or(ready.state.head + 1, |newest| newest.number);
        tracing::error!(%machine, error = %fenced, "fenced: from here on points go to a branch");
        let given_up = ready.state.branch_off(above + 1, fenced.message);
        ready.state.save(&self.settings.state_dir)?;
        Journal::remove(&self.settings.state_dir, machine)?;
        (ready.journal, ready.held, ready.newest) = (None, None, None);
        ready.writer = self.writer(&ready.vault, &ready.state);
        if let Some(job) = given_up.map(|sync| self.settings.jobs.get(sync.job)).transpose()?.flatten() {
            let fenced =
                Error::new(Kind::Fenced, machine, "given up: another writer owns the machine's line");
            self.settings.jobs.end(job, Err(&fenced))?;
        }
        self.open_branch(ready).await
    }

    /// Makes the claim of the branch, if there is one to make, and sees to it that there is something to build on.
    async fn open_branch(&self, ready: &mut Ready) -> Result<()> {
        let Some(first) = ready.state.fenced.as_ref().map(|fenced| fenced.first) else { return Ok(()) };
        if ready.state.head < first {
            let claim = self.header(&ready.state, EntryKind::Claim, Timestamp::now(), Vec::new());
            match commit::append(&mut ready.writer, claim, &[], None).await? {
                Outcome::Committed(claim) | Outcome::Adopted(claim) => self.remember(ready, &claim)?,
            }
        }
        let Some(fork) = ready.state.point.filter(|point| point.number < first) else { return Ok(()) };
        // A pruning that was planned before the claim was there cannot publish after this.
        catalogue::touch(&ready.vault, &self.settings.machine).await?;
        match listing::find(&ready.vault, &self.settings.machine, fork).await {
            Ok(_) => Ok(()),
            Err(e) if e.kind == Kind::NotFound => {
                tracing::warn!(machine = %self.settings.machine, %fork, "the fork was pruned; everything is shipped again");
                (ready.state.point, ready.state.point_mark) = (None, None);
                ready.state.disks.clear();
                ready.state.save(&self.settings.state_dir)
            }
            Err(e) => Err(e),
        }
    }

    pub fn header(&self, state: &State, kind: EntryKind, time: Timestamp, disks: Vec<PointDisk>) -> Header {
        Header {
            machine: self.settings.machine.clone(),
            number: state.head + 1,
            generation: state.generation,
            writer: state.writer,
            host: self.settings.host.clone(),
            kind,
            parent: state.point,
            parent_mark: state.point_mark,
            time,
            disks,
            bytes: 0,
            logical: 0,
            group: None,
        }
    }

    /// Makes the local state follow an entry of ours that was there before: it ends the sync under way only if it holds
    /// all that the journal has.
    pub fn adopt(&self, ready: &mut Ready, entry: &Committed) -> Result<()> {
        let journal = ready.journal.as_ref().map(Journal::deltas).unwrap_or_default();
        let whole_sync = !journal.is_empty() && entry.names_all(journal);
        self.follow(ready, entry, whole_sync)
    }

    /// Makes the local state follow an entry that holds all there was to put into it.
    pub fn remember(&self, ready: &mut Ready, entry: &Committed) -> Result<()> {
        self.follow(ready, entry, true)
    }

    fn follow(&self, ready: &mut Ready, entry: &Committed, whole_sync: bool) -> Result<()> {
        let sync = ready.state.sync.clone();
        ready.state.remember(entry.header(), entry.mark(), whole_sync);
        ready.state.save(&self.settings.state_dir)?;
        if let Some(sync) = sync.filter(|_| ready.state.sync.is_none()) {
            ready.journal = None;
            Journal::remove(&self.settings.state_dir, &self.settings.machine)?;
            if let Some(mut job) = self.settings.jobs.get(sync.job)? {
                job.bytes_done = job.bytes_total;
                self.settings.jobs.end(job, Ok(()))?;
            }
        }
        Ok(())
    }
}
