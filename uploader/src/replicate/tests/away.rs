//! The vault is away for a very long time, and the guest goes on.
//!
//! Gaps between attempts are nothing here, so that cycles are as fast as they can be: `LIFEBOAT_AWAY` of them (1,000; 10,000 in
//! `scripts/soak`).

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::SeqCst};

use object_store::memory::InMemory;

use super::*;
use crate::source::Source as _;
use crate::testing::{Ask, Fault, Faulty, Random, vault_in};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;
/// What a guest writes in a cycle.
const BURST: usize = 256 << 10;
/// Of proxy and uploader, which are one process here, besides the store in memory.
const MEMORY_MAX: u64 = (64 + 300) * MIB + SIZE;

const WELL: u8 = 0;
/// Nothing gets through.
const AWAY: u8 = 1;
/// What is there can be read, and nothing can be added.
const FULL: u8 = 2;

/// The machine, and the store that is away.
struct Outage {
    rig: Rig,
    vault: Vault,
    store: Arc<AtomicU8>,
    attempts: Arc<AtomicU64>,
    random: Random,
    most: u64,
}

impl Outage {
    async fn begin() -> Self {
        let (store, attempts) = (Arc::new(AtomicU8::new(WELL)), Arc::new(AtomicU64::new(0)));
        let (mode, count) = (Arc::clone(&store), Arc::clone(&attempts));
        let faulty = Faulty::new(Arc::new(InMemory::new()), move |_, ask, _| {
            let mode = mode.load(SeqCst);
            let fails = mode == AWAY || (mode == FULL && ask == Ask::Put);
            count.fetch_add(u64::from(fails), SeqCst);
            if fails { Fault::Before } else { Fault::None }
        });
        let vault = vault_in(faulty).await;
        let rig = Rig::unwatched("d", SIZE, None);
        Self { rig, vault, store, attempts, random: Random::new(91), most: 0 }
    }

    /// The guest writes while so many attempts fail. Each write is answered, and the log stays in its bounds.
    async fn cycles(&mut self, how: u8, count: u64) {
        self.store.store(how, SeqCst);
        for cycle in 1..=count {
            let failed = self.attempts.load(SeqCst);
            let at = self.random.below(SIZE / 4096 - 64) * 4096;
            self.rig.write_through("d", at, &self.random.bytes(BURST));
            self.look().await;
            while self.attempts.load(SeqCst) == failed {
                tokio::task::yield_now().await;
            }
            if cycle % 100 == 0 {
                let memory = crate::testing::resident();
                assert!(memory <= MEMORY_MAX, "{memory} bytes after {cycle} cycles");
            }
        }
    }

    async fn look(&mut self) {
        let (limit, segment) = (SIZE / 2, SIZE / 16);
        let disk = self.rig.machine().await.unwrap().disks.remove(0);
        self.most = self.most.max(disk.log_bytes);
        assert!(disk.log_bytes <= limit, "{disk:?}");
        assert!(disk.logged || disk.cause.contains("log_limit"), "{disk:?}");
        let folder = self.rig.folder().join("lifeboat-logs/m/d");
        let entries = std::fs::read_dir(folder).unwrap().flatten();
        let files: Vec<_> =
            entries.filter_map(|entry| Some((entry.file_name(), entry.metadata().ok()?.len()))).collect();
        let taken: u64 = files.iter().map(|(_, len)| len).sum();
        // State and marks stand there too.
        assert!(taken <= limit + segment + 128 * 1024, "{taken} bytes: {files:?}; {disk:?}");
    }

    fn image(&self) -> Vec<u8> {
        std::fs::read(self.rig.folder().join("d.img")).unwrap()
    }
}

/// In a process of its own, whose memory is that of this one machine.
#[test]
fn ten_thousand_cycles_without_a_vault_cost_one_catch_up_and_no_write() {
    if std::env::var_os("LIFEBOAT_ALONE").is_none() {
        let name =
            "replicate::tests::away::ten_thousand_cycles_without_a_vault_cost_one_catch_up_and_no_write";
        let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
        let ran = alone.args(["--exact", name, "--nocapture"]).env("LIFEBOAT_ALONE", "1").output().unwrap();
        let said = String::from_utf8_lossy(&ran.stdout);
        assert!(
            ran.status.success() && said.contains("1 passed"),
            "{said}{}",
            String::from_utf8_lossy(&ran.stderr)
        );
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(a_long_outage());
}

async fn a_long_outage() {
    let cycles = std::env::var("LIFEBOAT_AWAY").map_or(1000, |count| count.parse().unwrap());
    let mut outage = Outage::begin().await;
    let settings = Settings {
        interval: Duration::from_millis(1),
        retry_gaps: vec![Duration::ZERO],
        ..outage.rig.settings()
    };
    let handle = start(settings, outage.rig.clone(), connect(&outage.vault));
    outage.rig.write_through("d", 0, &Random::new(90).bytes(8 << 20));
    handle.cut().await.unwrap();
    let (before, points) = (outage.image(), listing::points(&outage.vault, "m").await.unwrap());
    let read = outage.rig.bytes_read();

    outage.cycles(AWAY, cycles).await;
    let disk = outage.rig.machine().await.unwrap().disks.remove(0);
    assert!(!disk.logged, "half of the disk was logged, and no more: {disk:?}");
    // Each attempt seals a segment, which counts as a whole one: how many bytes of records fit below the limit depends on their pace.
    assert!(disk.cause.contains("log_limit") && outage.most <= SIZE / 2, "{} bytes, {disk:?}", outage.most);
    assert_eq!(outage.rig.bytes_read(), read, "nothing is copied for a vault that is away");
    assert_eq!(handle.status().health, Health::Warning);
    outage.store.store(WELL, SeqCst);
    handle.cut().await.unwrap();
    let copied = outage.rig.bytes_read() - read;
    assert!(copied <= SIZE, "one catch-up reads no more than the disk: {copied}");
    expect(&outage, &points, &before).await;

    // A vault that can be read and not be written to: each attempt cuts.
    outage.cycles(FULL, cycles / 20).await;
    outage.store.store(WELL, SeqCst);
    handle.cut().await.unwrap();
    expect(&outage, &points, &before).await;
    handle.stop().await;
}

/// The newest point is the disk, and those from before the outage are what they were.
async fn expect(outage: &Outage, points: &[listing::PointInfo], before: &[u8]) {
    let now = listing::points(&outage.vault, "m").await.unwrap();
    assert!(now.len() > points.len());
    for (was, is) in points.iter().zip(&now) {
        assert_eq!((was.id, was.time), (is.id, is.time), "points stay");
    }
    let first = testing::contents(&outage.vault, "m", points[points.len() - 1].id).await.unwrap();
    assert!(first["d"] == before, "a point from before the outage is not what it was");
    let last = testing::contents(&outage.vault, "m", now[now.len() - 1].id).await.unwrap();
    assert!(last["d"] == outage.image(), "the newest point is not the disk");
}
