//! Wire constants, limits and the errno table.
//!
//! All integers on the wire are big-endian. Numbers are those of the protocol document; names follow it, so that a
//! reader can look them up.

use std::io;

/// Names a request; the client chose it and gets it back.
pub type Cookie = u64;

/// First eight bytes from the server: `NBDMAGIC`.
pub const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second eight bytes from the server, and before every option: `IHAVEOPT`.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Before every option reply.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Before every request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Before every simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Before every chunk of a structured reply.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Before every request with an extended header.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// Before every chunk with an extended header.
pub const EXTENDED_CHUNK_MAGIC: u32 = 0x6e8a_278c;

/// Bytes of a request header.
pub const REQUEST_LEN: usize = 28;
/// Bytes of an extended request header.
pub const EXTENDED_REQUEST_LEN: usize = 32;
/// Bytes of a simple reply, data not counted.
pub const SIMPLE_REPLY_LEN: usize = 16;
/// Bytes of a chunk header, payload not counted.
pub const CHUNK_LEN: usize = 20;
/// Bytes of an extended chunk header, payload not counted.
pub const EXTENDED_CHUNK_LEN: usize = 32;
/// The most bytes that a reply has besides its data: an extended [`chunk::OFFSET_HOLE`].
pub const MAX_HEAD: usize = EXTENDED_CHUNK_LEN + 12;

/// Longest string the protocol allows: export names, context names, error messages.
pub const MAX_STRING: usize = 4096;
/// Payload of one request that we advertise.
pub const MAX_PAYLOAD_ADVERTISED: u32 = 32 << 20;
/// Payload of one request that we accept: clients in the wild send more than anyone advertises.
pub const MAX_PAYLOAD: u32 = 64 << 20;
/// Payload of a refused request that is read off the stream; a header that announces more ends the connection.
pub const MAX_DRAINED: u64 = u32::MAX as u64;
/// Option payload that is kept to be parsed; a longer one is read, thrown away and answered with an error.
pub const MAX_OPTION: u32 = 64 << 10;
/// Option payload that is read at all; beyond it the connection is dropped.
pub const MAX_OPTION_SKIPPED: u32 = 4 << 20;
/// Options in one handshake.
pub const MAX_OPTIONS: u32 = 256;

/// Flags of the handshake; the client's answer uses the same bits.
pub mod handshake {
    /// Options may be refused without dropping the connection.
    pub const FIXED_NEWSTYLE: u16 = 1 << 0;
    /// No 124 zero bytes after the answer to EXPORT_NAME.
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// Option numbers.
pub mod opt {
    /// Choose an export, the old way: cannot be refused.
    pub const EXPORT_NAME: u32 = 1;
    /// End the handshake.
    pub const ABORT: u32 = 2;
    /// Name all exports.
    pub const LIST: u32 = 3;
    /// Ask for TLS.
    pub const STARTTLS: u32 = 5;
    /// Ask about an export.
    pub const INFO: u32 = 6;
    /// Choose an export.
    pub const GO: u32 = 7;
    /// Allow structured replies.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// Which contexts an export has.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Choose contexts.
    pub const SET_META_CONTEXT: u32 = 10;
    /// Allow 64-bit lengths.
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Types of option replies.
pub mod rep {
    /// Done.
    pub const ACK: u32 = 1;
    /// One export of LIST.
    pub const SERVER: u32 = 2;
    /// One information item of INFO or GO.
    pub const INFO: u32 = 3;
    /// One context.
    pub const META_CONTEXT: u32 = 4;
    /// The option is not supported.
    pub const ERR_UNSUP: u32 = (1 << 31) + 1;
    /// The server's owner does not allow it.
    pub const ERR_POLICY: u32 = (1 << 31) + 2;
    /// The option's payload makes no sense, or it comes at the wrong time.
    pub const ERR_INVALID: u32 = (1 << 31) + 3;
    /// TLS must be begun first.
    pub const ERR_TLS_REQD: u32 = (1 << 31) + 5;
    /// No such export.
    pub const ERR_UNKNOWN: u32 = (1 << 31) + 6;
    /// The option's payload is too large to be looked at.
    pub const ERR_TOO_BIG: u32 = (1 << 31) + 9;
    /// Extended headers rule this option out.
    pub const ERR_EXT_HEADER_REQD: u32 = (1 << 31) + 10;
}

/// Information types of INFO and GO.
pub mod info {
    /// Size and flags; always sent.
    pub const EXPORT: u16 = 0;
    /// The export's own name.
    pub const NAME: u16 = 1;
    /// A sentence for people.
    pub const DESCRIPTION: u16 = 2;
    /// Minimum, preferred and maximum block size.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags: what an export can do.
pub mod tflag {
    /// The field has a meaning; always set.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// Writes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// FLUSH is understood.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// The FUA flag is understood.
    pub const SEND_FUA: u16 = 1 << 3;
    /// A rotating disk.
    pub const ROTATIONAL: u16 = 1 << 4;
    /// TRIM is understood.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// WRITE_ZEROES is understood.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// The DF flag is understood.
    pub const SEND_DF: u16 = 1 << 7;
    /// A FLUSH on one connection covers the writes replied to on all.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// CACHE is understood.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// The FAST_ZERO flag is understood.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
    /// BLOCK_STATUS may name the contexts it asks about.
    pub const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;
}

/// Commands of the transmission phase.
pub mod cmd {
    /// Read bytes.
    pub const READ: u16 = 0;
    /// Write bytes.
    pub const WRITE: u16 = 1;
    /// Say goodbye.
    pub const DISC: u16 = 2;
    /// Make durable what was replied to.
    pub const FLUSH: u16 = 3;
    /// Give space back.
    pub const TRIM: u16 = 4;
    /// Bring into the cache.
    pub const CACHE: u16 = 5;
    /// Write zeroes without sending them.
    pub const WRITE_ZEROES: u16 = 6;
    /// Ask about allocation.
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of a command.
pub mod cflag {
    /// Durable before the reply.
    pub const FUA: u16 = 1 << 0;
    /// WRITE_ZEROES keeps the space.
    pub const NO_HOLE: u16 = 1 << 1;
    /// READ is answered in one content chunk.
    pub const DF: u16 = 1 << 2;
    /// BLOCK_STATUS is answered with one extent.
    pub const REQ_ONE: u16 = 1 << 3;
    /// WRITE_ZEROES fails unless it is fast.
    pub const FAST_ZERO: u16 = 1 << 4;
    /// With extended headers: the length is that of a payload behind the header.
    pub const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Chunks of structured replies.
pub mod chunk {
    /// The last chunk of its reply.
    pub const DONE: u16 = 1 << 0;
    /// No content.
    pub const NONE: u16 = 0;
    /// Bytes at an offset.
    pub const OFFSET_DATA: u16 = 1;
    /// Zeroes at an offset.
    pub const OFFSET_HOLE: u16 = 2;
    /// Extents of one context.
    pub const BLOCK_STATUS: u16 = 5;
    /// Extents of one context, with 64-bit lengths.
    pub const BLOCK_STATUS_EXT: u16 = 6;
    /// The request failed.
    pub const ERROR: u16 = (1 << 15) + 1;
}

/// The context of what is allocated.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// Its id once selected.
pub const BASE_ALLOCATION_ID: u32 = 1;
/// Status bits of `base:allocation`: nothing allocated, reads as zero.
pub const STATE_HOLE_ZERO: u32 = 0b11;
/// What stands before the id of a cut in the name of the context of its changes.
pub const DIRTY_BITMAP: &str = "qemu:dirty-bitmap:";
/// The id of that context once selected.
pub const DIRTY_BITMAP_ID: u32 = 2;
/// Status bit of `qemu:dirty-bitmap:`: changed.
pub const STATE_DIRTY: u32 = 1;

/// The only errors that may stand on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Errno {
    /// Not permitted; also read-only.
    Perm = 1,
    /// The device failed.
    Io = 5,
    /// Out of memory.
    NoMem = 12,
    /// The request makes no sense.
    Inval = 22,
    /// No space; also past the end for writes.
    NoSpc = 28,
    /// Too large for one reply.
    Overflow = 75,
    /// Not supported; only a refused FAST_ZERO.
    NotSup = 95,
    /// The server is going away.
    Shutdown = 108,
}

impl Errno {
    /// The number on the wire.
    pub const fn code(self) -> u32 {
        self as u32
    }
}

impl From<&io::Error> for Errno {
    /// What a device said, in the wire's few words: anything unknown is EIO.
    fn from(error: &io::Error) -> Self {
        use io::ErrorKind as Kind;
        match error.kind() {
            Kind::PermissionDenied | Kind::ReadOnlyFilesystem => Self::Perm,
            Kind::OutOfMemory => Self::NoMem,
            Kind::InvalidInput => Self::Inval,
            Kind::StorageFull | Kind::QuotaExceeded | Kind::FileTooLarge => Self::NoSpc,
            Kind::Unsupported => Self::NotSup,
            _ => match error.raw_os_error() {
                Some(75) => Self::Overflow,
                Some(95) => Self::NotSup,
                Some(108) => Self::Shutdown,
                _ => Self::Io,
            },
        }
    }
}
