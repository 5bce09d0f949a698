//! Accepting connections, and the hall that knows all of them.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags};
use rustix::net::{SocketFlags, sockopt};

use super::Limits;
use super::budget::{Budget, Share};
use super::buffer::Inbox;
use super::clients::Clients;
use super::connection::Connection;
use super::handshake::{self, Chosen};
use super::listen::Bound;
use super::outbox::Outbox;
use super::session::{Disk, Session};
use super::socket::Socket;
use crate::nbd::ExportInfo;
use crate::{Error, Kind, Result};

/// Stack of a connection's thread; only touched pages count.
const STACK: usize = 512 << 10;
/// Replies that the kernel may hold for a client.
const SEND_BUFFER: usize = 512 << 10;
/// No batch is spread over more processors than this.
const MAX_LANES: usize = 4;
/// Pause when the host refuses another descriptor or thread.
const BREATHER: Duration = Duration::from_millis(100);

#[derive(Default)]
struct Present {
    next: u64,
    sockets: HashMap<u64, Arc<Socket>>,
    threads: Vec<JoinHandle<()>>,
}

/// All connections of a server.
pub(super) struct Hall {
    pub(super) limits: Limits,
    /// Processors that one connection's writes may be spread over.
    lanes: usize,
    budget: Arc<Budget>,
    present: Mutex<Present>,
    left: Condvar,
}

impl Hall {
    /// An empty hall.
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            lanes: thread::available_parallelism().map_or(1, |count| count.get()).min(MAX_LANES),
            budget: Budget::new(limits.memory),
            present: Mutex::default(),
            left: Condvar::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Present> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves a new connection in a thread of its own, if there is room.
    fn admit(self: &Arc<Self>, fd: OwnedFd, room: &Arc<Room>) -> io::Result<()> {
        let mut present = self.lock();
        present.threads.retain(|thread| !thread.is_finished());
        if present.sockets.len() >= self.limits.connections {
            tracing::info!(limit = self.limits.connections, "closed a connection beyond the limit");
            return Ok(());
        }
        // A large reply should fit, so that the next one is made while the client reads; a host may allow less.
        if sockopt::set_socket_send_buffer_size_force(&fd, SEND_BUFFER).is_err() {
            let _ = sockopt::set_socket_send_buffer_size(&fd, SEND_BUFFER);
        }
        let socket = Arc::new(Socket::new(fd)?);
        let id = present.next;
        present.next += 1;
        present.sockets.insert(id, Arc::clone(&socket));
        let guest = Guest { hall: Arc::clone(self), id };
        let room = Arc::clone(room);
        let hall = Arc::clone(self);
        let share = self.budget.share();
        let deadline = Instant::now() + self.limits.handshake;
        // The guest's guard takes the lock when it goes, at once if no thread can be had.
        drop(present);
        let builder = thread::Builder::new().name("nbd-client".into()).stack_size(STACK);
        let thread = builder.spawn(move || {
            serve(&socket, &room, &hall, &share, deadline);
            drop((socket, room, hall, share));
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

/// A connection's place in the hall.
struct Guest {
    hall: Arc<Hall>,
    id: u64,
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.hall.lock().sockets.remove(&self.id);
        self.hall.left.notify_all();
    }
}

/// What is served on one socket.
struct Room {
    infos: Arc<[ExportInfo]>,
    disks: Vec<Arc<Disk>>,
}

/// One connection from first byte to last.
fn serve(socket: &Arc<Socket>, room: &Room, hall: &Hall, share: &Share, deadline: Instant) {
    let mut inbox = Inbox::new(share.sizes.inbox);
    let chosen = match handshake::shake_hands(socket, Arc::clone(&room.infos), &mut inbox, deadline) {
        Ok(Some(chosen)) => chosen,
        Ok(None) => return,
        Err(error) => {
            tracing::debug!(%error, "a client was lost during the handshake");
            return;
        }
    };
    let Chosen { negotiated, answer } = chosen;
    let index = negotiated.export;
    let (Some(disk), Some(info)) = (room.disks.get(index), room.infos.get(index)) else { return };
    let session = Arc::new(Session {
        socket: Arc::clone(socket),
        outbox: Outbox::new(share.sizes.in_flight),
        negotiated,
        disk: Arc::clone(disk),
        export: info.name.clone(),
        chunk: share.sizes.chunk,
        lanes: hall.lanes,
    });
    let member = Clients::enter(&session);
    // Only now may the client believe that it is connected: nothing older will be carried out behind its back.
    if member.wait_for_hung_up() && socket.send_by(&answer, Instant::now() + Duration::from_secs(10)).is_ok()
    {
        tracing::debug!(export = session.export, "a client has connected");
        Connection::new(session, inbox).run();
    }
}

/// The thread of one listening socket.
pub(super) struct Acceptor {
    bound: Bound,
    bell: OwnedFd,
}

impl Acceptor {
    /// Begins to accept.
    pub(super) fn start(
        bound: Bound,
        infos: Arc<[ExportInfo]>,
        disks: Vec<Arc<Disk>>,
        hall: Arc<Hall>,
    ) -> Result<(Arc<Self>, JoinHandle<()>)> {
        let failed = |error: io::Error| {
            Error::new(Kind::Io, "the NBD server", format!("cannot start a listener: {error}")).source(error)
        };
        let bell = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
        let acceptor = Arc::new(Self { bound, bell });
        let room = Arc::new(Room { infos, disks });
        let thread = {
            let acceptor = Arc::clone(&acceptor);
            let builder = thread::Builder::new().name("nbd-accept".into()).stack_size(STACK);
            builder.spawn(move || acceptor.run(&room, &hall)).map_err(failed)?
        };
        Ok((acceptor, thread))
    }

    /// Where it listens, for TCP.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.bound.address
    }

    /// Makes the thread end.
    pub(super) fn stop(&self) {
        // A full counter rings as well.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }

    fn run(&self, room: &Arc<Room>, hall: &Arc<Hall>) {
        loop {
            let mut fds =
                [PollFd::new(&self.bell, PollFlags::IN), PollFd::new(&self.bound.fd, PollFlags::IN)];
            let polled = rustix::event::poll(&mut fds, None);
            let [bell, _] = fds.map(|fd| fd.revents());
            if polled.is_ok() && !bell.is_empty() {
                return;
            }
            if let Err(error) = self.accept(room, hall) {
                tracing::warn!(%error, "cannot accept a connection");
                thread::sleep(BREATHER);
            }
        }
    }

    fn accept(&self, room: &Arc<Room>, hall: &Arc<Hall>) -> io::Result<()> {
        use rustix::io::Errno;
        let fd = match rustix::net::accept_with(&self.bound.fd, SocketFlags::CLOEXEC) {
            Ok(fd) => fd,
            // The client is gone already, or another wake-up took it.
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED | Errno::PROTO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        if self.bound.address.is_some() {
            // Fails only if the client is gone again, which the handshake will notice.
            let _ = sockopt::set_tcp_nodelay(&fd, true);
            let _ = sockopt::set_socket_keepalive(&fd, true);
        }
        hall.admit(fd, room)
    }
}
