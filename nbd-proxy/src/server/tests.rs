//! The server over real sockets, on a device in memory.

mod client;
mod crowd;
mod ends;
mod extended;
mod secure;
mod transfer;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::*;
use crate::testing::MemDevice;

/// A server of one device on a Unix socket.
struct Stand {
    server: Server,
    device: Arc<MemDevice>,
    socket: PathBuf,
    _folder: TempDir,
}

fn listener(path: PathBuf, device: &Arc<MemDevice>) -> Listener {
    let device: Arc<dyn BlockDevice> = Arc::<MemDevice>::clone(device);
    Listener::new(Listen::Unix { path, mode: DEFAULT_SOCKET_MODE }, vec![Export::new("m/disk", device)])
}

impl Stand {
    fn new(device: MemDevice) -> Self {
        Self::with(device, Limits::default())
    }

    fn with(device: MemDevice, limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("disk.sock");
        let device = Arc::new(device);
        let server = Server::start(vec![listener(socket.clone(), &device)], limits).unwrap();
        Self { server, device, socket, _folder: folder }
    }
}

/// Waits until `what` holds; a test that waits in vain fails.
fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Bytes that differ from place to place.
fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from((at * 7 + at / 251 + seed) % 255 + 1).unwrap()).collect()
}
