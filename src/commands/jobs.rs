//! `lifeboat jobs`

use ::uploader::jobs::{Job, Jobs};
use nbd_proxy::Result;

use super::Context;
use crate::output;

/// List jobs: first copies, resyncs and restores, running and past
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lifeboat jobs --json")]
pub struct Args {}

pub fn run(context: &Context, _: &Args) -> Result<()> {
    let folder = context.load()?.jobs_dir();
    let jobs = if folder.is_dir() { Jobs::open(&folder)?.list()? } else { Vec::new() };
    let answer = serde_json::json!({ "jobs": jobs });
    output::answer(context.json, &answer, |_| people(&jobs))
}

fn people(jobs: &[Job]) -> String {
    if jobs.is_empty() {
        return "no job yet".to_owned();
    }
    let rows = jobs.iter().map(|job| {
        vec![
            output::word(&job.kind),
            job.machine.clone(),
            output::word(&job.state),
            output::time(job.started),
            job.ended.map_or_else(|| "-".to_owned(), output::time),
            format!("{} of {}", output::size(job.bytes_done), output::size(job.bytes_total)),
            job.error.clone().unwrap_or_else(|| job.cause.clone()),
        ]
    });
    output::table(&["JOB", "MACHINE", "STATE", "STARTED", "ENDED", "DONE", "WHY"], rows)
}
