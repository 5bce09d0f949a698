//! The proxy of a running guest is killed with -9 again and again, and comes back each time. The guest, whose QEMU connects
//! again within its `reconnect-delay`, notices pauses and no error: its file system is clean, it reads what it wrote, and the points
//! are exact.
//!
//! `LIFEBOAT_PROXY_DEATHS` is how often the proxy dies.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod lab;

use std::time::Duration;

use lab::guest::{NEEDED, check_ext4};
use lab::vm::{self, Vm};
use lab::{MIB, Random, Scratch, Setup, Store, judge, model, run, scale, tool};

#[test]
fn a_guest_writes_on_though_its_proxy_is_killed_ten_times() {
    if !(vm::available() && judge::have(&NEEDED)) {
        return;
    }
    let scratch = Scratch::new();
    let setup = Setup::new().disk("root", 128 * MIB).interval("1s").policy("retry = [\"1s\"]");
    let mut lifeboat = setup.create(&scratch, &Store::folder(&scratch));
    run(tool("mke2fs").args(["-q", "-t", "ext4"]).arg(&lifeboat.disk("root").image));
    lifeboat = lifeboat.run_apart();
    let seed = scale("LIFEBOAT_SEED", u64::from(std::process::id()));
    eprintln!("LIFEBOAT_SEED={seed}");
    let mut random = Random::new(seed);
    let mut guest = Vm::boot(&[lifeboat.disk("root").target.clone()]);
    guest.begin_writing();
    lifeboat.wait_protected();
    for _ in 0..scale("LIFEBOAT_PROXY_DEATHS", 10) {
        std::thread::sleep(Duration::from_millis(random.below(1500)));
        lifeboat.kill_proxy();
        // At times QEMU finds nobody when it connects again, and tries later.
        std::thread::sleep(Duration::from_millis(random.below(3) * random.below(600)));
        lifeboat.start_proxy();
    }
    guest.end_writing();

    let last = lifeboat.cut_id();
    let points = lifeboat.points();
    for point in &points {
        let to = scratch.join("restored");
        let restored = lifeboat.restore(&point.id, &to).remove(0);
        if point.id == last {
            assert!(model::same_file(&lifeboat.disk("root").image, &restored), "the last point is another");
            run(tool("e2fsck").args(["-f", "-n"]).arg(&restored));
        }
        // Of a guest in the middle of its writes, too: a file system that its journal mends.
        check_ext4(&restored);
        std::fs::remove_dir_all(&to).expect("the restored folder");
    }
    assert!(points.len() > 5, "a point every second: {points:?}");
    eprintln!("{} points proven", points.len());
    lifeboat.stop();
}
