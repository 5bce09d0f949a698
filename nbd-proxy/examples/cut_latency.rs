//! What a cut costs the writes that it meets, over eight disks under full load:
//!
//!     cargo run --release -p nbd-proxy --example cut_latency -- DIR SECONDS
//!
//! Each disk has a client at a socket that writes 4 KiB at random places, one after another as fast as it is answered; four times a
//! second all disks are cut and the cut is released. (Threads that never wait would measure the scheduler's slices instead.) Prints the percentiles of the writes during whose time a cut was being taken, and of all others, in microseconds.
#![allow(clippy::expect_used, reason = "a tool for benchmarks says what went wrong and ends")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nbd_proxy::client::Client;
use nbd_proxy::device::BlockDevice;
use nbd_proxy::disk::DiskSettings;
use nbd_proxy::machine::{Machine, MachineSettings};
use nbd_proxy::server::{DEFAULT_SOCKET_MODE, Export, Limits, Listen, Listener, Server};

const DISKS: usize = 8;
const SIZE: u64 = 256 << 20;
/// From one cut to the next: long enough that most writes meet none.
const INTERVAL: Duration = Duration::from_millis(250);

fn main() {
    let mut arguments = std::env::args_os().skip(1);
    let usage = "usage: cut_latency DIR SECONDS";
    let dir = arguments.next().map(PathBuf::from).expect(usage);
    let seconds: u64 = arguments.next().and_then(|count| count.to_str()?.parse().ok()).expect(usage);
    let disks = (0..DISKS).map(|number| disk(&dir, number)).collect();
    let machine = Machine::open(&MachineSettings { name: "bench".to_owned(), disks }).expect("disks");
    for disk in machine.disks() {
        let sync = machine.begin_sync(disk.name(), None).expect("logging on");
        machine.end_sync(disk.name(), sync.tracking).expect("logging on");
    }
    let server = Server::start(listeners(&dir, &machine), Limits::default()).expect("a server");
    let begun = Instant::now();
    let over = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..DISKS)
        .map(|number| {
            let (socket, over) = (socket(&dir, number), Arc::clone(&over));
            std::thread::spawn(move || write(&socket, number, begun, &over))
        })
        .collect();
    let mut cuts = Vec::new();
    while begun.elapsed() < Duration::from_secs(seconds) {
        std::thread::sleep(INTERVAL);
        let from = begun.elapsed();
        let cut = machine.cut().expect("a cut");
        cuts.push((from, begun.elapsed()));
        machine.release(cut.id).expect("a release");
    }
    over.store(true, Ordering::Relaxed);
    let writes: Vec<_> = writers.into_iter().flat_map(|writer| writer.join().expect("a writer")).collect();
    let (met, others): (Vec<_>, Vec<_>) = writes.into_iter().partition(|(from, to)| {
        let next = cuts.partition_point(|(_, end)| end < from);
        cuts.get(next).is_some_and(|(begin, _)| begin < to)
    });
    server.stop();
    machine.close().expect("a clean end");
    for (what, mut writes) in [("met", met), ("others", others)] {
        writes.sort_unstable_by_key(|(from, to)| *to - *from);
        let at = |share: usize| {
            let write = writes.get((writes.len() * share / 10_000).min(writes.len().saturating_sub(1)));
            write.map_or(0, |(from, to)| (*to - *from).as_micros())
        };
        println!("{what} {} {} {} {}", writes.len(), at(5000), at(9900), at(9990));
    }
}

fn listeners(dir: &Path, machine: &Machine) -> Vec<Listener> {
    let disks = machine.disks().iter().enumerate();
    let listener = |(number, disk): (usize, &Arc<_>)| {
        let device: Arc<dyn BlockDevice> = Arc::<nbd_proxy::disk::TrackedDisk>::clone(disk);
        let listen = Listen::Unix { path: socket(dir, number), mode: DEFAULT_SOCKET_MODE };
        Listener::new(listen, vec![Export::new(format!("bench/{number}"), device)])
    };
    disks.map(listener).collect()
}

fn socket(dir: &Path, number: usize) -> PathBuf {
    dir.join(format!("{number}.sock"))
}

/// A fully written disk, as one is that has been in use.
fn disk(dir: &Path, number: usize) -> DiskSettings {
    let path = dir.join(format!("{number}.img"));
    if !path.exists() {
        std::fs::write(&path, vec![1; usize::try_from(SIZE).expect("a size")]).expect("an image");
    }
    let log_limit = Some(8 << 30);
    DiskSettings {
        name: number.to_string(),
        path,
        log_dir: None,
        read_only: false,
        log_limit,
        upstream: Default::default(),
    }
}

/// When each write began and ended.
fn write(socket: &Path, number: usize, begun: Instant, over: &AtomicBool) -> Vec<(Duration, Duration)> {
    let mut client = Client::connect(socket, &format!("bench/{number}")).expect("a client");
    let mut times = Vec::with_capacity(1 << 20);
    let mut random = 0x9e37_79b9_7f4a_7c15 ^ (number as u64) << 32;
    while !over.load(Ordering::Relaxed) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let offset = random % (SIZE / 4096) * 4096;
        let from = begun.elapsed();
        client.write(&[7; 4096], offset).expect("a write");
        times.push((from, begun.elapsed()));
    }
    times
}
