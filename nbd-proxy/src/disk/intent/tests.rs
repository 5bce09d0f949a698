//! The map by itself, and every interleaving of two writers, a clearer, a syncer and the vault over two regions, with a power
//! loss after each step.

use std::collections::HashSet;

use uuid::Uuid;

use super::file::IntentFile;
use super::*;

const SIZE: u64 = 2 * REGION;
const NOW: i64 = 1_000;

fn marks(regions: &[u64]) -> Marks {
    let mut set = Regions::none(SIZE);
    regions.iter().for_each(|region| set.add(&(region * REGION..region * REGION + 1)));
    Marks { regions: set, until: NOW + ALLOWANCE }
}

#[test]
fn regions_cover_what_was_added_and_survive_as_bytes() {
    let mut set = Regions::none(100 << 40);
    assert!(set.bits.len() as u64 <= MOST);
    let range = (3 << 40)..(3 << 40) + (1 << 30);
    set.add(&range);
    assert!(set.covers(&range) && !set.covers(&(0..1)));
    assert_eq!(Regions::from_bytes(100 << 40, &set.to_bytes()), Some(set.clone()));
    assert_eq!(Regions::from_bytes(1 << 40, &set.to_bytes()), None);
}

#[test]
fn a_sequential_writer_marks_ahead_and_a_random_one_does_not() {
    let size = 64 * REGION;
    let mut intent = Intent::new(Marks { regions: Regions::none(size), until: NOW });
    let mut saves = 0;
    for region in 0..64 {
        let range = region * REGION..region * REGION + 4096;
        if !intent.allows(std::iter::once(range.clone()), NOW) {
            intent.want(&range);
            let marks = intent.begin_save(NOW).unwrap();
            intent.end_save(marks, true);
            saves += 1;
        }
    }
    assert!(saves <= 8, "{saves} saves for 64 regions");
    let mut intent = Intent::new(Marks { regions: Regions::none(size), until: NOW });
    intent.want(&(30 * REGION..30 * REGION + 1));
    assert_eq!(intent.begin_save(NOW).unwrap().regions.ranges().count(), 1);
}

#[test]
fn a_burst_all_over_the_disk_costs_few_saves_and_what_it_marked_in_vain_is_cleared() {
    let size = 100_000 * REGION;
    let mut intent = Intent::new(Marks { regions: Regions::none(size), until: NOW });
    let (mut saves, mut place) = (0, 1_u64);
    for _ in 0..20_000 {
        place = place.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let range = (place >> 20) % 100_000 * REGION..(place >> 20) % 100_000 * REGION + 1;
        if !intent.allows(std::iter::once(range.clone()), NOW) {
            intent.want(&range);
            let marks = intent.begin_save(NOW).unwrap();
            intent.end_save(marks, true);
            saves += 1;
        }
        assert!(intent.allows(std::iter::once(range), NOW));
    }
    assert!(saves < 800, "{saves} saves");
    let idle = intent.idle();
    assert_eq!(&idle, intent.marked(), "none of it was written");
}

#[test]
fn a_stamp_that_has_run_out_is_renewed_before_the_next_write() {
    let mut intent = Intent::new(marks(&[0]));
    let range = 0..4096;
    assert!(intent.allows(std::iter::once(range.clone()), NOW + ALLOWANCE));
    assert!(!intent.allows(std::iter::once(range.clone()), NOW + ALLOWANCE + 1));
    intent.wrote(&range);
    assert!(intent.ends_soon(NOW + ALLOWANCE) && !intent.ends_soon(NOW));
}

#[test]
fn a_mark_that_is_wanted_is_not_cleared() {
    let mut intent = Intent::new(marks(&[0]));
    let sync = intent.begin_sync();
    intent.end_sync(sync, true);
    intent.idle();
    assert!(intent.idle().covers(&(0..1)), "nobody wants it");
    intent.want(&(0..1));
    assert!(intent.idle().is_empty());
}

#[test]
fn after_a_failed_sync_no_mark_goes() {
    let mut intent = Intent::new(marks(&[0]));
    let failed = intent.begin_sync();
    assert!(intent.end_sync(failed, false), "the first one");
    // The kernel reports a failure once: what says that all is well later is no proof.
    let later = intent.begin_sync();
    assert!(!intent.end_sync(later, true));
    intent.idle();
    assert!(intent.idle().is_empty() && !intent.waits_for_sync());
}

#[test]
fn the_file_keeps_the_last_save_whatever_is_torn() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("intent");
    let id = Uuid::new_v4();
    let (file, found) = IntentFile::open(&path, id, SIZE).unwrap();
    assert_eq!(found, None);
    let saved = [marks(&[0]), marks(&[0, 1]), marks(&[1])];
    saved.iter().for_each(|marks| file.write(marks).unwrap());
    assert_eq!(IntentFile::open(&path, id, SIZE).unwrap().1.as_ref(), Some(&saved[2]));
    let whole = std::fs::read(&path).unwrap();
    file.write(&marks(&[0])).unwrap();
    let later = std::fs::read(&path).unwrap();
    let slot = whole.len() / 2;
    let written = if whole[..slot] == later[..slot] { slot } else { 0 };
    // Any sectors of a save may be there when power fails: the one before it counts until all of them are.
    for sectors in 0..slot / 512 {
        let mut torn = whole.clone();
        let there = written..written + sectors * 512;
        torn[there.clone()].copy_from_slice(&later[there]);
        std::fs::write(&path, torn).unwrap();
        assert_eq!(
            IntentFile::open(&path, id, SIZE).unwrap().1.as_ref(),
            Some(&saved[2]),
            "{sectors} sectors"
        );
    }
    std::fs::write(&path, &whole).unwrap();
    assert_eq!(IntentFile::open(&path, Uuid::new_v4(), SIZE).unwrap().1, None, "another disk's");
    assert_eq!(IntentFile::open(&path, id, SIZE + REGION).unwrap().1, None, "the disk's at another size");
    std::fs::write(&path, &whole[..slot]).unwrap();
    assert_eq!(IntentFile::open(&path, id, SIZE).unwrap().1, None, "cut short");
}

/// Where a writer of one region is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Writer {
    Idle,
    InFlight,
    OnBacking,
    Done,
}

/// The world: the real map, what is on disk of it, and for each region what the model needs to know of its bytes.
#[derive(Clone)]
struct World {
    intent: Intent,
    /// What the file says; while a save is under way, what it may say as well.
    durable: Regions,
    saving: Option<Marks>,
    writers: [Writer; 2],
    /// By region: the backing has a write that is not synced; a sync is under way that covers it.
    unsynced: [bool; 2],
    covered: [bool; 2],
    syncing: Option<Sync>,
    /// By region: the vault lacks a write that the backing may have.
    unshipped: [bool; 2],
}

impl World {
    /// All that decides what can happen next.
    fn key(&self) -> Vec<u8> {
        let intent = &self.intent;
        let mut key: Vec<u8> =
            [&intent.known, &intent.wanted, &intent.recent, &intent.unsynced, &self.durable]
                .into_iter()
                .chain(intent.syncing.iter().map(|(_, covered)| covered))
                .chain(self.saving.iter().map(|marks| &marks.regions))
                .flat_map(Regions::to_bytes)
                .collect();
        key.extend(self.writers.map(|writer| writer as u8));
        key.extend(
            [self.unsynced, self.covered, self.unshipped].as_flattened().iter().map(|bit| u8::from(*bit)),
        );
        key.extend([self.syncing.is_some(), self.saving.is_some(), intent.saving].map(u8::from));
        key.push(intent.trust as u8);
        key
    }

    /// After a power loss now, every region in which disk and vault may differ must be marked, whichever slot counts.
    fn check(&self) {
        for region in 0..2 {
            let differs = self.unshipped[region] || self.unsynced[region] || self.covered[region];
            let range = region as u64 * REGION..region as u64 * REGION + 1;
            let marked = self.durable.covers(&range)
                && self.saving.as_ref().is_none_or(|marks| marks.regions.covers(&range));
            assert!(!differs || marked, "region {region} may differ and is not marked: {:?}", self.key());
        }
    }

    /// Every step that can be taken now.
    fn next(&self) -> Vec<Self> {
        let mut out = Vec::new();
        let mut step = |change: &dyn Fn(&mut Self) -> bool| {
            let mut next = self.clone();
            if change(&mut next) {
                out.push(next);
            }
        };
        for region in 0..2usize {
            let range = region as u64 * REGION..region as u64 * REGION + 1;
            step(&|world| world.write(region, &range));
        }
        step(&|world| {
            // The vault commits everything that is through.
            let through = |region: usize| world.unshipped[region] && !world.in_flight(region);
            let shipped = [through(0), through(1)];
            world.unshipped.iter_mut().zip(shipped).for_each(|(lacking, shipped)| *lacking &= !shipped);
            shipped != [false; 2]
        });
        step(&|world| {
            let mut idle = world.intent.idle();
            let (unshipped, held) = (world.unshipped, [world.in_flight(0), world.in_flight(1)]);
            idle.drop_if(|range| {
                let region = usize::try_from(range.start / REGION).unwrap();
                unshipped[region] || held[region]
            });
            world.saving = world.intent.begin_clear(NOW, &idle).or(world.saving.take());
            true
        });
        step(&|world| {
            let Some(marks) = world.saving.take() else { return false };
            world.durable = marks.regions.clone();
            world.intent.end_save(marks, true);
            true
        });
        step(&|world| match world.syncing.take() {
            None => {
                (world.covered, world.unsynced) = (world.unsynced, [false; 2]);
                world.syncing = Some(world.intent.begin_sync());
                true
            }
            Some(covered) => {
                world.covered = [false; 2];
                world.intent.end_sync(covered, true);
                true
            }
        });
        out
    }

    fn in_flight(&self, region: usize) -> bool {
        matches!(self.writers[region], Writer::InFlight | Writer::OnBacking)
    }

    fn write(&mut self, region: usize, range: &Range<u64>) -> bool {
        self.writers[region] = match self.writers[region] {
            Writer::Idle | Writer::Done => {
                if self.intent.allows(std::iter::once(range.clone()), NOW) {
                    Writer::InFlight
                } else {
                    self.intent.want(range);
                    self.saving = self.intent.begin_save(NOW).or(self.saving.take());
                    return true;
                }
            }
            Writer::InFlight => {
                (self.unsynced[region], self.unshipped[region]) = (true, true);
                Writer::OnBacking
            }
            Writer::OnBacking => {
                self.intent.wrote(range);
                Writer::Done
            }
        };
        true
    }
}

#[test]
fn no_interleaving_leaves_a_difference_unmarked() {
    let found = Marks { regions: Regions::none(SIZE), until: NOW + ALLOWANCE };
    let first = World {
        intent: Intent::new(found.clone()),
        durable: found.regions,
        saving: None,
        writers: [Writer::Idle; 2],
        unsynced: [false; 2],
        covered: [false; 2],
        syncing: None,
        unshipped: [false; 2],
    };
    let mut seen = HashSet::new();
    let mut open = vec![first];
    while let Some(world) = open.pop() {
        world.check();
        if seen.insert(world.key()) {
            open.extend(world.next());
        }
    }
    eprintln!("{} states", seen.len());
    assert!(seen.len() > 1_000, "only {} states", seen.len());
}
