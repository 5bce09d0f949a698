//! The intent map on disk: two slots, written in turn.
//!
//! ```text
//! slot, 4096 bytes of head and the map, rounded up to 4096; two of them
//!     0   8  magic "LBINTENT"
//!     8   8  sequence: the readable slot with the higher one counts
//!    16  16  the disk's id
//!    32   8  size of the disk in bytes
//!    40   8  until: seconds of the Unix epoch up to which a change of the image may be our own
//!    48   4  length of the map in bytes
//!    52   4  CRC-32C of bytes 8..52 and of the map
//!  4096   …  the map: bit i of byte j is region 8j + i
//! ```
//!
//! The file is allocated and written when it is made, so that a save is an overwrite: it needs no space, and its sync no journal. A
//! save goes to the slot that does not count: if we die in it, the other one still says what was true before.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use uuid::Uuid;

use super::{Marks, Regions};
use crate::durable::{self, Step};
use crate::{Error, Result};

const MAGIC: &[u8; 8] = b"LBINTENT";
const PAGE: usize = 4096;
const HEAD: usize = 56;

/// The open file.
#[derive(Debug)]
pub struct IntentFile {
    file: File,
    path: PathBuf,
    disk: Uuid,
    size: u64,
    sequence: Mutex<u64>,
}

/// What the file says.
#[derive(Debug)]
pub struct FoundMarks {
    /// The newest marks that are readable and belong to the disk at its size.
    newest: Option<Marks>,
    /// A slot is neither empty nor readable: the newest marks may have been there.
    damaged: bool,
}

impl FoundMarks {
    /// The marks that can be relied on. A power loss tears only a save that nobody relied on yet. `same_boot`: there was none, so
    /// damage may be to anything.
    pub fn sound(self, same_boot: bool) -> Option<Marks> {
        self.newest.filter(|_| !(self.damaged && same_boot))
    }
}

impl IntentFile {
    /// Opens or makes the file for the disk `disk` of `size` bytes, and reads it.
    pub fn open(path: &Path, disk: Uuid, size: u64) -> Result<(Self, FoundMarks)> {
        let file = durable::open_or_create(Step::IntentMade, path)
            .map_err(|error| Error::io("open the intent map", path, error).remedy(REMEDY))?;
        let slot = slot_len(size);
        let mut bytes = vec![0; 2 * slot];
        let len = file.metadata().map_err(|error| Error::io("look at the intent map", path, error))?.len();
        if len == bytes.len() as u64 {
            file.read_exact_at(&mut bytes, 0)
                .map_err(|error| Error::io("read the intent map", path, error))?;
        } else {
            file.set_len(0)
                .and_then(|()| file.write_all_at(&bytes, 0))
                .and_then(|()| durable::sync(Step::IntentAllocated, &file))
                .map_err(|error| Error::io("allocate the intent map", path, error).remedy(REMEDY))?;
        }
        let slots = || bytes.chunks(slot);
        let damaged =
            slots().any(|slot| decode(slot, disk, size).is_none() && slot.iter().any(|byte| *byte != 0));
        let newest =
            slots().filter_map(|slot| decode(slot, disk, size)).max_by_key(|(sequence, _)| *sequence);
        let sequence = newest.as_ref().map_or(0, |(sequence, _)| *sequence);
        let file = Self { file, path: path.to_owned(), disk, size, sequence: Mutex::new(sequence) };
        Ok((file, FoundMarks { newest: newest.map(|(_, marks)| marks), damaged }))
    }

    /// Writes `marks`; durable on return. There is one writer at a time.
    pub fn write(&self, marks: &Marks) -> Result<()> {
        let sequence = *self.lock() + 1;
        let slot = encode(sequence, self.disk, self.size, marks);
        let at = sequence % 2 * slot_len(self.size) as u64;
        self.file
            .write_all_at(&slot, at)
            .and_then(|()| durable::sync(Step::IntentWritten, &self.file))
            .map_err(|error| Error::io("write the intent map", &self.path, error).remedy(REMEDY))?;
        *self.lock() = sequence;
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, u64> {
        self.sequence.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

const REMEDY: &str = "the folder of the change log (log_dir) must exist and be writable";

fn slot_len(size: u64) -> usize {
    PAGE + Regions::none(size).to_bytes().len().next_multiple_of(PAGE)
}

fn encode(sequence: u64, disk: Uuid, size: u64, marks: &Marks) -> Vec<u8> {
    let map = marks.regions.to_bytes();
    let mut slot = vec![0; PAGE];
    slot[0..8].copy_from_slice(MAGIC);
    slot[8..16].copy_from_slice(&sequence.to_le_bytes());
    slot[16..32].copy_from_slice(disk.as_bytes());
    slot[32..40].copy_from_slice(&size.to_le_bytes());
    slot[40..48].copy_from_slice(&marks.until.to_le_bytes());
    // At most 64 KiB.
    slot[48..52].copy_from_slice(&u32::try_from(map.len()).unwrap_or(0).to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&slot[8..52]), &map);
    slot[52..HEAD].copy_from_slice(&crc.to_le_bytes());
    slot.extend_from_slice(&map);
    slot
}

fn decode(slot: &[u8], disk: Uuid, size: u64) -> Option<(u64, Marks)> {
    let number = |at: usize| slot.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
    let word = |at: usize| slot.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    let map = slot.get(PAGE..PAGE.checked_add(usize::try_from(word(48)?).ok()?)?)?;
    let whole = slot.get(0..8)? == MAGIC
        && word(52)? == crc32c::crc32c_append(crc32c::crc32c(slot.get(8..52)?), map)
        && slot.get(16..32)? == disk.as_bytes()
        && number(32)? == size;
    let until = i64::from_le_bytes(slot.get(40..48)?.try_into().ok()?);
    let regions = whole.then(|| Regions::from_bytes(size, map)).flatten()?;
    Some((number(8)?, Marks { regions, until }))
}
