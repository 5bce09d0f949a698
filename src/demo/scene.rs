//! Where the demo plays: a scratch folder with a site (disk, state) and a vault, the daemon, and the commands.
//!
//! Dropping the scene ends the daemon and removes the folder, however the story ended.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nbd_proxy::client::Client;
use nbd_proxy::{Error, Kind, Result};
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::writer::Noise;

/// Size of the disk in bytes.
pub const DISK_BYTES: u64 = 256 << 20;
/// How much of it is written before the story begins.
pub const DATA_BYTES: u64 = 48 << 20;
/// The machine.
pub const MACHINE: &str = "demo";
/// Its disk's export.
pub const EXPORT: &str = "demo/disk";

/// How long the daemon may take to be ready.
const PATIENCE: Duration = Duration::from_secs(30);
const PIECE: usize = 1 << 20;

/// The scratch folder and what runs in it.
pub struct Scene {
    dir: PathBuf,
    keep: bool,
    daemon: Option<Child>,
}

impl Scene {
    /// Makes the folder, the disk and the configuration.
    pub fn set(dir: Option<&Path>, keep: bool) -> Result<Self> {
        let dir = match dir {
            Some(dir) => std::path::absolute(dir).map_err(|error| Error::io("find", dir, error))?,
            None => std::env::temp_dir().join(format!("lifeboat-demo-{}", std::process::id())),
        };
        if dir.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(Error::new(
                Kind::Exists,
                dir.display().to_string(),
                "the scratch folder is not empty",
            )
            .remedy("name one that is absent or empty with --dir"));
        }
        let scene = Self { dir, keep, daemon: None };
        scene.make_folder("site")?;
        scene.make_folder("vault")?;
        scene.make_folder("safe")?;
        scene.make_key()?;
        scene.make_disk()?;
        scene.write_config()?;
        Ok(scene)
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The socket of the export.
    pub fn export(&self) -> PathBuf {
        self.dir.join("site/disk.sock")
    }

    /// Starts `lifeboat run` and waits until it says that it is ready.
    pub fn start(&mut self) -> Result<()> {
        let log_path = self.dir.join("lifeboat.log");
        let log = File::create(&log_path).map_err(|error| Error::io("create", &log_path, error))?;
        let mut child =
            self.lifeboat(&["run"])?.stdout(Stdio::piped()).stderr(log).spawn().map_err(failed("start"))?;
        let stdout = child.stdout.take();
        self.daemon = Some(child);
        let (sender, said) = mpsc::channel();
        std::thread::spawn(move || {
            let line = stdout.and_then(|stdout| BufReader::new(stdout).lines().next());
            let _ = sender.send(line);
        });
        match said.recv_timeout(PATIENCE) {
            Ok(Some(Ok(line))) if line == "ready" => Ok(()),
            _ => {
                let log = std::fs::read_to_string(&log_path).unwrap_or_default();
                let last = log.lines().last().unwrap_or("it logged nothing").to_owned();
                Err(Error::new(Kind::Unavailable, "lifeboat run", format!("it did not get ready: {last}")))
            }
        }
    }

    /// Runs a command of this program; its stdout.
    pub fn command(&self, args: &[&str]) -> Result<Vec<u8>> {
        let output = self.lifeboat(args)?.output().map_err(failed("run"))?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(Error::new(Kind::Io, format!("lifeboat {}", args.join(" ")), said))
    }

    /// Runs a command of this program with `--json`; its answer.
    pub fn command_json<T: DeserializeOwned>(&self, args: &[&str]) -> Result<T> {
        let mut args = args.to_vec();
        args.push("--json");
        serde_json::from_slice(&self.command(&args)?).map_err(|error| {
            Error::corrupt(format!("lifeboat {}", args.join(" ")), format!("an odd answer: {error}"))
        })
    }

    /// Kills the daemon with -9 and deletes the whole site: disk, change log, state, configuration.
    pub fn lose_everything(&mut self) -> Result<()> {
        self.kill();
        let site = self.dir.join("site");
        std::fs::remove_dir_all(&site).map_err(|error| Error::io("delete", &site, error))
    }

    /// Restores `point` from the vault alone; the SHA-256 of what came back.
    pub fn restore(&self, point: &str) -> Result<String> {
        let to = self.dir.join(format!("restored-{point}"));
        let (vault, to_text) = (self.vault_url(), to.display().to_string());
        let key = self.key().display().to_string();
        let place = ["--vault", &vault, "--key-file", &key, "--to", &to_text];
        self.command(&[&["restore", MACHINE, "--point", point][..], &place].concat())?;
        let path = to.join("disk.raw");
        let mut file = File::open(&path).map_err(|error| Error::io("open", &path, error))?;
        let mut hash = Sha256::new();
        let mut piece = vec![0; PIECE];
        loop {
            match file.read(&mut piece).map_err(|error| Error::io("read", &path, error))? {
                0 => return Ok(hex(hash)),
                len => hash.update(piece.get(..len).unwrap_or_default()),
            }
        }
    }

    /// Says what is left behind.
    pub fn end(self, say: &impl Fn(&str) -> Result<()>) -> Result<()> {
        if self.keep {
            say(&format!("\nLeft to look at: {}", self.dir.display()))?;
        }
        Ok(())
    }

    fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            // An error means that it has ended already.
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }

    fn lifeboat(&self, args: &[&str]) -> Result<Command> {
        let program = std::env::current_exe().map_err(failed("find"))?;
        let mut command = Command::new(program);
        command.arg("--config").arg(self.dir.join("site/lifeboat.toml")).args(args).stdin(Stdio::null());
        Ok(command)
    }

    fn vault_url(&self) -> String {
        format!("file://{}", self.dir.join("vault").display())
    }

    fn make_folder(&self, name: &str) -> Result<()> {
        let path = self.dir.join(name);
        std::fs::create_dir_all(&path).map_err(|error| Error::io("create", &path, error))
    }

    fn make_disk(&self) -> Result<()> {
        let path = self.dir.join("site/disk.img");
        let file = File::create(&path).map_err(|error| Error::io("create", &path, error))?;
        let mut noise = Noise::new(7);
        let mut write = || {
            file.set_len(DISK_BYTES)?;
            let mut piece = vec![0; PIECE];
            for at in (0..DATA_BYTES).step_by(PIECE) {
                noise.fill(&mut piece);
                file.write_all_at(&piece, at)?;
            }
            file.sync_all()
        };
        write().map_err(|error| Error::io("write", &path, error))
    }

    /// The vault's key, which must survive the site.
    fn key(&self) -> PathBuf {
        self.dir.join("safe/vault.key")
    }

    fn make_key(&self) -> Result<()> {
        let key = [Uuid::new_v4(), Uuid::new_v4()].map(|half| half.simple().to_string()).concat();
        let path = self.key();
        File::create(&path)
            .and_then(|mut file| file.write_all(key.as_bytes()))
            .map_err(|error| Error::io("write", &path, error))
    }

    fn write_config(&self) -> Result<()> {
        let site = self.dir.join("site");
        let text = format!(
            "state_dir = \"{site}/state\"\nsite = \"here\"\n\n[vault]\nurl = \"{vault}\"\nkey_file = \"{key}\"\n\n\
             [policy]\ninterval = \"30s\"\n\n[[machine]]\nname = \"{MACHINE}\"\n\n  \
             [[machine.disk]]\n  name = \"disk\"\n  path = \"{site}/disk.img\"\n  listen = \"unix:{socket}\"\n",
            site = site.display(),
            vault = self.vault_url(),
            key = self.key().display(),
            socket = self.export().display(),
        );
        let path = site.join("lifeboat.toml");
        File::create(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(|error| Error::io("write", &path, error))
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.kill();
        if !self.keep {
            // What cannot be removed lies in a folder for temporary things.
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

/// SHA-256 of a whole disk, read through its export.
pub fn hash_export(socket: &Path) -> Result<String> {
    let mut client = Client::connect(socket, EXPORT)?;
    let mut hash = Sha256::new();
    let mut piece = vec![0; PIECE];
    for at in (0..client.size()).step_by(PIECE) {
        client.read(&mut piece, at)?;
        hash.update(&piece);
    }
    client.close()?;
    Ok(hex(hash))
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn failed(what: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |error| {
        Error::new(Kind::Io, "lifeboat", format!("cannot {what} this program: {error}")).source(error)
    }
}
