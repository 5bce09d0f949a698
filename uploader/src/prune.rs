//! Pruning: of a machine's points, those that [`retention`](crate::retention) lets go, let go.
//!
//! ```text
//! survey ─► keep ─► settle ─► publish ─► wait ─► sweep
//!    ▲                           │
//!    └──── somebody else did ────┘
//! ```
//!
//! 1. *Survey*: the newest catalogue, and of each entry above its floor what it says about itself.
//! 2. *Keep*: which points stay, and the new floor: it rises over entries that are older than `all`, never over the newest point.
//! 3. *Settle*: for each kept point at or below the floor, what leads to it from the kept point before it. That is the deltas of
//!    all points between, in their order; where points went, some of their bytes are dead, because a later delta between
//!    the same two points has other bytes for the same place. A delta that is large and mostly alive stays as it
//!    is; the rest (small ones, those embedded in entries, mostly dead ones) are packed anew, their living
//!    bytes only. Work is done only where a point went: what an earlier pruning settled stays.
//! 4. *Publish* the catalogue under the next number. That is the moment at which points cease to exist: before
//!    it nothing has changed but that packs lie about which nobody names; after it every reader sees what is listed
//!    and no more. If the number was taken, everything begins again.
//! 5. *Wait*, by the store's clock, for readers that looked before.
//! 6. *Sweep*: delete what neither the newest catalogue, nor an entry above its floor, nor a branch, nor a hold needs.
//!
//! Every step may be killed and run again: 1 to 4 change nothing that counts until the catalogue is there, and 6 asks the
//! vault each time what is to go, so what an earlier run left (its packs too) goes with the rest. Points of a catalogue are read by
//! it alone, and sweeping deletes nothing that the newest one names: at no moment is a kept point out of reach.
//!
//! *Why no two prunings can hurt each other.* A sweep deletes objects that are older than the catalogue by which it judges, and
//! only names of deltas that were drawn for entries at or below its floor. Whoever publishes a later catalogue
//! planned by this one or a later one, so its packs are younger than this one: however long a sweep stalls between judging and
//! deleting, it hits nothing that somebody came to need. Whoever planned by an earlier one cannot publish.
//! A number that was freed by deleting it and is taken again by a pruning that stalled is not the newest, so it counts for nobody.
//! Likewise an uncommitted delta of a writer carries a number above its line's head, and so above every floor.
//!
//! *Why deltas and not maps.* That a kept point is its parent with deltas applied makes it the same thing below the floor as
//! above it; maps stay something that can be made again. The order inside a settled point is simple because living bytes
//! of different deltas never overlap: packs come last and every delta that stayed keeps its place (see `settle`).
//!
//! Claims are never deleted. Memory is bounded by the headers of the points that are there, and by constants.

mod clock;
mod covered;
mod pack;
mod plan;
mod settle;
mod survey;
mod sweep;

use std::time::Duration;

use jiff::Timestamp;
use nbd_proxy::{Error, Kind, Result};
use serde::{Deserialize, Serialize};

use crate::catalogue;
use crate::holds;
use crate::keys::{self, PointId};
use crate::line;
use crate::retention::Policy;
use crate::vault::Vault;
use survey::Survey;

/// Between a catalogue and its deletions; writers and readers rely on it, so it may be longer, never shorter.
pub const WAIT: Duration = Duration::from_secs(3600);
const _: () =
    assert!(WAIT.as_secs() >= 2 * line::BOUND.as_secs(), "a name is freed while a writer trusts its head");
/// How often others may publish while we plan.
const ATTEMPTS: usize = 5;

/// How to prune.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What is kept.
    pub policy: Policy,
    /// From a catalogue to its deletions, by the store's clock.
    pub wait: Duration,
}

/// An object that goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// Its name in the vault.
    pub key: String,
    /// Its size.
    pub bytes: u64,
}

/// A point that goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// Its id.
    pub id: PointId,
    /// The instant that it shows.
    pub time: Timestamp,
}

/// What a pruning did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The points that go.
    pub points: Vec<Dropped>,
    /// How many points stay.
    pub kept: usize,
    /// The objects that go.
    pub objects: Vec<Object>,
    /// Their bytes.
    pub freed: u64,
    /// Bytes of deltas that are packed anew, as they were stored; what is alive of them is written again.
    pub repacked: u64,
    /// Bytes of the packs that were written for that.
    pub written: u64,
    /// Objects that the store would not delete: they are locked, or we may not.
    pub refused: usize,
    /// Their bytes.
    pub refused_bytes: u64,
    /// What the store said to that.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub refusal: String,
    /// The objects go when this time has passed, by the store's clock; nothing if they are gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due_seconds: Option<f64>,
}

impl Report {
    fn going(&mut self, objects: Vec<Object>) {
        self.freed = objects.iter().map(|object| object.bytes).sum();
        self.objects = objects;
    }
}

/// What pruning `machine` would do now. Nothing is changed.
pub async fn rehearse(vault: &Vault, machine: &str, settings: &Settings) -> Result<Report> {
    let (mut survey, now) = look(vault, machine, settings).await?;
    let plan = plan::make(&survey, &settings.policy, now, forced(vault, machine, now).await?)?;
    let mut report = plan.report();
    if plan.worthwhile() {
        let settled = settle::settle(vault, &survey, &plan, Mode::Rehearse).await?;
        report.repacked = settled.repacked;
        (survey.catalogue, survey.published) = (settled.catalogue, Some(now));
    }
    report.going(sweep::judge(vault, &survey, now, Duration::ZERO).await?);
    Ok(report)
}

/// Prunes `machine`: publishes what stays, and deletes what is due. What was published by this very call is due
/// after the wait: the report says when, and [`sweep`] or the next pruning does it.
pub async fn prune(vault: &Vault, machine: &str, settings: &Settings) -> Result<Report> {
    for _ in 0..ATTEMPTS {
        let (mut survey, now) = look(vault, machine, settings).await?;
        let plan = plan::make(&survey, &settings.policy, now, forced(vault, machine, now).await?)?;
        let mut report = plan.report();
        if plan.worthwhile() {
            let settled = settle::settle(vault, &survey, &plan, Mode::Write).await?;
            (report.repacked, report.written) = (settled.repacked, settled.written);
            if !catalogue::publish(vault, &settled.catalogue).await? {
                tracing::info!(
                    machine,
                    "somebody else published a catalogue meanwhile; pruning begins again"
                );
                continue;
            }
            let (floor, dropped) = (settled.catalogue.floor, report.points.len());
            tracing::info!(machine, floor, dropped, kept = report.kept, "pruned");
            survey.renew(vault).await?;
        }
        return sweep_by(vault, &survey, report, settings.wait).await;
    }
    let message = "others prune or pin its points all the time";
    Err(Error::new(Kind::Unavailable, machine, message).remedy("try again"))
}

/// Deletes what is due.
pub async fn sweep(vault: &Vault, machine: &str, settings: &Settings) -> Result<Report> {
    let (survey, _) = look(vault, machine, settings).await?;
    sweep_by(vault, &survey, Report::default(), settings.wait).await
}

/// What there is, and what time it is for the store.
async fn look(vault: &Vault, machine: &str, settings: &Settings) -> Result<(Survey, Timestamp)> {
    keys::check_name("machine", machine)?;
    settings.policy.check()?;
    let survey = Survey::load(vault, machine).await?;
    Ok((survey, clock::now(vault, machine).await?))
}

/// The points that stay because somebody reads them.
async fn forced(vault: &Vault, machine: &str, now: Timestamp) -> Result<Vec<PointId>> {
    let (holds, _) = holds::counting(vault, machine, now).await?;
    Ok(holds.into_iter().map(|held| held.point).collect())
}

async fn sweep_by(vault: &Vault, survey: &Survey, mut report: Report, wait: Duration) -> Result<Report> {
    let now = clock::now(vault, &survey.catalogue.machine).await?;
    report.going(sweep::judge(vault, survey, now, wait.min(sweep::MARGIN)).await?);
    let left = survey.published.map_or(Duration::ZERO, |published| sweep::left(published, now, wait));
    if left.is_zero() {
        sweep::delete(vault, &mut report).await?;
    } else if !report.objects.is_empty() {
        report.due_seconds = Some(left.as_secs_f64());
    }
    Ok(report)
}

/// Whether what is settled is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Write,
    Rehearse,
}

#[cfg(test)]
mod tests;
