//! A connection's bytes, over a Unix socket or TCP, with bounded waits.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use super::address::Place;

/// How long a server may take to accept and to shake hands.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// A connection.
#[derive(Debug)]
pub enum Stream {
    /// To a Unix socket.
    Unix(UnixStream),
    /// Over TCP.
    Tcp(TcpStream),
}

impl Stream {
    /// Connects.
    pub fn connect(place: &Place) -> io::Result<Self> {
        match place {
            Place::Unix(path) => connect_unix(path).map(Self::Unix),
            Place::Tcp(host, port) => {
                let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
                for address in (host.as_str(), *port).to_socket_addrs()? {
                    match TcpStream::connect_timeout(&address, HANDSHAKE) {
                        Ok(stream) => return stream.set_nodelay(true).map(|()| Self::Tcp(stream)),
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
        }
    }

    /// Names the run of the server's process, where the kernel tells: the same name is the same process with the same memory.
    /// A socket that a service manager listens at for the server tells nothing.
    pub fn server(&self) -> Option<String> {
        let Self::Unix(stream) = self else { return None };
        let pid = sockopt::socket_peercred(stream).ok()?.pid.as_raw_nonzero().get();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok().filter(|_| pid > 1)?;
        // The 22nd field is when it started; the second, in parentheses, may hold anything.
        let started = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?;
        Some(format!("{pid} {started}"))
    }

    /// Bounds each wait for bytes, and each for room to send.
    pub fn set_timeouts(&self, read: Duration, write: Duration) -> io::Result<()> {
        match self {
            Self::Unix(stream) => {
                stream.set_read_timeout(Some(read)).and_then(|()| stream.set_write_timeout(Some(write)))
            }
            Self::Tcp(stream) => {
                stream.set_read_timeout(Some(read)).and_then(|()| stream.set_write_timeout(Some(write)))
            }
        }
    }

    /// Ends it for whoever reads or writes it.
    pub fn shut_down(&self) {
        // Gone already is as good.
        let _ = match self {
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
        };
    }
}

/// The queue of a server that hangs may be full: the kernel waits no longer than the send timeout.
fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(HANDSHAKE))?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

impl Read for &Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => (&*stream).read(buf),
            Stream::Tcp(stream) => (&*stream).read(buf),
        }
    }
}

impl Write for &Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => (&*stream).write(buf),
            Stream::Tcp(stream) => (&*stream).write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A stream that is read and written until a deadline, however slowly its bytes come.
#[derive(Debug)]
pub struct Until<'a> {
    stream: &'a Stream,
    deadline: Instant,
}

impl<'a> Until<'a> {
    /// For a handshake that begins now.
    pub fn handshake(stream: &'a Stream) -> Self {
        Self { stream, deadline: Instant::now() + HANDSHAKE }
    }

    fn hurry(&self) -> io::Result<()> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the server does not answer"));
        }
        self.stream.set_timeouts(left, left)
    }
}

impl Read for Until<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.hurry()?;
        let mut stream = self.stream;
        match stream.read(buf) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(io::Error::new(io::ErrorKind::TimedOut, "the server does not answer"))
            }
            other => other,
        }
    }
}

impl Write for Until<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.hurry()?;
        let mut stream = self.stream;
        stream.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
