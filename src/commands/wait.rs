//! `lifeboat wait`

use std::time::Duration;

use ::uploader::replicate::{DiskState, Status};
use nbd_proxy::{Error, Kind, Result};
use tokio::time::{Instant, sleep};

use super::Context;
use crate::output;

/// How often the uploader is asked.
const PACE: Duration = Duration::from_millis(200);

/// Wait until every disk of a machine is in a state
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lifeboat wait web1 --for protected --timeout 2h")]
pub struct Args {
    /// The machine
    pub machine: String,
    /// The state: initial, protected, catching-up, resync, paused, failed or fenced
    #[arg(long = "for", value_name = "STATE", value_parser = state)]
    pub state: DiskState,
    /// Fail with exit code 1 after this
    #[arg(long, value_name = "T", value_parser = super::duration)]
    pub timeout: Option<Duration>,
}

fn state(text: &str) -> Result<DiskState, String> {
    serde_json::from_value(text.into()).map_err(|_| {
        "a state is initial, protected, catching-up, resync, paused, failed or fenced".to_owned()
    })
}

pub async fn run(context: &Context, args: &Args) -> Result<()> {
    ::uploader::keys::check_name("machine", &args.machine)?;
    let client = context.uploader(None)?;
    let path = format!("/v1/machines/{}", args.machine);
    let deadline = args.timeout.map(|timeout| Instant::now() + timeout);
    loop {
        let status: Status = client.get(&path).await?;
        if !status.disks.is_empty() && status.disks.iter().all(|disk| disk.state == args.state) {
            let answer = serde_json::json!({ "machine": args.machine, "state": args.state });
            return output::answer(context.json, &answer, |_| format!("{} is there", args.machine));
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(late(args, &status));
        }
        sleep(PACE).await;
    }
}

fn late(args: &Args, status: &Status) -> Error {
    let states: Vec<String> =
        status.disks.iter().map(|disk| format!("{} is {}", disk.name, output::word(&disk.state))).collect();
    let mut message =
        format!("not every disk was {} in time: {}", output::word(&args.state), states.join(", "));
    if !status.cause.is_empty() {
        message.push_str(&format!("; {}", status.cause));
    }
    let remedy =
        if status.remedy.is_empty() { "`lifeboat status` shows its progress" } else { &status.remedy };
    Error::new(Kind::NotReady, format!("machine {}", args.machine), message).remedy(remedy)
}
