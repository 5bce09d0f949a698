//! What the last run left in the log's folder, and whether it is all that it must be.
//!
//! Nothing of a log that counts is removed here: until the state file says that it does not count, the next open must find it as this
//! one did.

use std::path::PathBuf;

use uuid::Uuid;

use super::bitmap_file;
use super::ends::Ends;
use super::state::DiskState;
use super::verdict::Verdict;
use crate::bitmap::DirtyBitmap;
use crate::log::Ending;
use crate::log::folder::Folder;
use crate::tracking::SegmentRef;
use crate::{Error, Kind, Result};

/// What goes on of it.
#[derive(Debug)]
pub enum Left {
    /// The log.
    Log(FoundLog),
    /// The bitmap of an unlogged stretch, and whether much of it may not differ.
    Blocks(DirtyBitmap, bool),
    /// The marked regions.
    Marks,
    /// Nothing.
    Nothing,
}

/// The log that goes on, and what must be known of it.
#[derive(Debug)]
pub struct FoundLog {
    /// Those with records, oldest first.
    pub segments: Vec<SegmentRef>,
    /// The number that the next segment gets.
    pub next: u64,
    /// The spare, and an active segment without a write. Those from `next` on are to be replaced or removed once a new one is there.
    pub empty: Vec<(u64, PathBuf)>,
    /// What the records cover.
    pub dirty: DirtyBitmap,
    /// Extents of records that may not have reached the backing, as (offset, end).
    pub unsure: Vec<(u64, u64)>,
}

/// The folder and what in it belongs to which disk.
pub struct Place<'a> {
    /// The segments.
    pub folder: &'a Folder,
    /// Which of them there must be.
    pub ends: &'a Ends,
    /// The disk's id.
    pub disk: Uuid,
    /// Its size in bytes.
    pub size: u64,
}

impl Place<'_> {
    /// Looks for what `verdict` relies on. What it does not find is replaced by what the marks say, if they are `sound`, or by
    /// everything.
    pub fn take_stock(
        &self,
        verdict: Verdict,
        state: Option<&DiskState>,
        sound: bool,
    ) -> Result<(Verdict, Left)> {
        let lost = |cause: String| match sound {
            true => Ok((Verdict::Compare(cause), Left::Marks)),
            false => Ok((Verdict::Anew(cause), Left::Nothing)),
        };
        match (verdict, state) {
            (Verdict::GoOn, Some(state)) if state.logged => match self.read_log(state.tracking) {
                Ok(found) => Ok((Verdict::GoOn, Left::Log(found))),
                Err(error) if error.kind == Kind::Corrupt => lost(format!("change log damaged: {error}")),
                Err(error) => Err(error),
            },
            (Verdict::GoOn, Some(state)) => {
                let path = self.folder.path().join("bitmap");
                match bitmap_file::load(&path, self.disk, state.tracking, self.size)? {
                    Some((dirty, suspect)) => Ok((Verdict::GoOn, Left::Blocks(dirty, suspect))),
                    None => lost(format!("the saved bitmap {} is lost or damaged", path.display())),
                }
            }
            (Verdict::Compare(cause), _) => Ok((Verdict::Compare(cause), Left::Marks)),
            (verdict, _) => Ok((verdict, Left::Nothing)),
        }
    }

    /// What the segments in the folder say. `Corrupt` if they cannot be all that was logged.
    fn read_log(&self, tracking: Uuid) -> Result<FoundLog> {
        let mut found = FoundLog {
            segments: Vec::new(),
            next: 1,
            empty: Vec::new(),
            dirty: DirtyBitmap::new(self.size),
            unsure: Vec::new(),
        };
        let mut torn = 0;
        for mut reader in self.folder.segments()? {
            let header = reader.header().clone();
            let path = reader.path().to_owned();
            if header.disk != self.disk {
                return Err(Error::corrupt(path.display().to_string(), "the segment is of another disk"));
            }
            if header.tracking != tracking {
                self.folder.retire(&path)?;
                continue;
            }
            let applied = reader.applied();
            while let Some(record) = reader.next_record()? {
                found.dirty.mark(record.offset, record.len);
                if reader.records() > applied {
                    found.unsure.push((record.offset, record.offset + record.len));
                }
            }
            let object = path.display().to_string();
            match reader.ending(self.folder.segment_bytes())? {
                Ending::Clean => {}
                Ending::Damaged(why) => return Err(Error::corrupt(object, why)),
                Ending::Torn(extents) => {
                    extents.iter().for_each(|(start, end)| found.dirty.mark(*start, end - start));
                    found.unsure.extend(extents);
                    torn = header.segment;
                }
            }
            if reader.records() < applied {
                let have = reader.records();
                return Err(Error::corrupt(object, format!("{have} readable records of at least {applied}")));
            }
            if found.segments.last().is_some_and(|last| last.segment + 1 != header.segment) {
                return Err(Error::corrupt(object, "an earlier segment of the log is missing"));
            }
            found.segments.push(SegmentRef {
                path,
                log: header.log,
                segment: header.segment,
                records: reader.records(),
                bytes: reader.position(),
            });
        }
        self.check_ends(tracking, &found.segments)?;
        // An empty one with a later segment behind it stays: its first record was still being written when later ones were complete.
        // So does one with torn records, until what they were about is read back.
        while let Some(empty) = found.segments.pop_if(|last| last.records == 0 && last.segment != torn) {
            found.empty.push((empty.segment, empty.path));
        }
        let first_empty = found.empty.last().map_or(1, |(number, _)| *number);
        found.next = found.segments.last().map_or(first_empty, |last| last.segment + 1);
        Ok(found)
    }

    fn check_ends(&self, tracking: Uuid, segments: &[SegmentRef]) -> Result<()> {
        let numbers =
            segments.first().zip(segments.last()).map(|(first, last)| (first.segment, last.segment));
        let must = self.ends.of(tracking);
        match (numbers, must) {
            (Some((first, last)), Some((lowest, highest))) if first <= lowest && last >= highest => Ok(()),
            (_, Some((lowest, highest))) => Err(Error::corrupt(
                self.folder.path().display().to_string(),
                format!("segments {lowest} to {highest} of the log are not all there"),
            )),
            (_, None) => Err(Error::corrupt(
                self.folder.path().display().to_string(),
                "nothing tells which segments of the log there must be",
            )),
        }
    }
}
