use super::*;
use crate::testing::memory_vault;

fn id(generation: u64, number: u64) -> PointId {
    PointId { generation, number }
}

#[tokio::test]
async fn branches_are_told_by_their_names_and_hold_what_stands_on_them() {
    let vault = memory_vault().await;
    assert!(list(&vault, "m").await.unwrap().is_empty());
    let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
    for (generation, writer, number) in [(1, one, 12), (1, one, 13), (3, two, 40)] {
        let key = keys::line_entry(&keys::branch_folder("m", generation, writer), number);
        vault.store.put(&key, bytes::Bytes::new().into()).await.unwrap();
    }
    vault
        .store
        .put(&format!("{}/notes/1", keys::branches_folder("m")), bytes::Bytes::new().into())
        .await
        .unwrap();
    let branches = list(&vault, "m").await.unwrap();
    assert_eq!(branches[0], Branch { generation: 1, writer: one, numbers: vec![12, 13] });
    assert_eq!(branches.len(), 2);
    assert!(branches[0].holds(id(1, 12)) && branches[0].holds(id(1, 14)));
    assert!(!branches[0].holds(id(1, 11)), "that is the fork, or before it");
    assert!(!branches[0].holds(id(2, 12)));
    assert_eq!(holding(&vault, "m", id(3, 40)).await.unwrap().unwrap().writer, two);
    assert_eq!(holding(&vault, "m", id(1, 14)).await.unwrap(), None);
}
