//! Writes the records of one segment file. Who may write where is decided above (`disk::tracker`); here are the bytes.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::format::{self, APPLIED_AT, HEADER_LEN, Header, RECORD_LEN, Seed};
use crate::durable::{self, Step};
use crate::tracking::SegmentRef;
use crate::{Error, Result};

/// Records per vectored write: two slices each, below the kernel's 1024.
const RECORDS_PER_WRITE: usize = 500;

/// One change to be recorded.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Byte offset on the disk.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// What was written, `len` bytes, at most 1 MiB; `None` for a range that reads as zero.
    pub data: Option<&'a [u8]>,
}

impl Entry<'_> {
    /// Bytes the record takes in the segment.
    pub fn record_bytes(&self) -> u64 {
        RECORD_LEN as u64 + if self.data.is_some() { self.len } else { 0 }
    }
}

/// An open segment file, written at positions that the caller has reserved.
#[derive(Debug)]
pub struct SegmentFile {
    file: File,
    path: PathBuf,
    header: Header,
    seed: Seed,
}

impl SegmentFile {
    /// Makes `file`, which stands at `path`, the segment that `header` describes. Whatever records it held no longer count.
    pub fn begin(file: File, path: PathBuf, header: Header) -> Result<Self> {
        file.write_all_at(&header.encode(), 0)
            .map_err(|error| Error::io("write the segment header", &path, error))?;
        Ok(Self { seed: header.seed(), file, path, header })
    }

    /// Where the file stands.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the segment says of itself.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Writes `entries` as records `first`, `first + 1`, … from file position `at` on. Not synced; on an error any part may
    /// have been written.
    pub fn append(&self, at: u64, first: u64, entries: &[Entry<'_>]) -> io::Result<()> {
        let mut at = at;
        let mut number = first;
        for batch in entries.chunks(RECORDS_PER_WRITE) {
            let mut headers = vec![[0; RECORD_LEN]; batch.len()];
            for (header, entry) in headers.iter_mut().zip(batch) {
                format::encode_record(self.seed, number, entry.offset, entry.len, entry.data, header);
                number += 1;
            }
            let mut slices = Vec::with_capacity(2 * batch.len());
            for (header, entry) in headers.iter().zip(batch) {
                slices.push(IoSlice::new(header));
                slices.extend(entry.data.map(IoSlice::new));
            }
            at += write_all_vectored_at(&self.file, &mut slices, at)?;
        }
        Ok(())
    }

    /// Reads `buf` back from file position `at`.
    pub fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, at)
    }

    /// Records that every record below `applied` is on the backing. Not synced: a stale mark only means reading more back.
    pub fn mark_applied(&self, applied: u64) -> io::Result<()> {
        self.file.write_all_at(&format::encode_applied(self.seed, applied), APPLIED_AT)
    }

    /// Makes the records durable (for a clean close; never on the guest's path).
    pub fn sync(&self) -> io::Result<()> {
        durable::sync(Step::SegmentClosed, &self.file)
    }
}

/// Writes all of `slices` to `file` from position `at` on; returns how many bytes that were.
pub(crate) fn write_all_vectored_at(file: &File, slices: &mut [IoSlice<'_>], at: u64) -> io::Result<u64> {
    let mut slices = slices;
    let mut written = 0;
    while !slices.is_empty() {
        match rustix::io::pwritev(file, slices, at + written) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                written += n as u64;
                IoSlice::advance_slices(&mut slices, n);
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(written)
}

/// Appends records one after another: for recovery, and for tests of what reads segments.
#[derive(Debug)]
pub struct SegmentWriter {
    file: SegmentFile,
    at: u64,
    records: u64,
}

impl SegmentWriter {
    /// Appends to a segment that has just begun.
    pub fn over(file: SegmentFile) -> Self {
        Self { file, at: HEADER_LEN, records: 0 }
    }

    /// Appends one record.
    pub fn append(&mut self, entry: Entry<'_>) -> Result<()> {
        self.file
            .append(self.at, self.records, &[entry])
            .map_err(|error| Error::io("append to the segment", &self.file.path, error))?;
        self.at += entry.record_bytes();
        self.records += 1;
        Ok(())
    }

    /// Bytes of the file in use, header included.
    pub fn bytes(&self) -> u64 {
        self.at
    }

    /// Marks everything applied and names the segment.
    pub fn seal(&self) -> Result<SegmentRef> {
        self.file
            .mark_applied(self.records)
            .map_err(|error| Error::io("mark the segment applied", &self.file.path, error))?;
        Ok(SegmentRef {
            path: self.file.path.clone(),
            log: self.file.header.log,
            segment: self.file.header.segment,
            records: self.records,
            bytes: self.at,
        })
    }
}
