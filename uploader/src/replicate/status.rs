//! How a machine's replication is doing, as plain data.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::journal::Copied;
use crate::cipher::Encryption;
use crate::keys::PointId;
use crate::store::Counts;

/// How worried to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// Not at all.
    Normal,
    /// It is behind, or trying again by itself.
    Warning,
    /// It has stopped: an operator must act.
    Critical,
}

/// What the loop does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Opening the vault, claiming the line.
    Starting,
    /// Copying disks.
    Syncing,
    /// Taking and shipping a point.
    Cycle,
    /// Waiting for the next point's time.
    Idle,
    /// Waiting to try again.
    Waiting,
    /// Paused by the operator.
    Paused,
    /// Stopped by a permanent error.
    Stopped,
}

/// What a disk is going through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskState {
    /// Its first copy is under way.
    Initial,
    /// The newest point holds it; changes are shipped every interval.
    Protected,
    /// What was written unlogged is being copied.
    CatchingUp,
    /// It is being copied again.
    Resync,
    /// Replication is paused.
    Paused,
    /// Replication has stopped.
    Failed,
    /// Another writer owns the machine's line.
    Fenced,
}

/// One disk's part of a [`Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStatus {
    /// Its name.
    pub name: String,
    /// What it is going through.
    pub state: DiskState,
    /// Its size in bytes.
    pub size: u64,
    /// Bytes read by the sync under way; what of them had to travel is durable in the vault.
    pub bytes_done: u64,
    /// Bytes that the sync has to read.
    pub bytes_total: u64,
    /// Bytes that had to travel.
    pub bytes_shipped: u64,
    /// Bytes among them that hashes could not decide upon.
    pub bytes_undecided: u64,
    /// Bytes that the newest point lacks because they could not be read when the disk was copied.
    pub bytes_unreadable: u64,
    /// Bytes written since the newest point, at most.
    pub dirty_bytes: u64,
    /// Bytes of change log on local disk.
    pub log_bytes: u64,
}

/// How a machine's replication is doing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The machine.
    pub machine: String,
    /// How worried to be.
    pub health: Health,
    /// Why, if not normal.
    pub cause: String,
    /// What to do about it.
    pub remedy: String,
    /// What the loop does now.
    pub phase: Phase,
    /// The same for people: "disk 2 of 3, 40 %".
    pub activity: String,
    /// Why the sync under way became necessary.
    pub sync_cause: String,
    /// This writer's generation; zero before the first claim.
    pub generation: u64,
    /// What the newest point is not though it was to be, and why: "crash-consistent: …".
    #[serde(default)]
    pub notes: Vec<String>,
    /// How the vault is encrypted, once it was opened.
    #[serde(default)]
    pub encryption: Option<Encryption>,
    /// The newest point.
    pub head: Option<PointId>,
    /// Its instant.
    pub newest: Option<Timestamp>,
    /// Points committed since the loop started.
    pub points: u64,
    /// When the next attempt is due, after an error.
    pub next_retry: Option<Timestamp>,
    /// Another writer owns the machine's line, as this says, and points go to a branch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fenced: Option<String>,
    /// Seconds between points.
    pub interval_seconds: f64,
    /// The disks, in the machine's order.
    pub disks: Vec<DiskStatus>,
    /// Requests and bytes since the loop started.
    pub counts: Counts,
}

impl DiskStatus {
    /// Shows how far the copy is.
    pub(super) fn progress(&mut self, copied: &Copied, total: u64) {
        self.bytes_done = copied.read;
        self.bytes_total = total.max(copied.read);
        self.bytes_shipped = copied.shipped;
        self.bytes_undecided = copied.undecided;
    }
}

impl Status {
    pub(super) fn new(machine: &str, interval: Duration) -> Self {
        Self {
            machine: machine.to_owned(),
            health: Health::Normal,
            cause: String::new(),
            remedy: String::new(),
            phase: Phase::Starting,
            activity: String::new(),
            sync_cause: String::new(),
            generation: 0,
            notes: Vec::new(),
            encryption: None,
            head: None,
            newest: None,
            points: 0,
            next_retry: None,
            fenced: None,
            interval_seconds: interval.as_secs_f64(),
            disks: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// The age of the newest point in seconds; `None` before the first.
    pub fn rpo_seconds(&self, now: Timestamp) -> Option<f64> {
        self.newest.map(|newest| now.duration_since(newest).as_secs_f64().max(0.0))
    }

    /// The disk `name`.
    pub fn disk(&self, name: &str) -> Option<&DiskStatus> {
        self.disks.iter().find(|disk| disk.name == name)
    }

    /// Nothing is wrong any more, but for what no retry can mend.
    pub(super) fn well(&mut self) {
        self.health = Health::Normal;
        self.cause.clear();
        self.remedy.clear();
        self.next_retry = None;
        let lacking = self.disks.iter().filter(|disk| disk.bytes_unreadable > 0);
        let lacking = lacking.map(|disk| format!("{} bytes of disk {}", disk.bytes_unreadable, disk.name));
        let lacking = lacking.collect::<Vec<_>>().join(", ");
        if let Some(fenced) = &self.fenced {
            self.health = Health::Critical;
            self.cause = format!("{fenced}; points of this host go to a branch");
            self.remedy = format!(
                "let only one site run the machine; `lifeboat points {} --generation {}` lists what this one keeps",
                self.machine, self.generation
            );
        } else if !lacking.is_empty() {
            self.health = Health::Warning;
            self.cause = format!("points lack what could not be read of the live disk: {lacking}");
            self.remedy = format!(
                "mend the disk, then `lifeboat resync {}`; `lifeboat points {0} --json` says where",
                self.machine
            );
        }
    }

    /// Sets the state of every disk.
    pub(super) fn all_disks(&mut self, state: DiskState) {
        self.disks.iter_mut().for_each(|disk| disk.state = state);
    }
}
