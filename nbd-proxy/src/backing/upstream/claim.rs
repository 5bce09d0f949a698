//! One Lifeboat at a time on one upstream, whatever folders each keeps its state in.
//!
//! A file has QEMU's lock bytes. An export of a server has nothing that could be locked, so its address is claimed: as the name of
//! an abstract socket, which one process at a time can listen at, which the kernel frees when that dies, and which tells who it is.
//! It counts within one network namespace; other programs, and other hosts, must be kept away by the server.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use super::address::{Address, Place};
use crate::{Error, Kind, Result};

/// Bytes of an address that a name holds as they are.
const PLAIN: usize = 60;

/// The claim; it ends with the value, or with the process.
#[derive(Debug)]
pub struct Claim(#[expect(dead_code, reason = "held, never used")] UnixListener);

impl Claim {
    /// Claims `address`.
    ///
    /// # Errors
    /// `InUse`, with the other's process id.
    pub fn take(address: &Address) -> Result<Self> {
        let failed = |error: io::Error| {
            Error::new(Kind::Io, address.text(), format!("cannot claim the export: {error}")).source(error)
        };
        let name = SocketAddr::from_abstract_name(name(address)).map_err(failed)?;
        match UnixListener::bind_addr(&name) {
            Ok(listener) => Ok(Self(listener)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                let holder = UnixStream::connect_addr(&name).ok().and_then(|peer| {
                    let pid = rustix::net::sockopt::socket_peercred(&peer).ok()?.pid;
                    Some(format!(" (process {})", pid.as_raw_nonzero()))
                });
                let message = format!(
                    "cannot claim the export: another Lifeboat has it open{}",
                    holder.unwrap_or_default()
                );
                Err(Error::new(Kind::InUse, address.text(), message)
                    .remedy("stop the other one; a disk belongs to one proxy"))
            }
            Err(error) => Err(failed(error)),
        }
    }
}

/// The same for every way to write the same socket and export.
fn name(address: &Address) -> Vec<u8> {
    let place = match &address.place {
        Place::Unix(path) => {
            let path = path.canonicalize().unwrap_or_else(|_| path.clone());
            path.display().to_string()
        }
        Place::Tcp(host, port) => format!("{host}:{port}"),
    };
    let whole = format!("{place} {}", address.export);
    let tail = whole.len().saturating_sub(PLAIN);
    let mut name = format!("lifeboat-upstream {:08x} ", crc32c::crc32c(whole.as_bytes())).into_bytes();
    name.extend(whole.into_bytes().split_off(tail));
    name
}
