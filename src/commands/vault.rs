//! `lifeboat vault`

mod check;
mod import;
mod key;
mod seed;
mod usage;

use nbd_proxy::Result;

use super::Context;

/// Look after the vault itself
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  lifeboat vault check --vault s3://backups/vms\n  lifeboat vault key list"
)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Check(check::Args),
    Key(key::Args),
    Seed(seed::Args),
    Import(import::Args),
    Usage(usage::Args),
}

pub async fn run(context: &Context, args: &Args) -> Result<()> {
    match &args.what {
        What::Check(args) => check::run(context, args).await,
        What::Key(args) => key::run(context, args).await,
        What::Seed(args) => seed::run(context, args).await,
        What::Import(args) => import::run(context, args).await,
        What::Usage(args) => usage::run(context, args).await,
    }
}
