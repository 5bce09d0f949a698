//! A scratch site: a folder with disks, a configuration, a vault, and the program itself. What it starts, it ends.

#![allow(dead_code, reason = "each test file uses its part")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

pub struct Site {
    pub dir: TempDir,
    daemons: Vec<Child>,
}

/// What a command said.
pub struct Said {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Said {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error} in {}{}", self.stdout, self.stderr))
    }

    pub fn error(&self) -> Value {
        let value: Value =
            serde_json::from_str(&self.stderr).unwrap_or_else(|error| panic!("{error} in {}", self.stderr));
        value["error"].clone()
    }
}

impl Site {
    /// An empty site.
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), daemons: Vec::new() }
    }

    /// A site whose machine `web1` has the disks `root` (16 MiB) and `data` (8 MiB), and a folder for a vault.
    pub fn with_machine() -> Self {
        let site = Self::new();
        site.disk("root.img", 16 << 20);
        site.disk("data.img", 8 << 20);
        site.config(&site.usual(""));
        site
    }

    /// The usual configuration with `more` after `[vault]`'s own lines.
    pub fn usual(&self, more: &str) -> String {
        let at = |name: &str| self.path(name).display().to_string();
        format!(
            "state_dir = \"{}\"\nsite = \"lund\"\n[vault]\nurl = \"{}\"\nencryption = \"none\"\n{more}\n\
             [policy]\ninterval = \"1s\"\nretry = [\"1s\"]\nresync_window = \"always\"\n[[machine]]\nname = \"web1\"\n\
             [[machine.disk]]\nname = \"root\"\npath = \"{}\"\n[[machine.disk]]\nname = \"data\"\npath = \"{}\"\n",
            at("state"),
            self.vault(),
            at("root.img"),
            at("data.img"),
        )
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn vault(&self) -> String {
        format!("file://{}", self.path("vault").display())
    }

    pub fn socket(&self, disk: &str) -> PathBuf {
        self.path(&format!("state/web1-{disk}.sock"))
    }

    pub fn disk(&self, name: &str, size: u64) {
        File::create(self.path(name)).unwrap().set_len(size).unwrap();
    }

    pub fn config(&self, text: &str) {
        fs::write(self.path("lifeboat.toml"), text).unwrap();
    }

    /// The program with this site's configuration, and no vault's credentials of the environment.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = bare(args);
        command.env("LIFEBOAT_CONFIG", self.path("lifeboat.toml"));
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, args: &[&str]) -> Said {
        said(self.command(args))
    }

    /// Runs a command that must succeed.
    pub fn ok(&self, args: &[&str]) -> Said {
        let said = self.run(args);
        assert_eq!(said.code, 0, "{args:?}: {}", said.stderr);
        said
    }

    /// Starts a daemon and returns its process id when it is ready. Its log goes to `ROLE.log`.
    pub fn start(&mut self, role: &str) -> u32 {
        let log = File::options().append(true).create(true).open(self.path(&format!("{role}.log"))).unwrap();
        let mut child = self.command(&[role]).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let pid = child.id();
        self.daemons.push(child);
        assert_eq!(line, "ready\n", "{role} did not get ready: {}", self.log(role));
        pid
    }

    pub fn log(&self, role: &str) -> String {
        fs::read_to_string(self.path(&format!("{role}.log"))).unwrap_or_default()
    }

    /// kill -9.
    pub fn kill(&mut self, pid: u32) {
        let mut child = self.take(pid);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM; the exit code.
    pub fn stop(&mut self, pid: u32) -> i32 {
        let mut child = self.take(pid);
        assert!(Command::new("kill").arg(pid.to_string()).status().unwrap().success());
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            if let Some(status) = child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        panic!("process {pid} did not end within 20 s of SIGTERM");
    }

    fn take(&mut self, pid: u32) -> Child {
        let at = self.daemons.iter().position(|child| child.id() == pid).expect("a daemon of this site");
        self.daemons.remove(at)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for child in &mut self.daemons {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The program as on a host that knows nothing of Lifeboat.
pub fn bare(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
    command.args(args).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ["AWS_", "AZURE_", "LIFEBOAT_", "RUST_LOG"].iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
    command
}

pub fn said(mut command: Command) -> Said {
    let Output { status, stdout, stderr } = command.output().unwrap();
    Said {
        code: status.code().unwrap_or(-1),
        stdout: String::from_utf8(stdout).unwrap(),
        stderr: String::from_utf8(stderr).unwrap(),
    }
}

/// Waits until `done`, or fails with `what`.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "not within 60 s: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub fn bytes(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
