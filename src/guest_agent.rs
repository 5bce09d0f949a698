//! The QEMU guest agent: how a machine's guest is made to hold its file systems still for the instant of a cut.
//!
//! ```text
//!  proxy ── socket pair ──► helper ([`helper`], a process of its own) ── Unix socket ──► QEMU ──► agent in the guest
//!   hold()     ◄ frozen n ──┤ sync, ping, status, freeze ([`protocol`])
//!   (the cut)               │
//!   release()  ── end ──►   │ status, thaw
//!              ◄ thawed n ──┘
//! ```
//!
//! A guest that stays frozen is worse than any point is good. So the freeze belongs to the helper, and it thaws when the
//! proxy's end of the pair closes, by [`GuestAgent::hold`]'s guest being released or dropped or by the proxy's death however
//! violent; when [`HOLD_LIMIT`] has passed; and when it is asked to end. It is never killed by us, runs in a process group of its
//! own, and its last act is always the thaw. If it is killed by somebody else, the proxy starts one that only thaws.
//!
//! The guest is believed to have been still only if the helper said so *after* the cut: the agent's status was still frozen, and
//! the thaw thawed as many file systems as the freeze had frozen. Anything else is a crash-consistent cut and a reason.

pub mod helper;
mod protocol;

use std::io::{BufRead, BufReader};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nbd_proxy::machine::guest::{Guest, Held};
use nbd_proxy::{Error, Kind, Result};
use serde::{Deserialize, Serialize};

/// How long the agent may take to answer at all.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);
/// How long a freeze may take: the guest writes out what it has in memory.
const FREEZE_LIMIT: Duration = Duration::from_secs(10);
/// How long a guest is held still at most, whatever happens.
const HOLD_LIMIT: Duration = Duration::from_secs(10);
/// How long the cut waits to hear of the thaw.
const THAW_WAIT: Duration = Duration::from_secs(5);
/// The hidden command that is the helper.
pub const HELPER: &str = "hold-guest";

/// What the helper says, one JSON text a line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Report {
    /// The guest holds so many file systems still.
    Frozen(u64),
    /// It goes on; the reason if it cannot be said to have been still until now.
    Thawed(Option<String>),
    /// It was not made to hold still.
    Failed(String),
}

/// A machine's guest, through its agent.
#[derive(Debug)]
pub struct GuestAgent {
    socket: PathBuf,
    /// The helper of the last time.
    helper: Arc<Mutex<Option<Child>>>,
}

impl GuestAgent {
    /// The agent behind `socket`, the Unix socket of QEMU's character device.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), helper: Arc::default() }
    }
}

impl GuestAgent {
    /// The socket serves one conversation at a time, and a thaw goes first.
    fn await_last_helper(&self) -> Result<()> {
        let deadline = Instant::now() + ANSWER_LIMIT;
        while let Some(child) = lock(&self.helper).as_mut()
            && matches!(child.try_wait(), Ok(None))
        {
            if Instant::now() >= deadline {
                let message = "the guest agent has not answered the last thaw yet";
                return Err(failed(&self.socket, Kind::Unavailable, message));
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Guest for GuestAgent {
    fn hold(&self) -> Result<Box<dyn Held>> {
        self.await_last_helper()?;
        let mut helper = lock(&self.helper);
        let (ours, child) = start_helper(&self.socket, false)?;
        *helper = Some(child);
        drop(helper);
        let mut holding = Holding {
            socket: self.socket.clone(),
            pair: BufReader::new(ours),
            helper: Arc::clone(&self.helper),
        };
        match holding.report(ANSWER_LIMIT + FREEZE_LIMIT + Duration::from_secs(1))? {
            Report::Frozen(_) => Ok(Box::new(holding)),
            Report::Failed(message) => Err(failed(&self.socket, Kind::Unavailable, &message)),
            Report::Thawed(_) => {
                Err(failed(&self.socket, Kind::Corrupt, "the helper thawed without a freeze"))
            }
        }
    }
}

/// A guest that holds still; dropped, the pair closes and the helper thaws.
struct Holding {
    socket: PathBuf,
    pair: BufReader<UnixStream>,
    helper: Arc<Mutex<Option<Child>>>,
}

impl Holding {
    fn report(&mut self, limit: Duration) -> Result<Report> {
        let mut line = String::new();
        let pair = self.pair.get_ref();
        pair.set_read_timeout(Some(limit)).map_err(|error| Error::io("wait for", &self.socket, error))?;
        match self.pair.read_line(&mut line) {
            Ok(0) => {
                rescue(&self.socket, &self.helper);
                Err(failed(&self.socket, Kind::Io, "the helper died; another one thaws the guest"))
            }
            Ok(_) => serde_json::from_str(&line).map_err(|error| {
                failed(&self.socket, Kind::Corrupt, &format!("the helper said {line:?}: {error}"))
            }),
            Err(_) => Err(failed(&self.socket, Kind::Unavailable, &format!("no answer within {limit:?}"))),
        }
    }
}

impl Held for Holding {
    fn release(mut self: Box<Self>) -> Result<()> {
        let ended = self.pair.get_ref().shutdown(Shutdown::Write);
        ended.map_err(|error| Error::io("end the freeze of", &self.socket, error))?;
        let report = self.report(THAW_WAIT)?;
        // It has nothing left to do but to end.
        if let Some(mut child) = lock(&self.helper).take() {
            let _ = child.wait();
        }
        match report {
            Report::Thawed(None) => Ok(()),
            Report::Thawed(Some(message)) | Report::Failed(message) => {
                Err(failed(&self.socket, Kind::NotReady, &message))
            }
            Report::Frozen(_) => Err(failed(&self.socket, Kind::Corrupt, "the helper froze twice")),
        }
    }
}

/// Starts the helper, with its end of a new socket pair as its standard input.
fn start_helper(socket: &Path, only_thaw: bool) -> Result<(UnixStream, Child)> {
    let cannot = |error: std::io::Error| Error::io("start the helper for", socket, error);
    let (ours, theirs) = UnixStream::pair().map_err(cannot)?;
    let mut command = Command::new(std::env::current_exe().map_err(cannot)?);
    command.arg(HELPER).arg("--socket").arg(socket);
    if only_thaw {
        command.arg("--only-thaw");
    }
    // What ends our process group must not end the one who thaws.
    let child = command.stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).process_group(0).spawn();
    Ok((ours, child.map_err(cannot)?))
}

/// The helper was killed: whatever it froze is thawed by another.
fn rescue(socket: &Path, helper: &Mutex<Option<Child>>) {
    match start_helper(socket, true) {
        Ok((_, child)) => {
            if let Some(mut dead) = lock(helper).replace(child) {
                let _ = dead.wait();
            }
        }
        Err(error) => {
            tracing::error!(%error, "a guest may be frozen: thaw it, for example with `virsh domfsthaw`");
        }
    }
}

fn failed(socket: &Path, kind: Kind, message: &str) -> Error {
    Error::new(kind, format!("guest agent {}", socket.display()), message)
        .remedy("is the agent installed and running in the guest, and its socket free?")
}

fn lock(helper: &Mutex<Option<Child>>) -> MutexGuard<'_, Option<Child>> {
    helper.lock().unwrap_or_else(PoisonError::into_inner)
}
