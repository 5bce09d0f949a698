mod basics;
mod faults;
mod readers;
mod years;

use std::collections::BTreeMap;

use jiff::SignedDuration;
use uuid::Uuid;

use super::*;
use crate::blockmap::{self, Held};
use crate::cipher::Cipher;
use crate::commit::{self, EntryId, Outcome, Uploaded};
use crate::delta::{DeltaWriter, Encoded};
use crate::digest::Digest;
use crate::elapsed::Elapsed;
use crate::line::Writer;
use crate::listing;
use crate::point::{EntryKind, Header, PointDisk};
use crate::testing::{Random, contents};

const DISK: usize = 256 << 10;

/// A machine whose points are made here, with what each of them shows.
struct Maker {
    vault: Vault,
    head: u64,
    generation: u64,
    parent: Option<PointId>,
    disks: BTreeMap<String, Vec<u8>>,
    marks: BTreeMap<PointId, Digest>,
    shown: BTreeMap<PointId, BTreeMap<String, Vec<u8>>>,
    random: Random,
    cipher: Cipher,
    /// Disks that the next point covers whole.
    whole: Vec<String>,
}

impl Maker {
    fn new(vault: &Vault, seed: u64) -> Self {
        Self::with_disks(vault, seed, &["a", "b"])
    }

    fn with_disks(vault: &Vault, seed: u64, names: &[&str]) -> Self {
        Self {
            vault: vault.clone(),
            head: 0,
            generation: 1,
            parent: None,
            disks: names.iter().map(|name| ((*name).to_owned(), vec![0; DISK])).collect(),
            marks: BTreeMap::new(),
            shown: BTreeMap::new(),
            random: Random::new(seed),
            cipher: vault.cipher.clone(),
            whole: names.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    fn header(&self, kind: EntryKind, time: Timestamp) -> Header {
        let disk = |(name, bytes): (&String, &Vec<u8>)| PointDisk {
            name: name.clone(),
            size: bytes.len() as u64,
            tracking: Uuid::nil(),
            whole: self.whole.contains(name),
            unreadable: Vec::new(),
        };
        Header {
            machine: "m".to_owned(),
            number: self.head + 1,
            generation: self.generation,
            writer: Uuid::from_u128(self.generation.into()),
            host: "here".to_owned(),
            kind,
            parent: self.parent,
            parent_mark: self.parent.map(|parent| self.marks[&parent]),
            time,
            disks: if kind == EntryKind::Claim { Vec::new() } else { self.disks.iter().map(disk).collect() },
            bytes: 0,
            logical: 0,
            group: None,
        }
    }

    /// Begins the next generation from `fork`.
    async fn claim(&mut self, fork: Option<PointId>, time: Timestamp) {
        if let Some(fork) = fork {
            self.generation += 1;
            self.disks = self.shown[&fork].clone();
        }
        self.parent = fork;
        let header = self.header(EntryKind::Claim, time);
        let vault = self.vault.clone();
        let mut writer = Writer::new(commit::line(&vault, "m"), header.owner(), Elapsed::of_host());
        let appended = commit::append(&mut writer, header, &[], None).await.unwrap();
        assert!(matches!(appended, Outcome::Committed(_)));
        self.head += 1;
    }

    /// A point after `writes` random writes; one of `count` deltas is embedded, the others are objects.
    async fn point(&mut self, time: Timestamp, writes: usize, count: usize) -> PointId {
        let vault = self.vault.clone();
        let mut deltas = Vec::new();
        for _ in 0..count {
            deltas.push(self.delta(writes));
        }
        let embedded = deltas.pop();
        let mut uploaded: Vec<Uploaded> = Vec::new();
        for delta in deltas {
            uploaded.push(commit::upload(&vault, "m", EntryId::Line(self.head + 1), delta).await.unwrap());
        }
        let named: Vec<&Uploaded> = uploaded.iter().collect();
        let header = self.header(EntryKind::Crash, time);
        let id = header.id();
        let mut writer = Writer::new(commit::line(&vault, "m"), header.owner(), Elapsed::of_host());
        let appended = commit::append(&mut writer, header, &named, embedded.as_ref()).await.unwrap();
        let Outcome::Committed(committed) = appended else { panic!("{id} was there") };
        self.marks.insert(id, committed.mark());
        self.whole.clear();
        self.head += 1;
        self.parent = Some(id);
        self.shown.insert(id, self.disks.clone());
        id
    }

    fn delta(&mut self, writes: usize) -> Encoded {
        let mut writer = DeltaWriter::new(16 << 10, &self.cipher).unwrap();
        let names: Vec<String> = self.disks.keys().cloned().collect();
        for name in names {
            let mut ranges: BTreeMap<usize, usize> = BTreeMap::new();
            for _ in 0..writes {
                let from = self.random.size(DISK - 9000);
                ranges.insert(from, from + 1 + self.random.size(8000));
            }
            if self.whole.contains(&name) {
                ranges = [(0, DISK)].into();
            }
            writer.begin_disk(&name);
            let mut end = 0;
            for (from, to) in ranges {
                let (from, to) = (from.max(end), to);
                if from >= to {
                    continue;
                }
                let zero = self.random.below(6) == 0;
                let bytes = if zero { vec![0; to - from] } else { self.random.bytes(to - from) };
                let disk = self.disks.get_mut(&name).unwrap();
                disk[from..to].copy_from_slice(&bytes);
                writer.data(from as u64, &bytes).unwrap();
                end = to;
            }
        }
        writer.finish().unwrap()
    }

    /// Every point that is listed shows exactly what it showed when it was made; returns their ids.
    async fn check(&self, vault: &Vault) -> Vec<PointId> {
        let points = listing::points(vault, "m").await.unwrap();
        for point in &points {
            let shows = contents(vault, "m", point.id).await.unwrap();
            assert!(shows == self.shown[&point.id], "point {} shows something else", point.id);
        }
        points.into_iter().map(|point| point.id).collect()
    }
}

/// What points show of one delta.
#[derive(Default)]
struct Shown {
    /// Bytes of its frames, and of its stream.
    stored: u64,
    stream: u64,
    /// Where in the stream the shown ranges start and end.
    ranges: BTreeMap<u64, u64>,
}

/// Bytes of the machine's objects, and those of them that somebody needs: objects that count for nobody are dead, and
/// of a delta what no listed point shows.
async fn alive(vault: &Vault) -> (u64, u64) {
    let objects = vault.store.list("machines/m").await.unwrap();
    let mut sizes: BTreeMap<String, u64> = objects.iter().map(|o| (o.key.clone(), o.size)).collect();
    let total: u64 = sizes.values().sum();
    let newest = catalogue::newest(vault, "m").await.unwrap();
    let mut deltas: BTreeMap<(String, u64), Shown> = BTreeMap::new();
    for point in listing::points(vault, "m").await.unwrap() {
        let map = blockmap::load(vault, "m", point.id, &[]).await.unwrap();
        for disk in &map.disks {
            for (_, len, held) in disk.map.iter() {
                let Held::Data { delta, at } = *held else { continue };
                let reader = &map.deltas[delta as usize];
                let frames = &reader.index.frames;
                let (stream, stored) =
                    frames.iter().fold((0, 0), |(a, b), f| (a + u64::from(f.raw_len), b + u64::from(f.len)));
                let key = (reader.place().key.clone(), reader.place().base);
                let shown = deltas.entry(key).or_default();
                (shown.stored, shown.stream) = (stored, stream);
                let end = shown.ranges.entry(at).or_default();
                *end = (*end).max(at + len);
            }
        }
    }
    let mut dead = 0;
    let mut named = std::collections::BTreeSet::new();
    for ((key, _), shown) in &deltas {
        let (mut alive, mut end) = (0, 0);
        for (from, to) in &shown.ranges {
            alive += to.saturating_sub(end.max(*from));
            end = end.max(*to);
        }
        dead += shown.stored - shown.stored * alive / shown.stream;
        named.insert(key.clone());
    }
    sizes.retain(|key, _| {
        let line = key.contains("/line/")
            && keys::parse_line_entry(key).is_some_and(|n| n > newest.floor || newest.claim(n).is_some());
        let catalogue = *key == keys::catalogue("m", newest.number);
        !line && !catalogue && !named.contains(key)
    });
    // An entry that is embedded in counts whole in the total, and what is dead of its delta was counted above.
    (total, total - dead - sizes.values().sum::<u64>())
}

fn hours(hours: u64) -> Duration {
    Duration::from_secs(hours * 3600)
}

/// Points are thinned as soon as they are there, to one for each hour that they say.
fn at_once() -> Settings {
    let policy =
        Policy { all: Duration::ZERO, hourly: hours(1), daily: Duration::ZERO, weekly: Duration::ZERO };
    Settings { policy, wait: Duration::ZERO }
}

fn minute(minute: i64) -> Timestamp {
    "2020-01-01T00:00:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_mins(minute)
}

/// Claim 1; points 2 to 25, one for each ten minutes of four hours, with deltas of every kind; a resync of one disk on
/// the way; a second generation from a point in the middle, with points of two more hours.
async fn history(vault: &Vault, seed: u64) -> Maker {
    let mut maker = Maker::new(vault, seed);
    maker.claim(None, minute(0)).await;
    for number in 0..24 {
        if number == 9 {
            maker.whole.push("a".to_owned());
        }
        maker.point(minute(number * 10), 3, 1 + usize::try_from(number % 3).unwrap()).await;
    }
    let fork = PointId { generation: 1, number: 15 };
    maker.claim(Some(fork), minute(240)).await;
    for number in 25..37 {
        maker.point(minute(number * 10), 2, 1).await;
    }
    maker
}
