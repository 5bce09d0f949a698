//! One machine with one disk, its daemons and its client, of whom one is struck once.
//!
//! Whatever is asked for is asked for again when it fails, after what has died was started again: as a guest, a service manager
//! and an operator do. A daemon that lives and goes on failing is started again too, once; a second time is a failure of the test.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::lab::process::Process;
use super::lab::{Client, MIB, Random, Scratch, Target, judge, lifeboat};

pub const SIZE: u64 = 6 * MIB;
/// Nothing that is asked for takes longer than this.
const LIMIT: Duration = Duration::from_secs(60);
/// After this, what goes on failing is started again.
const PATIENCE: Duration = Duration::from_secs(8);
/// More than the log may hold.
const TOO_MUCH: u64 = 20 * MIB;

/// What happens to one of the processes.
#[derive(Clone)]
pub struct Strike {
    pub point: String,
    /// `die` or `fail`
    pub action: &'static str,
    /// At which passing in one process.
    pub nth: u64,
}

impl fmt::Display for Strike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}@{}", self.point, self.action, self.nth)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Proxy,
    Uploader,
}

impl Role {
    fn name(self) -> &'static str {
        if self == Self::Proxy { "proxy" } else { "uploader" }
    }
}

/// A write that was not answered, and what the disk was before and after it.
struct Torn {
    before: Vec<u8>,
    after: Vec<u8>,
}

pub struct Scene {
    scratch: Scratch,
    strike: Option<Strike>,
    daemons: BTreeMap<Role, Process>,
    client: Option<Client>,
    random: Random,
    /// What the disk must hold.
    model: Vec<u8>,
    /// What it held after each write, as a hash.
    states: Vec<Hash>,
    torn: Vec<Torn>,
    /// Points of which it is known what they hold: the index of the state.
    known: BTreeMap<String, usize>,
    /// What went on failing until the daemons were started again.
    stuck: Option<String>,
    /// Also planned for whatever is started, until the strike.
    pub besides: &'static str,
}

impl Scene {
    /// A machine that was never protected.
    pub fn new(strike: Option<Strike>) -> Self {
        let scratch = Scratch::new();
        let mut random = Random::new(7);
        let mut model = vec![0; usize::try_from(SIZE).expect("small")];
        random.fill(&mut model[..300_000]);
        std::fs::write(scratch.join("d.img"), &model).expect("an image");
        let home = scratch.path().display();
        let config = format!(
            "state_dir = \"{home}/state\"\nsite = \"here\"\n[vault]\nurl = \"file://{home}/vault\"\nkey_file = \"{home}/vault.key\"\n\
             [policy]\ninterval = \"24h\"\nretry = [\"1s\"]\nresync_window = \"always\"\nlog_limit = \"16 MiB\"\n\
             [[machine]]\nname = \"m\"\n[[machine.disk]]\nname = \"d\"\npath = \"{home}/d.img\"\nlisten = \"unix:{home}/d.sock\"\n"
        );
        std::fs::write(scratch.join("lifeboat.toml"), config).expect("a configuration");
        std::fs::write(scratch.join("vault.key"), [1; 32]).expect("a key");
        old_jobs(&scratch.join("state/jobs"));
        let states = vec![hash(&model)];
        Self {
            scratch,
            strike,
            daemons: BTreeMap::new(),
            client: None,
            random,
            model,
            states,
            torn: Vec::new(),
            known: BTreeMap::new(),
            stuck: None,
            besides: "",
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    /// The failpoints that were passed.
    pub fn trace(&self) -> String {
        std::fs::read_to_string(self.path("trace")).unwrap_or_default()
    }

    /// Whether the strike has happened: the rest of the scene may be left out.
    pub fn was_struck(&self) -> bool {
        let Some(strike) = &self.strike else { return false };
        let mut passed: BTreeMap<String, u64> = BTreeMap::new();
        for line in self.trace().lines() {
            if let Some((process, _)) = line.split_once(' ').filter(|(_, point)| *point == strike.point) {
                *passed.entry(process.to_owned()).or_default() += 1;
            }
        }
        passed.values().any(|count| *count >= strike.nth)
    }

    /// `lifeboat ARGS`, under the plan if it is to be struck and was not yet.
    pub fn command(&self, args: &[&str], planned: bool) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
        command.arg("--config").arg(self.path("lifeboat.toml")).arg("--json").args(args);
        if planned && !self.was_struck() {
            let strike = self.strike.as_ref().map(ToString::to_string).unwrap_or_default();
            let plan = format!("trace={} {strike} {}", self.path("trace").display(), self.besides);
            command.env("LIFEBOAT_FAILPOINTS", plan);
        }
        command
    }

    /// Starts a daemon; if it is struck before it is ready, starts it again.
    pub fn start(&mut self, role: Role) {
        let deadline = Instant::now() + LIMIT;
        loop {
            let mut process = Process::start(&mut self.command(&[role.name()], true), &self.path("log"));
            let ready = loop {
                if process.printed().lines().any(|line| line.trim() == "ready") {
                    break true;
                }
                if process.ended().is_some() {
                    break false;
                }
                std::thread::sleep(Duration::from_millis(5));
            };
            if ready {
                self.daemons.insert(role, process);
                return;
            }
            assert!(self.was_struck() && Instant::now() < deadline, "the {} does not start", role.name());
        }
    }

    /// kill -9
    pub fn kill(&mut self, role: Role) {
        self.client = None;
        self.daemons.remove(&role).expect("it runs").kill();
    }

    /// SIGTERM
    pub fn stop(&mut self, role: Role) {
        self.client = None;
        let mut daemon = self.daemons.remove(&role).expect("it runs");
        if daemon.ended().is_none() {
            daemon.signal("TERM");
            let status = daemon.wait(LIMIT);
            assert!(status.success() || self.was_struck(), "the {} ended with {status}", role.name());
        }
    }

    /// Starts again what has died.
    fn heal(&mut self) {
        let mut gone = Vec::new();
        for (role, process) in &mut self.daemons {
            if let Some(status) = process.ended() {
                gone.push((*role, status));
            }
        }
        for (role, status) in gone {
            assert!(self.was_struck(), "the {} ended by itself with {status}", role.name());
            self.client = None;
            self.start(role);
        }
    }

    /// Tries `act` until it succeeds.
    fn insist<T>(&mut self, what: &str, mut act: impl FnMut(&mut Self) -> Result<T, String>) -> T {
        let begin = Instant::now();
        let mut patience = PATIENCE;
        loop {
            let failed = match act(self) {
                Ok(done) => return done,
                Err(failed) => failed,
            };
            assert!(begin.elapsed() < LIMIT, "{what} goes on failing: {failed}");
            self.heal();
            if begin.elapsed() > patience && self.stuck.is_none() {
                assert!(self.was_struck(), "{what} fails without a strike: {failed}");
                (self.stuck, patience) = (Some(format!("{what}: {failed}")), LIMIT);
                for role in self.daemons.keys().copied().collect::<Vec<_>>() {
                    self.kill(role);
                    self.start(role);
                }
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Runs a command until it succeeds; its answer.
    pub fn ask(&mut self, args: &[&str]) -> Value {
        self.insist(&args.join(" "), |scene| {
            let mut command = scene.command(args, false);
            let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a command");
            // What it waits for may be dead.
            while child.try_wait().expect("its state").is_none() {
                scene.heal();
                std::thread::sleep(Duration::from_millis(5));
            }
            let output = child.wait_with_output().expect("its end");
            let (out, err) =
                (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            let answer = output.status.success().then(|| serde_json::from_str(&out).expect("JSON"));
            answer.ok_or_else(|| format!("{}: {err}", output.status))
        })
    }

    /// Runs a command that may be struck; again, if it was.
    pub fn run(&mut self, args: &[&str]) {
        if !self.try_planned(args) {
            self.ask(args);
        }
    }

    /// The ids of the points that there are.
    pub fn points(&mut self) -> Vec<String> {
        let answer = self.ask(&["points", "m"]);
        let points = answer["points"].as_array().expect("points");
        points.iter().map(|point| lifeboat::text(point, "id")).collect()
    }

    /// Makes the files in a folder two hours old.
    pub fn age(&self, folder: &str) {
        let then = std::time::SystemTime::now() - Duration::from_secs(7200);
        for file in std::fs::read_dir(self.path(folder)).expect("a folder") {
            let file = std::fs::File::open(file.expect("a file").path()).expect("a file");
            file.set_modified(then).expect("its time");
        }
    }

    /// Runs a command that may be struck; whether it succeeded.
    pub fn try_planned(&mut self, args: &[&str]) -> bool {
        let output = judge::output(&mut self.command(args, true));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() || self.was_struck(), "{args:?}: {said}");
        output.status.success()
    }

    fn connected<T>(
        &mut self,
        what: &str,
        mut act: impl FnMut(&mut Client) -> std::io::Result<T>,
        mut failed: impl FnMut(&mut Self),
    ) -> T {
        self.insist(what, |scene| {
            let target = Target::unix(scene.path("d.sock"), "m/d");
            let mut client = match scene.client.take() {
                Some(client) => client,
                None => Client::try_connect(&target).map_err(|error| error.to_string())?,
            };
            match act(&mut client) {
                Ok(done) => {
                    scene.client = Some(client);
                    Ok(done)
                }
                Err(error) => {
                    failed(scene);
                    Err(error.to_string())
                }
            }
        })
    }

    /// Writes random bytes.
    pub fn write_at(&mut self, offset: u64, len: usize, flags: u16) {
        let mut data = vec![0; len];
        self.random.fill(&mut data);
        let at = usize::try_from(offset).expect("small");
        let old = self.model[at..at + len].to_vec();
        self.model[at..at + len].copy_from_slice(&data);
        self.connected(
            "a write",
            |client| client.try_write(offset, &data, flags),
            |scene| {
                let after = scene.model.clone();
                let mut before = after.clone();
                before[at..at + len].copy_from_slice(&old);
                scene.torn.push(Torn { before, after });
            },
        );
        self.states.push(hash(&self.model));
    }

    /// Writes `bytes` at random places.
    pub fn write_some(&mut self, bytes: u64, each: u64) {
        for _ in 0..bytes.div_ceil(each) {
            let offset = self.random.below((SIZE - each) / 512) * 512;
            self.write_at(offset, usize::try_from(each).expect("small"), 0);
        }
    }

    /// Writes more than the log may hold.
    pub fn overflow(&mut self) {
        self.write_some(TOO_MUCH, MIB);
    }

    pub fn flush(&mut self) {
        self.connected("a flush", Client::try_flush, |_| {});
    }

    /// Both daemons, and the first point.
    pub fn protect(&mut self) {
        self.start(Role::Proxy);
        self.start(Role::Uploader);
        self.wait_protected();
    }

    pub fn wait_protected(&mut self) {
        self.insist("the wait", |scene| {
            let output = judge::output(&mut scene.command(&["status"], false));
            let status: Value = serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
            let machine = &status["machines"][0];
            let state = machine["disks"][0]["state"] == "protected" && !machine["rpo_seconds"].is_null();
            if state { Ok(()) } else { Err(machine.to_string()) }
        });
    }

    /// Takes a point.
    pub fn cut(&mut self) {
        let answer = self.ask(&["cut", "m", "--timeout", "20s"]);
        self.known.insert(lifeboat::text(&answer, "point"), self.states.len() - 1);
    }

    /// What restoring `point` gives. A file under its final name is complete, whatever happened to the restore.
    pub fn restore(&mut self, point: &str, planned: bool) -> Vec<u8> {
        let to = self.path("restored");
        let file = to.join("d.raw");
        let args = ["restore", "m", "--to", to.to_str().expect("a plain path"), "--point", point];
        let output = judge::output(&mut self.command(&args, planned));
        if output.status.success() {
            return taken(&file);
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(planned && (self.was_struck() || !self.besides.is_empty()), "restore {point}: {said}");
        let early = file.exists().then(|| taken(&file));
        let restored = self.restore(point, false);
        assert!(early.is_none_or(|early| early == restored), "a file under its final name was not complete");
        restored
    }

    /// The end of every scene: see the test's header. What went on failing until daemons were started again.
    pub fn end(mut self) -> Option<String> {
        for role in [Role::Proxy, Role::Uploader] {
            if !self.daemons.contains_key(&role) {
                self.start(role);
            }
        }
        self.wait_protected();
        self.write_some(8192, 4096);
        self.flush();
        self.cut();
        assert!(
            std::fs::read(self.path("d.img")).expect("the image") == self.model,
            "an answered write is not on the disk"
        );
        let answer = self.ask(&["points", "m"]);
        let points = answer["points"].as_array().expect("points").clone();
        let mut newest = 0;
        for point in points {
            let id = lifeboat::text(&point, "id");
            let held = self.restore(&id, false);
            let seen = hash(&held);
            let state = self.states.iter().rposition(|state| *state == seen);
            match (self.known.remove(&id), state) {
                (Some(wanted), _) => {
                    assert!(self.states[wanted] == seen, "point {id} is not what the disk held at its cut");
                    newest = wanted;
                }
                (None, Some(state)) => {
                    assert!(state >= newest, "point {id} is older than the one before it");
                    newest = state;
                }
                (None, None) => assert!(self.is_torn(&held), "point {id} is no state that the disk had"),
            }
        }
        assert!(self.known.is_empty(), "points are lost: {:?}", self.known);
        self.stuck
    }

    /// Whether a write that was never answered explains `held`: each sector is old or new.
    fn is_torn(&self, held: &[u8]) -> bool {
        self.torn.iter().any(|torn| {
            let mut sectors = held.chunks(512).zip(torn.before.chunks(512).zip(torn.after.chunks(512)));
            sectors.all(|(held, (before, after))| held == before || held == after)
        })
    }
}

type Hash = [u8; 32];

fn hash(bytes: &[u8]) -> Hash {
    Sha256::digest(bytes).into()
}

/// Reads the file at `path` and removes it.
fn taken(path: &Path) -> Vec<u8> {
    let bytes = std::fs::read(path).expect("the restored disk");
    std::fs::remove_file(path).expect("the restored disk");
    bytes
}

/// As many records of ended jobs as are kept, so that the next one makes the oldest go.
fn old_jobs(folder: &Path) {
    std::fs::create_dir_all(folder).expect("a folder");
    for n in 0..200 {
        let id = format!("00000000-0000-4000-8000-{n:012}");
        let job = serde_json::json!({
            "id": id, "kind": "restore", "machine": "m", "state": "done", "started": "2020-01-01T00:00:00Z",
            "ended": "2020-01-01T00:00:01Z", "bytes_done": 0, "bytes_total": 0, "cause": "", "error": null,
        });
        std::fs::write(folder.join(format!("{id}.json")), job.to_string()).expect("a record");
    }
}
