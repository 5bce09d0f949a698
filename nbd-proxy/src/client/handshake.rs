//! A client's handshake: fixed newstyle, an export chosen by GO, or by EXPORT_NAME where a server does not know GO.
//!
//! The server is not trusted: every length is bounded before anything is allocated, answers to an option are counted, and
//! what it tells of the export must make sense. What the caller would like and the server does not have is not an error here.

use std::io::{Read, Write};

use super::lost;
use crate::nbd::wire::{self, info, opt, rep, tflag};
use crate::{Error, Kind, Result};

/// The most bytes of one option reply, and the most replies to one option.
const OPTION_REPLY_MAX: u32 = wire::MAX_OPTION;
pub(super) const OPTION_REPLIES_MAX: usize = 64;
/// What follows the answer to EXPORT_NAME, unless both sides agreed to leave it out.
pub(super) const ZEROES: usize = 124;
const IS_ERROR: u32 = 1 << 31;
/// Block sizes beyond this are nobody's.
const BLOCK_MAX: u32 = 64 << 10;
/// A server that takes less at once is none to put a disk on.
const PAYLOAD_MIN: u32 = 4096;

/// What both sides agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// Size of the export in bytes.
    pub size: u64,
    /// Its transmission flags.
    pub flags: u16,
    /// Replies may come in chunks.
    pub structured: bool,
    /// The id of `base:allocation`.
    pub allocation: Option<u32>,
    /// Every offset and length must be a multiple of this: a power of two.
    pub minimum_block: u32,
    /// What suits the server best: a power of two.
    pub preferred_block: u32,
    /// The most bytes of one read or write.
    pub maximum_payload: u32,
}

impl Agreed {
    /// Whether the export has a transmission flag.
    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// A handshake under way.
#[derive(Debug)]
pub struct Handshake<'a, S> {
    stream: S,
    /// The export, as errors name it.
    object: &'a str,
    agreed: Agreed,
}

impl<'a, S: Read + Write> Handshake<'a, S> {
    /// Agrees on `export`; `rich` asks for structured replies, allocation and block sizes as well.
    pub fn run(stream: S, object: &'a str, export: &str, rich: bool) -> Result<Agreed> {
        let agreed = Agreed {
            size: 0,
            flags: 0,
            structured: false,
            allocation: None,
            minimum_block: 1,
            preferred_block: 4096,
            maximum_payload: wire::MAX_PAYLOAD_ADVERTISED,
        };
        let mut handshake = Self { stream, object, agreed };
        let no_zeroes = handshake.greet()?;
        if rich && handshake.option(opt::STRUCTURED_REPLY, &[], |_, _, _| Ok(()))?.is_none() {
            handshake.agreed.structured = true;
            handshake.select_allocation(export)?;
        }
        if !handshake.go(export, rich)? {
            handshake.export_name(export, no_zeroes)?;
        }
        Ok(handshake.agreed)
    }

    /// Whether the zeroes after EXPORT_NAME are left out.
    fn greet(&mut self) -> Result<bool> {
        use wire::handshake::{FIXED_NEWSTYLE, NO_ZEROES};
        let magic = self.bytes().map(u64::from_be_bytes)?;
        let option_magic = self.bytes().map(u64::from_be_bytes)?;
        let flags = self.bytes().map(u16::from_be_bytes)?;
        if magic != wire::NBD_MAGIC || option_magic != wire::OPTION_MAGIC || flags & FIXED_NEWSTYLE == 0 {
            return Err(self.nonsense("the server does not speak fixed newstyle NBD"));
        }
        self.send(&u32::from(flags & (FIXED_NEWSTYLE | NO_ZEROES)).to_be_bytes())?;
        Ok(flags & NO_ZEROES != 0)
    }

    /// What is not allocated need not be read: nice to know, never needed.
    fn select_allocation(&mut self, export: &str) -> Result<()> {
        let mut payload = string(export);
        payload.extend(1_u32.to_be_bytes());
        payload.extend(string(wire::BASE_ALLOCATION));
        let take = |handshake: &mut Self, kind, data: &[u8]| {
            if let (rep::META_CONTEXT, Some((id, name))) = (kind, data.split_first_chunk())
                && name == wire::BASE_ALLOCATION.as_bytes()
            {
                handshake.agreed.allocation = Some(u32::from_be_bytes(*id));
            }
            Ok(())
        };
        if self.option(opt::SET_META_CONTEXT, &payload, take)?.is_some() {
            self.agreed.allocation = None;
        }
        Ok(())
    }

    /// Asks for the export; `false` if the server does not know how to be asked.
    fn go(&mut self, export: &str, rich: bool) -> Result<bool> {
        let mut payload = string(export);
        payload.extend(u16::from(rich).to_be_bytes());
        if rich {
            payload.extend(info::BLOCK_SIZE.to_be_bytes());
        }
        let mut described = false;
        let refused = self.option(opt::GO, &payload, |handshake, kind, data| {
            if kind != rep::INFO {
                return Err(handshake.nonsense("an answer of unknown kind to GO"));
            }
            described |= handshake.info(data)?;
            Ok(())
        })?;
        match refused {
            None if described => Ok(true),
            None => Err(self.nonsense("the server agreed without saying the export's size")),
            Some((rep::ERR_UNSUP, _)) if !described => Ok(false),
            Some((kind, said)) => {
                let (kind, message) = match kind {
                    rep::ERR_TLS_REQD => (Kind::Denied, "the server wants TLS"),
                    rep::ERR_POLICY => (Kind::Denied, "the server's policy refuses the export"),
                    _ => (Kind::NotFound, "the server refused the export"),
                };
                Err(Error::new(kind, self.object, format!("{message}: {said}"))
                    .remedy("name an export that the server lists (nbdinfo --list URI)"))
            }
        }
    }

    fn export_name(&mut self, export: &str, no_zeroes: bool) -> Result<()> {
        self.send_option(opt::EXPORT_NAME, export.as_bytes())?;
        let described = self.bytes::<10>()?;
        self.describe(described)?;
        if !no_zeroes {
            self.bytes::<ZEROES>()?;
        }
        Ok(())
    }

    /// Sends an option and gives its answers to `take` until the server is done; the error it ended with, if it did.
    fn option(
        &mut self,
        option: u32,
        payload: &[u8],
        mut take: impl FnMut(&mut Self, u32, &[u8]) -> Result<()>,
    ) -> Result<Option<(u32, String)>> {
        self.send_option(option, payload)?;
        for _ in 0..OPTION_REPLIES_MAX {
            let magic = self.bytes().map(u64::from_be_bytes)?;
            let [of, kind, len] = [self.bytes()?, self.bytes()?, self.bytes()?].map(u32::from_be_bytes);
            if magic != wire::OPTION_REPLY_MAGIC || of != option || len > OPTION_REPLY_MAX {
                return Err(self.nonsense("a broken answer to an option"));
            }
            let mut data = vec![0; usize::try_from(len).unwrap_or_default()];
            self.stream.read_exact(&mut data).map_err(|error| lost(self.object, "negotiate", &error))?;
            match kind {
                rep::ACK => return Ok(None),
                kind if kind & IS_ERROR != 0 => {
                    return Ok(Some((kind, String::from_utf8_lossy(&data).chars().take(200).collect())));
                }
                kind => take(self, kind, &data)?,
            }
        }
        Err(self.nonsense("endless answers to an option"))
    }

    /// Takes in one piece of information; whether it was the export's description.
    fn info(&mut self, data: &[u8]) -> Result<bool> {
        let Some((kind, rest)) = data.split_first_chunk() else {
            return Err(self.nonsense("an information without a type"));
        };
        match u16::from_be_bytes(*kind) {
            info::EXPORT => {
                let described = rest
                    .try_into()
                    .map_err(|_| self.nonsense("an export description of the wrong length"))?;
                self.describe(described)?;
                Ok(true)
            }
            info::BLOCK_SIZE => self.block_sizes(rest).map(|()| false),
            _ => Ok(false),
        }
    }

    /// Takes in an export's size and flags.
    fn describe(&mut self, described: [u8; 10]) -> Result<()> {
        let [size @ .., high, low] = described;
        self.agreed.size = u64::from_be_bytes(size);
        self.agreed.flags = u16::from_be_bytes([high, low]);
        if i64::try_from(self.agreed.size).is_err() {
            return Err(self.nonsense("an export of impossible size"));
        }
        if !self.agreed.has(tflag::HAS_FLAGS) {
            self.agreed.flags = 0;
        }
        Ok(())
    }

    fn block_sizes(&mut self, data: &[u8]) -> Result<()> {
        let sizes: [u8; 12] =
            data.try_into().map_err(|_| self.nonsense("block sizes of the wrong length"))?;
        let size = |at: usize| sizes[at..at + 4].iter().fold(0, |value, byte| value << 8 | u32::from(*byte));
        let (minimum, preferred, maximum) = (size(0), size(4), size(8));
        if !minimum.is_power_of_two() || minimum > BLOCK_MAX {
            let message =
                format!("the server takes only multiples of {minimum} bytes, which is no block size");
            return Err(Error::new(Kind::InvalidInput, self.object, message)
                .remedy("have it serve the disk with a smaller minimum block size"));
        }
        if maximum < minimum.max(PAYLOAD_MIN) {
            let message = format!("the server takes {maximum} bytes at once: too few");
            return Err(Error::new(Kind::InvalidInput, self.object, message)
                .remedy("have it serve the disk with a larger maximum block size"));
        }
        self.agreed.minimum_block = minimum;
        if preferred.is_power_of_two() && preferred >= minimum {
            self.agreed.preferred_block = preferred;
        }
        self.agreed.maximum_payload = maximum.min(wire::MAX_PAYLOAD_ADVERTISED) & !(minimum - 1);
        Ok(())
    }

    fn send_option(&mut self, option: u32, payload: &[u8]) -> Result<()> {
        let len = u32::try_from(payload.len())
            .map_err(|_| Error::new(Kind::InvalidInput, self.object, "the export's name is too long"))?;
        let mut bytes = wire::OPTION_MAGIC.to_be_bytes().to_vec();
        bytes.extend(option.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        bytes.extend(payload);
        self.send(&bytes)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).map_err(|error| lost(self.object, "negotiate", &error))
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).map_err(|error| lost(self.object, "negotiate", &error))?;
        Ok(bytes)
    }

    fn nonsense(&self, message: &str) -> Error {
        Error::new(Kind::Corrupt, self.object, message)
    }
}

/// A string with its length before it. Names are at most 4096 bytes long.
fn string(text: &str) -> Vec<u8> {
    let len = u32::try_from(text.len()).unwrap_or(u32::MAX);
    [&len.to_be_bytes()[..], text.as_bytes()].concat()
}
