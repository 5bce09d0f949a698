//! Clients that write without pause, note what they did, and wait for a server that was killed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::client::{FUA, NO_HOLE};
use super::history::{Stripe, Write, now};
use super::lifeboat::Disk;
use super::{Client, Random, Target};

/// Bytes that each client has to itself.
const STRIPE: usize = 3 << 20;
/// The longest write.
const LONGEST: u64 = 48 << 10;

/// Some clients at work. They stop when told to, or with their owner.
pub struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Stripe>>,
}

impl Load {
    /// Starts `per_disk` clients on each of `disks`, which pause for `pause` after each request.
    pub fn start(disks: &[Disk], per_disk: usize, seed: u64, pause: Duration) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut clients = Vec::new();
        for (disk, target) in disks.iter().map(|disk| disk.target.clone()).enumerate() {
            for n in 0..per_disk {
                // Not aligned to anything: neighbours share blocks and pages.
                let offset = (n * STRIPE + 777) as u64;
                let stripe = Stripe { disk, offset, len: STRIPE, writes: Vec::new() };
                let worker = Worker {
                    target: target.clone(),
                    stripe,
                    random: Random::new(seed ^ ((disk as u64) << 40) ^ ((n as u64) << 48)),
                    stop: Arc::clone(&stop),
                    answered: Arc::clone(&answered),
                    pause,
                };
                clients.push(std::thread::spawn(move || worker.work()));
            }
        }
        Self { stop, answered, clients }
    }

    /// How big a disk must be for `per_disk` clients.
    pub fn room(per_disk: usize) -> u64 {
        (per_disk * STRIPE + 1_000_000) as u64 / 4096 * 4096
    }

    /// How many requests were answered.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits until `more` further requests were answered: the server is there and works.
    pub fn wait_for(&self, more: u64) {
        let enough = self.answered() + more;
        super::until("clients to be answered", super::client::PATIENCE, || {
            assert!(!self.clients.iter().any(JoinHandle::is_finished), "a client has failed");
            (self.answered() >= enough).then_some(())
        });
    }

    /// Ends the clients after their request under way; what they did.
    pub fn stop(mut self) -> Vec<Stripe> {
        self.stop.store(true, Ordering::Relaxed);
        let clients = std::mem::take(&mut self.clients);
        clients.into_iter().map(|client| client.join().expect("a client without error")).collect()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

struct Worker {
    target: Target,
    stripe: Stripe,
    random: Random,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    pause: Duration,
}

impl Worker {
    fn work(mut self) -> Stripe {
        let mut client = Client::connect(&self.target);
        while !self.stop.load(Ordering::Relaxed) {
            self.request(&mut client);
            self.answered.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(self.pause);
        }
        self.stripe
    }

    fn request(&mut self, client: &mut Client) {
        let len = 1 + usize::try_from(self.random.below(LONGEST)).expect("a small length");
        let offset = usize::try_from(self.random.below((STRIPE - len) as u64)).expect("a small offset");
        let kind = self.random.below(20);
        if kind == 0 {
            return client.flush();
        }
        let seed = (kind > 3).then(|| self.random.next());
        let (before, sent) = (client.resent, now());
        let mut write = Write { offset, len, seed, sent, answered: sent, resent: false };
        let at = self.stripe.offset + offset as u64;
        match (seed, kind) {
            (Some(_), _) => client.write(at, &write.data(), if kind == 4 { FUA } else { 0 }),
            (None, 1) => client.trim(at, len),
            (None, 2) => client.zero(at, len, NO_HOLE),
            (None, _) => client.zero(at, len, 0),
        }
        write.answered = now();
        write.resent = client.resent != before;
        self.stripe.writes.push(write);
    }
}
