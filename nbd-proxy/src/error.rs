//! One error shape for every layer: what was tried, on which object, and what to do about it.
//!
//! The *kind* is what a caller acts on (retry, stop, refuse); `object` names the machine, disk, file or key;
//! `message` says what was tried and what came back; `remedy` says what the operator can do. The command line
//! prints exactly these fields, so a message is written once, where the cause is known.

use std::fmt;
use std::io;
use std::path::Path;

/// What a caller can do about an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A file or device failed. Worth a retry.
    Io,
    /// Bytes are not what they must be; never retried, never served.
    Corrupt,
    /// The named thing does not exist.
    NotFound,
    /// The named thing exists already and must not be overwritten.
    Exists,
    /// Somebody else holds the disk or the socket.
    InUse,
    /// The caller asked for something that can never work: configuration, arguments, state.
    InvalidInput,
    /// The other side cannot be reached or is overloaded. Worth a retry.
    Unavailable,
    /// Authentication or authorisation failed. An operator must act.
    Denied,
    /// Another writer owns the machine's line now.
    Fenced,
    /// No space left on a local file system.
    NoSpace,
    /// Not possible in the present state (for example a cut while a disk is unlogged).
    NotReady,
}

/// What was tried, on which object, what came back, what to do.
#[derive(Debug)]
pub struct Error {
    /// What a caller can do about it.
    pub kind: Kind,
    /// The machine, disk, file, key or option it is about.
    pub object: String,
    /// What was tried and what came back.
    pub message: String,
    /// What the operator can do; may be empty.
    pub remedy: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The result of everything in Lifeboat that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind` about `object`.
    pub fn new(kind: Kind, object: impl Into<String>, message: impl Into<String>) -> Self {
        Self { kind, object: object.into(), message: message.into(), remedy: String::new(), source: None }
    }

    /// Says what the operator can do.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }

    /// Keeps the cause.
    #[must_use]
    pub fn source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// A failed file operation: `what` was tried on `path`. The kind follows the errno.
    pub fn io(what: &str, path: &Path, error: io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::NotFound => Kind::NotFound,
            io::ErrorKind::AlreadyExists => Kind::Exists,
            io::ErrorKind::PermissionDenied => Kind::Denied,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Kind::NoSpace,
            _ => Kind::Io,
        };
        Self::new(kind, path.display().to_string(), format!("cannot {what}: {error}")).source(error)
    }

    /// Bytes of `object` are not what they must be.
    pub fn corrupt(object: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Kind::Corrupt, object, message)
    }

    /// Whether trying again by itself can help. Every kind is on one side or the other.
    pub fn is_transient(&self) -> bool {
        match self.kind {
            // Network, stores, disks and memory; room that somebody makes; a state that passes.
            Kind::Io | Kind::Unavailable | Kind::NoSpace | Kind::NotReady => true,
            // What is refused, missing, broken, or somebody else's: an operator has to act.
            Kind::Denied
            | Kind::NotFound
            | Kind::Corrupt
            | Kind::InvalidInput
            | Kind::Exists
            | Kind::InUse
            | Kind::Fenced => false,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.message)?;
        if !self.remedy.is_empty() {
            write!(f, " ({})", self.remedy)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as &(dyn std::error::Error + 'static))
    }
}
