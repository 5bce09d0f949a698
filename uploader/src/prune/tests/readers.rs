use std::sync::Arc;

use futures_util::FutureExt as _;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore as _, PutOptions};

use super::*;
use crate::catalogue::Catalogue;
use crate::holds::Hold;
use crate::pins;
use crate::testing::{Ask, Fault, Faulty, memory_vault, vault_in};

fn id(generation: u64, number: u64) -> PointId {
    PointId { generation, number }
}

/// Reads every byte of `point` by `hold`'s catalogue.
async fn shown(vault: &Vault, hold: &Hold, point: PointId) -> nbd_proxy::Result<BTreeMap<String, Vec<u8>>> {
    let map = blockmap::load_held(vault, &hold.catalogue, point, &[]).await?;
    crate::testing::contents_of(&map).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_in_progress_survives_prunings_that_want_its_objects() {
    let vault = memory_vault().await;
    let mut maker = history(&vault, 30).await;
    // One reads by no catalogue, one by the first; both through two more prunings.
    let first = id(1, 8);
    let hold = Hold::take(&vault, "m", first).await.unwrap();
    let map = blockmap::load_held(&vault, &hold.catalogue, first, &[]).await.unwrap();
    prune(&vault, "m", &at_once()).await.unwrap();
    assert!(crate::testing::contents_of(&map).await.unwrap() == maker.shown[&first], "the map at hand");
    assert!(shown(&vault, &hold, first).await.unwrap() == maker.shown[&first], "and a fresh one");
    let second = id(1, 13);
    let other = Hold::take(&vault, "m", second).await.unwrap();
    assert_eq!((hold.catalogue.number, other.catalogue.number), (0, 1));
    for round in 0..2 {
        for number in 0..9 {
            maker.point(minute(400 + round * 90 + number * 10), 3, 2).await;
        }
        let daily = Policy { hourly: Duration::ZERO, daily: hours(24), ..at_once().policy };
        prune(&vault, "m", &Settings { policy: daily, ..at_once() }).await.unwrap();
        assert!(shown(&vault, &hold, first).await.unwrap() == maker.shown[&first], "round {round}");
        assert!(shown(&vault, &other, second).await.unwrap() == maker.shown[&second], "round {round}");
        maker.check(&vault).await;
    }
    hold.release().await;
    other.release().await;
    let freed = sweep(&vault, "m", &at_once()).await.unwrap();
    assert!(freed.objects.len() > 10, "what only they needed goes: {freed:?}");
    maker.check(&vault).await;
}

/// Whoever publishes between a reader's hold and its look is seen by the reader; whoever looks for holds after
/// publishing sees the hold. Here the hold comes right before the catalogue that lets its point go.
#[tokio::test(flavor = "multi_thread")]
async fn a_hold_taken_while_a_pruning_plans_is_found_before_it_deletes() {
    let memory = Arc::new(InMemory::new());
    let plain = vault_in(memory.clone()).await;
    let maker = history(&plain, 31).await;
    let point = id(1, 9);
    let inner = memory.clone();
    let faulty = Faulty::new(memory, move |_, ask, key| {
        if ask == Ask::Put && key.contains("/catalogue/") {
            let hold = serde_json::to_vec(&crate::holds::Held { point, catalogue: 0 }).unwrap();
            let path = Path::from(keys::new_hold("m"));
            let put = inner.put_opts(&path, hold.into(), PutOptions::default());
            put.now_or_never().unwrap().unwrap();
        }
        Fault::None
    });
    prune(&vault_in(faulty).await, "m", &at_once()).await.unwrap();
    assert!(!maker.check(&plain).await.contains(&point), "it is no point any more");
    let by = Arc::new(Catalogue::empty("m"));
    let map = blockmap::load_held(&plain, &by, point, &[]).await.unwrap();
    assert!(
        crate::testing::contents_of(&map).await.unwrap() == maker.shown[&point],
        "but its reader reads on"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pinned_point_stays_until_it_is_unpinned() {
    let vault = memory_vault().await;
    let maker = history(&vault, 32).await;
    let point = id(1, 9);
    pins::pin(&vault, "m", point).await.unwrap();
    pins::pin(&vault, "m", point).await.unwrap();
    prune(&vault, "m", &at_once()).await.unwrap();
    assert!(maker.check(&vault).await.contains(&point));
    let listed = listing::points(&vault, "m").await.unwrap();
    let pinned: Vec<PointId> = listed.iter().filter(|point| point.pinned).map(|point| point.id).collect();
    assert_eq!(pinned, [point]);
    pins::unpin(&vault, "m", point).await.unwrap();
    prune(&vault, "m", &at_once()).await.unwrap();
    assert!(!maker.check(&vault).await.contains(&point));
    for missing in [point, id(1, 99), id(1, 1)] {
        assert_eq!(pins::pin(&vault, "m", missing).await.unwrap_err().kind, Kind::NotFound, "{missing}");
    }
    assert_eq!(pins::unpin(&vault, "m", point).await.unwrap_err().kind, Kind::NotFound);
}

/// A pin is a catalogue: a pruning that did not see it cannot publish.
#[tokio::test(flavor = "multi_thread")]
async fn a_pin_set_while_a_pruning_plans_is_kept() {
    let memory = Arc::new(InMemory::new());
    let plain = vault_in(memory.clone()).await;
    let maker = history(&plain, 33).await;
    let point = id(1, 9);
    let mut pinned = Catalogue::empty("m").next();
    pinned.pins.insert(point);
    let bytes = catalogue::encode(&plain.named(&keys::catalogue("m", 1)), &pinned).unwrap();
    let inner = memory.clone();
    let first = Path::from(keys::catalogue("m", 1));
    let faulty = Faulty::new(memory, move |_, ask, key| {
        if ask == Ask::Put && key == first.as_ref() {
            let put = inner.put_opts(&first, bytes.clone().into(), PutOptions::default());
            put.now_or_never().unwrap().unwrap();
        }
        Fault::None
    });
    prune(&vault_in(faulty).await, "m", &at_once()).await.unwrap();
    assert_eq!(catalogue::newest_number(&plain, "m").await.unwrap(), 2);
    assert!(maker.check(&plain).await.contains(&point));
}
