//! The thread between a client's socket, where everything is TLS, and the server's end of a socket pair.
//!
//! It waits on both and never in one of them. Each direction holds little: nothing is read from the server while the
//! client has not taken what it was sent, nor from the client while the server has not. So neither side's slowness costs
//! memory, and one direction never waits for the other.
//!
//! It ends with an error when the handshake fails or takes too long, and when the client is gone; well, when the
//! server has ended its side and the client has everything, or has had [`LINGER`] to take it.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown};
use rustls::ServerConnection;

use super::super::socket::Socket;

/// Time for a client to take its last replies once the server has ended.
const LINGER: Duration = Duration::from_secs(10);
/// Bytes of one direction on their way.
const BUFFER: usize = 64 << 10;

/// See the module.
pub(super) struct Relay {
    client: Arc<Socket>,
    server: OwnedFd,
    tls: ServerConnection,
    /// Bytes from the client for the server: `pending` of them, of which `sent` have gone.
    clear: Vec<u8>,
    pending: usize,
    sent: usize,
    /// Room for bytes from the server.
    reply: Vec<u8>,
    /// The client sends no more.
    client_ended: bool,
    /// The server sends no more, and the client knows.
    server_ended: bool,
    /// Set once the server begins to end: when the client must have everything.
    last_call: Option<Instant>,
}

/// What to wait for, and what came.
struct Ready {
    client: PollFlags,
    server: PollFlags,
}

impl Relay {
    /// A relay whose handshake has not begun.
    pub(super) fn new(client: Arc<Socket>, server: OwnedFd, mut tls: ServerConnection) -> Self {
        // Bounded here: nothing is added while something waits.
        tls.set_buffer_limit(None);
        Self {
            client,
            server,
            tls,
            clear: vec![0; BUFFER],
            pending: 0,
            sent: 0,
            reply: vec![0; BUFFER],
            client_ended: false,
            server_ended: false,
            last_call: None,
        }
    }

    /// Carries bytes to the end. The handshake must be done before `deadline`.
    pub(super) fn run(&mut self, deadline: Instant) -> io::Result<()> {
        loop {
            let end = if self.tls.is_handshaking() { Some(deadline) } else { self.last_call };
            let ready = match self.wait(end)? {
                Some(ready) => ready,
                None if self.tls.is_handshaking() => {
                    return Err(timed_out("the TLS handshake took too long"));
                }
                None => return Err(timed_out("the client does not take its last replies")),
            };
            if ready.client.intersects(PollFlags::HUP | PollFlags::ERR) {
                return Ok(());
            }
            if ready.server.intersects(PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR) {
                self.last_call.get_or_insert_with(|| Instant::now() + LINGER);
            }
            if ready.client.contains(PollFlags::IN) {
                self.hear_client()?;
            }
            self.tell_server()?;
            if ready.server.intersects(PollFlags::IN | PollFlags::HUP) && self.wants_reply() {
                self.hear_server()?;
            }
            self.tell_client()?;
            if self.server_ended && !self.tls.wants_write() {
                return Ok(());
            }
        }
    }

    fn wants_reply(&self) -> bool {
        !self.server_ended && !self.tls.is_handshaking() && !self.tls.wants_write()
    }

    /// Waits until something can be done; nothing when `end` has come.
    fn wait(&self, end: Option<Instant>) -> io::Result<Option<Ready>> {
        let full = self.pending > 0;
        let ending = self.last_call.is_some();
        let mut client = PollFlags::empty();
        client.set(PollFlags::IN, !self.client_ended && !full);
        client.set(PollFlags::OUT, self.tls.wants_write());
        let mut server = PollFlags::RDHUP;
        server.set(PollFlags::IN, self.wants_reply());
        server.set(PollFlags::OUT, full);
        loop {
            let mut fds = [
                PollFd::from_borrowed_fd(self.client.as_fd(), client),
                PollFd::from_borrowed_fd(self.server.as_fd(), server),
            ];
            // An end is told for ever: once it is known, the server is looked at only to take what it has left.
            let watched = if ending && !self.wants_reply() { 1 } else { 2 };
            let left = end.map(|at| at.saturating_duration_since(Instant::now()));
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            match rustix::event::poll(&mut fds[..watched], timeout.as_ref()) {
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
                Ok(0) => return Ok(None),
                Ok(_) => {
                    let [client, server] = fds.map(|fd| fd.revents());
                    return Ok(Some(Ready { client, server }));
                }
            }
        }
    }

    fn hear_client(&mut self) -> io::Result<()> {
        match self.tls.read_tls(&mut Wire(&self.client)) {
            Ok(0) if self.tls.is_handshaking() => {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the client left during the handshake",
                ));
            }
            Ok(0) => self.client_ended = true,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
        if let Err(error) = self.tls.process_new_packets() {
            // The client is told why, if it still listens.
            let _ = self.tell_client();
            return Err(io::Error::other(error));
        }
        Ok(())
    }

    /// Gives the server what it takes of the client's bytes.
    fn tell_server(&mut self) -> io::Result<()> {
        loop {
            if self.pending == 0 {
                match self.tls.reader().read(&mut self.clear) {
                    Ok(0) => self.client_ended = true,
                    Ok(len) => (self.pending, self.sent) = (len, 0),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    // An end that nobody announced; what it means is for the protocol inside to say.
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => self.client_ended = true,
                    Err(error) => return Err(error),
                }
            }
            if self.pending == 0 {
                if self.client_ended {
                    let _ = rustix::net::shutdown(&self.server, Shutdown::Write);
                }
                return Ok(());
            }
            let rest = self.clear.get(self.sent..self.pending).unwrap_or_default();
            match rustix::net::send(&self.server, rest, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(sent) => self.sent += sent,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Ok(()),
                // The server reads no more, and may still be sending.
                Err(Errno::PIPE) => self.sent = self.pending,
                Err(error) => return Err(error.into()),
            }
            if self.sent == self.pending {
                self.pending = 0;
            }
        }
    }

    /// Takes some of the server's bytes.
    fn hear_server(&mut self) -> io::Result<()> {
        match rustix::net::recv(&self.server, &mut self.reply[..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => {
                self.server_ended = true;
                self.tls.send_close_notify();
            }
            Ok((len, _)) => self.tls.writer().write_all(self.reply.get(..len).unwrap_or_default())?,
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Sends the client what its socket takes.
    fn tell_client(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut Wire(&self.client)) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn timed_out(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, text)
}

/// The client's socket, never waited for.
struct Wire<'a>(&'a Socket);

impl Read for Wire<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.receive_now(buf)?.ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }
}

impl Write for Wire<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.send_some(bytes)? {
            0 if !bytes.is_empty() => Err(io::ErrorKind::WouldBlock.into()),
            sent => Ok(sent),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
