//! Processes that a test starts, and how each of them ends.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// A process in the background that is killed with its owner. What it prints is kept in a file.
pub struct Process {
    child: Child,
    log: PathBuf,
    read_from: u64,
}

impl Process {
    /// Starts `command` with both its outputs added to `log`.
    pub fn start(command: &mut Command, log: &Path) -> Self {
        let out = File::options().create(true).append(true).open(log).expect("a log file");
        let read_from = out.metadata().expect("its size").len();
        let err = out.try_clone().expect("a second handle");
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { child, log: log.to_owned(), read_from }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed.
    pub fn printed(&self) -> String {
        let mut file = File::open(&self.log).expect("the log file");
        file.seek(SeekFrom::Start(self.read_from)).expect("its place in the log");
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).expect("the log");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the state of a child")
    }

    /// Waits for a line that is `line` and nothing more.
    pub fn wait_for_line(&mut self, line: &str, limit: Duration) {
        super::until(&format!("the line {line:?} in {}", self.log.display()), limit, || {
            let printed = self.printed();
            if printed.lines().any(|it| it.trim() == line) {
                return Some(());
            }
            assert!(self.ended().is_none(), "it ended before {line:?}:\n{printed}");
            None
        });
    }

    /// Waits for its end by itself.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let what = format!("the end of process {}", self.id());
        super::until(&what, limit, || self.ended())
    }

    /// kill -9, and waits until it is gone.
    pub fn kill(&mut self) {
        // It may have ended by itself already.
        let _ = self.child.kill();
        self.child.wait().expect("the end of a killed child");
    }

    /// Sends it a signal by name: `TERM`, `STOP`, `CONT` …
    pub fn signal(&self, name: &str) {
        super::run(Command::new("kill").arg(format!("-{name}")).arg(self.id().to_string()));
    }

    /// Resident memory in bytes, and the most there ever was.
    pub fn memory(&self) -> (u64, u64) {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.id())).expect("the process's status");
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).expect("a field of the status");
            let kib: u64 = line.split_whitespace().nth(1).expect("a number").parse().expect("a number");
            kib * 1024
        };
        (field("VmRSS:"), field("VmHWM:"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process that all tests of a binary share. Statics are never dropped, so a supervisor holds it: when this binary
/// ends, however it ends, the supervisor's input closes, the process is killed and its folder removed.
pub struct Shared {
    child: Child,
    pid: u32,
}

const SUPERVISOR: &str = r#"
exec 3<&0
"$@" </dev/null >>"$LOG" 2>&1 3<&- &
child=$!
echo "$child"
read -r _ <&3
kill -9 "$child"
wait "$child" 2>/dev/null
rm -rf "$FOLDER"
"#;

impl Shared {
    /// Starts `command`, which lives in `folder`; its output is `folder/log`.
    pub fn start(command: &[&std::ffi::OsStr], folder: &Path) -> Self {
        let mut child = Command::new("bash")
            .args(["-c", SUPERVISOR, "supervisor"])
            .args(command)
            .env("LOG", folder.join("log"))
            .env("FOLDER", folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a supervisor");
        let mut text = String::new();
        let out = child.stdout.take().expect("the supervisor's output");
        BufReader::new(out).read_line(&mut text).expect("the process id");
        let pid = text.trim().parse().expect("a process id");
        Self { child, pid }
    }

    /// The process's own id.
    pub fn id(&self) -> u32 {
        self.pid
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
