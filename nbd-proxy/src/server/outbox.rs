//! Replies on their way to one client, from its own thread and from workers.
//!
//! Nobody holds the lock over a send. Whoever finds nobody sending becomes the sender, and sends what others queue
//! meanwhile as well. A worker never waits for a client: what the socket does not take stays in the queue, and the
//! connection's thread is woken to wait for it. Pieces are whole chunks or whole replies and go out one after another;
//! a body that is promised as a whole ([`Outbox::begin_body`]) keeps everything else back until it has ended.
//!
//! The outbox also counts what the connection has in flight, so that a client that asks without reading, or reads
//! slower than it asks, stops its own connection and nothing else.

use std::collections::VecDeque;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::socket::Socket;

/// Small replies are gathered in pieces of this size.
const GATHER: usize = 4 << 10;
/// Buffers kept for reuse.
const SPARES: usize = 4;
/// Receive buffers that workers may have at a time. Few, so that they stay in the cache and are there again when needed: a
/// fresh one costs a page fault for every page.
const SLABS: usize = 4;
/// Slow requests of one connection, whatever their size.
const MAX_JOBS: usize = 128;

struct Piece {
    bytes: Vec<u8>,
    sent: usize,
    len: usize,
}

struct State<P> {
    queue: VecDeque<Piece>,
    /// Bytes in `queue`.
    queued: usize,
    /// Somebody is sending, or a body is under way.
    sending: bool,
    /// The client is gone; nothing is sent any more.
    broken: bool,
    /// Slow requests that have not ended, and the bytes they hold.
    jobs: usize,
    job_bytes: usize,
    /// The connection's thread waits for any of the above to shrink.
    watched: bool,
    /// Work that goes on when the queue has shrunk.
    parked: Vec<P>,
    spares: Vec<Vec<u8>>,
    /// Receive buffers that workers have, and those they are done with.
    slabs_out: usize,
    slabs: Vec<Vec<u8>>,
}

/// See the module. `P` is work that can be parked.
pub(super) struct Outbox<P> {
    limit: usize,
    state: Mutex<State<P>>,
    quiet: Condvar,
}

/// Whether a sender may wait for the client.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// The connection's own thread.
    Wait,
    /// A worker.
    Never,
}

/// What a connection has under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    /// No slow request.
    pub(super) idle: bool,
    /// Replies that only the connection's thread can see off.
    pub(super) stalled: bool,
}

impl<P> Outbox<P> {
    /// An outbox whose connection may have `limit` bytes in flight.
    pub(super) fn new(limit: usize) -> Self {
        let state = State {
            queue: VecDeque::new(),
            queued: 0,
            sending: false,
            broken: false,
            jobs: 0,
            job_bytes: 0,
            watched: false,
            parked: Vec::new(),
            spares: Vec::new(),
            slabs_out: 0,
            slabs: Vec::new(),
        };
        Self { limit, state: Mutex::new(state), quiet: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State<P>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a copy of some replies.
    pub(super) fn push(&self, bytes: &[u8]) {
        self.lock().copy(bytes);
    }

    /// Queues the first `len` bytes of a buffer.
    pub(super) fn push_buffer(&self, bytes: Vec<u8>, len: usize) {
        let mut state = self.lock();
        if !state.broken {
            state.queued += len;
            state.queue.push_back(Piece { bytes, sent: 0, len });
        }
    }

    /// A used buffer of at least `len` bytes, or an empty one.
    pub(super) fn spare(&self, len: usize) -> Vec<u8> {
        let mut state = self.lock();
        let found = state.spares.iter().position(|spare| spare.len() >= len);
        found.map(|index| state.spares.swap_remove(index)).unwrap_or_default()
    }

    /// Memory of `len` bytes, the same at every call, for receiving on while a worker has the buffer in use; none if too many
    /// have one already. Give it back by [`Outbox::end_slab`].
    pub(super) fn begin_slab(&self, len: usize) -> Option<Vec<u8>> {
        let mut state = self.lock();
        if state.slabs_out == SLABS {
            return None;
        }
        state.slabs_out += 1;
        let used = state.slabs.pop();
        drop(state);
        Some(used.unwrap_or_else(|| vec![0; len]))
    }

    /// A worker is done with a receive buffer.
    pub(super) fn end_slab(&self, bytes: Vec<u8>) {
        let mut state = self.lock();
        state.slabs_out -= 1;
        state.slabs.push(bytes);
    }

    /// Frees the buffers kept for reuse.
    pub(super) fn drop_spares(&self) {
        let mut state = self.lock();
        state.spares.clear();
        state.slabs.clear();
    }

    /// Whether the client is gone.
    pub(super) fn is_broken(&self) -> bool {
        self.lock().broken
    }

    /// Ends the connection: nothing is sent any more. Returns parked work, which must end now.
    #[must_use]
    pub(super) fn give_up(&self, socket: &Socket) -> Vec<P> {
        let mut state = self.lock();
        state.fail();
        let parked = std::mem::take(&mut state.parked);
        drop(state);
        self.quiet.notify_all();
        socket.cut();
        parked
    }

    /// Sends `bytes` behind what is queued (the connection's thread only), then whatever was queued meanwhile.
    #[must_use]
    pub(super) fn send(&self, socket: &Socket, bytes: &[u8]) -> Vec<P> {
        let mut state = self.lock();
        loop {
            if state.broken {
                return Vec::new();
            }
            if state.sending {
                state.copy(bytes);
                return Vec::new();
            }
            if state.queue.is_empty() {
                break;
            }
            drop(state);
            let parked = self.pump(socket, Patience::Wait);
            if !parked.is_empty() {
                self.push(bytes);
                return parked;
            }
            state = self.lock();
        }
        state.sending = true;
        drop(state);
        let sent = socket.send_all(bytes);
        let mut state = self.lock();
        state.sending = false;
        if sent.is_err() {
            drop(state);
            return self.give_up(socket);
        }
        if state.queue.is_empty() {
            return Vec::new();
        }
        drop(state);
        self.pump(socket, Patience::Wait)
    }

    /// Sends the queue unless somebody is at it. Returns parked work that may go on.
    #[must_use]
    pub(super) fn pump(&self, socket: &Socket, patience: Patience) -> Vec<P> {
        let mut state = self.lock();
        while !state.sending
            && let Some(mut piece) = state.queue.pop_front()
        {
            state.sending = true;
            drop(state);
            let rest = piece.bytes.get(piece.sent..piece.len).unwrap_or_default();
            let sent = match patience {
                Patience::Wait => socket.send_all(rest).map(|()| rest.len()),
                Patience::Never => socket.send_some(rest),
            };
            state = self.lock();
            state.sending = false;
            self.quiet.notify_all();
            let Ok(sent) = sent else {
                drop(state);
                return self.give_up(socket);
            };
            if state.broken {
                break;
            }
            piece.sent += sent;
            state.queued -= sent;
            if piece.sent < piece.len {
                state.queue.push_front(piece);
                drop(state);
                socket.ring();
                return Vec::new();
            }
            state.recycle(piece.bytes);
        }
        if state.watched {
            socket.ring();
        }
        if state.queued > self.limit / 4 { Vec::new() } else { std::mem::take(&mut state.parked) }
    }

    /// Parks `work` if too much is queued, or gives it back.
    pub(super) fn park(&self, work: P) -> Option<P> {
        let mut state = self.lock();
        if state.broken || state.queued <= self.limit / 2 {
            return Some(work);
        }
        state.parked.push(work);
        None
    }

    /// Whether bytes wait that only the connection's thread can see off.
    pub(super) fn is_stalled(&self) -> bool {
        self.lock().is_stalled()
    }

    /// Keeps the way free for a body that is sent piece by piece; false if the client is gone.
    pub(super) fn begin_body(&self) -> bool {
        let mut state = self.lock();
        loop {
            if state.broken {
                return false;
            }
            if !state.sending {
                state.sending = true;
                return true;
            }
            state = self.quiet.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The queue, for the one who keeps the way free: it goes before the body.
    pub(super) fn send_queue(&self, socket: &Socket) -> io::Result<()> {
        loop {
            let piece = self.lock().queue.pop_front();
            let Some(piece) = piece else { return Ok(()) };
            let rest = piece.bytes.get(piece.sent..piece.len).unwrap_or_default();
            let sent = socket.send_all(rest);
            let mut state = self.lock();
            state.queued = state.queued.saturating_sub(rest.len());
            state.recycle(piece.bytes);
            sent?;
        }
    }

    /// The body has ended.
    pub(super) fn end_body(&self) {
        self.lock().sending = false;
        self.quiet.notify_all();
    }

    /// Counts a slow request that holds `bytes`, if there is room; `watch` asks for the bell when there may be.
    pub(super) fn admit(&self, bytes: usize, watch: bool) -> bool {
        let mut state = self.lock();
        let held = state.job_bytes + state.queued;
        let fits = state.jobs < MAX_JOBS && (held == 0 || held + bytes <= self.limit);
        if fits {
            state.jobs += 1;
            state.job_bytes += bytes;
        }
        state.watched = watch && !fits;
        fits
    }

    /// How many slow requests are under way.
    pub(super) fn jobs(&self) -> usize {
        self.lock().jobs
    }

    /// A slow request has ended.
    pub(super) fn ended(&self, socket: &Socket, bytes: usize) {
        let mut state = self.lock();
        state.jobs -= 1;
        state.job_bytes -= bytes;
        let ring = state.watched;
        drop(state);
        if ring {
            socket.ring();
        }
    }

    /// What is under way; `watch` asks for the bell when a slow request ends.
    pub(super) fn standing(&self, watch: bool) -> Standing {
        let mut state = self.lock();
        let idle = state.jobs == 0;
        state.watched = watch && !idle;
        Standing { idle, stalled: state.is_stalled() }
    }
}

impl<P> State<P> {
    fn is_stalled(&self) -> bool {
        !self.sending && !self.queue.is_empty()
    }

    fn copy(&mut self, bytes: &[u8]) {
        if self.broken || bytes.is_empty() {
            return;
        }
        self.queued += bytes.len();
        if let Some(last) = self.queue.back_mut()
            && last.len + bytes.len() <= GATHER
            && last.len == last.bytes.len()
        {
            last.bytes.extend_from_slice(bytes);
            last.len += bytes.len();
            return;
        }
        let mut copy = Vec::with_capacity(bytes.len().max(GATHER));
        copy.extend_from_slice(bytes);
        self.queue.push_back(Piece { len: copy.len(), bytes: copy, sent: 0 });
    }

    fn recycle(&mut self, bytes: Vec<u8>) {
        if self.spares.len() < SPARES && bytes.len() > GATHER {
            self.spares.push(bytes);
        }
    }

    fn fail(&mut self) {
        self.broken = true;
        self.queue.clear();
        self.queued = 0;
    }
}

#[cfg(test)]
mod tests;
