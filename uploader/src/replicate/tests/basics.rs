use bytes::Bytes;
use nbd_proxy::device::Extent;
use nbd_proxy::tracking::{self, Cut, MachineInfo};
use uuid::Uuid;

use super::*;
use crate::jobs::{JobKind, JobState};
use crate::testing::memory_vault;

const MIB: u64 = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_copied_and_then_follows() {
    let rig = Rig::new(&[("a", 4 * MIB), ("b", MIB)], 1);
    rig.churn(30);
    let vault = memory_vault().await;
    let handle = start_on(&rig, &vault);
    let first = handle.cut().await.unwrap();
    assert_eq!(first.point.to_string(), "g1-2", "the claim is entry 1");
    rig.churn(10);
    let second = handle.cut().await.unwrap();
    assert!(second.time > first.time);
    assert_eq!((second.lists, second.puts), (0, 1), "a small change stands inside its point");
    let idle = handle.cut().await.unwrap();
    assert_eq!((idle.lists, idle.gets, idle.puts), (0, 0, 1));
    assert!(idle.bytes < 4096, "an idle cycle ships {} bytes", idle.bytes);
    assert!(every_point_is_exact(&vault, &rig).await >= 3);
    let status = handle.status();
    assert_eq!(status.health, Health::Normal);
    assert!(status.disks.iter().all(|disk| disk.state == DiskState::Protected), "{status:?}");
    assert_eq!(status.head, Some(idle.point));
    handle.stop().await;
    let jobs = rig.settings().jobs.list().unwrap();
    assert_eq!(jobs.len(), 1);
    assert_eq!((jobs[0].kind, jobs[0].state), (JobKind::InitialReplication, JobState::Done));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_goes_on_without_a_copy() {
    let rig = Rig::new(&[("a", 2 * MIB)], 2);
    rig.churn(20);
    let vault = memory_vault().await;
    let handle = start_on(&rig, &vault);
    handle.cut().await.unwrap();
    handle.stop().await;
    let read = rig.bytes_read();
    rig.churn(5);
    let handle = start_on(&rig, &vault);
    let point = handle.cut().await.unwrap();
    assert_eq!(point.point.generation, 1);
    assert_eq!(rig.bytes_read(), read, "nothing was copied again");
    assert!(every_point_is_exact(&vault, &rig).await >= 2);
    // The proxy dies too: its records come again.
    rig.churn(5);
    rig.kill_proxy();
    rig.start_proxy();
    rig.churn(5);
    handle.cut().await.unwrap();
    assert_eq!(rig.bytes_read(), read, "nothing was copied again");
    every_point_is_exact(&vault, &rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_local_state_begins_a_generation_and_fences_the_old_writer() {
    let rig = Rig::new(&[("a", MIB)], 3);
    rig.churn(10);
    let vault = memory_vault().await;
    let old = start_on(&rig, &vault);
    let first = old.cut().await.unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let mut settings = rig.settings();
    settings.state_dir = elsewhere.path().to_owned();
    let new = start(settings, rig.clone(), connect(&vault));
    let forked = new.cut().await.unwrap();
    assert_eq!(forked.point.generation, 2);
    let branched = old.cut().await.unwrap().point;
    assert_eq!(branched.generation, 1);
    let status = old.status();
    assert_eq!((status.health, status.disks[0].state), (Health::Critical, DiskState::Fenced));
    assert!(status.cause.contains("generation 2"), "{}", status.cause);
    let headers = listing::headers(&vault, "m").await.unwrap();
    let claim = headers.iter().find(|header| !header.is_point() && header.generation == 2).unwrap();
    assert_eq!(claim.parent.map(|fork| fork.generation), Some(1));
    assert!(claim.parent >= Some(first.point));
    assert_eq!(listing::resolve(&vault, "m", &listing::PointName::Latest).await.unwrap().generation, 2);
    every_point_is_exact(&vault, &rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_vault_gets_everything() {
    let rig = Rig::new(&[("a", MIB)], 4);
    rig.churn(10);
    let first = memory_vault().await;
    let handle = start_on(&rig, &first);
    handle.cut().await.unwrap();
    handle.stop().await;
    let second = memory_vault().await;
    let handle = start_on(&rig, &second);
    rig.churn(3);
    assert_eq!(handle.cut().await.unwrap().point.generation, 1);
    assert!(every_point_is_exact(&second, &rig).await >= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_log_costs_the_blocks_written_without_it() {
    let rig = Rig::with_log_limit(&[("a", 8 * MIB), ("b", MIB)], 5, 2 << 20);
    rig.churn(20);
    let vault = memory_vault().await;
    let handle = start_on(&rig, &vault);
    handle.cut().await.unwrap();
    let read = rig.bytes_read();
    let mut random = testing::Random::new(5);
    for _ in 0..4 {
        rig.write("a", MIB, &random.bytes(1 << 20));
    }
    rig.churn(3);
    handle.cut().await.unwrap();
    let copied = rig.bytes_read() - read;
    assert!(copied > 0 && copied < 6 * MIB, "{copied} bytes were copied again");
    rig.churn(3);
    handle.cut().await.unwrap();
    assert!(every_point_is_exact(&vault, &rig).await >= 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_come_and_go() {
    let rig = Rig::new(&[("a", MIB), ("b", MIB)], 6);
    rig.churn(10);
    let vault = memory_vault().await;
    let handle = start_on(&rig, &vault);
    handle.cut().await.unwrap();
    rig.kill_proxy();
    rig.remove_disk("a");
    rig.add_disk("c", 2 * MIB, 1 << 30);
    rig.start_proxy();
    rig.churn(10);
    handle.cut().await.unwrap();
    let names: Vec<String> = handle.status().disks.into_iter().map(|disk| disk.name).collect();
    assert_eq!(names, ["b", "c"]);
    rig.churn(10);
    handle.cut().await.unwrap();
    assert!(every_point_is_exact(&vault, &rig).await >= 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_outlives_the_process_and_resync_copies_everything() {
    let rig = Rig::new(&[("a", MIB)], 7);
    rig.churn(10);
    let vault = memory_vault().await;
    let handle = start_on(&rig, &vault);
    handle.cut().await.unwrap();
    handle.pause().await.unwrap();
    assert_eq!(handle.cut().await.unwrap_err().kind, Kind::NotReady);
    handle.stop().await;
    let handle = start_on(&rig, &vault);
    wait_for(&handle, "paused", |status| status.phase == Phase::Paused).await;
    handle.resume().await.unwrap();
    handle.cut().await.unwrap();
    let (read, before) = (rig.bytes_read(), handle.status());
    handle.resync().await.unwrap();
    let after = handle.status();
    // Whoever looks after the reply sees the new state, or already the point that ended it.
    assert!(after.disks[0].state == DiskState::Resync || after.head != before.head, "{after:?}");
    handle.cut().await.unwrap();
    assert!(rig.bytes_read() > read);
    let jobs = rig.settings().jobs.list().unwrap();
    assert_eq!((jobs[0].kind, jobs[0].cause.as_str()), (JobKind::Resync, "asked for by `lifeboat resync`"));
    every_point_is_exact(&vault, &rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn points_come_by_themselves_every_interval() {
    let rig = Rig::new(&[("a", MIB)], 8);
    let vault = memory_vault().await;
    let mut settings = rig.settings();
    settings.interval = Duration::from_millis(20);
    let handle = start(settings, rig.clone(), connect(&vault));
    let status = wait_for(&handle, "three points", |status| status.points >= 3).await;
    assert!(status.rpo_seconds(Timestamp::now()).unwrap() < 20.0);
    handle.stop().await;
    assert!(every_point_is_exact(&vault, &rig).await >= 3);
}

#[test]
fn a_copy_needs_no_thread_that_reading_needs() {
    /// Reads in the runtime's pool, as the proxy in the same process does.
    struct Pooled(Rig);

    impl Source for Pooled {
        async fn machine(&self) -> Result<MachineInfo> {
            self.0.machine().await
        }
        async fn cut(&self, request: tracking::CutRequest) -> Result<Cut> {
            self.0.cut(request).await
        }
        async fn release(&self, cut: Uuid) -> Result<()> {
            self.0.release(cut).await
        }
        async fn begin_sync(&self, disk: &str, known: Option<Uuid>) -> Result<tracking::Sync> {
            self.0.begin_sync(disk, known).await
        }
        async fn next_round(
            &self,
            disk: &str,
            known: Option<Uuid>,
            have: tracking::Round,
            logged: bool,
        ) -> Result<tracking::Sync> {
            self.0.next_round(disk, known, have, logged).await
        }
        async fn sync_extents(&self, disk: &str, tracking: Uuid, from: u64) -> Result<Vec<Extent>> {
            self.0.sync_extents(disk, tracking, from).await
        }
        async fn read(&self, disk: &str, offset: u64, len: u32) -> Result<Bytes> {
            let (rig, disk) = (self.0.clone(), disk.to_owned());
            let read = move || futures_util::FutureExt::now_or_never(rig.read(&disk, offset, len));
            tokio::task::spawn_blocking(read).await.unwrap().unwrap()
        }
        async fn end_sync(&self, disk: &str, tracking: Uuid) -> Result<()> {
            self.0.end_sync(disk, tracking).await
        }
    }

    let runtime = tokio::runtime::Builder::new_multi_thread().max_blocking_threads(1).enable_all().build();
    let runtime = runtime.unwrap();
    runtime.block_on(async {
        let rig = Rig::new(&[("a", 4 * MIB)], 9);
        rig.churn(20);
        let vault = memory_vault().await;
        let handle = start(rig.settings(), Pooled(rig.clone()), connect(&vault));
        tokio::time::timeout(Duration::from_secs(20), handle.cut()).await.expect("no deadlock").unwrap();
        handle.stop().await;
        assert!(every_point_is_exact(&vault, &rig).await >= 1);
    });
    // A deadlock must fail the test, not hang it.
    runtime.shutdown_background();
}
