//! `lifeboat vault seed`

use std::path::PathBuf;

use ::uploader::seed;
use ::uploader::store::{self, StoreConfig};
use nbd_proxy::{Error, Result};
use serde::Serialize;

use crate::commands::{Context, VaultArgs};
use crate::output;

/// Make a folder a seed: a place for the first copy, to be carried to the vault by hand
///
/// Replicate to it (`url = "file://DIR"`) until the machine is protected, stop, carry the folder to where the vault is near, run
/// `lifeboat vault import DIR` there, set `url` back and start again: replication goes on. If there is no vault yet, no seed is needed: replicate
/// to the folder and import it to an empty place.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lifeboat vault seed /mnt/usb/seed")]
pub struct Args {
    /// The folder; made if missing
    pub dir: PathBuf,
    #[command(flatten)]
    vault: VaultArgs,
}

#[derive(Serialize)]
struct Answer {
    seed: String,
}

pub async fn run(context: &Context, args: &Args) -> Result<()> {
    let vault = crate::vault::open(&args.vault.resolve(context)?).await?;
    let url = url(&args.dir)?;
    let config = StoreConfig { url: url.clone(), ..StoreConfig::default() };
    seed::prepare(&vault, &store::open(&config, true)?).await?;
    output::answer(context.json, &Answer { seed: url }, |answer| {
        format!("a seed of the vault; replicate to it with url = \"{}\"", answer.seed)
    })
}

/// The URL of a folder.
pub fn url(dir: &std::path::Path) -> Result<String> {
    let dir = std::path::absolute(dir).map_err(|error| Error::io("find", dir, error))?;
    Ok(format!("file://{}", dir.display()))
}
