//! The raw disk keeps the device contract; locks keep others out.

use std::fs::File;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};

use super::sync::SharedSync;
use super::{Access, RawDisk};
use crate::Kind;
use crate::device::{BlockDevice, Extent, Write, ZeroMode};

fn image(size: u64) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    File::create(&path).unwrap().set_len(size).unwrap();
    (dir, path)
}

#[test]
fn a_batch_of_adjacent_and_overlapping_writes_lands_in_order() {
    let (_dir, path) = image(1 << 20);
    let disk = RawDisk::open(&path, Access::ReadWrite).unwrap();
    let write = |offset, byte: &'static [u8], fua| Write { offset, data: byte, fua };
    let mut results = Vec::new();
    disk.write_batch(
        &[
            write(0, &[1; 4096], false),
            write(4096, &[2; 4096], false),
            write(8192, &[3; 4096], true),
            write(4096, &[4; 512], false),
        ],
        &mut results,
    );
    assert!(results.len() == 4 && results.iter().all(Result::is_ok));
    let mut buf = vec![0; 12288];
    disk.read(&mut buf, 0).unwrap();
    let expected = [vec![1; 4096], vec![4; 512], vec![2; 3584], vec![3; 4096]].concat();
    assert_eq!(buf, expected);
    assert!(disk.try_read(&mut buf, 0).unwrap_or(true), "what was just written is cached");
}

#[test]
fn zeroed_ranges_of_odd_bounds_read_zero_and_nothing_else_changes() {
    let (_dir, path) = image(1 << 20);
    let disk = RawDisk::open(&path, Access::ReadWrite).unwrap();
    for punch in [true, false] {
        let mut results = Vec::new();
        disk.write_batch(&[Write { offset: 0, data: &vec![7; 1 << 20], fua: false }], &mut results);
        disk.zero(1001, 300_333, ZeroMode { punch, ..ZeroMode::default() }).unwrap();
        let mut buf = vec![0; 1 << 20];
        disk.read(&mut buf, 0).unwrap();
        let wrong = buf
            .iter()
            .enumerate()
            .position(|(at, &b)| b != if (1001..301_334).contains(&at) { 0 } else { 7 });
        assert_eq!(wrong, None, "punch {punch}");
    }
}

#[test]
fn extents_tell_holes_from_data() {
    let (_dir, path) = image(1 << 20);
    let disk = RawDisk::open(&path, Access::ReadWrite).unwrap();
    disk.write_batch(&[Write { offset: 65536, data: &[1; 65536], fua: false }], &mut Vec::new());
    let mut out = Vec::new();
    disk.extents(0, 1 << 20, &mut out).unwrap();
    let hole = |offset, len| Extent { offset, len, hole: true };
    assert_eq!(
        out,
        [
            hole(0, 65536),
            Extent { offset: 65536, len: 65536, hole: false },
            hole(131_072, (1 << 20) - 131_072)
        ]
    );
}

#[test]
fn a_second_writer_is_refused_and_a_dead_one_leaves_no_lock() {
    let (_dir, path) = image(1 << 20);
    let first = RawDisk::open(&path, Access::ReadWrite).unwrap();
    assert_eq!(RawDisk::open(&path, Access::ReadWrite).unwrap_err().kind, Kind::InUse);
    RawDisk::open(&path, Access::ReadOnly).unwrap();
    drop(first);
    RawDisk::open(&path, Access::ReadWrite).unwrap();
}

#[test]
fn qemu_and_we_keep_each_other_out() {
    let (_dir, path) = image(1 << 20);
    let tool = std::process::Command::new("qemu-io").arg("--version").output();
    assert!(tool.is_ok_and(|out| out.status.success()), "qemu-io (qemu-utils) must be installed");
    let disk = RawDisk::open(&path, Access::ReadWrite).unwrap();
    let run = || {
        let out = std::process::Command::new("qemu-io")
            .args(["-f", "raw", "-c", "write 0 512"])
            .arg(&path)
            .output()
            .unwrap();
        (out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let (ok, said) = run();
    assert!(!ok && said.contains("lock"), "qemu-io wrote to a disk we hold: {said}");
    drop(disk);
    assert!(run().0);
}

#[test]
fn what_is_no_disk_is_refused_with_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let error = |path: &std::path::Path| {
        let error = RawDisk::open(path, Access::ReadWrite).unwrap_err();
        assert!(!error.remedy.is_empty() && error.object == path.display().to_string());
        error.kind
    };
    let empty = dir.path().join("empty");
    File::create(&empty).unwrap();
    assert_eq!(error(&empty), Kind::InvalidInput);
    assert_eq!(error(&dir.path().join("absent")), Kind::NotFound);
    error(dir.path());
}

#[test]
fn flushes_share_a_sync_only_if_it_began_after_them() {
    let sync = Arc::new(SharedSync::default());
    let syncs = Arc::new(AtomicUsize::new(0));
    let begun = Arc::new(Barrier::new(2));
    let release = Arc::new(Barrier::new(2));
    // One sync is under way …
    let first = {
        let (sync, syncs, begun, release) = (sync.clone(), syncs.clone(), begun.clone(), release.clone());
        std::thread::spawn(move || {
            sync.flush(|| {
                syncs.fetch_add(1, Ordering::SeqCst);
                begun.wait();
                release.wait();
                Ok(())
            })
        })
    };
    begun.wait();
    // … so eight that arrive now must not be served by it, but may share one of their own.
    let waiters: Vec<_> = (0..8)
        .map(|_| {
            let (sync, syncs) = (sync.clone(), syncs.clone());
            std::thread::spawn(move || {
                sync.flush(|| {
                    syncs.fetch_add(1, Ordering::SeqCst);
                    Ok(())
                })
            })
        })
        .collect();
    assert_eq!(syncs.load(Ordering::SeqCst), 1);
    release.wait();
    first.join().unwrap().unwrap();
    for waiter in waiters {
        waiter.join().unwrap().unwrap();
    }
    let total = syncs.load(Ordering::SeqCst);
    assert!((2..=9).contains(&total), "{total} syncs");
}

#[test]
fn a_failed_sync_is_final() {
    let sync = SharedSync::default();
    assert!(sync.flush(|| Err(std::io::Error::other("EIO"))).is_err());
    assert!(sync.flush(|| Ok(())).is_err(), "a later success would be a lie");
}
