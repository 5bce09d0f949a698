//! `lifeboat prune`

use std::time::Duration;

use ::uploader::prune::{self, Report, Settings};
use ::uploader::retention::Policy;
use nbd_proxy::Result;
use serde::Serialize;

use super::{Context, VaultArgs};
use crate::config;
use crate::output;

/// Let the points of a machine go that its policy does not keep, and free what only they needed
///
/// What goes is gone at once; its objects are deleted when `prune_wait` (an hour) has passed, by this command if it is let
/// wait, else by the next pruning. The uploader prunes its machines by itself, every `prune_every`. May run anywhere, at any
/// time, more than once, and be killed: run again, it goes on.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  lifeboat prune web1 --dry-run
  lifeboat prune web1
  lifeboat prune web1 --no-wait --vault s3://backups/vms --keep-all 24h --keep-daily 30d")]
pub struct Args {
    /// The machine
    pub machine: String,
    /// Only say what would go, and what that would free
    #[arg(long)]
    pub dry_run: bool,
    /// Do not wait until objects may be deleted: a later pruning deletes them
    #[arg(long)]
    pub no_wait: bool,
    /// How long every point is kept; with --vault
    #[arg(long, value_name = "AGE", requires = "vault", value_parser = config::parse_age)]
    pub keep_all: Option<Duration>,
    /// How long one point of each hour is kept; with --vault
    #[arg(long, value_name = "AGE", requires = "vault", value_parser = config::parse_age)]
    pub keep_hourly: Option<Duration>,
    /// How long one point of each day is kept; with --vault
    #[arg(long, value_name = "AGE", requires = "vault", value_parser = config::parse_age)]
    pub keep_daily: Option<Duration>,
    /// How long one point of each week is kept; with --vault
    #[arg(long, value_name = "AGE", requires = "vault", value_parser = config::parse_age)]
    pub keep_weekly: Option<Duration>,
    #[command(flatten)]
    vault: VaultArgs,
}

#[derive(Serialize)]
struct Answer {
    machine: String,
    dry_run: bool,
    #[serde(flatten)]
    report: Report,
}

pub async fn run(context: &Context, args: &Args) -> Result<()> {
    let settings = settings(context, args)?;
    let vault = crate::vault::open(&args.vault.resolve(context)?).await?;
    let mut report = if args.dry_run {
        prune::rehearse(&vault, &args.machine, &settings).await?
    } else {
        prune::prune(&vault, &args.machine, &settings).await?
    };
    while let Some(seconds) = report.due_seconds.filter(|_| !args.no_wait) {
        tracing::warn!(
            "the objects may be deleted in {}",
            output::age(Duration::from_secs_f64(seconds).as_secs())
        );
        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
        let swept = prune::sweep(&vault, &args.machine, &settings).await?;
        report = Report {
            points: report.points,
            kept: report.kept,
            repacked: report.repacked,
            written: report.written,
            ..swept
        };
    }
    let answer = Answer { machine: args.machine.clone(), dry_run: args.dry_run, report };
    output::answer(context.json, &answer, people)
}

/// What the command line says; without a vault of its own, what the configuration says of the machine.
fn settings(context: &Context, args: &Args) -> Result<Settings> {
    if args.vault.vault.is_none() {
        let config = context.load()?;
        let machine = config.machines.iter().find(|machine| machine.name == args.machine);
        let policy = machine.map_or(&config.policy, |machine| &machine.policy);
        return Ok(Settings { policy: policy.keep, wait: policy.prune_wait });
    }
    let stated = [args.keep_all, args.keep_hourly, args.keep_daily, args.keep_weekly];
    let policy = if stated.iter().all(Option::is_none) {
        Policy::default()
    } else {
        let [all, hourly, daily, weekly] = stated.map(Option::unwrap_or_default);
        Policy { all, hourly, daily, weekly }
    };
    Ok(Settings { policy, wait: prune::WAIT })
}

fn people(answer: &Answer) -> String {
    let report = &answer.report;
    let mut text = String::new();
    if answer.dry_run {
        for point in &report.points {
            text.push_str(&format!("point {} of {}\n", point.id, output::instant(point.time)));
        }
        for object in &report.objects {
            text.push_str(&format!("{} ({})\n", object.key, output::size(object.bytes)));
        }
    }
    let (would, go) = if answer.dry_run {
        ("would ", "go")
    } else {
        ("", if report.due_seconds.is_some() { "go" } else { "went" })
    };
    text.push_str(&format!("{} points {would}{go}, {} stay\n", report.points.len(), report.kept));
    text.push_str(&format!(
        "{} objects {would}{go}, which frees {}\n",
        report.objects.len(),
        output::size(report.freed)
    ));
    if report.repacked > 0 {
        let again = if answer.dry_run {
            "what is alive of them is written again".to_owned()
        } else {
            format!("{} were written for them", output::size(report.written))
        };
        text.push_str(&format!("{} of deltas are packed anew; {again}\n", output::size(report.repacked)));
    }
    if let Some(seconds) = report.due_seconds {
        let left = output::age(Duration::from_secs_f64(seconds).as_secs());
        text.push_str(&format!("the objects may be deleted in {left}; the next pruning does it\n"));
    }
    if report.refused > 0 {
        let bytes = output::size(report.refused_bytes);
        text.push_str(&format!(
            "{} objects ({bytes}) are locked, or not ours to delete: {}\n",
            report.refused, report.refusal
        ));
    }
    text
}
