use std::sync::Arc;

use bytes::Bytes;
use object_store::memory::InMemory;

use super::*;
use crate::testing::{Lie, Lying};

fn empty() -> Store {
    Store::new(Arc::new(InMemory::new()), "memory://test")
}

#[tokio::test]
async fn a_vault_is_made_once_and_opened_ever_after() {
    let store = empty();
    let missing = Vault::at(store.clone(), None).await.unwrap_err();
    assert_eq!((missing.kind, missing.object.as_str()), (Kind::NotFound, "memory://test"));
    assert!(missing.message.contains("no vault"), "{missing}");
    let (one, two) = tokio::join!(
        Vault::at_or_create(store.clone(), &Protection::None),
        Vault::at_or_create(store.clone(), &Protection::None)
    );
    let id = one.unwrap().id;
    assert_eq!(two.unwrap().id, id, "of two who make it at once, one wins");
    assert_eq!(Vault::at(store, None).await.unwrap().id, id);
}

#[tokio::test]
async fn a_vault_of_another_format_is_refused() {
    let store = empty();
    let marker = Bytes::from_static(br#"{"format": 2, "something": "new"}"#);
    store.put(MARKER, marker.into()).await.unwrap();
    let error = Vault::at_or_create(store, &Protection::None).await.unwrap_err();
    assert_eq!(error.kind, Kind::InvalidInput);
    assert!(error.message.contains("format 2"), "{error}");
}

#[tokio::test]
async fn a_broken_marker_is_named() {
    let store = empty();
    store.put(MARKER, Bytes::from_static(b"{").into()).await.unwrap();
    let error = Vault::at(store, None).await.unwrap_err();
    assert_eq!((error.kind, error.object.as_str()), (Kind::Corrupt, "memory://test/lifeboat.json"));
}

#[tokio::test]
async fn the_marker_says_what_it_must() {
    let store = empty();
    Vault::at_or_create(store.clone(), &Protection::None).await.unwrap();
    let marker = store.get(MARKER, 1000).await.unwrap();
    let marker: serde_json::Value = serde_json::from_slice(&marker).unwrap();
    assert_eq!((marker["format"].as_u64(), marker["encryption"].as_str()), (Some(1), Some("none")));
}

#[tokio::test]
async fn a_store_without_conditional_writes_is_refused_unless_the_operator_vouches_for_one_writer() {
    let good = Vault::at_or_create(empty(), &Protection::None).await.unwrap();
    good.refuse_unconditional().await.unwrap();
    let before = good.store.get(MARKER, 1000).await.unwrap();
    good.refuse_unconditional().await.unwrap();
    assert_eq!(good.store.get(MARKER, 1000).await.unwrap(), before);

    let store = Store::new(Lying::new(Lie::IgnoresCondition), "memory://test");
    let vault = Vault::at_or_create(store.clone(), &Protection::None).await.unwrap();
    let error = vault.refuse_unconditional().await.unwrap_err();
    assert_eq!(error.kind, Kind::InvalidInput);
    assert!(error.message.contains("writes over") && error.remedy.contains("single_writer"), "{error}");

    let vouched = Vault::at(store.unconditional(), None).await.unwrap();
    vouched.refuse_unconditional().await.unwrap();
    let entry = || Bytes::from_static(b"entry").into();
    vouched.store.create("a", entry()).await.unwrap();
    assert_eq!(vouched.store.create("a", entry()).await.unwrap_err().kind, Kind::Exists);
}
