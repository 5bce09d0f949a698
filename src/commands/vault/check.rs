//! `lifeboat vault check`

use ::uploader::check::{self, Report, Verdict};
use ::uploader::store;
use nbd_proxy::Result;

use crate::commands::{Context, VaultArgs};
use crate::output;

/// Try whether a store is fit for a vault, before one trusts it
///
/// Writes about 1,100 small objects and one of 48 MiB below check/ in the vault's place, reads, lists and races for them, and removes
/// them again. Nothing of a vault that is there is touched. Exit code 1 if no vault should be there.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lifeboat vault check --vault s3://backups/vms")]
pub struct Args {
    #[command(flatten)]
    vault: VaultArgs,
}

pub async fn run(context: &Context, args: &Args) -> Result<()> {
    let config = crate::vault::store_config(&args.vault.resolve(context)?)?;
    let report = check::check(&store::open(&config, true)?).await;
    output::answer(context.json, &report, people)?;
    report.refusal().map_or(Ok(()), Err)
}

fn people(report: &Report) -> String {
    let word = |verdict| match verdict {
        Verdict::Pass => "pass",
        Verdict::Note => "note",
        Verdict::Warn => "WARN",
        Verdict::Fail => "FAIL",
        Verdict::Unknown => "unknown",
    };
    let rows = report
        .rows
        .iter()
        .map(|row| vec![word(row.verdict).to_owned(), row.name.clone(), row.seen.clone(), row.means.clone()]);
    let table = output::table(&["VERDICT", "WHAT", "SEEN", "MEANS"], rows);
    let left = match report.left {
        0 => String::new(),
        left => format!("\n{left} objects below check/ could not be removed"),
    };
    let end = match report.verdict() {
        Verdict::Fail => "no vault should be here",
        Verdict::Warn => "a vault works here; mind the warnings",
        _ => "fit for a vault",
    };
    format!("{table}\n{} requests{left}\n{}: {end}", report.requests, report.vault)
}
