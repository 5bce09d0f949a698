use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use jiff::civil::{date, time};
use jiff::tz::TimeZone;

use super::*;

const MB: u64 = 1_000_000;

/// A wall clock that goes with the runtime's, from a Monday at `hour` on.
fn from_monday(hour: i8) -> Clock {
    let begun = Instant::now();
    let start = date(2026, 11, 23).at(hour, 0, 0, 0).to_zoned_datetime(TimeZone::UTC).unwrap();
    Clock::new(move || start.clone() + Instant::now().duration_since(begun))
}

fn office_hours() -> Vec<Hours> {
    let days =
        vec![Weekday::Monday, Weekday::Tuesday, Weekday::Wednesday, Weekday::Thursday, Weekday::Friday];
    let when = When { days, from: time(8, 0, 0, 0), to: time(18, 0, 0, 0) };
    vec![Hours { when: Some(when), rate: Some(20 * MB) }, Hours { when: None, rate: None }]
}

/// Several machines write objects of 32 MB for an hour: never more than the rate in any minute, and hardly less.
#[tokio::test(start_paused = true)]
async fn the_limit_holds_over_an_hour_and_is_shared_by_all() {
    let limit = Arc::new(Limit::new(office_hours(), from_monday(9)));
    let minutes: Arc<Vec<AtomicU64>> = Arc::new((0..60).map(|_| AtomicU64::new(0)).collect());
    let begun = Instant::now();
    let write = |_| {
        let (limit, minutes) = (Arc::clone(&limit), Arc::clone(&minutes));
        tokio::spawn(async move {
            loop {
                limit.take(32 * MB).await;
                let minute = usize::try_from(begun.elapsed().as_secs() / 60).unwrap();
                let Some(minute) = minutes.get(minute) else { return };
                minute.fetch_add(32 * MB, SeqCst);
            }
        })
    };
    let machines: Vec<_> = (0..4).map(write).collect();
    for machine in machines {
        machine.await.unwrap();
    }
    let written: Vec<u64> = minutes.iter().map(|minute| minute.load(SeqCst)).collect();
    assert!(written.iter().all(|bytes| *bytes <= 60 * 20 * MB + 32 * MB), "{written:?}");
    let all: u64 = written.iter().sum();
    assert!((3_600 * 20 * MB - 64 * MB..=3_600 * 20 * MB + 32 * MB).contains(&all), "{all}");
}

#[tokio::test(start_paused = true)]
async fn a_limit_ends_when_it_says_so_also_for_those_who_wait() {
    let limit = Limit::new(office_hours(), from_monday(17));
    let begun = Instant::now();
    // Two hours' worth, owed an hour before the limit ends.
    limit.take(2 * 3_600 * 20 * MB).await;
    assert_eq!(begun.elapsed().as_secs(), 0, "nothing was owed before");
    limit.take(32 * MB).await;
    let waited = begun.elapsed().as_secs();
    assert!((3_600..3_610).contains(&waited), "{waited}");
    limit.take(3_600 * 20 * MB).await;
    limit.take(3_600 * 20 * MB).await;
    assert!(begun.elapsed().as_secs() < 3_610, "unlimited now");
}

#[tokio::test(start_paused = true)]
async fn a_small_object_does_not_wait_and_is_paid_for_by_the_next_large_one() {
    let limit = Limit::new(vec![Hours { when: None, rate: Some(MB) }], from_monday(9));
    let begun = Instant::now();
    limit.take(30 * MB).await;
    for _ in 0..100 {
        limit.take(200_000).await;
    }
    assert_eq!(begun.elapsed().as_secs(), 0);
    limit.take(MB).await;
    let waited = begun.elapsed().as_secs();
    assert!((49..=51).contains(&waited), "{waited} s for 50 MB at 1 MB/s");
}

#[test]
fn hours_over_midnight_belong_to_the_day_on_which_they_begin() {
    let nights = When { days: vec![Weekday::Friday], from: time(22, 0, 0, 0), to: time(6, 0, 0, 0) };
    let at = |day, hour| date(2026, 11, day).at(hour, 0, 0, 0).to_zoned_datetime(TimeZone::UTC).unwrap();
    // The 27th is a Friday.
    assert!(nights.holds(&at(27, 22)) && nights.holds(&at(28, 5)));
    assert!(!nights.holds(&at(28, 6)) && !nights.holds(&at(28, 22)) && !nights.holds(&at(27, 5)));
}
