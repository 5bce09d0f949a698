use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use object_store::memory::InMemory;

use super::*;
use crate::elapsed::{Elapsed, Moment};
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

/// A clock that jumps to whatever is waited for, at most `naps` times; then it stands.
fn jumping(naps: u64) -> (Elapsed, Arc<std::sync::Mutex<Duration>>) {
    let now: Arc<std::sync::Mutex<Duration>> = Arc::default();
    let (read, moved, left) = (Arc::clone(&now), Arc::clone(&now), Arc::new(AtomicU64::new(naps)));
    let clock =
        Elapsed::new(move || Moment::new(*read.lock().unwrap(), Duration::ZERO)).sleeping(move |gap| {
            let (moved, left) = (Arc::clone(&moved), Arc::clone(&left));
            async move {
                tokio::task::yield_now().await;
                if !gap.is_zero() && left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_err() {
                    std::future::pending::<()>().await;
                }
                *moved.lock().unwrap() += gap;
            }
        });
    (clock, now)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vault_out_of_reach_is_tried_after_1_2_4_8_10_30_and_30_minutes_and_at_once_when_asked() {
    let rig = Rig::new(&[("a", MIB)], 18);
    let (clock, now) = jumping(7);
    let mut settings = rig.settings();
    (settings.retry_gaps, settings.elapsed) = (default_gaps(), clock);
    let tries: Arc<std::sync::Mutex<Vec<u64>>> = Arc::default();
    let (tried, at) = (Arc::clone(&tries), Arc::clone(&now));
    let out_of_reach: Connect = Box::new(move || {
        tried.lock().unwrap().push(at.lock().unwrap().as_secs());
        Box::pin(async { Err(Error::new(Kind::Unavailable, "vault", "out of reach").remedy("wait")) })
    });
    let handle = start(settings, rig.clone(), out_of_reach);
    wait_for(&handle, "waiting for the eighth time", |_| tries.lock().unwrap().len() == 8).await;
    let gaps: Vec<u64> = tries.lock().unwrap().windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(gaps, [1, 2, 4, 8, 10, 30, 30].map(|minutes| minutes * 60));
    let status = wait_for(&handle, "waiting", |status| status.next_retry.is_some()).await;
    assert_eq!((status.health, status.remedy.as_str()), (Health::Warning, "wait"));
    let before = tries.lock().unwrap().len();
    handle.resume().await.unwrap();
    wait_for(&handle, "tried again", |_| tries.lock().unwrap().len() == before + 1).await;
    let tries = tries.lock().unwrap();
    assert_eq!(tries[before], tries[before - 1], "no time has passed");
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_are_renewed_in_mid_upload_cost_nothing() {
    let rig = Rig::new(&[("a", 8 * MIB)], 19);
    rig.write("a", 0, &testing::Random::new(19).bytes(6 << 20));
    let memory = Arc::new(InMemory::new());
    // What was opened with the first credentials serves a few requests; what is opened anew serves all.
    let opened = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&opened);
    let expiring: Connect = Box::new(move || {
        let (memory, first) = (Arc::clone(&memory), counted.fetch_add(1, SeqCst) == 0);
        Box::pin(async move {
            let expires = move |number, ask, _: &str| {
                if first && ask == Ask::Put && number > 2 { Fault::Denied } else { Fault::None }
            };
            Ok(vault_in(Faulty::new(memory, expires)).await)
        })
    });
    let mut settings = rig.settings();
    // Nothing but a reload at once can be what goes on.
    settings.retry_gaps = vec![Duration::from_secs(3600)];
    let handle = start(settings, rig.clone(), expiring);
    handle.cut().await.unwrap();
    assert_eq!(opened.load(SeqCst), 2, "it was opened again, once");
    assert_eq!(handle.status().health, Health::Normal);
}
