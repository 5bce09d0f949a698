//! The bytes of a segment, version 1. All numbers are little-endian.
//!
//! ```text
//! header, one 4096-byte page
//!     0   8  magic "LBSEGMT1"
//!     8   4  version
//!    12   4  CRC-32C of bytes 16..104
//!    16  16  log id: random, made at each open of the disk
//!    32   8  segment number, rising over the life of the folder
//!    40  16  disk id
//!    56  16  tracking id: the unbroken stretch the records belong to
//!    72   8  disk size in bytes
//!    80  24  zero
//!   512   8  applied mark: records below it are on the backing (rewritten now and then)
//!   520   4  CRC-32C of bytes 512..520, seeded as for records
//! records, from byte 4096 on, without gaps
//!     0   4  magic "LBR1"
//!     4   4  CRC-32C of bytes 8..40, seeded
//!     8   8  record number within the segment, from 0
//!    16   8  offset on the disk
//!    24   8  length
//!    32   4  kind: 1 data, 2 reads as zero
//!    36   4  CRC-32C of the data (0 for kind 2)
//!    40      the data (kind 1 only)
//! ```
//!
//! Every seeded CRC starts from the CRC of (log id, segment number). A segment file is recycled without being wiped, so
//! what follows the last record may be an old record with the right magic: it was sealed under another seed and
//! fails its check. The end of a segment is the first record that does not check.

use uuid::Uuid;

use crate::{Error, Result};

const PAGE: usize = 4096;
const MARK: usize = 512;
/// Bytes before the first record.
pub const HEADER_LEN: u64 = PAGE as u64;
/// Where the applied mark stands.
pub const APPLIED_AT: u64 = MARK as u64;
/// Bytes of a record before its data.
pub const RECORD_LEN: usize = 40;
/// The largest data of one record, in bytes.
pub const MAX_DATA: u64 = 1 << 20;

const MAGIC: &[u8; 8] = b"LBSEGMT1";
const RECORD_MAGIC: &[u8; 4] = b"LBR1";
const VERSION: u32 = 1;
const CHECKED: std::ops::Range<usize> = 16..104;

/// Whether a file that starts so claims to be a segment, of whatever version.
pub fn is_segment(start: &[u8]) -> bool {
    start.starts_with(MAGIC)
}

/// What identifies a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The log the segment belongs to.
    pub log: Uuid,
    /// The segment's number.
    pub segment: u64,
    /// The disk it belongs to.
    pub disk: Uuid,
    /// The unbroken stretch its records belong to.
    pub tracking: Uuid,
    /// Size of the disk in bytes.
    pub size: u64,
}

/// What a record says, without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// The record's number within its segment.
    pub number: u64,
    /// Byte offset on the disk.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// The CRC-32C of the data; `None` for a range that reads as zero.
    pub data_crc: Option<u32>,
}

/// The start value of every seeded CRC of a segment.
#[derive(Clone, Copy, Debug)]
pub struct Seed(u32);

impl Seed {
    /// The seed of segment `segment` of log `log`.
    pub fn new(log: Uuid, segment: u64) -> Self {
        Self(crc32c::crc32c_append(crc32c::crc32c(log.as_bytes()), &segment.to_le_bytes()))
    }

    fn crc(self, bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(self.0, bytes)
    }
}

impl Header {
    /// The seed of this segment's records.
    pub fn seed(&self) -> Seed {
        Seed::new(self.log, self.segment)
    }

    /// The header page.
    pub fn encode(&self) -> Vec<u8> {
        let mut page = vec![0; PAGE];
        page[0..8].copy_from_slice(MAGIC);
        page[8..12].copy_from_slice(&VERSION.to_le_bytes());
        page[16..32].copy_from_slice(self.log.as_bytes());
        page[32..40].copy_from_slice(&self.segment.to_le_bytes());
        page[40..56].copy_from_slice(self.disk.as_bytes());
        page[56..72].copy_from_slice(self.tracking.as_bytes());
        page[72..80].copy_from_slice(&self.size.to_le_bytes());
        let crc = crc32c::crc32c(&page[CHECKED]);
        page[12..16].copy_from_slice(&crc.to_le_bytes());
        page[512..524].copy_from_slice(&encode_applied(self.seed(), 0));
        page
    }

    /// Reads a header page of the file called `object`.
    pub fn decode(page: &[u8], object: &str) -> Result<Self> {
        if page.len() < PAGE || &page[0..8] != MAGIC {
            return Err(Error::corrupt(object, "not a Lifeboat segment (bad magic or too short)"));
        }
        let version = u32_at(page, 8);
        if version != VERSION {
            return Err(Error::corrupt(
                object,
                format!("segment version {version}, this build reads {VERSION}"),
            )
            .remedy("use the version of Lifeboat that wrote it, or a newer one"));
        }
        if u32_at(page, 12) != crc32c::crc32c(&page[CHECKED]) {
            return Err(Error::corrupt(object, "the segment header fails its checksum"));
        }
        Ok(Self {
            log: uuid_at(page, 16),
            segment: u64_at(page, 32),
            disk: uuid_at(page, 40),
            tracking: uuid_at(page, 56),
            size: u64_at(page, 72),
        })
    }
}

/// The bytes of an applied mark.
pub fn encode_applied(seed: Seed, applied: u64) -> [u8; 12] {
    let mut mark = [0; 12];
    mark[0..8].copy_from_slice(&applied.to_le_bytes());
    let crc = seed.crc(&mark[0..8]);
    mark[8..12].copy_from_slice(&crc.to_le_bytes());
    mark
}

/// The applied mark of a header page. One that fails its check counts as 0, which only means reading more back.
pub fn decode_applied(seed: Seed, page: &[u8]) -> u64 {
    match page.get(MARK..MARK + 12) {
        Some(mark) if u32_at(mark, 8) == seed.crc(&mark[0..8]) => u64_at(mark, 0),
        _ => 0,
    }
}

/// Writes a record header into `out`. `data` is `None` for a range that reads as zero.
pub fn encode_record(
    seed: Seed,
    number: u64,
    offset: u64,
    len: u64,
    data: Option<&[u8]>,
    out: &mut [u8; RECORD_LEN],
) {
    out[0..4].copy_from_slice(RECORD_MAGIC);
    out[8..16].copy_from_slice(&number.to_le_bytes());
    out[16..24].copy_from_slice(&offset.to_le_bytes());
    out[24..32].copy_from_slice(&len.to_le_bytes());
    let kind: u32 = if data.is_some() { 1 } else { 2 };
    out[32..36].copy_from_slice(&kind.to_le_bytes());
    out[36..40].copy_from_slice(&data.map_or(0, crc32c::crc32c).to_le_bytes());
    let crc = seed.crc(&out[8..40]);
    out[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// Reads the header of record `number` of a disk of `size` bytes; `None` where the segment ends.
pub fn decode_record(seed: Seed, number: u64, size: u64, bytes: &[u8; RECORD_LEN]) -> Option<RecordHeader> {
    if &bytes[0..4] != RECORD_MAGIC || u32_at(bytes, 4) != seed.crc(&bytes[8..40]) {
        return None;
    }
    let header = RecordHeader {
        number: u64_at(bytes, 8),
        offset: u64_at(bytes, 16),
        len: u64_at(bytes, 24),
        data_crc: match u32_at(bytes, 32) {
            1 => Some(u32_at(bytes, 36)),
            2 => None,
            _ => return None,
        },
    };
    let end = header.offset.checked_add(header.len)?;
    let fits = end <= size && header.len > 0 && (header.data_crc.is_none() || header.len <= MAX_DATA);
    (fits && header.number == number).then_some(header)
}

/// Whether one wrong byte keeps `bytes` from being the header of record `number`.
pub fn is_nearly_record(seed: Seed, number: u64, size: u64, bytes: &[u8; RECORD_LEN]) -> bool {
    let checks = |at: usize, value: u8| {
        let mut mended = *bytes;
        mended[at] = value;
        decode_record(seed, number, size, &mended).is_some()
    };
    (0..RECORD_LEN).any(|at| (0..=u8::MAX).any(|value| value != bytes[at] && checks(at, value)))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut raw = [0; 4];
    raw.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(raw)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut raw = [0; 8];
    raw.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(raw)
}

fn uuid_at(bytes: &[u8], at: usize) -> Uuid {
    let mut raw = [0; 16];
    raw.copy_from_slice(&bytes[at..at + 16]);
    Uuid::from_bytes(raw)
}
