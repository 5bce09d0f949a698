use std::sync::Arc;

use object_store::memory::InMemory;

use super::*;
use crate::testing::{Ask, Clocked, Fault, Faulty, memory_vault, vault_in};

fn id(generation: u64, number: u64) -> PointId {
    PointId { generation, number }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_restores_exactly_and_the_rest_is_gone() {
    for seed in 0..6 {
        let vault = memory_vault().await;
        let maker = history(&vault, seed).await;
        let report = prune(&vault, "m", &at_once()).await.unwrap();
        let kept = maker.check(&vault).await;
        // The newest of each hour of each generation, the fork, and the newest of all with what it goes on from.
        let expected = [(1, 7), (1, 13), (1, 15), (1, 19), (1, 25), (2, 31), (2, 37), (2, 38)];
        assert_eq!(kept, expected.map(|(generation, number)| id(generation, number)), "seed {seed}");
        assert_eq!((report.kept, report.points.len()), (8, 28), "seed {seed}");
        assert_eq!(report.points.iter().map(|gone| gone.time).min(), Some(minute(0)));
        let (total, alive) = alive(&vault).await;
        assert!(alive * 3 >= total * 2, "seed {seed}: {alive} of {total} bytes are needed");
        let claims = listing::headers(&vault, "m").await.unwrap();
        assert_eq!(claims.iter().filter(|header| !header.is_point()).count(), 2, "claims stay");
        let gone = listing::resolve(&vault, "m", &listing::PointName::Id(id(1, 8))).await.unwrap_err();
        assert_eq!(gone.kind, Kind::NotFound);
        assert_eq!(contents(&vault, "m", id(1, 8)).await.unwrap_err().kind, Kind::NotFound);
        let at = |minutes| listing::PointName::At(minute(minutes));
        assert_eq!(listing::resolve(&vault, "m", &at(119)).await.unwrap().id, id(1, 13));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn to_prune_again_changes_nothing() {
    let vault = memory_vault().await;
    let maker = history(&vault, 7).await;
    prune(&vault, "m", &at_once()).await.unwrap();
    let keys = async || -> Vec<String> {
        let listed = vault.store.list("machines").await.unwrap();
        listed.into_iter().map(|object| object.key).collect()
    };
    let before = keys().await;
    let report = prune(&vault, "m", &at_once()).await.unwrap();
    assert_eq!((report.points.len(), report.objects.len(), report.written), (0, 0, 0));
    assert_eq!(keys().await, before);
    maker.check(&vault).await;
}

/// The line goes on after a pruning, and prunings go on after that.
#[tokio::test(flavor = "multi_thread")]
async fn prunings_follow_each_other() {
    let vault = memory_vault().await;
    let mut maker = history(&vault, 8).await;
    for round in 0..8 {
        prune(&vault, "m", &at_once()).await.unwrap();
        for number in 0..9 {
            maker.point(minute(380 + round * 90 + number * 10), 3, 2).await;
        }
        // What was kept for an hour is kept for a day only after that.
        let daily = Policy { hourly: Duration::ZERO, daily: hours(24), ..at_once().policy };
        let policy = if round % 3 == 2 { daily } else { at_once().policy };
        prune(&vault, "m", &Settings { policy, ..at_once() }).await.unwrap();
        maker.check(&vault).await;
        let (total, alive) = alive(&vault).await;
        assert!(alive * 3 >= total * 2, "round {round}: {alive} of {total} bytes are needed");
    }
    assert!(listing::points(&vault, "m").await.unwrap().len() < 12);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_says_exactly_what_goes_and_changes_nothing() {
    let vault = memory_vault().await;
    let maker = history(&vault, 9).await;
    let before = vault.store.list("machines").await.unwrap();
    let said = rehearse(&vault, "m", &at_once()).await.unwrap();
    assert_eq!(vault.store.list("machines").await.unwrap(), before);
    let done = prune(&vault, "m", &at_once()).await.unwrap();
    assert_eq!((&said.points, said.kept, said.freed), (&done.points, done.kept, done.freed));
    let keys = |report: &Report| {
        let mut keys: Vec<String> = report.objects.iter().map(|object| object.key.clone()).collect();
        keys.sort_unstable();
        keys
    };
    assert_eq!(keys(&said), keys(&done));
    let left: u64 = vault.store.list("machines").await.unwrap().iter().map(|object| object.size).sum();
    let had: u64 = before.iter().map(|object| object.size).sum();
    let catalogue = vault.store.list(&keys::catalogue_folder("m")).await.unwrap()[0].size;
    assert_eq!(had - said.freed + done.written + catalogue, left, "and that is what it freed");
    assert_eq!(said.repacked, done.repacked);
    maker.check(&vault).await;
    // Where there is nothing to do, a rehearsal says so.
    let nothing = rehearse(&vault, "m", &at_once()).await.unwrap();
    assert_eq!((nothing.points.len(), nothing.objects.len()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_go_after_the_wait_by_the_stores_clock() {
    let start = minute(100_000);
    let clock = Clocked::new(Arc::new(InMemory::new()), start);
    let vault = vault_in(clock.clone()).await;
    let maker = history(&vault, 10).await;
    let settings =
        Settings { wait: hours(1), policy: Policy { all: hours(1), hourly: hours(9), ..at_once().policy } };
    clock.set(start + SignedDuration::from_mins(59));
    let early = prune(&vault, "m", &settings).await.unwrap();
    assert_eq!((early.points.len(), early.objects.len()), (0, 0), "no point is old enough");
    let published = start + SignedDuration::from_mins(61);
    clock.set(published);
    let objects = async || vault.store.list("machines").await.unwrap().len();
    let before = objects().await;
    let waits = prune(&vault, "m", &settings).await.unwrap();
    assert_eq!(waits.points.len(), 28);
    assert_eq!(waits.due_seconds, Some(3600.0));
    assert!(objects().await > before, "nothing is deleted yet");
    assert_eq!(maker.check(&vault).await.len(), 8, "but what is gone is gone");
    clock.set(published + SignedDuration::from_mins(59));
    assert_eq!(sweep(&vault, "m", &settings).await.unwrap().due_seconds, Some(60.0));
    // The store's clock is set back: that makes nothing due.
    clock.set(published - SignedDuration::from_hours(5));
    assert_eq!(sweep(&vault, "m", &settings).await.unwrap().due_seconds, Some(3600.0));
    clock.set(published + SignedDuration::from_mins(60));
    let swept = sweep(&vault, "m", &settings).await.unwrap();
    assert_eq!((swept.due_seconds, swept.objects.len()), (None, waits.objects.len()));
    assert!(objects().await < before);
    maker.check(&vault).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_store_will_not_delete_is_counted_and_no_error() {
    let memory = Arc::new(InMemory::new());
    let plain = vault_in(memory.clone()).await;
    let maker = history(&plain, 11).await;
    let locked =
        Faulty::new(memory, |_, ask, _| if ask == Ask::Delete { Fault::Denied } else { Fault::None });
    let vault = vault_in(locked).await;
    let report = prune(&vault, "m", &at_once()).await.unwrap();
    assert_eq!((report.objects.len(), report.freed), (0, 0));
    assert!(
        report.refused > 30 && report.refused_bytes > 100_000 && !report.refusal.is_empty(),
        "{report:?}"
    );
    assert_eq!(maker.check(&vault).await.len(), 8, "what is locked is no point all the same");
    // When the lock is over, it goes with the next sweep.
    let swept = sweep(&plain, "m", &at_once()).await.unwrap();
    assert!(swept.refused == 0 && swept.objects.len() >= report.refused, "{swept:?}");
    maker.check(&plain).await;
}

#[tokio::test]
async fn a_policy_or_a_machine_that_cannot_be_is_refused() {
    let vault = memory_vault().await;
    history(&vault, 12).await;
    let before = vault.store.list("machines").await.unwrap();
    let nothing = Policy { all: Duration::ZERO, hourly: Duration::ZERO, ..at_once().policy };
    let refused = prune(&vault, "m", &Settings { policy: nothing, ..at_once() }).await.unwrap_err();
    assert!(refused.kind == Kind::InvalidInput && refused.message.contains("last point"), "{refused}");
    let unknown = prune(&vault, "x", &at_once()).await.unwrap_err();
    assert_eq!(unknown.kind, Kind::NotFound, "{unknown}");
    assert_eq!(prune(&vault, "../m", &at_once()).await.unwrap_err().kind, Kind::InvalidInput);
    assert_eq!(vault.store.list("machines").await.unwrap(), before);
}

/// A branch line's points go on from a point of the main line, and name deltas that were drawn for old numbers.
#[tokio::test(flavor = "multi_thread")]
async fn a_branch_keeps_what_it_goes_on_from() {
    let vault = memory_vault().await;
    let mut maker = history(&vault, 13).await;
    let fork = id(1, 10);
    let delta = commit::upload(&vault, "m", EntryId::Line(11), maker.delta(2)).await.unwrap();
    let header = Header { number: 11, parent: Some(fork), ..maker.header(EntryKind::Crash, minute(0)) };
    let list = [delta.reference().clone()];
    let key = format!("{}/1-{}/{:020}", keys::branches_folder("m"), Uuid::nil().simple(), 11);
    let entry = crate::point::encode(&vault.named(&key), &header, &list, None).unwrap();
    vault.store.put(&key, entry.into()).await.unwrap();
    prune(&vault, "m", &at_once()).await.unwrap();
    assert!(listing::points(&vault, "m").await.unwrap().iter().any(|point| point.id == fork));
    let name = list[0].name.as_deref().unwrap();
    vault.store.describe(&keys::delta("m", name)).await.unwrap();
    vault.store.describe(&key).await.unwrap();
}
