//! `lifeboat inspect`

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use ::uploader::inspect::{describe, is_sealed};
use ::uploader::vault::Vault;
use nbd_proxy::log::{SegmentReader, format};
use nbd_proxy::{Error, Result};
use serde::Serialize;

use super::{Context, VaultArgs};
use crate::output;

/// Say what is in a file of Lifeboat's: a change log segment, a delta, a point or a claim
///
/// What the file is, is read from the file. Every checksum is checked; a broken file is an error that says where. An
/// encrypted file is shown wholly if the vault it comes from, and the key, are named or configured.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lifeboat inspect /images/lifeboat-logs/web1/data/000000000007.seg")]
pub struct Args {
    /// The file
    pub file: PathBuf,
    #[command(flatten)]
    vault: VaultArgs,
}

/// A change log segment.
#[derive(Debug, Serialize)]
struct Segment {
    kind: &'static str,
    file: PathBuf,
    log: String,
    segment: u64,
    disk: String,
    tracking: String,
    disk_bytes: u64,
    records: u64,
    applied: u64,
    data_records: u64,
    zero_records: u64,
    data_bytes: u64,
    zero_bytes: u64,
    bytes: u64,
}

pub async fn run(context: &Context, args: &Args) -> Result<()> {
    let start = start_of(&args.file)?;
    if format::is_segment(&start) {
        return output::answer(context.json, &segment(&args.file)?, people);
    }
    let vault = if is_sealed(&start) { vault(context, &args.vault).await? } else { None };
    output::answer(context.json, &describe(&args.file, vault.as_ref())?, ToString::to_string)
}

/// What opens an encrypted file: the vault that was named, or that of the configuration if there is one and it says how.
async fn vault(context: &Context, args: &VaultArgs) -> Result<Option<Vault>> {
    if args.vault.is_none() && !context.config.exists() {
        return Ok(None);
    }
    let config = args.resolve(context)?;
    let stated = args.vault.is_some() || crate::vault::secret(&config)?.is_some();
    if stated { crate::vault::open(&config).await.map(Some) } else { Ok(None) }
}

fn start_of(path: &Path) -> Result<Vec<u8>> {
    let mut start = Vec::new();
    File::open(path)
        .and_then(|file| file.take(64).read_to_end(&mut start))
        .map_err(|error| Error::io("read", path, error))?;
    Ok(start)
}

fn segment(path: &Path) -> Result<Segment> {
    let mut reader = SegmentReader::open_any(path)?;
    let (mut data_records, mut zero_records, mut data_bytes, mut zero_bytes) = (0, 0, 0, 0);
    while let Some(record) = reader.next_record()? {
        if record.data.is_some() {
            data_records += 1;
            data_bytes += record.len;
        } else {
            zero_records += 1;
            zero_bytes += record.len;
        }
    }
    let header = reader.header();
    Ok(Segment {
        kind: "segment",
        file: path.to_owned(),
        log: header.log.to_string(),
        segment: header.segment,
        disk: header.disk.to_string(),
        tracking: header.tracking.to_string(),
        disk_bytes: header.size,
        records: reader.records(),
        applied: reader.applied(),
        data_records,
        zero_records,
        data_bytes,
        zero_bytes,
        bytes: reader.position(),
    })
}

fn people(segment: &Segment) -> String {
    format!(
        "change log segment {} of log {}\ndisk {} of {}, tracking {}\n{} records, of which {} are known to be on the \
         backing: {} of data ({}), {} of zeroes ({})\n{} of the file in use",
        segment.segment,
        segment.log,
        segment.disk,
        output::size(segment.disk_bytes),
        segment.tracking,
        segment.records,
        segment.applied.min(segment.records),
        segment.data_records,
        output::size(segment.data_bytes),
        segment.zero_records,
        output::size(segment.zero_bytes),
        output::size(segment.bytes),
    )
}
