//! A point whose put outlives the step that made it, and lands while a sync is under way.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering::SeqCst};

use object_store::memory::InMemory;

use super::*;
use crate::testing::{Ask, Fault, Faulty, Random, vault_in};

const MIB: u64 = 1 << 20;

/// Nothing is disturbed.
const CALM: u8 = 0;
/// The next entry is late.
const LATE: u8 = 1;
/// Entries hang: the loop stands where all but the closing point is done.
const STUCK: u8 = 2;
/// What was late lands just before the next entry is put.
const MET: u8 = 3;

/// Protects disks `a` and `b`, leaves a point on its way, lets `b` overflow, and syncs it until the closing point hangs.
/// Writes to `a` were released meanwhile.
async fn stuck_in_a_sync(seed: u64) -> (Rig, Vault, Arc<Faulty>, Arc<AtomicU8>, Handle) {
    let rig = Rig::new(&[("a", MIB)], seed);
    rig.add_disk("b", MIB, MIB);
    rig.start_proxy();
    rig.churn(4);
    let memory = Arc::new(InMemory::new());
    vault_in(Arc::clone(&memory) as Arc<dyn object_store::ObjectStore>).await;
    let (mode, deltas) = (Arc::new(AtomicU8::new(CALM)), Arc::new(AtomicUsize::new(0)));
    let (planned, counted) = (Arc::clone(&mode), Arc::clone(&deltas));
    let faulty = Faulty::new(memory, move |_, ask, key| {
        if ask == Ask::Put && key.contains("/deltas/") {
            counted.fetch_add(1, SeqCst);
        }
        match planned.load(SeqCst) {
            _ if ask != Ask::Put || !key.contains("/line/") => Fault::None,
            LATE => Fault::Late,
            STUCK => Fault::HangBefore,
            MET => Fault::AfterLate,
            _ => Fault::None,
        }
    });
    let vault = vault_in(Arc::clone(&faulty) as Arc<dyn object_store::ObjectStore>).await;
    let first = start_on(&rig, &vault);
    first.cut().await.unwrap();
    first.stop().await;

    // An interval this short makes an intermediate cut come before the first stretch of a copy.
    let mut settings = rig.settings();
    settings.interval = Duration::from_millis(1);
    mode.store(LATE, SeqCst);
    let handle = start(settings, rig.clone(), connect(&vault));
    faulty.hung.notified().await;
    handle.pause().await.unwrap();

    mode.store(STUCK, SeqCst);
    let mut random = Random::new(seed);
    rig.write("a", 1000, &random.bytes(50_000));
    while rig.machine().await.unwrap().disks[1].logged {
        rig.write("b", 5000, &random.bytes(100_000));
    }
    let before = deltas.load(SeqCst);
    handle.resume().await.unwrap();
    faulty.hung.notified().await;
    assert!(deltas.load(SeqCst) >= before + 2, "a cut and a copy were shipped");
    (rig, vault, faulty, mode, handle)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_goes_on_when_an_earlier_point_lands() {
    let (rig, vault, faulty, mode, handle) = stuck_in_a_sync(31).await;
    handle.stop().await;
    mode.store(CALM, SeqCst);
    assert_eq!(faulty.land().await, 1);
    let read = rig.bytes_read();
    let handle = start_on(&rig, &vault);
    handle.cut().await.unwrap();
    assert_eq!(rig.bytes_read(), read, "what the journal has is not copied again");
    handle.stop().await;
    assert_eq!(every_point_is_exact(&vault, &rig).await, 3);
    assert!(!journal::Journal::path(rig.folder(), "m").exists(), "the next point ended the sync");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closing_point_that_meets_an_earlier_one_comes_after_it() {
    let (rig, vault, faulty, mode, handle) = stuck_in_a_sync(32).await;
    let before = listing::points(&vault, "m").await.unwrap().len();
    handle.pause().await.unwrap();
    mode.store(MET, SeqCst);
    handle.resume().await.unwrap();
    // The probe finds nothing; the closing point finds its number taken.
    handle.cut().await.unwrap();
    handle.stop().await;
    assert_eq!(faulty.land().await, 0, "the earlier point has landed");
    assert!(every_point_is_exact(&vault, &rig).await >= before + 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_earlier_point_that_lands_does_not_undo_a_resync() {
    let (rig, vault, faulty, mode, handle) = stuck_in_a_sync(33).await;
    handle.resync().await.unwrap();
    handle.stop().await;
    mode.store(CALM, SeqCst);
    assert_eq!(faulty.land().await, 1);
    // What is read, not what an attempt before the landing read, has to be everything.
    let handle = start_on(&rig, &vault);
    handle.cut().await.unwrap();
    handle.stop().await;
    assert!(every_point_is_exact(&vault, &rig).await >= 3);
}
