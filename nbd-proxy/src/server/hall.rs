//! The hall that knows every connection of a server, and how many there may be.
//!
//! A connection first stands in the lobby, while it negotiates, and has a seat once it has chosen an export. The lobby
//! is small: when it is full, the connection that has stood there longest makes room for the new one. A client that
//! means it needs milliseconds there, so thousands that connect and say nothing hold up nobody, and cost no more than a
//! lobby of threads. Seats are limited by themselves: who has one is not touched by a crowd in the lobby.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::Limits;
use super::budget::Budget;
use super::socket::Socket;

/// Stack of a connection's thread; only touched pages count.
const STACK: usize = 512 << 10;
/// How long a newcomer waits for those to leave who were told to go.
const AT_THE_DOOR: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Present {
    next: u64,
    /// Everybody, those included who have been told to go and have not gone yet.
    sockets: HashMap<u64, Arc<Socket>>,
    /// Those without a seat, in the order in which they came.
    lobby: VecDeque<u64>,
    seats: HashSet<u64>,
    threads: Vec<JoinHandle<()>>,
}

/// All connections of a server.
pub(super) struct Hall {
    pub(super) limits: Limits,
    pub(super) budget: Arc<Budget>,
    present: Mutex<Present>,
    left: Condvar,
}

impl Hall {
    /// An empty hall.
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            budget: Budget::new(limits.memory),
            present: Mutex::default(),
            left: Condvar::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Present> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has `serve` see to a new connection, in a thread of its own.
    pub(super) fn admit(
        self: &Arc<Self>,
        socket: Socket,
        serve: impl FnOnce(&Guest, Arc<Socket>) + Send + 'static,
    ) -> io::Result<()> {
        let socket = Arc::new(socket);
        let mut present = self.lock();
        present.threads.retain(|thread| !thread.is_finished());
        // Twice: those who are told to go may take a moment. On a busy host it may be a longer one, and then the next ones wait at the
        // door, in the kernel's queue: the newcomer may be the one who means it.
        let deadline = Instant::now() + AT_THE_DOOR;
        while present.sockets.len() >= self.limits.connections + 2 * self.limits.handshakes {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::debug!("closed a connection: those before it have not left yet");
                return Ok(());
            }
            present = self.left.wait_timeout(present, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        if present.lobby.len() >= self.limits.handshakes
            && let Some(oldest) = present.lobby.pop_front()
        {
            tracing::debug!(
                "closed a connection that did not finish its handshake, for there are newer ones"
            );
            present.sockets.get(&oldest).into_iter().for_each(|socket| socket.cut());
        }
        let id = present.next;
        present.next += 1;
        present.sockets.insert(id, Arc::clone(&socket));
        present.lobby.push_back(id);
        // The guest's guard takes the lock when it goes, at once if no thread can be had.
        drop(present);
        let guest = Guest { hall: Arc::clone(self), id };
        let builder = thread::Builder::new().name("nbd-client".into()).stack_size(STACK);
        let thread = builder.spawn(move || {
            serve(&guest, socket);
            drop(guest);
        })?;
        self.lock().threads.push(thread);
        Ok(())
    }

    /// Halts every connection, waits until they have ended, and joins their threads.
    pub(super) fn empty(&self) {
        let mut present = self.lock();
        present.sockets.values().for_each(|socket| socket.halt());
        let deadline = Instant::now() + self.limits.grace;
        while !present.sockets.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                present.sockets.values().for_each(|socket| socket.cut());
                present = self.left.wait(present).unwrap_or_else(PoisonError::into_inner);
            } else {
                present = self.left.wait_timeout(present, left).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
        let threads = std::mem::take(&mut present.threads);
        drop(present);
        for thread in threads {
            // A thread that panicked has said so on its own.
            let _ = thread.join();
        }
    }
}

/// A connection's place in the hall; it is left when this is dropped.
pub(super) struct Guest {
    hall: Arc<Hall>,
    id: u64,
}

impl Guest {
    /// The hall.
    pub(super) fn hall(&self) -> &Hall {
        &self.hall
    }

    /// From the lobby to a seat; false if all are taken, or the connection has been told to go.
    pub(super) fn sit_down(&self) -> bool {
        let mut present = self.hall.lock();
        let Some(at) = present.lobby.iter().position(|id| *id == self.id) else { return false };
        if present.seats.len() >= self.hall.limits.connections {
            return false;
        }
        present.lobby.remove(at);
        present.seats.insert(self.id);
        true
    }

    /// From now on `socket` is the connection's.
    pub(super) fn is_behind(&self, socket: &Arc<Socket>) {
        let old = self.hall.lock().sockets.insert(self.id, Arc::clone(socket));
        // Told to go in between: the word went to the old one.
        if old.is_some_and(|old| old.halted()) {
            socket.cut();
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut present = self.hall.lock();
        present.sockets.remove(&self.id);
        present.lobby.retain(|id| *id != self.id);
        present.seats.remove(&self.id);
        drop(present);
        self.hall.left.notify_all();
    }
}
