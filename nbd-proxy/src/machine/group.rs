//! A consistency group: machines of one proxy that are cut at one instant.
//!
//! Each machine is replicated by a loop of its own, at its own pace, into a line of its own. So nobody drives the group:
//! whichever member asks for a cut first has all of them cut, takes its own share and leaves the others *pending*; a
//! member that asks later takes what is pending for it instead of cutting again. All shares carry one id and one time.
//!
//! What a member holds: at most one cut that is *out* (taken, not released) and at most one share *pending*, always of a later
//! instant than the one that is out. Logs and bitmaps therefore hold three stretches, oldest first: out, pending, since.
//!
//! The interleavings that matter, M being a member with a share P pending:
//! * *release of what is out, then M asks*: the release takes only the stretch that is out; P's is untouched, P then is out.
//! * *M asks before the release*: what is out joins P, as it joins any later cut; the release names a cut that is not out
//!   any more and does nothing. Its segments are shipped again with P: shipping stays at least once, and in order.
//! * *another member asks while P is pending* (M is paused, or slower than the interval): M is not cut again, or a paused
//!   machine would collect nearly empty segments until its log is full. The other is cut alone, without the group's label,
//!   and its note says why. M keeps P, which others' points of that instant agree with, and takes it when it comes.
//! * *M asks for something newer than P* (`cut`, or the first cut after a pause or an error), *or its copying began after
//!   P*: the group is cut again; M's own roll takes P's stretch in, and P is forgotten in the same turn.
//! * *M's log breaks after P*: P's stretch goes back to the dirty blocks with everything else, P's epoch is over, and M's
//!   next cut, after the sync, finds that and is a new one.
//! * *M is not exact when another asks* (not logged, or being copied): the other is cut alone, as above.
//! * *the proxy dies*: nothing of this is durable; segments join each member's next cut.
//! * *a member's commit fails, the others' do not*: each line is right by itself. M's next cut holds the records again; the
//!   group's point is incomplete, which listings show by looking for its id in the other lines.
//!
//! A share is never taken by a machine that is being copied: a copy that was read after the instant would be in a point of
//! before it.
//!
//! Turns: [`Group::share`] runs for one member at a time, so that rolling, taking and forgetting are each whole. In a turn no
//! member waits for another's disks longer than segments and guests are waited for, which is bounded. Waiting for a share's
//! own writes (`settle`) happens after the turn. Lock order: a machine's turn, the group's turn, trackers.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use super::cut::{self, Share, Taken};
use super::{Machine, Membership};
use crate::tracking::{CutRequest, GroupCut};
use crate::{Error, Kind, Result};

/// Machines that are cut together.
#[derive(Debug)]
pub struct Group {
    name: String,
    members: Vec<(String, Weak<Machine>)>,
    turn: Mutex<Turn>,
    idle: Condvar,
}

#[derive(Debug)]
struct Turn {
    busy: bool,
    /// The share that each member has not taken yet.
    pending: Vec<Option<Pending>>,
}

#[derive(Debug)]
struct Pending {
    share: Share,
    made: Instant,
    /// The guests were asked to hold still, whatever came of it.
    application: bool,
}

impl Group {
    /// Makes `machines` the group `name`, in the order in which their trackers are locked. A machine that is in a group
    /// already stays in that one.
    pub fn form(name: &str, machines: &[Arc<Machine>]) {
        let members =
            machines.iter().map(|machine| (machine.name.clone(), Arc::downgrade(machine))).collect();
        let pending = machines.iter().map(|_| None).collect();
        let turn = Mutex::new(Turn { busy: false, pending });
        let group = Arc::new(Self { name: name.to_owned(), members, turn, idle: Condvar::new() });
        for (place, machine) in machines.iter().enumerate() {
            let _ = machine.membership.set(Membership { group: Arc::clone(&group), place });
        }
    }

    /// The share of the member at `place`: the pending one if it will do, else one of a new cut.
    pub(super) fn share(&self, owner: &Machine, place: usize, request: &CutRequest) -> Result<Share> {
        let mut turn = self.take_turn();
        let mut pending = std::mem::take(&mut turn.pending);
        drop(turn);
        let result = self
            .take(owner, pending[place].take(), request)
            .map_or_else(|| self.cut(owner, place, request, &mut pending), Ok);
        let mut turn = self.lock();
        turn.busy = false;
        turn.pending = pending;
        drop(turn);
        self.idle.notify_one();
        result
    }

    /// What is pending, if it will do.
    fn take(&self, owner: &Machine, pending: Option<Pending>, request: &CutRequest) -> Option<Share> {
        let pending = pending?;
        if pending.made.elapsed() > request.max_age || (request.application && !pending.application) {
            return None;
        }
        let mut trackers: Vec<_> = owner.disks.iter().map(|disk| disk.lock()).collect();
        let mut each = trackers.iter().zip(&pending.share.boundaries);
        if !each.all(|(tracker, boundary)| tracker.can_take(*boundary)) {
            return None;
        }
        trackers.iter_mut().for_each(|tracker| tracker.take_pending(pending.share.id));
        Some(pending.share)
    }

    /// A new cut of all members, or of the owner alone if another cannot take part.
    fn cut(
        &self,
        owner: &Machine,
        place: usize,
        request: &CutRequest,
        pending: &mut [Option<Pending>],
    ) -> Result<Share> {
        let present: Vec<_> = self.members.iter().map(|(_, member)| member.upgrade()).collect();
        let machines: Vec<&Machine> = present.iter().flatten().map(|member| &**member).collect();
        let reason = match self.obstacle(place, &machines, pending) {
            Some(reason) => reason,
            None => {
                // Before the instant: a share must not seem younger than it is.
                let made = Instant::now();
                match cut::cut(&machines, place, request.application)? {
                    Taken::Shares(shares) => {
                        return self.hand_out(place, shares, made, request.application, pending);
                    }
                    Taken::Apart(reason) => reason,
                }
            }
        };
        let mut share = cut::alone(owner, request.application)?;
        share.notes.push(format!("cut apart from its group {}: {reason}", self.name));
        Ok(share)
    }

    /// Why the group cannot be cut now, as far as that can be told beforehand.
    fn obstacle(&self, place: usize, machines: &[&Machine], pending: &[Option<Pending>]) -> Option<String> {
        if machines.len() < self.members.len() {
            return Some("a member is closed".to_owned());
        }
        if let Some(disk) = machines.iter().find_map(|machine| machine.inexact()) {
            return Some(format!("{disk} is not exact yet"));
        }
        let mut others = machines.iter().zip(pending).enumerate().filter(|(other, _)| *other != place);
        let behind = others.find(|(_, (_, pending))| pending.is_some())?.1.0;
        Some(format!("{} has not taken the last cut: it is paused, slow or in trouble", behind.name))
    }

    fn hand_out(
        &self,
        place: usize,
        shares: Vec<Share>,
        made: Instant,
        application: bool,
        pending: &mut [Option<Pending>],
    ) -> Result<Share> {
        let members: Vec<String> = self.members.iter().map(|(name, _)| name.clone()).collect();
        let mut own = None;
        for (at, mut share) in shares.into_iter().enumerate() {
            share.group = Some(GroupCut { name: self.name.clone(), cut: share.id, members: members.clone() });
            if at == place {
                own = Some(share);
            } else {
                pending[at] = Some(Pending { share, made, application });
            }
        }
        own.ok_or_else(|| Error::new(Kind::NotReady, &self.name, "the group has no such member"))
    }

    fn take_turn(&self) -> MutexGuard<'_, Turn> {
        let mut turn = self.lock();
        while turn.busy {
            turn = self.idle.wait(turn).unwrap_or_else(PoisonError::into_inner);
        }
        turn.busy = true;
        turn
    }

    fn lock(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
