//! `lifeboat status`

use nbd_proxy::Result;

use super::{Context, VaultArgs};
use crate::{output, status};

/// Show health, RPO and progress of every machine
///
/// Asks the daemons. With --vault, or a configuration without machines, it says what the vault alone shows.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  lifeboat status\n  lifeboat status --vault s3://backups/vms --json")]
pub struct Args {
    #[command(flatten)]
    vault: VaultArgs,
}

pub async fn run(context: &Context, args: &Args) -> Result<()> {
    let report = if args.vault.vault.is_some() {
        status::of_vault(&args.vault.resolve(context)?).await?
    } else {
        let config = context.load()?;
        if config.machines.is_empty() {
            status::of_vault(&config.vault).await?
        } else {
            status::of_daemons(&config).await?
        }
    };
    output::answer(context.json, &report, status::people)
}
