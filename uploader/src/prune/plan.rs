//! What stays, where the floor will be, and between which points the rest goes.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use nbd_proxy::{Error, Result};

use super::survey::Survey;
use super::{Dropped, Report};
use crate::keys::PointId;
use crate::retention::{self, Candidate, Policy};

/// A kept point at or below the new floor, and what lies between it and the kept point before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Gap {
    /// The kept point before it.
    pub parent: Option<PointId>,
    /// The points after that, oldest first; the last of them is the kept one.
    pub path: Vec<PointId>,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub floor: u64,
    /// In the order of the kept points' numbers.
    pub gaps: Vec<Gap>,
    pub dropped: Vec<Dropped>,
    /// How many points stay, those above the floor included.
    pub kept: usize,
}

impl Plan {
    /// A point goes. A floor that only rises would change nothing that anybody sees.
    pub fn worthwhile(&self) -> bool {
        !self.dropped.is_empty()
    }

    pub fn report(&self) -> Report {
        Report { points: self.dropped.clone(), kept: self.kept, ..Report::default() }
    }
}

/// What is to become of the points of `survey` at `now`; those in `forced` stay.
pub(super) fn make(survey: &Survey, policy: &Policy, now: Timestamp, forced: Vec<PointId>) -> Result<Plan> {
    let points = candidates(survey);
    let floor = floor(survey, policy, now);
    let mut also: BTreeSet<PointId> = forced.into_iter().collect();
    also.extend(&survey.catalogue.pins);
    also.extend(&survey.forked);
    let claims = survey.catalogue.claims.iter().chain(survey.above().map(|entry| &entry.header));
    also.extend(claims.filter(|header| !header.is_point()).filter_map(|claim| claim.parent));
    // What is above the floor stays this time, and so does what it goes on from.
    let above = points.iter().filter(|point| point.id.number > floor);
    also.extend(above.flat_map(|point| [Some(point.id), point.parent]).flatten());

    let kept = retention::keep(policy, &points, now, &also)?;
    let gaps = gaps(&survey.catalogue.machine, &points, &kept, floor)?;
    let gone = points.iter().filter(|point| !kept.contains(&point.id));
    let dropped = gone.map(|point| Dropped { id: point.id, time: point.time }).collect();
    Ok(Plan { floor, gaps, dropped, kept: kept.len() })
}

fn candidates(survey: &Survey) -> Vec<Candidate> {
    let below = survey.catalogue.points.iter().map(|kept| (&kept.header, kept.stored));
    let above = survey.points().map(|entry| (&entry.header, entry.stored));
    let candidate = |(header, stored): (&crate::point::Header, Timestamp)| Candidate {
        id: header.id(),
        time: header.time,
        stored,
        parent: header.parent,
    };
    below.chain(above).map(candidate).collect()
}

/// The new floor: below every entry that is kept whole, and below the newest point.
fn floor(survey: &Survey, policy: &Policy, now: Timestamp) -> u64 {
    let old = survey.catalogue.floor;
    let Some(newest) = survey.points().map(|entry| entry.header.number).max() else { return old };
    let young = survey.above().find(|entry| !policy.may_thin(entry.stored, now));
    let first_kept = young.map_or(newest, |entry| entry.header.number.min(newest));
    first_kept.saturating_sub(1).max(old)
}

fn gaps(machine: &str, points: &[Candidate], kept: &BTreeSet<PointId>, floor: u64) -> Result<Vec<Gap>> {
    let parents: BTreeMap<PointId, Option<PointId>> =
        points.iter().map(|point| (point.id, point.parent)).collect();
    let mut below: Vec<PointId> = kept.iter().copied().filter(|id| id.number <= floor).collect();
    below.sort_unstable_by_key(|id| id.number);
    let gap = |id: PointId| {
        let mut path = vec![id];
        let mut parent = parents.get(&id).copied().flatten();
        while let Some(before) = parent.filter(|before| !kept.contains(before)) {
            let missing = || {
                Error::corrupt(machine, format!("point {before}, which {id} builds on, is not in the vault"))
            };
            parent = *parents.get(&before).ok_or_else(missing)?;
            path.push(before);
        }
        path.reverse();
        Ok(Gap { parent, path })
    };
    below.into_iter().map(gap).collect()
}
