use super::*;
use crate::listing;
use crate::replicate::{self, Connect};
use crate::testing::{Rig, memory_vault};

#[tokio::test(flavor = "multi_thread")]
async fn every_object_of_a_vault_can_be_taken_apart() {
    let rig = Rig::new(&[("root", 1 << 20)], 31);
    rig.churn(40);
    let vault = memory_vault().await;
    let opened = vault.clone();
    let connect: Connect = Box::new(move || {
        let vault = opened.clone();
        Box::pin(async move { Ok(vault) })
    });
    let handle = replicate::start(rig.settings(), rig.clone(), connect);
    handle.cut().await.unwrap();
    rig.churn(2);
    handle.cut().await.unwrap();
    handle.stop().await;
    let newest = listing::resolve(&vault, "m", &listing::PointName::Latest).await.unwrap().id;
    crate::pins::pin(&vault, "m", newest).await.unwrap();

    let (mut claims, mut points, mut deltas, mut embedded, mut catalogues) = (0, 0, 0, 0, 0);
    for object in vault.store.list("machines").await.unwrap() {
        let bytes = vault.store.get(&object.key, 1 << 30).await.unwrap();
        let description = decode(&vault.named(&object.key), &bytes).unwrap();
        assert!(!description.to_string().is_empty());
        assert!(serde_json::to_value(&description).unwrap()["type"].is_string());
        match description {
            Description::Delta(delta) => {
                deltas += 1;
                assert_eq!((delta.size, delta.disks[0].name.as_str()), (object.size, "root"));
            }
            Description::Entry(entry) if entry.header.is_point() => {
                points += 1;
                embedded += usize::from(entry.embedded.is_some());
            }
            Description::Entry(_) => claims += 1,
            Description::Catalogue(catalogue) => catalogues += catalogue.pins.len(),
            sealed => panic!("{sealed}"),
        }
        let mut flipped = bytes.to_vec();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 1;
        let error = decode(&vault.named(&object.key), &flipped).unwrap_err();
        assert_eq!((error.kind, &error.object), (Kind::Corrupt, &vault.store.name_of(&object.key)));
    }
    assert_eq!(points, listing::points(&vault, "m").await.unwrap().len());
    assert!(
        claims == 1 && deltas > 0 && embedded > 0 && catalogues == 1,
        "{claims} {deltas} {embedded} {catalogues}"
    );
}

#[test]
fn a_file_of_another_kind_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    std::fs::write(&path, "hello world").unwrap();
    assert_eq!(describe(&path, None).unwrap_err().kind, Kind::InvalidInput);
    assert_eq!(describe(&dir.path().join("y"), None).unwrap_err().kind, Kind::NotFound);
}
