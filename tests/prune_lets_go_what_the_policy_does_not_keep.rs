//! `lifeboat prune` from any host: what it says beforehand is what goes, what is kept restores bit for bit, objects go after the
//! wait by the store's clock, and memory stays within its bound however many points there are.
//!
//! `LIFEBOAT_PRUNE_POINTS` is how many points there are.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod lab;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use lab::lifeboat::{number, text};
use lab::process::Process;
use lab::{MIB, Random, Scratch, judge, scale};
use serde_json::Value;
use uploader::cipher::Named;
use uploader::delta::{DeltaWriter, Encoded};
use uploader::keys::{self, PointId};
use uploader::point::{self, DeltaRef, EntryKind, Header, PointDisk};
use uploader::store::StoreConfig;
use uploader::vault::{Protection, Vault};

/// The most that any command or daemon on the vault's side holds.
const MEMORY_MAX: u64 = 300 * MIB;
const DISK: usize = 1 << 20;
const BLOCK: u64 = 4096;

/// A vault with a point for every five minutes, made two days ago, and what the disk was at the end of each hour.
struct Made {
    scratch: Scratch,
    hours: BTreeMap<String, Vec<u8>>,
}

impl Made {
    fn new(points: u64) -> Self {
        let scratch = Scratch::new();
        let config = StoreConfig { url: url(&scratch), ..StoreConfig::default() };
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let vault = runtime.block_on(Vault::open_or_create(&config, &Protection::None)).expect("a vault");
        let start: jiff::Timestamp = "2020-01-01T00:00:00Z".parse().expect("a time");
        let mut random = Random::new(11);
        let mut disk = vec![0; DISK];
        let mut hours = BTreeMap::new();
        let mut parent: Option<(PointId, uploader::digest::Digest)> = None;
        std::fs::create_dir_all(scratch.join("vault/machines/m/line")).expect("a folder");
        for n in 1..=points {
            let delta = changes(&mut random, &mut disk, n == 1, &vault);
            let header = Header {
                machine: "m".to_owned(),
                number: n,
                generation: 1,
                writer: uuid::Uuid::from_u128(1),
                host: "here".to_owned(),
                kind: EntryKind::Crash,
                parent: parent.map(|parent| parent.0),
                parent_mark: parent.map(|parent| parent.1),
                time: start + jiff::SignedDuration::from_mins(5 * i64::try_from(n - 1).expect("small")),
                disks: vec![PointDisk {
                    name: "root".to_owned(),
                    size: DISK as u64,
                    tracking: uuid::Uuid::from_u128(2),
                    whole: n == 1,
                    unreadable: Vec::new(),
                }],
                bytes: delta.size,
                logical: delta.logical,
                group: None,
            };
            let key = keys::line_entry(&keys::line_folder("m"), n);
            let named = Named { object: key.clone(), ..vault.named(&key) };
            let entry = point::encode(&named, &header, &[DeltaRef::to(&delta, None)], Some(&delta))
                .expect("an entry");
            let file = scratch.join("vault").join(&key);
            std::fs::write(&file, &entry).expect("an entry");
            age(&file, 48);
            parent = Some((header.id(), point::mark(&key, &entry).expect("a mark")));
            // Besides, the newest, and the one that it goes on from.
            if n % 12 == 0 || n + 1 >= points {
                hours.insert(header.id().to_string(), disk.clone());
            }
        }
        Self { scratch, hours }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
        command
            .args(args)
            .args(["--json", "--vault", &url(&self.scratch)])
            .env("LIFEBOAT_CONFIG", "/nowhere");
        command
    }

    fn json(&self, args: &[&str]) -> Value {
        let output = judge::output(&mut self.command(args));
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// The machine's objects and their sizes.
    fn objects(&self) -> BTreeMap<String, u64> {
        let mut found = BTreeMap::new();
        let mut folders: Vec<PathBuf> = vec![self.scratch.join("vault/machines")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).expect("a folder") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let key =
                    path.strip_prefix(self.scratch.join("vault")).expect("below it").display().to_string();
                found.insert(key, path.metadata().expect("a file").len());
            }
        }
        found
    }

    fn points(&self) -> Vec<String> {
        let answer = self.json(&["points", "m"]);
        answer["points"].as_array().expect("points").iter().map(|point| text(point, "id")).collect()
    }

    fn restores(&self, id: &str) {
        let to = self.scratch.join("to");
        self.json(&["restore", "m", "--force", "--point", id, "--to", to.to_str().expect("a plain path")]);
        assert!(
            std::fs::read(to.join("root.raw")).expect("the disk") == self.hours[id],
            "{id} shows something else"
        );
    }
}

fn url(scratch: &Scratch) -> String {
    format!("file://{}", scratch.join("vault").display())
}

/// Some blocks change; all of them at first.
fn changes(random: &mut Random, disk: &mut [u8], all: bool, vault: &Vault) -> Encoded {
    let mut writer = DeltaWriter::new(16 << 10, &vault.cipher).expect("a writer");
    writer.begin_disk("root");
    let blocks = DISK as u64 / BLOCK;
    let chosen: std::collections::BTreeSet<u64> =
        if all { (0..blocks).collect() } else { (0..5).map(|_| random.below(blocks)).collect() };
    for block in chosen {
        let from = usize::try_from(block * BLOCK).expect("small");
        let bytes = &mut disk[from..from + 4096];
        random.fill(bytes);
        writer.data(block * BLOCK, bytes).expect("a block");
    }
    writer.finish().expect("a delta")
}

/// Makes a file this many hours old.
fn age(file: &Path, hours: u64) {
    let then = SystemTime::now() - Duration::from_secs(hours * 3600);
    std::fs::File::open(file).and_then(|file| file.set_modified(then)).expect("its time");
}

/// The most that a process ever held; nothing if it is gone.
fn held_at_most(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

const KEEP: [&str; 4] = ["--keep-all", "24h", "--keep-hourly", "1y"];

#[test]
fn what_a_dry_run_says_goes_and_what_is_kept_restores_within_300_mib() {
    let made = Made::new(scale("LIFEBOAT_PRUNE_POINTS", 2_000));
    let before = made.objects();
    let said = made.json(&[&["prune", "m", "--dry-run"], &KEEP[..]].concat());
    assert_eq!(made.objects(), before, "a dry run changes nothing");
    let keys = |answer: &Value| -> Vec<String> {
        let objects = answer["objects"].as_array().expect("objects");
        let mut keys: Vec<String> = objects.iter().map(|object| text(object, "key")).collect();
        keys.sort();
        keys
    };
    assert_eq!(number(&said, "kept"), made.hours.len() as u64, "the last of each hour, and the last two");

    // Pruned, and watched.
    let mut process = Process::start(
        &mut made.command(&[&["prune", "m", "--no-wait"], &KEEP[..]].concat()),
        &made.scratch.join("log"),
    );
    let mut most = 0;
    let ended = loop {
        most = most.max(held_at_most(process.id()).unwrap_or(0));
        if let Some(ended) = process.ended() {
            break ended;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    assert!(ended.success(), "{}", std::fs::read_to_string(made.scratch.join("log")).unwrap_or_default());
    eprintln!("resident MiB at most: {}", most / MIB);
    assert!(most > 0 && most <= MEMORY_MAX, "{most} bytes, {MEMORY_MAX} promised");
    let points = made.points();
    assert_eq!(points, sorted(&made.hours), "what is gone is gone at once");
    assert!(keys(&said).iter().all(|key| made.objects().contains_key(key)), "objects go after the wait");

    age(&made.scratch.join(format!("vault/{}", keys::catalogue("m", 1))), 2);
    let swept = made.json(&[&["prune", "m"], &KEEP[..]].concat());
    assert_eq!((keys(&swept), number(&swept, "freed")), (keys(&said), number(&said, "freed")), "as it said");
    let gone: u64 = keys(&said).iter().map(|key| before[key]).sum();
    assert_eq!(gone, number(&said, "freed"));
    assert!(keys(&said).iter().all(|key| !made.objects().contains_key(key)));
    assert_eq!(made.points(), points);
    for id in points.iter().step_by(points.len() / 12).chain(points.last()) {
        made.restores(id);
    }
}

fn sorted(hours: &BTreeMap<String, Vec<u8>>) -> Vec<String> {
    let mut ids: Vec<String> = hours.keys().cloned().collect();
    ids.sort_by_key(|id| id.parse::<PointId>().map(|id| id.number).unwrap_or_default());
    ids
}

#[test]
fn a_pin_outlasts_every_policy_and_refusals_say_why() {
    let made = Made::new(50);
    let pinned = "g1-7";
    made.json(&["pin", "m", pinned]);
    let point = made.json(&["points", "m"])["points"][6].clone();
    assert_eq!((text(&point, "id").as_str(), &point["pinned"]), (pinned, &Value::Bool(true)));
    made.json(&[&["prune", "m", "--no-wait"], &KEEP[..]].concat());
    assert!(made.points().contains(&pinned.to_owned()));
    made.json(&["unpin", "m", pinned]);
    made.json(&[&["prune", "m", "--no-wait"], &KEEP[..]].concat());
    assert!(!made.points().contains(&pinned.to_owned()));
    let refused = |args: &[&str], words: &str| {
        let output = judge::output(&mut made.command(args));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(words), "{args:?}: {said}");
    };
    refused(&["prune", "m", "--keep-all", "0s"], "last point");
    refused(&["prune", "x"], "no such machine");
    refused(&["pin", "m", pinned], "no point");
    refused(&["unpin", "m", pinned], "not pinned");
    refused(&["pin", "m", "yesterday"], "no point id");
    assert_eq!(made.points(), sorted(&made.hours));
}
