//! `lifeboat machines`

use ::uploader::listing::{self, PointInfo, PointName};
use jiff::Timestamp;
use nbd_proxy::{Kind, Result};
use serde::Serialize;

use super::{Context, VaultArgs};
use crate::output;

/// List the machines that the vault holds
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lifeboat machines --vault s3://backups/vms")]
pub struct Args {
    #[command(flatten)]
    vault: VaultArgs,
}

#[derive(Serialize)]
struct Answer {
    machines: Vec<Machine>,
}

#[derive(Serialize)]
struct Machine {
    name: String,
    latest: Option<String>,
    time: Option<Timestamp>,
    generation: Option<u64>,
    bytes: u64,
    disks: usize,
}

pub async fn run(context: &Context, args: &Args) -> Result<()> {
    let vault = crate::vault::open(&args.vault.resolve(context)?).await?;
    let mut machines = Vec::new();
    for name in listing::machines(&vault).await? {
        let latest = match listing::resolve(&vault, &name, &PointName::Latest).await {
            Ok(point) => Some(point),
            // Claimed, and not replicated to the end.
            Err(error) if error.kind == Kind::NotFound => None,
            Err(error) => return Err(error),
        };
        machines.push(machine(name, latest));
    }
    output::answer(context.json, &Answer { machines }, people)
}

fn machine(name: String, latest: Option<PointInfo>) -> Machine {
    Machine {
        name,
        latest: latest.as_ref().map(|point| point.id.to_string()),
        time: latest.as_ref().map(|point| point.time),
        generation: latest.as_ref().map(|point| point.generation),
        bytes: latest.as_ref().map_or(0, |point| point.disks.iter().map(|disk| disk.size).sum()),
        disks: latest.as_ref().map_or(0, |point| point.disks.len()),
    }
}

fn people(answer: &Answer) -> String {
    if answer.machines.is_empty() {
        return "the vault holds no machine".to_owned();
    }
    let rows = answer.machines.iter().map(|machine| {
        vec![
            machine.name.clone(),
            machine.latest.clone().unwrap_or_else(|| "no point yet".to_owned()),
            machine.time.map_or_else(|| "-".to_owned(), output::instant),
            machine.disks.to_string(),
            output::size(machine.bytes),
        ]
    });
    output::table(&["MACHINE", "LATEST POINT", "TIME", "DISKS", "SIZE OF DISKS"], rows)
}
