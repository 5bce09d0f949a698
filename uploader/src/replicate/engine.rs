//! One step of the loop: from whatever is on disk and in the vault to a committed point.
//!
//! [`Engine::step`] may be dropped at any await, if [`Engine::forget`] follows, as it does after every error: the next
//! step then reads the local state, opens the vault and looks at entry head+1 before it does anything, so that a reply
//! that was lost is found first. After a step that went well nothing has to be asked again.

use std::sync::Arc;
use std::time::Instant;

use jiff::ZonedDateTime;
use nbd_proxy::tracking::{Cut, CutRequest, MachineInfo, SyncScope};
use nbd_proxy::{Error, Kind, Result};
use tokio::sync::watch;

use super::context::{Context, Ready};
use super::rounds::Rounds;
use super::ship::{self, Packed, Target};
use super::state::{State, SyncDisk};
use super::status::{DiskState, DiskStatus, Phase, Status};
use super::throttle::Throttle;
use super::{Connect, CutReport, Inbox, Settings};
use crate::commit::{self, Committed, Outcome, Uploaded};
use crate::delta::Encoded;
use crate::point::{EntryKind, Gap, PointDisk};
use crate::source::AnySource;
use crate::store::Counts;

/// How often tracking may change under one step before it is left to a later one.
const ROUNDS: usize = 8;

/// How a step ended well.
pub(super) enum Step {
    /// With a point.
    Point,
    /// A whole compare has to wait for the resync window.
    Waits(Waits),
}

/// What waits for the resync window.
pub(super) struct Waits {
    /// When the window opens.
    pub until: ZonedDateTime,
    /// What is to be compared, and why.
    pub cause: String,
    /// The disks.
    pub disks: Vec<String>,
}

pub(super) struct Engine {
    ctx: Context,
    ready: Option<Ready>,
}

impl Engine {
    pub fn new(
        settings: Settings,
        source: Box<dyn AnySource>,
        connect: Connect,
        inbox: Arc<Inbox>,
        status: watch::Sender<Status>,
    ) -> Self {
        let last_cut = Instant::now();
        let (serving, past) = (Vec::new(), Counts::default());
        let throttle = Throttle::new(settings.copy_limit);
        Self {
            ctx: Context {
                settings,
                source,
                status,
                connect,
                inbox,
                serving,
                last_cut,
                fresh: true,
                app_stretch: None,
                past,
                throttle,
            },
            ready: None,
        }
    }

    /// Does whatever stands between now and a committed point.
    pub async fn step(&mut self) -> Result<Step> {
        let ready = match &mut self.ready {
            Some(ready) => ready,
            none => none.insert(self.ctx.prepare().await?),
        };
        let mut work = Work { ctx: &mut self.ctx, ready };
        for _ in 0..ROUNDS {
            let seen = work.ctx.source.machine().await?;
            match work.attempt(&seen).await {
                Ok(Some(step)) => return Ok(step),
                Ok(None) => {}
                // The proxy was restarted with other disks, or gave a sync up, while we asked about the old ones.
                Err(e) if e.kind == Kind::Fenced => work.ctx.branch_off(work.ready, e).await?,
                Err(e) if asked_in_vain(&e) && !same(&seen, &work.ctx.source.machine().await?) => {}
                Err(e) => return Err(e),
            }
        }
        let message = "the disks' tracking changes faster than it can be followed";
        Err(Error::new(Kind::NotReady, &self.ctx.settings.machine, message))
    }

    /// Closes the vault; the next step begins from what is durable.
    pub fn forget(&mut self) {
        self.ctx.fresh = true;
        if let Some(ready) = self.ready.take() {
            self.ctx.past = self.ctx.past + ready.vault.store.counts();
            let past = self.ctx.past;
            self.ctx.status.send_modify(|status| status.counts = past);
        }
    }

    pub fn settings(&self) -> &Settings {
        &self.ctx.settings
    }

    pub fn inbox(&self) -> &Inbox {
        &self.ctx.inbox
    }

    /// What is shown of the loop.
    pub fn status(&self) -> watch::Ref<'_, Status> {
        self.ctx.status.borrow()
    }

    /// Changes what is shown of the loop.
    pub fn show(&self, change: impl FnOnce(&mut Status)) {
        self.ctx.status.send_modify(change);
    }

    /// Everybody who waits for a point is told `error`.
    pub fn refuse_waiters(&mut self, error: &Error) {
        for waiter in self.ctx.serving.drain(..).chain(self.ctx.inbox.take()) {
            let copy = Error::new(error.kind, &error.object, &error.message).remedy(&error.remedy);
            let _ = waiter.reply.send(Err(copy));
        }
    }

    /// Somebody waits for a point.
    pub fn has_waiters(&self) -> bool {
        !self.ctx.serving.is_empty()
    }
}

/// A step with the vault open and the line ours.
pub(super) struct Work<'a> {
    pub ctx: &'a mut Context,
    pub ready: &'a mut Ready,
}

impl Work<'_> {
    /// Tries for a point; `None` means that tracking changed on the way.
    async fn attempt(&mut self, info: &MachineInfo) -> Result<Option<Step>> {
        let before = self.ready.vault.store.counts();
        let waits = self.plan_sync(info).await?;
        self.show(info);
        if let Some(waits) = waits {
            return Ok(Some(Step::Waits(waits)));
        }
        loop {
            if !self.copy_all().await? {
                return Ok(None);
            }
            match self.next_rounds().await? {
                Rounds::Over => break,
                Rounds::Begun => {}
                Rounds::Forgotten => return Ok(None),
            }
        }
        Ok(self.point(before).await?.then_some(Step::Point))
    }

    /// The tracking id under which `disk` is, or will be, exact.
    fn expected(&self, disk: &str) -> Option<(uuid::Uuid, u64)> {
        let state = &self.ready.state;
        let syncing =
            state.sync.as_ref().and_then(|sync| sync.disks.iter().find(|planned| planned.name == disk));
        let known = || state.disks.get(disk).map(|known| (known.tracking, known.size));
        syncing.map(|planned| (planned.tracking, planned.size)).or_else(known)
    }

    /// Whether `disk` is in a round without a log; then there can be no cut.
    fn is_unlogged(&self, disk: &str) -> bool {
        let mut planned = self.ready.state.sync.iter().flat_map(|sync| &sync.disks);
        planned.any(|planned| planned.name == disk && !planned.logged)
    }

    /// Cuts; `None` if a disk is not tracked as expected any more.
    pub async fn cut(&mut self, request: CutRequest) -> Result<Option<Cut>> {
        let cut = match self.ctx.source.cut(request).await {
            Ok(cut) => cut,
            Err(e) if e.kind == Kind::NotReady && self.changed().await? => return Ok(None),
            Err(e) => return Err(e),
        };
        self.ctx.last_cut = Instant::now();
        let fits = |disk: &nbd_proxy::tracking::CutDisk| {
            self.expected(&disk.name) == Some((disk.tracking, disk.size))
        };
        Ok(cut.disks.iter().all(fits).then_some(cut))
    }

    /// Whether a disk is not tracked as expected any more.
    ///
    /// Also asked after the segments of a cut were read: a proxy that runs out of log space gives segments up, and
    /// makes a new tracking id before it does. As long as the ids are the same, what was read was whole.
    pub async fn changed(&self) -> Result<bool> {
        let info = self.ctx.source.machine().await?;
        let changed = |disk: &nbd_proxy::tracking::DiskInfo| {
            (!disk.logged && !self.is_unlogged(&disk.name))
                || self.expected(&disk.name) != Some((disk.tracking, disk.size))
        };
        Ok(info.disks.iter().any(changed))
    }

    /// The closing cut and its point.
    async fn point(&mut self, before: Counts) -> Result<bool> {
        self.ctx.status.send_modify(|status| status.phase = Phase::Cycle);
        self.ctx.serving.extend(self.ctx.inbox.take());
        let (request, stretch) = (self.ctx.wanted(), self.ctx.settings.app_stretch());
        let Some(cut) = self.cut(request).await? else { return Ok(false) };
        let Some((uploaded, embedded)) = self.ship_closing(&cut).await? else { return Ok(false) };
        let copied = self.ready.journal.iter().flat_map(|journal| journal.deltas());
        let deltas: Vec<&Uploaded> = copied.chain(&uploaded).collect();
        let kind = if cut.application { EntryKind::Application } else { EntryKind::Crash };
        let mut header = self.ctx.header(&self.ready.state, kind, cut.time, self.disks_of(&cut));
        header.group.clone_from(&cut.group);
        let outcome = commit::append(&mut self.ready.writer, header, &deltas, embedded.as_ref()).await?;
        let synced = self.ready.state.sync.clone();
        match outcome {
            Outcome::Committed(point) => {
                self.ctx.remember(self.ready, &point)?;
                self.ctx.fresh = false;
                if request.application {
                    self.ctx.app_stretch = stretch;
                }
                self.report(&point, &cut, request, before);
            }
            Outcome::Adopted(point) => {
                // What waits is served by the next cut, which includes this one.
                self.ctx.adopt(self.ready, &point)?;
                return Ok(false);
            }
        }
        for disk in synced.iter().flat_map(|sync| &sync.disks) {
            self.ctx.source.end_sync(&disk.name, disk.tracking).await?;
        }
        self.ctx.source.release(cut.id).await?;
        let info = self.ctx.source.machine().await?;
        self.show(&info);
        Ok(true)
    }

    fn disks_of(&self, cut: &Cut) -> Vec<PointDisk> {
        let disk = |disk: &nbd_proxy::tracking::CutDisk| {
            let mut planned = self.ready.state.sync.iter().flat_map(|sync| &sync.disks);
            let planned = planned.find(|planned| planned.name == disk.name);
            let known = || self.ready.state.disks.get(&disk.name).map(|known| known.unreadable.clone());
            let copied = |planned: &SyncDisk| {
                Gap::joined([&planned.unreadable[..], &self.copied(planned).unreadable[..]].concat())
            };
            PointDisk {
                name: disk.name.clone(),
                size: disk.size,
                tracking: disk.tracking,
                whole: planned.is_some_and(|planned| planned.whole),
                unreadable: planned.map(copied).or_else(known).unwrap_or_default(),
            }
        };
        cut.disks.iter().map(disk).collect()
    }

    /// Uploads what the closing cut holds, or returns it for embedding if it is one small delta.
    async fn ship_closing(&mut self, cut: &Cut) -> Result<Option<(Vec<Uploaded>, Option<Encoded>)>> {
        let mut packing = ship::pack_cut(cut, &self.ready.vault.cipher).await?;
        let mut first: Vec<Packed<()>> = Vec::new();
        let small = |packed: &Packed<()>| packed.delta.size <= ship::EMBED_MAX;
        // Nothing large may be held while waiting for more: it takes room that others need.
        while first.len() < 2
            && first.iter().all(small)
            && let Some(delta) = packing.packed.recv().await
        {
            first.push(delta);
        }
        let mut embedded = None;
        let mut uploaded = Vec::new();
        if first.len() == 1 && first.iter().all(small) {
            embedded = first.pop().map(|packed| packed.delta);
        } else {
            let target = self.target();
            let keep = |delta, ()| {
                uploaded.push(delta);
                Ok(())
            };
            target.ship(first, &mut packing.packed, keep).await?;
        }
        let packed = packing.end().await;
        if self.changed().await? {
            return Ok(None);
        }
        packed?;
        Ok(Some((uploaded, embedded)))
    }

    pub fn target(&self) -> Target<'_> {
        let entry = self.ready.state.next_entry();
        Target { vault: &self.ready.vault, machine: &self.ctx.settings.machine, entry }
    }

    fn report(&mut self, point: &Committed, cut: &Cut, asked: CutRequest, before: Counts) {
        let spent = self.ready.vault.store.counts().since(before);
        let header = point.header();
        let fenced = self.ready.state.fenced.as_ref();
        let on_branch = fenced.map(|fenced| format!("on a branch: {}", fenced.cause));
        let report = CutReport {
            point: header.id(),
            time: header.time,
            kind: header.kind,
            notes: cut.notes.iter().cloned().chain(on_branch).collect(),
            bytes: spent.bytes_up,
            puts: spent.puts,
            gets: spent.gets,
            lists: spent.lists,
        };
        let (machine, point, notes) = (&self.ctx.settings.machine, report.point, report.notes.join("; "));
        if asked.application && !cut.application {
            tracing::warn!(%machine, %point, "{notes}");
        } else if !cut.notes.is_empty() && self.ctx.status.borrow().notes != cut.notes {
            tracing::info!(%machine, %point, "{notes}");
        }
        // Whoever hears of the point must also see it.
        self.ctx.status.send_modify(|status| {
            status.points += 1;
            status.head = Some(report.point);
            status.newest = Some(report.time);
            status.notes.clone_from(&cut.notes);
            status.well();
        });
        for waiter in self.ctx.serving.drain(..) {
            let _ = waiter.reply.send(Ok(report.clone()));
        }
    }

    /// Shows the machine as `info` and the local state have it.
    pub fn show(&self, info: &MachineInfo) {
        let (state, journal) = (&self.ready.state, self.ready.journal.as_ref());
        let counts = self.ctx.past + self.ready.vault.store.counts();
        let disks = info.disks.iter().map(|disk| {
            let planned =
                state.sync.iter().flat_map(|sync| &sync.disks).find(|planned| planned.name == disk.name);
            let copied = planned.zip(journal).map(|(planned, journal)| journal.copied(planned.attempt));
            let copied = copied.unwrap_or_default();
            DiskStatus {
                name: disk.name.clone(),
                state: disk_state(state, planned),
                size: disk.size,
                bytes_done: copied.read,
                bytes_total: planned.map_or(0, |planned| planned.total.max(copied.read)),
                bytes_shipped: copied.shipped,
                bytes_undecided: copied.undecided,
                bytes_unreadable: state
                    .disks
                    .get(&disk.name)
                    .map_or(0, |known| known.unreadable.iter().map(|gap| gap.len).sum()),
                dirty_bytes: disk.dirty_bytes,
                log_bytes: disk.log_bytes,
            }
        });
        let disks = disks.collect();
        self.ctx.status.send_modify(|status| {
            status.disks = disks;
            status.generation = state.generation;
            status.fenced = state.fenced.as_ref().map(|fenced| fenced.cause.clone());
            status.head = state.point;
            status.newest = state.time;
            status.counts = counts;
            let newest = state.sync.as_ref().and_then(|sync| sync.disks.last());
            status.sync_cause = newest.map(|disk| disk.cause.clone()).unwrap_or_default();
        });
    }
}

fn asked_in_vain(error: &Error) -> bool {
    matches!(error.kind, Kind::NotFound | Kind::NotReady)
}

/// Whether the machine has the same disks, tracked in the same way.
fn same(before: &MachineInfo, now: &MachineInfo) -> bool {
    let key =
        |disk: &nbd_proxy::tracking::DiskInfo| (disk.name.clone(), disk.size, disk.tracking, disk.logged);
    before.disks.iter().map(key).eq(now.disks.iter().map(key))
}

fn disk_state(state: &State, planned: Option<&SyncDisk>) -> DiskState {
    if state.fenced.is_some() {
        return DiskState::Fenced;
    }
    let Some(planned) = planned else { return DiskState::Protected };
    if planned.scope != SyncScope::Whole {
        DiskState::CatchingUp
    } else if state.disks.contains_key(&planned.name) || state.point.is_some() {
        DiskState::Resync
    } else {
        DiskState::Initial
    }
}
