use std::os::unix::fs::MetadataExt as _;
use std::sync::Mutex;

use super::*;
use crate::replicate::{self, Connect};
use crate::store::{self, StoreConfig};
use crate::testing::{Random, Rig, memory_vault};
use crate::vault::Protection;

const MIB: u64 = 1 << 20;

async fn point(rig: &Rig, vault: &Vault) -> PointId {
    let opened = vault.clone();
    let connect: Connect = Box::new(move || {
        let vault = opened.clone();
        Box::pin(async move { Ok(vault) })
    });
    let handle = replicate::start(rig.settings(), rig.clone(), connect);
    let point = handle.cut().await.unwrap().point;
    handle.stop().await;
    point
}

fn request(to: &Path) -> Request {
    Request {
        machine: "m".to_owned(),
        point: PointName::Latest,
        disks: Vec::new(),
        to: to.to_owned(),
        force: false,
        checksum: Checksum::Auto,
    }
}

fn quiet() -> Progress {
    Arc::new(|_, _| {})
}

#[tokio::test(flavor = "multi_thread")]
async fn every_point_of_a_folder_vault_restores_exactly() {
    let rig = Rig::new(&[("a", 3 * MIB + 512), ("b", MIB)], 21);
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig { url: format!("file://{}/v", dir.path().display()), ..StoreConfig::default() };
    let vault = Vault::open_or_create(&config, &Protection::None).await.unwrap();
    for _ in 0..4 {
        rig.churn(25);
        point(&rig, &vault).await;
    }
    let vault = Vault::open(&config, None).await.unwrap();
    let points = listing::points(&vault, "m").await.unwrap();
    // A loop may make its first point before the one that is asked for.
    assert!(points.len() >= 4, "{points:?}");
    for info in points {
        let to = dir.path().join(info.id.to_string());
        let seen = Arc::new(Mutex::new((0, 0)));
        let shown = Arc::clone(&seen);
        let progress: Progress = Arc::new(move |done, total| {
            let mut seen = shown.lock().unwrap();
            *seen = (done.max(seen.0), total);
        });
        let request = Request { point: PointName::Id(info.id), ..request(&to) };
        let restored = restore(&vault, &request, progress).await.unwrap();
        assert_eq!((restored.point, restored.time, restored.disks.len()), (info.id, info.time, 2));
        for (name, bytes) in &rig.cuts()[&info.time] {
            let disk = restored.disks.iter().find(|disk| disk.name == *name).unwrap();
            assert!(std::fs::read(&disk.path).unwrap() == *bytes, "{name} of {}", info.id);
            assert_eq!(disk.path, to.join(format!("{name}.raw")));
            assert_eq!(
                disk.sha256.as_deref(),
                Some(crate::digest::hex(&crate::digest::sha256(bytes)).as_str())
            );
        }
        let (done, total) = *seen.lock().unwrap();
        assert!(done == total && total > 0, "{done} of {total}");
        assert_eq!(std::fs::read_dir(&to).unwrap().count(), 2, "no partial file stays");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_overwritten_unless_forced() {
    let rig = Rig::new(&[("a", MIB), ("b", MIB)], 22);
    rig.churn(10);
    let vault = memory_vault().await;
    point(&rig, &vault).await;
    let to = tempfile::tempdir().unwrap();
    std::fs::write(to.path().join("b.raw"), "precious").unwrap();
    let error = restore(&vault, &request(to.path()), quiet()).await.unwrap_err();
    assert_eq!(error.kind, Kind::Exists);
    assert!(error.object.ends_with("b.raw") && error.remedy.contains("--force"), "{error}");
    assert_eq!(std::fs::read(to.path().join("b.raw")).unwrap(), b"precious");
    assert!(!to.path().join("a.raw").exists());
    // Another disk is not in the way.
    let one = Request { disks: vec!["a".to_owned()], ..request(to.path()) };
    assert_eq!(restore(&vault, &one, quiet()).await.unwrap().disks.len(), 1);
    let forced = Request { force: true, ..request(to.path()) };
    restore(&vault, &forced, quiet()).await.unwrap();
    assert_eq!(std::fs::metadata(to.path().join("b.raw")).unwrap().len(), MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_disks_points_and_machines_are_named() {
    let rig = Rig::new(&[("a", MIB)], 23);
    let vault = memory_vault().await;
    point(&rig, &vault).await;
    let to = tempfile::tempdir().unwrap();
    let disk = Request { disks: vec!["z".to_owned()], ..request(to.path()) };
    let error = restore(&vault, &disk, quiet()).await.unwrap_err();
    assert_eq!((error.kind, error.object.as_str()), (Kind::NotFound, "z"));
    assert!(error.remedy.contains('a'), "{error}");
    let machine = Request { machine: "n".to_owned(), ..request(to.path()) };
    assert_eq!(restore(&vault, &machine, quiet()).await.unwrap_err().kind, Kind::NotFound);
    let point = Request { point: "g7-7".parse().unwrap(), ..request(to.path()) };
    assert_eq!(restore(&vault, &point, quiet()).await.unwrap_err().kind, Kind::NotFound);
    assert_eq!(std::fs::read_dir(to.path()).unwrap().count(), 0);
}

/// Each byte of each object, flipped: restore names the object, or writes exactly what it must.
#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_is_named_and_never_written() {
    let rig = Rig::new(&[("a", 64 << 10)], 24);
    let mut random = Random::new(24);
    rig.write("a", 0, &random.bytes(20_000));
    let vault = memory_vault().await;
    point(&rig, &vault).await;
    rig.write("a", 30_000, &random.bytes(3000));
    let latest = point(&rig, &vault).await;
    let expected = crate::testing::contents(&vault, "m", latest).await.unwrap();
    let (mut found, mut harmless) = (0, 0);
    for object in vault.store.list("machines").await.unwrap() {
        let good = vault.store.get(&object.key, 1 << 30).await.unwrap();
        for at in (0..good.len()).step_by(7) {
            let mut bad = good.to_vec();
            bad[at] ^= 1;
            vault.store.put(&object.key, bad.into()).await.unwrap();
            match crate::testing::contents(&vault, "m", latest).await {
                Ok(shown) => {
                    assert!(shown == expected, "byte {at} of {} changed the disk", object.key);
                    harmless += 1;
                }
                Err(error) => {
                    assert_eq!(error.kind, Kind::Corrupt, "{error}");
                    assert!(error.object.ends_with(&object.key), "{error} is about {}", object.key);
                    found += 1;
                }
            }
        }
        vault.store.put(&object.key, good.into()).await.unwrap();
    }
    assert!(found > 20 * harmless, "{found} found, {harmless} without effect");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_or_truncated_delta_leaves_no_file() {
    let rig = Rig::new(&[("a", MIB)], 25);
    rig.churn(30);
    let vault = memory_vault().await;
    point(&rig, &vault).await;
    let listed = vault.store.list("machines/m/deltas").await.unwrap();
    let (key, good) = (&listed[0].key, vault.store.get(&listed[0].key, 1 << 30).await.unwrap());
    let to = tempfile::tempdir().unwrap();
    vault.store.put(key, good.slice(..good.len() / 2).into()).await.unwrap();
    let error = restore(&vault, &request(to.path()), quiet()).await.unwrap_err();
    assert!(error.kind == Kind::Corrupt && error.object.ends_with(key.as_str()), "{error}");
    vault.store.delete(key).await.unwrap();
    let error = restore(&vault, &request(to.path()), quiet()).await.unwrap_err();
    assert!(error.kind == Kind::NotFound && error.object.ends_with(key.as_str()), "{error}");
    assert!(store::is_missing_object(&error));
    assert_eq!(std::fs::read_dir(to.path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_restore_left_is_replaced() {
    let rig = Rig::new(&[("a", MIB)], 26);
    rig.churn(10);
    let vault = memory_vault().await;
    point(&rig, &vault).await;
    let to = tempfile::tempdir().unwrap();
    let partial = to.path().join(".a.raw.partial");
    std::fs::write(&partial, vec![0xff; 3 << 20]).unwrap();
    // A restore that runs holds the file.
    let held = std::fs::File::open(&partial).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    assert_eq!(restore(&vault, &request(to.path()), quiet()).await.unwrap_err().kind, Kind::InUse);
    drop(held);
    let restored = restore(&vault, &request(to.path()), quiet()).await.unwrap();
    let cuts = rig.cuts();
    assert!(std::fs::read(&restored.disks[0].path).unwrap() == cuts[&restored.time]["a"]);
    assert!(!partial.exists());
}

/// A 1 TiB disk with a little data costs what the data costs, to copy, to store and to restore.
#[tokio::test(flavor = "multi_thread")]
async fn a_sparse_tebibyte_costs_its_data() {
    let rig = Rig::sparse("big", 1 << 40);
    let mut random = Random::new(27);
    let pieces: Vec<(u64, Vec<u8>)> =
        (0..16).map(|n| ((n << 36) + 4096 * n, random.bytes(1 << 20))).collect();
    for (offset, data) in &pieces {
        rig.write_through("big", *offset, data);
    }
    let vault = memory_vault().await;
    let before = vault.store.counts();
    point(&rig, &vault).await;
    assert!(rig.bytes_read() <= 20 * MIB, "{} bytes were read", rig.bytes_read());
    let up = vault.store.counts().since(before).bytes_up;
    let objects = vault.store.list("machines").await.unwrap();
    let stored: u64 = objects.iter().map(|object| object.size).sum();
    assert!(stored < 14 * MIB && up < 14 * MIB, "{stored} bytes stored");
    let to = tempfile::tempdir().unwrap();
    let request = Request { checksum: Checksum::Never, ..request(to.path()) };
    let restored = restore(&vault, &request, quiet()).await.unwrap();
    let file = std::fs::File::open(&restored.disks[0].path).unwrap();
    let meta = file.metadata().unwrap();
    assert_eq!(meta.len(), 1 << 40);
    assert!(meta.blocks() * 512 <= 20 * MIB, "{} KiB are allocated", meta.blocks() / 2);
    for (offset, data) in &pieces {
        let mut read = vec![0; data.len()];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut read, *offset).unwrap();
        assert!(read == *data, "at {offset}");
    }
}
