//! `lifeboat points`

use ::uploader::listing::{self, GroupShare, PointInfo};
use nbd_proxy::Result;
use serde::Serialize;

use super::{Context, VaultArgs};
use crate::output;

/// List a machine's recovery points, oldest first
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lifeboat points web1 --vault s3://backups/vms --json")]
pub struct Args {
    /// The machine
    pub machine: String,
    /// Only points of this generation: a number, or all
    #[arg(long, value_name = "N", default_value = "all", value_parser = generation)]
    pub generation: Generation,
    #[command(flatten)]
    vault: VaultArgs,
}

/// Which generations are listed.
#[derive(Clone, Copy, Debug)]
pub enum Generation {
    /// Every one.
    All,
    /// One.
    Only(u64),
}

fn generation(text: &str) -> Result<Generation, String> {
    match text {
        "all" => Ok(Generation::All),
        number => {
            number.parse().map(Generation::Only).map_err(|_| "a generation is a number, or all".to_owned())
        }
    }
}

#[derive(Serialize)]
struct Answer {
    points: Vec<PointInfo>,
}

pub async fn run(context: &Context, args: &Args) -> Result<()> {
    ::uploader::keys::check_name("machine", &args.machine)?;
    let vault = crate::vault::open(&args.vault.resolve(context)?).await?;
    let mut points = listing::points(&vault, &args.machine).await?;
    if let Generation::Only(generation) = args.generation {
        points.retain(|point| point.generation == generation);
    }
    output::answer(context.json, &Answer { points }, people)
}

/// What a point lacks, and whether it is pinned, for people.
fn notes(point: &PointInfo) -> String {
    let lacks = point.disks.iter().filter(|disk| !disk.unreadable.is_empty()).map(|disk| {
        let bytes = disk.unreadable.iter().map(|gap| gap.len).sum();
        format!("{} of {} could not be read", output::size(bytes), disk.name)
    });
    let pinned = point.pinned.then(|| "pinned".to_owned());
    pinned.into_iter().chain(lacks).collect::<Vec<_>>().join(", ")
}

/// Points of one cut of a group show the same.
fn group(share: &GroupShare) -> String {
    let cut = share.cut.simple().to_string();
    let part = if share.complete == Some(false) { ", incomplete" } else { "" };
    format!("{} {}{part}", share.name, &cut[..8])
}

fn people(answer: &Answer) -> String {
    if answer.points.is_empty() {
        return "no point yet".to_owned();
    }
    let rows = answer.points.iter().map(|point| {
        vec![
            point.id.to_string(),
            output::instant(point.time),
            output::word(&point.kind),
            output::size(point.bytes),
            point.group.as_ref().map_or_else(String::new, group),
            notes(point),
        ]
    });
    output::table(&["POINT", "TIME", "KIND", "SIZE IN VAULT", "GROUP", ""], rows)
}
