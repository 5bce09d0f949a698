//! Every key of the configuration file, with its default and its range. The table in `docs/operations.md` says the
//! same; a test holds the two together.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nbd_proxy::{Error, Kind, Result};
use serde::Deserialize;

use super::units::{Age, LimitRate, Rate, Size, Span, WeekHours, Window};
use super::{Secret, refuse};

/// Read when neither `--config` nor `LIFEBOAT_CONFIG` names a file.
pub const DEFAULT_CONFIG: &str = "/etc/lifeboat/lifeboat.toml";
/// `state_dir`.
pub const STATE_DIR: &str = "/var/lib/lifeboat";
/// `policy.interval`.
pub const INTERVAL: Duration = Duration::from_secs(30);
/// What `policy.interval` may be.
pub const INTERVAL_RANGE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);
/// `policy.retry`, in minutes; the last repeats.
pub const RETRY_MINUTES: [u64; 6] = [1, 2, 4, 8, 10, 30];
/// What each gap of `policy.retry` may be.
pub const RETRY_RANGE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);
/// How many gaps `policy.retry` may list.
pub const RETRY_COUNT: RangeInclusive<usize> = 1..=16;
/// The least `policy.log_limit`, in bytes: a segment that records, one in transit, and room to roll.
pub const LOG_LIMIT_MIN: u64 = 16 << 20;
/// `policy.resync_window`.
pub const RESYNC_WINDOW: &str = "18:30-06:00";
/// The least `policy.copy_limit`, in bytes a second: a piece that is read at once.
pub const COPY_LIMIT_MIN: u64 = 1 << 20;
/// What `policy.app_consistent_every` may be.
pub const APP_CONSISTENT_RANGE: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(7 * 24 * 3600);
/// `policy.prune_every`.
pub const PRUNE_EVERY: Duration = Duration::from_secs(24 * 3600);
/// What `policy.prune_every` may be.
pub const PRUNE_EVERY_RANGE: RangeInclusive<Duration> =
    Duration::from_secs(3600)..=Duration::from_secs(31 * 24 * 3600);
/// `policy.prune_wait`.
pub const PRUNE_WAIT: Duration = uploader::prune::WAIT;
/// What `policy.prune_wait` may be. Writers and readers rely on the least of it.
pub const PRUNE_WAIT_RANGE: RangeInclusive<Duration> =
    uploader::prune::WAIT..=Duration::from_secs(31 * 24 * 3600);
/// The longest path of a Unix socket that the kernel takes, in bytes.
pub const SOCKET_PATH_MAX: usize = 107;
/// `machine.disk.socket_mode`.
pub const SOCKET_MODE: u32 = nbd_proxy::server::DEFAULT_SOCKET_MODE;
/// What `machine.disk.max_clients` may be.
pub const MAX_CLIENTS_RANGE: RangeInclusive<usize> = 1..=1024;
/// What `machine.disk.reconnect_delay` and `machine.disk.reply_timeout` may be; the proxy's own rules say the defaults.
pub const PATIENCE_RANGE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
/// What `proxy.max_connections` may be.
pub const MAX_CONNECTIONS_RANGE: RangeInclusive<usize> = 1..=65536;
/// `proxy.handshake_timeout`.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// What `proxy.handshake_timeout` may be.
pub const HANDSHAKE_TIMEOUT_RANGE: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(300);
/// A newest point that is later than its interval by this is a warning.
pub const RPO_WARNING: Duration = Duration::from_secs(3600);

/// The file as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    #[serde(default = "state_dir")]
    pub state_dir: PathBuf,
    pub site: Option<String>,
    pub vault: Vault,
    pub tls: Option<Tls>,
    #[serde(default)]
    pub proxy: Proxy,
    #[serde(default)]
    pub policy: Policy,
    #[serde(default)]
    pub machine: Vec<Machine>,
}

/// `[vault]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vault {
    pub url: String,
    pub encryption: Option<String>,
    pub key_file: Option<PathBuf>,
    pub passphrase_file: Option<PathBuf>,
    pub ca_file: Option<PathBuf>,
    pub credentials_file: Option<PathBuf>,
    #[serde(default)]
    pub allow_http: bool,
    #[serde(default)]
    pub single_writer: bool,
    #[serde(default)]
    pub limit: Vec<Limit>,
    #[serde(default)]
    pub prices: Prices,
    #[serde(default)]
    pub options: BTreeMap<String, Secret>,
}

/// A line of `vault.limit`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    pub when: Option<WeekHours>,
    pub rate: LimitRate,
}

/// `[vault.prices]`: in whatever currency, for what a store charges.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Prices {
    /// For 1,000 objects written or listings made.
    pub puts: f64,
    /// For 1,000 objects read.
    pub gets: f64,
    /// For 1 GB stored over a month.
    pub storage: f64,
    /// For 1 GB read.
    pub download: f64,
}

/// `[tls]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
    pub client_ca_file: PathBuf,
}

/// `[proxy]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proxy {
    pub max_connections: Option<usize>,
    pub handshake_timeout: Option<Span>,
}

/// `[policy]` and `[machine.policy]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    pub interval: Option<Span>,
    pub retry: Option<Vec<Span>>,
    pub log_limit: Option<Size>,
    pub resync_window: Option<Window>,
    pub copy_limit: Option<Rate>,
    pub app_consistent_every: Option<Span>,
    pub on_fenced: Option<Fenced>,
    pub keep: Option<Keep>,
    pub prune_every: Option<Span>,
    pub prune_wait: Option<Span>,
}

/// `policy.keep`; what is left out keeps nothing.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keep {
    pub all: Option<Age>,
    pub hourly: Option<Age>,
    pub daily: Option<Age>,
    pub weekly: Option<Age>,
}

impl From<Keep> for uploader::retention::Policy {
    fn from(keep: Keep) -> Self {
        let window = |age: Option<Age>| age.map_or(Duration::ZERO, |age| age.0);
        Self {
            all: window(keep.all),
            hourly: window(keep.hourly),
            daily: window(keep.daily),
            weekly: window(keep.weekly),
        }
    }
}

/// `policy.on_fenced`
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fenced {
    Serve,
    Refuse,
}

/// `[[machine]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    pub name: String,
    #[serde(default)]
    pub policy: Policy,
    pub group: Option<String>,
    pub guest_agent: Option<GuestAgent>,
    #[serde(default)]
    pub disk: Vec<Disk>,
}

/// `[machine.guest_agent]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestAgent {
    pub socket: PathBuf,
}

/// `[[machine.disk]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    pub name: String,
    pub path: PathBuf,
    pub listen: Option<String>,
    pub socket_mode: Option<String>,
    pub log_dir: Option<PathBuf>,
    #[serde(default)]
    pub read_only: bool,
    pub max_clients: Option<usize>,
    pub reconnect_delay: Option<Span>,
    pub reply_timeout: Option<Span>,
}

fn state_dir() -> PathBuf {
    PathBuf::from(STATE_DIR)
}

/// `text` as a [`File`]. The message has the line's number and never its text.
pub fn parse(path: &Path, text: &str) -> Result<File> {
    toml::from_str(text).map_err(|error| {
        let place = match error.span().and_then(|span| text.get(..span.start)) {
            Some(before) => format!("line {}", before.matches('\n').count() + 1),
            None => "the file".to_owned(),
        };
        refuse(path, place, error.message().to_owned(), remedy(error.message()))
    })
}

fn remedy(message: &str) -> &'static str {
    if message.contains("`passphrase`") {
        "a passphrase stands in a file of its own: passphrase_file = \"/etc/lifeboat/passphrase\""
    } else if message.contains("unknown field") {
        "the table of keys is in docs/operations.md"
    } else {
        "docs/operations.md shows every key with its unit"
    }
}

/// The host's name, which is the default of `site`.
pub fn host_name() -> Result<String> {
    let path = Path::new("/proc/sys/kernel/hostname");
    let name = std::fs::read_to_string(path).map_err(|error| Error::io("read the host name", path, error))?;
    match name.trim() {
        "" => Err(Error::new(Kind::InvalidInput, "site", "the host has no name").remedy("set site = \"…\"")),
        name => Ok(name.to_owned()),
    }
}
