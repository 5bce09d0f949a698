//! NBD servers of others, with a disk behind them: started, killed and started again at the same place.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::client::Place;
use super::process::Process;
use super::{free_port, judge, run, sparse, tool, until};

/// How long a server may take to listen.
const START: Duration = Duration::from_secs(30);

/// A server with one export, called `disk`.
pub struct Foreign {
    command: Box<dyn Fn() -> Command>,
    place: Place,
    log: PathBuf,
    process: Option<Process>,
}

impl Foreign {
    fn start(command: Box<dyn Fn() -> Command>, place: Place, log: PathBuf) -> Self {
        let mut foreign = Self { command, place, log, process: None };
        foreign.come_back();
        foreign
    }

    /// `qemu-nbd` of either generation, with an image that it makes: `qcow2`, `vhdx` …
    pub fn qemu_nbd(dir: &Path, generation: &'static str, format: &str, name: &str, size: u64) -> Self {
        let image = image(dir, name, format);
        if !image.exists() {
            run(tool("qemu-img").args(["create", "-q", "-f", format]).arg(&image).arg(size.to_string()));
        }
        let socket = dir.join(format!("{name}.upstream"));
        let (format, at) = (format.to_owned(), socket.clone());
        let command = move || {
            let mut command = tool(&format!("{generation}qemu-nbd"));
            command.args([
                "-t",
                "-e",
                "4",
                "-x",
                "disk",
                "--discard=unmap",
                "--cache=writeback",
                "-f",
                &format,
            ]);
            command.arg("-k").arg(&at).arg(&image);
            command
        };
        Self::start(Box::new(command), Place::Unix(socket), dir.join(format!("{name}.upstream.log")))
    }

    /// `nbdkit` with a raw file and more arguments: filters first, their parameters after.
    pub fn nbdkit(
        dir: &Path,
        name: &str,
        size: u64,
        filters: &'static [&str],
        parameters: &'static [&str],
    ) -> Self {
        let image = image(dir, name, "raw");
        sparse(&image, size);
        let socket = dir.join(format!("{name}.upstream"));
        let at = socket.clone();
        let command = move || {
            let _ = std::fs::remove_file(&at);
            let mut command = tool("nbdkit");
            command
                .args(["-f", "-e", "disk", "-U"])
                .arg(&at)
                .args(filters)
                .arg("file")
                .arg(&image)
                .args(parameters);
            command
        };
        Self::start(Box::new(command), Place::Unix(socket), dir.join(format!("{name}.upstream.log")))
    }

    /// `nbd-server` with a raw file, on TCP.
    pub fn nbd_server(dir: &Path, name: &str, size: u64) -> Self {
        let (image, port) = (image(dir, name, "raw"), free_port());
        sparse(&image, size);
        let config = dir.join(format!("{name}.conf"));
        let text = format!(
            "[generic]\nport = {port}\nlistenaddr = 127.0.0.1\n[disk]\nexportname = {}\nflush = true\nfua = true\n",
            image.display()
        );
        std::fs::write(&config, text).expect("a configuration");
        let command = move || {
            let mut command = tool("nbd-server");
            command.args(["-d", "-C"]).arg(&config);
            command
        };
        Self::start(Box::new(command), Place::Tcp(port), dir.join(format!("{name}.upstream.log")))
    }

    /// As Lifeboat's configuration names it.
    pub fn address(&self) -> String {
        match &self.place {
            Place::Unix(socket) => format!("nbd+unix:///disk?socket={}", socket.display()),
            Place::Tcp(port) => format!("nbd://127.0.0.1:{port}/disk"),
        }
    }

    /// kill -9
    pub fn kill(&mut self) {
        self.process.take().expect("a running server").kill();
    }

    /// Starts it, or starts it again.
    pub fn come_back(&mut self) {
        self.process = Some(Process::start(&mut (self.command)(), &self.log));
        until(&format!("the server of {}", self.address()), START, || match &self.place {
            Place::Unix(socket) => UnixStream::connect(socket).map(drop).ok(),
            // A server that stays in the foreground may serve the first connection only: it is not touched.
            Place::Tcp(port) => listens(*port).then_some(()),
        });
    }

    /// Ends it in good order.
    pub fn stop(mut self) {
        if let Some(mut process) = self.process.take()
            && process.ended().is_none()
        {
            process.signal("TERM");
            process.wait(START);
        }
    }
}

/// Whether somebody listens at a TCP port.
fn listens(port: u16) -> bool {
    let sockets = std::fs::read_to_string("/proc/net/tcp").expect("the kernel's list of sockets");
    sockets.lines().any(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        fields.get(1).is_some_and(|local| local.ends_with(&format!(":{port:04X}")))
            && fields.get(3) == Some(&"0A")
    })
}

/// Where the image of `name` is.
pub fn image(dir: &Path, name: &str, format: &str) -> PathBuf {
    dir.join(format!("{name}.{format}"))
}

/// The image as plain bytes, which its own tools must find in order.
pub fn contents(dir: &Path, name: &str, format: &str) -> PathBuf {
    let (image, raw) = (image(dir, name, format), dir.join(format!("{name}.plain")));
    if format != "raw" {
        let checked = judge::output(tool("qemu-img").args(["check", "-f", format]).arg(&image));
        // 3 is a leak of space, which a killed server may leave.
        assert!(matches!(checked.status.code(), Some(0 | 3)), "qemu-img check: {checked:?}");
    }
    run(tool("qemu-img").args(["convert", "-f", format, "-O", "raw"]).arg(&image).arg(&raw));
    raw
}
