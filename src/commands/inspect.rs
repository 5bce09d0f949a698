//! `lifeboat inspect`

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use nbd_proxy::log::{SegmentReader, format};
use nbd_proxy::{Error, Result};
use serde::Serialize;

use super::Context;
use crate::output;

/// Say what is in a file of Lifeboat's: a change log segment, a delta, a point or a claim
///
/// What the file is, is read from the file. Every checksum is checked; a broken file is an error that says where.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lifeboat inspect /images/lifeboat-logs/web1/data/000000000007.seg")]
pub struct Args {
    /// The file
    pub file: PathBuf,
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

pub fn run(context: &Context, args: &Args) -> Result<()> {
    if is_segment(&args.file)? {
        return output::answer(context.json, &segment(&args.file)?, people);
    }
    output::answer(context.json, &::uploader::inspect::describe(&args.file)?, ToString::to_string)
}

fn is_segment(path: &Path) -> Result<bool> {
    let mut start = Vec::new();
    File::open(path)
        .and_then(|file| file.take(64).read_to_end(&mut start))
        .map_err(|error| Error::io("read", path, error))?;
    Ok(format::is_segment(&start))
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
