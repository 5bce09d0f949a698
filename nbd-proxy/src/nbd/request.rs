//! The validation gate: raw header + what was negotiated → typed request or typed refusal.
//!
//! One ordered function, [`RawRequest::validate`], decides; the order is part of the contract, for it decides which
//! error a request with several faults gets:
//! 1. an unknown command: EINVAL;
//! 2. a range that leaves the device, checked arithmetic: ENOSPC for writes and zeroes, EINVAL for the rest;
//! 3. a change to a read-only export: EPERM;
//! 4. a command or a flag that was not advertised, or does not belong to the command: EINVAL (FUA belongs to all);
//! 5. a length that the command does not allow: EINVAL.
//!
//! A refusal never ends the connection. The caller reads a refused WRITE's payload off the stream
//! ([`RawRequest::payload`]) and then answers.

use super::negotiate::Negotiated;
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
    /// Length in bytes.
    pub len: u32,
}

/// The header did not begin with its magic number: the stream is out of step and cannot be saved.
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
        len: u32,
        /// Durable before the reply.
        fua: bool,
    },
    /// Write zeroes.
    Zero {
        /// Byte offset.
        offset: u64,
        /// Length in bytes.
        len: u32,
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
        len: u32,
    },
    /// Ask about allocation; never empty.
    BlockStatus {
        /// Byte offset.
        offset: u64,
        /// Length in bytes.
        len: u32,
        /// One extent only.
        one: bool,
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

impl RawRequest {
    /// Reads a header off the wire.
    pub fn parse(header: &[u8; wire::REQUEST_LEN]) -> Result<Self, OutOfStep> {
        let [m0, m1, m2, m3, f0, f1, t0, t1, c0, c1, c2, c3, c4, c5, c6, c7, rest @ ..] = *header;
        let [o0, o1, o2, o3, o4, o5, o6, o7, l0, l1, l2, l3] = rest;
        if u32::from_be_bytes([m0, m1, m2, m3]) != wire::REQUEST_MAGIC {
            return Err(OutOfStep);
        }
        Ok(Self {
            flags: u16::from_be_bytes([f0, f1]),
            command: u16::from_be_bytes([t0, t1]),
            cookie: u64::from_be_bytes([c0, c1, c2, c3, c4, c5, c6, c7]),
            offset: u64::from_be_bytes([o0, o1, o2, o3, o4, o5, o6, o7]),
            len: u32::from_be_bytes([l0, l1, l2, l3]),
        })
    }

    /// The header's bytes; what a client would send.
    pub fn encode(&self) -> [u8; wire::REQUEST_LEN] {
        let mut bytes = [0; wire::REQUEST_LEN];
        bytes[..4].copy_from_slice(&wire::REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..].copy_from_slice(&self.len.to_be_bytes());
        bytes
    }

    /// Bytes that follow the header on the stream, whether the request is carried out or refused.
    pub fn payload(&self) -> u32 {
        if self.command == cmd::WRITE { self.len } else { 0 }
    }

    /// The gate. See the module for the order.
    pub fn validate(&self, session: &Negotiated) -> Result<Request, Refusal> {
        let Self { flags, command, offset, len, .. } = *self;
        if command == cmd::DISC {
            return Ok(Request::Disconnect);
        }
        let rule = rule(command).ok_or(UNKNOWN)?;
        if rule.ranged && offset.checked_add(u64::from(len)).is_none_or(|end| end > session.size) {
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
        if flags & !allowed != 0 {
            return Err(BAD_FLAGS);
        }
        self.typed(session)
    }

    /// Length rules, and the typed value. Range, permission and flags have been checked.
    fn typed(&self, session: &Negotiated) -> Result<Request, Refusal> {
        let Self { flags, command, offset, len, .. } = *self;
        let has = |flag: u16| flags & flag != 0;
        let fua = has(cflag::FUA);
        match command {
            cmd::READ | cmd::WRITE if len > wire::MAX_PAYLOAD => Err(TOO_LONG),
            cmd::READ => Ok(Request::Read { offset, len, whole: has(cflag::DF) }),
            cmd::WRITE => Ok(Request::Write { offset, len, fua }),
            cmd::FLUSH if offset != 0 || len != 0 => Err(NOT_EMPTY),
            cmd::FLUSH => Ok(Request::Flush),
            cmd::TRIM => Ok(Request::Trim { offset, len, fua }),
            cmd::CACHE => Ok(Request::Cache { offset, len }),
            cmd::WRITE_ZEROES => {
                let (keep, fast) = (has(cflag::NO_HOLE), has(cflag::FAST_ZERO));
                Ok(Request::Zero { offset, len, keep, fast, fua })
            }
            cmd::BLOCK_STATUS if !session.allocation => Err(NO_CONTEXT),
            cmd::BLOCK_STATUS if len == 0 => Err(EMPTY),
            cmd::BLOCK_STATUS => Ok(Request::BlockStatus { offset, len, one: has(cflag::REQ_ONE) }),
            _ => Err(UNKNOWN),
        }
    }
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
        cmd::WRITE => Rule { fills: true, changes: true, ..plain },
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
        cmd::BLOCK_STATUS => Rule { flags: cflag::REQ_ONE, ..plain },
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
