//! From the file as written to plain data: defaults, ranges, names, and what must not occur twice.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nbd_proxy::backing::upstream::{Address, Settings as Patience};
use nbd_proxy::server::TlsFiles;
use nbd_proxy::{Error, Result};
use uploader::keys::check_name;
use uploader::replicate::OnFenced;
use uploader::store::limit::Hours;

use super::settings::{self, File};
use super::{
    Config, DiskConfig, ListenAt, MachineConfig, Policy, ProxyConfig, VaultConfig, VaultKey, refuse,
};

/// Checks `file`, read from `path`, and fills its defaults in.
pub fn validate(path: &Path, file: File) -> Result<Config> {
    absolute(path, "state_dir", &file.state_dir)?;
    let site = match file.site {
        Some(site) => site,
        None => settings::host_name()?,
    };
    check_name("site", &site).map_err(|error| in_file(path, error))?;
    let vault = vault(path, file.vault)?;
    let general = policy(path, "policy", file.policy, &Policy::default())?;
    let mut machines: Vec<MachineConfig> = Vec::new();
    for raw in file.machine {
        if machines.iter().any(|machine| machine.name == raw.name) {
            let message = format!("the machine \"{}\" is configured twice", raw.name);
            return Err(refuse(path, "machine", message, "give each machine its own name"));
        }
        machines.push(machine(path, &file.state_dir, raw, &general)?);
    }
    let tls = file.tls.map(|raw| tls(path, raw)).transpose()?;
    let proxy = proxy(path, &file.proxy)?;
    let config = Config {
        file: path.to_owned(),
        state_dir: file.state_dir,
        site,
        vault,
        tls,
        proxy,
        policy: general,
        machines,
    };
    no_shared_sockets(&config)?;
    groups_keep_step(&config)?;
    Ok(config)
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            interval: settings::INTERVAL,
            retry: settings::RETRY_MINUTES.iter().map(|minutes| Duration::from_secs(minutes * 60)).collect(),
            log_limit: None,
            resync_window: super::units::parse_window(settings::RESYNC_WINDOW).unwrap_or_default(),
            copy_limit: None,
            app_consistent_every: None,
            keep: uploader::retention::Policy::default(),
            prune_every: settings::PRUNE_EVERY,
            prune_wait: settings::PRUNE_WAIT,
            on_fenced: OnFenced::default(),
        }
    }
}

fn vault(path: &Path, raw: settings::Vault) -> Result<VaultConfig> {
    let key = vault_key(path, raw.encryption.as_deref(), raw.key_file, raw.passphrase_file)?;
    if let Some(ca_file) = &raw.ca_file {
        absolute(path, "vault.ca_file", ca_file)?;
    }
    if let Some(credentials_file) = &raw.credentials_file {
        absolute(path, "vault.credentials_file", credentials_file)?;
    }
    let vault = VaultConfig {
        url: raw.url,
        key,
        ca_file: raw.ca_file,
        credentials_file: raw.credentials_file,
        allow_http: raw.allow_http,
        single_writer: raw.single_writer,
        limit: raw
            .limit
            .into_iter()
            .map(|line| Hours { when: line.when.map(|when| when.0), rate: line.rate.0 })
            .collect(),
        prices: raw.prices,
        undelete: false,
        options: raw.options,
    };
    crate::vault::check_url(&vault.url).map_err(|error| in_file(path, error))?;
    Ok(vault)
}

fn vault_key(
    path: &Path,
    encryption: Option<&str>,
    key_file: Option<PathBuf>,
    passphrase_file: Option<PathBuf>,
) -> Result<VaultKey> {
    let file = |key, file: PathBuf| absolute(path, key, &file).map(|()| file);
    match (encryption, key_file, passphrase_file) {
        (None, None, None) => Ok(VaultKey::Unstated),
        (Some("none"), None, None) => Ok(VaultKey::Unencrypted),
        (None, Some(key), None) => file("vault.key_file", key).map(VaultKey::File),
        (None, None, Some(words)) => file("vault.passphrase_file", words).map(VaultKey::PassphraseFile),
        (Some(other), None, None) => {
            let message = format!("encryption = \"{other}\" is unknown");
            let remedy =
                "name a key_file or a passphrase_file, which encrypts; the only value here is \"none\"";
            Err(refuse(path, "vault.encryption", message, remedy))
        }
        _ => {
            let message = "two of encryption, key_file and passphrase_file contradict each other";
            Err(refuse(
                path,
                "vault",
                message,
                "keep one: a key_file, a passphrase_file, or encryption = \"none\"",
            ))
        }
    }
}

fn tls(path: &Path, raw: settings::Tls) -> Result<TlsFiles> {
    absolute(path, "tls.cert_file", &raw.cert_file)?;
    absolute(path, "tls.key_file", &raw.key_file)?;
    absolute(path, "tls.client_ca_file", &raw.client_ca_file)?;
    Ok(TlsFiles { cert: raw.cert_file, key: raw.key_file, client_ca: raw.client_ca_file })
}

/// What thins a machine's points out, in `policy`.
fn thinning(path: &Path, place: &str, raw: &mut settings::Policy, policy: &mut Policy) -> Result<()> {
    let key = |name: &str| format!("{place}.{name}");
    if let Some(keep) = raw.keep.take() {
        policy.keep = keep.into();
    }
    policy.keep.check().map_err(|error| refuse(path, key("keep"), error.message, error.remedy))?;
    if let Some(every) = raw.prune_every {
        policy.prune_every = every.0;
    }
    if !settings::PRUNE_EVERY_RANGE.contains(&policy.prune_every) {
        return Err(refuse(path, key("prune_every"), "is out of range", "from \"1h\" to \"744h\""));
    }
    if let Some(wait) = raw.prune_wait {
        policy.prune_wait = wait.0;
    }
    if !settings::PRUNE_WAIT_RANGE.contains(&policy.prune_wait) {
        return Err(refuse(path, key("prune_wait"), "is out of range", "from \"1h\" to \"744h\""));
    }
    Ok(())
}

fn proxy(path: &Path, raw: &settings::Proxy) -> Result<ProxyConfig> {
    if raw.max_connections.is_some_and(|max| !settings::MAX_CONNECTIONS_RANGE.contains(&max)) {
        return Err(refuse(path, "proxy.max_connections", "out of range", "from 1 to 65536"));
    }
    let handshake_timeout = raw.handshake_timeout.map_or(settings::HANDSHAKE_TIMEOUT, |timeout| timeout.0);
    if !settings::HANDSHAKE_TIMEOUT_RANGE.contains(&handshake_timeout) {
        let message = format!("{handshake_timeout:?} is out of range");
        return Err(refuse(path, "proxy.handshake_timeout", message, "from \"1s\" to \"300s\""));
    }
    Ok(ProxyConfig { max_connections: raw.max_connections, handshake_timeout })
}

fn policy(path: &Path, place: &str, raw: settings::Policy, over: &Policy) -> Result<Policy> {
    let key = |name: &str| format!("{place}.{name}");
    let (mut raw, mut policy) = (raw, over.clone());
    thinning(path, place, &mut raw, &mut policy)?;
    if let Some(interval) = raw.interval {
        policy.interval = interval.0;
    }
    if let Some(retry) = raw.retry {
        policy.retry = retry.into_iter().map(|gap| gap.0).collect();
    }
    if let Some(limit) = raw.log_limit {
        policy.log_limit = Some(limit.0);
    }
    if let Some(window) = raw.resync_window {
        policy.resync_window = window.0;
    }
    if let Some(limit) = raw.copy_limit {
        policy.copy_limit = Some(limit.0);
    }
    if policy.copy_limit.is_some_and(|limit| limit < settings::COPY_LIMIT_MIN) {
        let remedy = format!("at least \"{}/s\"", bytesize::ByteSize(settings::COPY_LIMIT_MIN));
        return Err(refuse(path, key("copy_limit"), "too little to ever copy a disk", remedy));
    }
    if let Some(fenced) = raw.on_fenced {
        policy.on_fenced = match fenced {
            settings::Fenced::Serve => OnFenced::Branch,
            settings::Fenced::Refuse => OnFenced::Refuse,
        };
    }
    if let Some(every) = raw.app_consistent_every {
        policy.app_consistent_every = Some(every.0);
    }
    if policy.app_consistent_every.is_some_and(|every| !settings::APP_CONSISTENT_RANGE.contains(&every)) {
        return Err(refuse(path, key("app_consistent_every"), "is out of range", "from \"1s\" to \"168h\""));
    }
    if !settings::INTERVAL_RANGE.contains(&policy.interval) {
        let message = format!("{:?} is out of range", policy.interval);
        return Err(refuse(path, key("interval"), message, "from \"1s\" to \"24h\""));
    }
    let gaps_fit = policy.retry.iter().all(|gap| settings::RETRY_RANGE.contains(gap));
    if !gaps_fit || !settings::RETRY_COUNT.contains(&policy.retry.len()) {
        let message = format!("{:?} is out of range", policy.retry);
        return Err(refuse(path, key("retry"), message, "1 to 16 gaps, each from \"1s\" to \"24h\""));
    }
    if policy.log_limit.is_some_and(|limit| limit < settings::LOG_LIMIT_MIN) {
        let remedy = format!("at least \"{}\"", bytesize::ByteSize(settings::LOG_LIMIT_MIN));
        return Err(refuse(
            path,
            key("log_limit"),
            "too small to record while a segment is in transit",
            remedy,
        ));
    }
    Ok(policy)
}

fn machine(path: &Path, state_dir: &Path, raw: settings::Machine, general: &Policy) -> Result<MachineConfig> {
    check_name("machine", &raw.name).map_err(|error| in_file(path, error))?;
    let place = format!("machine {}", raw.name);
    let policy = policy(path, &format!("{place}: policy"), raw.policy, general)?;
    if let Some(group) = &raw.group {
        check_name("group", group).map_err(|error| in_file(path, error))?;
    }
    let guest_agent = raw.guest_agent.map(|agent| agent.socket);
    if let Some(socket) = &guest_agent {
        absolute(path, &format!("{place}: guest_agent.socket"), socket)?;
        fits_a_socket(path, &format!("{place}: guest_agent.socket"), socket)?;
    }
    if raw.disk.is_empty() {
        return Err(refuse(
            path,
            place,
            "the machine has no disk",
            "add a [[machine.disk]] with name and path",
        ));
    }
    let mut disks: Vec<DiskConfig> = Vec::new();
    for raw_disk in raw.disk {
        if disks.iter().any(|disk| disk.name == raw_disk.name) {
            let message = format!("the disk \"{}\" is configured twice", raw_disk.name);
            return Err(refuse(path, place, message, "give each disk of a machine its own name"));
        }
        disks.push(disk(path, state_dir, &raw.name, raw_disk)?);
    }
    Ok(MachineConfig { name: raw.name, policy, group: raw.group, guest_agent, disks })
}

fn disk(path: &Path, state_dir: &Path, machine: &str, raw: settings::Disk) -> Result<DiskConfig> {
    check_name("disk", &raw.name).map_err(|error| in_file(path, error))?;
    let place = format!("machine {machine}, disk {}", raw.name);
    let afar = Address::is_meant(&raw.path);
    if afar {
        Address::parse(&raw.path).map_err(|error| {
            let message = format!("{}: {}", error.object, error.message);
            refuse(path, format!("{place}: path"), message, error.remedy)
        })?;
    } else {
        absolute(path, &format!("{place}: path"), &raw.path)?;
    }
    let upstream = patience(path, &place, &raw, afar)?;
    if let Some(log_dir) = &raw.log_dir {
        absolute(path, &format!("{place}: log_dir"), log_dir)?;
    }
    if raw.log_dir.is_none() && (afar || raw.path.starts_with("/dev")) {
        let message = "only an image file has a folder that could hold its change log";
        return Err(refuse(
            path,
            format!("{place}: log_dir"),
            message,
            "name a folder on a disk with log_dir",
        ));
    }
    let listen = match raw.listen {
        Some(text) => listen(path, &place, &text)?,
        None => ListenAt::Unix(state_dir.join(format!("{machine}-{}.sock", raw.name))),
    };
    if let ListenAt::Unix(socket) = &listen {
        fits_a_socket(path, &format!("{place}: listen"), socket)?;
    }
    let socket_mode = match &raw.socket_mode {
        Some(text) => socket_mode(path, &place, text)?,
        None => settings::SOCKET_MODE,
    };
    if raw.max_clients.is_some_and(|max| !settings::MAX_CLIENTS_RANGE.contains(&max)) {
        return Err(refuse(path, format!("{place}: max_clients"), "out of range", "from 1 to 1024"));
    }
    let settings::Disk { name, path, log_dir, read_only, max_clients, .. } = raw;
    Ok(DiskConfig { name, path, upstream, listen, socket_mode, log_dir, read_only, max_clients })
}

fn patience(path: &Path, place: &str, raw: &settings::Disk, afar: bool) -> Result<Patience> {
    let mut patience = Patience::default();
    let keys = [
        ("reconnect_delay", &raw.reconnect_delay, &mut patience.reconnect_delay),
        ("reply_timeout", &raw.reply_timeout, &mut patience.reply_timeout),
    ];
    for (key, given, value) in keys {
        let Some(given) = given else { continue };
        let key = format!("{place}: {key}");
        if !afar {
            let remedy = "leave it out: it is for a path of nbd:// or nbd+unix://";
            return Err(refuse(path, key, "the disk is not on another NBD server", remedy));
        }
        if !settings::PATIENCE_RANGE.contains(&given.0) {
            return Err(refuse(path, key, "is out of range", "from \"1s\" to \"1h\""));
        }
        *value = given.0;
    }
    Ok(patience)
}

fn fits_a_socket(path: &Path, key: &str, socket: &Path) -> Result<()> {
    let max = settings::SOCKET_PATH_MAX;
    if socket.as_os_str().len() <= max {
        return Ok(());
    }
    let message = format!("the socket path {} is longer than {max} bytes", socket.display());
    Err(refuse(path, key, message, "choose a shorter path"))
}

fn socket_mode(path: &Path, place: &str, text: &str) -> Result<u32> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => {
            let message = format!("\"{text}\" is no file mode");
            Err(refuse(
                path,
                format!("{place}: socket_mode"),
                message,
                "write three octal digits, such as \"0660\"",
            ))
        }
    }
}

fn listen(path: &Path, place: &str, text: &str) -> Result<ListenAt> {
    let key = format!("{place}: listen");
    let remedy = "write \"unix:/run/lifeboat/NAME.sock\" or \"tcp:HOST:PORT\"";
    if let Some(socket) = text.strip_prefix("unix:") {
        absolute(path, &key, Path::new(socket))?;
        return Ok(ListenAt::Unix(PathBuf::from(socket)));
    }
    let address = text.strip_prefix("tcp:").and_then(|address| Some((address, address.rsplit_once(':')?)));
    match address {
        Some((address, (host, port))) if !host.is_empty() && port.parse::<u16>().is_ok() => {
            Ok(ListenAt::Tcp(address.to_owned()))
        }
        _ => Err(refuse(path, key, format!("\"{text}\" is no place to listen at"), remedy)),
    }
}

/// Machines that are cut together are cut equally often.
fn groups_keep_step(config: &Config) -> Result<()> {
    for machine in config.machines.iter().filter(|machine| machine.group.is_some()) {
        let same = |other: &&MachineConfig| other.group == machine.group;
        let first = config.machines.iter().find(same).unwrap_or(machine);
        if first.policy.interval != machine.policy.interval {
            let message = format!(
                "its interval is {:?}, that of {} in the same group is {:?}",
                machine.policy.interval, first.name, first.policy.interval
            );
            let place = format!("machine {}: policy.interval", machine.name);
            return Err(refuse(&config.file, place, message, "give all machines of a group one interval"));
        }
    }
    Ok(())
}

/// Each socket belongs to one disk.
fn no_shared_sockets(config: &Config) -> Result<()> {
    let mut sockets =
        HashSet::from([ListenAt::Unix(config.proxy_socket()), ListenAt::Unix(config.uploader_socket())]);
    for machine in &config.machines {
        for disk in &machine.disks {
            if !sockets.insert(disk.listen.clone()) {
                let place = format!("machine {}, disk {}", machine.name, disk.name);
                let message = format!("the socket {} is taken already", disk.listen);
                return Err(refuse(&config.file, place, message, "give each disk its own listen"));
            }
        }
    }
    Ok(())
}

fn absolute(file: &Path, key: &str, path: &Path) -> Result<()> {
    if path.is_absolute() {
        return Ok(());
    }
    let message = format!("\"{}\" is not an absolute path", path.display());
    Err(refuse(file, key, message, "write the path from the root, beginning with /"))
}

fn in_file(file: &Path, error: Error) -> Error {
    refuse(file, &error.object, error.message.clone(), error.remedy.clone())
}
