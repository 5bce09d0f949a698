//! From a cut to deltas: each byte that changed, once, as it was at the cut.
//!
//! The records of a disk's segments go into a map in which the newest write wins; the map is then packed in address
//! order. Memory is bounded whatever the change: a map that grows beyond its limit drops its upper half, and another
//! pass over the segments does the addresses from there on. Deltas that are full are handed on while packing goes on,
//! so a huge change becomes several deltas of disjoint addresses.
//!
//! Everything here blocks: run it on a thread that may.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use nbd_proxy::log::SegmentReader;
use nbd_proxy::tracking::{Cut, CutDisk, SegmentRef};
use nbd_proxy::{Error, Result};

use crate::cipher::Cipher;
use crate::delta::writer::frame_size;
use crate::delta::{DeltaWriter, Encoded};
use crate::intervals::{self, IntervalMap};

/// Ranges that a map holds before it does the rest in another pass; about 40 MiB.
pub const RANGES_MAX: usize = 400_000;

/// Data is read back and packed in pieces of at most this many bytes.
const PIECE: u64 = 1 << 20;

/// Where a changed range has its bytes: a segment and a position in its file; or nowhere, it reads as zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Written {
    Zero,
    Data { segment: u32, at: u64 },
}

impl intervals::Source for Written {
    fn advanced(&self, by: u64) -> Self {
        match *self {
            Self::Zero => Self::Zero,
            Self::Data { segment, at } => Self::Data { segment, at: at + by },
        }
    }
}

/// Packs what `cut` holds and hands each finished delta to `sink`, in the order in which they apply (any order would
/// do: their addresses are disjoint). Nothing changed, nothing handed on.
pub fn pack(cut: &Cut, cipher: &Cipher, sink: &mut dyn FnMut(Encoded) -> Result<()>) -> Result<()> {
    pack_bounded(cut, cipher, RANGES_MAX, sink)
}

fn pack_bounded(
    cut: &Cut,
    cipher: &Cipher,
    ranges_max: usize,
    sink: &mut dyn FnMut(Encoded) -> Result<()>,
) -> Result<()> {
    let mut packer = Packer { cipher, writer: None, sink };
    for disk in &cut.disks {
        let mut from = 0;
        while let Some(start) = (from < disk.size).then_some(from) {
            let (map, end) = newest(disk, start, ranges_max)?;
            #[cfg(test)]
            crate::testing::between_reads(&disk.name);
            packer.add(disk, &map)?;
            from = end;
        }
    }
    packer.finish()
}

/// The newest writes of `disk` from `start` on, and where the map ends.
fn newest(disk: &CutDisk, start: u64, ranges_max: usize) -> Result<(IntervalMap<Written>, u64)> {
    let mut map = IntervalMap::default();
    let mut end = disk.size;
    for (number, segment) in disk.segments.iter().enumerate() {
        let segment_number = u32::try_from(number)
            .map_err(|_| Error::corrupt(&disk.name, "the cut holds more segments than can be"))?;
        let mut reader = SegmentReader::open(segment)?;
        while let Some(record) = reader.next_record()? {
            let record_end = record.offset.checked_add(record.len).filter(|end| *end <= disk.size);
            let record_end = record_end.ok_or_else(|| outside(segment, record.offset, record.len))?;
            let (low, high) = (record.offset.max(start), record_end.min(end));
            if low >= high {
                continue;
            }
            let written = match record.data {
                None => Written::Zero,
                Some(at) => Written::Data { segment: segment_number, at: at + (low - record.offset) },
            };
            map.insert(low, high - low, written);
            if map.len() > ranges_max.max(2) {
                end = map.drop_upper_half().unwrap_or(end);
            }
        }
    }
    Ok((map, end))
}

fn outside(segment: &SegmentRef, offset: u64, len: u64) -> Error {
    let message = format!("a record of {len} bytes at {offset} lies outside the disk");
    Error::corrupt(segment.path.display().to_string(), message)
}

struct Packer<'a> {
    cipher: &'a Cipher,
    writer: Option<DeltaWriter>,
    sink: &'a mut dyn FnMut(Encoded) -> Result<()>,
}

impl Packer<'_> {
    fn add(&mut self, disk: &CutDisk, map: &IntervalMap<Written>) -> Result<()> {
        let bytes = map.iter().map(|(_, len, _)| len).sum();
        let frame = frame_size(bytes, map.len() as u64);
        // Segments are kept open as plain files: a reader has a large window of its own.
        let mut files: Vec<Option<File>> = disk.segments.iter().map(|_| None).collect();
        let mut buffer = Vec::new();
        for (offset, len, written) in map.iter() {
            match *written {
                Written::Zero => self.writer(disk, frame)?.zero(offset, len)?,
                Written::Data { segment, at } => {
                    let index = segment as usize;
                    let path = &disk.segments[index].path;
                    let file = match &mut files[index] {
                        Some(file) => file,
                        none => {
                            none.insert(File::open(path).map_err(|e| Error::io("open the segment", path, e))?)
                        }
                    };
                    for start in (0..len).step_by(1 << 20) {
                        let size = usize::try_from((len - start).min(PIECE)).unwrap_or(usize::MAX);
                        buffer.resize(size, 0);
                        let read = file.read_exact_at(&mut buffer, at + start);
                        read.map_err(|e| Error::io("read the segment", path, e))?;
                        self.writer(disk, frame)?.data(offset + start, &buffer)?;
                        self.hand_on_if_full()?;
                    }
                }
            }
            self.hand_on_if_full()?;
        }
        Ok(())
    }

    fn writer(&mut self, disk: &CutDisk, frame: usize) -> Result<&mut DeltaWriter> {
        let writer = match self.writer.take() {
            Some(writer) => writer,
            None => DeltaWriter::new(frame, self.cipher)?,
        };
        let writer = self.writer.insert(writer);
        writer.begin_disk(&disk.name);
        Ok(writer)
    }

    fn hand_on_if_full(&mut self) -> Result<()> {
        if self.writer.as_ref().is_some_and(DeltaWriter::is_full) { self.finish() } else { Ok(()) }
    }

    fn finish(&mut self) -> Result<()> {
        match self.writer.take() {
            Some(writer) if !writer.is_empty() => (self.sink)(writer.finish()?),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
