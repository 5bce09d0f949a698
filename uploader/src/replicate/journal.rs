//! What a sync has put into the vault so far: a file of JSON lines, appended and synced.
//!
//! A line is written when its delta is durable in the vault, in the order in which the deltas apply. An intermediate
//! cut is released only after its line is durable, so a line that was complete once must never be lost: only a last
//! line without its newline is taken for torn; anything else unreadable is corruption and stops the sync.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use nbd_proxy::durable::{self, Step};
use nbd_proxy::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::commit::Uploaded;
use crate::point::{DeltaRef, Gap};

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Line {
    /// The first line: which sync this is about.
    Sync(Uuid),
    /// A stretch of a disk was copied.
    Copy {
        /// Which attempt at which disk; see [`super::state::SyncDisk`].
        attempt: Uuid,
        /// How far it came.
        #[serde(flatten)]
        copied: Copied,
        /// What holds the bytes that had to travel, if any had to.
        delta: Option<DeltaRef>,
    },
    /// Changes of an intermediate cut.
    Log(DeltaRef),
}

/// How far a disk's copy is; in a line of the journal, what one stretch added.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copied {
    /// Where copying goes on.
    pub next: u64,
    /// Bytes of data that were read.
    pub read: u64,
    /// Bytes, zeroes included, that had to travel.
    pub shipped: u64,
    /// Bytes among them that hashes could not decide upon.
    pub undecided: u64,
    /// What could not be read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<Gap>,
}

impl Copied {
    /// Counts what a stretch added.
    pub fn add(&mut self, stretch: &Self) {
        self.next = stretch.next;
        self.read += stretch.read;
        self.shipped += stretch.shipped;
        self.undecided += stretch.undecided;
        self.unreadable.extend(&stretch.unreadable);
    }
}

/// See the module.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    copied: BTreeMap<Uuid, Copied>,
    deltas: Vec<Uploaded>,
}

impl Journal {
    /// Where the journal of `machine` is.
    pub fn path(folder: &Path, machine: &str) -> PathBuf {
        folder.join(format!("{machine}.sync.jsonl"))
    }

    /// Opens the journal of the sync `id`; one of another sync is replaced.
    pub fn open(folder: &Path, machine: &str, id: Uuid) -> Result<Self> {
        let path = Self::path(folder, machine);
        let read = durable::read(&path).map_err(|e| Error::io("read the journal", &path, e))?;
        let content = read.unwrap_or_default();
        let whole = content.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        let lines = parse(&path, &content[..whole], id)?;
        let open = durable::open_or_create(Step::JournalMade, &path);
        let mut file = open.map_err(|e| Error::io("open the journal", &path, e))?;
        let keep = if lines.is_empty() { 0 } else { whole as u64 };
        let cut = file.set_len(keep).and_then(|()| file.seek(SeekFrom::Start(keep)));
        cut.map_err(|e| Error::io("cut the journal", &path, e))?;
        let mut journal = Self { path, file, copied: BTreeMap::new(), deltas: Vec::new() };
        if lines.is_empty() {
            journal.append(&Line::Sync(id))?;
            durable::sync_name(Step::JournalNamed, &journal.path)
                .map_err(|e| Error::io("sync the folder of", &journal.path, e))?;
        }
        lines.into_iter().for_each(|line| journal.apply(line));
        Ok(journal)
    }

    /// Removes the journal of `machine`.
    pub fn remove(folder: &Path, machine: &str) -> Result<()> {
        let path = Self::path(folder, machine);
        durable::remove_for_good(Step::JournalRemoved, &path)
            .map_err(|e| Error::io("remove the journal", &path, e))
    }

    /// How far `attempt` is.
    pub fn copied(&self, attempt: Uuid) -> Copied {
        self.copied.get(&attempt).cloned().unwrap_or_default()
    }

    /// All deltas, in the order in which they apply.
    pub fn deltas(&self) -> &[Uploaded] {
        &self.deltas
    }

    /// `attempt` came as far as `copied` says; what had to travel is in `delta`.
    pub fn copy(&mut self, attempt: Uuid, copied: Copied, delta: Option<Uploaded>) -> Result<()> {
        let delta = delta.map(|uploaded| uploaded.reference().clone());
        self.record(Line::Copy { attempt, copied, delta })
    }

    /// `delta` holds changes of an intermediate cut.
    pub fn log(&mut self, delta: &Uploaded) -> Result<()> {
        self.record(Line::Log(delta.reference().clone()))
    }

    fn record(&mut self, line: Line) -> Result<()> {
        self.append(&line)?;
        self.apply(line);
        Ok(())
    }

    fn append(&mut self, line: &Line) -> Result<()> {
        let mut bytes = serde_json::to_vec(line)
            .map_err(|e| Error::new(Kind::InvalidInput, self.path.display().to_string(), e.to_string()))?;
        bytes.push(b'\n');
        let start = self.file.stream_position().map_err(|e| Error::io("write the journal", &self.path, e))?;
        let written =
            self.file.write_all(&bytes).and_then(|()| durable::sync(Step::JournalWritten, &self.file));
        written.map_err(|e| {
            // Half a line must not stand before the next attempt's line.
            let _ = self.file.set_len(start).and_then(|()| self.file.seek(SeekFrom::Start(start)));
            Error::io("write the journal", &self.path, e)
        })
    }

    fn apply(&mut self, line: Line) {
        let delta = match line {
            Line::Sync(_) => None,
            Line::Copy { attempt, copied, delta } => {
                self.copied.entry(attempt).or_default().add(&copied);
                delta
            }
            Line::Log(delta) => Some(delta),
        };
        self.deltas.extend(delta.map(Uploaded::remembered));
    }
}

/// The lines of the sync `id`; none if the content is about another one.
fn parse(path: &Path, content: &[u8], id: Uuid) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for (number, line) in content.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).enumerate() {
        let parsed: Line = serde_json::from_slice(line).map_err(|e| {
            let message = format!("line {} cannot be understood: {e}", number + 1);
            Error::corrupt(path.display().to_string(), message)
                .remedy("`lifeboat resync` begins the copy again")
        })?;
        match parsed {
            Line::Sync(of) if of != id => return Ok(Vec::new()),
            parsed => lines.push(parsed),
        }
    }
    Ok(lines)
}
