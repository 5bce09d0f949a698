//! The state of the machines, as told by the two daemons or by the vault alone.

mod people;
#[cfg(test)]
mod tests;

use std::time::Duration;

use jiff::Timestamp;
use nbd_proxy::tracking::MachineInfo;
use nbd_proxy::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use uploader::listing::{self, PointName};
use uploader::replicate::{Health, Phase, Status};
use uploader::vault::Encryption;

use crate::config::{Config, RPO_WARNING, VaultConfig};
use crate::control::client::Client;

pub use people::people;

/// How long a daemon may take to say how it is.
const PATIENCE: Duration = Duration::from_secs(10);

/// The answer of `status`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The machines, in the order of the configuration.
    pub machines: Vec<Machine>,
}

/// One machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// Whether somebody must look.
    pub health: Health,
    /// Why it is not normal; empty when it is.
    pub cause: String,
    /// What to do about it.
    pub remedy: String,
    /// The generation that owns the line; null before the first claim.
    pub generation: Option<u64>,
    /// Age of the newest point that is durable in the vault; null before the first.
    pub rpo_seconds: Option<f64>,
    /// The newest point.
    pub point: Option<String>,
    /// What is being done, for people: "disk 2 of 3, 40 %".
    pub activity: String,
    /// Why blocks are being copied; empty when none are.
    pub sync_cause: String,
    /// What the newest point is not though it was to be, and why.
    pub notes: Vec<String>,
    /// How the vault is encrypted: `aes-256-gcm` or `none`; null before it was opened.
    pub encryption: Option<Encryption>,
    /// When the next attempt is made, after a failed one.
    pub next_retry: Option<Timestamp>,
    /// Its disks.
    pub disks: Vec<Disk>,
}

/// One disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Disk {
    /// Its name.
    pub name: String,
    /// `initial`, `protected`, `catching-up`, `resync`, `paused`, `failed` or `fenced`.
    pub state: String,
    /// Bytes of the copy under way that were read; what had to travel of them is in the vault.
    pub bytes_done: u64,
    /// Bytes of the copy under way.
    pub bytes_total: u64,
    /// Bytes of it that had to travel.
    pub bytes_shipped: u64,
    /// Bytes among them that hashes could not decide upon.
    pub bytes_undecided: u64,
    /// Bytes that the newest point lacks because they could not be read.
    pub bytes_unreadable: u64,
    /// Bytes written since the newest point.
    pub dirty_bytes: u64,
    /// Bytes of change log on local disk.
    pub log_bytes: u64,
}

impl Machine {
    /// What the uploader says of a machine, at the time `now`.
    pub fn of_status(status: &Status, now: Timestamp) -> Self {
        let disks = status.disks.iter().map(|disk| Disk {
            name: disk.name.clone(),
            state: crate::output::word(&disk.state),
            bytes_done: disk.bytes_done,
            bytes_total: disk.bytes_total,
            bytes_shipped: disk.bytes_shipped,
            bytes_undecided: disk.bytes_undecided,
            bytes_unreadable: disk.bytes_unreadable,
            dirty_bytes: disk.dirty_bytes,
            log_bytes: disk.log_bytes,
        });
        let mut machine = Self {
            name: status.machine.clone(),
            health: status.health,
            cause: status.cause.clone(),
            remedy: status.remedy.clone(),
            generation: (status.generation > 0).then_some(status.generation),
            rpo_seconds: status.rpo_seconds(now),
            point: status.head.map(|point| point.to_string()),
            activity: status.activity.clone(),
            sync_cause: status.sync_cause.clone(),
            notes: status.notes.clone(),
            encryption: status.encryption,
            next_retry: status.next_retry,
            disks: disks.collect(),
        };
        if status.phase == Phase::Paused && machine.health == Health::Normal {
            machine.warn("paused: no points are made", "`lifeboat resume` goes on");
        }
        machine.warn_of_lag(status.interval_seconds);
        machine
    }

    /// What the proxy alone says of a machine whose uploader does not run.
    fn of_proxy(info: &MachineInfo) -> Self {
        let disks = info.disks.iter().map(|disk| Disk {
            name: disk.name.clone(),
            state: "catching-up".to_owned(),
            bytes_done: 0,
            bytes_total: 0,
            bytes_shipped: 0,
            bytes_undecided: 0,
            bytes_unreadable: 0,
            dirty_bytes: disk.dirty_bytes,
            log_bytes: disk.log_bytes,
        });
        Self {
            name: info.name.clone(),
            health: Health::Warning,
            cause: "the uploader does not run: nothing is shipped".to_owned(),
            remedy: "start `lifeboat uploader`".to_owned(),
            generation: None,
            rpo_seconds: None,
            point: None,
            activity: String::new(),
            sync_cause: String::new(),
            notes: Vec::new(),
            encryption: None,
            next_retry: None,
            disks: disks.collect(),
        }
    }

    /// The proxy knows best how much is waiting: it is asked at the moment of the answer.
    fn with_proxy(&mut self, info: &MachineInfo) {
        for disk in &mut self.disks {
            if let Some(now) = info.disks.iter().find(|each| each.name == disk.name) {
                disk.dirty_bytes = now.dirty_bytes;
                disk.log_bytes = now.log_bytes;
            }
        }
        let trouble = info.disks.iter().find_map(|disk| Some((&disk.name, disk.trouble.as_ref()?)));
        if let (Some((name, trouble)), Health::Normal | Health::Warning) = (trouble, self.health) {
            let cause = format!("disk {name}: {trouble}");
            self.warn(
                &cause,
                "start the disk's server again: until then the guest's requests wait, and then fail",
            );
        }
    }

    /// Warns when the newest point is over an hour older than one `interval` makes it.
    fn warn_of_lag(&mut self, interval: f64) {
        let late = self.rpo_seconds.is_some_and(|age| age > RPO_WARNING.as_secs_f64() + interval);
        if late && self.health == Health::Normal {
            self.warn(
                "the newest point is over an hour late",
                "see the uploader's log for what takes so long",
            );
        }
    }

    fn warn(&mut self, cause: &str, remedy: &str) {
        self.health = Health::Warning;
        self.cause = cause.to_owned();
        self.remedy = remedy.to_owned();
    }
}

/// Asks both daemons.
pub async fn of_daemons(config: &Config) -> Result<Report> {
    let uploader = Client::new(config.uploader_socket(), "uploader").patience(PATIENCE);
    let proxy = Client::new(config.proxy_socket(), "proxy").patience(PATIENCE);
    let (replication, tracking) = tokio::join!(
        uploader.get::<Vec<Status>>("/v1/machines"),
        proxy.get::<Vec<MachineInfo>>("/v1/machines")
    );
    merge(replication, tracking, Timestamp::now())
}

/// One picture of what the uploader and the proxy say; either may be away, not both.
fn merge(
    replication: Result<Vec<Status>>,
    tracking: Result<Vec<MachineInfo>>,
    now: Timestamp,
) -> Result<Report> {
    let machines = match (replication, tracking) {
        (Err(error), Err(_)) => return Err(error),
        (Err(error), Ok(tracking)) if error.kind == Kind::Unavailable => {
            tracking.iter().map(Machine::of_proxy).collect()
        }
        (Err(error), Ok(_)) => return Err(error),
        (Ok(statuses), tracking) => {
            let mut machines: Vec<Machine> =
                statuses.iter().map(|status| Machine::of_status(status, now)).collect();
            match tracking {
                Ok(tracking) => tracking.iter().for_each(|info| {
                    machines
                        .iter_mut()
                        .filter(|machine| machine.name == info.name)
                        .for_each(|each| each.with_proxy(info));
                }),
                Err(error) => machines.iter_mut().for_each(|machine| without_proxy(machine, &error)),
            }
            machines
        }
    };
    Ok(Report { machines })
}

fn without_proxy(machine: &mut Machine, error: &Error) {
    if machine.health == Health::Normal {
        let cause = format!("the proxy does not answer: {}", error.message);
        machine.warn(&cause, "start `lifeboat proxy`; until then the machine's disks are not served");
    }
}

/// What the vault alone shows: the age of each machine's newest point.
pub async fn of_vault(vault: &VaultConfig) -> Result<Report> {
    let vault = crate::vault::open(vault).await?;
    let mut machines = Vec::new();
    for name in listing::machines(&vault).await? {
        let newest = match listing::resolve(&vault, &name, &PointName::Latest).await {
            Ok(point) => Some(point),
            Err(error) if error.kind == Kind::NotFound => None,
            Err(error) => return Err(error),
        };
        let age =
            newest.as_ref().map(|point| Timestamp::now().duration_since(point.time).as_secs_f64().max(0.0));
        let mut machine = Machine {
            name,
            health: if newest.is_some() { Health::Normal } else { Health::Warning },
            cause: if newest.is_some() { String::new() } else { "there is no point yet".to_owned() },
            remedy: String::new(),
            generation: newest.as_ref().map(|point| point.generation),
            rpo_seconds: age,
            point: newest.as_ref().map(|point| point.id.to_string()),
            activity: String::new(),
            sync_cause: String::new(),
            notes: Vec::new(),
            encryption: Some(vault.cipher.encryption()),
            next_retry: None,
            disks: Vec::new(),
        };
        // The vault does not say how often points are wanted.
        machine.warn_of_lag(0.0);
        machines.push(machine);
    }
    Ok(Report { machines })
}
