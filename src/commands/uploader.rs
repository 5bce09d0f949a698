//! `lifeboat uploader`

use nbd_proxy::Result;

use super::Context;
use crate::daemon::{Wishes, uploader::Uploader};

/// Replicate the machines that the proxy of the same configuration serves
///
/// Prints `ready` when its control socket accepts. The proxy may be started later, and restarted at any time.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lifeboat --config /etc/lifeboat/lifeboat.toml uploader")]
pub struct Args {}

pub async fn run(context: &Context, _: &Args) -> Result<()> {
    let config = context.load()?;
    let mut wishes = Wishes::listen()?;
    let uploader = Uploader::start(&config).await?;
    crate::output::line("ready")?;
    wishes.stop().await;
    uploader.stop().await
}
