//! The demo's client: one connection that writes, trims and flushes without pause, until held or cut off.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nbd_proxy::client::Client;
use nbd_proxy::{Error, Kind, Result};

const BLOCK: u64 = 4096;
/// The largest write and trim, in blocks.
const RUN: u64 = 16;
const PAUSE: Duration = Duration::from_micros(300);

/// Bytes that look like data: half of each block noise, half of it repeated, so that they compress somewhat.
pub struct Noise(u64);

impl Noise {
    /// A stream of its own for each seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number (xorshift).
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next().checked_rem(limit).unwrap_or(0)
    }

    /// Fills `buf`.
    pub fn fill(&mut self, buf: &mut [u8]) {
        for block in buf.chunks_mut(64) {
            let word = self.next().to_le_bytes();
            for (at, byte) in block.iter_mut().enumerate() {
                *byte = if at < 32 { self.next().to_le_bytes()[0] } else { word[at % 8] };
            }
        }
    }
}

struct Shared {
    /// Held for each request: whoever holds it knows that none is under way.
    gate: Mutex<()>,
    ended: AtomicBool,
    writes: AtomicU64,
}

/// The running client.
pub struct Writer {
    shared: Arc<Shared>,
    thread: JoinHandle<Result<()>>,
}

/// While it lives, nothing is written.
pub struct Held<'a> {
    writer: &'a Writer,
    _gate: MutexGuard<'a, ()>,
}

impl Held<'_> {
    /// Writes acknowledged so far.
    pub fn writes(&self) -> u64 {
        self.writer.shared.writes.load(Ordering::Relaxed)
    }
}

impl Writer {
    /// Connects and begins.
    pub fn start(socket: &Path, export: &str) -> Result<Self> {
        let client = Client::connect(socket, export)?;
        let shared = Arc::new(Shared {
            gate: Mutex::new(()),
            ended: AtomicBool::new(false),
            writes: AtomicU64::new(0),
        });
        let theirs = shared.clone();
        let thread = std::thread::spawn(move || write(client, &theirs));
        Ok(Self { shared, thread })
    }

    /// Waits for the request under way and keeps the next from being sent. Fails if the client was cut off.
    pub fn hold(&self) -> Result<Held<'_>> {
        if self.thread.is_finished() {
            return Err(Error::new(Kind::Unavailable, "the client", "it was cut off before its time"));
        }
        Ok(Held { writer: self, _gate: self.shared.gate.lock().unwrap_or_else(PoisonError::into_inner) })
    }

    /// Ends the client, which may be cut off already; the number of writes that were acknowledged.
    pub fn end(self) -> u64 {
        self.shared.ended.store(true, Ordering::Relaxed);
        // Its error is the hang-up that the story is about.
        let _ = self.thread.join();
        self.shared.writes.load(Ordering::Relaxed)
    }
}

fn write(mut client: Client<std::os::unix::net::UnixStream>, shared: &Shared) -> Result<()> {
    let mut noise = Noise::new(11);
    let mut data = Vec::new();
    let blocks = client.size() / BLOCK;
    while !shared.ended.load(Ordering::Relaxed) {
        let gate = shared.gate.lock().unwrap_or_else(PoisonError::into_inner);
        let run = 1 + noise.below(RUN);
        let at = noise.below(blocks.saturating_sub(run)) * BLOCK;
        match noise.below(64) {
            0 => client.flush()?,
            1 => client.trim(at, u32::try_from(run * BLOCK).unwrap_or(u32::MAX))?,
            _ => {
                data.resize(usize::try_from(run * BLOCK).unwrap_or_default(), 0);
                noise.fill(&mut data);
                client.write(&data, at)?;
                shared.writes.fetch_add(1, Ordering::Relaxed);
            }
        }
        drop(gate);
        std::thread::sleep(PAUSE);
    }
    client.close()
}
