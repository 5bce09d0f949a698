//! A real guest with the real agent: an application-consistent point of its ext4 needs no journal replay, taken in the middle
//! of its writes; a crash-consistent one does. And a proxy killed at any moment of such a cut leaves the guest writing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod lab;
mod site;

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lab::vm::{self, Vm};
use lab::{Random, Target, judge, run, scale, tool};
use site::Site;

/// Makes the file system dirty all the time: files are made, filled and removed.
const WORKLOAD: &str = "(i=0; while :; do i=$((i + 1)); dd if=/dev/zero of=/mnt/f$((i % 50)) bs=1k count=$((i % 90 + 1)) \
    conv=fsync 2>/dev/null; rm -f /mnt/f$(((i + 25) % 50)); done) &";

/// A site whose machine `web1` has an ext4 of 64 MiB and a guest with an agent.
fn protected() -> Option<(Site, Target)> {
    if !(vm::agent_available() && judge::have(&["mke2fs", "e2fsck", "dumpe2fs"])) {
        return None;
    }
    let site = Site::new();
    let at = |name: &str| site.path(name).display().to_string();
    site.config(&format!(
        "state_dir = \"{}\"\nsite = \"lund\"\n[vault]\nurl = \"{}\"\nencryption = \"none\"\n\
         [policy]\ninterval = \"1h\"\nretry = [\"1s\"]\n[[machine]]\nname = \"web1\"\n\
         guest_agent = {{ socket = \"{}\" }}\n[[machine.disk]]\nname = \"root\"\npath = \"{}\"\n",
        at("state"),
        site.vault(),
        at("agent.sock"),
        at("root.img"),
    ));
    site.disk("root.img", 64 << 20);
    run(tool("mke2fs").args(["-q", "-t", "ext4"]).arg(site.path("root.img")));
    let target = Target::unix(site.socket("root"), "web1/root");
    Some((site, target))
}

fn restore(site: &Site, point: &str) -> PathBuf {
    let to = site.path(point);
    site.ok(&["restore", "web1", "--to", &to.display().to_string(), "--point", point]);
    to.join("root.raw")
}

fn needs_replay(image: &Path) -> bool {
    run(tool("dumpe2fs").arg("-h").arg(image)).contains("needs_recovery")
}

#[test]
fn an_application_consistent_point_is_a_clean_file_system() {
    let Some((mut site, target)) = protected() else { return };
    site.start("run");
    let mut guest = Vm::boot_with_agent(&target, &site.path("agent.sock"));
    guest.type_line(WORKLOAD);
    site.ok(&["wait", "web1", "--for", "protected", "--timeout", "120s"]);
    for _ in 0..3 {
        let made = site.ok(&["cut", "web1", "--app-consistent", "--timeout", "60s", "--json"]).json();
        let image = restore(&site, made["point"].as_str().unwrap());
        assert!(!needs_replay(&image), "{made}");
        run(tool("e2fsck").args(["-f", "-n"]).arg(&image));
    }
    // The check can fail: the same guest, in the middle of the same writes, not held still.
    let crash = site.ok(&["cut", "web1", "--timeout", "60s", "--json"]).json();
    assert_eq!(crash["kind"], "crash");
    assert!(needs_replay(&restore(&site, crash["point"].as_str().unwrap())), "{crash}");
}

#[test]
fn a_proxy_killed_during_such_a_cut_leaves_the_guest_writing() {
    let Some((mut site, target)) = protected() else { return };
    let (mut proxy, _) = (site.start("proxy"), site.start("uploader"));
    let mut guest = Vm::boot_with_agent(&target, &site.path("agent.sock"));
    guest.type_line(WORKLOAD);
    site.ok(&["wait", "web1", "--for", "protected", "--timeout", "120s"]);
    let mut random = Random::new(7);
    for round in 0..scale("LIFEBOAT_FREEZE_KILLS", 4) {
        let mut cut = site.command(&["cut", "web1", "--app-consistent", "--timeout", "60s"]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(random.below(400)));
        site.kill(proxy);
        // The freeze itself waits for the disk, if it was begun: the next proxy brings that back.
        proxy = site.start("proxy");
        guest.sh(&format!("echo {round} >/mnt/alive && sync"));
        // It is made by the next attempt.
        cut.wait().unwrap();
    }
    until_free(&site.path("agent.sock"));
    let made = site.ok(&["cut", "web1", "--app-consistent", "--timeout", "60s", "--json"]).json();
    assert!(!needs_replay(&restore(&site, made["point"].as_str().unwrap())), "{made}");
}

/// The last helper has gone.
fn until_free(socket: &Path) {
    drop(UnixStream::connect(socket).unwrap());
    std::thread::sleep(Duration::from_secs(2));
}
