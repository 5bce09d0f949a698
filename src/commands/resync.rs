//! `lifeboat resync`

use nbd_proxy::Result;

use super::Context;
use crate::output;

/// Copy a machine's disks whole again
///
/// Points stay. Only useful when a disk was changed behind the proxy's back.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lifeboat resync web1")]
pub struct Args {
    /// The machine
    pub machine: String,
}

pub async fn run(context: &Context, args: &Args) -> Result<()> {
    super::ask(context, &args.machine, "resync").await?;
    let answer = serde_json::json!({ "machine": args.machine });
    output::answer(context.json, &answer, |_| format!("{} will be copied again", args.machine))
}
