//! The configuration: read once, validated once, plain data from then on.
//!
//! [`settings`] owns every key with its default, unit and range; [`units`] reads sizes and durations; [`validate`]
//! turns the file into the plain data below and refuses what contradicts itself; [`backings`] looks at the disks
//! themselves, which only the proxy needs. Nobody else reads TOML or knows a default.
//!
//! Every refusal is an [`Error`] of kind `InvalidInput` (exit code 2) whose object names the file and the key. A
//! refusal quotes no line of the file: lines of `[vault.options]` hold secrets.

mod backings;
mod settings;
#[cfg(test)]
mod tests;
mod units;
mod validate;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nbd_proxy::backing::upstream::Settings as Patience;
use nbd_proxy::server::TlsFiles;
use nbd_proxy::{Error, Kind, Result};
use uploader::replicate::{OnFenced, ResyncWindow};
use uploader::retention;
use uploader::store::limit::Hours;

pub use backings::check_backings;
pub use settings::{DEFAULT_CONFIG, Prices, RPO_WARNING, host_name};
pub use units::{parse_age, parse_span};

/// Everything the file says, defaults filled in.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it was read from; for messages.
    pub file: PathBuf,
    /// Control sockets, job records, the uploader's state.
    pub state_dir: PathBuf,
    /// This site's name in the vault.
    pub site: String,
    /// The vault.
    pub vault: VaultConfig,
    /// How exports on TCP are protected; in the clear if it is absent.
    pub tls: Option<TlsFiles>,
    /// Who may connect to the exports, and how fast.
    pub proxy: ProxyConfig,
    /// The policy of machines that state none of their own.
    pub policy: Policy,
    /// The machines this host protects; may be empty on a host that only reads the vault.
    pub machines: Vec<MachineConfig>,
}

/// How to reach the vault.
#[derive(Clone, Debug, Default)]
pub struct VaultConfig {
    /// `file://`, `s3://` or `azure://`.
    pub url: String,
    /// How its content is protected.
    pub key: VaultKey,
    /// A PEM file with the authorities to trust besides the system's.
    pub ca_file: Option<PathBuf>,
    /// Plain http to a host that is not loopback is allowed.
    pub allow_http: bool,
    /// No other host ever writes: a store without conditional writes will do.
    pub single_writer: bool,
    /// How fast it is written to, by the hour; the first line that holds counts.
    pub limit: Vec<Hours>,
    /// What the store charges.
    pub prices: Prices,
    /// See what was first written under each name, whatever was deleted or written over since.
    pub undelete: bool,
    /// A file of credentials, over the environment, read whenever the vault is opened.
    pub credentials_file: Option<PathBuf>,
    /// Settings of the store's client, over those of the environment and the file.
    pub options: BTreeMap<String, Secret>,
}

/// Bounds of the NBD server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyConfig {
    /// Clients that may use exports at a time, over all disks; the proxy's own rule when absent.
    pub max_connections: Option<usize>,
    /// How long a client may take to choose an export.
    pub handshake_timeout: Duration,
}

/// How a vault's content is protected, as the file or the command line says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum VaultKey {
    /// Not said: what is there may be read if it is not encrypted, or if the environment or a person at the terminal has a passphrase.
    #[default]
    Unstated,
    /// The words `encryption = "none"` stand in the file, so a new vault may be made.
    Unencrypted,
    /// By the key in this file.
    File(PathBuf),
    /// By the passphrase in this file.
    PassphraseFile(PathBuf),
}

/// One protected machine.
#[derive(Clone, Debug)]
pub struct MachineConfig {
    /// Its name, unique in the vault.
    pub name: String,
    /// The general policy with the machine's own over it.
    pub policy: Policy,
    /// Its consistency group: machines that are cut at one instant.
    pub group: Option<String>,
    /// The Unix socket of its guest agent.
    pub guest_agent: Option<PathBuf>,
    /// Its disks, in the order of the file; never empty.
    pub disks: Vec<DiskConfig>,
}

/// How a machine is replicated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// From one cut to the next.
    pub interval: Duration,
    /// Waits after failed attempts, in order; the last repeats.
    pub retry: Vec<Duration>,
    /// The most that a disk's change log may hold in bytes; the proxy's own rule when absent.
    pub log_limit: Option<u64>,
    /// When whole compares may begin by themselves.
    pub resync_window: ResyncWindow,
    /// How many bytes a second of live disks are read for copying; no limit when absent.
    pub copy_limit: Option<u64>,
    /// What replication does when another writer owns the machine's line.
    pub on_fenced: OnFenced,
    /// From one application-consistent point to the next; none are made when absent.
    pub app_consistent_every: Option<Duration>,
    /// Which points are kept.
    pub keep: retention::Policy,
    /// From one pruning to the next.
    pub prune_every: Duration,
    /// From a pruning to its deletions.
    pub prune_wait: Duration,
}

/// One disk of a machine.
#[derive(Clone, Debug)]
pub struct DiskConfig {
    /// Its name, unique in the machine.
    pub name: String,
    /// The backing: a file, a block device, or the address of an export of another NBD server.
    pub path: PathBuf,
    /// How patient the proxy is with such a server.
    pub upstream: Patience,
    /// Where its export is served.
    pub listen: ListenAt,
    /// Mode of the Unix socket.
    pub socket_mode: u32,
    /// Folder of the change log; the backing's own when absent.
    pub log_dir: Option<PathBuf>,
    /// The export refuses writes.
    pub read_only: bool,
    /// How many clients may use the export at a time, if there is a limit.
    pub max_clients: Option<usize>,
}

/// Where an export is served.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ListenAt {
    /// A Unix socket.
    Unix(PathBuf),
    /// A TCP address, `HOST:PORT`.
    Tcp(String),
}

/// A value that no log and no message may show.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The value itself, for the one who needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl<'de> serde::Deserialize<'de> for Secret {
    /// Any text. The usual refusal of a number would print it.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match toml::Value::deserialize(deserializer)? {
            toml::Value::String(text) => Ok(Self(text)),
            other => Err(serde::de::Error::custom(format!(
                "expected a text in quotes, found {}",
                other.type_str()
            ))),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for ListenAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

impl Config {
    /// Reads and validates the file at `path`.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|error| unreadable(path, error))?;
        let file = settings::parse(path, &text)?;
        validate::validate(path, file)
    }

    /// The proxy's control socket.
    pub fn proxy_socket(&self) -> PathBuf {
        self.state_dir.join("proxy.sock")
    }

    /// The uploader's control socket.
    pub fn uploader_socket(&self) -> PathBuf {
        self.state_dir.join("uploader.sock")
    }

    /// Where job records are kept.
    pub fn jobs_dir(&self) -> PathBuf {
        self.state_dir.join("jobs")
    }
}

fn unreadable(path: &Path, error: std::io::Error) -> Error {
    Error::new(
        Kind::InvalidInput,
        path.display().to_string(),
        format!("cannot read the configuration: {error}"),
    )
    .remedy("name the file with --config FILE or LIFEBOAT_CONFIG; docs/operations.md shows one to start from")
    .source(error)
}

/// A refusal of one key of the file.
fn refuse(
    file: &Path,
    key: impl fmt::Display,
    message: impl Into<String>,
    remedy: impl Into<String>,
) -> Error {
    Error::new(Kind::InvalidInput, format!("{}: {key}", file.display()), message).remedy(remedy)
}
