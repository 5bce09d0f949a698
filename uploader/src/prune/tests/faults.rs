use std::sync::Arc;

use object_store::memory::InMemory;

use super::*;
use crate::testing::{Ask, Fault, Faulty, vault_in};

/// What counts of a vault, whatever names were drawn in it.
async fn shape(vault: &Vault) -> (Vec<PointId>, u64, usize, u64) {
    let points = listing::points(vault, "m").await.unwrap();
    let objects = vault.store.list("machines/m").await.unwrap();
    let of = |folder: &str| objects.iter().filter(|object| object.key.contains(folder)).count();
    let packs =
        objects.iter().filter(|object| object.key.contains("/deltas/")).map(|object| object.size).sum();
    (points.into_iter().map(|point| point.id).collect(), packs, of("/deltas/"), of("/line/") as u64)
}

/// A pruning that ends at any of its requests, before or after it happened, leaves every point that it keeps; run again it
/// ends where it would have ended, with nothing left over.
#[tokio::test(flavor = "multi_thread")]
async fn a_pruning_that_ends_at_any_request_is_run_again() {
    let memory = Arc::new(InMemory::new());
    let mut maker = Maker::new(&vault_in(memory.clone()).await, 20);
    maker.claim(None, minute(0)).await;
    for number in 0..9 {
        maker.point(minute(number * 15), 3, 1 + usize::try_from(number % 2).unwrap()).await;
    }
    let whole = Faulty::new(Arc::new(memory.fork()), |_, _, _| Fault::None);
    prune(&vault_in(whole.clone()).await, "m", &at_once()).await.unwrap();
    let requests = whole.requests();
    let expected = shape(&vault_in(whole.inner.clone()).await).await;
    assert_eq!(expected.0.len(), 3);
    let (mut published, mut unpublished) = (0, 0);
    for at in 1..requests {
        for fault in [Fault::Before, Fault::After] {
            let store = Arc::new(memory.fork());
            let faulty = Faulty::new(store.clone(), move |n, _, _| if n == at { fault } else { Fault::None });
            let ended = prune(&vault_in(faulty).await, "m", &at_once()).await;
            let plain = vault_in(store).await;
            let there = maker.check(&plain).await.len();
            let all = there == maker.shown.len();
            assert!(all || there == expected.0.len(), "{there} points after request {at} failed");
            (published, unpublished) = (published + usize::from(!all), unpublished + usize::from(all));
            prune(&plain, "m", &at_once()).await.unwrap();
            assert_eq!(shape(&plain).await, expected, "after request {at} ended with {fault:?}: {ended:?}");
        }
    }
    assert!(published > 20 && unpublished > 20, "{published} {unpublished}");
}

/// Two prunings of one state: the slower one's catalogue comes too late, and its packs are swept.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_prunings_one_publishes_and_the_other_begins_again() {
    let memory = Arc::new(InMemory::new());
    let plain = vault_in(memory.clone()).await;
    let maker = history(&plain, 21).await;
    // The first one hangs when it publishes; the second one goes through, and so does a third.
    let slow = Faulty::new(memory.clone(), |_, ask, key| {
        if ask == Ask::Put && key.ends_with("/catalogue/00000000000000000001") {
            Fault::Late
        } else {
            Fault::None
        }
    });
    let vault = vault_in(slow.clone()).await;
    let task = tokio::spawn(async move { prune(&vault, "m", &at_once()).await });
    slow.hung.notified().await;
    let done = prune(&plain, "m", &at_once()).await.unwrap();
    assert_eq!(done.points.len(), 28);
    let expected = maker.check(&plain).await;
    let deltas = async || plain.store.list("machines/m/deltas").await.unwrap().len();
    let named: std::collections::BTreeSet<String> =
        catalogue::newest(&plain, "m").await.unwrap().deltas().map(str::to_owned).collect();
    assert_eq!(deltas().await, named.len(), "the packs of the slow one are gone");
    // Its name is taken, freed by the next catalogue, and then its put lands.
    crate::pins::pin(&plain, "m", expected[0]).await.unwrap();
    sweep(&plain, "m", &at_once()).await.unwrap();
    assert_eq!(plain.store.list("machines/m/catalogue").await.unwrap().len(), 1);
    assert_eq!(slow.land().await, 1);
    assert_eq!(catalogue::newest(&plain, "m").await.unwrap().number, 2, "what landed is not the newest");
    assert_eq!(maker.check(&plain).await, expected);
    sweep(&plain, "m", &at_once()).await.unwrap();
    assert_eq!(plain.store.list("machines/m/catalogue").await.unwrap().len(), 1, "and goes");
    assert_eq!(maker.check(&plain).await, expected);
    task.abort();
}

/// A frame that a pack would need is damaged: pruning says which object, and nothing goes.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_delta_ends_the_pruning_and_deletes_nothing() {
    let vault = vault_in(Arc::new(InMemory::new())).await;
    history(&vault, 22).await;
    let listed = vault.store.list("machines/m/deltas").await.unwrap();
    let key = &listed[1].key;
    let mut bytes = vault.store.get(key, 1 << 30).await.unwrap().to_vec();
    bytes[40] ^= 1;
    vault.store.put(key, bytes.into()).await.unwrap();
    let before = vault.store.list("machines/m").await.unwrap().len();
    let error = prune(&vault, "m", &at_once()).await.unwrap_err();
    assert!(error.kind == Kind::Corrupt && error.object.ends_with(key.as_str()), "{error}");
    let objects = vault.store.list("machines/m").await.unwrap();
    assert!(objects.len() >= before, "nothing went");
    assert_eq!(catalogue::newest_number(&vault, "m").await.unwrap(), 0);
}
