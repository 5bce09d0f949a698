//! The process that freezes a guest and, whatever happens, thaws it.
//!
//! 1. *Connect, sync, ping, status.* Nothing is frozen by us: any failure ends the helper. A guest that is frozen already is
//!    somebody else's, and left alone.
//! 2. *Freeze.* From the first byte of the command on the guest may be frozen, answered or not: every way on leads to 4.
//! 3. *Hold* until the proxy's end of the pair closes, a signal asks us to end, or the limit has passed.
//! 4. *Thaw*, on a new connection if this one fails, again and again for [`THAW_LIMIT`].
//!
//! Killed in 2 to 4 (nobody but the system does that): the proxy sees the pair close and starts a helper that does 4 alone.

use std::fmt::Display;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use nbd_proxy::{Error, Kind, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};

use super::protocol::Agent;
use super::{ANSWER_LIMIT, FREEZE_LIMIT, HOLD_LIMIT, Report};

/// How long thawing is tried.
const THAW_LIMIT: Duration = Duration::from_secs(120);
/// Between two tries.
const THAW_PACE: Duration = Duration::from_millis(500);

/// Freezes the guest behind `socket` and holds it; standard input is the proxy's socket pair.
pub async fn run(socket: &Path, only_thaw: bool) -> Result<()> {
    let cannot = |error: io::Error| Error::io("hold the guest behind", socket, error);
    // Caught from here on: the thaw comes first.
    let ends = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);
    let [mut terminate, mut interrupt, mut hangup] = ends;
    let (Ok(terminate), Ok(interrupt), Ok(hangup)) = (&mut terminate, &mut interrupt, &mut hangup) else {
        return Err(Error::new(Kind::Io, "signals", "cannot be listened for"));
    };
    if only_thaw {
        return thaw(socket, None).await.map(drop).map_err(cannot);
    }
    let mut proxy = proxy().map_err(cannot)?;
    let mut agent = match timeout(ANSWER_LIMIT, meet(socket)).await.unwrap_or_else(late) {
        Ok(agent) => agent,
        Err(error) => return say(&mut proxy, &Report::Failed(error.to_string())).await.map_err(cannot),
    };
    let frozen = timeout(FREEZE_LIMIT, agent.freeze()).await.unwrap_or_else(late);
    let (agent, frozen) = match frozen {
        Ok(frozen) if frozen > 0 => (agent, frozen),
        frozen => {
            let why = frozen.map_or_else(|error| error.to_string(), |_| "nothing could be frozen".to_owned());
            // Its socket serves one conversation at a time.
            drop(agent);
            // The proxy need not wait for the thaw to go on with its cut; if it is gone, so much the better.
            let _ = say(&mut proxy, &Report::Failed(why)).await;
            return thaw(socket, None).await.map(drop).map_err(cannot);
        }
    };
    let mut end = [0];
    // Only a thaw that the proxy asked for is known to come after its cut.
    let asked = say(&mut proxy, &Report::Frozen(frozen)).await.is_ok()
        && tokio::select! {
            _ = proxy.read(&mut end) => true,
            _ = terminate.recv() => false,
            _ = interrupt.recv() => false,
            _ = hangup.recv() => false,
            () = sleep(HOLD_LIMIT) => false,
        };
    let thawed = thaw(socket, Some(agent)).await.map_err(cannot)?;
    let doubt = match asked {
        true => doubt(frozen, &thawed),
        false => Some(format!("the cut was not done before the guest had to go on, within {HOLD_LIMIT:?}")),
    };
    let _ = say(&mut proxy, &Report::Thawed(doubt)).await;
    Ok(())
}

/// What a thaw found.
struct Thawed {
    was_frozen: bool,
    count: u64,
}

/// Why the guest cannot be said to have been still from the freeze of `frozen` file systems until the thaw.
fn doubt(frozen: u64, thawed: &Thawed) -> Option<String> {
    match thawed {
        Thawed { was_frozen: false, .. } => {
            Some("its file systems were thawed before the cut was done".to_owned())
        }
        Thawed { count, .. } if *count < frozen => {
            Some(format!("{frozen} file systems were frozen, {count} were still so after the cut"))
        }
        _ => None,
    }
}

/// Connects to an agent whose guest nobody holds.
async fn meet(socket: &Path) -> io::Result<Agent> {
    let mut agent = Agent::connect(socket).await?;
    if agent.is_frozen().await? {
        return Err(io::Error::other("the guest's file systems are frozen by somebody else"));
    }
    Ok(agent)
}

/// Thaws, if possible in the conversation at hand.
async fn thaw(socket: &Path, agent: Option<Agent>) -> io::Result<Thawed> {
    let mut agent = agent;
    let again = async {
        loop {
            match timeout(FREEZE_LIMIT, thaw_once(socket, agent.take())).await.unwrap_or_else(late) {
                Ok(thawed) => return thawed,
                Err(error) => {
                    tracing::warn!(socket = %socket.display(), %error, "the guest is not thawed yet")
                }
            }
            sleep(THAW_PACE).await;
        }
    };
    let thawed = timeout(THAW_LIMIT, again).await;
    thawed.map_err(|_| {
        tracing::error!(socket = %socket.display(), "a guest may be frozen: thaw it, for example with `virsh domfsthaw`");
        io::Error::from(io::ErrorKind::TimedOut)
    })
}

async fn thaw_once(socket: &Path, agent: Option<Agent>) -> io::Result<Thawed> {
    let mut agent = match agent {
        Some(agent) => agent,
        None => Agent::connect(socket).await?,
    };
    let was_frozen = agent.is_frozen().await?;
    Ok(Thawed { was_frozen, count: agent.thaw().await? })
}

/// The proxy's end is our standard input.
fn proxy() -> io::Result<UnixStream> {
    let pair = std::os::unix::net::UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    pair.set_nonblocking(true)?;
    UnixStream::from_std(pair)
}

async fn say(proxy: &mut UnixStream, report: &Report) -> io::Result<()> {
    proxy.write_all(format!("{}\n", serde_json::to_string(report)?).as_bytes()).await
}

fn late<T>(elapsed: impl Display) -> io::Result<T> {
    let _ = elapsed;
    Err(io::Error::new(io::ErrorKind::TimedOut, "the guest agent does not answer"))
}
