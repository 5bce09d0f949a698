//! Reads a segment back, believing nothing.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::format::{self, HEADER_LEN, Header, RECORD_LEN, Seed};
use crate::tracking::SegmentRef;
use crate::{Error, Result};

/// How much is read from the file at a time, in bytes: a record's header and the largest data fit twice.
const WINDOW: usize = 2 << 20;

/// One change: where, how long, and where in the segment file its data stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Byte offset on the disk.
    pub offset: u64,
    /// Length in bytes, never zero.
    pub len: u64,
    /// File position of the data, for [`SegmentReader::read_at`]; `None`: the range reads as zero.
    pub data: Option<u64>,
}

/// What follows the last record that checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Nothing of this segment.
    Clean,
    /// Records that are not whole, or stand behind one that is not; where they were to write, as (offset, end).
    Torn(Vec<(u64, u64)>),
    /// What no kill leaves behind: records may have stood there.
    Damaged(&'static str),
}

/// Walks the records of one segment in order, checking each before it is returned.
#[derive(Debug)]
pub struct SegmentReader {
    path: PathBuf,
    file: File,
    header: Header,
    seed: Seed,
    applied: u64,
    /// How many records there must be; fewer is corruption. `None`: read as far as records check.
    expected: Option<u64>,
    next: u64,
    at: u64,
    window: Vec<u8>,
    window_at: u64,
}

impl SegmentReader {
    /// Opens a segment that a cut handed on. Fails with `Corrupt` if the file is not that segment.
    pub fn open(segment: &SegmentRef) -> Result<Self> {
        let mut reader = Self::open_any(&segment.path)?;
        if reader.header.log != segment.log || reader.header.segment != segment.segment {
            return Err(Error::corrupt(
                reader.object(),
                format!(
                    "holds segment {} of log {}, not segment {} of log {}",
                    reader.header.segment, reader.header.log, segment.segment, segment.log
                ),
            ));
        }
        reader.expected = Some(segment.records);
        Ok(reader)
    }

    /// Opens whatever segment stands at `path`, to be read as far as its records check.
    pub fn open_any(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|error| Error::io("open the segment", path, error))?;
        let mut page = [0; 4096];
        file.read_exact_at(&mut page, 0).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                Error::corrupt(path.display().to_string(), "the segment is shorter than its header")
            }
            _ => Error::io("read the segment header", path, error),
        })?;
        let header = Header::decode(&page, &path.display().to_string())?;
        let seed = header.seed();
        Ok(Self {
            path: path.to_owned(),
            file,
            applied: format::decode_applied(seed, &page),
            header,
            seed,
            expected: None,
            next: 0,
            at: HEADER_LEN,
            window: Vec::new(),
            window_at: 0,
        })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the segment says of itself.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Records with a lower number are on the backing.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// How many records have been returned.
    pub fn records(&self) -> u64 {
        self.next
    }

    /// Bytes of the file up to the end of the last record returned.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// The next record, its data checked; `None` at the end. Fails with `Corrupt`, naming the file, when a segment that a
    /// cut handed on ends before its last record.
    pub fn next_record(&mut self) -> Result<Option<Record>> {
        if self.expected.is_some_and(|expected| self.next >= expected) {
            return Ok(None);
        }
        match self.read_record()? {
            Some(record) => {
                self.next += 1;
                Ok(Some(record))
            }
            None if self.expected.is_none() => Ok(None),
            None => Err(Error::corrupt(
                self.object(),
                format!("record {} at byte {} fails its checksum or is cut short", self.next, self.at),
            )
            .remedy("the log on local disk is damaged; the disk must be synced again")),
        }
    }

    /// Reads record data from file position `at`.
    pub fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(buf, at).map_err(|error| Error::io("read the segment", &self.path, error))
    }

    /// What follows the last record that was returned, in a file that had `allocated` bytes when it was made.
    ///
    /// A kill leaves a record half written, with a header that checks or bytes of an earlier use in its place. The header tells where
    /// to look at what is really on the disk, and where the next record stands. One that is a single byte away from checking
    /// was not left by a kill: an earlier use had another seed.
    pub fn ending(&mut self, allocated: u64) -> Result<Ending> {
        let (mut at, mut number, mut torn) = (self.at, self.next, Vec::new());
        let mut raw = [0; RECORD_LEN];
        loop {
            match self.window(at, RECORD_LEN)? {
                Some(bytes) => raw.copy_from_slice(bytes),
                None if at + RECORD_LEN as u64 <= allocated => {
                    return Ok(Ending::Damaged("the segment is cut short"));
                }
                None => raw.fill(0),
            }
            let Some(header) = format::decode_record(self.seed, number, self.header.size, &raw) else {
                break;
            };
            torn.push((header.offset, header.offset + header.len));
            at += RECORD_LEN as u64 + header.data_crc.map_or(0, |_| header.len);
            number += 1;
        }
        if format::is_nearly_record(self.seed, number, self.header.size, &raw) {
            return Ok(Ending::Damaged("a record's header fails its checksum"));
        }
        Ok(if torn.is_empty() { Ending::Clean } else { Ending::Torn(torn) })
    }

    fn read_record(&mut self) -> Result<Option<Record>> {
        let mut raw = [0; RECORD_LEN];
        match self.window(self.at, RECORD_LEN)? {
            Some(bytes) => raw.copy_from_slice(bytes),
            None => return Ok(None),
        }
        let Some(header) = format::decode_record(self.seed, self.next, self.header.size, &raw) else {
            return Ok(None);
        };
        let data = self.at + RECORD_LEN as u64;
        let Some(crc) = header.data_crc else {
            self.at = data;
            return Ok(Some(Record { offset: header.offset, len: header.len, data: None }));
        };
        // A data record is at most MAX_DATA long: the format checked it.
        let len = usize::try_from(header.len).unwrap_or(usize::MAX);
        match self.window(data, len)? {
            Some(bytes) if crc32c::crc32c(bytes) == crc => {
                self.at = data + header.len;
                Ok(Some(Record { offset: header.offset, len: header.len, data: Some(data) }))
            }
            _ => Ok(None),
        }
    }

    /// `len` bytes of the file at `at`, through the read-ahead window; `None` past the end of the file.
    fn window(&mut self, at: u64, len: usize) -> Result<Option<&[u8]>> {
        let start = usize::try_from(at.wrapping_sub(self.window_at)).unwrap_or(usize::MAX);
        let held = start.checked_add(len).is_some_and(|end| end <= self.window.len());
        if held {
            return Ok(Some(&self.window[start..start + len]));
        }
        self.window.resize(WINDOW, 0);
        let mut filled = 0;
        while filled < WINDOW {
            match self.file.read_at(&mut self.window[filled..], at + filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("read the segment", &self.path, error)),
            }
        }
        self.window.truncate(filled);
        self.window_at = at;
        Ok(self.window.get(..len))
    }

    fn object(&self) -> String {
        self.path.display().to_string()
    }
}
