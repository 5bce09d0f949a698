use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use object_store::memory::InMemory;

use super::*;
use crate::testing::{Ask, Fault, Faulty, vault_in};

const MIB: u64 = 1 << 20;

/// A vault whose line, and only that, is disturbed.
async fn disturbed(plan: impl Fn(Ask, &str) -> Fault + Send + std::marker::Sync + 'static) -> Vault {
    let memory = Arc::new(InMemory::new());
    vault_in(Arc::clone(&memory) as Arc<dyn object_store::ObjectStore>).await;
    vault_in(Faulty::new(
        memory,
        move |_, ask, key| {
            if key.starts_with("machines/") { plan(ask, key) } else { Fault::None }
        },
    ))
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_fails_for_a_while_only_costs_time() {
    let rig = Rig::new(&[("a", MIB)], 11);
    rig.churn(10);
    let failures = Arc::new(AtomicU64::new(7));
    let left = Arc::clone(&failures);
    let vault = disturbed(move |_, _| match left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)) {
        Ok(_) => Fault::Before,
        Err(_) => Fault::None,
    })
    .await;
    let handle = start_on(&rig, &vault);
    wait_for(&handle, "warned", |status| status.health == Health::Warning && status.next_retry.is_some())
        .await;
    wait_for(&handle, "well again", |status| status.health == Health::Normal && status.points > 0).await;
    assert_eq!(failures.load(SeqCst), 0);
    every_point_is_exact(&vault, &rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_whose_reply_was_lost_is_adopted() {
    let rig = Rig::new(&[("a", MIB)], 12);
    rig.churn(10);
    let lose = Arc::new(AtomicBool::new(false));
    let losing = Arc::clone(&lose);
    let vault = disturbed(move |ask, key| {
        let entry = ask == Ask::Put && key.contains("/line/");
        if entry && losing.swap(false, SeqCst) { Fault::After } else { Fault::None }
    })
    .await;
    let handle = start_on(&rig, &vault);
    let first = handle.cut().await.unwrap();
    rig.churn(5);
    lose.store(true, SeqCst);
    let second = handle.cut().await.unwrap();
    assert_eq!(second.point.number, first.point.number + 2, "the lost one counts, and ours comes after it");
    assert_eq!(every_point_is_exact(&vault, &rig).await as u64, second.point.number - 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_retry_can_mend_stops_and_resume_goes_on() {
    let rig = Rig::new(&[("a", MIB)], 13);
    let deny = Arc::new(AtomicBool::new(true));
    let denying = Arc::clone(&deny);
    let vault = disturbed(move |_, _| if denying.load(SeqCst) { Fault::Denied } else { Fault::None }).await;
    let handle = start_on(&rig, &vault);
    let error = handle.cut().await.unwrap_err();
    assert_eq!(error.kind, Kind::Denied);
    let status = wait_for(&handle, "stopped", |status| status.phase == Phase::Stopped).await;
    assert_eq!(status.health, Health::Critical);
    assert!(!status.cause.is_empty() && status.remedy.contains("credentials"), "{status:?}");
    assert_eq!(handle.cut().await.unwrap_err().kind, Kind::Denied, "it stays stopped");
    deny.store(false, SeqCst);
    handle.resume().await.unwrap();
    handle.cut().await.unwrap();
    assert_eq!(handle.status().health, Health::Normal);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_segment_is_never_shipped() {
    let rig = Rig::new(&[("a", MIB)], 14);
    let vault = testing::memory_vault().await;
    let handle = start_on(&rig, &vault);
    handle.cut().await.unwrap();
    rig.write("a", 0, &[7; 70_000]);
    flip_in_segments(rig.folder());
    let error = handle.cut().await.unwrap_err();
    assert_eq!(error.kind, Kind::Corrupt, "{error}");
    let before = listing::points(&vault, "m").await.unwrap().len();
    handle.resync().await.unwrap();
    wait_for(&handle, "stopped again or done", |status| status.phase != Phase::Starting).await;
    assert!(every_point_is_exact(&vault, &rig).await >= before);
}

/// Drops the log at an unlucky moment of a cut, damaging what is left of it, and expects nothing worse than a sync.
async fn a_dropped_log_is_no_damage(disk: &'static str, seed: u64, drop_log: impl FnOnce(&Rig)) {
    let rig = Rig::with_log_limit(&[(disk, MIB)], seed, MIB);
    rig.churn(4);
    let vault = testing::memory_vault().await;
    let handle = start_on(&rig, &vault);
    handle.cut().await.unwrap();
    rig.write(disk, 0, &[7; 70_000]);
    let tracking = rig.machine().await.unwrap().disks[0].tracking;
    drop_log(&rig);
    handle.cut().await.unwrap();
    assert_ne!(rig.machine().await.unwrap().disks[0].tracking, tracking, "the log was dropped");
    assert_eq!(handle.status().health, Health::Normal);
    handle.stop().await;
    assert_eq!(every_point_is_exact(&vault, &rig).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn segments_that_go_before_they_are_read_cost_a_sync() {
    a_dropped_log_is_no_damage("a", 15, |rig| rig.overflow("a", true)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn segments_that_go_between_the_two_reads_cost_a_sync() {
    a_dropped_log_is_no_damage("between", 16, |rig| {
        let rig = rig.clone();
        let hook = Box::new(move || rig.overflow("between", false));
        testing::BETWEEN_READS.lock().unwrap().insert("between".to_owned(), hook);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn segments_that_are_damaged_as_they_go_cost_a_sync() {
    a_dropped_log_is_no_damage("damaged", 17, |rig| {
        // The damage is found by the cut, and by then the log has been dropped: it may have been a segment put to a new use.
        flip_in_segments(rig.folder());
        rig.overflow("damaged", true);
    })
    .await;
}

/// Flips a byte of data in every segment that has some.
fn flip_in_segments(folder: &std::path::Path) {
    let mut flipped = 0;
    for entry in walk(folder) {
        let mut bytes = std::fs::read(&entry).unwrap();
        if let Some(at) = bytes.windows(1000).position(|window| window.iter().all(|byte| *byte == 7)) {
            bytes[at + 500] ^= 1;
            std::fs::write(&entry, bytes).unwrap();
            flipped += 1;
        }
    }
    assert!(flipped > 0, "no segment held the data");
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(walk(&path));
        } else if path.extension().is_none_or(|extension| extension != "img") {
            files.push(path);
        }
    }
    files
}
