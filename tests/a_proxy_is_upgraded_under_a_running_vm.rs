//! SIGHUP: the proxy becomes the program that stands at its path then, and whoever uses its disks notices a pause and
//! nothing else.
//!
//! `LIFEBOAT_UPGRADES` is how often that happens under a real guest.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod lab;

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lab::client::Place;
use lab::process::Process;
use lab::vm::{self, Vm};
use lab::{Client, Lifeboat, MIB, Random, Scratch, Setup, Store, judge, model, run, scale, tool, until};

/// A program at a path of its own, so that it can be replaced while it runs.
struct Program(PathBuf);

impl Program {
    fn install(scratch: &Scratch) -> Self {
        let program = Self(scratch.join("lifeboat"));
        program.replace();
        program
    }

    /// As a package manager does: the new file takes the name, the old one goes on running.
    fn replace(&self) {
        let new = self.0.with_extension("new");
        // Not by this process: what another of its threads starts meanwhile would have the file open for writing until it is
        // itself, and a file that is open so cannot be started.
        run(Command::new("cp").arg(env!("CARGO_BIN_EXE_lifeboat")).arg(&new));
        std::fs::rename(&new, &self.0).expect("a new name");
    }

    fn start(&self, lifeboat: &mut Lifeboat) {
        let mut command = Command::new(&self.0);
        command.arg("--config").arg(lifeboat.config()).arg("proxy");
        let mut proxy = Process::start(&mut command, &lifeboat.log());
        proxy.wait_for_line("ready", Duration::from_secs(30));
        lifeboat.proxy = Some(proxy);
    }
}

fn proxy(lifeboat: &Lifeboat) -> &Process {
    lifeboat.proxy.as_ref().expect("a running proxy")
}

/// Everything in the log of both daemons; each start of a proxy says that it is ready.
fn starts(lifeboat: &Lifeboat) -> usize {
    let log = std::fs::read_to_string(lifeboat.log()).expect("a log");
    log.lines().filter(|line| line.contains("proxy is ready")).count()
}

fn upgrade(lifeboat: &Lifeboat) {
    let before = starts(lifeboat);
    proxy(lifeboat).signal("HUP");
    until("the successor to be ready", Duration::from_secs(30), || (starts(lifeboat) > before).then_some(()));
}

#[test]
fn an_upgrade_refuses_nobody_and_loses_no_write() {
    let scratch = Scratch::new();
    let program = Program::install(&scratch);
    let mut lifeboat = Setup::new().disk("root", 64 * MIB).create(&scratch, &Store::folder(&scratch));
    program.start(&mut lifeboat);
    lifeboat.start_uploader();
    lifeboat.wait_protected();
    let target = lifeboat.disk("root").target.clone();
    let Place::Unix(path) = target.place.clone() else { panic!("a Unix socket") };
    let done = Arc::new(AtomicBool::new(false));
    let writing = std::thread::spawn({
        let done = Arc::clone(&done);
        move || {
            let (mut client, mut random) = (Client::connect(&target), Random::new(7));
            let mut expected = vec![0; usize::try_from(64 * MIB).expect("a size")];
            while !done.load(Ordering::Relaxed) {
                let offset = random.below(64 * MIB - 9000);
                let mut data = vec![0; 1 + usize::try_from(random.below(9000)).expect("small")];
                random.fill(&mut data);
                client.write(offset, &data, 0);
                let at = usize::try_from(offset).expect("an offset");
                expected[at..at + data.len()].copy_from_slice(&data);
            }
            (expected, client.resent)
        }
    });
    let knocking = std::thread::spawn({
        let done = Arc::clone(&done);
        move || {
            let refused = |path: &PathBuf| UnixStream::connect(path).is_err();
            let mut count = 0;
            while !done.load(Ordering::Relaxed) {
                count += u32::from(refused(&path));
                std::thread::sleep(Duration::from_millis(1));
            }
            count
        }
    });
    let pid = proxy(&lifeboat).id();
    for _ in 0..6 {
        program.replace();
        upgrade(&lifeboat);
        lifeboat.cut();
    }
    done.store(true, Ordering::Relaxed);
    let (expected, resent) = writing.join().expect("a writer that never failed");
    assert_eq!(knocking.join().expect("the end of the knocking"), 0, "somebody was refused");
    assert!(resent > 0, "the connection was lost with each old proxy");
    assert_eq!(proxy(&lifeboat).id(), pid, "the process is the same to whoever watches it");
    let point = lifeboat.cut_id();
    let restored = lifeboat.restore(&point, &scratch.join("restored")).remove(0);
    assert!(model::same_file(&lifeboat.disk("root").image, &restored), "the point is another");
    assert!(std::fs::read(&restored).expect("the restored disk") == expected, "a write was lost");
    let Place::Unix(path) = &lifeboat.disk("root").target.place else { panic!("a Unix socket") };
    let path = path.clone();
    lifeboat.stop();
    assert!(!path.exists(), "the last one removes the socket that the first one made");
}

#[test]
fn a_successor_that_would_not_start_leaves_the_old_one_serving() {
    let scratch = Scratch::new();
    let program = Program::install(&scratch);
    let mut lifeboat = Setup::new().disk("root", 16 * MIB).create(&scratch, &Store::folder(&scratch));
    program.start(&mut lifeboat);
    let mut client = Client::connect(&lifeboat.disk("root").target);
    client.write(0, &[1; 4096], 0);
    lifeboat.expect_log("not handed over");
    let refusals = || {
        let log = std::fs::read_to_string(lifeboat.log()).expect("a log");
        log.lines().filter(|line| line.contains("not handed over")).count()
    };
    let good = std::fs::read_to_string(lifeboat.config()).expect("the configuration");
    for bad in ["nonsense".to_owned(), good.replace("vm1-root.img", "gone.img")] {
        let before = refusals();
        std::fs::write(lifeboat.config(), bad).expect("a configuration");
        proxy(&lifeboat).signal("HUP");
        until("the refusal", Duration::from_secs(10), || (refusals() > before).then_some(()));
        client.write(0, &[2; 4096], 0);
    }
    assert_eq!((client.resent, starts(&lifeboat)), (0, 1), "the guest noticed nothing");
    // And a good one counts: a disk more.
    let data = scratch.join("images/vm1-data.img");
    lab::sparse(&data, 16 * MIB);
    let socket = scratch.join("data.sock");
    let more = format!(
        "[[machine.disk]]\nname = \"data\"\npath = \"{}\"\nlisten = \"unix:{}\"\n",
        data.display(),
        socket.display()
    );
    std::fs::write(lifeboat.config(), good + &more).expect("a configuration");
    upgrade(&lifeboat);
    assert_eq!(client.read(0, 4096), [2; 4096]);
    assert_eq!(Client::connect(&lab::Target::unix(socket, "vm1/data")).read(0, 4096), [0; 4096]);
    lifeboat.stop();
}

#[test]
fn a_guest_writes_through_upgrades_without_an_error() {
    let scratch = Scratch::new();
    if !(vm::available() && judge::have(&["mke2fs", "e2fsck"])) {
        return;
    }
    let program = Program::install(&scratch);
    let setup = Setup::new().disk("root", 128 * MIB).interval("2s").policy("retry = [\"1s\"]");
    let mut lifeboat = setup.create(&scratch, &Store::folder(&scratch));
    run(tool("mke2fs").args(["-q", "-t", "ext4"]).arg(&lifeboat.disk("root").image));
    program.start(&mut lifeboat);
    lifeboat.start_uploader();
    let mut guest = Vm::boot(&[lifeboat.disk("root").target.clone()]);
    guest.begin_writing();
    for _ in 0..scale("LIFEBOAT_UPGRADES", 10) {
        std::thread::sleep(Duration::from_millis(700));
        program.replace();
        upgrade(&lifeboat);
    }
    guest.end_writing();
    let point = lifeboat.cut_id();
    let restored = lifeboat.restore(&point, &scratch.join("restored")).remove(0);
    assert!(model::same_file(&lifeboat.disk("root").image, &restored), "the point is another");
    run(tool("e2fsck").args(["-f", "-n"]).arg(&restored));
    lifeboat.stop();
}
