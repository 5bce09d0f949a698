//! Sockets that listen before the proxy runs and after it has ended: no client is refused while it is restarted, and one
//! that is on its way waits.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod lab;

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use lab::client::Place;
use lab::process::Process;
use lab::{Client, Lifeboat, MIB, Scratch, Setup, Store, judge, run, tool};

/// Our service manager, with `sockets` for `lifeboat ROLE`.
fn manager(lifeboat: &Lifeboat, sockets: &[String], role: &str) -> Command {
    let mut command = Command::new("/usr/bin/python3");
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/judges/service_manager.py"));
    command.args(sockets).arg("--").arg(env!("CARGO_BIN_EXE_lifeboat"));
    command.arg("--config").arg(lifeboat.config()).arg(role);
    command
}

fn present() -> bool {
    Path::new("/usr/bin/python3").exists() || judge::absent("python3")
}

fn place(lifeboat: &Lifeboat, disk: &str) -> String {
    match &lifeboat.disk(disk).target.place {
        Place::Unix(path) => format!("unix:{}", path.display()),
        Place::Tcp(port) => format!("tcp:{port}"),
    }
}

#[test]
fn no_connection_is_refused_while_the_proxy_is_restarted() {
    if !present() {
        return;
    }
    let scratch = Scratch::new();
    let setup = Setup::new().disk("root", 16 * MIB).disk("data", 16 * MIB);
    let lifeboat = setup.create(&scratch, &Store::folder(&scratch));
    // By its address, and by its name.
    let elsewhere = scratch.join("elsewhere.sock");
    let sockets = [place(&lifeboat, "root"), format!("unix:{}=vm1/data", elsewhere.display())];
    let mut manager = Process::start(&mut manager(&lifeboat, &sockets, "proxy"), &lifeboat.log());
    manager.wait_for_line("listening", Duration::from_secs(10));
    // Connected before the proxy serves: it waits and is served.
    let root = lifeboat.disk("root").target.clone();
    Client::connect(&root).write(0, &[1; 4096], 0);
    Client::connect(&lab::Target::unix(&elsewhere, "vm1/data")).write(0, &[2; 4096], 0);

    let Place::Unix(path) = root.place.clone() else { panic!("a Unix socket") };
    let done = Arc::new(AtomicBool::new(false));
    let refused = Arc::new(AtomicU64::new(0));
    let knocking = {
        let (done, refused) = (Arc::clone(&done), Arc::clone(&refused));
        std::thread::spawn(move || {
            while !done.load(Ordering::Relaxed) {
                if UnixStream::connect(&path).is_err() {
                    refused.fetch_add(1, Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        })
    };
    let mut writer = Client::connect(&root);
    for round in 0..3_u8 {
        writer.write(0, &[round; 4096], 0);
        let starts = manager.printed().lines().filter(|line| line.trim() == "ready").count();
        manager.signal("USR1");
        lab::until("the proxy to run again", Duration::from_secs(30), || {
            let printed = manager.printed();
            (printed.lines().filter(|line| line.trim() == "ready").count() > starts).then_some(())
        });
        assert_eq!(writer.read(0, 4096), [round; 4096]);
    }
    assert!(writer.resent > 0, "the connection was lost with the old proxy");
    done.store(true, Ordering::Relaxed);
    knocking.join().expect("the end of the knocking");
    assert_eq!(refused.load(Ordering::Relaxed), 0, "somebody was refused");
    manager.signal("TERM");
    assert!(manager.wait(Duration::from_secs(30)).success());
    assert!(elsewhere.exists(), "a socket that is not ours is not removed");
}

/// libnbd's own way to start a server: one socket, on a path of its choice, for the one disk there is.
#[test]
fn libnbd_starts_the_proxy_on_a_socket_of_its_own() {
    if !judge::have(&["nbdinfo"]) {
        return;
    }
    let scratch = Scratch::new();
    let lifeboat = Setup::new().disk("root", 16 * MIB).create(&scratch, &Store::folder(&scratch));
    let mut nbdinfo = tool("nbdinfo");
    nbdinfo.env("LIFEBOAT_CONFIG", lifeboat.config());
    let size = run(nbdinfo.args(["--size", "--", "[", env!("CARGO_BIN_EXE_lifeboat"), "proxy", "]"]));
    assert!(size.lines().any(|line| line == (16 * MIB).to_string()), "{size}");
}

#[test]
fn a_socket_that_no_disk_has_refuses_the_start_by_name() {
    if !present() {
        return;
    }
    let scratch = Scratch::new();
    let setup = Setup::new().disk("root", 16 * MIB).disk("data", 16 * MIB);
    let lifeboat = setup.create(&scratch, &Store::folder(&scratch));
    let stray = scratch.join("stray.sock");
    let sockets = [place(&lifeboat, "root"), format!("unix:{}", stray.display())];
    let output = judge::output(&mut manager(&lifeboat, &sockets, "proxy"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("stray.sock") && said.contains("what to do:"), "{said}");
}
