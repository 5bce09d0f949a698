//! `lifeboat proxy`

use nbd_proxy::Result;

use super::Context;
use crate::daemon::{self, proxy::Proxy, sockets::Passed};

/// Serve the disks of the configuration and record what is written to them
///
/// Prints `ready` when its sockets accept.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lifeboat --config /etc/lifeboat/lifeboat.toml proxy")]
pub struct Args {}

pub async fn run(context: &Context, _: &Args, passed: Passed) -> Result<()> {
    let config = context.load()?;
    let stop = daemon::stop_signal()?;
    let proxy = Proxy::start(&config, passed).await?;
    crate::output::line("ready")?;
    daemon::stopped(stop).await;
    proxy.stop().await
}
