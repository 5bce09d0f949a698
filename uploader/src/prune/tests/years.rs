use std::sync::Arc;

use object_store::memory::InMemory;

use super::*;
use crate::testing::{Clocked, vault_in};

fn from_environment(name: &str, default: i64) -> i64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap())
}

/// Points every 30 s, then one an hour for long, pruned daily: every point that is kept restores exactly, and of what is
/// stored at least two thirds are needed. In full it is two days and ten years; here it is less, by
/// `LIFEBOAT_PRUNE_HOURS` and `LIFEBOAT_PRUNE_DAYS`.
#[tokio::test(flavor = "multi_thread")]
async fn after_years_every_kept_point_restores_and_two_thirds_are_alive() {
    let (dense, days) =
        (from_environment("LIFEBOAT_PRUNE_HOURS", 3), from_environment("LIFEBOAT_PRUNE_DAYS", 45));
    let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let clock = Clocked::new(Arc::new(InMemory::new()), start);
    let vault = vault_in(clock.clone()).await;
    let mut maker = Maker::with_disks(&vault, 40, &["a"]);
    maker.claim(None, start).await;
    let settings = Settings { policy: Policy::default(), wait: WAIT };
    let mut now = start;
    let mut pruned = start;
    let mut prunings = 0;
    while now < start + SignedDuration::from_hours(dense + days * 24) {
        let sparse = now >= start + SignedDuration::from_hours(dense);
        now += if sparse { SignedDuration::from_hours(1) } else { SignedDuration::from_secs(30) };
        clock.set(now);
        maker.point(now, 2, 1).await;
        if now.duration_since(pruned) < SignedDuration::from_hours(24) {
            continue;
        }
        pruned = now;
        prune(&vault, "m", &settings).await.unwrap();
        clock.set(now + SignedDuration::from_mins(61));
        sweep(&vault, "m", &settings).await.unwrap();
        prunings += 1;
        let kept: std::collections::BTreeSet<PointId> =
            listing::points(&vault, "m").await.unwrap().into_iter().map(|point| point.id).collect();
        maker.shown.retain(|id, _| kept.contains(id));
        assert_eq!(maker.shown.len(), kept.len());
        if prunings % 15 != 0 {
            continue;
        }
        maker.check(&vault).await;
        let (total, alive) = alive(&vault).await;
        assert!(alive * 3 >= total * 2, "day {prunings}: {alive} of {total} bytes are needed");
    }
    let kept = maker.check(&vault).await.len();
    let (total, alive) = alive(&vault).await;
    assert!(alive * 3 >= total * 2, "{alive} of {total} bytes are needed");
    // 24 of the last day, 24 for each of six days, then days and weeks; each boundary may hold one more.
    assert!(prunings >= days - 1 && (24..=24 * 7 + 23 + 49 + 8).contains(&kept), "{kept} points are kept");
}
