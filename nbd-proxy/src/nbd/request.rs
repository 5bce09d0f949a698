//! The validation gate: raw header + what was negotiated → typed request or typed refusal.
//!
//! One ordered function, [`RawRequest::validate`], decides; the order is part of the contract, for it decides which
//! error a request with several faults gets:
//! 1. an unknown command: EINVAL;
//! 2. a payload where none belongs, or one that does not name contexts as it should: EINVAL (the header's length is
//!    not one of the device then);
//! 3. a range that leaves the device, checked arithmetic: ENOSPC for writes and zeroes, EINVAL for the rest;
//! 4. a change to a read-only export: EPERM;
//! 5. a command or a flag that was not advertised, or does not belong to the command: EINVAL (FUA belongs to all);
//! 6. a length that the command does not allow: EINVAL.
//!
//! A refusal never ends the connection. The caller reads a refused request's payload off the stream
//! ([`RawRequest::payload`]) and then answers.

use super::reply::Tag;
use super::terms::{Contexts, Framing, Negotiated};
use super::wire::{self, Cookie, Errno, cflag, cmd, tflag};

/// A request header as it stands on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawRequest {
    /// Command flags.
    pub flags: u16,
    /// Command number.
    pub command: u16,
    /// The client's name for the request.
    pub cookie: Cookie,
    /// Byte offset.
    pub offset: u64,
    /// Length in bytes: of a range of the device, or of the payload.
    pub len: u64,
}

/// The header did not begin with its magic number, or announces a payload that nobody will read to its end: the stream
/// is out of step and cannot be saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfStep;

/// A request that may be carried out as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Read; `whole` asks for one content chunk (DF).
    Read {
        /// Byte offset.
        offset: u64,
        /// Length in bytes, at most [`wire::MAX_PAYLOAD`].
        len: u32,
        /// One content chunk.
        whole: bool,
    },
    /// Write; the payload follows the header.
    Write {
        /// Byte offset.
        offset: u64,
        /// Length in bytes, at most [`wire::MAX_PAYLOAD`].
        len: u32,
        /// Durable before the reply.
        fua: bool,
    },
    /// Make durable what was replied to.
    Flush,
    /// Give space back.
    Trim {
        /// Byte offset.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// Durable before the reply.
        fua: bool,
    },
    /// Write zeroes.
    Zero {
        /// Byte offset.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// Keep the space provisioned.
        keep: bool,
        /// Fail unless fast.
        fast: bool,
        /// Durable before the reply.
        fua: bool,
    },
    /// Bring into the cache.
    Cache {
        /// Byte offset.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Ask about allocation; never empty.
    BlockStatus {
        /// Byte offset.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// One extent only.
        one: bool,
        /// What is asked; never nothing.
        contexts: Contexts,
    },
    /// The client is done.
    Disconnect,
}

/// Why a request is not carried out. The connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The error on the wire.
    pub errno: Errno,
    /// The same for people.
    pub text: &'static str,
}

impl Refusal {
    /// A payload behind a command that has none.
    pub const NO_PAYLOAD: Self = refuse(Errno::Inval, "this command has no payload");
}

const fn refuse(errno: Errno, text: &'static str) -> Refusal {
    Refusal { errno, text }
}

const UNKNOWN: Refusal = refuse(Errno::Inval, "unknown command");
const PAST_END: Refusal = refuse(Errno::Inval, "the range ends past the end of the export");
const NO_ROOM: Refusal = refuse(Errno::NoSpc, "the range ends past the end of the export");
const READ_ONLY: Refusal = refuse(Errno::Perm, "the export is read-only");
const NOT_OFFERED: Refusal = refuse(Errno::Inval, "the export does not offer this command");
const BAD_FLAGS: Refusal =
    refuse(Errno::Inval, "a flag that this command does not have, or that was not offered");
const TOO_LONG: Refusal = refuse(Errno::Inval, "more than 64 MiB in one request");
const NOT_EMPTY: Refusal = refuse(Errno::Inval, "a flush has neither offset nor length");
const EMPTY: Refusal = refuse(Errno::Inval, "an empty range has no block status");
const NO_CONTEXT: Refusal = refuse(Errno::Inval, "no context was selected in the handshake");
const BAD_CHOICE: Refusal = refuse(
    Errno::Inval,
    "the payload does not name contexts, each once, that were selected in the handshake",
);

impl RawRequest {
    /// Reads a header of [`Framing::request_len`] bytes off the wire.
    pub fn parse(header: &[u8], framing: Framing) -> Result<Self, OutOfStep> {
        let (start, rest) = header.split_first_chunk::<24>().ok_or(OutOfStep)?;
        let [m0, m1, m2, m3, f0, f1, t0, t1, c0, c1, c2, c3, c4, c5, c6, c7, offset @ ..] = *start;
        let (magic, len) = if framing == Framing::Extended {
            let len = rest.first_chunk::<8>().ok_or(OutOfStep)?;
            (wire::EXTENDED_REQUEST_MAGIC, u64::from_be_bytes(*len))
        } else {
            let len = rest.first_chunk::<4>().ok_or(OutOfStep)?;
            (wire::REQUEST_MAGIC, u64::from(u32::from_be_bytes(*len)))
        };
        let raw = Self {
            flags: u16::from_be_bytes([f0, f1]),
            command: u16::from_be_bytes([t0, t1]),
            cookie: u64::from_be_bytes([c0, c1, c2, c3, c4, c5, c6, c7]),
            offset: u64::from_be_bytes(offset),
            len,
        };
        let sane = u32::from_be_bytes([m0, m1, m2, m3]) == magic && raw.payload(framing) <= wire::MAX_DRAINED;
        if sane { Ok(raw) } else { Err(OutOfStep) }
    }

    /// The header's bytes; what a client would send. A length too large for the framing is cut.
    pub fn encode(&self, framing: Framing) -> Vec<u8> {
        let extended = framing == Framing::Extended;
        let magic = if extended { wire::EXTENDED_REQUEST_MAGIC } else { wire::REQUEST_MAGIC };
        let mut bytes = magic.to_be_bytes().to_vec();
        bytes.extend(self.flags.to_be_bytes());
        bytes.extend(self.command.to_be_bytes());
        bytes.extend(self.cookie.to_be_bytes());
        bytes.extend(self.offset.to_be_bytes());
        let len = self.len.to_be_bytes();
        bytes.extend(if extended { &len[..] } else { &len[4..] });
        bytes
    }

    /// What its reply repeats.
    pub fn tag(&self) -> Tag {
        Tag { cookie: self.cookie, offset: self.offset }
    }

    /// Bytes that follow the header on the stream, whether the request is carried out or refused. A WRITE always has
    /// its payload, whether it says so, as it should with extended headers, or not: QEMU 10.0 does not.
    pub fn payload(&self, framing: Framing) -> u64 {
        if self.command == cmd::WRITE || self.says_payload(framing) { self.len } else { 0 }
    }

    fn says_payload(&self, framing: Framing) -> bool {
        framing == Framing::Extended && self.flags & cflag::PAYLOAD_LEN != 0
    }

    /// The gate. See the module for the order. `payload` is what followed the header; that of a WRITE may be left out.
    pub fn validate(&self, session: &Negotiated, payload: &[u8]) -> Result<Request, Refusal> {
        let Self { flags, command, offset, .. } = *self;
        if command == cmd::DISC {
            return Ok(Request::Disconnect);
        }
        let rule = rule(command).ok_or(UNKNOWN)?;
        let extended = session.framing == Framing::Extended;
        let (len, contexts) = match self.says_payload(session.framing) {
            true if command == cmd::BLOCK_STATUS => choice(payload, session).ok_or(BAD_CHOICE)?,
            true if command != cmd::WRITE => return Err(Refusal::NO_PAYLOAD),
            _ => (self.len, session.contexts),
        };
        if rule.ranged && offset.checked_add(len).is_none_or(|end| end > session.size) {
            return Err(if rule.fills { NO_ROOM } else { PAST_END });
        }
        if rule.changes && session.flags & tflag::READ_ONLY != 0 {
            return Err(READ_ONLY);
        }
        if session.flags & rule.needs != rule.needs {
            return Err(NOT_OFFERED);
        }
        let mut allowed = cflag::FUA | rule.flags;
        if session.flags & tflag::SEND_FAST_ZERO == 0 {
            allowed &= !cflag::FAST_ZERO;
        }
        if session.flags & tflag::SEND_DF == 0 {
            allowed &= !cflag::DF;
        }
        if !extended {
            allowed &= !cflag::PAYLOAD_LEN;
        }
        if flags & !allowed != 0 {
            return Err(BAD_FLAGS);
        }
        self.typed(len, contexts)
    }

    /// Length rules, and the typed value. Range, permission and flags have been checked.
    fn typed(&self, len: u64, contexts: Contexts) -> Result<Request, Refusal> {
        let Self { flags, command, offset, .. } = *self;
        let has = |flag: u16| flags & flag != 0;
        let fua = has(cflag::FUA);
        let short = || u32::try_from(len).ok().filter(|len| *len <= wire::MAX_PAYLOAD).ok_or(TOO_LONG);
        match command {
            cmd::READ => Ok(Request::Read { offset, len: short()?, whole: has(cflag::DF) }),
            cmd::WRITE => Ok(Request::Write { offset, len: short()?, fua }),
            cmd::FLUSH if offset != 0 || len != 0 => Err(NOT_EMPTY),
            cmd::FLUSH => Ok(Request::Flush),
            cmd::TRIM => Ok(Request::Trim { offset, len, fua }),
            cmd::CACHE => Ok(Request::Cache { offset, len }),
            cmd::WRITE_ZEROES => {
                let (keep, fast) = (has(cflag::NO_HOLE), has(cflag::FAST_ZERO));
                Ok(Request::Zero { offset, len, keep, fast, fua })
            }
            cmd::BLOCK_STATUS if contexts.is_empty() => Err(NO_CONTEXT),
            cmd::BLOCK_STATUS if len == 0 => Err(EMPTY),
            cmd::BLOCK_STATUS => Ok(Request::BlockStatus { offset, len, one: has(cflag::REQ_ONE), contexts }),
            _ => Err(UNKNOWN),
        }
    }
}

/// The payload of a BLOCK_STATUS: the length of the range, then the ids of contexts.
fn choice(payload: &[u8], session: &Negotiated) -> Option<(u64, Contexts)> {
    let (len, ids) = payload.split_first_chunk::<8>()?;
    let (ids, rest) = ids.as_chunks::<4>();
    let chosen = session.contexts.choose(ids.iter().map(|id| u32::from_be_bytes(*id)))?;
    rest.is_empty().then_some((u64::from_be_bytes(*len), chosen))
}

/// What the gate knows of a command.
struct Rule {
    /// Offset and length are a range of the device.
    ranged: bool,
    /// It needs room: past the end means ENOSPC.
    fills: bool,
    /// It changes the device.
    changes: bool,
    /// Transmission flags that must have been advertised.
    needs: u16,
    /// Command flags it may carry besides FUA.
    flags: u16,
}

const fn rule(command: u16) -> Option<Rule> {
    let plain = Rule { ranged: true, fills: false, changes: false, needs: 0, flags: 0 };
    Some(match command {
        cmd::READ => Rule { flags: cflag::DF, ..plain },
        cmd::WRITE => Rule { fills: true, changes: true, flags: cflag::PAYLOAD_LEN, ..plain },
        cmd::FLUSH => Rule { ranged: false, needs: tflag::SEND_FLUSH, ..plain },
        cmd::TRIM => Rule { changes: true, needs: tflag::SEND_TRIM, ..plain },
        cmd::CACHE => Rule { needs: tflag::SEND_CACHE, ..plain },
        cmd::WRITE_ZEROES => Rule {
            fills: true,
            changes: true,
            needs: tflag::SEND_WRITE_ZEROES,
            flags: cflag::NO_HOLE | cflag::FAST_ZERO,
            ..plain
        },
        cmd::BLOCK_STATUS => Rule { flags: cflag::REQ_ONE | cflag::PAYLOAD_LEN, ..plain },
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
