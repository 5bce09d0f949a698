//! `lifeboat restore`

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ::uploader::jobs::{Job, JobKind, JobState, Jobs};
use ::uploader::listing::PointName;
use ::uploader::restore::{Checksum, Request, Restored, restore};
use ::uploader::vault::Vault;
use nbd_proxy::{Error, Result};

use super::{Context, VaultArgs, usage};
use crate::output::{self, Bar};

/// How often progress is written to the job record.
const RECORD_PACE: Duration = Duration::from_secs(1);

/// Rebuild a machine's disks at a point as raw files
///
/// Every frame is verified; a file appears under its name when it is complete and durable, never before.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  lifeboat restore web1 --to /images
  lifeboat restore web1 --to /images --point 2026-05-04T10:00:00Z --disk root
  lifeboat restore web1 --to /images --vault azure://backups/vms")]
pub struct Args {
    /// The machine
    pub machine: String,
    /// The folder for DISK.raw; made if missing
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
    /// The point: an id, latest, latest-app-consistent, or an RFC 3339 time (the newest point not after it)
    #[arg(long, value_name = "P", default_value = "latest", value_parser = point)]
    pub point: PointName,
    /// Only this disk; may be given more than once
    #[arg(long, value_name = "D")]
    pub disk: Vec<String>,
    /// Replace files that exist
    #[arg(long)]
    pub force: bool,
    /// The SHA-256 of each disk in the answer: auto leaves it out where it would cost far more than the restore
    #[arg(long, value_name = "WHEN", default_value = "auto", value_parser = checksum)]
    pub checksum: Checksum,
    #[command(flatten)]
    vault: VaultArgs,
}

fn point(text: &str) -> Result<PointName, String> {
    text.parse().map_err(|error: Error| format!("{}; {}", error.message, error.remedy))
}

fn checksum(text: &str) -> Result<Checksum, String> {
    match text {
        "auto" => Ok(Checksum::Auto),
        "always" => Ok(Checksum::Always),
        "never" => Ok(Checksum::Never),
        _ => Err("write auto, always or never".to_owned()),
    }
}

pub async fn run(context: &Context, args: &Args) -> Result<()> {
    ::uploader::keys::check_name("machine", &args.machine)?;
    if args.to.exists() && !args.to.is_dir() {
        return Err(usage("--to", format!("{} is not a folder", args.to.display()), "name a folder"));
    }
    let vault = crate::vault::open(&args.vault.resolve(context)?).await?;
    let record = Record::start(context, args);
    let result = with_progress(context, args, &vault, record.clone()).await;
    record.end(&result);
    output::answer(context.json, &result?, people)
}

async fn with_progress(context: &Context, args: &Args, vault: &Vault, record: Record) -> Result<Restored> {
    let request = Request {
        machine: args.machine.clone(),
        point: args.point,
        disks: args.disk.clone(),
        to: args.to.clone(),
        force: args.force,
        checksum: args.checksum,
    };
    let bar = Bar::bytes("restoring", context.json);
    let shown = bar.clone();
    let progress = move |done, total| {
        shown.at(done, total);
        record.at(done, total);
    };
    let result = restore(vault, &request, Arc::new(progress)).await;
    bar.end();
    result
}

fn people(restored: &Restored) -> String {
    let rows = restored.disks.iter().map(|disk| {
        vec![
            disk.name.clone(),
            disk.path.display().to_string(),
            output::size(disk.bytes),
            disk.sha256.clone().unwrap_or_else(|| "-".to_owned()),
        ]
    });
    let table = output::table(&["DISK", "FILE", "SIZE", "SHA-256"], rows);
    let mut text = format!("point {} of {}\n{table}", restored.point, output::instant(restored.time));
    for disk in &restored.disks {
        for gap in &disk.unreadable {
            let place = format!("{} at {}", output::size(gap.len), gap.offset);
            text.push_str(&format!("\n{}: {place} could not be read when the disk was copied", disk.name));
        }
    }
    text
}

/// The job record. Only hosts with a configuration keep one; a restore does not fail for want of it.
#[derive(Clone)]
struct Record(Option<Arc<Ongoing>>);

struct Ongoing {
    jobs: Jobs,
    /// The job, and when it was last written down.
    state: Mutex<(Job, Instant)>,
}

impl Record {
    /// Begins the record, or goes on with that of the same restore when it was interrupted.
    fn start(context: &Context, args: &Args) -> Self {
        if args.vault.vault.is_some() {
            return Self(None);
        }
        let cause = format!("to {}", args.to.display());
        let started = context.load().and_then(|config| {
            let jobs = Jobs::open(&config.jobs_dir())?;
            let interrupted = jobs.list()?.into_iter().find(|job| {
                let same = job.machine == args.machine && job.cause == cause;
                same && job.kind == JobKind::Restore && job.state == JobState::Running
            });
            let job = match interrupted {
                Some(job) => job,
                None => jobs.start(JobKind::Restore, &args.machine, &cause)?,
            };
            Ok(Ongoing { jobs, state: Mutex::new((job, Instant::now())) })
        });
        match started {
            Ok(started) => Self(Some(Arc::new(started))),
            Err(error) => {
                tracing::warn!(%error, "the restore goes on without a job record");
                Self(None)
            }
        }
    }

    /// Notes progress, and writes it down once a second.
    fn at(&self, done: u64, total: u64) {
        let Some(Ongoing { jobs, state }) = self.0.as_deref() else { return };
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.0.bytes_done, state.0.bytes_total) = (done, total);
        if state.1.elapsed() >= RECORD_PACE {
            state.1 = Instant::now();
            if let Err(error) = jobs.save(&state.0) {
                tracing::debug!(%error, "cannot write the job record");
            }
        }
    }

    fn end(&self, result: &Result<Restored>) {
        let Some(Ongoing { jobs, state }) = self.0.as_deref() else { return };
        let job = state.lock().unwrap_or_else(PoisonError::into_inner).0.clone();
        if let Err(error) = jobs.end(job, result.as_ref().map(|_| ())) {
            tracing::warn!(%error, "cannot write the job record");
        }
    }
}
