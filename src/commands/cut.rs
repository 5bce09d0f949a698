//! `lifeboat cut`

use std::time::Duration;

use ::uploader::point::EntryKind;
use jiff::Timestamp;
use nbd_proxy::{Error, Kind, Result};
use serde::{Deserialize, Serialize};

use super::Context;
use crate::control::uploader_api::CutBody;
use crate::output;

/// What a cut without --timeout is given: the first copy of a large machine may have to end first.
const LONG: Duration = Duration::from_secs(30 * 24 * 3600);

/// Take a point of a machine now and return when it is durable in the vault
///
/// During the first copy, or while catching up, it waits for the point that ends it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  lifeboat cut web1 --timeout 5m\n  lifeboat cut web1 --app-consistent")]
pub struct Args {
    /// The machine
    pub machine: String,
    /// Give up waiting after this; the point is still made when it can be
    #[arg(long, value_name = "T", value_parser = super::duration)]
    pub timeout: Option<Duration>,
    /// Ask the guest agent to hold the file systems still; fails, with the point made, if the guest does not
    #[arg(long)]
    pub app_consistent: bool,
}

/// A point and what it cost.
#[derive(Debug, Serialize, Deserialize)]
struct Cut {
    point: String,
    time: Timestamp,
    kind: EntryKind,
    notes: Vec<String>,
    bytes: u64,
    puts: u64,
    gets: u64,
    lists: u64,
}

pub async fn run(context: &Context, args: &Args) -> Result<()> {
    ::uploader::keys::check_name("machine", &args.machine)?;
    let client = context.uploader(Some(LONG))?;
    let path = format!("/v1/machines/{}/cut", args.machine);
    let body = CutBody { application: args.app_consistent };
    let asked = client.post(&path, &body);
    let cut: Cut = match tokio::time::timeout(args.timeout.unwrap_or(LONG), asked).await {
        Ok(answer) => answer?,
        Err(_) => {
            let message = "no point was durable in time; it is still being made";
            return Err(Error::new(Kind::Unavailable, format!("machine {}", args.machine), message)
                .remedy("`lifeboat status` says what it waits for"));
        }
    };
    output::answer(context.json, &cut, people)?;
    if args.app_consistent && cut.kind != EntryKind::Application {
        let message = format!("point {} was made, and is not application-consistent", cut.point);
        return Err(Error::new(Kind::NotReady, format!("machine {}", args.machine), message)
            .remedy(cut.notes.join("; ")));
    }
    Ok(())
}

fn people(cut: &Cut) -> String {
    let objects = if cut.puts == 1 { "object" } else { "objects" };
    let (time, size) = (output::instant(cut.time), output::size(cut.bytes));
    let first = format!("point {} of {time}: {size} in {} {objects}", cut.point, cut.puts);
    std::iter::once(&first).chain(&cut.notes).map(String::as_str).collect::<Vec<_>>().join("\n")
}
