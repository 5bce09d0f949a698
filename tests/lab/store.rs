//! The stores that every promise is held on: a folder, SeaweedFS (S3), Azurite over TLS (Azure Blob).
//!
//! SeaweedFS and Azurite are started once for a test binary; each test gets a prefix of its own.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::process::{Process, Shared};
use super::{Scratch, free_port, judge, run, script, until};

/// A kind of store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Folder,
    Seaweed,
    Azurite,
}

/// A place in a store for one test.
#[derive(Clone, Debug)]
pub struct Store {
    pub kind: Kind,
    /// `[vault] url`
    pub url: String,
    /// `[vault] ca_file`
    pub ca_file: Option<PathBuf>,
    /// What a user would have in the environment.
    pub env: Vec<(&'static str, String)>,
}

/// Published in Azurite's manual; it has no other.
const ACCOUNT: &str = "devstoreaccount1";
const ACCOUNT_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// How curl signs for SeaweedFS.
const SIGNED: [&str; 4] = ["--aws-sigv4", "aws:amz:us-east-1:s3", "--user", "lifeboat:lifeboat"];

impl Store {
    /// A folder below `scratch`.
    pub fn folder(scratch: &Scratch) -> Self {
        let folder = scratch.join("vault");
        std::fs::create_dir_all(&folder).expect("a folder for the vault");
        Self {
            kind: Kind::Folder,
            url: format!("file://{}", folder.display()),
            ca_file: None,
            env: Vec::new(),
        }
    }

    /// The store of `kind`; nothing if it is not installed and this is not CI.
    pub fn of(kind: Kind, scratch: &Scratch) -> Option<Self> {
        match kind {
            Kind::Folder => Some(Self::folder(scratch)),
            Kind::Seaweed => judge::have(&["weed"]).then(seaweed),
            Kind::Azurite => judge::have(&["azurite-blob"]).then(azurite),
        }
    }
}

fn prefix() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Settings for a SeaweedFS at `port`, by way of whatever stands between.
pub fn s3_env(port: u16) -> Vec<(&'static str, String)> {
    vec![
        ("AWS_ENDPOINT", format!("http://127.0.0.1:{port}")),
        ("AWS_REGION", "us-east-1".into()),
        ("AWS_ACCESS_KEY_ID", "lifeboat".into()),
        ("AWS_SECRET_ACCESS_KEY", "lifeboat".into()),
    ]
}

struct Server {
    port: u16,
    folder: PathBuf,
    _process: Shared,
}

/// The supervisor removes it.
fn shared_folder() -> PathBuf {
    tempfile::Builder::new().prefix("lifeboat-store-").tempdir().expect("a scratch folder").keep()
}

fn seaweed() -> Store {
    static SERVER: OnceLock<Server> = OnceLock::new();
    let server = SERVER.get_or_init(|| {
        let (folder, port) = (shared_folder(), seaweed_port());
        let (script, data, number) = (script(), folder.join("s3"), port.to_string());
        let command: [&OsStr; 4] = [script.as_ref(), "s3".as_ref(), data.as_ref(), number.as_ref()];
        let process = Shared::start(&command, &folder);
        make_bucket(port);
        Server { port, folder, _process: process }
    });
    Store {
        kind: Kind::Seaweed,
        url: format!("s3://bucket1/{}", prefix()),
        ca_file: None,
        env: s3_env(server.port),
    }
}

/// A SeaweedFS of a test's own, which it may stop and kill. Its port is the second value; its bucket is `bucket1`.
pub fn own_seaweed(scratch: &Scratch) -> (Process, u16) {
    let port = seaweed_port();
    let mut command = Command::new(script());
    command.arg("s3").arg(scratch.join("s3")).arg(port.to_string());
    let process = Process::start(&mut command, &scratch.join("s3.log"));
    make_bucket(port);
    (process, port)
}

/// A SeaweedFS of a test's own that asks for credentials: who signs with others is refused. Its bucket is `bucket1`.
pub fn guarded_seaweed(scratch: &Scratch) -> (Process, Store) {
    let port = seaweed_port();
    let env = s3_env(port);
    let mut command = Command::new(script());
    // It takes its only user from its environment.
    command.arg("s3").arg(scratch.join("s3")).arg(port.to_string()).envs(env.iter().cloned());
    let process = Process::start(&mut command, &scratch.join("s3.log"));
    make_bucket(port);
    (process, Store { kind: Kind::Seaweed, url: format!("s3://bucket1/{}", prefix()), ca_file: None, env })
}

/// A SeaweedFS of a test's own whose keys can be changed while it runs, and the file that its users' credentials stand in.
pub struct Rotating {
    server: Process,
    port: u16,
    keys: PathBuf,
    pub credentials: PathBuf,
    pub store: Store,
}

/// One whose only key is `lifeboat`; its bucket is `bucket1`.
pub fn rotating_seaweed(scratch: &Scratch) -> Rotating {
    let (port, keys, credentials) = (seaweed_port(), scratch.join("keys.json"), scratch.join("credentials"));
    write_keys(&keys, &["lifeboat"]);
    let mut command = Command::new(script());
    command.arg("s3").arg(scratch.join("s3")).arg(port.to_string()).arg(&keys);
    let server = Process::start(&mut command, &scratch.join("s3.log"));
    make_bucket(port);
    let mut env = s3_env(port);
    env.retain(|(name, _)| !name.contains("KEY"));
    env.push(("AWS_SHARED_CREDENTIALS_FILE", credentials.display().to_string()));
    let store = Store { kind: Kind::Seaweed, url: format!("s3://bucket1/{}", prefix()), ca_file: None, env };
    let rotating = Rotating { server, port, keys, credentials, store };
    rotating.give("lifeboat");
    rotating
}

fn write_keys(file: &std::path::Path, keys: &[&str]) {
    let credentials = keys.iter().map(|key| format!(r#"{{"accessKey":"{key}","secretKey":"{key}"}}"#));
    let credentials = credentials.collect::<Vec<_>>().join(",");
    let identities =
        format!(r#"{{"identities":[{{"name":"u","credentials":[{credentials}],"actions":["Admin"]}}]}}"#);
    std::fs::write(file, identities).expect("a file of keys");
}

impl Rotating {
    /// Writes `key` where users find it.
    pub fn give(&self, key: &str) {
        let profile = format!("[default]\naws_access_key_id = {key}\naws_secret_access_key = {key}\n");
        std::fs::write(&self.credentials, profile).expect("a file of credentials");
    }

    /// From now on the server takes `keys`, and not `refused`.
    pub fn takes(&self, keys: &[&str], refused: &str) {
        write_keys(&self.keys, keys);
        self.server.signal("HUP");
        until("the server to read its keys", Duration::from_secs(30), || {
            let takes = |key: &str| {
                let user = format!("{key}:{key}");
                let url = format!("http://127.0.0.1:{}/bucket1", self.port);
                let signed =
                    ["-s", "-o", "/dev/null", "-w", "%{http_code}", "--aws-sigv4", "aws:amz:us-east-1:s3"];
                run(Command::new("curl").args(signed).args(["--user", &user]).arg(url)) == "200"
            };
            (keys.iter().all(|key| takes(key)) && !takes(refused)).then_some(())
        });
    }
}

impl Store {
    /// The same store with another value of a variable.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        let known = self.env.iter_mut().find(|(known, _)| *known == name);
        known.unwrap_or_else(|| panic!("this store needs no {name}")).1 = value.to_owned();
        self
    }

    /// The same store, in a bucket that keeps every version for a day, whoever wants it gone.
    pub fn locked(mut self) -> Self {
        self.signed(&["-X", "PUT", "-H", "x-amz-bucket-object-lock-enabled: true"], "locked1");
        let rule = "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention>\
                    <Mode>COMPLIANCE</Mode><Days>1</Days></DefaultRetention></Rule></ObjectLockConfiguration>";
        self.signed(&["-X", "PUT", "-d", rule], "locked1?object-lock=");
        self.url = self.url.replace("bucket1", "locked1");
        self
    }

    /// The answer to a request signed with the store's credentials; `path` begins with a bucket.
    pub fn signed(&self, args: &[&str], path: &str) -> String {
        let (_, endpoint) = self.env.iter().find(|(name, _)| *name == "AWS_ENDPOINT").expect("an S3 store");
        let mut curl = Command::new("curl");
        curl.args(["-sf"]).args(SIGNED).args(args).arg(format!("{endpoint}/{path}"));
        let said = judge::output(&mut curl);
        assert!(said.status.success(), "{args:?} {path}: {}", said.status);
        String::from_utf8(said.stdout).expect("text")
    }

    /// Makes the bucket or container of `url` below the store's own address.
    pub fn make(&self, name: &str) {
        let value =
            |name: &str| self.env.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone());
        match (value("AWS_ENDPOINT"), value("AZURE_STORAGE_ENDPOINT"), &self.ca_file) {
            (Some(endpoint), ..) => put_bucket(&format!("{endpoint}/{name}")),
            (_, Some(endpoint), Some(ca_file)) => {
                let port = endpoint.split([':', '/']).find(|part| part.parse::<u16>().is_ok());
                let port = port.expect("a port in the endpoint");
                run(Command::new(script()).args(["container", port, name]).arg(ca_file));
            }
            _ => panic!("a folder has no buckets"),
        }
    }
}

/// SeaweedFS takes the port 10000 above for itself, so that one must be free and exist.
fn seaweed_port() -> u16 {
    until("a pair of free ports", Duration::from_secs(10), || {
        let port = 20_000 + free_port() % 12_000;
        let free = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
        (free(port) && free(port + 10_000)).then_some(port)
    })
}

/// The bucket can be made as soon as the server is ready.
fn make_bucket(port: u16) {
    put_bucket(&format!("http://127.0.0.1:{port}/bucket1"));
}

fn put_bucket(url: &str) {
    until("SeaweedFS to be ready", Duration::from_secs(90), || {
        let mut curl = Command::new("curl");
        curl.args(["-sf", "-o", "/dev/null", "-X", "PUT"]).args(SIGNED).arg(url);
        judge::output(&mut curl).status.success().then_some(())
    });
}

fn azurite() -> Store {
    static SERVER: OnceLock<Server> = OnceLock::new();
    let server = SERVER.get_or_init(|| {
        let (folder, port) = (shared_folder(), free_port());
        let (script, data, number) = (script(), folder.as_path(), port.to_string());
        run(Command::new(&script).arg("tls").arg(folder.join("tls")));
        let command: [&OsStr; 5] =
            [script.as_ref(), "azurite".as_ref(), data.as_ref(), number.as_ref(), "--tls".as_ref()];
        let process = Shared::start(&command, &folder);
        until("Azurite to listen", Duration::from_secs(60), || {
            std::net::TcpStream::connect(("127.0.0.1", port)).ok().map(drop)
        });
        run(Command::new(&script).args(["container", &number, "container1"]).arg(folder.join("tls/ca.pem")));
        Server { port, folder, _process: process }
    });
    Store {
        kind: Kind::Azurite,
        url: format!("azure://container1/{}", prefix()),
        ca_file: Some(server.folder.join("tls/ca.pem")),
        env: vec![
            ("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT.into()),
            ("AZURE_STORAGE_ACCOUNT_KEY", ACCOUNT_KEY.into()),
            ("AZURE_STORAGE_ENDPOINT", format!("https://127.0.0.1:{}/{ACCOUNT}", server.port)),
        ],
    }
}
