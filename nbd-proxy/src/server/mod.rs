//! The NBD server: listeners, connections, and the threads behind them.
//!
//! Read in the order data flows: `listen` binds, `accept` takes connections into the `hall`, `room` lets them in,
//! `handshake` lets the client choose an export, [`connection`] serves it, `session` does what may wait, `outbox` sends.
//! [`tls`] protects a connection, `clients` holds the rule for clients that come back, `budget` bounds the memory.
//!
//! What holds:
//! - A broken or hostile client ends its own connection and disturbs no other: every length is bounded, nobody waits
//!   for a client but its own thread, and each disk has its own workers.
//! - A FLUSH covers every write replied to before it on any connection: a write is replied to only after the device has
//!   it, and the device's flush covers all it has. That is why multi-conn is always advertised.
//! - Every request that was begun is finished before its connection counts as gone, and a client that comes back waits
//!   for that.
//! - [`Server::stop`] reads nothing more, finishes and answers what is in flight, closes, joins every thread, and
//!   removes the sockets; no device is referred to afterwards. [`Server::hand_over`] does the same but lets the sockets
//!   listen on: who connects meanwhile waits for the next server.

mod accept;
mod budget;
mod buffer;
mod clients;
mod connection;
mod hall;
mod handshake;
mod listen;
mod outbox;
mod pool;
mod read;
mod room;
mod session;
mod socket;
mod status;
mod tls;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::device::BlockDevice;
use crate::nbd::wire;
use crate::{Error, Kind, Result};

use accept::Acceptor;
use clients::Clients;
use hall::Hall;
use listen::Bound;
use pool::Pool;
use room::Room;
use session::Disk;

pub use listen::{HandedOver, Inherited, Listening};
pub use tls::TlsFiles;

/// Mode of a Unix socket unless told otherwise: only the owner may connect.
pub const DEFAULT_SOCKET_MODE: u32 = 0o600;

/// A device under a name.
#[derive(Clone)]
pub struct Export {
    /// The name clients ask for, at most 4096 bytes.
    pub name: String,
    /// A sentence for people; may be empty.
    pub description: String,
    /// What is served.
    pub device: Arc<dyn BlockDevice>,
    /// Refuse every change, whatever the device can do.
    pub read_only: bool,
    /// How many clients may use it at a time, if there is a limit.
    pub max_clients: Option<usize>,
}

impl Export {
    /// A device that anybody may write who gets to the socket.
    pub fn new(name: impl Into<String>, device: Arc<dyn BlockDevice>) -> Self {
        let (name, description) = (name.into(), String::new());
        Self { name, description, device, read_only: false, max_clients: None }
    }
}

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A Unix socket.
    Unix {
        /// Its file.
        path: PathBuf,
        /// The file's mode; see [`DEFAULT_SOCKET_MODE`].
        mode: u32,
    },
    /// A TCP address; port 0 picks a free one.
    Tcp(SocketAddr),
}

/// A socket and what is served on it. Where that is exactly one export, the empty name means it as well.
pub struct Listener {
    /// Where.
    pub listen: Listen,
    /// A socket that listens there already, made by somebody else.
    pub inherited: Option<Inherited>,
    /// What.
    pub exports: Vec<Export>,
    /// How connections are protected; if it is set, nothing is served without.
    pub tls: Option<TlsFiles>,
}

impl Listener {
    /// A socket of our own, without TLS.
    pub fn new(listen: Listen, exports: Vec<Export>) -> Self {
        Self { listen, inherited: None, exports, tls: None }
    }
}

/// Bounds of a server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections that use an export, over all listeners; one more is refused. Default 128.
    pub connections: usize,
    /// Connections that have not chosen one; a newer one takes the place of the oldest. Default 64.
    pub handshakes: usize,
    /// Time for the handshake. Default 10 s.
    pub handshake: Duration,
    /// Threads per disk for requests that wait. Default 16.
    pub workers: usize,
    /// Bytes for full-sized buffers; connections beyond it get small ones. Default 36 MiB: six of them.
    pub memory: usize,
    /// How long a stop waits for clients to take their replies. Default 10 s.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 128,
            handshakes: 64,
            handshake: Duration::from_secs(10),
            workers: 16,
            memory: 36 << 20,
            grace: Duration::from_secs(10),
        }
    }
}

/// A running server. Dropping it stops it.
pub struct Server {
    hall: Arc<Hall>,
    acceptors: Vec<(Arc<Acceptor>, JoinHandle<()>)>,
    disks: Vec<Arc<Disk>>,
}

impl Server {
    /// Binds every listener and begins to serve; on an error nothing is left behind.
    pub fn start(mut listeners: Vec<Listener>, limits: Limits) -> Result<Self> {
        let mut server = Self { hall: Hall::new(limits), acceptors: Vec::new(), disks: Vec::new() };
        let mut bound = Vec::new();
        for listener in &mut listeners {
            check_names(&listener.exports)?;
            listener.tls.as_ref().map_or(Ok(()), TlsFiles::check)?;
            bound.push(match listener.inherited.take() {
                Some(socket) => Bound::inherit(socket)?,
                None => Bound::new(&listener.listen)?,
            });
        }
        for (Listener { exports, tls, .. }, bound) in listeners.into_iter().zip(bound) {
            let with_disk = |export: Export| {
                let disk = server.disk(Arc::clone(&export.device));
                (export, disk)
            };
            let room = Room { exports: exports.into_iter().map(with_disk).collect(), tls };
            let (acceptor, thread) = Acceptor::start(bound, room, Arc::clone(&server.hall))?;
            server.acceptors.push((acceptor, thread));
        }
        Ok(server)
    }

    /// The disk of a device: one, under however many names it is served.
    fn disk(&mut self, device: Arc<dyn BlockDevice>) -> Arc<Disk> {
        if let Some(disk) = self.disks.iter().find(|disk| Arc::ptr_eq(&disk.device, &device)) {
            return Arc::clone(disk);
        }
        let pool = Pool::new(self.hall.limits.workers);
        let disk = Arc::new(Disk { device, pool, clients: Clients::default() });
        self.disks.push(Arc::clone(&disk));
        disk
    }

    /// How many clients use the export of that name now.
    pub fn connections(&self, export: &str) -> u32 {
        let count: usize = self.disks.iter().map(|disk| disk.clients.count(export)).sum();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// The address of the n-th listener, if it is a TCP one; tells the port that port 0 became.
    pub fn local_addr(&self, listener: usize) -> Option<SocketAddr> {
        self.acceptors.get(listener).and_then(|(acceptor, _)| acceptor.address())
    }

    /// Stops as the module says.
    pub fn stop(mut self) {
        self.shut_down(drop);
    }

    /// Stops, and gives the sockets that listen on, in the order of the listeners.
    pub fn hand_over(mut self) -> Vec<HandedOver> {
        self.shut_down(|bound| bound.into_iter().map(Bound::hand_over).collect())
    }

    /// What becomes of the sockets is for `sockets` to say, before the connections end.
    fn shut_down<T>(&mut self, sockets: impl FnOnce(Vec<Bound>) -> T) -> T {
        let (acceptors, threads): (Vec<_>, Vec<_>) = self.acceptors.drain(..).unzip();
        acceptors.iter().for_each(|acceptor| acceptor.stop());
        for thread in threads {
            // A thread that panicked has said so on its own.
            let _ = thread.join();
        }
        let left = sockets(acceptors.into_iter().filter_map(Acceptor::into_bound).collect());
        self.hall.empty();
        for disk in self.disks.drain(..) {
            disk.pool.close();
        }
        left
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shut_down(drop);
    }
}

fn check_names(exports: &[Export]) -> Result<()> {
    for (index, export) in exports.iter().enumerate() {
        let wrong = |message: &str| Err(Error::new(Kind::InvalidInput, export.name.clone(), message));
        if export.name.len() > wire::MAX_STRING || export.description.len() > wire::MAX_STRING {
            return wrong("the name or the description of an export is longer than 4096 bytes");
        }
        if exports.iter().take(index).any(|other| other.name == export.name) {
            return wrong("two exports of one socket have the same name");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
