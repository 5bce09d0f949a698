//! Listening sockets: how they are bound, and what happens to the file of a Unix socket.
//!
//! The file's mode is set between bind and listen, so nobody can connect before it holds. A file left behind by a dead
//! process is replaced; one that somebody answers is not, nor anything that is not a socket. On the way out the file is
//! removed only if it is still ours. A socket that we did not make is used as it is, and its file is not ours, unless it comes
//! from a server before us that made it and handed it over ([`Bound::hand_over`]).

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::Listen;
use crate::{Error, Kind, Result};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// A socket that listens already.
#[derive(Debug)]
pub struct Inherited {
    /// The socket.
    pub socket: Listening,
    /// A server before us made it: its file is ours to remove. Not so one of a service manager.
    pub ours: bool,
}

/// See [`Inherited`].
#[derive(Debug)]
pub enum Listening {
    /// On a path, or on none.
    Unix(UnixListener),
    /// On an address.
    Tcp(TcpListener),
}

/// A socket that goes on listening when its server has ended, for the next one.
#[derive(Debug)]
pub struct HandedOver {
    /// The socket.
    pub fd: OwnedFd,
    /// As in [`Inherited`].
    pub ours: bool,
}

/// A socket that accepts connections.
pub(super) struct Bound {
    pub(super) fd: OwnedFd,
    /// Where it really listens, for TCP.
    pub(super) address: Option<SocketAddr>,
    ours: bool,
    /// Removed when the socket is dropped.
    file: Option<SocketFile>,
}

/// The file of a Unix socket.
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
    /// It is the next server's.
    kept: bool,
}

impl SocketFile {
    fn at(path: PathBuf) -> io::Result<Self> {
        let meta = fs::symlink_metadata(&path)?;
        Ok(Self { path, identity: identity(&meta), kept: false })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|meta| identity(&meta) == self.identity);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "cannot remove the socket file");
        }
    }
}

fn identity(meta: &fs::Metadata) -> (u64, u64) {
    (meta.dev(), meta.ino())
}

impl Bound {
    /// Binds and listens.
    pub(super) fn new(listen: &Listen) -> Result<Self> {
        match listen {
            Listen::Unix { path, mode } => unix(path, *mode),
            Listen::Tcp(address) => tcp(*address),
        }
    }

    /// Accepts on a socket that listens already.
    pub(super) fn inherit(inherited: Inherited) -> Result<Self> {
        let failed = |error: io::Error| {
            let message = format!("a socket that was passed on cannot be used: {error}");
            Error::new(Kind::Io, "the NBD server", message).source(error)
        };
        let ours = inherited.ours;
        let (fd, address, path): (OwnedFd, _, _) = match inherited.socket {
            Listening::Unix(listener) => {
                let address = listener.local_addr().map_err(failed)?;
                (listener.into(), None, address.as_pathname().map(Path::to_owned))
            }
            Listening::Tcp(listener) => {
                let address = listener.local_addr().map_err(failed)?;
                (listener.into(), Some(address), None)
            }
        };
        rustix::io::ioctl_fionbio(&fd, true).map_err(|error| failed(error.into()))?;
        let file = match path.filter(|_| ours) {
            Some(path) => Some(SocketFile::at(path).map_err(failed)?),
            None => None,
        };
        Ok(Self { fd, address, ours, file })
    }

    /// Lets the socket go on listening without us: nobody is refused, everybody waits for the next server.
    pub(super) fn hand_over(mut self) -> HandedOver {
        if let Some(file) = &mut self.file {
            file.kept = true;
        }
        HandedOver { fd: self.fd, ours: self.ours }
    }
}

fn tcp(address: SocketAddr) -> Result<Bound> {
    let failed = |error: io::Error| {
        let kind = match error.kind() {
            io::ErrorKind::AddrInUse => Kind::InUse,
            io::ErrorKind::PermissionDenied => Kind::Denied,
            io::ErrorKind::AddrNotAvailable => Kind::InvalidInput,
            _ => Kind::Io,
        };
        let remedy = match kind {
            Kind::InUse => "choose another port, or stop the process that listens there",
            Kind::InvalidInput => "choose an address of this host",
            _ => "",
        };
        Error::new(kind, format!("tcp:{address}"), format!("cannot listen: {error}"))
            .remedy(remedy)
            .source(error)
    };
    let listener = TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok(Bound { fd: listener.into(), address: Some(address), ours: true, file: None })
}

fn unix(path: &Path, mode: u32) -> Result<Bound> {
    let failed = |what: &'static str| {
        move |error: rustix::io::Errno| {
            Error::io(what, path, error.into()).remedy("check the socket's folder")
        }
    };
    let address = SocketAddrUnix::new(path).map_err(|error| {
        Error::new(Kind::InvalidInput, path.display().to_string(), "the path of a socket is too long")
            .remedy("use a path of at most 107 bytes")
            .source(io::Error::from(error))
    })?;
    clear_the_way(path, &address)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(failed("make a socket for"))?;
    rustix::net::bind(&fd, &address).map_err(|error| match error {
        rustix::io::Errno::ADDRINUSE => in_use(path),
        error => failed("make the socket")(error),
    })?;
    let file =
        SocketFile::at(path.to_owned()).map_err(|error| Error::io("look at the socket", path, error))?;
    rustix::fs::chmod(path, Mode::from_raw_mode(mode)).map_err(failed("set the mode of the socket"))?;
    rustix::net::listen(&fd, BACKLOG).map_err(failed("listen on"))?;
    Ok(Bound { fd, address: None, ours: true, file: Some(file) })
}

fn in_use(path: &Path) -> Error {
    Error::new(Kind::InUse, path.display().to_string(), "another process serves this socket")
        .remedy("stop that process, or choose another path")
}

/// Removes the socket file of a process that is gone.
fn clear_the_way(path: &Path, address: &SocketAddrUnix) -> Result<()> {
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io("look at the socket", path, error)),
    };
    if !meta.file_type().is_socket() {
        return Err(Error::new(
            Kind::Exists,
            path.display().to_string(),
            "there is a file that is not a socket",
        )
        .remedy("move it away, or choose another path for the socket"));
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(|error| Error::io("make a socket to probe", path, error.into()))?;
    match rustix::net::connect(probe.as_fd(), address) {
        Err(rustix::io::Errno::CONNREFUSED) => {
            fs::remove_file(path).map_err(|error| Error::io("remove the dead socket", path, error))
        }
        // Accepted, or its queue is full, or we may not talk to it: somebody is there.
        Ok(()) | Err(_) => Err(in_use(path)),
    }
}

#[cfg(test)]
mod tests;
