//! A record in two slots of a file, written in turn: what was durable stays readable whatever is torn, and damage is not taken
//! for a torn write.
//!
//! ```text
//! slot: sectors of 512 bytes, a multiple of 8 of them; two slots. Each sector
//!     0   8  magic; its last byte is the version
//!     8   8  sequence of the write; a write goes to slot sequence % 2
//!    16   4  number of the sector within its slot
//!    20   4  CRC-32C of bytes 0..20 and 24..512
//!    24 488  payload; over all sectors of a slot: length of the record (4 bytes), the record, zeroes
//! ```
//!
//! A write goes to the slot that does not count and is synced before it is believed: if we die in it, the other slot still says
//! what was true before. The disk writes whole sectors, so a torn slot is a mix of good sectors of two writes, and the other slot
//! counts. A sector that fails its checksum was never written so: it is *damage*, and where it may have been of the newest write the
//! file counts for nothing, for the older slot may lack what matters. The first write fills both slots: an empty one later is damage
//! too.
//!
//! Nothing is changed before the first write, so an open that is refused leaves the file as it was.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::durable::{self, Step};
use crate::{Error, Result};

const SECTOR: usize = 512;
const HEAD: usize = 24;
const PAYLOAD: usize = SECTOR - HEAD;
/// What a slot is a multiple of, in bytes: slots share no page.
const PAGE: usize = 4096;
const REMEDY: &str = "the folder of the change log (log_dir) must exist and be writable";

/// The open file.
#[derive(Debug)]
pub struct Slots {
    kind: &'static Kind,
    path: PathBuf,
    /// Bytes of a slot.
    slot: usize,
    place: Mutex<Place>,
    #[cfg(test)]
    refusing: std::sync::atomic::AtomicBool,
}

#[derive(Debug)]
struct Place {
    file: Arc<File>,
    sequence: u64,
    /// Both slots have been written, by this or an earlier run.
    filled: bool,
}

/// A kind of file.
#[derive(Debug)]
pub struct Kind {
    /// For messages.
    pub what: &'static str,
    /// What each sector begins with.
    pub magic: &'static [u8; 8],
    /// The file is opened or made.
    pub made: Step,
    /// Both slots are written.
    pub filled: Step,
    /// A slot is.
    pub written: Step,
}

/// What a file says.
#[derive(Debug, PartialEq, Eq)]
pub enum Kept {
    /// Nothing was ever written.
    Nothing,
    /// The last record that was durable.
    Record(Vec<u8>),
    /// It is not known what was last written; and why.
    Damaged(String),
}

impl Slots {
    /// Opens or makes the file for records of at most `room` bytes.
    ///
    /// # Errors
    /// `InvalidInput` if a newer version has written it.
    pub fn open(path: &Path, kind: &'static Kind, room: usize) -> Result<(Self, Kept)> {
        let Kind { what, magic, .. } = kind;
        let file = open(path, kind)?;
        let slot = ((room + 4).div_ceil(PAYLOAD) * SECTOR).next_multiple_of(PAGE);
        let bytes = fs::read(path).map_err(|error| Error::io(&format!("read the {what}"), path, error))?;
        if let Some(version) = newer(&bytes, slot, magic) {
            return Err(Error::new(
                crate::Kind::InvalidInput,
                path.display().to_string(),
                format!("the {what} was written by a newer Lifeboat (format {version})"),
            )
            .remedy("use that version, or remove the disk's folder in lifeboat-logs: the disk is then compared as a whole"));
        }
        let (kept, sequence) = judge(&bytes, slot, magic);
        let place = Place { file: Arc::new(file), sequence, filled: matches!(kept, Kept::Record(_)) };
        let slots = Self {
            kind,
            path: path.to_owned(),
            slot,
            place: Mutex::new(place),
            #[cfg(test)]
            refusing: std::sync::atomic::AtomicBool::new(false),
        };
        Ok((slots, kept))
    }

    /// Writes `record`; durable on return. There is one writer at a time.
    pub fn write(&self, record: &[u8]) -> Result<()> {
        #[cfg(test)]
        if self.refusing.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(self.failed(rustix::io::Errno::IO.into()));
        }
        let (file, sequence, filled) = {
            let place = self.lock();
            (Arc::clone(&place.file), place.sequence, place.filled)
        };
        let sequence = if filled {
            self.put(&file, sequence + 1, record)?;
            durable::sync(self.kind.written, &file).map_err(|error| self.failed(error))?;
            sequence + 1
        } else {
            self.fill(&file, sequence, record)?
        };
        // After a failure the next try goes to the same slot: the other one is the one that counts.
        let mut place = self.lock();
        (place.sequence, place.filled) = (sequence, true);
        Ok(())
    }

    /// Whether the path still leads to the open file.
    pub fn is_in_place(&self) -> bool {
        let file = Arc::clone(&self.lock().file);
        match (file.metadata(), fs::metadata(&self.path)) {
            (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
            _ => false,
        }
    }

    /// Makes the file again at its path, with `record` in it; durable on return, but for the folder's entry.
    pub fn remake(&self, record: &[u8]) -> Result<()> {
        let file = Arc::new(open(&self.path, self.kind)?);
        let sequence = self.lock().sequence;
        let sequence = self.fill(&file, sequence, record)?;
        *self.lock() = Place { file, sequence, filled: true };
        Ok(())
    }

    fn fill(&self, file: &File, sequence: u64, record: &[u8]) -> Result<u64> {
        file.set_len(2 * self.slot as u64).map_err(|error| self.failed(error))?;
        self.put(file, sequence + 1, record)?;
        self.put(file, sequence + 2, record)?;
        durable::sync(self.kind.filled, file).map_err(|error| self.failed(error))?;
        Ok(sequence + 2)
    }

    fn put(&self, file: &File, sequence: u64, record: &[u8]) -> Result<()> {
        let slot = encode(sequence, self.kind.magic, self.slot, record).ok_or_else(|| {
            Error::new(crate::Kind::InvalidInput, self.path.display().to_string(), "the record is too long")
        })?;
        file.write_all_at(&slot, sequence % 2 * self.slot as u64).map_err(|error| self.failed(error))
    }

    fn failed(&self, error: std::io::Error) -> Error {
        Error::io(&format!("write the {}", self.kind.what), &self.path, error).remedy(REMEDY)
    }

    fn lock(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
impl Slots {
    /// Makes every write fail while `refusing`.
    pub fn refuse(&self, refusing: bool) {
        self.refusing.store(refusing, std::sync::atomic::Ordering::SeqCst);
    }

    /// Counts the writes.
    pub fn sequence(&self) -> u64 {
        self.lock().sequence
    }
}

fn open(path: &Path, kind: &Kind) -> Result<File> {
    durable::open_or_create(kind.made, path)
        .map_err(|error| Error::io(&format!("open the {}", kind.what), path, error).remedy(REMEDY))
}

fn encode(sequence: u64, magic: &[u8; 8], slot: usize, record: &[u8]) -> Option<Vec<u8>> {
    let mut payload = u32::try_from(record.len()).ok()?.to_le_bytes().to_vec();
    payload.extend_from_slice(record);
    payload.resize(slot / SECTOR * PAYLOAD, 0);
    if record.len() + 4 > payload.len() {
        return None;
    }
    let mut out = Vec::with_capacity(slot);
    for (number, piece) in (0u32..).zip(payload.chunks(PAYLOAD)) {
        let mut head = [0; HEAD];
        head[0..8].copy_from_slice(magic);
        head[8..16].copy_from_slice(&sequence.to_le_bytes());
        head[16..20].copy_from_slice(&number.to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&head[..20]), piece);
        head[20..HEAD].copy_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(&head);
        out.extend_from_slice(piece);
    }
    Some(out)
}

/// One slot as it was found.
struct Found {
    /// Its sectors are of one write.
    whole: bool,
    /// A sector was never written so.
    damaged: bool,
    /// The latest write that left a sector here; 0 if none did, nothing if that cannot be told.
    latest: Option<u64>,
}

impl Found {
    fn of(slot: &[u8], magic: &[u8; 8]) -> Self {
        let sequences: Vec<_> = (0u32..)
            .zip(slot.chunks(SECTOR))
            .map(|(number, sector)| sequence_of(sector, number, magic))
            .collect();
        let first = sequences.first().copied().flatten();
        Self {
            whole: first.is_some_and(|first| first > 0)
                && sequences.iter().all(|sequence| *sequence == first),
            // Nothing is left empty: the first write fills both slots.
            damaged: sequences.contains(&None)
                || (sequences.contains(&Some(0)) && first != Some(0))
                || (first == Some(0) && sequences.iter().any(|sequence| *sequence != first)),
            latest: sequences.into_iter().flatten().max(),
        }
    }
}

/// The write that left this sector, 0 for one that was never written; nothing if it is damaged.
fn sequence_of(sector: &[u8], number: u32, magic: &[u8; 8]) -> Option<u64> {
    if sector.iter().all(|byte| *byte == 0) {
        return Some(0);
    }
    let crc = crc32c::crc32c_append(crc32c::crc32c(sector.get(..20)?), sector.get(HEAD..)?);
    let good = sector.get(..8)? == magic
        && sector.get(16..20)? == number.to_le_bytes()
        && sector.get(20..HEAD)? == crc.to_le_bytes();
    let sequence = u64::from_le_bytes(sector.get(8..16)?.try_into().ok()?);
    (good && sequence > 0).then_some(sequence)
}

/// What the file says, and the highest sequence in it.
fn judge(bytes: &[u8], slot: usize, magic: &[u8; 8]) -> (Kept, u64) {
    if bytes.is_empty() {
        return (Kept::Nothing, 0);
    }
    let damaged = |why: &str, sequence| (Kept::Damaged(why.to_owned()), sequence);
    if bytes.len() != 2 * slot {
        return damaged("it has a wrong length", 0);
    }
    let slots: Vec<_> = bytes.chunks(slot).map(|slot| (Found::of(slot, magic), slot)).collect();
    let highest = slots.iter().filter_map(|(found, _)| found.latest).max().unwrap_or(0);
    if slots.iter().all(|(found, _)| found.latest == Some(0) && !found.damaged) {
        return (Kept::Nothing, 0);
    }
    let newest = slots.iter().filter(|(found, _)| found.whole).max_by_key(|(found, _)| found.latest);
    let Some((Some(counts), slot)) = newest.map(|(found, slot)| (found.latest, slot)) else {
        return damaged("neither of its slots is whole", highest);
    };
    let may_be_newer = |found: &Found| {
        let latest = found.latest.unwrap_or(0);
        !found.whole && (latest == 0 || (found.damaged && latest > counts) || latest > counts + 1)
    };
    if slots.iter().any(|(found, _)| may_be_newer(found)) {
        return damaged("a part of it is not what was written, and may have been the newest", highest);
    }
    match record(slot) {
        Some(record) => (Kept::Record(record), highest),
        None => damaged("its length is wrong", highest),
    }
}

fn record(slot: &[u8]) -> Option<Vec<u8>> {
    let payload: Vec<u8> = slot.chunks(SECTOR).flat_map(|sector| &sector[HEAD..]).copied().collect();
    let (len, rest) = payload.split_first_chunk::<4>()?;
    Some(rest.get(..usize::try_from(u32::from_le_bytes(*len)).ok()?)?.to_vec())
}

/// The version of a newer Lifeboat that has written a slot, in whatever layout.
fn newer(bytes: &[u8], slot: usize, magic: &[u8; 8]) -> Option<char> {
    let ours = |sector: &[u8]| sector.starts_with(magic);
    let version = |slot: &[u8]| match slot.get(..8) {
        Some(start) if start[..7] == magic[..7] && start[7] > magic[7] => Some(char::from(start[7])),
        _ => None,
    };
    bytes.chunks(slot).filter(|slot| !slot.chunks(SECTOR).any(ours)).find_map(version)
}

#[cfg(test)]
mod tests;
