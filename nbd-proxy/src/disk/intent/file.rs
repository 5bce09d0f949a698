//! The intent map on disk: a file of two `slots` with the magic "LBINTEN1" and this record.
//!
//! ```text
//!     0  16  the disk's id
//!    16   8  size of the disk in bytes
//!    24   8  until: seconds of the Unix epoch up to which a change of the image may be our own
//!    32   …  the map: bit i of byte j is region 8j + i
//! ```
//!
//! A save is an overwrite: it needs no space, and its sync no journal.

use std::path::Path;

use uuid::Uuid;

use super::{Marks, Regions};
use crate::Result;
use crate::disk::slots::{self, Kept, Slots};
use crate::durable::Step;

const KIND: slots::Kind = slots::Kind {
    what: "intent map",
    magic: b"LBINTEN1",
    made: Step::IntentMade,
    filled: Step::IntentFilled,
    written: Step::IntentWritten,
};
const HEAD: usize = 32;

/// The open file.
#[derive(Debug)]
pub struct IntentFile {
    slots: Slots,
    disk: Uuid,
    size: u64,
}

impl IntentFile {
    /// Opens or makes the file for the disk `disk` of `size` bytes, and reads it; `None` if there is nothing in it that can be
    /// relied on for this disk at this size.
    pub fn open(path: &Path, disk: Uuid, size: u64) -> Result<(Self, Option<Marks>)> {
        let room = HEAD + Regions::none(size).to_bytes().len();
        let (slots, kept) = Slots::open(path, &KIND, room)?;
        let marks = match kept {
            Kept::Nothing => None,
            Kept::Record(record) => decode(&record, disk, size),
            Kept::Damaged(why) => {
                tracing::warn!(path = %path.display(), "the intent map is damaged, or of a disk of another size: {why}");
                None
            }
        };
        Ok((Self { slots, disk, size }, marks))
    }

    /// Writes `marks`; durable on return. There is one writer at a time.
    pub fn write(&self, marks: &Marks) -> Result<()> {
        self.slots.write(&self.encode(marks))
    }

    /// Makes the file again where the next open looks for it.
    pub fn remake(&self, marks: &Marks) -> Result<()> {
        self.slots.remake(&self.encode(marks))
    }

    fn encode(&self, marks: &Marks) -> Vec<u8> {
        let map = marks.regions.to_bytes();
        let mut record = Vec::with_capacity(HEAD + map.len());
        record.extend_from_slice(self.disk.as_bytes());
        record.extend_from_slice(&self.size.to_le_bytes());
        record.extend_from_slice(&marks.until.to_le_bytes());
        record.extend_from_slice(&map);
        record
    }
}

#[cfg(test)]
impl IntentFile {
    /// Makes every write fail while `refusing`.
    pub fn refuse(&self, refusing: bool) {
        self.slots.refuse(refusing);
    }

    /// Counts the saves.
    pub fn saves(&self) -> u64 {
        self.slots.sequence()
    }
}

fn decode(record: &[u8], disk: Uuid, size: u64) -> Option<Marks> {
    let ours = record.get(0..16)? == disk.as_bytes() && record.get(16..24)? == size.to_le_bytes();
    let until = i64::from_le_bytes(record.get(24..HEAD)?.try_into().ok()?);
    let regions = ours.then(|| Regions::from_bytes(size, &record[HEAD..])).flatten()?;
    Some(Marks { regions, until })
}
