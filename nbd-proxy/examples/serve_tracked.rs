//! Serves one image with tracking on, for measuring the data path by itself:
//!
//!     cargo run --release -p nbd-proxy --example serve_tracked -- IMAGE SOCKET
//!
//! With `--without-intent-map` (built with `--features measure`), what is measured is tracking without it.
//!
//! Logging is on from the first write. The log is cut and released three times a second, as by an uploader that keeps
//! up; its compression and uploads are left out, for they would measure the machine's cores instead of the data path.
#![allow(clippy::expect_used, reason = "a tool for benchmarks says what went wrong and ends")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nbd_proxy::device::BlockDevice;
use nbd_proxy::disk::DiskSettings;
use nbd_proxy::machine::{Machine, MachineSettings};
use nbd_proxy::server::{DEFAULT_SOCKET_MODE, Export, Limits, Listen, Listener, Server};

fn main() {
    let mut arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let given = arguments.len();
    arguments.retain(|argument| argument != "--without-intent-map");
    let without = arguments.len() < given;
    let mut arguments = arguments.into_iter().map(PathBuf::from);
    let usage = "usage: serve_tracked IMAGE SOCKET [--without-intent-map]";
    let (path, socket) = arguments.next().zip(arguments.next()).expect(usage);
    // A limit that no run reaches: what is measured is logging, not going without.
    let log_limit = Some(64 << 30);
    let disk = DiskSettings {
        name: "disk".to_owned(),
        path,
        log_dir: None,
        read_only: false,
        log_limit,
        upstream: Default::default(),
    };
    let machine =
        Machine::open(&MachineSettings { name: "bench".to_owned(), disks: vec![disk] }).expect("a disk");
    let sync = machine.begin_sync("disk", None).expect("logging on");
    machine.end_sync("disk", sync.tracking).expect("logging on");
    if without {
        #[cfg(feature = "measure")]
        machine.disk("disk").expect("the disk").forgo_intent_map().expect("a durable state");
        #[cfg(not(feature = "measure"))]
        std::process::exit(2);
    }
    let device: Arc<dyn BlockDevice> = machine.disk("disk").expect("the disk").clone();
    let export = Export::new("bench/disk", device);
    let listen = Listen::Unix { path: socket, mode: DEFAULT_SOCKET_MODE };
    let listener = Listener::new(listen, vec![export]);
    let _server = Server::start(vec![listener], Limits::default()).expect("a server");
    loop {
        std::thread::sleep(Duration::from_millis(300));
        let cut = machine.cut().expect("tracking stays on, or the figures mean nothing");
        machine.release(cut.id).expect("a release");
    }
}
