//! The narrow waist of the data path: a block device.
//!
//! The NBD server sees nothing else; backings, the tracked disk, test devices and (in the layer above) a recovery
//! point implement it. Devices stack as decorators. All methods take `&self` and are called from many threads at
//! once. Ranges have been validated against [`BlockDevice::size`] by the server's gate before they get here: an
//! implementation may assert, and need not check.
//!
//! Errors are `io::Error`; the server turns the errno into the wire's few (anything unknown becomes EIO).

use std::io;
use std::ops::Range;

use uuid::Uuid;

/// What a device can promise; constant while it is open. Each becomes an NBD transmission flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Writes, zeroes and trims fail with EPERM.
    pub read_only: bool,
    /// [`ZeroMode::punch`] gives space back, so TRIM is worth advertising.
    pub trim: bool,
    /// [`ZeroMode::fast`] can be decided before anything is written.
    pub fast_zero: bool,
    /// The backing is a rotating disk.
    pub rotational: bool,
    /// Preferred I/O size in bytes, a power of two.
    pub preferred_block: u32,
}

/// One write of a batch. The data is the client's buffer: it is valid only during the call.
#[derive(Clone, Copy, Debug)]
pub struct Write<'a> {
    /// Byte offset on the device.
    pub offset: u64,
    /// What to write; never empty, at most 1 MiB.
    pub data: &'a [u8],
    /// Force unit access: durable before the result is `Ok`.
    pub fua: bool,
}

/// How a range is to be made zero. It reads back as zero whatever the mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZeroMode {
    /// Space may be given back (TRIM, or WRITE_ZEROES without NO_HOLE).
    pub punch: bool,
    /// Fail with ENOTSUP (EOPNOTSUPP), changing nothing, unless this is truly faster than writing zeroes.
    pub fast: bool,
    /// Force unit access: durable before the result is `Ok`.
    pub fua: bool,
}

/// A run of bytes with one allocation status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Extent {
    /// Byte offset on the device.
    pub offset: u64,
    /// Length in bytes, never zero.
    pub len: u64,
    /// Nothing is allocated here and it reads as zero. `false` is always legal.
    pub hole: bool,
}

/// A disk as the data path sees it.
pub trait BlockDevice: Send + Sync {
    /// Size in bytes; constant while open.
    fn size(&self) -> u64;

    /// What this device can promise; constant while open.
    fn capabilities(&self) -> Capabilities;

    /// Fills `buf` from `offset` if that needs no waiting (page cache). `Ok(false)` means it would wait and `buf` is
    /// unspecified: call [`BlockDevice::read`] where waiting is allowed.
    fn try_read(&self, buf: &mut [u8], offset: u64) -> io::Result<bool>;

    /// Fills `buf` from `offset`; may wait.
    fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Performs `writes` and pushes one result for each, in their order, onto `results`.
    ///
    /// Writes of one batch that overlap are performed in batch order. On return each `Ok` write is visible to
    /// readers; it is durable only if it had `fua`. A failed write may be torn, but every later read of a block gives
    /// either its old or its new bytes.
    fn write_batch(&self, writes: &[Write<'_>], results: &mut Vec<io::Result<()>>);

    /// Makes a range read as zero. Never allocates by `len`.
    fn zero(&self, offset: u64, len: u64, mode: ZeroMode) -> io::Result<()>;

    /// Returns when every write whose result was delivered before the call began is durable. A failure is final: every
    /// later flush of this device fails as well.
    fn flush(&self) -> io::Result<()>;

    /// Appends the allocation of `[offset, offset + len)` to `out`: consecutive, non-empty, covering from `offset` on,
    /// adjacent equal ones merged; it may stop early after at least one extent (a long answer is asked for again).
    fn extents(&self, offset: u64, len: u64, out: &mut Vec<Extent>) -> io::Result<()>;

    /// Asks for a range to be brought into the cache; a hint.
    fn cache(&self, offset: u64, len: u64) -> io::Result<()>;

    /// The cut that is out, if the device has cuts and one is: its id, for [`BlockDevice::next_change`].
    fn cut_out(&self) -> Option<Uuid> {
        None
    }

    /// The first run of bytes at or after `from` that was written in the interval which `cut` ended; `None` if there is
    /// none. It may begin before `from` and reach past the end of the device, for blocks are counted.
    ///
    /// # Errors
    /// `InvalidInput` when that cut is not out (any more): what was written in its interval is not known.
    fn next_change(&self, cut: Uuid, _from: u64) -> io::Result<Option<Range<u64>>> {
        Err(io::Error::new(io::ErrorKind::InvalidInput, format!("the cut {cut} is not out")))
    }
}
