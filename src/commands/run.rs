//! `lifeboat run`

use nbd_proxy::Result;

use super::Context;
use crate::daemon::{Wishes, proxy::Proxy, sockets::Passed, uploader::Uploader};

/// Serve and replicate the machines of the configuration, in one process
///
/// Prints `ready` when its sockets accept. In production, run `proxy` and `uploader` as two services, so that an
/// upgrade of the one that talks to the vault never touches a guest.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lifeboat --config /etc/lifeboat/lifeboat.toml run")]
pub struct Args {}

pub async fn run(context: &Context, _: &Args, passed: Passed) -> Result<()> {
    let config = context.load()?;
    let mut wishes = Wishes::listen()?;
    let proxy = Proxy::start(&config, passed).await?;
    let uploader = match Uploader::start(&config).await {
        Ok(uploader) => uploader,
        Err(error) => return proxy.stop().await.and(Err(error)),
    };
    crate::output::line("ready")?;
    wishes.stop().await;
    let replicated = uploader.stop().await;
    proxy.stop().await.and(replicated)
}
