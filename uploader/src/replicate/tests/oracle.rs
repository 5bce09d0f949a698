//! The oracle: whatever happens on the way, every committed point is exactly what the disks held at its cut.

use object_store::memory::InMemory;

use super::*;
use crate::testing::{Fault, Faulty, Random, vault_in};

const MIB: u64 = 1 << 20;

/// Seeds to run; the environment's long form is for soaking.
fn seeds() -> std::ops::Range<u64> {
    let count = std::env::var("LIFEBOAT_SEEDS").ok().and_then(|count| count.parse().ok());
    0..count.unwrap_or(6)
}

#[tokio::test(flavor = "multi_thread")]
async fn points_cut_under_load_are_exact() {
    for seed in seeds() {
        println!("seed {seed}");
        let rig = Rig::new(&[("a", 3 * MIB + 512), ("b", MIB)], seed);
        rig.churn(20);
        rig.write_between(true);
        let vault = testing::by_seed(testing::memory_vault().await, seed);
        let mut settings = rig.settings();
        // Many intermediate cuts in the sync, and points in between ours.
        settings.interval = Duration::from_millis(1 + seed % 5);
        let handle = start(settings, rig.clone(), connect(&vault));
        for _ in 0..6 {
            handle.cut().await.unwrap();
            rig.churn(15);
        }
        handle.stop().await;
        rig.write_between(false);
        assert!(every_point_is_exact(&vault, &rig).await >= 6, "seed {seed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_uploader_killed_at_any_request_goes_on() {
    for seed in seeds() {
        println!("seed {seed}");
        let rig = Rig::new(&[("a", MIB), ("b", MIB / 4)], seed);
        rig.churn(20);
        rig.write_between(true);
        let memory = Arc::new(InMemory::new());
        let clean = vault_in(Arc::clone(&memory) as Arc<dyn object_store::ObjectStore>).await;
        let clean = testing::by_seed(clean, seed);
        let mut random = Random::new(seed + 1000);
        for life in 0..15 {
            // Each life ends at one request, which may or may not have happened.
            let last = random.below(8);
            let fault = if random.below(2) == 0 { Fault::HangBefore } else { Fault::HangAfter };
            let faulty = Faulty::new(
                Arc::clone(&memory),
                move |number, _, _| {
                    if number > last { fault } else { Fault::None }
                },
            );
            let store = crate::store::Store::new(faulty.clone(), "memory://test");
            let vault = Vault { store, ..clean.clone() };
            let mut settings = rig.settings();
            settings.interval = Duration::from_millis(1 + random.below(4));
            let handle = start(settings, rig.clone(), connect(&vault));
            tokio::time::timeout(Duration::from_secs(20), faulty.hung.notified())
                .await
                .expect("a last request");
            handle.stop().await;
            if life % 7 == 6 {
                rig.kill_proxy();
                rig.start_proxy();
            }
            rig.churn(3);
        }
        let handle = start_on(&rig, &clean);
        let last = handle.cut().await.unwrap();
        assert_eq!(last.point.generation, 1, "seed {seed}: the line stayed ours");
        handle.stop().await;
        every_point_is_exact(&clean, &rig).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_overflows_again_and_again_costs_no_exactness() {
    for seed in seeds() {
        println!("seed {seed}");
        let rig = Rig::with_log_limit(&[("a", 2 * MIB), ("b", MIB)], seed, 1 << 20);
        rig.churn(20);
        let vault = testing::by_seed(testing::memory_vault().await, seed);
        let mut settings = rig.settings();
        settings.interval = Duration::from_millis(2);
        let handle = start(settings, rig.clone(), connect(&vault));
        let mut random = Random::new(seed);
        for _ in 0..8 {
            rig.write_between(random.below(2) == 0);
            rig.churn(random.size(60));
            tokio::time::sleep(Duration::from_millis(random.below(5))).await;
        }
        rig.write_between(false);
        rig.set_log_limit(1 << 30);
        handle.cut().await.unwrap();
        handle.stop().await;
        every_point_is_exact(&vault, &rig).await;
    }
}

/// What may happen between two lives of the uploader.
fn mishap(rig: &Rig, random: &mut Random) {
    rig.mark(random.below(4) > 0);
    match random.below(6) {
        0 | 5 => rig.churn_outside(3),
        // What a log that is lost in mid-sync leaves is copied in rounds.
        4 => rig.set_hot(random.below(2) == 0),
        1 => {
            rig.kill_proxy();
            rig.start_proxy();
        }
        2 => rig.overflow("a", random.below(2) == 0),
        3 => {
            // The local state is lost: a new generation.
            for path in [state::State::path(rig.folder(), "m"), journal::Journal::path(rig.folder(), "m")] {
                let _ = std::fs::remove_file(path);
            }
        }
        _ => rig.churn(5),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn syncs_of_every_scope_survive_everything() {
    let mut scopes = std::collections::BTreeSet::new();
    for seed in seeds() {
        println!("seed {seed}");
        let rig = Rig::with_log_limit(&[("a", MIB), ("b", MIB / 4)], seed, 4 * MIB);
        rig.churn(20);
        rig.write_between(true);
        let memory = Arc::new(InMemory::new());
        let clean = vault_in(Arc::clone(&memory) as Arc<dyn object_store::ObjectStore>).await;
        let clean = testing::by_seed(clean, seed);
        let mut random = Random::new(seed + 2000);
        for _ in 0..6 {
            // Mostly from a point on, which is what makes a sync less than whole.
            if random.below(3) > 0 {
                let handle = start_on(&rig, &clean);
                handle.cut().await.unwrap();
                handle.stop().await;
            }
            mishap(&rig, &mut random);
            killed_life(&rig, &memory, &clean, &mut random).await;
        }
        start_on(&rig, &clean).cut().await.unwrap();
        every_point_is_exact(&clean, &rig).await;
        scopes.extend(rig.scopes());
    }
    println!("{scopes:?}");
    for scope in ["Whole", "Marked", "Dirty"] {
        assert!(scopes.contains(scope), "{scope} syncs were tried: {scopes:?}");
    }
}

/// A life of the uploader that ends at some request, which may or may not have happened; the operator may say something.
async fn killed_life(rig: &Rig, memory: &Arc<InMemory>, clean: &Vault, random: &mut Random) {
    let last = random.below(20);
    let fault = if random.below(2) == 0 { Fault::HangBefore } else { Fault::HangAfter };
    let plan = move |number, _, _: &str| if number > last { fault } else { Fault::None };
    let faulty = Faulty::new(Arc::clone(memory), plan);
    let vault = Vault { store: crate::store::Store::new(faulty.clone(), "memory://test"), ..clean.clone() };
    let mut settings = rig.settings();
    settings.interval = Duration::from_millis(1 + random.below(4));
    let handle = start(settings, rig.clone(), connect(&vault));
    match random.below(8) {
        0 => handle.resync().await.unwrap(),
        1 => {
            // Cancelled, if a copy runs; and wanted again.
            if let Some(job) = rig.settings().jobs.list().unwrap().first() {
                let _ = handle.cancel(job.id).await;
            }
            handle.resume().await.unwrap();
        }
        _ => {}
    }
    tokio::time::timeout(Duration::from_secs(20), faulty.hung.notified()).await.expect("a last request");
    handle.stop().await;
}
