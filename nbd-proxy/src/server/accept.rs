//! The thread of a listening socket.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags};
use rustix::net::{SocketFlags, sockopt};

use super::hall::Hall;
use super::listen::Bound;
use super::room::Room;
use super::socket::Socket;
use crate::{Error, Kind, Result};

/// Its stack; only touched pages count.
const STACK: usize = 128 << 10;
/// Replies that the kernel may hold for a client.
const SEND_BUFFER: usize = 512 << 10;
/// Pause when the host refuses another descriptor or thread.
const BREATHER: Duration = Duration::from_millis(100);
/// A TCP client that has been silent so long is asked whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// The thread of one listening socket.
pub(super) struct Acceptor {
    bound: Bound,
    bell: OwnedFd,
}

impl Acceptor {
    /// Begins to accept.
    pub(super) fn start(bound: Bound, room: Room, hall: Arc<Hall>) -> Result<(Arc<Self>, JoinHandle<()>)> {
        let failed = |error: io::Error| {
            Error::new(Kind::Io, "the NBD server", format!("cannot start a listener: {error}")).source(error)
        };
        let bell = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
        let acceptor = Arc::new(Self { bound, bell });
        let room = Arc::new(room);
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

    /// The socket, once the thread has ended.
    pub(super) fn into_bound(self: Arc<Self>) -> Option<Bound> {
        Arc::into_inner(self).map(|acceptor| acceptor.bound)
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
            let _ = sockopt::set_tcp_keepidle(&fd, KEEPALIVE);
            let _ = sockopt::set_tcp_keepintvl(&fd, KEEPALIVE);
        }
        // A large reply should fit, so that the next one is made while the client reads; a host may allow less.
        if sockopt::set_socket_send_buffer_size_force(&fd, SEND_BUFFER).is_err() {
            let _ = sockopt::set_socket_send_buffer_size(&fd, SEND_BUFFER);
        }
        let room = Arc::clone(room);
        hall.admit(Socket::new(fd)?, move |guest, socket| room.receive(guest, &socket))
    }
}
