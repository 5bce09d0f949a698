//! An upgrade under running machines: the proxy becomes its successor.
//!
//! On SIGHUP, in this order:
//! 1. *Rehearse*: the program that now stands at our path looks at the configuration and the disks (`--check`). If it says
//!    no, nothing has happened, and the old proxy goes on.
//! 2. *Hand over*: the server reads nothing more, answers what is in flight and closes its connections; its listening
//!    sockets go on listening, so that clients that come back wait instead of being refused.
//! 3. *Close*: everything is made durable and the disks are given up, as at every clean stop.
//! 4. *Become* the successor: same process id, same arguments, the sockets passed on as a service manager would.
//!
//! A VM notices a pause: QEMU connects again (`reconnect-delay`) and sends once more what was not answered, which is
//! harmless, for nothing of the old connection is carried out after its end. Killed in between, at any step, we are a proxy that
//! died: after 3 cleanly, before it with the recovery that follows every kill; the service manager starts the next.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use command_fds::{CommandFdExt, FdMapping};
use nbd_proxy::server::HandedOver;
use nbd_proxy::{Error, Kind, Result};

use super::sockets::HANDED_OVER;

/// The first descriptor that is passed on.
const FIRST: i32 = 3;

/// The program that comes after us.
#[derive(Debug)]
pub struct Successor {
    program: PathBuf,
}

/// A listening socket with the export that is served on it.
pub type Passing = (String, HandedOver);

impl Successor {
    /// What stands at our own path when the time comes. To be asked for at the start: later the kernel only remembers
    /// what was there.
    pub fn at_our_path() -> Result<Self> {
        let program = std::env::current_exe().map_err(|error| failed("find our own program", error))?;
        Ok(Self { program })
    }

    /// Has the successor look at everything that could refuse its start. Blocks.
    pub fn rehearse(&self) -> Result<()> {
        let output = Command::new(&self.program)
            .args(std::env::args_os().skip(1))
            .arg("--check")
            .output()
            .map_err(|error| failed("run the new program", error))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let message = format!("the new program refuses the start: {}", said.trim());
        Err(Error::new(Kind::InvalidInput, self.program.display().to_string(), message)
            .remedy("mend the configuration or the program, and send SIGHUP again; the old proxy goes on"))
    }

    /// Becomes the successor. Returns only if that fails.
    pub fn take_the_place(&self, sockets: Vec<Passing>) -> Error {
        let names =
            sockets.iter().map(|(export, socket)| if socket.ours { HANDED_OVER } else { export.as_str() });
        let names = names.collect::<Vec<_>>().join(":");
        let count = sockets.len().to_string();
        let mappings = sockets
            .into_iter()
            .zip(FIRST..)
            .map(|((_, socket), child_fd)| FdMapping { parent_fd: socket.fd, child_fd })
            .collect();
        let mut command = Command::new(&self.program);
        command.args(std::env::args_os().skip(1));
        command.env("LISTEN_FDS", count).env("LISTEN_FDNAMES", names);
        command.env("LISTEN_PID", std::process::id().to_string());
        if let Err(error) = command.fd_mappings(mappings) {
            return failed("pass the sockets on", std::io::Error::other(error));
        }
        failed("become the new program", command.exec())
    }
}

fn failed(what: &str, error: std::io::Error) -> Error {
    Error::new(Kind::Io, "hand-over", format!("cannot {what}: {error}")).source(error)
}
