//! One client's thread: receive, carry out everything that is complete, answer, wait.
//!
//! Each wake-up is one receive into a large buffer and, in the cached case, one send. All requests that are complete
//! in the buffer are handled in between: reads from the page cache straight into the reply buffer, plain writes
//! gathered into one batch for the device (all of them are in flight at once, so a read may overtake them). What may
//! wait goes to the workers. Payloads larger than the buffer are written in pieces as they arrive; an error is
//! remembered, the rest is read off the stream, then comes the one reply.
//!
//! The thread ends when the client has hung up, said goodbye or fallen out of step, or the server stops: it reads
//! nothing more, waits for what its workers have in flight, sends what can be sent, and leaves.

mod large;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::buffer::{Inbox, Staging};
use super::outbox::{Patience, Standing};
use super::read::{self, Answer};
use super::session::{Job, Session, Work};
use super::socket::Wake;
use crate::device::{Extent, Write, ZeroMode};
use crate::nbd::{Framing, RawRequest, Refusal, Request, Tag, reply, wire};

use large::BigWrite;

/// Room in the reply buffer besides one chunk.
pub(super) const REPLY_SLACK: usize = 8 << 10;
/// A message of so many bytes is received by itself.
const LARGE: usize = 48 << 10;
/// Large reads of a connection are fetched by so many workers beside its own thread.
const FETCHERS: usize = 2;
/// Bulky buffers are given back after so long without a request.
const IDLE: Duration = Duration::from_secs(1);

/// Whether the connection goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    On,
    End,
}

/// A plain write whose payload lies in the inbox.
struct Pending {
    tag: Tag,
    offset: u64,
    position: usize,
    len: usize,
}

/// See the module.
pub(super) struct Connection {
    session: Arc<Session>,
    inbox: Inbox,
    out: Staging,
    /// Bytes of a request header.
    head: usize,
    /// Bytes that the message at the front of the inbox needs to be complete.
    wanted: usize,
    big: Option<BigWrite>,
    batch: Vec<Pending>,
    /// Empty between batches; kept for its memory.
    writes: Vec<Write<'static>>,
    results: Vec<io::Result<()>>,
    extents: Vec<Extent>,
    scratch: Vec<u8>,
    /// The client has been silent for a while.
    resting: bool,
    /// The last request was large.
    behind_large: bool,
    /// The client sends large requests without waiting for replies.
    deep: bool,
}

impl Connection {
    /// A connection whose handshake is done; `inbox` may hold its first requests.
    pub(super) fn new(session: Arc<Session>, inbox: Inbox) -> Self {
        let out = Staging::new(session.chunk + REPLY_SLACK);
        let head = session.negotiated.framing.request_len();
        Self {
            session,
            inbox,
            out,
            head,
            wanted: head,
            big: None,
            batch: Vec::new(),
            writes: Vec::new(),
            results: Vec::new(),
            extents: Vec::new(),
            scratch: Vec::new(),
            resting: false,
            behind_large: false,
            deep: false,
        }
    }

    /// Serves the client to the end.
    pub(super) fn run(mut self) {
        // Without it buffers are only kept longer.
        let _ = self.session.socket.set_patience(Some(IDLE));
        loop {
            let flow = self.work();
            self.run_batch();
            self.flush_out();
            if flow == Flow::End || !self.receive() {
                break;
            }
        }
        self.finish();
    }

    /// Carries out everything that is complete in the inbox.
    fn work(&mut self) -> Flow {
        loop {
            if self.session.socket.halted() {
                return Flow::End;
            }
            if let Some(big) = self.big.take() {
                let flow = self.feed(big);
                if flow == Flow::End || self.big.is_some() {
                    return flow;
                }
            }
            let framing = self.session.negotiated.framing;
            let Some(header) = self.inbox.bytes().get(..self.head) else {
                self.wanted = self.head;
                return Flow::On;
            };
            let Ok(raw) = RawRequest::parse(header, framing) else {
                tracing::info!(export = self.session.export, "a client fell out of step and was dropped");
                return Flow::End;
            };
            let payload = usize::try_from(raw.payload(framing)).unwrap_or(usize::MAX);
            let whole = self.head.saturating_add(payload);
            if self.inbox.bytes().len() >= whole {
                let position = self.inbox.position() + self.head;
                self.inbox.consume(whole);
                self.behind_large = whole >= LARGE;
                if self.handle(&raw, position, payload) == Flow::End {
                    return Flow::End;
                }
            } else if whole <= self.inbox.capacity() {
                self.wanted = whole;
                return Flow::On;
            } else {
                self.inbox.consume(self.head);
                self.big = Some(self.begin_big(&raw, payload));
            }
        }
    }

    /// One complete request; its payload lies at `position`.
    fn handle(&mut self, raw: &RawRequest, position: usize, payload: usize) -> Flow {
        let tag = raw.tag();
        let request = match raw.validate(&self.session.negotiated, self.inbox.at(position, payload)) {
            Ok(request) => request,
            Err(refusal) => {
                self.refuse(tag, refusal);
                return Flow::On;
            }
        };
        let work = match request {
            Request::Disconnect => return Flow::End,
            Request::Read { offset, len, whole } => {
                return self.read(tag, offset, usize::try_from(len).unwrap_or(usize::MAX), whole);
            }
            Request::Flush => Work::Flush,
            Request::Write { len: 0, .. } | Request::Trim { len: 0, .. } | Request::Zero { len: 0, .. } => {
                self.complete(tag, Ok(()));
                return Flow::On;
            }
            Request::Write { offset, len, fua } => {
                let len = usize::try_from(len).unwrap_or(usize::MAX);
                if !fua && len >= LARGE && self.deep && self.hand_over_slab(tag, offset, position, len) {
                    return Flow::On;
                }
                if !fua {
                    self.batch.push(Pending { tag, offset, position, len });
                    return Flow::On;
                }
                Work::Write { offset, data: self.inbox.at(position, len).to_vec() }
            }
            Request::Trim { offset, len, fua } => {
                Work::Zero { offset, len, mode: ZeroMode { punch: true, fast: false, fua } }
            }
            Request::Zero { offset, len, keep, fast, fua } => {
                Work::Zero { offset, len, mode: ZeroMode { punch: !keep, fast, fua } }
            }
            Request::Cache { offset, len } => Work::Cache { offset, len },
            Request::BlockStatus { offset, len, one, contexts } => {
                Work::BlockStatus { offset, len, one, contexts }
            }
        };
        // What came before a change on the wire is begun before it, though nothing promises that.
        self.run_batch();
        self.hand_over(tag, work)
    }

    /// Gives slow work to the workers, once there is room for it.
    fn hand_over(&mut self, tag: Tag, work: Work) -> Flow {
        let weight = Job::weight(&work, self.session.chunk);
        while !self.session.outbox.admit(weight, true) {
            self.run_batch();
            self.flush_out();
            let stalled = self.session.outbox.is_stalled();
            if self.session.socket.halted() {
                return Flow::End;
            }
            match self.session.socket.wait(false, stalled, None) {
                Ok(Wake::Writable) => self.session.pump(Patience::Wait),
                Ok(_) => {}
                Err(_) => return Flow::End,
            }
        }
        Job::submit(&self.session, tag, work, weight);
        Flow::On
    }

    /// A READ: at once if it is in the cache, else by a worker.
    fn read(&mut self, tag: Tag, offset: u64, len: usize, whole: bool) -> Flow {
        let session = Arc::clone(&self.session);
        let framing = session.negotiated.framing;
        if len == 0 {
            self.put(&reply::nothing(framing, tag));
            return Flow::On;
        }
        if len > session.chunk {
            if whole || framing == Framing::Simple {
                return self.stream_body(tag, offset, len);
            }
            return self.hand_over(tag, Work::Read { offset, len, whole });
        }
        // While others wait behind it, a worker fetches it and this thread sends what is there.
        let others = self.inbox.bytes().len() >= self.head;
        if len >= LARGE && others && session.outbox.jobs() < FETCHERS {
            return self.hand_over(tag, Work::Read { offset, len, whole });
        }
        let answer = Answer { tag, offset, len, whole, last: true, wait: false };
        if self.out.room() < answer.room() {
            self.flush_out();
        }
        let device = &*session.disk.device;
        match read::fill(device, framing, &answer, &mut self.out, &mut self.extents) {
            Ok(true) => Flow::On,
            Ok(false) => self.hand_over(tag, Work::Read { offset, len, whole }),
            Err(error) => {
                self.complete(tag, Err(error));
                Flow::On
            }
        }
    }

    /// Performs the plain writes gathered so far.
    fn run_batch(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let mut writes = recycle(std::mem::take(&mut self.writes));
        writes.extend(self.batch.iter().map(|pending| Write {
            offset: pending.offset,
            data: self.inbox.at(pending.position, pending.len),
            fua: false,
        }));
        self.results.clear();
        self.session.disk.device.write_batch(&writes, &mut self.results);
        self.writes = recycle(writes);
        let mut batch = std::mem::take(&mut self.batch);
        let mut results = std::mem::take(&mut self.results);
        let silent = || Some(Err(io::Error::other("the device gave no result")));
        let each = results.drain(..).chain(std::iter::from_fn(silent));
        for (pending, result) in batch.drain(..).zip(each) {
            self.complete(pending.tag, result);
        }
        (self.batch, self.results) = (batch, results);
    }

    fn complete(&mut self, tag: Tag, result: io::Result<()>) {
        match result {
            Ok(()) => self.put(&reply::done(self.session.negotiated.framing, tag)),
            Err(error) => {
                let mut text = std::mem::take(&mut self.scratch);
                text.clear();
                self.session.failed(&mut text, tag, &error);
                self.put(&text);
                self.scratch = text;
            }
        }
    }

    fn refuse(&mut self, tag: Tag, refusal: Refusal) {
        let mut text = std::mem::take(&mut self.scratch);
        text.clear();
        reply::error(&mut text, self.session.negotiated.framing, tag, refusal.errno, refusal.text);
        self.put(&text);
        self.scratch = text;
    }

    /// Stages a whole reply without data.
    fn put(&mut self, bytes: &[u8]) {
        debug_assert!(bytes.len() <= REPLY_SLACK && REPLY_SLACK > wire::MAX_HEAD);
        if self.out.room() < bytes.len() {
            self.flush_out();
        }
        self.out.put(bytes);
    }

    /// Sends what is staged.
    fn flush_out(&mut self) {
        if self.out.len() > 0 {
            Job::go_on(self.session.outbox.send(&self.session.socket, self.out.bytes()));
            self.out.truncate(0);
        }
    }

    /// Waits for more bytes and receives them; false when the connection is to end.
    fn receive(&mut self) -> bool {
        loop {
            let received = match self.receive_some() {
                Ok(Some(received)) => received,
                Ok(None) => {
                    self.give_back();
                    // Nothing is left to give back: the next wait needs no end.
                    self.resting = true;
                    continue;
                }
                Err(_) => return false,
            };
            self.inbox.received(received);
            return received > 0 && !self.session.socket.halted();
        }
    }

    /// One receive; `None` if the client has been silent for a while.
    fn receive_some(&mut self) -> io::Result<Option<usize>> {
        let session = Arc::clone(&self.session);
        let partial = !self.inbox.bytes().is_empty();
        if (partial || self.big.is_some()) && self.wanted >= LARGE {
            // The rest of a large payload is received by itself: the inbox is empty behind it, and nothing is moved.
            // A client in the middle of a payload goes on with it, so there is no harm in waiting for that alone.
            return patient(session.socket.receive_all(self.inbox.rest(self.wanted)));
        }
        if std::mem::take(&mut self.behind_large) {
            // Is the next request on its way already?
            let received = session.socket.receive_now(self.inbox.space(self.head))?;
            self.deep = received.is_some();
            if received.is_some() {
                return Ok(received);
            }
        }
        if !self.may_receive() {
            return Ok(Some(0));
        }
        patient(session.socket.receive(self.inbox.space(self.wanted)))
    }

    /// Waits until a receive may wait by itself: nothing is under way that would have to be seen to meanwhile, or
    /// there is something to receive. False when the connection is to end.
    fn may_receive(&mut self) -> bool {
        let session = &self.session;
        loop {
            if session.socket.halted() {
                return false;
            }
            let Standing { idle, stalled } = session.outbox.standing(false);
            if idle && stalled {
                session.pump(Patience::Wait);
                continue;
            }
            if idle && !self.resting {
                return true;
            }
            match session.socket.wait(true, stalled, None) {
                Ok(Wake::Readable) => {
                    self.resting = false;
                    return true;
                }
                Ok(Wake::Writable) => session.pump(Patience::Wait),
                Ok(Wake::Bell | Wake::Timeout) => {}
                Err(_) => return false,
            }
        }
    }

    /// Frees the pages that large requests have touched.
    fn give_back(&mut self) {
        if self.inbox.is_bulky() {
            self.inbox.renew();
        }
        if self.out.is_bulky() {
            self.out.renew();
        }
        self.session.outbox.drop_spares();
    }

    /// Waits for what is in flight and sends what can be sent.
    fn finish(self) {
        let session = &self.session;
        while let Standing { idle: false, stalled } = session.outbox.standing(true) {
            match session.socket.wait(false, stalled, None) {
                Ok(Wake::Writable) => session.pump(Patience::Wait),
                Ok(_) => {}
                Err(_) => session.give_up(),
            }
        }
        session.pump(Patience::Wait);
    }
}

/// A receive that ran out of patience is `None`.
fn patient(received: io::Result<usize>) -> io::Result<Option<usize>> {
    match received {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        other => other.map(Some),
    }
}

/// An empty vector of the same memory, for data of another lifetime.
fn recycle<'a>(mut writes: Vec<Write<'_>>) -> Vec<Write<'a>> {
    writes.clear();
    // Collecting in place keeps the allocation; nothing is left to be mapped.
    writes.into_iter().map(|write| Write { offset: write.offset, data: &[], fua: write.fua }).collect()
}
