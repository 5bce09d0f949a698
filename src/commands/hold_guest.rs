//! `lifeboat hold-guest`: not for people. The proxy starts it to hold a guest still; see [`crate::guest_agent`].

use std::path::PathBuf;

use nbd_proxy::Result;

use crate::guest_agent::helper;

/// Hold a guest's file systems still until standard input, a socket, closes
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The Unix socket of the guest agent
    #[arg(long, value_name = "SOCKET")]
    socket: PathBuf,
    /// Thaw, and nothing else
    #[arg(long)]
    only_thaw: bool,
}

pub async fn run(args: &Args) -> Result<()> {
    helper::run(&args.socket, args.only_thaw).await
}
