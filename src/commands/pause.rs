//! `lifeboat pause`

use nbd_proxy::Result;

use super::Context;
use crate::output;

/// Stop making points of a machine until `resume`
///
/// The guest goes on, and every write goes on being recorded.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lifeboat pause web1")]
pub struct Args {
    /// The machine
    pub machine: String,
}

pub async fn run(context: &Context, args: &Args) -> Result<()> {
    super::ask(context, &args.machine, "pause").await?;
    let answer = serde_json::json!({ "machine": args.machine });
    output::answer(context.json, &answer, |_| format!("{} paused", args.machine))
}
