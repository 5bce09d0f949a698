//! A daemon's control socket.
//!
//! Who serves is decided by a lock on `ROLE.lock` beside the socket, held for the life of the process: a socket file
//! that a killed daemon left is then known to be stale and replaced, and a live daemon is never robbed of its own. The
//! lock file holds the owner's process id, for the message that refuses the second.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use axum::Router;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use nbd_proxy::durable::{self, Step};
use nbd_proxy::{Error, Kind, Result};
use tokio::net::UnixListener;
use tokio::sync::watch;

use super::ErrorBody;

/// The right to be the one daemon of a role in a state folder.
#[derive(Debug)]
pub struct Ownership {
    role: &'static str,
    state_dir: PathBuf,
    _lock: File,
}

impl Ownership {
    /// Claims `role` in `state_dir`, which is made if it is missing.
    pub fn claim(state_dir: &Path, role: &'static str) -> Result<Self> {
        durable::make_folder(Step::StateFolder, state_dir).map_err(|error| {
            Error::io("create the state folder", state_dir, error).remedy("set state_dir")
        })?;
        let path = state_dir.join(format!("{role}.lock"));
        let mut lock = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|error| Error::io("open the lock file", &path, error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(taken(&mut lock, state_dir, role)),
            Err(TryLockError::Error(error)) => return Err(Error::io("lock", &path, error)),
        }
        lock.set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| write!(lock, "{}", std::process::id()))
            .map_err(|error| Error::io("write the lock file", &path, error))?;
        Ok(Self { role, state_dir: state_dir.to_owned(), _lock: lock })
    }

    /// Where the control socket is.
    pub fn socket(&self) -> PathBuf {
        self.state_dir.join(format!("{}.sock", self.role))
    }

    /// Listens on the control socket, replacing one that a killed daemon left. Only our own user may connect.
    pub fn listen(&self) -> Result<UnixListener> {
        let path = self.socket();
        match std::fs::remove_file(&path) {
            Ok(()) => {
                tracing::info!(socket = %path.display(), "replaced the control socket of a daemon that died")
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("replace the stale control socket", &path, error)),
        }
        let listener = UnixListener::bind(&path)
            .map_err(|error| Error::io("listen on the control socket", &path, error))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
            .map_err(|error| Error::io("set the mode of the control socket", &path, error))?;
        Ok(listener)
    }
}

impl Drop for Ownership {
    fn drop(&mut self) {
        // Still under the lock: nobody else's socket can stand here. One that stays is replaced by the next daemon.
        let _ = std::fs::remove_file(self.socket());
    }
}

fn taken(lock: &mut File, state_dir: &Path, role: &str) -> Error {
    let mut pid = String::new();
    let owner = match lock.read_to_string(&mut pid) {
        Ok(_) if !pid.is_empty() => format!("process {pid}"),
        _ => "another process".to_owned(),
    };
    Error::new(
        Kind::InUse,
        state_dir.display().to_string(),
        format!("cannot start the {role}: another Lifeboat runs it on this state folder ({owner})"),
    )
    .remedy("stop that one first, or give this one a state_dir and disks of its own")
}

/// Serves `routes` until `stop` turns true; requests under way are answered.
pub async fn serve(listener: UnixListener, routes: Router, mut stop: watch::Receiver<bool>) -> Result<()> {
    let stopped = async move {
        // An error means that the sender is gone, which is a stop as well.
        let _ = stop.wait_for(|stop| *stop).await;
    };
    axum::serve(listener, routes).with_graceful_shutdown(stopped).await.map_err(|error| {
        Error::new(Kind::Io, "control socket", format!("cannot serve: {error}")).source(error)
    })
}

/// An [`Error`] as an answer.
pub struct Refusal(pub Error);

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = match self.0.kind {
            Kind::NotFound => StatusCode::NOT_FOUND,
            Kind::InvalidInput => StatusCode::BAD_REQUEST,
            Kind::Exists | Kind::InUse | Kind::NotReady | Kind::Fenced => StatusCode::CONFLICT,
            Kind::Denied => StatusCode::FORBIDDEN,
            Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Kind::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
            Kind::Io | Kind::Corrupt => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, axum::Json(ErrorBody::from(&self.0))).into_response()
    }
}

/// Runs work that blocks off the threads that serve.
pub async fn blocking<T, F>(work: F) -> Result<T, Refusal>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(Refusal),
        Err(error) => Err(Refusal(
            Error::new(Kind::Io, "control request", format!("it ended early: {error}")).source(error),
        )),
    }
}
