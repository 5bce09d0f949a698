use std::sync::Arc;

use object_store::memory::InMemory;

use super::*;
use crate::replicate::{self, Connect};
use crate::testing::{Rig, contents};
use crate::vault::{Protection, Secret};

fn empty() -> Store {
    Store::new(Arc::new(InMemory::new()), "memory://test")
}

fn secret() -> Secret {
    Secret::KeyFile([4; 32].into())
}

fn connect(vault: &Vault) -> Connect {
    let vault = vault.clone();
    Box::new(move || {
        let vault = vault.clone();
        Box::pin(async move { Ok(vault) })
    })
}

const QUIET: Progress<'static> = &|_, _| {};

async fn open(store: &Store) -> Vault {
    Vault::at(store.clone(), Some(&secret())).await.unwrap()
}

/// Three points of `rig` in `vault`.
async fn replicate(rig: &Rig, vault: &Vault) -> replicate::CutReport {
    let handle = replicate::start(rig.settings(), rig.clone(), connect(vault));
    for _ in 0..2 {
        handle.cut().await.unwrap();
        rig.churn(15);
    }
    let newest = handle.cut().await.unwrap();
    handle.stop().await;
    newest
}

#[tokio::test(flavor = "multi_thread")]
async fn replication_goes_on_from_an_imported_seed_and_every_point_restores() {
    for far in [true, false] {
        let rig = Rig::new(&[("root", 3 << 20)], 90 + u64::from(far));
        rig.churn(60);
        let (folder, target) = (empty(), empty());
        if far {
            let vault = Vault::at_or_create(target.clone(), &Protection::Secret(secret())).await.unwrap();
            prepare(&vault, &folder).await.unwrap();
            prepare(&vault, &folder).await.unwrap();
        } else {
            Vault::at_or_create(folder.clone(), &Protection::Secret(secret())).await.unwrap();
        }
        let seed = open(&folder).await;
        let last = replicate(&rig, &seed).await;
        let imported = import(&seed, &target, QUIET).await.unwrap();
        assert!(imported.machines == ["m"] && imported.objects > 3 && imported.present == 0, "{imported:?}");

        let vault = open(&target).await;
        rig.churn(2);
        let handle = replicate::start(rig.settings(), rig.clone(), connect(&vault));
        let next = handle.cut().await.unwrap();
        handle.stop().await;
        assert_eq!(
            (next.point.generation, next.point.number),
            (1, last.point.number + 1),
            "the line goes on"
        );
        let jobs = rig.settings().jobs.list().unwrap();
        assert_eq!(jobs.len(), 1, "nothing was copied again: {jobs:?}");
        for point in listing::points(&vault, "m").await.unwrap() {
            assert!(
                contents(&vault, "m", point.id).await.unwrap() == rig.cuts()[&point.time],
                "{}",
                point.id
            );
        }
        // Once more: all is there, and what came since does not disturb.
        let again = import(&seed, &target, QUIET).await.unwrap();
        assert_eq!((again.objects, again.present), (0, imported.objects));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_died_anywhere_goes_on() {
    let rig = Rig::new(&[("root", 2 << 20)], 93);
    rig.churn(60);
    let folder = empty();
    let seed = Vault::at_or_create(folder.clone(), &Protection::Secret(secret())).await.unwrap();
    let last = replicate(&rig, &seed).await;
    let whole = folder.list("").await.unwrap().len() as u64;
    for died_after in 0..whole {
        let memory = Arc::new(InMemory::new());
        let plan = move |number, _, _: &str| {
            if number > 2 * died_after { crate::testing::Fault::Before } else { crate::testing::Fault::None }
        };
        let dying = Store::new(crate::testing::Faulty::new(Arc::clone(&memory), plan), "memory://test");
        let _ = import(&seed, &dying, QUIET).await;
        let target = Store::new(memory, "memory://test");
        if let Ok(vault) = Vault::at(target.clone(), Some(&secret())).await
            && let Ok(points) = listing::points(&vault, "m").await
        {
            for point in points {
                contents(&vault, "m", point.id).await.expect("what is listed is whole");
            }
        }
        import(&seed, &target, QUIET).await.unwrap();
        assert!(contents(&open(&target).await, "m", last.point).await.unwrap() == rig.cuts()[&last.time]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_of_another_vault_a_taken_name_and_a_damaged_object_are_refused() {
    let rig = Rig::new(&[("root", 1 << 20)], 94);
    rig.churn(20);
    let (folder, target) = (empty(), empty());
    let vault = Vault::at_or_create(target.clone(), &Protection::Secret(secret())).await.unwrap();
    let stranger = Vault::at_or_create(folder.clone(), &Protection::Secret(secret())).await.unwrap();
    let error = import(&stranger, &target, QUIET).await.unwrap_err();
    assert!(error.kind == Kind::Exists && error.remedy.contains("vault seed"), "{error}");
    assert_eq!(prepare(&vault, &folder).await.unwrap_err().kind, Kind::Exists);

    let folder = empty();
    prepare(&vault, &folder).await.unwrap();
    let seed = open(&folder).await;
    replicate(&rig, &seed).await;
    let damaged = seed.store.list("machines").await.unwrap().remove(0).key;
    let good = seed.store.get(&damaged, 1 << 30).await.unwrap();
    let mut bad = good.to_vec();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    seed.store.put(&damaged, bad.into()).await.unwrap();
    let error = import(&seed, &target, QUIET).await.unwrap_err();
    assert_eq!((error.kind, error.object), (Kind::Corrupt, seed.store.name_of(&damaged)));
    seed.store.put(&damaged, good.into()).await.unwrap();

    // Somebody else has replicated a machine of that name.
    let target = empty();
    prepare(&vault, &target).await.unwrap();
    let other = Rig::new(&[("root", 1 << 20)], 95);
    replicate(&other, &open(&target).await).await;
    let before = target.list("").await.unwrap();
    let error = import(&seed, &target, QUIET).await.unwrap_err();
    assert!(error.kind == Kind::Exists && error.message.contains("another machine m"), "{error}");
    assert_eq!(target.list("").await.unwrap(), before, "nothing was written");
}
