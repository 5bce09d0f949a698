//! The replication loop of one machine: sync what is not in the vault, then a point every interval.
//!
//! ```text
//!              ┌──────────── resume, retry ────────────┐
//!              ▼                                       │
//!  connect → claim → sync ──(exact)──► idle ⇄ cycle ── error ─► waiting (transient) / stopped (permanent)
//!     ▲                ▲                  │
//!     └── resync ──────┴─ tracking changed┘            pause, cancel from anywhere → paused
//!
//!  before a whole compare: waiting for the resync window ── it opens, or resync ──► sync
//! ```
//!
//! One task owns all state. A *step* (everything from "connect" to a committed point) is one future of that task, and
//! is written so that it may be dropped at any await and begun again: that is what a pause, a stop, an error and a
//! kill all do. What has to survive is in two files: the [`state`] (identity, head, what is exact) and, during a sync,
//! its [`journal`] (which deltas hold what was copied). Both are durable before what depends on them.
//!
//! A sync copies the live disk in address order while writes are being logged. Every interval an intermediate cut is
//! shipped too, written into the journal, and released, so that logs stay bounded however long the sync takes. The
//! closing point lists all of it in the order copy, log, copy, log …: that is right because every copy in the list was
//! read before the cut that follows it, so what changed during or after the read is in a later log.

pub mod journal;
pub mod state;
pub mod status;

mod compare;
mod context;
mod copy;
mod engine;
mod held;
mod retry;
mod rounds;
mod ship;
mod sync;
mod task;
mod throttle;
mod window;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use nbd_proxy::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use uuid::Uuid;

use crate::elapsed::Elapsed;
use crate::jobs::Jobs;
use crate::keys::PointId;
use crate::point::EntryKind;
use crate::source::Source;
use crate::store::StoreConfig;
use crate::vault::{Protection, Vault};

pub use crate::clock::Clock;
pub use status::{DiskState, DiskStatus, Health, Phase, Status};
pub use window::ResyncWindow;

/// What to do when another writer owns the machine's line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFenced {
    /// Go on with a branch of the line, and call the operator.
    #[default]
    Branch,
    /// Stop, and call the operator.
    Refuse,
}

/// What the loop of one machine needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The machine.
    pub machine: String,
    /// The time between two points.
    pub interval: Duration,
    /// The folder for the machine's local state.
    pub state_dir: PathBuf,
    /// Where job records go.
    pub jobs: Jobs,
    /// How long to wait after each failed attempt in a row; the last one repeats.
    pub retry_gaps: Vec<Duration>,
    /// This host's name, written into entries for people.
    pub host: String,
    /// When whole compares may begin by themselves.
    pub resync_window: ResyncWindow,
    /// What the window is looked up by.
    pub clock: Clock,
    /// What gaps are waited by, and the writer of the line tells the time by.
    pub elapsed: Elapsed,
    /// What to do when another writer owns the line.
    pub on_fenced: OnFenced,
    /// How many bytes a second of live disks are read for copying; as many as can be when absent.
    pub copy_limit: Option<u64>,
    /// The machine's consistency group.
    pub group: Option<String>,
    /// How often a point is to be application-consistent.
    pub app_consistent_every: Option<Duration>,
}

impl Settings {
    /// How long until the next point is due, after one that is begun now. The members of a group go by the clock on the
    /// wall, so that all ask for the same cut.
    fn until_due(&self) -> Duration {
        if self.group.is_none() {
            return self.interval;
        }
        let (interval, now) = (self.interval.as_nanos().max(1), since_epoch().as_nanos());
        Duration::from_nanos(u64::try_from(interval - now % interval).unwrap_or(u64::MAX))
    }

    /// Numbers the stretches of time that are each to have an application-consistent point.
    fn app_stretch(&self) -> Option<u128> {
        let every = self.app_consistent_every?;
        since_epoch().as_nanos().checked_div(every.as_nanos())
    }
}

fn since_epoch() -> Duration {
    Duration::try_from(Timestamp::now().duration_since(Timestamp::UNIX_EPOCH)).unwrap_or_default()
}

/// The gaps between attempts: 1, 2, 4, 8, 10 minutes, then every 30.
pub fn default_gaps() -> Vec<Duration> {
    [1, 2, 4, 8, 10, 30].map(|minutes| Duration::from_secs(minutes * 60)).to_vec()
}

/// Opens the vault; called at the start and again after errors.
pub type Connect = Box<dyn Fn() -> BoxFuture<'static, Result<Vault>> + Send + Sync>;

/// Opens, or makes, the vault that `config` names.
pub fn connect_to(config: StoreConfig, protection: Protection) -> Connect {
    Box::new(move || {
        let (config, protection) = (config.clone(), protection.clone());
        Box::pin(async move { Vault::open_or_create(&config, &protection).await })
    })
}

/// What a cut cost and became.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutReport {
    /// The point, durable in the vault.
    pub point: PointId,
    /// Its instant.
    pub time: Timestamp,
    /// What it is.
    pub kind: EntryKind,
    /// What it is not though it was to be, and why.
    pub notes: Vec<String>,
    /// Bytes written to the vault for it.
    pub bytes: u64,
    /// Objects written for it.
    pub puts: u64,
    /// Objects read for it.
    pub gets: u64,
    /// Listings made for it.
    pub lists: u64,
}

/// Those who wait for a point.
#[derive(Default)]
pub(crate) struct Inbox {
    waiting: Mutex<Vec<Waiter>>,
    arrived: Notify,
}

/// Somebody who waits for a point.
pub(crate) struct Waiter {
    pub reply: oneshot::Sender<Result<CutReport>>,
    /// Nothing older will do. `None`: the machine's share of the cut that another member of its group had made.
    pub asked: Option<Instant>,
    pub application: bool,
}

impl Inbox {
    fn add(&self, asked: Option<Instant>, application: bool) -> oneshot::Receiver<Result<CutReport>> {
        let (reply, answer) = oneshot::channel();
        let waiter = Waiter { reply, asked, application };
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(waiter);
        self.arrived.notify_one();
        answer
    }

    fn is_empty(&self) -> bool {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    fn take(&self) -> Vec<Waiter> {
        std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

pub(crate) enum Command {
    Pause(oneshot::Sender<Result<()>>),
    Resume(oneshot::Sender<Result<()>>),
    Resync(oneshot::Sender<Result<()>>),
    Now(oneshot::Sender<Result<()>>),
    Cancel(Uuid, oneshot::Sender<Result<()>>),
    Stop(oneshot::Sender<()>),
}

/// The way to a running loop. Clones lead to the same one; it ends when the last is dropped.
#[derive(Clone)]
pub struct Handle {
    machine: Arc<str>,
    group: Option<Arc<str>>,
    commands: mpsc::Sender<Command>,
    inbox: Arc<Inbox>,
    status: watch::Receiver<Status>,
}

/// Starts the loop as a task of the current runtime.
pub fn start<S: Source>(settings: Settings, source: S, connect: Connect) -> Handle {
    let (commands, receiver) = mpsc::channel(16);
    let inbox = Arc::new(Inbox::default());
    let (publish, status) = watch::channel(Status::new(&settings.machine, settings.interval));
    let machine = settings.machine.as_str().into();
    let group = settings.group.as_deref().map(Arc::from);
    let engine = engine::Engine::new(settings, Box::new(source), connect, Arc::clone(&inbox), publish);
    tokio::spawn(task::run(engine, receiver));
    Handle { machine, group, commands, inbox, status }
}

impl Handle {
    /// Takes a point now and waits until it is durable. During a sync that is the point which ends it.
    pub async fn cut(&self) -> Result<CutReport> {
        self.cut_as(false).await
    }

    /// The same; if `application`, the guest is asked to hold still. The report says whether it did.
    pub async fn cut_as(&self, application: bool) -> Result<CutReport> {
        if self.commands.is_closed() {
            return Err(self.ended());
        }
        self.inbox.add(Some(Instant::now()), application).await.map_err(|_| self.ended())?
    }

    /// Has the machine take its share of the cut that another member of its group has had made, and does not wait for it.
    pub fn join_cut(&self) {
        // A loop that ended, or is paused, does not take part.
        drop(self.inbox.add(None, false));
    }

    /// The machine's consistency group.
    pub fn group(&self) -> Option<&str> {
        self.group.as_deref()
    }

    /// Stops replicating until [`Handle::resume`], also over restarts. Writes go on being tracked.
    pub async fn pause(&self) -> Result<()> {
        self.ask(Command::Pause).await
    }

    /// Goes on after a pause; tries again at once after an error.
    pub async fn resume(&self) -> Result<()> {
        self.ask(Command::Resume).await
    }

    /// Compares all disks with the vault and ships what differs, now. Points that exist stay.
    pub async fn resync(&self) -> Result<()> {
        self.ask(Command::Resync).await
    }

    /// Begins what waits for the resync window, if something does.
    pub async fn resync_now(&self) -> Result<()> {
        self.ask(Command::Now).await
    }

    /// Gives the copy up that the job `id` is the record of, and pauses the machine. Points that exist stay.
    pub async fn cancel(&self, id: Uuid) -> Result<()> {
        self.ask(|reply| Command::Cancel(id, reply)).await
    }

    /// Ends the loop; everything needed to go on later is durable already.
    pub async fn stop(&self) {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::Stop(reply)).await.is_ok() {
            let _ = answer.await;
        }
    }

    /// How things are now.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// How things are, for those who wait for a change.
    pub fn watch(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    async fn ask(&self, command: impl FnOnce(oneshot::Sender<Result<()>>) -> Command) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| self.ended())?;
        answer.await.map_err(|_| self.ended())?
    }

    fn ended(&self) -> Error {
        Error::new(Kind::NotReady, &*self.machine, "replication is not running")
            .remedy("is the uploader running?")
    }
}

#[cfg(test)]
mod tests;
