//! `lifeboat proxy`

use std::sync::Arc;

use nbd_proxy::Result;

use super::Context;
use crate::daemon::hand_over::Successor;
use crate::daemon::{Wish, Wishes, proxy::Proxy, sockets::Passed};

/// Serve the disks of the configuration and record what is written to them
///
/// Prints `ready` when its sockets accept. SIGHUP makes it hand over to the program that stands at its path then: an upgrade,
/// or another configuration, while machines run.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lifeboat --config /etc/lifeboat/lifeboat.toml proxy")]
pub struct Args {
    /// Only look at the configuration and the disks; exit 0 if they can be served
    #[arg(long)]
    check: bool,
}

pub async fn run(context: &Context, args: &Args, passed: Passed) -> Result<()> {
    let config = context.load()?;
    if args.check {
        return Proxy::check(&config);
    }
    let mut wishes = Wishes::listen()?;
    let successor = Arc::new(Successor::at_our_path()?);
    let mut proxy = Proxy::start(&config, passed).await?;
    crate::output::line("ready")?;
    while wishes.next().await != Wish::Stop {
        proxy = proxy.hand_over(&successor).await?;
    }
    proxy.stop().await
}
