use std::sync::Arc;

use object_store::memory::InMemory;

use super::*;
use crate::testing::{Ask, Fault, Faulty, memory_vault, vault_in};

const POINT: PointId = PointId { generation: 1, number: 7 };

async fn names(vault: &Vault) -> Vec<String> {
    let listed = vault.store.list(&keys::hold_folder("m")).await.unwrap();
    listed.into_iter().map(|object| object.key).collect()
}

#[tokio::test]
async fn a_hold_counts_until_it_is_released_or_an_hour_old() {
    let vault = memory_vault().await;
    let hold = Hold::take(&vault, "m", POINT).await.unwrap();
    let now = Timestamp::now();
    let expected = Held { point: POINT, catalogue: 0 };
    let (held, over) = counting(&vault, "m", now + SignedDuration::from_mins(59)).await.unwrap();
    assert_eq!((held, over.len()), (vec![expected], 0));
    let (held, over) = counting(&vault, "m", now + SignedDuration::from_mins(61)).await.unwrap();
    assert_eq!((held, over.len()), (vec![], 1));
    hold.release().await;
    assert!(names(&vault).await.is_empty());
}

#[tokio::test]
async fn a_hold_is_renewed_under_a_new_name() {
    let vault = memory_vault().await;
    let hold = Hold::renewed(&vault, "m", POINT, Duration::from_millis(5)).await.unwrap();
    let first = names(&vault).await;
    // However slow this machine is, sooner or later it happens.
    while names(&vault).await.iter().any(|name| first.contains(name)) {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(
        !counting(&vault, "m", Timestamp::now()).await.unwrap().0.is_empty(),
        "at every moment there is one"
    );
    hold.release().await;
    assert!(names(&vault).await.is_empty());
}

#[tokio::test]
async fn a_catalogue_that_is_published_meanwhile_is_the_one_to_read_by() {
    let memory = Arc::new(InMemory::new());
    let plain = vault_in(memory.clone()).await;
    catalogue::publish(&plain, &Catalogue::empty("m").next()).await.unwrap();
    // As the hold is written, somebody publishes: the second catalogue lies ready under another name until then.
    let second = catalogue::read(&plain, "m", 1).await.unwrap().next();
    let bytes = catalogue::encode(&plain.named(&keys::catalogue("m", 2)), &second).unwrap();
    let (put, there) = (memory.clone(), object_store::path::Path::from(keys::catalogue("m", 2)));
    let faulty = Faulty::new(memory, move |_, ask, key| {
        if ask == Ask::Put && key.contains("/holds/") {
            let opts = object_store::PutOptions::default();
            let put = object_store::ObjectStore::put_opts(&*put, &there, bytes.clone().into(), opts);
            futures_util::FutureExt::now_or_never(put).unwrap().unwrap();
        }
        Fault::None
    });
    let vault = vault_in(faulty).await;
    let hold = Hold::take(&vault, "m", POINT).await.unwrap();
    assert_eq!(hold.catalogue.number, 2);
    assert_eq!(names(&vault).await.len(), 1, "the one that came too late is gone");
    let (held, _) = counting(&vault, "m", Timestamp::now()).await.unwrap();
    assert_eq!(held, [Held { point: POINT, catalogue: 2 }]);
}

#[tokio::test]
async fn who_may_not_write_reads_without_a_hold() {
    let memory = Arc::new(InMemory::new());
    drop(vault_in(memory.clone()).await);
    let faulty = Faulty::new(memory, |_, ask, _| if ask == Ask::Put { Fault::Denied } else { Fault::None });
    let vault = vault_in(faulty).await;
    let hold = Hold::take(&vault, "m", POINT).await.unwrap();
    assert!(names(&vault).await.is_empty());
    hold.release().await;
}

/// A reader that renews its hold while the holds are being read has one under a name that was not in the listing.
#[tokio::test]
async fn a_hold_that_moves_while_holds_are_read_is_not_missed() {
    let memory = Arc::new(InMemory::new());
    let plain = vault_in(memory.clone()).await;
    let held = Held { point: POINT, catalogue: 3 };
    write(&plain, "m", held).await.unwrap();
    let faulty = Faulty::new(memory, |n, ask, key| {
        let first = n <= 1 && ask == Ask::Get && key.contains("/holds/");
        if first { Fault::Missing } else { Fault::None }
    });
    let vault = vault_in(faulty).await;
    assert_eq!(counting(&vault, "m", Timestamp::now()).await.unwrap().0, [held]);
}
