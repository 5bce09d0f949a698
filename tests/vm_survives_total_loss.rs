//! A real VM writes while it replicates; the host is lost whole; the disk comes back.
//!
//! The guest has ext4 and reports each file that it has synced, with its checksum, on its serial console. VM, proxy and
//! uploader are killed with -9 and the image is deleted. From the vault alone the latest point is restored: its file
//! system must be clean after journal replay, and every file that was reported before the cut must be there.
//! `LIFEBOAT_VM_SECONDS` is how long the guest writes.
#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod lab;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lab::guest::{check_ext4, take_out};
use lab::store::Kind;
use lab::vm::{self, Line, Vm};
use lab::{MIB, Scratch, Setup, Store, judge, run, scale, tool};

/// Each file is written once and synced before it is reported. A second one is written and removed each time, for
/// churn, and for trims: the file system is mounted with discard.
const WORKLOAD: &str = "i=0; while :; do i=$((i + 1)); \
    dd if=/dev/urandom of=/mnt/f$i bs=1k count=$((i * 7 % 96 + 1)) conv=fsync 2>/dev/null || break; \
    echo \"synced f$i $(sha256sum </mnt/f$i)\"; \
    dd if=/dev/urandom of=/mnt/churn bs=1k count=200 conv=fsync 2>/dev/null; rm /mnt/churn; done; echo full";

#[test]
fn from_a_folder() {
    from(Kind::Folder);
}

#[test]
fn from_seaweedfs() {
    from(Kind::Seaweed);
}

#[test]
fn from_azurite_over_tls() {
    from(Kind::Azurite);
}

fn from(kind: Kind) {
    let scratch = Scratch::new();
    if !(vm::available() && judge::have(&["mke2fs", "e2fsck", "debugfs"])) {
        return;
    }
    let Some(store) = Store::of(kind, &scratch) else { return };
    let setup = Setup::new().disk("root", 256 * MIB).interval("2s").policy("retry = [\"1s\"]");
    let mut lifeboat = setup.create(&scratch, &store);
    run(tool("mke2fs").args(["-q", "-t", "ext4"]).arg(&lifeboat.disk("root").image));
    lifeboat.start_proxy();
    lifeboat.start_uploader();

    let mut guest = Vm::boot(&[lifeboat.disk("root").target.clone()]);
    guest.sh("mount -t ext4 -o discard /dev/vda /mnt");
    guest.type_line(WORKLOAD);
    lifeboat.wait_protected();
    std::thread::sleep(Duration::from_secs(scale("LIFEBOAT_VM_SECONDS", 12)));

    guest.kill();
    lifeboat.kill_proxy();
    lifeboat.kill_uploader();
    let said = guest.lines();
    std::fs::remove_file(&lifeboat.disk("root").image).expect("the image was there");

    let points = lifeboat.points();
    assert!(points.len() >= 3, "a point every two seconds: {points:?}");
    let last = points.last().expect("a point");
    let image = lifeboat.restore("latest", &scratch.join("restored")).remove(0);
    check_ext4(&image);
    let synced = files_at(&said, last.time);
    assert!(synced.len() > 3, "the guest synced hardly anything before the last cut: {said:?}");
    for (file, sum) in &synced {
        check_file(&image, file, sum, &scratch.join("file"));
    }
    eprintln!("{kind:?}: {} points, {} synced files proven", points.len(), synced.len());
}

/// The files that the guest reported before `time`, with their checksums.
fn files_at(said: &[Line], time: f64) -> Vec<(String, String)> {
    let before = said.iter().filter(|line| line.time < time);
    let reports = before.filter_map(|line| match line.text.split_whitespace().collect::<Vec<_>>()[..] {
        ["synced", file, sum, "-"] if sum.len() == 64 => Some((file.to_owned(), sum.to_owned())),
        _ => None,
    });
    reports.collect()
}

fn check_file(image: &Path, file: &str, wanted: &str, to: &Path) {
    assert!(
        take_out(image, file, to),
        "{file} was synced before the cut and is not in the restored file system"
    );
    let sum = run(Command::new("sha256sum").arg(to));
    assert!(sum.starts_with(wanted), "{file}: {wanted} was reported before the cut, {sum} is there");
}
