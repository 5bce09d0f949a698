//! Disks that another NBD server has: qcow2 and VHDX behind qemu-nbd of both generations, raw files behind nbdkit and nbd-server.
//! What holds for files holds for them: every point restores exactly, and a server that dies with writes which nobody flushed is
//! missed by nobody.
//!
//! `LIFEBOAT_SEEDS` is the number of rounds of the oracle (20; a tenth of them here), `LIFEBOAT_KILLS` that of killed servers (5).
#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod lab;

use std::path::Path;
use std::time::Duration;

use lab::foreign::{self, Foreign};
use lab::model::Model;
use lab::store::Kind;
use lab::{Client, Lifeboat, MIB, Random, Scratch, Setup, Store, judge, scale, until};

const SIZE: u64 = 12 * MIB + 4096;
/// Said once of every disk whose changes cannot be told.
const UNDATED: &str = "does not tell when it was changed";

/// Protects disks behind `servers`, each called by its name.
fn protect(scratch: &Scratch, servers: &[(&str, &Foreign)]) -> Lifeboat {
    let store = Store::of(Kind::Folder, scratch).expect("a folder is always there");
    let setup = servers
        .iter()
        .fold(Setup::new(), |setup, (name, server)| setup.behind(name, SIZE, &server.address()));
    let mut lifeboat = setup.create(scratch, &store);
    lifeboat.expect_log(UNDATED);
    let lifeboat = lifeboat.run();
    lifeboat.wait_protected();
    lifeboat
}

/// The oracle of the main job: random requests, cuts between, and each point is what the model was.
fn rounds(lifeboat: &Lifeboat, scratch: &Scratch, models: &mut [Model], rounds: u64) {
    let first = scale("LIFEBOAT_SEED", 1);
    for seed in first..first + rounds {
        let mut random = Random::new(seed);
        let mut clients: Vec<_> = lifeboat.disks().iter().map(|disk| Client::connect(&disk.target)).collect();
        let mut points = Vec::new();
        for _ in 0..1 + random.below(3) {
            for _ in 0..random.below(120) {
                let disk = usize::try_from(random.below(models.len() as u64)).expect("small");
                models[disk].any_request(&mut clients[disk], &mut random);
            }
            points.push((lifeboat.cut_id(), models.to_vec()));
        }
        for (point, models) in points {
            let to = scratch.join("restored");
            for (image, model) in lifeboat.restore(&point, &to).iter().zip(&models) {
                model.expect(image, &format!("LIFEBOAT_SEED={seed}, point {point}"));
            }
            std::fs::remove_dir_all(&to).expect("the restored folder");
        }
    }
}

#[test]
fn every_point_of_qcow2_and_vhdx_behind_qemu_nbd_restores_exactly() {
    if !judge::have(&["qemu-nbd", "qemu7:qemu-nbd", "qemu-img"]) {
        return;
    }
    let scratch = Scratch::new();
    let kinds = [("root", "", "qcow2"), ("data", "qemu7:", "qcow2"), ("win", "", "vhdx")];
    let servers =
        kinds.map(|(name, tool, format)| Foreign::qemu_nbd(scratch.path(), tool, format, name, SIZE));
    let named: Vec<_> = kinds.iter().map(|(name, _, _)| *name).zip(&servers).collect();
    let mut lifeboat = protect(&scratch, &named);
    let mut models = vec![Model::new(SIZE); kinds.len()];
    rounds(&lifeboat, &scratch, &mut models, scale("LIFEBOAT_SEEDS", 20).div_ceil(10));
    lifeboat.stop();
    servers.into_iter().for_each(Foreign::stop);
    for ((name, _, format), model) in kinds.iter().zip(&models) {
        model.expect(&foreign::contents(scratch.path(), name, format), "the disk without Lifeboat");
    }
}

#[test]
fn servers_of_many_kinds_carry_a_disk() {
    if !judge::have(&["nbdkit", "nbd-server", "qemu-img"]) {
        return;
    }
    let scratch = Scratch::new();
    let blocks: &[&str] = &["--filter=blocksize-policy"];
    let sizes: &[&str] = &[
        "blocksize-minimum=4096",
        "blocksize-preferred=4096",
        "blocksize-maximum=64k",
        "blocksize-error-policy=error",
    ];
    let poor: &[&str] = &["--filter=nozero", "--filter=fua", "--filter=noextents"];
    let servers = [
        ("blocks", Foreign::nbdkit(scratch.path(), "blocks", SIZE, blocks, sizes)),
        ("poor", Foreign::nbdkit(scratch.path(), "poor", SIZE, poor, &["zeromode=none"])),
        ("tcp", Foreign::nbd_server(scratch.path(), "tcp", SIZE)),
    ];
    let named: Vec<_> = servers.iter().map(|(name, server)| (*name, server)).collect();
    let mut lifeboat = protect(&scratch, &named);
    let mut models = vec![Model::new(SIZE); servers.len()];
    rounds(&lifeboat, &scratch, &mut models, scale("LIFEBOAT_SEEDS", 20).div_ceil(10));
    lifeboat.stop();
    for (name, server) in servers {
        server.stop();
        let model = &models[["blocks", "poor", "tcp"].iter().position(|it| *it == name).expect("a disk")];
        model.expect(&foreign::contents(scratch.path(), name, "raw"), "the disk without Lifeboat");
    }
}

/// Everything on a disk, as its guest sees it.
fn whole(client: &mut Client) -> Vec<u8> {
    (0..SIZE)
        .step_by(1 << 20)
        .flat_map(|at| client.read(at, usize::try_from((SIZE - at).min(1 << 20)).expect("small")))
        .collect()
}

fn restored(lifeboat: &Lifeboat, scratch: &Scratch, point: &str) -> Vec<u8> {
    let to = scratch.join("restored");
    let bytes = std::fs::read(&lifeboat.restore(point, &to)[0]).expect("a restored disk");
    std::fs::remove_dir_all(&to).expect("the restored folder");
    bytes
}

fn alike(a: &[u8], b: &[u8], what: &str) {
    let first = a.iter().zip(b).position(|(a, b)| a != b);
    assert!(a.len() == b.len() && first.is_none(), "{what}: they differ from byte {first:?} on");
}

#[test]
fn a_server_killed_with_unflushed_writes_is_missed_by_nobody() {
    if !judge::have(&["qemu-nbd", "qemu-img"]) {
        return;
    }
    let scratch = Scratch::new();
    let mut server = Foreign::qemu_nbd(scratch.path(), "", "qcow2", "root", SIZE);
    let mut lifeboat = protect(&scratch, &[("root", &server)]);
    for text in ["the connection to the disk's server is lost", "not flushed", "logging stopped"] {
        lifeboat.expect_log(text);
    }
    let mut random = Random::new(scale("LIFEBOAT_SEED", 1));
    let mut lost = 0;
    let kills = scale("LIFEBOAT_KILLS", 5);
    for kill in 0..kills {
        let mut client = Client::connect(&lifeboat.disks()[0].target);
        let mut model = Model::new(SIZE);
        model.write(0, &whole(&mut client));
        (0..30).for_each(|_| model.any_request(&mut client, &mut random));
        client.flush();
        (0..30).for_each(|_| model.any_request(&mut client, &mut random));
        // Clusters that the image does not have yet: what names them is in the server's memory.
        let fresh = random.below(SIZE / MIB - 2) * MIB;
        client.zero(fresh, 1 << 20, 0);
        model.zero(fresh, 1 << 20);
        client.flush();
        client.write(fresh + 65_536, &[0xAB; 200_000], 0);
        model.write(fresh + 65_536, &[0xAB; 200_000]);
        let ahead = lifeboat.cut_id();
        server.kill();
        server.come_back();
        let found = whole(&mut client);
        // Now and then our own regular flush has come between the write and the kill: then nothing is lost, and nothing told.
        let is_lost = found != model.bytes();
        lost += u64::from(is_lost);
        let told = client.try_flush().is_err();
        assert!(told || !is_lost, "kill {kill}: the guest must hear of it");
        client.flush();
        let after = lifeboat.cut_id();
        alike(&restored(&lifeboat, &scratch, &after), &found, "the point after is the disk");
        alike(&restored(&lifeboat, &scratch, &ahead), model.bytes(), "the point before is what it was");
    }
    assert!(lost > 0, "{kills} kills, and none has cost a byte: nothing was shown");
    lifeboat.stop();
    server.stop();
}

#[test]
fn a_server_that_is_away_is_told_and_the_guest_waits_for_it() {
    if !judge::have(&["qemu-nbd", "qemu-img"]) {
        return;
    }
    let scratch = Scratch::new();
    let mut server = Foreign::qemu_nbd(scratch.path(), "", "qcow2", "root", SIZE);
    let mut lifeboat = protect(&scratch, &[("root", &server)]);
    lifeboat.expect_log("the connection to the disk's server is lost");
    let mut client = Client::connect(&lifeboat.disks()[0].target);
    client.write(0, &[1; 4096], 0);
    client.flush();
    server.kill();
    let waits = std::thread::spawn(move || client.read(0, 4096));
    let cause = until("the status to say so", Duration::from_secs(30), || {
        let status = lifeboat.status();
        (status["health"] == "warning").then(|| status["cause"].to_string())
    });
    assert!(cause.contains("disk root") && cause.contains("no connection"), "{cause}");
    server.come_back();
    assert_eq!(waits.join().expect("an answer"), [1; 4096]);
    until("the status to be well", Duration::from_secs(30), || {
        (lifeboat.status()["health"] == "normal").then_some(())
    });
    lifeboat.stop();
    server.stop();
}

/// Starts a proxy that must refuse; what it says.
fn refused(lifeboat: &Lifeboat) -> String {
    let output = judge::output(lifeboat.command().arg("proxy"));
    assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_second_proxy_and_a_read_only_export_are_refused_by_name() {
    if !judge::have(&["qemu-nbd", "qemu-img", "nbdkit"]) {
        return;
    }
    let scratch = Scratch::new();
    let server = Foreign::qemu_nbd(scratch.path(), "", "qcow2", "root", SIZE);
    let mut lifeboat = protect(&scratch, &[("root", &server)]);
    let other = Scratch::new();
    let store = Store::of(Kind::Folder, &other).expect("a folder");
    let setup = |address: &str| Setup::new().behind("root", SIZE, address);
    let second = refused(&setup(&server.address()).create(&other, &store));
    let pid = lifeboat.proxy.as_ref().expect("a running proxy").id();
    assert!(second.contains(&format!("process {pid}")) && second.contains("root.upstream"), "{second}");
    lifeboat.stop();
    let absent = server.address().replace("disk?", "other?");
    let said = refused(&setup(&absent).create(&other, &store));
    assert!(said.contains("the server refused the export"), "{said}");
    server.stop();

    let read_only = Foreign::nbdkit(other.path(), "fixed", SIZE, &["-r"], &[]);
    let said = refused(&setup(&read_only.address()).create(&other, &store));
    assert!(said.contains("read-only") && said.contains("read_only = true"), "{said}");
    read_only.stop();
    let gone = refused(
        &setup(&Path::new("nbd+unix:///disk?socket=/nowhere/s").display().to_string()).create(&other, &store),
    );
    assert!(gone.contains("cannot connect") && gone.contains("is the server running"), "{gone}");
}
