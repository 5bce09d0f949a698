//! The cut: the logs of all disks, of one machine or of several, roll over at one instant.
//!
//! In this order:
//! 1. every disk gets a segment made ahead, while writes go on ([`Machine::prepare`]);
//! 2. if the cut is to be application-consistent, the guests hold their file systems still ([`super::guest`]);
//! 3. all trackers are locked, in the order of the machines and of their disks (the only place that holds more than one), the
//!    logs roll over, the bitmaps freeze, the clock is read, all are unlocked: no I/O in between, so writers wait for a few
//!    hundred instructions;
//! 4. the guests go on, and say whether they were still until now;
//! 5. the writes that had room in a sealed segment are waited for, until each is on the backing ([`Share::settle`]).
//!
//! Why a point is a state the disks could have shown after a crash at that instant: a write B issued after A's reply gets its
//! room after A got its own. If B's room is in a sealed segment, it was taken before the instant, so A's was too, on
//! whatever disk of whatever machine of the cut: no cut has B without A. Every write acknowledged before the instant had its
//! room before it.
//!
//! Why an application-consistent one is that: its guest reported its file systems frozen before step 3 began and still frozen
//! after it ended, so no file system was at work at the instant.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

use super::{Machine, guest};
use crate::disk::Boundary;
use crate::tracking::{Cut, GroupCut};
use crate::{Error, Kind, Result};

/// How long segments made ahead are waited for: a disk whose log folder hangs must not hold up another machine's cuts.
const PREPARE_LIMIT: Duration = Duration::from_secs(5);
/// How often a cut starts again because a disk used the segment made ahead.
const ATTEMPTS: usize = 64;

/// One machine's share of a cut: where it fell in each log. Not yet settled.
#[derive(Debug)]
pub(super) struct Share {
    pub id: Uuid,
    pub time: Timestamp,
    pub boundaries: Vec<Boundary>,
    pub application: bool,
    pub group: Option<GroupCut>,
    pub notes: Vec<String>,
}

/// What became of a cut over several machines.
#[derive(Debug)]
pub(super) enum Taken {
    /// The share of each, in their order.
    Shares(Vec<Share>),
    /// A machine other than the one that asks cannot take part, and why. Nothing lasting was done.
    Apart(String),
}

enum Rolled {
    Done(Timestamp, Vec<Vec<Boundary>>),
    SpareUsed,
    Apart(String),
}

/// Cuts `machines`; the one at `owner` asks for it, the others' shares are for later.
///
/// # Errors
/// `NotReady` while a disk of the owner is not logged, or what making its segments says; then nothing has changed.
pub(super) fn cut(machines: &[&Machine], owner: usize, application: bool) -> Result<Taken> {
    if let Some(reason) = prepare_all(machines, owner)? {
        return Ok(Taken::Apart(reason));
    }
    let held = application.then(|| guest::hold_all(machines));
    let id = Uuid::new_v4();
    let rolled = roll_prepared(machines, owner, id);
    // They go on before anything else, whatever came of it.
    let verdicts = held.map(guest::release_all);
    let (time, boundaries) = match rolled? {
        Rolled::Done(time, boundaries) => (time, boundaries),
        Rolled::Apart(reason) => return Ok(Taken::Apart(reason)),
        Rolled::SpareUsed => return Err(too_busy(machines[owner])),
    };
    let mut verdicts = verdicts.map(Vec::into_iter);
    let share = |boundaries| {
        let verdict = verdicts.as_mut().and_then(Iterator::next);
        let application = matches!(verdict, Some(Ok(())));
        let notes = verdict.and_then(Result::err).into_iter().collect();
        Share { id, time, boundaries, application, group: None, notes }
    };
    Ok(Taken::Shares(boundaries.into_iter().map(share).collect()))
}

/// Cuts `machine` alone.
pub(super) fn alone(machine: &Machine, application: bool) -> Result<Share> {
    let share = match cut(&[machine], 0, application)? {
        Taken::Shares(mut shares) => shares.pop(),
        Taken::Apart(_) => None,
    };
    share.ok_or_else(|| too_busy(machine))
}

fn roll_prepared(machines: &[&Machine], owner: usize, id: Uuid) -> Result<Rolled> {
    for _ in 0..ATTEMPTS {
        match roll(machines, owner, id)? {
            Rolled::SpareUsed => {}
            rolled => return Ok(rolled),
        }
        if let Some(reason) = prepare_all(machines, owner)? {
            return Ok(Rolled::Apart(reason));
        }
    }
    Ok(Rolled::SpareUsed)
}

/// The instant.
fn roll(machines: &[&Machine], owner: usize, id: Uuid) -> Result<Rolled> {
    let each = machines.iter().map(|machine| &machine.disks);
    let mut trackers: Vec<Vec<_>> =
        each.map(|disks| disks.iter().map(|disk| disk.lock()).collect()).collect();
    for (place, machine) in machines.iter().enumerate() {
        for (disk, tracker) in machine.disks.iter().zip(&trackers[place]) {
            if place == owner && !tracker.is_logged() {
                return Err(disk.not_logged(tracker));
            }
            // A machine alone may be cut while it is being copied: that is how a copy becomes a point.
            if machines.len() > 1 && (!tracker.is_logged() || tracker.sync.is_some()) {
                return Ok(Rolled::Apart(format!("{} is not exact yet", disk.label())));
            }
        }
    }
    if !trackers.iter().flatten().all(|tracker| tracker.can_cut()) {
        return Ok(Rolled::SpareUsed);
    }
    let mut boundaries = Vec::with_capacity(machines.len());
    for (place, trackers) in trackers.iter_mut().enumerate() {
        let roll = trackers.iter_mut();
        boundaries.push(if place == owner {
            roll.map(|tracker| tracker.cut(id)).collect()
        } else {
            roll.map(|tracker| tracker.cut_for_later()).collect()
        });
    }
    Ok(Rolled::Done(Timestamp::now(), boundaries))
}

/// Makes segments ahead for all, at the same time; why another than the owner has none.
fn prepare_all(machines: &[&Machine], owner: usize) -> Result<Option<String>> {
    let begun: Vec<_> = machines.iter().map(|machine| machine.prepare()).collect();
    let mut apart = None;
    for (place, (machine, prepared)) in machines.iter().zip(begun).enumerate() {
        match prepared.and_then(|begun| begun.wait(machine)) {
            Err(error) if place == owner => return Err(error),
            Err(error) => apart = Some(format!("{}: {}", error.object, error.message)),
            Ok(()) => {}
        }
    }
    Ok(apart)
}

/// Segments being made ahead.
struct Preparing(Option<mpsc::Receiver<Result<()>>>);

impl Preparing {
    fn wait(self, machine: &Machine) -> Result<()> {
        let Some(receiver) = self.0 else { return Ok(()) };
        receiver.recv_timeout(PREPARE_LIMIT).unwrap_or_else(|_| Err(still_preparing(machine)))
    }
}

impl Machine {
    /// Begins to make the segments that a cut needs, on a thread of its own: the folder may hang.
    fn prepare(&self) -> Result<Preparing> {
        if self.disks.iter().all(|disk| disk.is_prepared()) {
            return Ok(Preparing(None));
        }
        if self.preparing.swap(true, Ordering::SeqCst) {
            return Err(still_preparing(self));
        }
        let (disks, preparing) = (self.disks.clone(), Underway(Arc::clone(&self.preparing)));
        let (sender, receiver) = mpsc::sync_channel(1);
        let work = move || {
            let made = disks.iter().try_for_each(|disk| disk.prepare_cut());
            // Before the answer: whoever gets it may close the disks, and must be the last to hold them.
            drop(disks);
            drop(preparing);
            // Nobody asks any more if it took too long.
            let _ = sender.send(made);
        };
        let spawned = thread::Builder::new().name("prepare-cut".to_owned()).spawn(work);
        spawned.map(|_| Preparing(Some(receiver))).map_err(|error| {
            Error::new(Kind::Io, &self.name, format!("cannot start a thread: {error}")).source(error)
        })
    }
}

/// At most one thread makes segments of a machine, however long it takes.
struct Underway(Arc<AtomicBool>);

impl Drop for Underway {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

impl Share {
    /// Waits until everything before the instant is on the backings, and lists it.
    pub fn settle(self, machine: &Machine) -> Result<Cut> {
        let Self { id, time, boundaries, application, group, notes } = self;
        let settled = machine.disks.iter().zip(boundaries).map(|(disk, boundary)| disk.settle(boundary));
        Ok(Cut { id, time, disks: settled.collect::<Result<_>>()?, application, group, notes })
    }
}

fn still_preparing(machine: &Machine) -> Error {
    let message = format!("its change log has no segment ready after {PREPARE_LIMIT:?}");
    Error::new(Kind::Unavailable, &machine.name, message).remedy("see whether the folder of the log hangs")
}

fn too_busy(machine: &Machine) -> Error {
    Error::new(Kind::Unavailable, &machine.name, "its logs fill faster than segments can be made")
}
