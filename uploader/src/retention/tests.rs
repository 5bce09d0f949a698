use proptest::prelude::*;

use super::*;

fn id(generation: u64, number: u64) -> PointId {
    PointId { generation, number }
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// Points 1, 2, … of generation 1 at these times, by both clocks.
fn line(times: &[&str]) -> Vec<Candidate> {
    let times = times.iter().map(|time| at(&format!("2026-{time}Z")));
    times.zip(1..).map(|(time, number)| point(number, time, time)).collect()
}

fn point(number: u64, time: Timestamp, stored: Timestamp) -> Candidate {
    Candidate { id: id(1, number), time, stored, parent: (number > 1).then(|| id(1, number - 1)) }
}

fn numbers(policy: &Policy, points: &[Candidate], now: &str) -> Vec<u64> {
    let kept = keep(policy, points, at(now), &BTreeSet::new()).unwrap();
    kept.into_iter().map(|id| id.number).collect()
}

fn hours(hours: u64) -> Duration {
    Duration::from_secs(hours * 3600)
}

const NOTHING: Policy =
    Policy { all: Duration::ZERO, hourly: Duration::ZERO, daily: Duration::ZERO, weekly: Duration::ZERO };

/// Each row: what is kept of points at these times, at this moment, under this policy.
#[test]
fn the_table_of_thinning() {
    let hourly = Policy { hourly: hours(24 * 7), ..NOTHING };
    let daily = Policy { daily: hours(24 * 30), ..NOTHING };
    let weekly = Policy { weekly: hours(24 * 365), ..NOTHING };
    let all = Policy { all: hours(24), ..NOTHING };
    type Row = (&'static str, Policy, &'static [&'static str], &'static str, &'static [u64]);
    let rows: &[Row] = &[
        (
            "younger than all",
            all,
            &["06-01T10:00:00", "06-01T10:00:30", "06-01T10:01:00"],
            "2026-06-01T11:00:00Z",
            &[1, 2, 3],
        ),
        (
            "as old as all is kept, older is not",
            all,
            &["06-01T10:00:00", "06-01T10:00:01", "06-01T10:01:00"],
            "2026-06-02T10:00:01Z",
            &[2, 3],
        ),
        (
            "the newest of an hour",
            hourly,
            &["06-01T10:00:00", "06-01T10:59:59", "06-01T11:00:00", "06-01T11:30:00"],
            "2026-06-02T12:00:00Z",
            &[2, 4],
        ),
        (
            "the newest of a day, in UTC",
            daily,
            &["06-01T00:00:00", "06-01T23:59:59", "06-02T00:00:00"],
            "2026-06-10T00:00:00Z",
            &[2, 3],
        ),
        (
            "weeks begin on Monday",
            weekly,
            &["06-06T12:00:00", "06-07T23:59:59", "06-08T00:00:00", "06-14T00:00:00"],
            "2026-07-01T00:00:00Z",
            &[2, 4],
        ),
        (
            "the newest point stays for ever",
            all,
            &["01-01T00:00:00", "01-01T00:00:30"],
            "2029-01-01T00:00:00Z",
            &[2],
        ),
        (
            "past its window an hour goes",
            hourly,
            &["06-01T10:30:00", "06-05T10:30:00"],
            "2026-06-09T00:00:00Z",
            &[2],
        ),
        // An hour half of which is still kept whole has its newest in that half: the older half needs none of its own.
        (
            "no point is kept twice for an hour",
            Policy { all: hours(1), ..hourly },
            &["06-01T10:10:00", "06-01T10:20:00", "06-01T10:50:00"],
            "2026-06-01T11:30:00Z",
            &[3],
        ),
    ];
    for (name, policy, times, now, expected) in rows {
        assert_eq!(numbers(policy, &line(times), now), *expected, "{name}");
    }
}

#[test]
fn the_default_thins_two_years_to_what_it_says() {
    let start = at("2024-06-01T00:00:00Z");
    let every = 600;
    let points: Vec<Candidate> = (1..=2 * 365 * 144)
        .map(|number| {
            let time = start + SignedDuration::from_secs(every * number);
            point(u64::try_from(number).unwrap(), time, time)
        })
        .collect();
    let now = points.last().unwrap().time;
    let kept = keep(&Policy::default(), &points, now, &BTreeSet::new()).unwrap();
    let ages: Vec<i64> = points
        .iter()
        .filter(|point| kept.contains(&point.id))
        .map(|point| now.duration_since(point.time).as_secs())
        .collect();
    let within = |from: i64, to: i64| ages.iter().filter(|age| (from..to).contains(*age)).count();
    assert_eq!(within(0, DAY + 1), 145, "every point of a day");
    assert_eq!(within(DAY + 1, 7 * DAY), 144, "24 of each of six days");
    assert!((22..=23).contains(&within(7 * DAY, 30 * DAY)), "one a day: {}", within(7 * DAY, 30 * DAY));
    assert!((47..=49).contains(&within(30 * DAY, 366 * DAY)), "one a week: {}", within(30 * DAY, 366 * DAY));
    assert_eq!(within(366 * DAY, i64::MAX), 0);
}

#[test]
fn a_policy_that_would_delete_the_last_point_is_refused() {
    let points = line(&["06-01T10:00:00"]);
    let refused = keep(&NOTHING, &points, at("2026-06-01T11:00:00Z"), &BTreeSet::new()).unwrap_err();
    assert_eq!((refused.kind, refused.object.as_str()), (Kind::InvalidInput, "keep"), "{refused}");
    assert!(refused.message.contains("last point"), "{refused}");
}

#[test]
fn what_is_pinned_or_held_stays() {
    let points = line(&["01-01T00:00:00", "01-01T00:00:30", "06-01T00:00:00"]);
    let kept =
        keep(&Policy::default(), &points, at("2029-01-01T00:00:00Z"), &[id(1, 1), id(9, 9)].into()).unwrap();
    assert_eq!(kept, [id(1, 1), id(1, 3)].into(), "and what does not exist is not kept");
}

/// Generation 1 is points 1 to 4; generation 2 forks from 2 with 6 and 7.
#[test]
fn branches_keep_their_newest_point_and_the_fork() {
    let old = at("2020-01-01T00:00:00Z");
    let mut points: Vec<Candidate> = (1..=4).map(|number| point(number, old, old)).collect();
    let branch =
        |number, parent| Candidate { id: id(2, number), time: old, stored: old, parent: Some(parent) };
    points.extend([branch(6, id(1, 2)), branch(7, id(2, 6))]);
    let kept = keep(&Policy::default(), &points, at("2029-01-01T00:00:00Z"), &BTreeSet::new()).unwrap();
    assert_eq!(kept, [id(1, 2), id(1, 4), id(2, 7)].into());
}

/// Only the store's clock makes a point old, and points that it received hours apart share no hour.
#[test]
fn a_wrong_clock_deletes_nothing() {
    let policy = Policy { all: hours(1), hourly: hours(24), ..NOTHING };
    let stored = |hour: i64| at("2026-06-01T00:30:00Z") + SignedDuration::from_hours(hour);
    for (what, time) in [
        ("a clock that stands still", &(|_| at("1970-01-01T00:00:00Z")) as &dyn Fn(i64) -> Timestamp),
        ("a clock in another century", &|_| at("2126-01-01T00:00:00Z")),
        ("a clock that jumps", &|hour| {
            at("2026-06-01T00:30:00Z") + SignedDuration::from_hours((hour % 2) * 1000)
        }),
    ] {
        let points: Vec<Candidate> =
            (1..=5).map(|n| point(u64::try_from(n).unwrap(), time(n), stored(n))).collect();
        assert_eq!(numbers(&policy, &points, "2026-06-01T07:00:00Z"), [1, 2, 3, 4, 5], "{what}");
    }
    // A vault that was copied: everything was received at once, and the points' own hours count.
    let copied: Vec<Candidate> =
        (1..=4).map(|n| point(u64::try_from(n).unwrap(), stored(n / 2 - 900), stored(0))).collect();
    assert_eq!(numbers(&policy, &copied, "2026-06-01T07:00:00Z"), [1, 3, 4]);
    // The store's clock goes back: everything is young.
    let points = line(&["06-01T10:00:00", "06-01T10:00:30"]);
    assert_eq!(numbers(&policy, &points, "2020-01-01T00:00:00Z"), [1, 2]);
}

proptest! {
    /// Pruning every so often keeps what pruning once would have kept: nothing that a later look wants is gone by then.
    #[test]
    fn thinning_often_keeps_what_thinning_once_keeps(
        gaps in prop::collection::vec(1u32..30_000, 1..200),
        looks in prop::collection::vec(1u32..200_000, 1..20),
    ) {
        let policy = Policy { all: hours(3), hourly: hours(20), daily: hours(100), weekly: hours(500) };
        let start = at("2026-01-01T00:00:00Z");
        let mut time = start;
        let all: Vec<Candidate> = gaps.iter().zip(1..).map(|(gap, number)| {
            time += SignedDuration::from_secs((*gap).into());
            point(number, time, time)
        }).collect();
        let mut now = start;
        let mut gone: BTreeSet<PointId> = BTreeSet::new();
        for look in looks {
            now += SignedDuration::from_secs(look.into());
            let there: Vec<Candidate> = all.iter().filter(|point| point.time <= now).copied().collect();
            let left: Vec<Candidate> = there.iter().filter(|point| !gone.contains(&point.id)).copied().collect();
            let once = keep(&policy, &there, now, &BTreeSet::new()).unwrap();
            let often = keep(&policy, &left, now, &BTreeSet::new()).unwrap();
            prop_assert_eq!(&once, &often);
            gone.extend(there.iter().map(|point| point.id).filter(|id| !often.contains(id)));
        }
    }
}
