//! One client's socket and the bell that wakes its thread.
//!
//! The place where connected sockets are read and written. The descriptor stays in blocking mode: a connection's own
//! thread may wait on it, a worker never does ([`Socket::send_some`]).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, sockopt};

/// What a wait ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wake {
    /// The socket can be read (or has ended, which a read will say).
    Readable,
    /// The socket takes bytes again.
    Writable,
    /// Somebody rang.
    Bell,
    /// The time is over.
    Timeout,
}

/// How the other side of a socket has ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HangUp {
    /// It has not.
    No,
    /// It sends no more, and may still read (a closed TCP socket looks the same).
    Half,
    /// It is gone.
    Full,
}

/// A connected socket with a bell.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    bell: OwnedFd,
    halted: AtomicBool,
    /// The client's own socket, if this is one end of a pair and others carry the bytes between the two.
    client: Option<Arc<Socket>>,
}

impl Socket {
    /// Takes over a connected stream socket.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        let bell = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { fd, bell, halted: AtomicBool::new(false), client: None })
    }

    /// A socket that stands for `client`, and the other end of its pair.
    pub(super) fn behind(client: &Arc<Self>) -> io::Result<(Self, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        Ok((Self { client: Some(Arc::clone(client)), ..Self::new(ours)? }, theirs))
    }

    /// Tells the other side that nothing more will be sent.
    pub(super) fn end_sending(&self) {
        let _ = rustix::net::shutdown(&self.fd, Shutdown::Write);
    }

    /// Makes [`Socket::receive`] give up with `WouldBlock` after so long without a byte.
    pub(super) fn set_patience(&self, patience: Option<Duration>) -> io::Result<()> {
        let timeout = sockopt::Timeout::Recv;
        sockopt::set_socket_timeout(&self.fd, timeout, patience).map_err(io::Error::from)
    }

    /// Receives what is there, at least one byte; waits if there is nothing. 0 means the end.
    pub(super) fn receive(&self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match rustix::net::recv(&self.fd, &mut *buf, RecvFlags::empty()) {
                Err(Errno::INTR) => {}
                Ok((len, _)) => return Ok(len),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Receives what is there, if anything is; `None` if not.
    pub(super) fn receive_now(&self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match rustix::net::recv(&self.fd, &mut *buf, RecvFlags::DONTWAIT) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Ok((len, _)) => return Ok(Some(len)),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Receives until `buf` is full or the end comes; waits as long as that takes.
    pub(super) fn receive_all(&self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match rustix::net::recv(&self.fd, &mut *buf, RecvFlags::WAITALL) {
                Err(Errno::INTR) => {}
                Ok((len, _)) => return Ok(len),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends everything; waits as long as that takes.
    pub(super) fn send_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match rustix::net::send(&self.fd, bytes, SendFlags::NOSIGNAL) {
                Err(Errno::INTR) => {}
                Ok(sent) => bytes = bytes.get(sent..).unwrap_or_default(),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Sends what the socket takes without waiting, and says how much that was.
    pub(super) fn send_some(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut total = 0;
        while let Some(rest) = bytes.get(total..).filter(|rest| !rest.is_empty()) {
            match rustix::net::send(&self.fd, rest, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Ok(sent) => total += sent,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(total)
    }

    /// Sends everything before `deadline`, or fails.
    pub(super) fn send_by(&self, bytes: &[u8], deadline: Instant) -> io::Result<()> {
        let mut left = bytes;
        loop {
            let sent = self.send_some(left)?;
            left = left.get(sent..).unwrap_or_default();
            if left.is_empty() {
                return Ok(());
            }
            if self.wait(false, true, Some(deadline))? == Wake::Timeout || self.halted() {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }

    /// Waits until the socket can be read or written, as asked, or the bell rings (it is silent afterwards).
    pub(super) fn wait(&self, read: bool, write: bool, deadline: Option<Instant>) -> io::Result<Wake> {
        let mut interest = PollFlags::empty();
        interest.set(PollFlags::IN, read);
        interest.set(PollFlags::OUT, write);
        loop {
            let mut fds = [PollFd::new(&self.bell, PollFlags::IN), PollFd::new(&self.fd, interest)];
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            match rustix::event::poll(&mut fds, timeout.as_ref()) {
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
                Ok(0) => return Ok(Wake::Timeout),
                Ok(_) => {}
            }
            let [bell, socket] = fds.map(|fd| fd.revents());
            if !bell.is_empty() {
                let mut count = [0; 8];
                // Nothing to read means that somebody else silenced it.
                let _ = rustix::io::read(&self.bell, &mut count);
                return Ok(Wake::Bell);
            }
            if write && socket.intersects(PollFlags::OUT | PollFlags::ERR | PollFlags::HUP) {
                return Ok(Wake::Writable);
            }
            return Ok(Wake::Readable);
        }
    }

    /// Wakes the thread that waits.
    pub(super) fn ring(&self) {
        // A full counter rings as well.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }

    /// From now on nothing that arrives is looked at: the connection finishes what it has and ends.
    pub(super) fn halt(&self) {
        self.halted.store(true, Ordering::Release);
        let _ = rustix::net::shutdown(&self.fd, Shutdown::Read);
        self.ring();
    }

    /// Whether [`Socket::halt`] was called.
    pub(super) fn halted(&self) -> bool {
        self.halted.load(Ordering::Acquire)
    }

    /// Ends the connection in both directions; whoever waits on it wakes up.
    pub(super) fn cut(&self) {
        self.halted.store(true, Ordering::Release);
        let _ = rustix::net::shutdown(&self.fd, Shutdown::Both);
        if let Some(client) = &self.client {
            client.cut();
        }
        self.ring();
    }

    /// How the other side has ended the connection, if it has.
    pub(super) fn hang_up(&self) -> HangUp {
        let asked = self.client.as_deref().unwrap_or(self);
        let mut fds = [PollFd::from_borrowed_fd(asked.as_fd(), PollFlags::RDHUP)];
        let now = Timespec::try_from(Duration::ZERO).ok();
        let _ = rustix::event::poll(&mut fds, now.as_ref());
        let [events] = fds.map(|fd| fd.revents());
        if events.intersects(PollFlags::HUP | PollFlags::ERR) {
            HangUp::Full
        } else if events.intersects(PollFlags::RDHUP) {
            HangUp::Half
        } else {
            HangUp::No
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
