//! The NBD exports of the machines: which disk is served where, under which name.

use std::net::ToSocketAddrs;
use std::sync::{Mutex, PoisonError};

use nbd_proxy::server::{Export, Limits, Listen, Listener, Server};
use nbd_proxy::{Error, Kind, Result};

use super::hand_over::Passing;
use super::sockets::Passed;
use crate::config::{Config, DiskConfig, ListenAt, MachineConfig};
use crate::control::proxy_api::Machines;

/// Connections that each disk may have in mind; QEMU uses one, copying tools a handful.
const CONNECTIONS_PER_DISK: usize = 16;

/// Clients of each disk that may be on their way in at a time.
const HANDSHAKES_PER_DISK: usize = 4;

/// The running NBD server.
pub struct Exports {
    server: Mutex<Option<Server>>,
    /// The export of each listener.
    names: Vec<String>,
}

impl Exports {
    /// Serves every disk of `config`, each on its own socket: one that was passed on, or a new one.
    pub fn serve(config: &Config, machines: &Machines, mut passed: Passed) -> Result<Self> {
        let mut listeners = Vec::new();
        let only = config.machines.iter().map(|machine| machine.disks.len()).sum::<usize>() == 1;
        for machine in &config.machines {
            for disk in &machine.disks {
                let mut listener = listener(config, machines, machine, disk)?;
                listener.inherited =
                    passed.for_disk(&name(&machine.name, &disk.name), &listener.listen, only);
                listeners.push(listener);
            }
        }
        passed.none_left()?;
        let names =
            listeners.iter().flat_map(|it| it.exports.iter().map(|export| export.name.clone())).collect();
        let limits = Limits::default();
        let usual = limits.connections.max(listeners.len() * CONNECTIONS_PER_DISK);
        let connections = config.proxy.max_connections.unwrap_or(usual);
        // All machines may come back at once.
        let handshakes = limits.handshakes.max(listeners.len() * HANDSHAKES_PER_DISK);
        let handshake = config.proxy.handshake_timeout;
        let server = Server::start(listeners, Limits { connections, handshakes, handshake, ..limits })?;
        Ok(Self { server: Mutex::new(Some(server)), names })
    }

    /// How many clients use a disk now.
    pub fn clients(&self, machine: &str, disk: &str) -> u32 {
        let server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        server.as_ref().map_or(0, |server| server.connections(&name(machine, disk)))
    }

    /// Answers what clients have asked for, and closes. Blocks.
    pub fn stop(&self) {
        if let Some(server) = self.take() {
            server.stop();
        }
    }

    /// The same, but the sockets listen on, for the next proxy. Blocks.
    pub fn hand_over(&self) -> Vec<Passing> {
        let sockets = self.take().map(Server::hand_over).unwrap_or_default();
        self.names.iter().cloned().zip(sockets).collect()
    }

    fn take(&self) -> Option<Server> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

fn name(machine: &str, disk: &str) -> String {
    format!("{machine}/{disk}")
}

fn listener(
    config: &Config,
    machines: &Machines,
    machine: &MachineConfig,
    disk: &DiskConfig,
) -> Result<Listener> {
    let name = name(&machine.name, &disk.name);
    let opened = machines.get(&machine.name).ok_or_else(|| {
        Error::new(Kind::NotFound, format!("machine {}", machine.name), "it was not opened")
    })?;
    let device = opened.disk(&disk.name)?.clone();
    let export = Export {
        description: format!("disk {} of machine {}", disk.name, machine.name),
        read_only: disk.read_only,
        max_clients: disk.max_clients,
        ..Export::new(name, device)
    };
    let listen = place(&disk.listen, disk.socket_mode)?;
    // A Unix socket is protected by its mode.
    let tls = config.tls.clone().filter(|_| matches!(listen, Listen::Tcp(_)));
    if let Listen::Tcp(address) = &listen
        && tls.is_none()
        && !address.ip().is_loopback()
    {
        tracing::warn!(%address, "served in the clear: whoever reaches this address has the disk; set [tls]");
    }
    Ok(Listener { tls, ..Listener::new(listen, vec![export]) })
}

fn place(listen: &ListenAt, mode: u32) -> Result<Listen> {
    let address = match listen {
        ListenAt::Unix(path) => return Ok(Listen::Unix { path: path.clone(), mode }),
        ListenAt::Tcp(address) => address,
    };
    let failed = |message: String| {
        Error::new(Kind::InvalidInput, listen.to_string(), message)
            .remedy("name an address of this host in listen")
    };
    let mut found =
        address.to_socket_addrs().map_err(|error| failed(format!("cannot find the address: {error}")))?;
    found.next().map(Listen::Tcp).ok_or_else(|| failed("the name has no address".to_owned()))
}
