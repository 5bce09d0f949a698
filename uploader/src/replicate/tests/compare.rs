//! Syncs that compare with what the vault has: what travels, and that the point is exact all the same.

use std::sync::atomic::{AtomicU8, Ordering::SeqCst};

use object_store::ObjectStoreExt as _;
use object_store::memory::InMemory;
use object_store::path::Path;

use super::*;
use crate::jobs::Job;
use crate::testing::{Ask, Fault, Faulty, Random, memory_vault, vault_in};

const MIB: u64 = 1 << 20;
const KIB: u64 = 1 << 10;

/// A protected machine whose disk is full of noise.
async fn protected(seed: u64, size: u64) -> (Rig, Vault, Handle) {
    let rig = Rig::new(&[("a", size)], seed);
    rig.write("a", 0, &Random::new(seed).bytes(usize::try_from(size).unwrap()));
    let vault = memory_vault().await;
    let handle = start_on(&rig, &vault);
    handle.cut().await.unwrap();
    (rig, vault, handle)
}

/// The newest job.
fn job(rig: &Rig) -> Job {
    rig.settings().jobs.list().unwrap().remove(0)
}

/// Whether the newest point relies on nothing of its parent.
async fn is_whole(vault: &Vault) -> bool {
    listing::headers(vault, "m").await.unwrap().last().unwrap().disks.iter().any(|disk| disk.whole)
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_was_changed_outside_travels() {
    let (rig, vault, handle) = protected(51, 16 * MIB).await;
    handle.stop().await;
    rig.close_proxy();
    rig.write_outside("a", MIB + 4096, &[1; 4096]);
    rig.write_outside("a", 9 * MIB, &[0; 100_000]);
    rig.start_proxy();
    let handle = start_on(&rig, &vault);
    let point = handle.cut().await.unwrap();
    assert!(!is_whole(&vault).await, "it builds on what the vault had");
    let job = job(&rig);
    assert_eq!((job.bytes_done, job.bytes_undecided), (16 * MIB, 0));
    assert_eq!(job.bytes_shipped, 3 * 64 * KIB, "the cells that were touched");
    assert!(job.cause.contains("outside"), "{}", job.cause);
    assert!(point.bytes < 200 * KIB, "{} bytes were shipped", point.bytes);
    every_point_is_exact(&vault, &rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resync_of_what_did_not_change_ships_nothing() {
    let (rig, vault, handle) = protected(52, 8 * MIB).await;
    handle.resync().await.unwrap();
    let point = handle.cut().await.unwrap();
    assert!(point.bytes < 16 * KIB, "{} bytes were shipped", point.bytes);
    assert_eq!(job(&rig).bytes_shipped, 0);
    every_point_is_exact(&vault, &rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_generation_compares_with_the_point_it_forks_from() {
    let (rig, vault, handle) = protected(53, 8 * MIB).await;
    handle.stop().await;
    rig.write("a", 5 * MIB, b"written before the state was lost");
    let elsewhere = tempfile::tempdir().unwrap();
    let mut settings = rig.settings();
    settings.state_dir = elsewhere.path().to_owned();
    let handle = start(settings, rig.clone(), connect(&vault));
    let point = handle.cut().await.unwrap();
    assert_eq!(point.point.generation, 2);
    assert!(!is_whole(&vault).await && point.bytes < 100 * KIB, "{point:?}");
    every_point_is_exact(&vault, &rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_marked_regions_only_differences_travel() {
    let (rig, vault, handle) = protected(54, 8 * MIB).await;
    handle.stop().await;
    rig.mark(true);
    rig.close_proxy();
    rig.write_outside("a", 3 * MIB, &[9; 4096]);
    rig.start_proxy();
    let handle = start_on(&rig, &vault);
    handle.cut().await.unwrap();
    assert_eq!(job(&rig).bytes_shipped, 64 * KIB);
    assert!(!is_whole(&vault).await);
    every_point_is_exact(&vault, &rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_hashes_cannot_decide_travels_and_is_counted() {
    let (rig, vault, handle) = protected(55, 4 * MIB).await;
    rig.write("a", 2 * MIB + 8192, &[3; 4096]);
    handle.cut().await.unwrap();
    handle.resync().await.unwrap();
    handle.cut().await.unwrap();
    let job = job(&rig);
    // The rest of the cell in whose middle a later point wrote.
    assert_eq!((job.bytes_undecided, job.bytes_shipped), (60 * KIB, 60 * KIB));
    every_point_is_exact(&vault, &rig).await;
    // What travelled has hashes of its own.
    handle.resync().await.unwrap();
    handle.cut().await.unwrap();
    assert_eq!(self::job(&rig).bytes_shipped, 0);
    every_point_is_exact(&vault, &rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vault_that_lost_a_delta_gets_everything_again() {
    let rig = Rig::new(&[("a", 4 * MIB)], 56);
    rig.write("a", 0, &Random::new(56).bytes(4 << 20));
    let memory = Arc::new(InMemory::new());
    let vault = vault_in(Arc::clone(&memory) as Arc<dyn object_store::ObjectStore>).await;
    let handle = start_on(&rig, &vault);
    handle.cut().await.unwrap();
    for object in vault.store.list(&crate::keys::delta_folder("m")).await.unwrap() {
        memory.delete(&Path::from(object.key)).await.unwrap();
    }
    handle.resync().await.unwrap();
    let point = handle.cut().await.unwrap();
    assert!(is_whole(&vault).await);
    assert!(job(&rig).bytes_shipped == 4 * MIB);
    let shown = testing::contents(&vault, "m", point.point).await.unwrap();
    assert!(shown["a"] == rig.cuts()[&point.time]["a"], "the new point needs nothing of the old");
}

/// Nothing is disturbed, the next entry is late, entries hang, what was late lands before the next entry.
const CALM: u8 = 0;
const LATE: u8 = 1;
const STUCK: u8 = 2;
const MET: u8 = 3;

async fn disturbed() -> (Vault, Arc<Faulty>, Arc<AtomicU8>) {
    let memory = Arc::new(InMemory::new());
    vault_in(Arc::clone(&memory) as Arc<dyn object_store::ObjectStore>).await;
    let mode = Arc::new(AtomicU8::new(CALM));
    let planned = Arc::clone(&mode);
    let faulty = Faulty::new(memory, move |_, ask, key| match planned.load(SeqCst) {
        // The claim, entry 1, is never disturbed.
        _ if ask != Ask::Put || !key.contains("/line/") || key.ends_with("/00000000000000000001") => {
            Fault::None
        }
        LATE => Fault::Late,
        STUCK => Fault::HangBefore,
        MET => Fault::AfterLate,
        _ => Fault::None,
    });
    let vault = vault_in(Arc::clone(&faulty) as Arc<dyn object_store::ObjectStore>).await;
    (vault, faulty, mode)
}

/// A block is written, its point is on its way, and somebody puts the block back as it was: compared with the head, it is
/// equal, until that point lands. `before_us` says whether it lands before we look.
async fn a_point_lands_under_a_compare(seed: u64, before_us: bool) {
    let rig = Rig::new(&[("a", 4 * MIB)], seed);
    let old = Random::new(seed).bytes(4 << 20);
    rig.write("a", 0, &old);
    let (vault, faulty, mode) = disturbed().await;
    let handle = start_on(&rig, &vault);
    handle.cut().await.unwrap();
    rig.write("a", MIB, &[7; 8192]);
    mode.store(LATE, SeqCst);
    let asking = tokio::spawn({
        let handle = handle.clone();
        async move { handle.cut().await }
    });
    faulty.hung.notified().await;
    handle.stop().await;
    asking.await.unwrap().unwrap_err();
    rig.close_proxy();
    rig.write_outside("a", MIB, &old[1 << 20..][..8192]);
    rig.start_proxy();
    mode.store(STUCK, SeqCst);
    let handle = start_on(&rig, &vault);
    faulty.hung.notified().await;
    assert_eq!(job(&rig).bytes_shipped, 0, "all is as the vault's head has it");
    handle.stop().await;
    mode.store(if before_us { CALM } else { MET }, SeqCst);
    if before_us {
        assert_eq!(faulty.land().await, 1);
    }
    let handle = start_on(&rig, &vault);
    handle.cut().await.unwrap();
    assert_eq!(faulty.land().await, 0, "the point on its way has landed");
    assert!(every_point_is_exact(&vault, &rig).await >= 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_point_that_lands_under_a_compare_begins_it_again() {
    a_point_lands_under_a_compare(57, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_point_that_a_compared_sync_meets_begins_it_again() {
    a_point_lands_under_a_compare(58, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_abandoned_compare_shipped_is_compared_too() {
    let rig = Rig::new(&[("a", 4 * MIB)], 59);
    let old = Random::new(59).bytes(4 << 20);
    rig.write("a", 0, &old);
    let (vault, faulty, mode) = disturbed().await;
    let handle = start_on(&rig, &vault);
    handle.cut().await.unwrap();
    handle.stop().await;
    rig.close_proxy();
    rig.write_outside("a", MIB, &[7; 8192]);
    rig.start_proxy();
    mode.store(STUCK, SeqCst);
    let handle = start_on(&rig, &vault);
    faulty.hung.notified().await;
    assert_eq!(job(&rig).bytes_shipped, 64 * KIB, "the journal has the change");
    handle.stop().await;
    // Back to what the head has: a second attempt that looked at the head alone would leave it out.
    rig.close_proxy();
    rig.write_outside("a", MIB, &old[1 << 20..][..8192]);
    rig.start_proxy();
    mode.store(CALM, SeqCst);
    let handle = start_on(&rig, &vault);
    handle.cut().await.unwrap();
    assert_eq!(every_point_is_exact(&vault, &rig).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_copy_that_begins_again_ships_only_what_it_has_not_shipped() {
    let rig = Rig::new(&[("a", 8 * MIB)], 60);
    rig.write("a", 0, &Random::new(60).bytes(8 << 20));
    let (vault, faulty, mode) = disturbed().await;
    mode.store(STUCK, SeqCst);
    let handle = start_on(&rig, &vault);
    faulty.hung.notified().await;
    handle.stop().await;
    mode.store(CALM, SeqCst);
    // Tracking is lost with it.
    rig.close_proxy();
    rig.write_outside("a", MIB, &[7; 100]);
    rig.start_proxy();
    let handle = start_on(&rig, &vault);
    handle.cut().await.unwrap();
    assert_eq!(job(&rig).bytes_shipped, 64 * KIB);
    assert!(is_whole(&vault).await, "there is no point to build on");
    every_point_is_exact(&vault, &rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_has_grown_is_not_copied_again_and_one_that_was_made_smaller_is_new() {
    let (rig, vault, handle) = protected(61, 4 * MIB).await;
    handle.stop().await;
    rig.close_proxy();
    rig.resize("a", 6 * MIB);
    rig.write_outside("a", 5 * MIB, &[5; 4096]);
    rig.start_proxy();
    let handle = start_on(&rig, &vault);
    let grown = handle.cut().await.unwrap();
    assert!(grown.bytes < 100 * KIB, "{} bytes were shipped", grown.bytes);
    every_point_is_exact(&vault, &rig).await;
    handle.stop().await;
    rig.close_proxy();
    rig.resize("a", 3 * MIB);
    // The proxy refuses it until its folder is removed, which says that it is meant.
    std::fs::remove_dir_all(rig.folder().join("lifeboat-logs/m/a")).unwrap();
    rig.start_proxy();
    let handle = start_on(&rig, &vault);
    handle.cut().await.unwrap();
    assert!(is_whole(&vault).await, "what the larger disk held beyond must never come back");
    handle.stop().await;
    every_point_is_exact(&vault, &rig).await;
}
