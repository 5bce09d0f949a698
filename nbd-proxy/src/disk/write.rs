//! The tracked write. The order of its steps is the product:
//!
//! 1. *Admit*: wait for overlapping writes in flight and for a change of mode; make the regions' intent durable if it is not;
//!    take the ranges and room for the records, in one critical section with the look at the intent, so that log order and
//!    disk order agree and no mark is cleared in between.
//! 2. *Append* the records of the whole batch with one vectored write, then wait until every earlier record of the segment
//!    is complete: a reader of the log stops at the first incomplete one, so nothing behind a gap may reach the backing.
//! 3. *Write* the backing. A write that it refuses is corrected: what is really there is read back and appended to the
//!    same segment, under the same ranges, before the error is answered.
//! 4. *Finish*: mark the bitmap, release, answer.
//!
//! Killed after 1: nothing happened. After 2: the record is there and the backing may or may not have the write;
//! recovery reads the range back and records what is really there. After 3: recorded and on the backing. A write is
//! acknowledged only after 4, so what was acknowledged is in the log and in the page cache, and both outlive the process.
//!
//! What is *not* promised: the log after a power loss (another boot voids it; see `recover`).

use std::io;
use std::ops::Range;

use rustix::io::Errno;
use uuid::Uuid;

use super::mark::unix_now;
use super::ranges::Ticket;
use super::tracker::{Mode, Reservation, Reserve};
use super::{LIMIT, TrackedDisk};
use crate::device::{BlockDevice, Capabilities, Extent, Write, ZeroMode};
use crate::log::format::MAX_DATA;
use crate::log::segment::Entry;

/// The most that is admitted together: beyond it a batch is cut, so that a segment is left with little slack.
const GROUP_BYTES: usize = 2 << 20;
const GROUP_WRITES: usize = 256;

/// The right to write some ranges, with room in the log or without a log.
struct Admission {
    ticket: Ticket,
    log: Option<Reservation>,
}

impl BlockDevice for TrackedDisk {
    fn size(&self) -> u64 {
        self.backing.size()
    }

    fn capabilities(&self) -> Capabilities {
        self.backing.capabilities()
    }

    fn try_read(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        self.backing.try_read(buf, offset)
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.backing.read(buf, offset)
    }

    fn write_batch(&self, writes: &[Write<'_>], results: &mut Vec<io::Result<()>>) {
        let mut rest = writes;
        while !rest.is_empty() {
            let (group, later) = rest.split_at(group_len(rest));
            self.write_group(group, results);
            rest = later;
        }
    }

    fn zero(&self, offset: u64, len: u64, mode: ZeroMode) -> io::Result<()> {
        // Decided before the append: a refusal must leave no record.
        if mode.fast && !self.capabilities().fast_zero {
            return Err(Errno::OPNOTSUPP.into());
        }
        let range = offset..offset + len;
        let entry = [Entry { offset, len, data: None }];
        let admission = self.admit_and_append(std::slice::from_ref(&range), &entry)?;
        let mut result = self.backing.zero(offset, len, mode);
        if is_full(&result) && self.make_room(&admission) {
            result = self.backing.zero(offset, len, mode);
        }
        if result.is_err() {
            self.correct(&admission, &range);
        }
        self.finish(&admission, std::slice::from_ref(&range));
        result
    }

    fn flush(&self) -> io::Result<()> {
        // The backing only: the log is not synced on the guest's path (it is void after a power loss anyway).
        self.flush_for_client()
    }

    fn extents(&self, offset: u64, len: u64, out: &mut Vec<Extent>) -> io::Result<()> {
        self.backing.extents(offset, len, out)
    }

    fn cache(&self, offset: u64, len: u64) -> io::Result<()> {
        self.backing.cache(offset, len)
    }

    fn cut_out(&self) -> Option<Uuid> {
        self.lock().frozen.as_ref().map(|(cut, _)| *cut)
    }

    fn next_change(&self, cut: Uuid, from: u64) -> io::Result<Option<Range<u64>>> {
        let tracker = self.lock();
        match &tracker.frozen {
            Some((out, blocks)) if *out == cut => {
                Ok(blocks.next_run(from).map(|(start, len)| start..start + len))
            }
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("the cut {cut} is not out"))),
        }
    }
}

impl TrackedDisk {
    /// Writes that do not overlap each other.
    fn write_group(&self, group: &[Write<'_>], results: &mut Vec<io::Result<()>>) {
        let ranges: Vec<_> = group.iter().map(range_of).collect();
        let entries: Vec<_> = group
            .iter()
            .map(|write| Entry { offset: write.offset, len: write.data.len() as u64, data: Some(write.data) })
            .collect();
        let admission = match self.admit_and_append(&ranges, &entries) {
            Ok(admission) => admission,
            Err(error) => {
                results.extend(group.iter().map(|_| Err(copy_of(&error))));
                return;
            }
        };
        let first = results.len();
        self.backing.write_batch(group, results);
        if results[first..].iter().any(is_full) && self.make_room(&admission) {
            for (result, write) in
                results[first..].iter_mut().zip(group).filter(|(result, _)| is_full(result))
            {
                let mut again = Vec::with_capacity(1);
                self.backing.write_batch(std::slice::from_ref(write), &mut again);
                *result = again.pop().unwrap_or_else(|| Err(Errno::NOSPC.into()));
            }
        }
        for (result, range) in results[first..].iter().zip(&ranges) {
            if result.is_err() {
                self.correct(&admission, range);
            }
        }
        self.finish(&admission, &ranges);
    }

    /// Steps 1 and 2. Fails only if the log broke and that fact could not be made durable.
    fn admit_and_append(&self, ranges: &[Range<u64>], entries: &[Entry<'_>]) -> io::Result<Admission> {
        let admission = self.admit(ranges, entries)?;
        let Some(reservation) = &admission.log else { return Ok(admission) };
        if let Err(error) = reservation.file.append(reservation.at, reservation.first, entries) {
            let stopped = self.stop_logging(&format!("the change log cannot be written: {error}"));
            return stopped.map_err(|error| self.give_up(&admission, error)).map(|()| admission);
        }
        let mut tracker = self.lock();
        tracker.appended(reservation);
        if tracker.is_in_order(reservation) == Some(false) {
            // Somebody may be waiting for this record while this one waits for an earlier.
            self.unlock(tracker);
            tracker = self.lock();
        }
        // A log that broke meanwhile is durably known as broken before a write goes on without it.
        while tracker.mode == Mode::Switching || tracker.is_in_order(reservation) == Some(false) {
            tracker = self.wait(tracker);
        }
        let broken = tracker.mode == Mode::Broken;
        self.unlock(tracker);
        if broken { Err(self.give_up(&admission, Errno::IO.into())) } else { Ok(admission) }
    }

    fn admit(&self, ranges: &[Range<u64>], entries: &[Entry<'_>]) -> io::Result<Admission> {
        let bytes = entries.iter().map(Entry::record_bytes).sum();
        let mut tracker = self.lock();
        loop {
            if tracker.mode == Mode::Switching || tracker.ranges.conflicts(ranges.iter().cloned()) {
                tracker = self.wait(tracker);
                continue;
            }
            if tracker.mode == Mode::Broken {
                self.unlock(tracker);
                self.stop_logging("")?;
                tracker = self.lock();
                continue;
            }
            let now = unix_now();
            if !tracker.intent.allows(ranges.iter().cloned(), now) {
                tracker = self.mark_intent(tracker, ranges, now)?;
                continue;
            }
            if tracker.mode == Mode::Unlogged {
                return Ok(Admission { ticket: tracker.ranges.take(ranges.iter().cloned()), log: None });
            }
            let stop = match tracker.reserve(entries.len() as u64, bytes) {
                Reserve::Ready(reservation) => {
                    let ticket = tracker.ranges.take(ranges.iter().cloned());
                    return Ok(Admission { ticket, log: Some(reservation) });
                }
                Reserve::NeedSpare => {
                    self.unlock(tracker);
                    self.make_spare().err().map(|error| format!("no new log segment: {error}"))
                }
                Reserve::Full => {
                    self.unlock(tracker);
                    Some(LIMIT.to_owned())
                }
            };
            if let Some(cause) = stop {
                self.stop_logging(&cause)?;
            }
            tracker = self.lock();
        }
    }

    /// The backing has no space left. If the log takes some of it, the log goes: the guest comes first. Returns whether the
    /// write is worth another try.
    fn make_room(&self, admission: &Admission) -> bool {
        admission.log.is_some()
            && self.folder.shares_space_with(self.backing.path())
            && self.stop_logging("no space left beside the disk: the change log gave its own back").is_ok()
    }

    /// Step 4.
    fn finish(&self, admission: &Admission, ranges: &[Range<u64>]) {
        let mut tracker = self.lock();
        tracker.mark(ranges.iter().cloned());
        if let Some(reservation) = &admission.log {
            tracker.applied(reservation);
            tracker.done(reservation);
        }
        tracker.ranges.release(admission.ticket);
        self.unlock(tracker);
    }

    /// Nothing was written: the ranges go back.
    fn give_up(&self, admission: &Admission, error: io::Error) -> io::Error {
        let mut tracker = self.lock();
        tracker.ranges.release(admission.ticket);
        self.unlock(tracker);
        error
    }

    /// The backing refused a write that has a record: the record is followed by what is really there. If that cannot be
    /// told or recorded, the log no longer says what the disk is, and logging stops.
    fn correct(&self, admission: &Admission, range: &Range<u64>) {
        let Some(reservation) = &admission.log else { return };
        let corrected = self.each_piece(range.start, range.end, |entry| {
            let extra = self.lock().reserve_after(reservation, entry.record_bytes());
            // The log is gone already: nothing of it counts.
            let Some(extra) = extra else { return Ok(()) };
            extra.file.append(extra.at, extra.first, &[entry])?;
            let mut tracker = self.lock();
            tracker.appended(&extra);
            tracker.applied(&extra);
            self.unlock(tracker);
            Ok(())
        });
        if let Err(error) = corrected {
            let cause = format!("a failed write could not be read back: {error}");
            if let Err(error) = self.stop_logging(&cause) {
                tracing::error!(disk = self.label(), %error, "the broken log could not be marked as such");
            }
        }
    }

    /// Gives what is really on the backing in `[start, end)` to `take`, as entries of at most [`MAX_DATA`].
    pub(super) fn each_piece(
        &self,
        start: u64,
        end: u64,
        mut take: impl FnMut(Entry<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut buf = Vec::new();
        let mut at = start;
        while at < end {
            let mut extents = Vec::new();
            self.backing.extents(at, end - at, &mut extents)?;
            for extent in extents {
                let stop = extent.offset + extent.len;
                if extent.hole {
                    take(Entry { offset: extent.offset, len: extent.len, data: None })?;
                    at = stop;
                    continue;
                }
                while at < stop {
                    let len = (stop - at).min(MAX_DATA);
                    buf.resize(usize::try_from(len).map_err(io::Error::other)?, 0);
                    self.backing.read(&mut buf, at)?;
                    take(Entry { offset: at, len, data: Some(&buf) })?;
                    at += len;
                }
            }
        }
        Ok(())
    }
}

fn is_full(result: &io::Result<()>) -> bool {
    matches!(result, Err(error) if error.raw_os_error() == Some(Errno::NOSPC.raw_os_error()))
}

fn range_of(write: &Write<'_>) -> Range<u64> {
    write.offset..write.offset + write.data.len() as u64
}

/// How many writes from the front may be admitted together: bounded, and not overlapping each other.
fn group_len(writes: &[Write<'_>]) -> usize {
    let mut bytes = 0;
    let mut len = 0;
    for write in writes.iter().take(GROUP_WRITES) {
        let range = range_of(write);
        let clash =
            writes[..len].iter().map(range_of).any(|held| range.start < held.end && held.start < range.end);
        bytes += write.data.len();
        if len > 0 && (clash || bytes > GROUP_BYTES) {
            break;
        }
        len += 1;
    }
    len
}

/// The same error for each write of a group.
fn copy_of(error: &io::Error) -> io::Error {
    error
        .raw_os_error()
        .map_or_else(|| io::Error::new(error.kind(), error.to_string()), io::Error::from_raw_os_error)
}
