//! The bytes of replies.
//!
//! Headers of the hot path are arrays, so that they can be put straight into a send buffer. A structured client gets
//! chunks for READ, BLOCK_STATUS and every error (with a text); its other requests get the shorter simple reply, which
//! the protocol allows. A simple client gets simple replies only.

use super::wire::{self, Cookie, Errno, chunk};

/// Longest error text.
const MAX_TEXT: usize = 256;

/// A simple reply; data follows it if it answers a READ.
pub fn simple(cookie: Cookie, errno: Option<Errno>) -> [u8; wire::SIMPLE_REPLY_LEN] {
    let mut bytes = [0; wire::SIMPLE_REPLY_LEN];
    bytes[..4].copy_from_slice(&wire::SIMPLE_REPLY_MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&errno.map_or(0, Errno::code).to_be_bytes());
    bytes[8..].copy_from_slice(&cookie.to_be_bytes());
    bytes
}

/// The header of a chunk with `len` bytes of payload.
fn header(cookie: Cookie, kind: u16, done: bool, len: u32) -> [u8; wire::CHUNK_LEN] {
    let flags = if done { chunk::DONE } else { 0 };
    let mut bytes = [0; wire::CHUNK_LEN];
    bytes[..4].copy_from_slice(&wire::CHUNK_MAGIC.to_be_bytes());
    bytes[4..6].copy_from_slice(&flags.to_be_bytes());
    bytes[6..8].copy_from_slice(&kind.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..].copy_from_slice(&len.to_be_bytes());
    bytes
}

/// What goes before `len` bytes of data read at `offset`. `len` is at most [`wire::MAX_PAYLOAD`].
pub fn data(cookie: Cookie, offset: u64, len: u32, done: bool) -> [u8; wire::DATA_CHUNK_LEN] {
    let mut bytes = [0; wire::DATA_CHUNK_LEN];
    let head = header(cookie, chunk::OFFSET_DATA, done, len + 8);
    bytes[..wire::CHUNK_LEN].copy_from_slice(&head);
    bytes[wire::CHUNK_LEN..].copy_from_slice(&offset.to_be_bytes());
    bytes
}

/// A range that reads as zero.
pub fn hole(cookie: Cookie, offset: u64, len: u32, done: bool) -> [u8; wire::HOLE_CHUNK_LEN] {
    let mut bytes = [0; wire::HOLE_CHUNK_LEN];
    bytes[..wire::CHUNK_LEN].copy_from_slice(&header(cookie, chunk::OFFSET_HOLE, done, 12));
    bytes[wire::CHUNK_LEN..wire::DATA_CHUNK_LEN].copy_from_slice(&offset.to_be_bytes());
    bytes[wire::DATA_CHUNK_LEN..].copy_from_slice(&len.to_be_bytes());
    bytes
}

/// The end of a reply without content: a READ of nothing.
pub fn none(cookie: Cookie) -> [u8; wire::CHUNK_LEN] {
    header(cookie, chunk::NONE, true, 0)
}

/// Appends a whole error reply.
pub fn error(out: &mut Vec<u8>, structured: bool, cookie: Cookie, errno: Errno, text: &str) {
    if !structured {
        out.extend_from_slice(&simple(cookie, Some(errno)));
        return;
    }
    let cut = (0..=text.len().min(MAX_TEXT)).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let text = text.get(..cut).unwrap_or_default();
    let len = u16::try_from(text.len()).unwrap_or(0);
    out.extend_from_slice(&header(cookie, chunk::ERROR, true, 6 + u32::from(len)));
    out.extend_from_slice(&errno.code().to_be_bytes());
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Appends a whole BLOCK_STATUS reply: `(length, status)` of consecutive extents. There is at least one extent and at
/// most 2^20.
pub fn block_status(out: &mut Vec<u8>, cookie: Cookie, extents: &[(u32, u32)]) {
    let len = u32::try_from(extents.len()).unwrap_or(0) * 8 + 4;
    out.extend_from_slice(&header(cookie, chunk::BLOCK_STATUS, true, len));
    out.extend_from_slice(&wire::BASE_ALLOCATION_ID.to_be_bytes());
    for (len, status) in extents {
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(&status.to_be_bytes());
    }
}

#[cfg(test)]
mod tests;
