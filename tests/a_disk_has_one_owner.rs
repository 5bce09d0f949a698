//! A disk that QEMU has open is refused, and QEMU is refused a disk that Lifeboat serves.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod lab;
mod site;

use std::io::{Read, Write};
use std::process::Stdio;

use lab::judge;
use site::Site;

#[test]
fn a_disk_that_qemu_has_open_is_refused_by_name() {
    if !judge::have(&["qemu-io"]) {
        return;
    }
    let site = Site::with_machine();
    let mut qemu = judge::tool("qemu-io")
        .args(["-f", "raw"])
        .arg(site.path("root.img"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // It answers when it has opened, and so locked, the image.
    qemu.stdin.as_mut().unwrap().write_all(b"length\n").unwrap();
    qemu.stdout.as_mut().unwrap().read_exact(&mut [0; 1]).unwrap();
    let out = site.run(&["proxy", "--json"]);
    drop(qemu.stdin.take());
    qemu.wait().unwrap();
    assert_eq!((out.code, &out.error()["kind"]), (1, &"in-use".into()), "{}", out.stderr);
    assert!(out.error()["object"].as_str().unwrap().contains("root.img"), "{}", out.stderr);
    assert!(!out.error()["remedy"].as_str().unwrap().is_empty());
}

#[test]
fn qemu_is_refused_a_disk_that_is_served() {
    if !judge::have(&["qemu-io"]) {
        return;
    }
    let mut site = Site::with_machine();
    let proxy = site.start("proxy");
    let open = |site: &Site| {
        judge::tool("qemu-io")
            .args(["-f", "raw", "-c", "write 0 4k"])
            .arg(site.path("root.img"))
            .output()
            .unwrap()
    };
    let refused = open(&site);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("lock"), "{refused:?}");
    assert_eq!(site.stop(proxy), 0);
    assert!(open(&site).status.success(), "a disk is free again after a stop");
}
