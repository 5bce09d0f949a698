//! Devices for tests: memory that keeps the contract and counts, with faults on request.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};

use uuid::Uuid;

use crate::device::{BlockDevice, Capabilities, Extent, Write, ZeroMode};

/// Blocks of this size are allocated or holes.
pub const BLOCK: usize = 4096;

/// A device in memory.
pub struct MemDevice {
    pub data: Mutex<Vec<u8>>,
    allocated: Mutex<Vec<bool>>,
    pub capabilities: Capabilities,
    /// `try_read` says that it would wait.
    pub cold: AtomicBool,
    /// Reads and writes that touch this byte fail with the errno.
    pub bad_byte: AtomicU64,
    pub bad_errno: AtomicUsize,
    /// Reads, writes of single workers and flushes wait while this is held.
    pub gate: Gate,
    pub batches: Mutex<Vec<usize>>,
    pub flushes: AtomicUsize,
    pub durable_writes: AtomicUsize,
    pub zeroes: Mutex<Vec<(u64, u64, ZeroMode)>>,
    /// The cut that is out, and where what changed before it begins and ends.
    pub changes: Mutex<Option<Changes>>,
}

type Changes = (Uuid, Vec<(u64, u64)>);

/// Something that waits until it is opened.
#[derive(Default)]
pub struct Gate {
    shut: Mutex<bool>,
    waiting: AtomicUsize,
    changed: Condvar,
}

impl Gate {
    pub fn shut(&self) {
        *self.shut.lock().unwrap() = true;
    }

    pub fn open(&self) {
        *self.shut.lock().unwrap() = false;
        self.changed.notify_all();
    }

    /// How many wait now.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    fn pass(&self) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let mut shut = self.shut.lock().unwrap();
        while *shut {
            shut = self.changed.wait(shut).unwrap();
        }
        drop(shut);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

impl MemDevice {
    /// A device of `size` zero bytes, all of it a hole.
    pub fn new(size: usize) -> Self {
        Self {
            data: Mutex::new(vec![0; size]),
            allocated: Mutex::new(vec![false; size.div_ceil(BLOCK)]),
            capabilities: Capabilities {
                read_only: false,
                trim: true,
                fast_zero: true,
                rotational: false,
                preferred_block: 4096,
            },
            cold: AtomicBool::new(false),
            bad_byte: AtomicU64::new(u64::MAX),
            bad_errno: AtomicUsize::new(5),
            gate: Gate::default(),
            batches: Mutex::default(),
            flushes: AtomicUsize::new(0),
            durable_writes: AtomicUsize::new(0),
            zeroes: Mutex::default(),
            changes: Mutex::default(),
        }
    }

    fn check(&self, offset: u64, len: usize) -> io::Result<()> {
        let bad = self.bad_byte.load(Ordering::SeqCst);
        if bad >= offset && bad - offset < len as u64 {
            let errno = i32::try_from(self.bad_errno.load(Ordering::SeqCst)).unwrap();
            return Err(io::Error::from_raw_os_error(errno));
        }
        Ok(())
    }

    fn range(offset: u64, len: usize) -> std::ops::Range<usize> {
        let start = usize::try_from(offset).unwrap();
        start..start + len
    }

    fn write(&self, write: &Write<'_>) -> io::Result<()> {
        assert!(!write.data.is_empty() && write.data.len() <= 1 << 20, "the contract of a write");
        if write.fua {
            self.gate.pass();
            self.durable_writes.fetch_add(1, Ordering::SeqCst);
        }
        self.check(write.offset, write.data.len())?;
        let range = Self::range(write.offset, write.data.len());
        self.allocated.lock().unwrap()[range.start / BLOCK..range.end.div_ceil(BLOCK)].fill(true);
        self.data.lock().unwrap()[range].copy_from_slice(write.data);
        Ok(())
    }
}

impl BlockDevice for MemDevice {
    fn size(&self) -> u64 {
        self.data.lock().unwrap().len() as u64
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn try_read(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        if self.cold.load(Ordering::SeqCst) {
            return Ok(false);
        }
        self.check(offset, buf.len())?;
        buf.copy_from_slice(&self.data.lock().unwrap()[Self::range(offset, buf.len())]);
        Ok(true)
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.gate.pass();
        self.check(offset, buf.len())?;
        buf.copy_from_slice(&self.data.lock().unwrap()[Self::range(offset, buf.len())]);
        Ok(())
    }

    fn write_batch(&self, writes: &[Write<'_>], results: &mut Vec<io::Result<()>>) {
        self.batches.lock().unwrap().push(writes.len());
        results.extend(writes.iter().map(|write| self.write(write)));
    }

    fn zero(&self, offset: u64, len: u64, mode: ZeroMode) -> io::Result<()> {
        self.zeroes.lock().unwrap().push((offset, len, mode));
        let len = usize::try_from(len).unwrap();
        self.check(offset, len)?;
        let range = Self::range(offset, len);
        if mode.punch {
            let whole = range.start.div_ceil(BLOCK)..range.end / BLOCK;
            if !whole.is_empty() {
                self.allocated.lock().unwrap()[whole].fill(false);
            }
        }
        self.data.lock().unwrap()[range].fill(0);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.gate.pass();
        self.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn extents(&self, offset: u64, len: u64, out: &mut Vec<Extent>) -> io::Result<()> {
        let allocated = self.allocated.lock().unwrap();
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let block = usize::try_from(at).unwrap() / BLOCK;
            let stop = ((block + 1) * BLOCK) as u64;
            let (len, hole) = (stop.min(end) - at, !allocated[block]);
            match out.last_mut() {
                Some(last) if last.hole == hole && last.offset + last.len == at && last.offset >= offset => {
                    last.len += len;
                }
                _ => out.push(Extent { offset: at, len, hole }),
            }
            at += len;
        }
        Ok(())
    }

    fn cache(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn cut_out(&self) -> Option<Uuid> {
        self.changes.lock().unwrap().as_ref().map(|(cut, _)| *cut)
    }

    fn next_change(&self, cut: Uuid, from: u64) -> io::Result<Option<Range<u64>>> {
        let changes = self.changes.lock().unwrap();
        let (_, ranges) =
            changes.as_ref().filter(|(out, _)| *out == cut).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(ranges.iter().find(|(_, end)| *end > from).map(|(start, end)| *start..*end))
    }
}
