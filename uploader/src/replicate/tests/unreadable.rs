//! A live disk with places that cannot be read goes on being protected, and its points say where they lack what.

use super::*;
use crate::point::Gap;
use crate::testing::{Random, memory_vault};

const MIB: u64 = 1 << 20;

async fn gaps(vault: &Vault) -> Vec<Gap> {
    listing::points(vault, "m").await.unwrap().last().unwrap().disks[0].unreadable.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_listed_in_the_point_and_the_rest_is_exact() {
    let rig = Rig::new(&[("a", 4 * MIB)], 91);
    rig.write("a", 0, &Random::new(91).bytes(4 << 20));
    rig.spoil("a", &[(MIB + 5000, 10), (3 * MIB, 8192)]);
    let vault = memory_vault().await;
    let handle = start_on(&rig, &vault);
    let point = handle.cut().await.unwrap();
    let expected = [Gap { offset: MIB + 4096, len: 4096 }, Gap { offset: 3 * MIB, len: 8192 }];
    assert_eq!(gaps(&vault).await, expected);
    let shown = testing::contents(&vault, "m", point.point).await.unwrap();
    let held = &rig.cuts()[&point.time]["a"];
    for (at, (shown, held)) in shown["a"].iter().zip(held).enumerate() {
        let lacking = expected.iter().any(|gap| (gap.offset..gap.offset + gap.len).contains(&(at as u64)));
        assert_eq!(*shown, if lacking { 0 } else { *held }, "byte {at}");
    }
    let status = wait_for(&handle, "warned", |status| status.health == Health::Warning).await;
    assert!(status.cause.contains("12288 bytes of disk a"), "{}", status.cause);
    assert!(status.remedy.contains("lifeboat resync m"), "{}", status.remedy);
    // Points without a copy of the disk lack the same.
    rig.write("a", 0, b"news");
    handle.cut().await.unwrap();
    assert_eq!(gaps(&vault).await, expected);
    rig.spoil("a", &[]);
    handle.resync().await.unwrap();
    let mended = handle.cut().await.unwrap();
    assert_eq!(gaps(&vault).await, []);
    assert_eq!(handle.status().health, Health::Normal);
    let shown = testing::contents(&vault, "m", mended.point).await.unwrap();
    assert!(shown["a"] == rig.cuts()[&mended.time]["a"], "all of it was read again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compare_leaves_what_the_vault_has_of_a_place_that_cannot_be_read() {
    let rig = Rig::new(&[("a", 2 * MIB)], 92);
    rig.write("a", 0, &Random::new(92).bytes(2 << 20));
    let vault = memory_vault().await;
    let handle = start_on(&rig, &vault);
    handle.cut().await.unwrap();
    rig.spoil("a", &[(MIB, 4096)]);
    handle.resync().await.unwrap();
    handle.cut().await.unwrap();
    assert_eq!(gaps(&vault).await, [Gap { offset: MIB, len: 4096 }]);
    assert_eq!(every_point_is_exact(&vault, &rig).await, 2);
}
