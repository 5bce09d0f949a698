//! Serves a raw file as a tracked disk whose vault is infinitely fast: `serve_tracked unix:PATH FILE`.
//!
//! Every write is recorded in the change log as in production, and every cut is released as soon as it was taken, as if an
//! uploader had shipped it at once. So this is the data path with tracking on and nothing else, which is what
//! `scripts/bench nbd` measures. Ends at end of input.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nbd_proxy::device::BlockDevice;
use nbd_proxy::disk::DiskSettings;
use nbd_proxy::machine::{Machine, MachineSettings};
use nbd_proxy::server::{DEFAULT_SOCKET_MODE, Export, Limits, Listen, Listener, Server};

/// From one cut to the next.
const INTERVAL: Duration = Duration::from_millis(500);
/// So that a burst between two cuts is recorded whole.
const LOG_LIMIT: u64 = 32 << 30;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let place = args.next().ok_or("which socket?")?;
    let file = args.next().ok_or("which file?")?;
    let socket = place.strip_prefix("unix:").ok_or("the socket is unix:PATH")?;
    let disk = DiskSettings {
        name: "disk".to_owned(),
        path: PathBuf::from(&file),
        log_dir: None,
        read_only: false,
        log_limit: Some(LOG_LIMIT),
    };
    let machine = Machine::open(&MachineSettings { name: "bench".to_owned(), disks: vec![disk] })?;
    let sync = machine.begin_sync("disk", None)?;
    machine.end_sync("disk", sync.tracking)?;

    let device: Arc<dyn BlockDevice> = Arc::clone(machine.disk("disk")?) as Arc<dyn BlockDevice>;
    let export = Export { name: "bench/disk".to_owned(), description: file, device, read_only: false };
    let listen = Listen::Unix { path: Path::new(socket).to_owned(), mode: DEFAULT_SOCKET_MODE };
    let server = Server::start(vec![Listener { listen, exports: vec![export] }], Limits::default())?;
    println!("ready");
    let cutter = Arc::clone(&machine);
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(INTERVAL);
            // A disk that left the log has nothing to cut, and the figures would be those of an untracked one.
            if let Err(error) = cutter.cut().and_then(|cut| cutter.release(cut.id)) {
                eprintln!("tracking is off: {error}");
                std::process::exit(1);
            }
        }
    });
    std::io::stdin().read_to_end(&mut Vec::new())?;
    server.stop();
    machine.close()?;
    Ok(())
}
