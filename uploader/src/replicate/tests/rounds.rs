//! Churn that no log can hold does not keep a copy from ending, nor its point from being exact.

use super::*;
use crate::testing::{Random, memory_vault};

const MIB: u64 = 1 << 20;

/// While a piece of 1 MiB is read, the guest writes to each disk; one last round of all disks just fits into a log.
fn under_churn(disks: &[(&str, u64)], seed: u64) -> Rig {
    let rig = Rig::with_log_limit(disks, seed, 8 * MIB);
    for (disk, size) in disks {
        rig.write(disk, 0, &Random::new(seed).bytes(usize::try_from(*size).unwrap()));
    }
    rig.rewrite((6 << 20) / disks.len(), 1 << 20);
    rig
}

async fn ends(handle: &Handle) -> CutReport {
    tokio::time::timeout(Duration::from_secs(60), handle.cut()).await.expect("the copy ends").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_copy_ends_though_the_guest_writes_faster_than_any_log_holds() {
    let rig = under_churn(&[("a", 16 * MIB)], 81);
    let vault = memory_vault().await;
    let handle = start_on(&rig, &vault);
    ends(&handle).await;
    assert!(rig.bytes_read() <= 24 * MIB, "{} bytes were read of a disk of 16 MiB", rig.bytes_read());
    handle.stop().await;
    assert_eq!(every_point_is_exact(&vault, &rig).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn so_does_one_of_several_disks() {
    let rig = under_churn(&[("a", 6 * MIB), ("b", 10 * MIB), ("c", 2 * MIB)], 82);
    let vault = memory_vault().await;
    let handle = start_on(&rig, &vault);
    ends(&handle).await;
    handle.stop().await;
    assert_eq!(every_point_is_exact(&vault, &rig).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn so_does_a_compare() {
    let rig = under_churn(&[("a", 16 * MIB)], 83);
    let vault = memory_vault().await;
    let handle = start_on(&rig, &vault);
    ends(&handle).await;
    handle.resync().await.unwrap();
    ends(&handle).await;
    handle.stop().await;
    let job = rig.settings().jobs.list().unwrap().remove(0);
    assert!(job.bytes_shipped < 8 * MIB, "{job:?}");
    assert_eq!(every_point_is_exact(&vault, &rig).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_dies_between_rounds_begins_the_copy_again() {
    let rig = under_churn(&[("a", 16 * MIB)], 84);
    let vault = memory_vault().await;
    let handle = start_on(&rig, &vault);
    rig.kill_proxy_after(17);
    wait_for(&handle, "proxy gone", |status| status.health == Health::Warning).await;
    rig.start_proxy();
    ends(&handle).await;
    handle.stop().await;
    every_point_is_exact(&vault, &rig).await;
}
