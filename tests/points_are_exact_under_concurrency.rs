//! Writers on several connections and two disks never pause, cuts fall at random, and *every* point restores to a state
//! that the oracle allows: what was acknowledged before the cut is in it, what began after it is not, and nothing
//! else is there. The whole data path runs in this process (NBD server, tracked disks, replication, a folder vault), so
//! that hundreds of seeds fit into a minute.
//!
//! Each connection writes a part of its disk that is its own, so its history is a row of states, and a point must hold one of
//! those between the last one acknowledged before the cut and the last one begun when it returned. Between the
//! connections the dependency test of `machine/tests.rs` holds the order.
//!
//! `LIFEBOAT_SEEDS` (300; 10,000 in `scripts/soak`; a twentieth of them over qcow2) seeds from `LIFEBOAT_SEED` on; a failure names its seed.
#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod lab;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use lab::client::{FUA, NO_HOLE, Target};
use lab::foreign::Foreign;
use lab::{Client, KIB, Random, judge, scale};
use nbd_proxy::Result;
use nbd_proxy::device::{BlockDevice, Extent};
use nbd_proxy::disk::DiskSettings;
use nbd_proxy::machine::{Machine, MachineSettings};
use nbd_proxy::server::{Export, Limits, Listen, Listener, Server};
use nbd_proxy::tracking::{Cut, CutRequest, MachineInfo, Round, Sync};
use uploader::listing::PointName;
use uploader::replicate::{self, Handle, Settings};
use uploader::restore::{Checksum, Request, restore};
use uploader::source::Source;
use uploader::store::StoreConfig;
use uploader::vault::{Protection, Vault};
use uuid::Uuid;

const DISKS: [&str; 2] = ["root", "data"];
const CONNECTIONS: u64 = 2;
/// Each connection's part of its disk; odd, so that parts share blocks.
const PART: u64 = 300 * KIB + 333;
const SIZE: u64 = CONNECTIONS * PART;
const CUTS: usize = 3;

/// One change to a connection's part: offset within the part, and the bytes (`None`: so many zeroes).
type Change = (usize, std::result::Result<Vec<u8>, usize>);

#[test]
fn every_point_of_every_seed_restores() {
    seeds(scale("LIFEBOAT_SEEDS", 300), None);
}

/// The same with a qcow2 image behind `qemu-nbd` behind us, for each disk.
#[test]
fn every_point_of_every_seed_restores_over_qcow2() {
    if !judge::have(&["qemu-nbd", "qemu-img"]) {
        return;
    }
    seeds(scale("LIFEBOAT_SEEDS", 300).div_ceil(20), Some("qcow2"));
}

fn seeds(seeds: u64, format: Option<&str>) {
    let first = scale("LIFEBOAT_SEED", 1);
    for seed in first..first + seeds {
        if let Err(panic) = std::panic::catch_unwind(|| one(seed, format)) {
            eprintln!("failed with LIFEBOAT_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
    eprintln!("{seeds} seeds from {first} on, {CUTS} cuts each");
}

/// A connection, what it has done, and how far it has got.
struct Writer {
    disk: usize,
    base: u64,
    changes: Mutex<Vec<Change>>,
    acknowledged: AtomicUsize,
}

impl Writer {
    fn new(disk: usize, number: u64) -> Self {
        Self { disk, base: number * PART, changes: Mutex::default(), acknowledged: AtomicUsize::new(0) }
    }

    /// Changes that have begun: each is recorded before it is sent.
    fn begun(&self) -> usize {
        self.changes.lock().expect("no panic").len()
    }

    fn run(&self, target: &Target, mut random: Random, stop: &AtomicBool) {
        let mut client = Client::connect(target);
        while !stop.load(Ordering::SeqCst) {
            let (at, change) = any_change(&mut random);
            self.changes.lock().expect("no panic").push((at, change.clone()));
            let offset = self.base + at as u64;
            match change {
                Ok(data) => client.write(offset, &data, if random.below(6) == 0 { FUA } else { 0 }),
                Err(len) if random.below(2) == 0 => client.trim(offset, len),
                Err(len) => client.zero(offset, len, if random.below(2) == 0 { NO_HOLE } else { 0 }),
            }
            self.acknowledged.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_micros(random.below(300)));
        }
    }

    /// Whether `found`, this writer's part at a point, is one of its states from `low` to `high`.
    fn allows(&self, found: &[u8], low: usize, high: usize) -> bool {
        self.replay(high, |number, state| number >= low && state == found)
    }

    /// For a failure: of the states from `low` to `high` the one most like `found`: how many bytes differ, its number, and
    /// the first byte that does.
    fn nearest(&self, found: &[u8], low: usize, high: usize) -> Option<(usize, usize, usize)> {
        let mut nearest = None;
        self.replay(high, |number, state| {
            let differs: Vec<_> = (0..found.len()).filter(|at| state[*at] != found[*at]).collect();
            let this = (differs.len(), number, differs.first().copied().unwrap_or(0));
            if number >= low && nearest.is_none_or(|nearest| this < nearest) {
                nearest = Some(this);
            }
            false
        });
        nearest
    }

    /// Shows the part before the first change and after each of the first `high`, until `done` says so.
    fn replay(&self, high: usize, mut done: impl FnMut(usize, &[u8]) -> bool) -> bool {
        let changes = self.changes.lock().expect("no panic");
        let mut state = vec![0; usize::try_from(PART).expect("small")];
        if done(0, &state) {
            return true;
        }
        changes[..high].iter().enumerate().any(|(number, (at, change))| {
            match change {
                Ok(data) => state[*at..at + data.len()].copy_from_slice(data),
                Err(len) => state[*at..at + len].fill(0),
            }
            done(number + 1, &state)
        })
    }
}

fn any_change(random: &mut Random) -> Change {
    let limit = [600, 5_000, 120_000][below(random, 3)];
    let len = 1 + below(random, limit);
    let at = below(random, usize::try_from(PART).expect("small") - len);
    let data = (below(random, 3) > 0).then(|| {
        let mut data = vec![0; len];
        random.fill(&mut data);
        data
    });
    (at, data.ok_or(len))
}

fn one(seed: u64, format: Option<&str>) {
    let random = &mut Random::new(seed);
    let scratch = scratch();
    let servers = DISKS.map(|name| {
        // Sectors are all that QEMU's formats know.
        let size = SIZE.next_multiple_of(512);
        format.map(|format| Foreign::qemu_nbd(scratch.path(), "", format, name, size))
    });
    let disk = |(name, server): (&&str, &Option<Foreign>)| settings(&scratch, name, server.as_ref());
    let disks = DISKS.iter().zip(&servers).map(disk).collect();
    let machine = Machine::open(&MachineSettings { name: "m".to_owned(), disks }).expect("a machine");
    let (server, targets) = serve(&machine, scratch.path());
    let mut writers = Vec::new();
    for disk in 0..DISKS.len() {
        writers.extend((0..CONNECTIONS).map(|number| Writer::new(disk, number)));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let (handle, vault) = runtime.block_on(replicate(machine.clone(), scratch.path()));
    let mut points = Vec::new();
    if random.below(2) == 0 {
        // The first point of the other seeds falls into the initial replication.
        runtime.block_on(handle.cut()).expect("a cut");
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for writer in &writers {
            let (target, random, stop) = (&targets[writer.disk], Random::new(random.next()), &stop);
            scope.spawn(move || writer.run(target, random, stop));
        }
        for _ in 0..CUTS {
            std::thread::sleep(Duration::from_micros(random.below(6_000)));
            let low: Vec<_> =
                writers.iter().map(|writer| writer.acknowledged.load(Ordering::SeqCst)).collect();
            let cut = runtime.block_on(handle.cut());
            let high: Vec<_> = writers.iter().map(Writer::begun).collect();
            points.push((cut.map(|cut| cut.point), low, high));
        }
        stop.store(true, Ordering::SeqCst);
    });
    let all: Vec<_> = writers.iter().map(Writer::begun).collect();
    points.push((runtime.block_on(handle.cut()).map(|cut| cut.point), all.clone(), all));
    for (point, low, high) in points {
        let point = point.expect("a cut");
        let images =
            runtime.block_on(restored(&vault, PointName::Id(point), &scratch.path().join("restored")));
        for ((writer, low), high) in writers.iter().zip(low).zip(high) {
            let base = usize::try_from(writer.base).expect("small");
            let part = &images[writer.disk][base..base + usize::try_from(PART).expect("small")];
            let place = format!("point {point}, disk {}, bytes from {base}", DISKS[writer.disk]);
            let nearest = || writer.nearest(part, low, high);
            let allowed = writer.allows(part, low, high);
            assert!(
                allowed,
                "seed {seed}, {place}: none of the states {low} to {high}; nearest {:?}",
                nearest()
            );
        }
    }
    runtime.block_on(handle.stop());
    server.stop();
    machine.close().expect("a clean close");
    drop(machine);
    servers.into_iter().flatten().for_each(Foreign::stop);
}

/// A disk that is a file, or stands behind `server`.
fn settings(scratch: &tempfile::TempDir, name: &str, server: Option<&Foreign>) -> DiskSettings {
    let path = scratch.path().join(format!("{name}.img"));
    std::fs::File::create(&path).and_then(|file| file.set_len(SIZE)).expect("an image");
    DiskSettings {
        name: name.to_owned(),
        path: server.map_or(path, |server| server.address().into()),
        log_dir: Some(scratch.path().to_owned()),
        read_only: false,
        log_limit: Some(1 << 30),
        upstream: Default::default(),
    }
}

/// In memory where the system has such a place: the test is about order, and durability is tested elsewhere.
fn scratch() -> tempfile::TempDir {
    let shm = Path::new("/dev/shm");
    let parent = if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix("lifeboat-").tempdir_in(parent).expect("a scratch folder")
}

fn serve(machine: &Arc<Machine>, dir: &Path) -> (Server, Vec<Target>) {
    let mut targets = Vec::new();
    let mut listeners = Vec::new();
    for disk in machine.disks() {
        let path = dir.join(format!("{}.sock", disk.name()));
        targets.push(Target::unix(&path, disk.name()));
        let device: Arc<dyn BlockDevice> = disk.clone();
        let export = Export::new(disk.name(), device);
        listeners.push(Listener::new(Listen::Unix { path, mode: 0o600 }, vec![export]));
    }
    (Server::start(listeners, Limits::default()).expect("a server"), targets)
}

async fn replicate(machine: Arc<Machine>, dir: &Path) -> (Handle, Vault) {
    let url = format!("file://{}", dir.join("vault").display());
    let config = StoreConfig { url, ..StoreConfig::default() };
    let vault = Vault::open_or_create(&config, &Protection::None).await.expect("a vault");
    let settings = Settings {
        machine: "m".to_owned(),
        // Only the cuts that the test asks for.
        interval: Duration::from_secs(3600),
        state_dir: dir.join("state"),
        jobs: uploader::jobs::Jobs::open(&dir.join("jobs")).expect("job records"),
        retry_gaps: vec![Duration::from_millis(20)],
        host: "test".to_owned(),
        resync_window: replicate::ResyncWindow::Always,
        clock: replicate::Clock::new(jiff::ZonedDateTime::now),
        elapsed: uploader::elapsed::Elapsed::of_host(),
        on_fenced: replicate::OnFenced::Branch,
        copy_limit: None,
        group: None,
        app_consistent_every: None,
    };
    std::fs::create_dir_all(&settings.state_dir).expect("a state folder");
    let connect = replicate::connect_to(config, Protection::None);
    (replicate::start(settings, InProcess(machine), connect), vault)
}

async fn restored(vault: &Vault, point: PointName, to: &Path) -> Vec<Vec<u8>> {
    let request = Request {
        machine: "m".to_owned(),
        point,
        disks: Vec::new(),
        to: to.to_owned(),
        force: true,
        checksum: Checksum::Never,
    };
    restore(vault, &request, Arc::new(|_, _| {})).await.expect("a restore");
    DISKS.iter().map(|name| std::fs::read(to.join(format!("{name}.raw"))).expect("a disk")).collect()
}

/// A proxy without a control socket between.
struct InProcess(Arc<Machine>);

impl InProcess {
    async fn on<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Machine) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let machine = self.0.clone();
        tokio::task::spawn_blocking(move || work(&machine)).await.expect("no panic")
    }
}

impl Source for InProcess {
    async fn machine(&self) -> Result<MachineInfo> {
        Ok(self.0.info())
    }
    async fn cut(&self, request: CutRequest) -> Result<Cut> {
        self.on(move |machine| machine.cut_as(&request)).await
    }
    async fn release(&self, cut: Uuid) -> Result<()> {
        self.on(move |machine| machine.release(cut)).await
    }
    async fn begin_sync(&self, disk: &str, known: Option<Uuid>) -> Result<Sync> {
        let disk = disk.to_owned();
        self.on(move |machine| machine.begin_sync(&disk, known)).await
    }
    async fn next_round(&self, disk: &str, known: Option<Uuid>, have: Round, logged: bool) -> Result<Sync> {
        self.0.next_round(disk, known, have, logged)
    }
    async fn sync_extents(&self, disk: &str, tracking: Uuid, from: u64) -> Result<Vec<Extent>> {
        let disk = disk.to_owned();
        self.on(move |machine| machine.sync_extents(&disk, tracking, from)).await
    }
    async fn read(&self, disk: &str, offset: u64, len: u32) -> Result<Bytes> {
        let disk = disk.to_owned();
        self.on(move |machine| machine.read(&disk, offset, len).map(Bytes::from)).await
    }
    async fn end_sync(&self, disk: &str, tracking: Uuid) -> Result<()> {
        let disk = disk.to_owned();
        self.on(move |machine| machine.end_sync(&disk, tracking)).await
    }
}

fn below(random: &mut Random, limit: usize) -> usize {
    usize::try_from(random.below(limit as u64)).expect("below a usize")
}
