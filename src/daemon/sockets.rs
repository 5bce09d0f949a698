//! Listening sockets that whoever started us passes on (systemd's protocol: `LISTEN_FDS`, `LISTEN_PID`, `LISTEN_FDNAMES`).
//!
//! They listen before we run and go on listening after us, so that a restart refuses no client. Each must belong to a
//! disk: by its name, if that is `MACHINE/DISK`; else by its address, which is the disk's `listen`; else because there
//! is one socket and one disk. One that belongs to none refuses the start: whoever connected to it would wait for ever.
//!
//! A proxy that hands over to its successor passes its sockets on in the same way. Those that it made itself are called
//! [`HANDED_OVER`]; they are the successor's to remove, and one that no disk has any more is closed.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use listenfd::ListenFd;
use nbd_proxy::server::{Inherited, Listen, Listening};
use nbd_proxy::{Error, Kind, Result};

/// The name of a socket that a Lifeboat made.
pub const HANDED_OVER: &str = "lifeboat";

/// What was passed on and not yet taken.
#[derive(Debug, Default)]
pub struct Passed {
    sockets: Vec<Socket>,
}

#[derive(Debug)]
struct Socket {
    name: String,
    place: Place,
    socket: Listening,
}

/// Where a socket listens.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Path(PathBuf),
    /// A Unix socket that is on no path.
    Nowhere,
    Address(SocketAddr),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "unix:{}", path.display()),
            Self::Nowhere => f.write_str("a Unix socket without a path"),
            Self::Address(address) => write!(f, "tcp:{address}"),
        }
    }
}

impl Passed {
    /// Takes what was passed to this process out of its environment. To be called once, before any thread is started.
    pub fn take() -> Result<Self> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':').map(str::to_owned);
        let mut found = ListenFd::from_env();
        let mut sockets = Vec::new();
        for index in 0..found.len() {
            let name = names.next().unwrap_or_default();
            let refused = |error: std::io::Error| {
                Error::new(
                    Kind::InvalidInput,
                    format!("passed socket {index} ({name})"),
                    format!("cannot be used: {error}"),
                )
                .remedy("pass on listening stream sockets only, on Unix paths or TCP")
                .source(error)
            };
            let (place, socket) = match found.take_unix_listener(index) {
                Ok(Some(listener)) => {
                    let address = listener.local_addr().map_err(refused)?;
                    let place =
                        address.as_pathname().map_or(Place::Nowhere, |path| Place::Path(path.to_owned()));
                    (place, Listening::Unix(listener))
                }
                _ => match found.take_tcp_listener(index).map_err(refused)? {
                    Some(listener) => {
                        let address = listener.local_addr().map_err(refused)?;
                        (Place::Address(address), Listening::Tcp(listener))
                    }
                    None => continue,
                },
            };
            sockets.push(Socket { name, place, socket });
        }
        Ok(Self { sockets })
    }

    /// The socket of the disk whose export is `name` and listens at `listen`; it is the `only` one there is, or not.
    pub fn for_disk(&mut self, name: &str, listen: &Listen, only: bool) -> Option<Inherited> {
        let place = match listen {
            Listen::Unix { path, .. } => Place::Path(path.clone()),
            Listen::Tcp(address) => Place::Address(*address),
        };
        let named = self.sockets.iter().position(|socket| socket.name == name);
        let bound = || self.sockets.iter().position(|socket| socket.place == place);
        let alone = || {
            let one = only && matches!(&self.sockets[..], [socket] if socket.name != HANDED_OVER);
            one.then_some(0)
        };
        let at = named.or_else(bound).or_else(alone)?;
        let Socket { name, socket, .. } = self.sockets.remove(at);
        Some(Inherited { socket, ours: name == HANDED_OVER })
    }

    /// Refuses what nobody has taken.
    pub fn none_left(&self) -> Result<()> {
        let Some(socket) = self.sockets.iter().find(|socket| socket.name != HANDED_OVER) else {
            return Ok(());
        };
        let message =
            format!("the socket {} ({}) was passed on, but no disk listens there", socket.place, socket.name);
        Err(Error::new(Kind::InvalidInput, "LISTEN_FDS", message)
            .remedy("give a disk that address as its listen, or name the socket MACHINE/DISK"))
    }
}

#[cfg(test)]
mod tests;
