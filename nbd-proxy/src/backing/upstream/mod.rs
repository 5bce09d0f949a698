//! An export of another NBD server as a backing: so QEMU's formats come behind us, served by `qemu-nbd`.
//!
//! Read in this order: `address` (what is written in the configuration), `stream` and `link` (one connection), `session` (the same
//! disk over many, and what a lost one means), `blocks` (servers of whole blocks), `claim` (one Lifeboat per upstream), and this, the device.
//!
//! * One connection, many requests in flight on it: a batch of writes is sent as a whole before any of it is waited for. More
//!   connections would need MULTI_CONN, and make "lost" a question of which; servers of one image answer one as fast.
//! * What the server does not have is made of what it has: FUA by a flush, zeroes by writes. Without FLUSH nothing is durable: such
//!   a server is refused, unless the disk is read-only.
//! * Our TRIM is the server's WRITE_ZEROES with permission to punch, and never its TRIM, which promises nothing about what is read
//!   afterwards while the log says that it is zero. FAST_ZERO is not offered: the server would decide after the record is written.
//! * A kill of the proxy tells nothing about the server, so [`Backing::loses_alone`]: whatever ended unclean is compared.
//! * Memory: reads and writes go in pieces of 1 MiB at most, a connection has one receive buffer, an answer about allocation takes
//!   at most 8 MiB while it is taken in.

mod address;
mod blocks;
mod claim;
mod link;
mod session;
mod stream;

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::io::Errno;

pub use self::address::{Address, Place};
use self::blocks::{Held, around, within};
use self::claim::Claim;
use self::link::{Effect, Request, Slot};
use self::session::Session;
use super::{Access, Backing, Identity, Watcher};
use crate::client::handshake::Agreed;
use crate::device::{BlockDevice, Capabilities, Extent, Write, ZeroMode};
use crate::nbd::answer::{Answer, Question};
use crate::nbd::wire::{STATE_HOLE_ZERO, cflag, cmd, tflag};
use crate::{Error, Kind, Result};

/// The most bytes of one read or write.
const PIECE: u64 = 1 << 20;
/// The most bytes of one write of zeroes: a server without a fast way has to be done within the reply timeout.
const ZERO_PIECE: u64 = 64 << 20;
/// The most bytes, and the most questions, of one look at what is allocated.
const STATUS_PIECE: u64 = 1 << 30;
const QUESTIONS: usize = 64;
const EXTENTS: usize = 4096;
/// How often a change that has to be durable is made again because the connection was lost before its flush.
const AGAIN: usize = 3;

/// How patient the disk is with its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How long requests wait for a server that is away before they fail.
    pub reconnect_delay: Duration,
    /// How long a request may go unanswered before the connection is given up.
    pub reply_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { reconnect_delay: Duration::from_secs(60), reply_timeout: Duration::from_secs(120) }
    }
}

/// See the module.
#[derive(Debug)]
pub struct UpstreamDisk {
    session: Arc<Session>,
    thread: Option<JoinHandle<()>>,
    path: PathBuf,
    access: Access,
    agreed: Agreed,
    found: Identity,
    held: Held,
    _claim: Option<Claim>,
}

impl UpstreamDisk {
    /// Connects to the export at `path`, and makes durable what an earlier client left behind.
    ///
    /// # Errors
    /// `InUse` (another Lifeboat has it), `Unavailable`, `NotFound` (no such export), `InvalidInput` (read-only, empty, or not
    /// to be relied on), `Corrupt` (no NBD server).
    pub fn open(path: &Path, access: Access, settings: Settings) -> Result<Self> {
        let address = Address::parse(path)?;
        let writable = access == Access::ReadWrite;
        let claim = writable.then(|| Claim::take(&address)).transpose()?;
        let session = Arc::new(Session::open(address, settings, writable)?);
        let agreed = session.agreed;
        check(path, &agreed, writable)?;
        let mut disk = Self {
            thread: None,
            path: path.to_owned(),
            access,
            agreed,
            found: Identity::of_size(agreed.size),
            held: Held::default(),
            _claim: claim,
            session,
        };
        let session = Arc::clone(&disk.session);
        let thread = thread::Builder::new().name("upstream".into()).spawn(move || session.run());
        disk.thread = Some(thread.map_err(|error| Error::io("start a thread for", path, error))?);
        disk.flush().map_err(|error| Error::io("flush", path, error))?;
        Ok(disk)
    }

    fn block(&self) -> u64 {
        u64::from(self.agreed.minimum_block)
    }

    /// `[offset, offset + len)` in pieces that are one request each, cut at whole blocks.
    fn pieces(&self, offset: u64, len: u64, most: u64) -> impl Iterator<Item = Range<u64>> + use<> {
        let (mut at, end) = (offset, offset + len);
        let mut cut = offset / self.block() * self.block();
        std::iter::from_fn(move || {
            cut += most;
            let start = std::mem::replace(&mut at, cut.min(end));
            (start < end).then_some(start..at)
        })
    }

    fn piece(&self) -> u64 {
        PIECE.min(u64::from(self.agreed.maximum_payload)) & !(self.block() - 1)
    }

    /// Whole blocks.
    fn read_blocks(&self, range: &Range<u64>) -> io::Result<Vec<u8>> {
        let (offset, len) = (range.start, length(range)?);
        let question = Question::Read { offset, len: usize::try_from(len).map_err(io::Error::other)? };
        let read = Request { command: cmd::READ, flags: 0, offset, len, payload: &[], question };
        match self.session.perform(&read, Effect::None)? {
            Answer::Data(data) => Ok(data),
            Answer::Done | Answer::Runs(_) => Err(Errno::IO.into()),
        }
    }

    /// One piece of a write, whatever its bounds.
    fn write_piece(&self, range: &Range<u64>, data: &[u8]) -> io::Result<()> {
        let whole = around(range.start, range.end - range.start, self.block());
        let _hold = (self.block() > 1).then(|| self.held.take(whole.clone()));
        let mut patched = Vec::new();
        if whole != *range {
            patched = self.read_blocks(&whole)?;
            let at = usize::try_from(range.start - whole.start).map_err(io::Error::other)?;
            patched.get_mut(at..at + data.len()).ok_or(Errno::IO)?.copy_from_slice(data);
        }
        let payload = if patched.is_empty() { data } else { &patched };
        let (write, effect) = self.write_request(whole.start, payload, false)?;
        self.session.perform(&write, effect).map(drop)
    }

    fn write_request<'a>(
        &self,
        offset: u64,
        payload: &'a [u8],
        fua: bool,
    ) -> io::Result<(Request<'a>, Effect)> {
        let len = u32::try_from(payload.len()).map_err(io::Error::other)?;
        let (flags, question) = (if fua { cflag::FUA } else { 0 }, Question::Plain);
        let write = Request { command: cmd::WRITE, flags, offset, len, payload, question };
        Ok((write, Effect::Change { durable: fua }))
    }

    /// A write by itself, durable or not.
    fn write_one(&self, write: &Write<'_>) -> io::Result<()> {
        let change = || -> io::Result<()> {
            let mut rest = write.data;
            self.pieces(write.offset, write.data.len() as u64, self.piece()).try_for_each(|range| {
                let len = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
                let (now, later) = rest.split_at_checked(len).ok_or(Errno::IO)?;
                rest = later;
                self.write_piece(&range, now)
            })
        };
        if write.fua { self.durably(change) } else { change() }
    }

    /// Makes a change and flushes, again if what it covers may have been lost in between.
    fn durably(&self, mut change: impl FnMut() -> io::Result<()>) -> io::Result<()> {
        let mut result = Ok(());
        for _ in 0..AGAIN {
            let losses = self.session.losses();
            change()?;
            result = self.session.flush();
            if result.is_ok() || self.session.losses() == losses {
                return result;
            }
        }
        result
    }

    /// Whole blocks.
    fn zero_blocks(&self, range: &Range<u64>, punch: bool) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let _hold = (self.block() > 1).then(|| self.held.take(range.clone()));
        let (flags, question) = (if punch { 0 } else { cflag::NO_HOLE }, Question::Plain);
        self.pieces(range.start, range.end - range.start, ZERO_PIECE).try_for_each(|piece| {
            let (offset, len) = (piece.start, length(&piece)?);
            let zero = Request { command: cmd::WRITE_ZEROES, flags, offset, len, payload: &[], question };
            self.session.perform(&zero, Effect::Change { durable: false }).map(drop)
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        let zeroes = vec![0; usize::try_from(len.min(PIECE)).map_err(io::Error::other)?];
        self.pieces(offset, len, PIECE).try_for_each(|range| {
            let len = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
            self.write_one(&Write { offset: range.start, data: &zeroes[..len], fua: false })
        })
    }

    /// Waits for the writes of a batch that were sent.
    fn settle(&self, sent: &mut Vec<Sent<'_>>, results: &mut [io::Result<()>]) {
        for Sent { index, request, effect, slot } in sent.drain(..) {
            let done = slot.and_then(|slot| self.session.finish(&request, effect, slot));
            if let (Err(error), Some(result)) = (done, results.get_mut(index)) {
                *result = Err(error);
            }
        }
    }
}

/// A write on its way: the index of its result, and what it was sent as.
struct Sent<'a> {
    index: usize,
    request: Request<'a>,
    effect: Effect,
    slot: io::Result<Arc<Slot>>,
}

fn length(range: &Range<u64>) -> io::Result<u32> {
    u32::try_from(range.end - range.start).map_err(io::Error::other)
}

/// Refuses what cannot carry a disk.
fn check(path: &Path, agreed: &Agreed, writable: bool) -> Result<()> {
    let wrong = |message: &str, remedy: &str| {
        Err(Error::new(Kind::InvalidInput, path.display().to_string(), message).remedy(remedy))
    };
    if agreed.size == 0 {
        return wrong("cannot use as a disk: it is empty", "name an export that has a size");
    }
    if !agreed.size.is_multiple_of(u64::from(agreed.minimum_block)) {
        let message = format!(
            "its size of {} bytes is not a multiple of its minimum block of {}: the end cannot be reached",
            agreed.size, agreed.minimum_block
        );
        return wrong(&message, "have the server serve it with a smaller minimum block size");
    }
    if writable && agreed.has(tflag::READ_ONLY) {
        let remedy = "have the server serve it writable, or set read_only = true for this disk";
        return wrong("the server serves it read-only", remedy);
    }
    if writable && !agreed.has(tflag::SEND_FLUSH) {
        let remedy = "have the server offer FLUSH (nbd-server: flush = true)";
        return wrong("the server has no FLUSH: nothing that is written could be made durable", remedy);
    }
    Ok(())
}

impl Backing for UpstreamDisk {
    fn path(&self) -> &Path {
        &self.path
    }

    fn found(&self) -> &Identity {
        &self.found
    }

    fn identity(&self) -> Result<Identity> {
        Ok(self.found.clone())
    }

    fn drop_cache(&self) {}

    fn file(&self) -> Option<&Path> {
        None
    }

    fn tells_changes(&self) -> bool {
        false
    }

    fn loses_alone(&self) -> bool {
        true
    }

    fn server(&self) -> Option<String> {
        self.session.server()
    }

    fn watch(&self, watcher: Weak<dyn Watcher>) {
        self.session.watch(watcher);
    }

    fn trouble(&self) -> Option<String> {
        self.session.trouble()
    }
}

impl BlockDevice for UpstreamDisk {
    fn size(&self) -> u64 {
        self.agreed.size
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            read_only: self.access == Access::ReadOnly,
            trim: self.agreed.has(tflag::SEND_WRITE_ZEROES),
            fast_zero: false,
            rotational: self.agreed.has(tflag::ROTATIONAL),
            preferred_block: self.agreed.preferred_block,
        }
    }

    fn try_read(&self, _: &mut [u8], _: u64) -> io::Result<bool> {
        Ok(false)
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let mut rest = buf;
        for range in self.pieces(offset, rest.len() as u64, self.piece()) {
            let whole = around(range.start, range.end - range.start, self.block());
            let data = self.read_blocks(&whole)?;
            let len = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
            let at = usize::try_from(range.start - whole.start).map_err(io::Error::other)?;
            let (now, later) = rest.split_at_mut_checked(len).ok_or(Errno::IO)?;
            now.copy_from_slice(data.get(at..at + len).ok_or(Errno::IO)?);
            rest = later;
        }
        Ok(())
    }

    fn write_batch(&self, writes: &[Write<'_>], results: &mut Vec<io::Result<()>>) {
        let first = results.len();
        let mut sent: Vec<Sent<'_>> = Vec::new();
        for write in writes {
            let (start, end) = (write.offset, write.offset + write.data.len() as u64);
            let meets = |other: &Sent<'_>| {
                start < other.request.offset + u64::from(other.request.len) && other.request.offset < end
            };
            let alone = self.block() > 1
                || write.data.len() as u64 > self.piece()
                || (write.fua && !self.agreed.has(tflag::SEND_FUA));
            // A server may take up requests in any order.
            if alone || sent.iter().any(meets) {
                self.settle(&mut sent, &mut results[first..]);
            }
            if alone {
                results.push(self.write_one(write));
                continue;
            }
            let index = results.len() - first;
            results.push(self.write_request(write.offset, write.data, write.fua).map(|(request, effect)| {
                let slot = self.session.begin(&request, effect);
                sent.push(Sent { index, request, effect, slot });
            }));
        }
        self.settle(&mut sent, &mut results[first..]);
    }

    fn zero(&self, offset: u64, len: u64, mode: ZeroMode) -> io::Result<()> {
        if mode.fast {
            return Err(Errno::OPNOTSUPP.into());
        }
        let change = || {
            if !self.agreed.has(tflag::SEND_WRITE_ZEROES) {
                return self.write_zeroes(offset, len);
            }
            let end = offset + len;
            let body = within(offset, len, self.block());
            if body.is_empty() {
                return self.write_zeroes(offset, len);
            }
            self.write_zeroes(offset, body.start - offset)?;
            self.zero_blocks(&body, mode.punch)?;
            self.write_zeroes(body.end, end - body.end)
        };
        if mode.fua { self.durably(change) } else { change() }
    }

    fn flush(&self) -> io::Result<()> {
        if self.access == Access::ReadOnly { Ok(()) } else { self.session.flush() }
    }

    fn extents(&self, offset: u64, len: u64, out: &mut Vec<Extent>) -> io::Result<()> {
        let end = offset + len;
        let mut at = offset;
        let Some(context) = self.agreed.allocation else {
            out.push(Extent { offset, len, hole: false });
            return Ok(());
        };
        for _ in 0..QUESTIONS {
            if at >= end || out.len() >= EXTENTS {
                break;
            }
            let asked = around(at, (end - at).min(STATUS_PIECE), self.block());
            let question = Question::Status { context };
            let (offset, len) = (asked.start, length(&asked)?);
            let ask = Request { command: cmd::BLOCK_STATUS, flags: 0, offset, len, payload: &[], question };
            let Answer::Runs(runs) = self.session.perform(&ask, Effect::None)? else {
                return Err(Errno::IO.into());
            };
            let mut from = asked.start;
            for (run, status) in runs {
                from += u64::from(run);
                let stop = from.min(end);
                if stop > at {
                    let hole = status & STATE_HOLE_ZERO == STATE_HOLE_ZERO;
                    push(out, Extent { offset: at, len: stop - at, hole });
                    at = stop;
                }
            }
        }
        if at == offset {
            out.push(Extent { offset, len, hole: false });
        }
        Ok(())
    }

    fn cache(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
}

/// Joins it to the last one if it can.
fn push(out: &mut Vec<Extent>, extent: Extent) {
    match out.last_mut() {
        Some(last) if last.hole == extent.hole && last.offset + last.len == extent.offset => {
            last.len += extent.len;
        }
        _ => out.push(extent),
    }
}

impl Drop for UpstreamDisk {
    fn drop(&mut self) {
        self.session.close();
        if let Some(thread) = self.thread.take()
            // Told of a loss, its thread may be the last to have held the disk.
            && thread.thread().id() != thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
