//! What an operator says about copies: when they may begin, how fast they read, and that one is not wanted.

use std::sync::Mutex;
use std::time::Instant;

use jiff::ZonedDateTime;
use object_store::memory::InMemory;

use super::*;
use crate::jobs::JobState;
use crate::testing::{Ask, Fault, Faulty, Random, memory_vault, vault_in};

const MIB: u64 = 1 << 20;

/// A clock that stands until it is set.
#[derive(Clone)]
struct Hands(Arc<Mutex<ZonedDateTime>>);

impl Hands {
    fn at(time: &str) -> Self {
        let hands = Self(Arc::new(Mutex::new(ZonedDateTime::now())));
        hands.set(time);
        hands
    }

    fn set(&self, time: &str) {
        *self.0.lock().unwrap() = format!("2026-03-02T{time}:00+01:00[Europe/Stockholm]").parse().unwrap();
    }

    /// Settings under this clock, with the usual window.
    fn settings(&self, rig: &Rig) -> Settings {
        let (hands, time) = (self.clone(), |text: &str| text.parse().unwrap());
        let mut settings = rig.settings();
        settings.interval = Duration::from_millis(20);
        settings.resync_window = ResyncWindow::Daily { from: time("18:30"), to: time("06:00") };
        settings.clock = Clock::new(move || hands.0.lock().unwrap().clone());
        settings
    }
}

/// A machine of two disks, protected at noon, one of which was then changed outside; what was read by then.
async fn changed_at_noon(seed: u64) -> (Rig, Vault, Hands, Handle, u64) {
    let rig = Rig::new(&[("a", MIB), ("b", MIB)], seed);
    ["a", "b"].iter().for_each(|disk| rig.write(disk, 0, &Random::new(seed).bytes(1 << 20)));
    let (vault, hands) = (memory_vault().await, Hands::at("12:00"));
    let handle = start(hands.settings(&rig), rig.clone(), connect(&vault));
    handle.cut().await.unwrap();
    handle.stop().await;
    rig.close_proxy();
    rig.write_outside("a", 1000, b"outside");
    rig.start_proxy();
    let read = rig.bytes_read();
    let handle = start(hands.settings(&rig), rig.clone(), connect(&vault));
    wait_for(&handle, "waiting", |status| status.phase == Phase::Waiting).await;
    (rig, vault, hands, handle, read)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_compare_waits_for_its_window_and_says_so() {
    let (rig, vault, hands, handle, read) = changed_at_noon(71).await;
    let status = handle.status();
    assert_eq!(status.health, Health::Critical);
    assert!(
        status.cause.contains("2026-03-02 18:30") && status.cause.contains("outside"),
        "{}",
        status.cause
    );
    assert!(status.remedy.contains("resync m --now"), "{}", status.remedy);
    assert!(status.sync_cause.contains("disk a"), "{}", status.sync_cause);
    assert_eq!(status.disks[0].state, DiskState::Resync);
    let refused = handle.cut().await.unwrap_err();
    assert_eq!(refused.kind, Kind::NotReady);
    // Nothing has begun: no log that nobody ships.
    assert!(!rig.machine().await.unwrap().disks[0].logged);
    hands.set("18:29");
    assert_eq!(handle.cut().await.unwrap_err().kind, Kind::NotReady);
    assert_eq!(rig.bytes_read(), read);
    hands.set("18:30");
    wait_for(&handle, "protected", |status| status.health == Health::Normal && status.points > 0).await;
    handle.stop().await;
    assert!(rig.bytes_read() > read);
    assert!(every_point_is_exact(&vault, &rig).await >= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_want_to_wait_says_so() {
    let (rig, vault, _, handle, _) = changed_at_noon(72).await;
    let before = rig.bytes_read();
    handle.resync_now().await.unwrap();
    wait_for(&handle, "protected", |status| status.health == Health::Normal && status.points > 0).await;
    assert_eq!(rig.bytes_read() - before, MIB, "only the disk that was waiting");
    handle.resync().await.unwrap();
    handle.cut().await.unwrap();
    assert_eq!(rig.bytes_read() - before, 3 * MIB, "a resync that is asked for begins at noon, too");
    handle.stop().await;
    // Neither wish outlives its point.
    rig.churn_outside(2);
    let handle = start(Hands::at("07:00").settings(&rig), rig.clone(), connect(&vault));
    wait_for(&handle, "waiting", |status| status.phase == Phase::Waiting).await;
    handle.stop().await;
    every_point_is_exact(&vault, &rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn first_copies_and_catch_ups_begin_at_once() {
    let rig = Rig::with_log_limit(&[("a", 4 * MIB)], 73, 2 << 20);
    rig.churn(10);
    let vault = memory_vault().await;
    let handle = start(Hands::at("12:00").settings(&rig), rig.clone(), connect(&vault));
    handle.cut().await.unwrap();
    rig.overflow("a", false);
    handle.cut().await.unwrap();
    // A disk that the vault has nothing of.
    rig.add_disk("c", MIB, 1 << 30);
    rig.close_proxy();
    rig.start_proxy();
    rig.churn(5);
    handle.resume().await.unwrap();
    handle.cut().await.unwrap();
    handle.stop().await;
    assert!(every_point_is_exact(&vault, &rig).await >= 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_resync_leaves_all_points_and_begins_again_when_asked() {
    let rig = Rig::new(&[("a", MIB)], 74);
    rig.churn(10);
    let memory = Arc::new(InMemory::new());
    let clean = vault_in(Arc::clone(&memory) as Arc<dyn object_store::ObjectStore>).await;
    let first = start_on(&rig, &clean);
    first.cut().await.unwrap();
    first.stop().await;
    let stuck = Faulty::new(memory, |_, ask, key| {
        if ask == Ask::Put && key.contains("/line/") { Fault::HangBefore } else { Fault::None }
    });
    let vault = vault_in(Arc::clone(&stuck) as Arc<dyn object_store::ObjectStore>).await;
    let handle = start_on(&rig, &vault);
    handle.resync().await.unwrap();
    stuck.hung.notified().await;
    let jobs = rig.settings().jobs;
    let running = jobs.list().unwrap().remove(0);
    assert_eq!(running.state, JobState::Running);
    let unknown = handle.cancel(Uuid::nil()).await.unwrap_err();
    assert_eq!(unknown.kind, Kind::NotFound);
    handle.cancel(running.id).await.unwrap();
    assert_eq!(jobs.get(running.id).unwrap().unwrap().state, JobState::Cancelled);
    assert!(!journal::Journal::path(rig.folder(), "m").exists());
    handle.stop().await;
    // It is known after a restart, too.
    let handle = start_on(&rig, &clean);
    let status = wait_for(&handle, "paused", |status| status.phase == Phase::Paused).await;
    assert!(status.health == Health::Warning && status.cause.contains("cancelled"), "{status:?}");
    assert!(status.remedy.contains("lifeboat resync m"), "{status:?}");
    assert_eq!(handle.cut().await.unwrap_err().kind, Kind::NotReady);
    assert_eq!(every_point_is_exact(&clean, &rig).await, 1);
    rig.churn(3);
    handle.resync().await.unwrap();
    handle.cut().await.unwrap();
    handle.stop().await;
    assert_eq!(every_point_is_exact(&clean, &rig).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_reads_no_faster_than_its_limit() {
    let rig = Rig::new(&[("a", 6 * MIB)], 75);
    rig.write("a", 0, &Random::new(75).bytes(6 << 20));
    let vault = memory_vault().await;
    let mut settings = rig.settings();
    settings.copy_limit = Some(8 * MIB);
    let start_of_copy = Instant::now();
    let handle = start(settings, rig.clone(), connect(&vault));
    handle.cut().await.unwrap();
    // The last piece is overdrawn, and a tenth of a second was saved up.
    assert!(start_of_copy.elapsed() >= Duration::from_millis(500), "{:?}", start_of_copy.elapsed());
    every_point_is_exact(&vault, &rig).await;
}
