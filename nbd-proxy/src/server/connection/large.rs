//! Requests larger than the buffers: a payload is written, and a contiguous body is sent, piece by piece.

use std::io;
use std::sync::Arc;

use super::super::outbox::Patience;
use super::super::read;
use super::super::session::{Job, Work};
use super::{Connection, Flow};
use crate::device::Write;
use crate::nbd::{RawRequest, Refusal, Request, Tag, reply};

/// A WRITE whose payload does not fit the inbox.
pub(super) struct BigWrite {
    tag: Tag,
    offset: u64,
    left: usize,
    fua: bool,
    /// Set once it is refused or has failed: the rest of the payload is only read off the stream.
    failed: Option<Failure>,
}

enum Failure {
    Refused(Refusal),
    Device(io::Error),
}

impl Connection {
    /// A large READ whose body must be contiguous: sent piece by piece, with the wire held. The first piece is read
    /// before the header promises anything; if a later one fails, the promise can only be broken by hanging up.
    pub(super) fn stream_body(&mut self, tag: Tag, offset: u64, len: usize) -> Flow {
        self.run_batch();
        self.flush_out();
        let session = Arc::clone(&self.session);
        let device = &*session.disk.device;
        let length = u32::try_from(len).unwrap_or(u32::MAX);
        self.out.put(&reply::data(session.negotiated.framing, tag, offset, length, true));
        let mut sent = 0;
        while sent < len {
            let piece = (len - sent).min(session.chunk);
            let place = self.out.extend(piece);
            let filled = place.map_or_else(
                || Err(io::ErrorKind::OutOfMemory.into()),
                |place| device.read(place, offset + read::bytes(sent)),
            );
            if let Err(error) = filled {
                self.out.truncate(0);
                if sent == 0 {
                    self.complete(tag, Err(error));
                    return Flow::On;
                }
                tracing::debug!(export = session.export, %error, "a read failed behind its header");
                session.outbox.end_body();
                session.give_up();
                return Flow::End;
            }
            let ready = sent > 0
                || (session.outbox.begin_body() && session.outbox.send_queue(&session.socket).is_ok());
            if !ready || session.socket.send_all(self.out.bytes()).is_err() {
                session.outbox.end_body();
                session.give_up();
                return Flow::End;
            }
            self.out.truncate(0);
            sent += piece;
        }
        session.outbox.end_body();
        session.pump(Patience::Wait);
        Flow::On
    }

    /// A request whose payload is larger than the inbox; its header has been consumed. Any but a WRITE is refused.
    pub(super) fn begin_big(&self, raw: &RawRequest, payload: usize) -> BigWrite {
        let (fua, failed) = match raw.validate(&self.session.negotiated, &[]) {
            Ok(Request::Write { fua, .. }) => (fua, None),
            Ok(_) => (false, Some(Failure::Refused(Refusal::NO_PAYLOAD))),
            Err(refusal) => (false, Some(Failure::Refused(refusal))),
        };
        BigWrite { tag: raw.tag(), offset: raw.offset, left: payload, fua, failed }
    }

    /// Takes what has arrived of a large payload; `self.big` is set again if more is to come.
    pub(super) fn feed(&mut self, mut big: BigWrite) -> Flow {
        let there = self.inbox.bytes().len().min(big.left);
        let piece = self.inbox.capacity().min(big.left);
        let used = if big.failed.is_some() { there } else { piece };
        if there < used || (used == 0 && big.left > 0) {
            self.wanted = piece;
            self.big = Some(big);
            return Flow::On;
        }
        if big.failed.is_none() {
            let data = self.inbox.bytes().get(..used).unwrap_or_default();
            self.results.clear();
            let write = Write { offset: big.offset, data, fua: false };
            self.session.disk.device.write_batch(&[write], &mut self.results);
            if let Some(Err(error)) = self.results.pop() {
                big.failed = Some(Failure::Device(error));
            }
        }
        self.inbox.consume(used);
        big.offset += read::bytes(used);
        big.left -= used;
        if big.left > 0 {
            self.wanted = self.inbox.capacity().min(big.left);
            self.big = Some(big);
            return Flow::On;
        }
        match big.failed {
            Some(Failure::Refused(refusal)) => self.refuse(big.tag, refusal),
            Some(Failure::Device(error)) => self.complete(big.tag, Err(error)),
            None if big.fua => return self.hand_over(big.tag, Work::Flush),
            None => self.complete(big.tag, Ok(())),
        }
        Flow::On
    }

    /// Gives a write that fills the inbox by itself to a worker, memory and all, so that the next one is received while
    /// the device takes it. False if that cannot be.
    pub(super) fn hand_over_slab(&mut self, tag: Tag, offset: u64, at: usize, len: usize) -> bool {
        self.run_batch();
        let session = &self.session;
        if !self.inbox.bytes().is_empty() {
            return false;
        }
        let Some(other) = session.outbox.begin_slab(self.inbox.capacity()) else { return false };
        if !session.outbox.admit(len, false) {
            session.outbox.end_slab(other);
            return false;
        }
        let buf = self.inbox.give_away(other);
        Job::submit(session, tag, Work::Slab { offset, at, len, buf }, len);
        true
    }
}
