//! The bytes of replies.
//!
//! Heads of the hot path are short arrays, so that they can be put straight into a send buffer. A structured client gets
//! chunks for READ, BLOCK_STATUS and every error (with a text); its other requests get the shorter simple reply, which
//! the protocol allows. A simple client gets simple replies only, and one with extended headers gets nothing but chunks,
//! each of which repeats the offset of its request.

use std::ops::Deref;

use super::terms::Framing;
use super::wire::{self, Cookie, Errno, chunk};

/// Longest error text.
const MAX_TEXT: usize = 256;

/// What a reply repeats of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// The client's name for it.
    pub cookie: Cookie,
    /// Its offset.
    pub offset: u64,
}

/// A reply without its data.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    bytes: [u8; wire::MAX_HEAD],
    len: usize,
}

impl Head {
    const EMPTY: Self = Self { bytes: [0; wire::MAX_HEAD], len: 0 };

    fn put<const N: usize>(&mut self, field: [u8; N]) {
        // The longest head is known: all that is ever put fits.
        if let Some(place) = self.bytes.get_mut(self.len..self.len + N) {
            place.copy_from_slice(&field);
            self.len += N;
        }
    }
}

impl Deref for Head {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

/// A simple reply; data follows it if it answers a READ.
fn simple(tag: Tag, errno: Option<Errno>) -> Head {
    let mut head = Head::EMPTY;
    head.put(wire::SIMPLE_REPLY_MAGIC.to_be_bytes());
    head.put(errno.map_or(0, Errno::code).to_be_bytes());
    head.put(tag.cookie.to_be_bytes());
    head
}

/// The header of a chunk with `len` bytes of payload.
fn header(framing: Framing, tag: Tag, kind: u16, done: bool, len: u32) -> Head {
    let extended = framing == Framing::Extended;
    let mut head = Head::EMPTY;
    head.put(if extended { wire::EXTENDED_CHUNK_MAGIC } else { wire::CHUNK_MAGIC }.to_be_bytes());
    head.put(if done { chunk::DONE } else { 0 }.to_be_bytes());
    head.put(kind.to_be_bytes());
    head.put(tag.cookie.to_be_bytes());
    if extended {
        head.put(tag.offset.to_be_bytes());
        head.put(u64::from(len).to_be_bytes());
    } else {
        head.put(len.to_be_bytes());
    }
    head
}

/// A request without data is done.
pub fn done(framing: Framing, tag: Tag) -> Head {
    match framing {
        Framing::Simple | Framing::Structured => simple(tag, None),
        Framing::Extended => header(framing, tag, chunk::NONE, true, 0),
    }
}

/// A READ of nothing is done.
pub fn nothing(framing: Framing, tag: Tag) -> Head {
    match framing {
        Framing::Simple => simple(tag, None),
        Framing::Structured | Framing::Extended => header(framing, tag, chunk::NONE, true, 0),
    }
}

/// What goes before `len` bytes of data read at `offset`. `len` is at most [`wire::MAX_PAYLOAD`].
pub fn data(framing: Framing, tag: Tag, offset: u64, len: u32, done: bool) -> Head {
    if framing == Framing::Simple {
        return simple(tag, None);
    }
    let mut head = header(framing, tag, chunk::OFFSET_DATA, done, len + 8);
    head.put(offset.to_be_bytes());
    head
}

/// A range that reads as zero; never for a client of simple replies.
pub fn hole(framing: Framing, tag: Tag, offset: u64, len: u32, done: bool) -> Head {
    let mut head = header(framing, tag, chunk::OFFSET_HOLE, done, 12);
    head.put(offset.to_be_bytes());
    head.put(len.to_be_bytes());
    head
}

/// Appends a whole error reply.
pub fn error(out: &mut Vec<u8>, framing: Framing, tag: Tag, errno: Errno, text: &str) {
    if framing == Framing::Simple {
        out.extend_from_slice(&simple(tag, Some(errno)));
        return;
    }
    let cut = (0..=text.len().min(MAX_TEXT)).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let text = text.get(..cut).unwrap_or_default();
    let len = u16::try_from(text.len()).unwrap_or(0);
    out.extend_from_slice(&header(framing, tag, chunk::ERROR, true, 6 + u32::from(len)));
    out.extend_from_slice(&errno.code().to_be_bytes());
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Appends the answer to a BLOCK_STATUS for one context: `(length, status)` of consecutive extents. There is at least
/// one and at most 2^20; without extended headers none is longer than 32 bits can say, for the request was not.
pub fn block_status(
    out: &mut Vec<u8>,
    framing: Framing,
    tag: Tag,
    context: u32,
    extents: &[(u64, u32)],
    done: bool,
) {
    let count = u32::try_from(extents.len()).unwrap_or(0);
    if framing == Framing::Extended {
        out.extend_from_slice(&header(framing, tag, chunk::BLOCK_STATUS_EXT, done, count * 16 + 8));
        out.extend_from_slice(&context.to_be_bytes());
        out.extend_from_slice(&count.to_be_bytes());
        for (len, status) in extents {
            out.extend_from_slice(&len.to_be_bytes());
            out.extend_from_slice(&u64::from(*status).to_be_bytes());
        }
        return;
    }
    out.extend_from_slice(&header(framing, tag, chunk::BLOCK_STATUS, done, count * 8 + 4));
    out.extend_from_slice(&context.to_be_bytes());
    for (len, status) in extents {
        out.extend_from_slice(&u32::try_from(*len).unwrap_or(u32::MAX).to_be_bytes());
        out.extend_from_slice(&status.to_be_bytes());
    }
}

#[cfg(test)]
mod tests;
