//! `lifeboat vault`

mod check;
mod usage;

use nbd_proxy::Result;

use super::Context;

/// Look after the vault itself
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lifeboat vault check --vault s3://backups/vms")]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Check(check::Args),
    Usage(usage::Args),
}

pub async fn run(context: &Context, args: &Args) -> Result<()> {
    match &args.what {
        What::Check(args) => check::run(context, args).await,
        What::Usage(args) => usage::run(context, args).await,
    }
}
