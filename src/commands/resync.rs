//! `lifeboat resync`

use nbd_proxy::Result;

use super::Context;
use crate::output;

/// Compare a machine's disks with the vault, now, and ship what differs
///
/// Points stay. Only useful when a disk was changed behind the proxy's back.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lifeboat resync web1")]
pub struct Args {
    /// The machine
    pub machine: String,
    /// Only begin what waits for the resync window
    #[arg(long)]
    pub now: bool,
}

pub async fn run(context: &Context, args: &Args) -> Result<()> {
    super::ask(context, &args.machine, if args.now { "resync/now" } else { "resync" }).await?;
    let answer = serde_json::json!({ "machine": args.machine });
    output::answer(context.json, &answer, |_| match args.now {
        true => format!("{} does not wait for the resync window", args.machine),
        false => format!("{} will be compared with the vault", args.machine),
    })
}
