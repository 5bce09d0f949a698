//! What a connection's thread and the workers share, and the slow requests that workers do.
//!
//! A [`Job`] holds its session and what it was counted with; when it ends, however it ends, the count goes down. A read
//! longer than a chunk is answered chunk by chunk and goes to the back of the queue in between, so that it holds up
//! neither the wire nor the workers; when the client reads too slowly it is parked until the outbox has shrunk.

use std::io;
use std::sync::Arc;

use super::buffer::Staging;
use super::clients::Clients;
use super::outbox::{Outbox, Patience};
use super::pool::{Pool, Task};
use super::read::{self, Answer};
use super::socket::Socket;
use super::status;
use crate::device::{BlockDevice, Write, ZeroMode};
use crate::nbd::{Contexts, Errno, Negotiated, Tag, reply};

/// A device that is served, under whatever names.
pub(super) struct Disk {
    pub(super) device: Arc<dyn BlockDevice>,
    pub(super) pool: Arc<Pool<Job>>,
    pub(super) clients: Clients,
}

/// One connection after its handshake.
pub(super) struct Session {
    pub(super) socket: Arc<Socket>,
    pub(super) outbox: Outbox<Job>,
    pub(super) negotiated: Negotiated,
    pub(super) disk: Arc<Disk>,
    /// The export's name.
    pub(super) export: String,
    /// Largest piece of a read that is answered at once.
    pub(super) chunk: usize,
}

impl Session {
    /// A request without data is done, well or not.
    pub(super) fn complete(&self, out: &mut Vec<u8>, tag: Tag, result: io::Result<()>) {
        match result {
            Ok(()) => out.extend_from_slice(&reply::done(self.negotiated.framing, tag)),
            Err(error) => self.failed(out, tag, &error),
        }
    }

    /// A request has failed on the device.
    pub(super) fn failed(&self, out: &mut Vec<u8>, tag: Tag, error: &io::Error) {
        tracing::debug!(export = self.export, tag.cookie, %error, "a request failed");
        reply::error(out, self.negotiated.framing, tag, Errno::from(error), &error.to_string());
    }

    /// Sends what is queued, as far as `patience` goes.
    pub(super) fn pump(&self, patience: Patience) {
        Job::go_on(self.outbox.pump(&self.socket, patience));
    }

    /// The client cannot be answered any more.
    pub(super) fn give_up(&self) {
        drop(self.outbox.give_up(&self.socket));
    }
}

/// A request that may wait for the device.
#[derive(Debug)]
pub(super) enum Work {
    /// What is left of a read.
    Read { offset: u64, len: usize, whole: bool },
    /// A write that must be durable; the data has been copied out of the receive buffer.
    Write { offset: u64, data: Vec<u8> },
    /// A large plain write, with the receive buffer that it came in.
    Slab { offset: u64, at: usize, len: usize, buf: Vec<u8> },
    /// A flush, or the end of a durable write that came in pieces.
    Flush,
    /// A trim or a write of zeroes.
    Zero { offset: u64, len: u64, mode: ZeroMode },
    /// A hint.
    Cache { offset: u64, len: u64 },
    /// A question about allocation.
    BlockStatus { offset: u64, len: u64, one: bool, contexts: Contexts },
}

/// A slow request on its way.
pub(super) struct Job {
    session: Arc<Session>,
    tag: Tag,
    work: Work,
    counted: usize,
}

impl Job {
    /// Bytes that `work` will hold.
    pub(super) fn weight(work: &Work, chunk: usize) -> usize {
        match work {
            Work::Read { len, .. } => (*len).min(chunk),
            Work::Slab { len, .. } => *len,
            Work::Write { data, .. } => data.len(),
            _ => 0,
        }
    }

    /// Hands `work`, which the outbox has admitted with `counted` bytes, to the workers.
    pub(super) fn submit(session: &Arc<Session>, tag: Tag, work: Work, counted: usize) {
        let job = Self { session: Arc::clone(session), tag, work, counted };
        session.disk.pool.submit(job);
    }

    /// Resumes parked work.
    pub(super) fn go_on(parked: Vec<Self>) {
        for job in parked {
            let pool = Arc::clone(&job.session.disk.pool);
            pool.submit(job);
        }
    }

    /// Answers one chunk; true if the whole read is answered.
    fn read(&mut self, offset: u64, len: usize, whole: bool) -> bool {
        let session = &self.session;
        let piece = len.min(session.chunk);
        let answer = Answer { tag: self.tag, offset, len: piece, whole, last: piece == len, wait: true };
        let mut out = Staging::reuse(session.outbox.spare(answer.room()), answer.room());
        match read::fill(
            &*session.disk.device,
            session.negotiated.framing,
            &answer,
            &mut out,
            &mut Vec::new(),
        ) {
            Ok(true) => {
                let (bytes, used) = out.into_parts();
                session.outbox.push_buffer(bytes, used);
                let (offset, len) = (offset + read::bytes(piece), len - piece);
                self.work = Work::Read { offset, len, whole };
                answer.last
            }
            Ok(false) => {
                self.fail(&io::Error::other("the device would not read"));
                true
            }
            Err(error) => {
                self.fail(&error);
                true
            }
        }
    }

    fn fail(&self, error: &io::Error) {
        let mut out = Vec::new();
        self.session.failed(&mut out, self.tag, error);
        self.session.outbox.push(&out);
    }

    /// Everything but reads.
    fn perform(&mut self) {
        let session = &self.session;
        let device = &*session.disk.device;
        let result = match &self.work {
            Work::Write { offset, data } => write_one(device, &Write { offset: *offset, data, fua: true }),
            Work::Slab { offset, at, len, buf } => {
                let data = buf.get(*at..*at + *len).unwrap_or_default();
                write_one(device, &Write { offset: *offset, data, fua: false })
            }
            Work::Zero { offset, len, mode } => device.zero(*offset, *len, *mode),
            Work::Cache { offset, len } => device.cache(*offset, *len),
            Work::BlockStatus { offset, len, one, contexts } => {
                match status::answer(
                    device,
                    session.negotiated.framing,
                    self.tag,
                    *offset..*offset + *len,
                    *one,
                    *contexts,
                ) {
                    Ok(out) => return session.outbox.push(&out),
                    Err(error) => Err(error),
                }
            }
            Work::Flush | Work::Read { .. } => device.flush(),
        };
        let mut out = Vec::new();
        session.complete(&mut out, self.tag, result);
        session.outbox.push(&out);
    }
}

impl Task for Job {
    fn run(mut self) {
        if self.session.outbox.is_broken() && matches!(self.work, Work::Read { .. }) {
            return;
        }
        let ended = match self.work {
            Work::Read { offset, len, whole } => self.read(offset, len, whole),
            _ => {
                self.perform();
                true
            }
        };
        self.session.pump(Patience::Never);
        if !ended {
            let session = Arc::clone(&self.session);
            if let Some(job) = session.outbox.park(self) {
                session.disk.pool.submit(job);
            }
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if let Work::Slab { buf, .. } = &mut self.work {
            self.session.outbox.end_slab(std::mem::take(buf));
        }
        self.session.outbox.ended(&self.session.socket, self.counted);
    }
}

fn write_one(device: &dyn BlockDevice, write: &Write<'_>) -> io::Result<()> {
    let mut results = Vec::with_capacity(1);
    device.write_batch(std::slice::from_ref(write), &mut results);
    results.pop().unwrap_or_else(|| Err(io::Error::other("the device gave no result")))
}
