//! Opening the vault, owning the line, and remembering what it has of ours.
//!
//! The line is ours when it ends in an entry of ours. Without local state a claim makes it so, which costs a listing; with
//! it, one read of entry head+1 tells whether a reply was lost or another writer has taken over.

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
use super::{Connect, Inbox, Settings, Waiter};
use crate::commit::{self, Committed, Outcome};
use crate::line::Line;
use crate::point::{self, EntryKind, Header, PointDisk};
use crate::source::AnySource;
use crate::store::Counts;
use crate::vault::Vault;

/// How often a claim is tried again because somebody else appended meanwhile.
const CLAIMS: usize = 8;

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
    pub line: Line,
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
        let asked = self.serving.iter().map(|waiter| waiter.asked.elapsed()).min();
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
        let (folder, machine) = (&self.settings.state_dir, &self.settings.machine);
        let loaded = State::load(folder, machine)?;
        let wanted = loaded.as_ref().map(|state| (state.paused, state.cancelled, state.start_now));
        let state = loaded.filter(|state| state.vault == vault.id).unwrap_or_else(|| {
            let mut fresh = State::new(machine, vault.id);
            (fresh.paused, fresh.cancelled, fresh.start_now) = wanted.unwrap_or_default();
            fresh
        });
        let line = commit::line(&vault, machine);
        let mut ready = Ready { vault, line, state, journal: None, held: None, newest: None };
        if !ready.state.claimed {
            self.claim(&mut ready).await?;
        }
        // Whether an entry that is found ends the sync depends on what the journal has.
        let sync = ready.state.sync.as_ref();
        ready.journal = sync.map(|sync| Journal::open(folder, machine, sync.id)).transpose()?;
        let mut found = 0;
        while let Some(there) = ready.line.probe(ready.state.head + 1, ready.state.owner()).await? {
            let adopted = commit::settle(&ready.line, ready.state.head + 1, there)?;
            found += 1;
            if found > 1 && ready.state.sync.is_some() {
                // Only one entry can be on its way. More mean that the local state is an old copy: the sync that it
                // speaks of is over, and the newest entry tells what is exact.
                self.remember(&mut ready, &adopted)?;
            } else {
                self.adopt(&mut ready, &adopted)?;
            }
        }
        Ok(ready)
    }

    /// Begins a generation: pick the newest point, then claim; if the head moved meanwhile, pick again.
    async fn claim(&self, ready: &mut Ready) -> Result<()> {
        ready.vault.refuse_unconditional().await?;
        for _ in 0..CLAIMS {
            let (line, state) = (&ready.line, &mut ready.state);
            state.head = line.find_head().await?;
            state.generation = 1;
            (state.point, state.point_mark) = (None, None);
            if let Some(bytes) = line.read(state.head).await? {
                let head = commit::read(line, state.head, &bytes)?;
                (state.point, state.point_mark) = match head.is_point() {
                    true => (Some(head.id()), Some(point::mark(&line.key(state.head), &bytes)?)),
                    false => (head.parent, head.parent_mark),
                };
                if head.writer == state.writer {
                    // A claim of ours whose reply was lost.
                    state.generation = head.generation;
                    state.claimed = true;
                    return state.save(&self.settings.state_dir);
                }
                state.generation = head.generation + 1;
            }
            // The writer's id must survive before its first entry exists.
            state.save(&self.settings.state_dir)?;
            let header = self.header(state, EntryKind::Claim, Timestamp::now(), Vec::new());
            match commit::append(line, header, &[], None).await {
                Ok(Outcome::Committed(claim) | Outcome::Adopted(claim)) => {
                    state.claimed = true;
                    return self.remember(ready, &claim);
                }
                Err(e) if e.kind == Kind::Fenced => {}
                Err(e) => return Err(e),
            }
        }
        let message = "other writers keep claiming the machine's line";
        Err(Error::new(Kind::Fenced, &self.settings.machine, message)
            .remedy("let only one site replicate this machine"))
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
