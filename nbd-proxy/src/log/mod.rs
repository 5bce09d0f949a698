//! The change log: what was written to a disk, in order, with its data.
//!
//! A log is a row of *segments*, files in the disk's own folder. Records are appended to the newest; a cut seals it and
//! recording goes on in the next. Three files, three questions: [`format`] says what the bytes mean, `segment` writes
//! them, [`reader`] reads them back and believes nothing. `folder` owns the names and the life of segment files.
//!
//! Invariants:
//! * logged ≥ on the backing ≥ acknowledged: a record is complete, and so is every earlier record of its segment,
//!   before its write reaches the backing.
//! * A segment is handed on only when all its records are on the backing, or are followed in the same segment by a
//!   record of what is really there.
//! * The segments present are always a suffix of the log: they are removed oldest first. Replaying a suffix again is
//!   harmless (every later record is in it too); replaying with a gap would not be.
//! * The log is never synced on the guest's path. After a kill of the process the page cache still has it; after a
//!   power loss it is void.

pub mod folder;
pub mod format;
pub mod reader;
pub mod segment;

pub use reader::{Ending, Record, SegmentReader};
pub use segment::SegmentWriter;

#[cfg(test)]
mod tests;
