//! The two buffers of a connection: bytes received, and replies to be sent.
//!
//! Both are initialised once, by fresh zero pages that cost nothing until they are touched, and reused for every
//! request.

/// Beyond this many touched bytes an idle connection gives its buffer back.
const KEEP: usize = 128 << 10;

/// Bytes received and not yet used up.
pub(super) struct Inbox {
    buf: Vec<u8>,
    start: usize,
    end: usize,
    touched: usize,
}

impl Inbox {
    /// A buffer of `capacity` bytes.
    pub(super) fn new(capacity: usize) -> Self {
        Self { buf: vec![0; capacity], start: 0, end: 0, touched: 0 }
    }

    /// An inbox of `capacity` bytes, at least as many as are unread, that goes on where this one ends.
    pub(super) fn grown(&self, capacity: usize) -> Self {
        let unread = self.bytes();
        let mut grown = Self::new(capacity.max(unread.len()));
        grown.space(unread.len()).split_at_mut(unread.len()).0.copy_from_slice(unread);
        grown.received(unread.len());
        grown
    }

    /// What has been received.
    pub(super) fn bytes(&self) -> &[u8] {
        self.buf.get(self.start..self.end).unwrap_or_default()
    }

    /// How many bytes fit in all.
    pub(super) fn capacity(&self) -> usize {
        self.buf.len()
    }

    /// Where [`Inbox::bytes`] begins; [`Inbox::at`] finds the place again until the next [`Inbox::space`].
    pub(super) fn position(&self) -> usize {
        self.start
    }

    /// `len` bytes at a remembered position.
    pub(super) fn at(&self, position: usize, len: usize) -> &[u8] {
        self.buf.get(position..position + len).unwrap_or_default()
    }

    /// Marks the first `len` bytes as used up.
    pub(super) fn consume(&mut self, len: usize) {
        self.start = (self.start + len).min(self.end);
    }

    /// Room for receiving, such that `wanted` bytes fit in all; moves what is there only when it must.
    pub(super) fn space(&mut self, wanted: usize) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.start + wanted > self.buf.len() || self.end == self.buf.len() {
            self.buf.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        self.buf.get_mut(self.end..).unwrap_or_default()
    }

    /// Room for exactly the rest of a message of `wanted` bytes.
    pub(super) fn rest(&mut self, wanted: usize) -> &mut [u8] {
        let rest = wanted.saturating_sub(self.end - self.start);
        let space = self.space(wanted);
        let rest = rest.min(space.len());
        space.get_mut(..rest).unwrap_or_default()
    }

    /// `len` bytes were received into [`Inbox::space`].
    pub(super) fn received(&mut self, len: usize) {
        self.end = (self.end + len).min(self.buf.len());
        self.touched = self.touched.max(self.end);
    }

    /// Gives the memory away, with what lies at remembered positions, and goes on with `other`, which is as long. Only for an
    /// empty inbox: what is unread would be lost.
    pub(super) fn give_away(&mut self, other: Vec<u8>) -> Vec<u8> {
        debug_assert!(
            self.start == self.end && other.len() == self.buf.len(),
            "empty, and replaced by its like"
        );
        (self.start, self.end) = (0, 0);
        std::mem::replace(&mut self.buf, other)
    }

    /// Whether giving the buffer back would free memory worth the trouble.
    pub(super) fn is_bulky(&self) -> bool {
        self.touched > KEEP && self.start == self.end
    }

    /// Gives the touched pages back.
    pub(super) fn renew(&mut self) {
        *self = Self::new(self.buf.len());
    }
}

/// Replies that wait to be sent, in a buffer of fixed size.
pub(super) struct Staging {
    buf: Vec<u8>,
    used: usize,
    touched: usize,
}

impl Staging {
    /// A buffer of `capacity` bytes.
    pub(super) fn new(capacity: usize) -> Self {
        Self::reuse(Vec::new(), capacity)
    }

    /// A buffer of at least `capacity` bytes that takes over the memory of `buf`.
    pub(super) fn reuse(mut buf: Vec<u8>, capacity: usize) -> Self {
        if buf.len() < capacity {
            // A new allocation of zero pages: nothing is written here.
            buf = vec![0; capacity];
        }
        Self { buf, used: 0, touched: 0 }
    }

    /// Bytes that still fit.
    pub(super) fn room(&self) -> usize {
        self.buf.len() - self.used
    }

    /// Bytes in use; [`Staging::truncate`] goes back here.
    pub(super) fn len(&self) -> usize {
        self.used
    }

    /// Forgets everything behind the first `len` bytes.
    pub(super) fn truncate(&mut self, len: usize) {
        self.used = self.used.min(len);
    }

    /// What waits to be sent.
    pub(super) fn bytes(&self) -> &[u8] {
        self.buf.get(..self.used).unwrap_or_default()
    }

    /// Appends `bytes`, which must fit.
    pub(super) fn put(&mut self, bytes: &[u8]) {
        if let Some(place) = self.extend(bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }

    /// Appends `len` bytes of unspecified content to be filled in; nothing if they do not fit.
    pub(super) fn extend(&mut self, len: usize) -> Option<&mut [u8]> {
        let start = self.used;
        let place = self.buf.get_mut(start..start + len)?;
        self.used = start + len;
        self.touched = self.touched.max(self.used);
        Some(place)
    }

    /// The memory and how much of it is in use.
    pub(super) fn into_parts(self) -> (Vec<u8>, usize) {
        (self.buf, self.used)
    }

    /// Whether giving the buffer back would free memory worth the trouble.
    pub(super) fn is_bulky(&self) -> bool {
        self.touched > KEEP && self.used == 0
    }

    /// Gives the touched pages back.
    pub(super) fn renew(&mut self) {
        *self = Self::new(self.buf.len());
    }
}

#[cfg(test)]
mod tests;
