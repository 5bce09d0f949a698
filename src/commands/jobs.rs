//! `lifeboat jobs`

use ::uploader::jobs::{Job, JobState, Jobs};
use nbd_proxy::{Error, Kind, Result};

use super::Context;
use crate::output;

/// List jobs: first copies, resyncs and restores, running and past
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  lifeboat jobs --json\n  lifeboat jobs cancel 3f2a9c01")]
pub struct Args {
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Give a running copy up, and pause its machine
    ///
    /// Points stay. `lifeboat resync MACHINE` begins again.
    Cancel {
        /// The job, or how its id begins
        id: String,
    },
}

pub async fn run(context: &Context, args: &Args) -> Result<()> {
    let folder = context.load()?.jobs_dir();
    let jobs = if folder.is_dir() { Jobs::open(&folder)?.list()? } else { Vec::new() };
    if let Some(What::Cancel { id }) = &args.what {
        return cancel(context, &jobs, id).await;
    }
    let answer = serde_json::json!({ "jobs": jobs });
    output::answer(context.json, &answer, |_| people(&jobs))
}

async fn cancel(context: &Context, jobs: &[Job], id: &str) -> Result<()> {
    let meant: Vec<&Job> = jobs.iter().filter(|job| job.id.to_string().starts_with(id)).collect();
    let refuse = |message: &str| {
        let remedy = "`lifeboat jobs` lists them with their ids";
        Err(Error::new(Kind::InvalidInput, format!("job {id}"), message).remedy(remedy))
    };
    let job = match meant[..] {
        [job] => job,
        [] => return refuse("there is no such job"),
        _ => return refuse("more than one job's id begins like this"),
    };
    if job.state != JobState::Running {
        return refuse(&format!("it has ended already: {}", output::word(&job.state)));
    }
    super::ask(context, &job.machine, &format!("jobs/{}/cancel", job.id)).await?;
    output::answer(context.json, &serde_json::json!({ "job": job.id, "machine": job.machine }), |_| {
        format!("cancelled; {} is paused until `lifeboat resync {}`", job.machine, job.machine)
    })
}

fn people(jobs: &[Job]) -> String {
    if jobs.is_empty() {
        return "no job yet".to_owned();
    }
    let rows = jobs.iter().map(|job| {
        let id: String = job.id.to_string().chars().take(8).collect();
        vec![
            id,
            output::word(&job.kind),
            job.machine.clone(),
            output::word(&job.state),
            output::time(job.started),
            job.ended.map_or_else(|| "-".to_owned(), output::time),
            done(job),
            job.error.clone().unwrap_or_else(|| job.cause.clone()),
        ]
    });
    output::table(&["ID", "JOB", "MACHINE", "STATE", "STARTED", "ENDED", "DONE", "WHY"], rows)
}

fn done(job: &Job) -> String {
    let mut done = format!("{} of {}", output::size(job.bytes_done), output::size(job.bytes_total));
    if job.bytes_shipped < job.bytes_done && job.kind == ::uploader::jobs::JobKind::Resync {
        done.push_str(&format!(", {} shipped", output::size(job.bytes_shipped)));
    }
    if job.bytes_undecided > 0 {
        done.push_str(&format!(", {} undecided", output::size(job.bytes_undecided)));
    }
    done
}
