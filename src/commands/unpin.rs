//! `lifeboat unpin`

use ::uploader::keys::PointId;
use ::uploader::pins;
use nbd_proxy::Result;

use super::{Context, VaultArgs};
use crate::output;

/// Let the policy decide about a recovery point that was pinned
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lifeboat unpin web1 g1-4711")]
pub struct Args {
    /// The machine
    pub machine: String,
    /// The point's id
    #[arg(value_parser = super::pin::point)]
    pub point: PointId,
    #[command(flatten)]
    vault: VaultArgs,
}

pub async fn run(context: &Context, args: &Args) -> Result<()> {
    let vault = crate::vault::open(&args.vault.resolve(context)?).await?;
    pins::unpin(&vault, &args.machine, args.point).await?;
    let answer = serde_json::json!({ "machine": args.machine, "point": args.point });
    output::answer(context.json, &answer, |_| {
        format!("point {} of {} is not pinned now", args.point, args.machine)
    })
}
