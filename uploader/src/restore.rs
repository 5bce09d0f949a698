//! Any point, written to raw files.
//!
//! The point's block map says which delta holds each byte. Frames that lie near each other are fetched by one ranged
//! request, several requests run at a time, each frame is verified before any byte of it is written, and only bytes
//! that some delta holds are written: a sparse disk costs what it holds.
//!
//! A file appears under its final name by rename, after it was synced, so that name never shows a half-written disk.
//! Until then it is called `.<disk>.raw.partial` and is locked. Death at any moment leaves at most partial files, which
//! the next restore to the same folder replaces; an error removes them.
//!
//! The point is held from before its map is read until the end, so that a pruning that runs meanwhile leaves all of it.

mod output;
mod plan;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use jiff::Timestamp;
use nbd_proxy::durable::{self, Step};
use nbd_proxy::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;

use crate::blockmap::{self, BlockMap};
use crate::holds::Hold;
use crate::keys::PointId;
use crate::listing::{self, PointInfo, PointName};
use crate::point::Gap;
use crate::vault::Vault;
use output::Output;
use plan::{Plan, Run};

/// Runs fetched at the same time; each holds a few MiB.
const PARALLEL: usize = 8;
/// Disks up to this size are read back for their SHA-256 under [`Checksum::Auto`].
const AUTO_CHECKSUM: u64 = 16 << 30;

/// Whether restored disks are read back for their SHA-256. Every frame is verified in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// Disks of up to 16 GiB.
    #[default]
    Auto,
    /// Every disk.
    Always,
    /// None.
    Never,
}

/// What to restore, and where to.
#[derive(Clone, Debug)]
pub struct Request {
    /// The machine.
    pub machine: String,
    /// The point.
    pub point: PointName,
    /// The disks; all if empty.
    pub disks: Vec<String>,
    /// The folder; it is made if need be.
    pub to: PathBuf,
    /// Replace files that exist.
    pub force: bool,
    /// Whether to hash what was restored.
    pub checksum: Checksum,
}

/// Told (bytes done, bytes in all) now and then, from any thread.
pub type Progress = Arc<dyn Fn(u64, u64) + Send + Sync>;

/// A disk that was restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoredDisk {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// SHA-256 of its whole content, if that was asked for.
    pub sha256: Option<String>,
    /// Where it is not what the disk was, because the disk could not be read there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<Gap>,
}

/// What was restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// The point.
    pub point: PointId,
    /// Its instant.
    pub time: Timestamp,
    /// Its disks.
    pub disks: Vec<RestoredDisk>,
}

/// Restores a point.
pub async fn restore(vault: &Vault, request: &Request, progress: Progress) -> Result<Restored> {
    let point = listing::resolve(vault, &request.machine, &request.point).await?;
    let names = point.disks.iter().map(|disk| &disk.name);
    let names: Vec<&String> =
        names.filter(|name| request.disks.is_empty() || request.disks.contains(name)).collect();
    if !request.force {
        names.iter().try_for_each(|name| refuse_existing(&final_path(&request.to, name)))?;
    }
    let hold = Hold::take(vault, &request.machine, point.id).await?;
    let restored = restore_held(vault, request, &point, &hold, progress).await;
    hold.release().await;
    restored
}

async fn restore_held(
    vault: &Vault,
    request: &Request,
    point: &PointInfo,
    hold: &Hold,
    progress: Progress,
) -> Result<Restored> {
    let map = blockmap::load_held(vault, &hold.catalogue, point.id, &request.disks).await?;
    let total = map.disks.iter().map(blockmap::DiskMap::data_bytes).sum();
    durable::make_folder(Step::RestoreFolder, &request.to)
        .map_err(|e| Error::io("create the folder", &request.to, e))?;
    output::check_space(&request.to, total)?;

    let create = |disk: &blockmap::DiskMap| Output::create(&request.to, &disk.disk.name, disk.disk.size);
    let outputs: Arc<Vec<Output>> = Arc::new(map.disks.iter().map(create).collect::<Result<_>>()?);
    write_all(Arc::new(map), Arc::clone(&outputs), total, progress).await?;
    let (force, checksum) = (request.force, request.checksum);
    let publish =
        move || outputs.iter().map(|output| finish(output, force, checksum)).collect::<Result<Vec<_>>>();
    let mut disks = spawn_blocking(publish).await.map_err(panicked)??;
    for disk in &mut disks {
        let held = point.disks.iter().find(|held| held.name == disk.name);
        disk.unreadable = held.map(|held| held.unreadable.clone()).unwrap_or_default();
    }
    Ok(Restored { point: point.id, time: point.time, disks })
}

fn finish(output: &Output, force: bool, checksum: Checksum) -> Result<RestoredDisk> {
    let hash = match checksum {
        Checksum::Auto => output.size <= AUTO_CHECKSUM,
        Checksum::Always => true,
        Checksum::Never => false,
    };
    let sha256 = if hash { Some(output.sha256()?) } else { None };
    output.publish(force)?;
    Ok(RestoredDisk {
        name: output.name.clone(),
        path: output.path.clone(),
        bytes: output.size,
        sha256,
        unreadable: Vec::new(),
    })
}

async fn write_all(
    map: Arc<BlockMap>,
    outputs: Arc<Vec<Output>>,
    total: u64,
    progress: Progress,
) -> Result<()> {
    let plan = Arc::new(Plan::new(&map));
    let done = Arc::new(AtomicU64::new(0));
    progress(0, total);
    let runs = 0..plan.runs.len();
    let work = |number: usize| {
        let (map, plan, outputs) = (Arc::clone(&map), Arc::clone(&plan), Arc::clone(&outputs));
        let (done, progress) = (Arc::clone(&done), Arc::clone(&progress));
        async move {
            let run = &plan.runs[number];
            let stored = map.deltas[run.delta].fetch(run.frames.clone()).await?;
            let write = move || {
                let written = write_run(&map, &plan, &plan.runs[number], &stored, &outputs)?;
                progress(done.fetch_add(written, Relaxed) + written, total);
                Ok(())
            };
            spawn_blocking(write).await.map_err(panicked)?
        }
    };
    stream::iter(runs).map(work).buffer_unordered(PARALLEL).try_collect::<()>().await
}

/// Unpacks a run's frames and writes what the point shows of them; returns the bytes written.
fn write_run(map: &BlockMap, plan: &Plan, run: &Run, stored: &[u8], outputs: &[Output]) -> Result<u64> {
    let delta = &map.deltas[run.delta];
    let frames = &delta.index.frames;
    let base = frames[run.frames.start].offset;
    let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
    let mut written = 0;
    for number in run.frames.clone() {
        let frame = &frames[number];
        let pieces = plan.pieces_in(run, frame.start, frame.start + u64::from(frame.raw_len));
        if pieces.is_empty() {
            continue;
        }
        let start = at(frame.offset - base);
        let raw = delta.unpack(number, &stored[start..start + at(frame.len.into())])?;
        for piece in pieces {
            // The part of the piece that this frame holds.
            let from = piece.at.max(frame.start);
            let end = (piece.at + piece.len).min(frame.start + u64::from(frame.raw_len));
            let bytes = &raw[at(from - frame.start)..at(end - frame.start)];
            outputs[piece.disk].write_at(bytes, piece.offset + (from - piece.at))?;
            written += bytes.len() as u64;
        }
    }
    Ok(written)
}

fn final_path(folder: &Path, disk: &str) -> PathBuf {
    folder.join(format!("{disk}.raw"))
}

fn refuse_existing(path: &Path) -> Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(_) => Err(taken(path)),
        Err(_) => Ok(()),
    }
}

fn taken(path: &Path) -> Error {
    Error::new(Kind::Exists, path.display().to_string(), "exists and would be overwritten")
        .remedy("restore to another folder, or use --force")
}

fn panicked(error: tokio::task::JoinError) -> Error {
    Error::new(Kind::Io, "restore", format!("a worker ended early: {error}")).source(error)
}

#[cfg(test)]
mod tests;
