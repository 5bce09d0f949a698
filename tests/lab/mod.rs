//! What the promise tests share: scratch folders, stores, the `lifeboat` binary as a user runs it, virtual machines,
//! an NBD client that reconnects, and models of what a disk must hold.
//!
//! Everything that a test starts ends with it: processes of a test by their owner's drop, stores that many tests share
//! by a supervisor that dies with the test binary. Nothing outside a scratch folder is written. A judge that is
//! missing is named and its test passes over it on a laptop; with `CI=true` that is a failure.
#![allow(dead_code, unused_imports, reason = "each test binary uses its own part")]

pub mod client;
pub mod foreign;
pub mod guest;
pub mod history;
pub mod judge;
pub mod lifeboat;
pub mod load;
pub mod model;
pub mod process;
pub mod store;
pub mod vm;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use client::{Client, Target};
pub use judge::{run, tool};
pub use lifeboat::{Lifeboat, Setup};
pub use store::Store;

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;

/// A number that `scripts/soak` raises: the variable `name`, or the short form `short`.
pub fn scale(name: &str, short: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} must be a number, not {text:?}")),
        Err(_) => short,
    }
}

/// The lab's folder, by the rule of `scripts/lab`.
pub fn folder() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("LIFEBOAT_LAB").unwrap_or_else(|| {
        let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
        cache.expect("HOME is set").join("lifeboat-lab")
    })
}

/// `scripts/lab` itself.
pub fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/lab")
}

/// A folder that vanishes with the test; kept, and named, if the test fails.
pub struct Scratch(Option<tempfile::TempDir>);

impl Scratch {
    pub fn new() -> Self {
        Self(Some(tempfile::Builder::new().prefix("lifeboat-").tempdir().expect("a scratch folder")))
    }

    pub fn path(&self) -> &Path {
        self.0.as_ref().expect("the folder stands until the drop").path()
    }

    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(folder) = self.0.take()
        {
            eprintln!("kept for a look: {}", folder.keep().display());
        }
    }
}

/// A TCP port of 127.0.0.1 that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("a bound address").port()
}

/// Waits until `done` gives a value; `what` names it when `limit` has passed.
pub fn until<T>(what: &str, limit: Duration, mut done: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A sparse file of `size` bytes.
pub fn sparse(path: &Path, size: u64) {
    let file = std::fs::File::create(path).expect("an image");
    file.set_len(size).expect("its size");
}

/// A generator of numbers that are the same for the same seed: xorshift64*.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 11) % limit
    }

    /// Fills `buf`.
    pub fn fill(&mut self, buf: &mut [u8]) {
        for chunk in buf.chunks_mut(8) {
            let bytes = self.next().to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }
}
