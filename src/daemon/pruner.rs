//! Pruning by schedule: every so often, for each machine of the uploader.
//!
//! Nothing is remembered of when it was done last: pruning twice costs a look, and a uploader is not started that often. What
//! one pruning could not delete yet, the next one does; an uploader that goes on runs the deletions when they are due.

use std::time::Duration;

use nbd_proxy::{Kind, Result};
use uploader::prune::{self, Report, Settings};

use crate::config::{Config, Policy};

/// From the start to the first pruning: first of all the machines are to be protected again.
const FIRST: Duration = Duration::from_secs(10 * 60);

/// Prunes `machine` for ever. To be dropped: every step may end anywhere.
pub async fn run(config: Config, machine: String, policy: Policy) {
    let settings = Settings { policy: policy.keep, wait: policy.prune_wait };
    let mut pause = FIRST;
    loop {
        tokio::time::sleep(pause).await;
        pause = policy.prune_every;
        match once(&config, &machine, &settings).await {
            Ok(report) if report.points.is_empty() && report.objects.is_empty() => {}
            Ok(report) => {
                let (points, freed, refused) = (report.points.len(), report.freed, report.refused);
                tracing::info!(machine, points, freed, refused, "pruned");
            }
            // It was never replicated.
            Err(error) if error.kind == Kind::NotFound => {}
            Err(error) => {
                tracing::warn!(machine, %error, remedy = error.remedy, "pruning failed; it is tried again next time");
            }
        }
    }
}

async fn once(config: &Config, machine: &str, settings: &Settings) -> Result<Report> {
    let vault = crate::vault::open(&config.vault).await?;
    let mut report = prune::prune(&vault, machine, settings).await?;
    while let Some(seconds) = report.due_seconds {
        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
        let swept = prune::sweep(&vault, machine, settings).await?;
        report = Report { points: report.points, kept: report.kept, ..swept };
    }
    Ok(report)
}
