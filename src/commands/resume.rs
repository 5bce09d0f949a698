//! `lifeboat resume`

use nbd_proxy::Result;

use super::Context;
use crate::output;

/// Go on with a paused machine, or retry one that stopped or waits
///
/// A critical machine tries again at once.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lifeboat resume web1")]
pub struct Args {
    /// The machine
    pub machine: String,
}

pub async fn run(context: &Context, args: &Args) -> Result<()> {
    super::ask(context, &args.machine, "resume").await?;
    let answer = serde_json::json!({ "machine": args.machine });
    output::answer(context.json, &answer, |_| format!("{} resumed", args.machine))
}
