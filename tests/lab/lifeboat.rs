//! The `lifeboat` binary as a user has it: a configuration file, daemons that can be killed, commands that speak JSON.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;

use super::process::Process;
use super::{Scratch, Store, Target, judge, sparse};

/// The protected machine of every test.
pub const MACHINE: &str = "vm1";
/// A daemon that is not ready after this has hung.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// What to protect, and how; then [`Setup::create`].
pub struct Setup {
    disks: Vec<(String, u64)>,
    /// Disks behind other servers, and where.
    behind: Vec<(String, String)>,
    read_only: Vec<String>,
    interval: String,
    policy: String,
    tables: String,
    log: Option<&'static str>,
    tcp: bool,
}

impl Setup {
    /// One machine without disks, whose points come only from `cut`. Its log may grow beyond the small disks of tests,
    /// so that an unlogged stretch is what a test asks for.
    pub fn new() -> Self {
        Self {
            disks: Vec::new(),
            behind: Vec::new(),
            read_only: Vec::new(),
            interval: "24h".into(),
            // A test that runs at noon waits for no evening.
            policy: "log_limit = \"64 GiB\"\nresync_window = \"always\"\n".into(),
            tables: String::new(),
            log: None,
            tcp: false,
        }
    }

    /// Adds a sparse disk.
    pub fn disk(mut self, name: &str, size: u64) -> Self {
        self.disks.push((name.into(), size));
        self
    }

    /// Adds a disk that stands behind another server.
    pub fn behind(mut self, name: &str, size: u64, address: &str) -> Self {
        self.behind.push((name.into(), address.into()));
        self.disk(name, size)
    }

    /// Serves a disk read-only.
    pub fn read_only(mut self, name: &str) -> Self {
        self.read_only.push(name.into());
        self
    }

    /// `policy.interval`
    pub fn interval(mut self, interval: &str) -> Self {
        self.interval = interval.into();
        self
    }

    /// Another line of `[policy]`.
    pub fn policy(mut self, line: &str) -> Self {
        writeln!(self.policy, "{line}").expect("a line");
        self
    }

    /// Another table of the configuration.
    pub fn table(mut self, text: &str) -> Self {
        writeln!(self.tables, "{text}").expect("a table");
        self
    }

    /// What the daemons log: `LIFEBOAT_LOG`.
    pub fn log(mut self, what: &'static str) -> Self {
        self.log = Some(what);
        self
    }

    /// Exports on TCP instead of Unix sockets.
    pub fn tcp(mut self) -> Self {
        self.tcp = true;
        self
    }

    /// Writes the configuration and makes the images that are not there yet.
    pub fn create(self, scratch: &Scratch, store: &Store) -> Lifeboat {
        let home = scratch.path().to_owned();
        std::fs::create_dir_all(home.join("images")).expect("a folder for images");
        let mut disks = Vec::new();
        for (name, size) in self.disks {
            let behind = self.behind.iter().find(|(disk, _)| *disk == name);
            let image = behind.map_or_else(
                || home.join("images").join(format!("{MACHINE}-{name}.img")),
                |(_, address)| address.into(),
            );
            if behind.is_none() && !image.exists() {
                sparse(&image, size);
            }
            let export = format!("{MACHINE}/{name}");
            let target = if self.tcp {
                Target { place: super::client::Place::Tcp(super::free_port()), export }
            } else {
                Target::unix(home.join(format!("{name}.sock")), &export)
            };
            let read_only = self.read_only.contains(&name);
            disks.push(Disk { name, size, image, target, read_only });
        }
        let mut lifeboat = Lifeboat {
            config: home.join("lifeboat.toml"),
            reader: home.join("reader.toml"),
            home,
            store: store.clone(),
            disks,
            proxy: None,
            uploader: None,
            log: self.log,
            log_is_wild: false,
            expected: Vec::new(),
        };
        let policy = format!("[policy]\ninterval = \"{}\"\n{}", self.interval, self.policy);
        lifeboat.write_config(&format!("{}{policy}", self.tables));
        lifeboat
    }
}

/// One disk of the machine.
#[derive(Clone, Debug)]
pub struct Disk {
    pub name: String,
    pub size: u64,
    pub image: PathBuf,
    pub target: Target,
    pub read_only: bool,
}

/// A recovery point, as `points --json` shows it.
#[derive(Clone, Debug)]
pub struct Point {
    pub id: String,
    /// The cut's instant in seconds since 1970, by the proxy's clock.
    pub time: f64,
    pub bytes: u64,
}

/// A configuration and the daemons that run it.
pub struct Lifeboat {
    home: PathBuf,
    config: PathBuf,
    reader: PathBuf,
    store: Store,
    disks: Vec<Disk>,
    /// The proxy, or both roles in one.
    pub proxy: Option<Process>,
    pub uploader: Option<Process>,
    log: Option<&'static str>,
    log_is_wild: bool,
    expected: Vec<String>,
}

impl Lifeboat {
    fn write_config(&mut self, policy: &str) {
        let mut text = format!("state_dir = \"{}\"\nsite = \"lab\"\n", self.home.join("state").display());
        write!(text, "[vault]\nurl = \"{}\"\nencryption = \"none\"\n", self.store.url).expect("text");
        if let Some(ca_file) = &self.store.ca_file {
            writeln!(text, "ca_file = \"{}\"", ca_file.display()).expect("text");
        }
        // A host that only reads the vault has no machine.
        let elsewhere = text.replace("state\"\n", "elsewhere\"\n");
        std::fs::write(&self.reader, elsewhere).expect("a configuration");
        write!(text, "{policy}[[machine]]\nname = \"{MACHINE}\"\n").expect("text");
        for disk in &self.disks {
            let listen = match &disk.target.place {
                super::client::Place::Unix(path) => format!("unix:{}", path.display()),
                super::client::Place::Tcp(port) => format!("tcp:127.0.0.1:{port}"),
            };
            let (name, image) = (&disk.name, disk.image.display());
            write!(text, "[[machine.disk]]\nname = \"{name}\"\npath = \"{image}\"\nlisten = \"{listen}\"\n")
                .expect("text");
            if disk.image.starts_with("nbd:") || disk.image.starts_with("nbd+unix:") {
                writeln!(text, "log_dir = \"{}\"", self.home.join("images").display()).expect("text");
            }
            if disk.read_only {
                text.push_str("read_only = true\n");
            }
        }
        std::fs::write(&self.config, text).expect("a configuration");
    }

    pub fn config(&self) -> &Path {
        &self.config
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    pub fn disks(&self) -> &[Disk] {
        &self.disks
    }

    pub fn disk(&self, name: &str) -> &Disk {
        self.disks.iter().find(|disk| disk.name == name).expect("a disk of that name")
    }

    /// `lifeboat --config …` with the store's credentials in the environment.
    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
        command.arg("--config").arg(&self.config).envs(self.store.env.iter().cloned());
        command
    }

    /// The same from a host that has no machine, no daemon and no state.
    fn elsewhere(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
        command.arg("--config").arg(&self.reader).envs(self.store.env.iter().cloned());
        command
    }

    fn start(&self, role: &str) -> Process {
        let mut command = self.command();
        command.arg(role).envs(self.log.map(|what| ("LIFEBOAT_LOG", what)));
        let mut process = Process::start(&mut command, &self.log());
        process.wait_for_line("ready", READY_LIMIT);
        process
    }

    /// Where the daemons log.
    pub fn log(&self) -> PathBuf {
        self.home.join("lifeboat.log")
    }

    /// Both roles in one process.
    pub fn run(mut self) -> Self {
        self.proxy = Some(self.start("run"));
        self
    }

    /// Each role in a process of its own.
    pub fn run_apart(mut self) -> Self {
        self.start_proxy();
        self.start_uploader();
        self
    }

    pub fn start_proxy(&mut self) {
        self.proxy = Some(self.start("proxy"));
    }

    pub fn start_uploader(&mut self) {
        self.uploader = Some(self.start("uploader"));
    }

    /// kill -9
    pub fn kill_proxy(&mut self) {
        self.log_is_wild = true;
        self.proxy.take().expect("a running proxy").kill();
    }

    /// kill -9
    pub fn kill_uploader(&mut self) {
        self.log_is_wild = true;
        self.uploader.take().expect("a running uploader").kill();
    }

    /// SIGTERM to every daemon; each must end with exit code 0.
    pub fn stop(&mut self) {
        for (name, daemon) in [("uploader", self.uploader.take()), ("proxy", self.proxy.take())] {
            if let Some(mut daemon) = daemon {
                daemon.signal("TERM");
                let status = daemon.wait(Duration::from_secs(30));
                assert!(status.success(), "the {name} ended with {status}:\n{}", daemon.printed());
            }
        }
    }

    /// A WARN or ERROR line with `text` in it is what this test provokes. After a kill any warning is: only an ERROR
    /// that is not expected fails the test then.
    pub fn expect_log(&mut self, text: &str) {
        self.expected.push(text.into());
    }

    /// Runs a command; its answer.
    pub fn json(&self, args: &[&str]) -> Value {
        parse(&judge::output(self.command().arg("--json").args(args)), args)
    }

    /// Runs a command that only reads the vault, from elsewhere; its answer.
    pub fn json_elsewhere(&self, args: &[&str]) -> Value {
        parse(&judge::output(self.elsewhere().arg("--json").args(args)), args)
    }

    /// Runs a command from elsewhere that may fail.
    pub fn output_elsewhere(&self, args: &[&str]) -> Output {
        judge::output(self.elsewhere().arg("--json").args(args))
    }

    /// Waits for the first point to exist and every disk to be exact.
    pub fn wait_protected(&self) {
        self.json(&["wait", MACHINE, "--for", "protected", "--timeout", "120s"]);
    }

    /// Takes a point and ships it; what `cut --json` says.
    pub fn cut(&self) -> Value {
        self.json(&["cut", MACHINE, "--timeout", "120s"])
    }

    /// The id of a point taken now.
    pub fn cut_id(&self) -> String {
        text(&self.cut(), "point")
    }

    /// All points, oldest first, as any host sees them.
    pub fn points(&self) -> Vec<Point> {
        let answer = self.json_elsewhere(&["points", MACHINE]);
        let points = answer["points"].as_array().unwrap_or_else(|| panic!("no points in {answer}"));
        points
            .iter()
            .map(|point| Point {
                id: text(point, "id"),
                time: text(point, "time").parse::<jiff::Timestamp>().expect("a time").as_nanosecond() as f64
                    / 1e9,
                bytes: point["bytes"].as_u64().expect("bytes"),
            })
            .collect()
    }

    /// The machine's part of `status --json`.
    pub fn status(&self) -> Value {
        let status = self.json(&["status"]);
        status["machines"][0].clone()
    }

    /// Restores a point from elsewhere into a new folder; the folder, and the image of each disk in it.
    pub fn restore(&self, point: &str, to: &Path) -> Vec<PathBuf> {
        let to_text = to.to_str().expect("a plain path");
        let answer = self.json_elsewhere(&["restore", MACHINE, "--to", to_text, "--point", point]);
        let disks = answer["disks"].as_array().unwrap_or_else(|| panic!("no disks in {answer}"));
        let restored: Vec<PathBuf> = disks.iter().map(|disk| PathBuf::from(text(disk, "path"))).collect();
        let wanted: Vec<PathBuf> =
            self.disks.iter().map(|disk| to.join(format!("{}.raw", disk.name))).collect();
        assert_eq!(restored, wanted, "the restored files are named after the disks");
        restored
    }

    /// Lines that nobody provoked.
    fn unexpected(&self) -> Vec<String> {
        let log = std::fs::read(self.log()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log).into_owned();
        let alarming = |line: &&str| {
            let mut words = line.split_whitespace().take(3);
            words.any(|word| word == "ERROR" || (word == "WARN" && !self.log_is_wild) || word == "panicked")
        };
        let foreseen = |line: &&str| self.expected.iter().any(|text| line.contains(text));
        log.lines().filter(alarming).filter(|line| !foreseen(line)).map(str::to_owned).collect()
    }
}

impl Drop for Lifeboat {
    fn drop(&mut self) {
        self.uploader = None;
        self.proxy = None;
        if !std::thread::panicking() {
            let lines = self.unexpected();
            assert!(lines.is_empty(), "unexpected lines in the log:\n{}", lines.join("\n"));
        }
    }
}

/// The text at `key` of an answer.
pub fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_else(|| panic!("no text at {key:?} in {value}")).to_owned()
}

/// The number at `key` of an answer.
pub fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("no number at {key:?} in {value}"))
}

fn parse(output: &Output, args: &[&str]) -> Value {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "lifeboat {args:?}: {}\n{out}{err}", output.status);
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("lifeboat {args:?} said {out:?}: {error}"))
}
