//! `lifeboat vault import`

use std::path::PathBuf;

use ::uploader::seed::{self, Imported};
use ::uploader::store;
use nbd_proxy::Result;

use crate::commands::{Context, VaultArgs};
use crate::config::VaultConfig;
use crate::output::{self, Bar};

/// Put what a carried folder holds into the vault
///
/// Each object is verified on its way. Nothing that is there is touched; run again, it goes on where it stopped.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lifeboat vault import /mnt/usb/seed")]
pub struct Args {
    /// The folder: a seed of the vault (see `lifeboat vault seed`), or a vault of its own if there is none yet
    pub dir: PathBuf,
    #[command(flatten)]
    vault: VaultArgs,
}

pub async fn run(context: &Context, args: &Args) -> Result<()> {
    let target = args.vault.resolve(context)?;
    let here =
        VaultConfig { url: super::seed::url(&args.dir)?, key: target.key.clone(), ..VaultConfig::default() };
    let seed = crate::vault::open(&here).await?;
    let target = store::open(&crate::vault::store_config(&target)?, true)?;
    let bar = Bar::bytes("importing", context.json);
    let imported = seed::import(&seed, &target, &|done, total| bar.at(done, total)).await;
    bar.end();
    output::answer(context.json, &imported?, people)
}

fn people(imported: &Imported) -> String {
    format!(
        "{}: {} objects, {}; {} were there already",
        imported.machines.join(", "),
        imported.objects,
        output::size(imported.bytes),
        imported.present
    )
}
