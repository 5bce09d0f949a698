//! `lifeboat demo`

use std::path::PathBuf;

use nbd_proxy::Result;

use super::Context;

/// Tell the whole story on a scratch folder: protect, write, lose the disk, restore, compare
///
/// Starts this program's own `run` on a disk image that it makes, writes through it, destroys the image and restores it.
/// Needs nothing else installed and takes less than a minute.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  lifeboat demo\n  lifeboat demo --dir /tmp/story --keep")]
pub struct Args {
    /// The scratch folder, which must be absent or empty; a new one in the temporary folder by default
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Leave the folder behind to look at
    #[arg(long)]
    pub keep: bool,
}

pub async fn run(context: &Context, args: &Args) -> Result<()> {
    crate::demo::tell(args.dir.as_deref(), args.keep, context.json).await
}
