//! `lifeboat pin`

use ::uploader::keys::PointId;
use ::uploader::pins;
use nbd_proxy::Result;

use super::{Context, VaultArgs};
use crate::output;

/// Keep a recovery point whatever the policy says, until it is unpinned
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lifeboat pin web1 g1-4711")]
pub struct Args {
    /// The machine
    pub machine: String,
    /// The point's id, as `lifeboat points` prints it
    #[arg(value_parser = point)]
    pub point: PointId,
    #[command(flatten)]
    pub(super) vault: VaultArgs,
}

/// Reads a point's id.
pub(super) fn point(text: &str) -> Result<PointId, String> {
    text.parse().map_err(|error: nbd_proxy::Error| format!("{}; {}", error.message, error.remedy))
}

pub async fn run(context: &Context, args: &Args) -> Result<()> {
    let vault = crate::vault::open(&args.vault.resolve(context)?).await?;
    pins::pin(&vault, &args.machine, args.point).await?;
    let answer = serde_json::json!({ "machine": args.machine, "point": args.point });
    output::answer(context.json, &answer, |_| format!("point {} of {} is pinned", args.point, args.machine))
}
