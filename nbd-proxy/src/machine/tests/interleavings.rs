//! Every interleaving of small programs over the cut, on the real machines, logs and bitmaps.
//!
//! A program is a row of steps, and a step is what happens under the locks, at once: a write's room with its record, its
//! end, a cut's instant, its settling with the shipping, a release. Between steps no lock is held, so running the steps of
//! several programs in every order that keeps each program's own is running every schedule of them; waiting is a step that is not
//! possible yet. That the instant itself is one step is what holding all trackers means; threads try that in the tests beside this file.
//!
//! After each schedule: what one instant shows never has B without A; nothing that was acknowledged before the instant is
//! missing from it; and when all is shipped and released, the replica is the disk, and no block or segment is left.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::disk::TrackedDisk;
use crate::disk::testing::{HalfWritten, Replica, contents, settings};
use crate::machine::cut::{self, Share};
use crate::machine::group::Group;
use crate::machine::{Machine, MachineSettings};
use crate::tracking::CutRequest;

const SIZE: u64 = 64 << 10;

/// A step of a program.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Room and record for the next number, on disk A (0) or B (1).
    Begin(usize),
    /// On the backing and acknowledged.
    End(usize),
    /// The machine's instant, or its share of one.
    Cut(usize),
    /// The writes before the instant are through: the replica gets them.
    Ship(usize),
    /// The vault has them.
    Release(usize),
}

/// Two disks, A and B, of one machine or of one each.
struct World {
    machines: Vec<Arc<Machine>>,
    disks: [Arc<TrackedDisk>; 2],
    replicas: Vec<Replica>,
    /// The number written last, the half of its write, and the number acknowledged, for each disk.
    numbers: [u64; 2],
    halves: [Option<HalfWritten>; 2],
    acknowledged: [u64; 2],
    /// For each machine: the share that is not shipped, the cut that is not released.
    shares: Vec<Option<Share>>,
    out: Vec<Option<Uuid>>,
    /// What A and B show at each instant, and what was acknowledged before it.
    seen: BTreeMap<Uuid, [Option<u64>; 2]>,
    floors: BTreeMap<Uuid, [u64; 2]>,
}

impl World {
    /// `disks` of each machine; more than one machine are a group.
    fn new(dir: &Path, machines: &[&[&str]]) -> Self {
        let open = |(at, disks): (usize, &&[&str])| {
            let disks = disks.iter().map(|name| settings(dir, name, SIZE, Some(4 << 20))).collect();
            Machine::open_in(&MachineSettings { name: format!("m{at}"), disks }, "boot").unwrap()
        };
        let machines: Vec<_> = machines.iter().enumerate().map(open).collect();
        let mut replicas: Vec<_> = machines.iter().map(|_| Replica::default()).collect();
        machines.iter().zip(&mut replicas).for_each(|(machine, replica)| {
            replica.cycle(machine).unwrap();
        });
        if machines.len() > 1 {
            Group::form("g", &machines);
        }
        let all: Vec<_> = machines.iter().flat_map(|machine| machine.disks.clone()).collect();
        Self {
            disks: [all[0].clone(), all[1].clone()],
            shares: machines.iter().map(|_| None).collect(),
            out: vec![None; machines.len()],
            machines,
            replicas,
            numbers: [0; 2],
            halves: [None, None],
            acknowledged: [0; 2],
            seen: BTreeMap::new(),
            floors: BTreeMap::new(),
        }
    }

    fn possible(&self, step: Step) -> bool {
        match step {
            Step::Ship(machine) => self.shares[machine].as_ref().is_some_and(|share| {
                let mut disks = self.machines[machine].disks.iter().zip(&share.boundaries);
                disks.all(|(disk, boundary)| disk.lock().is_settled(*boundary))
            }),
            _ => true,
        }
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Begin(disk) => {
                self.numbers[disk] += 1;
                let number = self.numbers[disk].to_le_bytes();
                self.halves[disk] = Some(self.disks[disk].begin_write(0, &number));
            }
            Step::End(disk) => {
                self.disks[disk].end_write(self.halves[disk].take().unwrap());
                self.acknowledged[disk] = self.numbers[disk];
            }
            Step::Cut(machine) => self.cut(machine, Duration::MAX),
            Step::Ship(machine) => self.ship(machine),
            Step::Release(machine) => {
                let cut = self.out[machine].take();
                cut.map_or(Ok(()), |cut| self.machines[machine].release(cut)).unwrap();
            }
        }
    }

    /// As [`Machine::cut_as`] does until it settles.
    fn cut(&mut self, machine: usize, max_age: Duration) {
        let owner = &self.machines[machine];
        owner.lock().out = None;
        let request = CutRequest { max_age, application: false };
        let share = match owner.membership.get() {
            Some(place) => place.group.share(owner, place.place, &request),
            None => cut::alone(owner, false),
        };
        let share = share.unwrap();
        // The instant was now, unless another machine made it.
        self.floors.entry(share.id).or_insert(self.acknowledged);
        self.shares[machine] = Some(share);
    }

    fn ship(&mut self, machine: usize) {
        let cut = self.shares[machine].take().unwrap().settle(&self.machines[machine]).unwrap();
        let last =
            |disk: &crate::tracking::CutDisk| disk.segments.last().map_or(0, |segment| segment.segment);
        self.machines[machine].lock().out = Some((cut.id, cut.disks.iter().map(last).collect()));
        for disk in &cut.disks {
            self.replicas[machine].apply(disk).unwrap();
            let shown = u64::from_le_bytes(self.replicas[machine].disks[&disk.name][..8].try_into().unwrap());
            self.seen.entry(cut.id).or_default()[usize::from(disk.name == "b")] = Some(shown);
        }
        self.out[machine] = Some(cut.id);
    }

    /// What must hold after every schedule; leaves the world as it was at the start, but for the numbers.
    fn check(&mut self, dir: &Path) {
        // A share that was taken last is shipped, if no later cut of its machine has taken it in.
        for machine in 0..self.machines.len() {
            if self.shares[machine].is_some() {
                self.ship(machine);
            }
        }
        for (id, shown) in std::mem::take(&mut self.seen) {
            for (shown, floor) in shown.iter().zip(self.floors[&id]) {
                assert!(shown.is_none_or(|shown| shown >= floor), "{floor} was acknowledged: {shown:?}");
            }
            if let [Some(a), Some(b)] = shown {
                assert!(a >= b, "an instant has B {b} without A, which is {a}");
            }
        }
        for machine in 0..self.machines.len() {
            self.cut(machine, Duration::ZERO);
            self.ship(machine);
            self.run(Step::Release(machine));
        }
        // The last of them left the first a share.
        if self.machines.len() > 1 {
            self.cut(0, Duration::MAX);
            self.ship(0);
            self.run(Step::Release(0));
        }
        for (machine, replica) in self.machines.iter().zip(&self.replicas) {
            for disk in machine.info().disks {
                assert_eq!((disk.dirty_bytes, disk.log_bytes), (0, 0), "{} has something left", disk.name);
                assert!(replica.disks[&disk.name] == contents(dir, &disk.name), "{} differs", disk.name);
            }
        }
        (self.seen, self.floors) = Default::default();
    }
}

/// Runs `programs` in every order; returns how many there are.
fn every_schedule(machines: &[&[&str]], programs: &[&[Step]]) -> usize {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::new(dir.path(), machines);
    let mut schedules = 0;
    // The choices of the schedule to run: which of the programs that can go on does, at each step.
    let mut choices: Vec<(usize, usize)> = Vec::new();
    loop {
        let mut at = vec![0; programs.len()];
        for depth in 0.. {
            let ready = (0..programs.len()).filter(|program| {
                programs[*program].get(at[*program]).is_some_and(|step| world.possible(*step))
            });
            let ready: Vec<usize> = ready.collect();
            if ready.is_empty() {
                assert!(
                    at.iter().zip(programs).all(|(at, program)| *at == program.len()),
                    "a wait without end"
                );
                break;
            }
            if depth == choices.len() {
                choices.push((0, ready.len()));
            }
            let program = ready[choices[depth].0];
            world.run(programs[program][at[program]]);
            at[program] += 1;
        }
        world.check(dir.path());
        schedules += 1;
        // The next one in order.
        while choices.last().is_some_and(|(choice, of)| choice + 1 == *of) {
            choices.pop();
        }
        let Some((choice, _)) = choices.last_mut() else { return schedules };
        *choice += 1;
    }
}

/// A, and after its reply B.
const WRITES: [Step; 4] = [Step::Begin(0), Step::End(0), Step::Begin(1), Step::End(1)];

#[test]
fn every_schedule_of_a_cut_over_two_disks_keeps_the_order_of_writes() {
    use Step::{Cut, Release, Ship};
    let twice = [WRITES, WRITES].concat();
    let cuts = [Cut(0), Ship(0), Cut(0), Ship(0), Release(0)];
    let schedules = every_schedule(&[&["a", "b"]], &[&twice, &cuts]);
    assert!(schedules > 500, "{schedules}");
}

#[test]
fn every_schedule_of_a_group_keeps_the_order_of_writes_and_loses_nothing() {
    use Step::{Cut, Release, Ship};
    // The share and the release of what is out; a cut that is never released; who asks twice before the other comes.
    let members: [[&[Step]; 2]; 3] = [
        [&[Cut(0)], &[Cut(1), Ship(1), Release(1), Cut(1)]],
        [&[Cut(0), Ship(0)], &[Cut(1), Ship(1)]],
        [&[Cut(0), Ship(0), Cut(0)], &[Cut(1)]],
    ];
    for [first, second] in members {
        let schedules = every_schedule(&[&["a"], &["b"]], &[&WRITES, first, second]);
        assert!(schedules >= 200, "{schedules}");
    }
}
