//! What a disk's tracking must remember across restarts: one small record, in two slots written in turn.
//!
//! ```text
//! slot, 4096 bytes, two of them
//!     0   8  magic "LBSTATE1"
//!     8   8  sequence: the readable slot with the higher one counts
//!    16   4  length of the record
//!    20   4  CRC-32C of bytes 8..20 and of the record
//!    24   …  the record (JSON)
//! ```
//!
//! Both slots are allocated when the file is made, so a full disk cannot stop a write. A write goes to the slot that does
//! not count and is synced before it is believed: if we die in it, the other slot still says what was true before.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::sample::Sample;
use crate::backing::Identity;
use crate::durable::{self, Step};
use crate::tracking::SyncScope;
use crate::{Error, Kind, Result};

const MAGIC: &[u8; 8] = b"LBSTATE1";
const SLOT: usize = 4096;
const HEAD: usize = 24;

/// What is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskState {
    /// Random, made when the disk was first opened.
    pub disk: Uuid,
    /// The stretch of records that is, or was, going on.
    pub tracking: Uuid,
    /// Every write since `tracking` began has a record.
    pub logged: bool,
    /// The sync that is under way.
    pub sync: Option<SyncScope>,
    /// The ids under which the vault may be exact, and from which the intent map names every difference after a crash.
    pub bases: Vec<Uuid>,
    /// Why the disk is, or was last, not exact.
    pub cause: String,
    /// The intent map is kept: every region that may differ is marked there.
    pub intent: bool,
    /// A sync of the backing has failed: what the page cache shows may not be on the disk.
    pub sync_failed: bool,
    /// The host's boot in which this was written.
    pub boot: String,
    /// The mounts that image and log were on: another mount has another page cache. Empty if the kernel does not number them.
    pub mount: String,
    /// The backing as it was found at the open, or left at a clean close.
    pub image: Identity,
    /// Closed in good order: log and backing are durable and `image` is exact.
    pub clean: bool,
    /// What is to be known besides of a disk that is not a file here.
    #[serde(default)]
    pub afar: Afar,
}

/// See [`DiskState::afar`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Afar {
    /// What remembers what was not flushed; see [`crate::backing::Backing::server`].
    pub server: Option<String>,
    /// Something that was not flushed may have been lost, and no client has heard of it.
    pub untold: bool,
    /// Some of what was on it at a clean close.
    pub sample: Option<Sample>,
}

/// The file with the two slots.
#[derive(Debug)]
pub struct StateFile {
    file: File,
    path: PathBuf,
    sequence: Mutex<u64>,
}

/// What the file says.
#[derive(Debug)]
pub struct FoundState {
    /// The newest state that is readable.
    pub state: Option<DiskState>,
    /// Something was written here once.
    pub known: bool,
    /// A slot is neither empty nor readable: the newest state may have been there.
    pub damaged: bool,
}

impl StateFile {
    /// Opens or makes the file, and reads what it says.
    ///
    /// # Errors
    /// A newer Lifeboat wrote it: what it says must not be lost.
    pub fn open(path: &Path) -> Result<(Self, FoundState)> {
        let remedy = "the folder of the change log (log_dir) must exist and be writable";
        let file = durable::open_or_create(Step::StateMade, path)
            .map_err(|error| Error::io("open the tracking state", path, error).remedy(remedy))?;
        let mut bytes = vec![0; 2 * SLOT];
        let len =
            file.metadata().map_err(|error| Error::io("look at the tracking state", path, error))?.len();
        if len < bytes.len() as u64 {
            file.write_all_at(&bytes, 0)
                .and_then(|()| durable::sync(Step::StateAllocated, &file))
                .map_err(|error| Error::io("allocate the tracking state", path, error).remedy(remedy))?;
        }
        file.read_exact_at(&mut bytes, 0)
            .map_err(|error| Error::io("read the tracking state", path, error))?;
        let slots = || bytes.chunks(SLOT);
        if slots().any(|slot| slot.starts_with(&MAGIC[..7]) && !slot.starts_with(MAGIC)) {
            return Err(newer(path, "it has another format"));
        }
        let damaged = slots().any(|slot| decode(slot).is_none() && slot.iter().any(|byte| *byte != 0));
        let newest = slots().filter_map(decode).max_by_key(|(sequence, _)| *sequence);
        let sequence = newest.as_ref().map_or(0, |(sequence, _)| *sequence);
        let state = Self { file, path: path.to_owned(), sequence: Mutex::new(sequence) };
        let found = newest.map(|(_, json)| serde_json::from_slice(&json)).transpose();
        let found = found.map_err(|error| newer(path, &error.to_string()).source(error))?;
        Ok((state, FoundState { known: damaged || found.is_some(), state: found, damaged }))
    }

    /// Writes `state`; durable on return. There is one writer at a time: the thread that changes the disk's mode.
    pub fn write(&self, state: &DiskState) -> Result<()> {
        let json = serde_json::to_vec(state).map_err(|error| {
            Error::new(Kind::InvalidInput, self.path.display().to_string(), format!("cannot encode: {error}"))
        })?;
        let sequence = {
            let mut sequence = self.sequence.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            *sequence += 1;
            *sequence
        };
        let slot = encode(sequence, &json).ok_or_else(|| {
            Error::new(Kind::InvalidInput, self.path.display().to_string(), "the record is too long")
        })?;
        let at = sequence % 2 * SLOT as u64;
        self.file
            .write_all_at(&slot, at)
            .and_then(|()| durable::sync(Step::StateWritten, &self.file))
            .inspect_err(|_| {
                // The next try goes to the same slot: the other one is the one that counts.
                *self.sequence.lock().unwrap_or_else(std::sync::PoisonError::into_inner) -= 1;
            })
            .map_err(|error| Error::io("write the tracking state", &self.path, error))
    }
}

fn newer(path: &Path, what: &str) -> Error {
    let object = path.display().to_string();
    Error::new(Kind::Corrupt, object, format!("cannot understand the tracking state: {what}")).remedy(
        "was it written by a newer Lifeboat? Use that one, or remove the file to sync the disk again as a whole",
    )
}

fn encode(sequence: u64, json: &[u8]) -> Option<Vec<u8>> {
    let mut slot = vec![0; SLOT];
    let len = u32::try_from(json.len()).ok()?;
    slot[0..8].copy_from_slice(MAGIC);
    slot[8..16].copy_from_slice(&sequence.to_le_bytes());
    slot[16..20].copy_from_slice(&len.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&slot[8..20]), json);
    slot[20..24].copy_from_slice(&crc.to_le_bytes());
    slot.get_mut(HEAD..HEAD + json.len())?.copy_from_slice(json);
    Some(slot)
}

fn decode(slot: &[u8]) -> Option<(u64, Vec<u8>)> {
    let sequence = u64::from_le_bytes(slot.get(8..16)?.try_into().ok()?);
    let len = usize::try_from(u32::from_le_bytes(slot.get(16..20)?.try_into().ok()?)).ok()?;
    let crc = u32::from_le_bytes(slot.get(20..24)?.try_into().ok()?);
    let json = slot.get(HEAD..HEAD.checked_add(len)?)?;
    let good = &slot[0..8] == MAGIC && crc == crc32c::crc32c_append(crc32c::crc32c(&slot[8..20]), json);
    good.then(|| (sequence, json.to_vec()))
}
