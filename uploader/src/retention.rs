//! Which points are kept: a pure function of the points, the policy and the time.
//!
//! Every point younger than `all` is kept; of those younger than `hourly` one for each hour, of those younger than
//! `daily` one for each day, of those younger than `weekly` one for each week. Of an hour, day or week it is the
//! **newest** that stays: the state at its end, which is what people mean by "Monday's". So the periods nest (the newest
//! of a week is the newest of its last day, and that of its last hour), and what one pruning chose the next one
//! chooses again. Hours and days are those of UTC, weeks begin on Monday at 00:00 UTC. Each generation is thinned by itself: a branch
//! that lost does not compete with the line that won.
//!
//! Two clocks are asked, because either may be wrong. A point's *age* counts from when the store received it, by the
//! store's own clock: no host's clock can make a point old. Its *period* is that of its instant, which is by the proxy's
//! clock; where that differs from the store's by more than an hour, points share a period only if both clocks say so.
//! A proxy whose clock stands still, or a vault that was copied to another place and is younger than its
//! points, then keeps more than it must, never less.
//!
//! Kept besides: the newest point of every generation, the points that the caller names (pinned, held, forked from), and
//! every point at which the ways to two kept points part.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use nbd_proxy::{Error, Kind, Result};

use crate::keys::PointId;

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
const WEEK: i64 = 7 * DAY;
/// Weeks of the epoch began on a Thursday.
const TO_MONDAY: i64 = 3 * DAY;
/// Clocks that differ by more are not trusted alone.
const TRUSTED: Duration = Duration::from_secs(3600);

/// For how long points are kept, and how many of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Every point.
    pub all: Duration,
    /// One of each hour.
    pub hourly: Duration,
    /// One of each day.
    pub daily: Duration,
    /// One of each week.
    pub weekly: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        let days = |days: u64| Duration::from_secs(days * 24 * 3600);
        Self { all: days(1), hourly: days(7), daily: days(30), weekly: days(365) }
    }
}

impl Policy {
    /// Refuses what would keep nothing.
    pub fn check(&self) -> Result<()> {
        let windows = [self.all, self.hourly, self.daily, self.weekly];
        if windows.iter().any(|window| !window.is_zero()) {
            return Ok(());
        }
        let remedy = "keep at least something: all = \"24h\", for example";
        Err(Error::new(Kind::InvalidInput, "keep", "would delete the last point").remedy(remedy))
    }

    /// Whether a point that the store received at `stored` is old enough to be thinned.
    pub fn may_thin(&self, stored: Timestamp, now: Timestamp) -> bool {
        age(stored, now) > signed(self.all)
    }
}

/// A point as retention sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its id.
    pub id: PointId,
    /// Its instant, by the proxy's clock.
    pub time: Timestamp,
    /// When the store received it, by the store's clock.
    pub stored: Timestamp,
    /// The point before it.
    pub parent: Option<PointId>,
}

/// Which of `points` are kept at `now` (by the store's clock); those in `also` in any case.
pub fn keep(
    policy: &Policy,
    points: &[Candidate],
    now: Timestamp,
    also: &BTreeSet<PointId>,
) -> Result<BTreeSet<PointId>> {
    policy.check()?;
    let mut kept: BTreeSet<PointId> = also.clone();
    kept.extend(newest_by(points, |point| Some(point.id.generation)));
    kept.extend(points.iter().filter(|point| !policy.may_thin(point.stored, now)).map(|point| point.id));
    for (window, len, shift) in
        [(policy.hourly, HOUR, 0), (policy.daily, DAY, 0), (policy.weekly, WEEK, TO_MONDAY)]
    {
        let young: BTreeSet<PointId> = {
            let young = points.iter().filter(|point| age(point.stored, now) <= signed(window));
            young.map(|point| point.id).collect()
        };
        let period = |point: &Candidate| Some((point.id.generation, period(point, len, shift)));
        kept.extend(newest_by(points, period).into_iter().filter(|id| young.contains(id)));
    }
    let known: BTreeSet<PointId> = points.iter().map(|point| point.id).collect();
    kept.retain(|id| known.contains(id));
    keep_forks(points, &mut kept);
    Ok(kept)
}

/// How long ago the store received something; never less than nothing, so that a store's clock that was set back
/// makes nothing old.
fn age(stored: Timestamp, now: Timestamp) -> SignedDuration {
    now.duration_since(stored).max(SignedDuration::ZERO)
}

fn signed(window: Duration) -> SignedDuration {
    SignedDuration::try_from(window).unwrap_or(SignedDuration::MAX)
}

/// The period of `len` seconds that a point stands for: by its own clock and, where that is not to be trusted, by the
/// store's besides.
fn period(point: &Candidate, len: i64, shift: i64) -> (i64, Option<i64>) {
    let number = |time: Timestamp| (time.as_second() + shift).div_euclid(len);
    let apart = point.stored.duration_since(point.time).abs();
    (number(point.time), (apart > signed(TRUSTED)).then(|| number(point.stored)))
}

/// The newest point of each group. The line's order counts, not what a clock said.
fn newest_by<K: Ord>(
    points: &[Candidate],
    group: impl Fn(&Candidate) -> Option<K>,
) -> impl IntoIterator<Item = PointId> {
    let mut newest: BTreeMap<K, PointId> = BTreeMap::new();
    for point in points {
        let Some(key) = group(point) else { continue };
        let there = newest.entry(key).or_insert(point.id);
        if point.id.number > there.number {
            *there = point.id;
        }
    }
    newest.into_values()
}

/// Keeps each point at which the ways to kept points part: what lies before it is then held once, not once for each.
fn keep_forks(points: &[Candidate], kept: &mut BTreeSet<PointId>) {
    let mut newest_first: Vec<&Candidate> = points.iter().collect();
    newest_first.sort_unstable_by_key(|point| std::cmp::Reverse(point.id.number));
    let mut ways: HashMap<PointId, usize> = HashMap::new();
    for point in newest_first {
        // Children have higher numbers, so all of them were seen.
        let below = ways.get(&point.id).copied().unwrap_or(0);
        if below > 1 {
            kept.insert(point.id);
        }
        if let Some(parent) = point.parent.filter(|_| below > 0 || kept.contains(&point.id)) {
            *ways.entry(parent).or_default() += 1;
        }
    }
}

#[cfg(test)]
mod tests;
