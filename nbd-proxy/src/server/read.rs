//! How a piece of a READ becomes reply bytes, in the connection's thread and on workers alike.
//!
//! A chunk is put into the buffer only with its data behind it: nothing is promised that can still fail. When
//! anything goes wrong the buffer is left as it was.

use std::io;

use super::buffer::Staging;
use crate::device::{BlockDevice, Extent};
use crate::nbd::{Framing, Tag, reply, wire};

/// Reads of at least this length are looked at for holes.
const HOLES_FROM: usize = 32 << 10;
/// Chunks of one piece; what lies behind the last one is sent as data.
const MAX_CHUNKS: usize = 64;

/// A length as a distance on the device.
pub(super) fn bytes(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

/// A piece of a READ to be answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    /// The request.
    pub(super) tag: Tag,
    /// Byte offset of the piece on the device.
    pub(super) offset: u64,
    /// Length of the piece; never zero.
    pub(super) len: usize,
    /// One content chunk only.
    pub(super) whole: bool,
    /// The piece ends the reply.
    pub(super) last: bool,
    /// Waiting for the device is allowed.
    pub(super) wait: bool,
}

impl Answer {
    /// Room in the buffer that the answer may need.
    pub(super) fn room(&self) -> usize {
        let chunks = if self.len < HOLES_FROM { 1 } else { MAX_CHUNKS + 1 };
        self.len + chunks * wire::MAX_HEAD
    }
}

/// Appends the answer to `out`, which has [`Answer::room`]. `Ok(false)`: the device would have to wait.
pub(super) fn fill(
    device: &dyn BlockDevice,
    framing: Framing,
    answer: &Answer,
    out: &mut Staging,
    extents: &mut Vec<Extent>,
) -> io::Result<bool> {
    let mark = out.len();
    let sparse = framing != Framing::Simple && !answer.whole && answer.len >= HOLES_FROM;
    let filled = if sparse && find_holes(device, answer, extents) {
        fill_runs(device, framing, answer, extents, out)
    } else {
        fill_data(device, framing, answer, out)
    };
    if !matches!(filled, Ok(true)) {
        out.truncate(mark);
    }
    filled
}

fn read_into(device: &dyn BlockDevice, buf: &mut [u8], offset: u64, wait: bool) -> io::Result<bool> {
    if wait { device.read(buf, offset).map(|()| true) } else { device.try_read(buf, offset) }
}

fn no_room() -> io::Error {
    io::ErrorKind::OutOfMemory.into()
}

fn fill_data(
    device: &dyn BlockDevice,
    framing: Framing,
    answer: &Answer,
    out: &mut Staging,
) -> io::Result<bool> {
    let len = u32::try_from(answer.len).map_err(|_| no_room())?;
    out.put(&reply::data(framing, answer.tag, answer.offset, len, answer.last));
    let place = out.extend(answer.len).ok_or_else(no_room)?;
    read_into(device, place, answer.offset, answer.wait)
}

/// Whether the range has a hole; `extents` then says where. Not knowing is never an error: data is always right.
fn find_holes(device: &dyn BlockDevice, answer: &Answer, extents: &mut Vec<Extent>) -> bool {
    extents.clear();
    let end = answer.offset + bytes(answer.len);
    let mut at = answer.offset;
    while at < end && extents.len() < MAX_CHUNKS {
        if device.extents(at, end - at, extents).is_err() {
            return false;
        }
        let reached = extents.last().map_or(at, |extent| extent.offset + extent.len);
        if reached <= at {
            return false;
        }
        at = reached;
    }
    extents.iter().any(|extent| extent.hole)
}

fn fill_runs(
    device: &dyn BlockDevice,
    framing: Framing,
    answer: &Answer,
    extents: &[Extent],
    out: &mut Staging,
) -> io::Result<bool> {
    let end = answer.offset + bytes(answer.len);
    let mut at = answer.offset;
    // Runs from the device, as many as there may be chunks; then whatever is left, as data.
    let tail = Extent { offset: end, len: 0, hole: false };
    let runs = extents.iter().take(MAX_CHUNKS).map(|run| (run.offset + run.len, run.hole));
    let last = extents.len().min(MAX_CHUNKS);
    for (index, (stop, hole)) in runs.chain([(tail.offset, false)]).enumerate() {
        let stop = stop.min(end);
        let Some(len) = stop.checked_sub(at).filter(|len| *len > 0) else { continue };
        debug_assert!(index <= last, "at most one run behind those of the device");
        let done = answer.last && stop == end;
        let len32 = u32::try_from(len).map_err(|_| no_room())?;
        if hole {
            out.put(&reply::hole(framing, answer.tag, at, len32, done));
        } else {
            out.put(&reply::data(framing, answer.tag, at, len32, done));
            let place = out.extend(usize::try_from(len).map_err(|_| no_room())?).ok_or_else(no_room)?;
            if !read_into(device, place, at, answer.wait)? {
                return Ok(false);
            }
        }
        at = stop;
    }
    Ok(true)
}

#[cfg(test)]
mod tests;
