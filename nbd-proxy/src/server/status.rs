//! The answer to a BLOCK_STATUS: one chunk for each context that was asked about, from what the device says.

use std::io;
use std::ops::Range;

use uuid::Uuid;

use crate::device::BlockDevice;
use crate::nbd::{Contexts, Framing, Tag, reply, wire};

/// Extents in one chunk; the client asks again for what lies behind them.
const MAX_EXTENTS: usize = 8192;

/// The whole reply for `range`, which is not empty. Either every context is answered or none.
pub(super) fn answer(
    device: &dyn BlockDevice,
    framing: Framing,
    tag: Tag,
    range: Range<u64>,
    one: bool,
    contexts: Contexts,
) -> io::Result<Vec<u8>> {
    let limit = if one { 1 } else { MAX_EXTENTS };
    let mut out = Vec::new();
    let mut status = Runs::new(range.start, limit);
    if contexts.allocation {
        allocation(device, range.clone(), &mut status)?;
        let last = contexts.changes.is_none();
        reply::block_status(&mut out, framing, tag, wire::BASE_ALLOCATION_ID, &status.pairs, last);
    }
    if let Some(cut) = contexts.changes {
        status = Runs::new(range.start, limit);
        changes(device, cut, range, &mut status)?;
        reply::block_status(&mut out, framing, tag, wire::DIRTY_BITMAP_ID, &status.pairs, true);
    }
    Ok(out)
}

/// `(length, status)` of consecutive runs, neighbours of one status being one.
struct Runs {
    at: u64,
    limit: usize,
    pairs: Vec<(u64, u32)>,
}

impl Runs {
    fn new(at: u64, limit: usize) -> Self {
        Self { at, limit, pairs: Vec::new() }
    }

    /// Everything up to `stop` has this status; false if there is no room for it.
    fn push(&mut self, stop: u64, status: u32) -> bool {
        let len = stop.saturating_sub(self.at);
        let full = self.pairs.len() == self.limit;
        match self.pairs.last_mut() {
            _ if len == 0 => return true,
            Some((so_far, same)) if *same == status => *so_far += len,
            _ if full => return false,
            _ => self.pairs.push((len, status)),
        }
        self.at = stop;
        true
    }
}

fn allocation(device: &dyn BlockDevice, range: Range<u64>, runs: &mut Runs) -> io::Result<()> {
    let mut found = Vec::new();
    while runs.at < range.end {
        found.clear();
        let before = runs.at;
        device.extents(before, range.end - before, &mut found)?;
        for extent in &found {
            let status = if extent.hole { wire::STATE_HOLE_ZERO } else { 0 };
            if !runs.push((extent.offset + extent.len).min(range.end), status) {
                return Ok(());
            }
        }
        if runs.at == before {
            return Err(io::Error::other("the device does not say what is allocated"));
        }
    }
    Ok(())
}

fn changes(device: &dyn BlockDevice, cut: Uuid, range: Range<u64>, runs: &mut Runs) -> io::Result<()> {
    while runs.at < range.end {
        let next = device.next_change(cut, runs.at)?.unwrap_or(range.end..range.end);
        let (start, end) = (next.start.min(range.end), next.end.min(range.end));
        if !(runs.push(start, 0) && runs.push(end, wire::STATE_DIRTY)) {
            return Ok(());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
