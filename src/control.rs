//! The control API: HTTP and JSON over Unix sockets in `state_dir`.
//!
//! [`server`] owns a socket (one daemon of a role per state folder, by a file lock) and turns errors into answers;
//! [`client`] is the other side; [`proxy_api`] and [`uploader_api`] are the two sets of routes; [`remote`] is a
//! machine's proxy as replication sees it, over the client.
//!
//! An error crosses the socket as it is printed: `{"error": {"kind", "object", "message", "remedy"}}`. The HTTP status
//! follows the kind and carries nothing that the body does not say.

mod buffers;
pub mod client;
pub mod proxy_api;
pub mod remote;
pub mod server;
#[cfg(test)]
mod tests;
pub mod uploader_api;

use nbd_proxy::{Error, Kind};
use serde::{Deserialize, Serialize};

/// What a daemon says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct About {
    /// `proxy` or `uploader`.
    pub role: String,
    /// Its process.
    pub pid: u32,
    /// Its version.
    pub version: String,
}

impl About {
    /// This process in `role`.
    pub fn of(role: &str) -> Self {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Self { role: role.to_owned(), pid: std::process::id(), version }
    }
}

/// An [`Error`] as it crosses a socket or is printed with `--json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorFields,
}

/// The fields of an [`ErrorBody`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ErrorFields {
    /// What a caller can do about it.
    pub kind: Kind,
    /// What it is about.
    pub object: String,
    /// What was tried and what came back.
    pub message: String,
    /// What the operator can do.
    pub remedy: String,
}

impl From<&Error> for ErrorBody {
    fn from(error: &Error) -> Self {
        Self {
            error: ErrorFields {
                kind: error.kind,
                object: error.object.clone(),
                message: error.message.clone(),
                remedy: error.remedy.clone(),
            },
        }
    }
}

impl From<ErrorBody> for Error {
    fn from(body: ErrorBody) -> Self {
        let ErrorFields { kind, object, message, remedy } = body.error;
        Self::new(kind, object, message).remedy(remedy)
    }
}
