//! kill -9 of the uploader, of the proxy, of both in one process, at random moments under load.
//!
//! The clients connect again and send what was not answered, as QEMU does. Afterwards: every committed point is a
//! state the disks could have had at its instant; every answered byte is on the disk and in the next point; no point
//! after the first is as big as a full copy. `LIFEBOAT_KILLS` is the number of kills of each.
#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod lab;

use std::path::PathBuf;
use std::time::Duration;

use lab::history::Checker;
use lab::load::Load;
use lab::{Lifeboat, MIB, Random, Scratch, Setup, Store, scale};

/// Bytes at the end of each disk that nobody touches and nothing compresses: a full copy could not be overlooked.
const STILL: u64 = 48 * MIB;
const CLIENTS: usize = 2;

#[derive(Clone, Copy, PartialEq)]
enum Victim {
    Uploader,
    Proxy,
    Both,
}

#[test]
fn of_the_uploader() {
    kill(Victim::Uploader);
}

#[test]
fn of_the_proxy() {
    kill(Victim::Proxy);
}

#[test]
fn of_both_roles_in_one_process() {
    kill(Victim::Both);
}

fn kill(victim: Victim) {
    let scratch = Scratch::new();
    let store = Store::folder(&scratch);
    let size = Load::room(CLIENTS) + STILL;
    let setup = Setup::new().disk("root", size).disk("data", size).interval("1s").policy("retry = [\"1s\"]");
    let lifeboat = setup.create(&scratch, &store);
    fill(&lifeboat);
    let mut lifeboat = if victim == Victim::Both { lifeboat.run() } else { lifeboat.run_apart() };
    lifeboat.wait_protected();
    let first_points = lifeboat.points().len();

    let seed = u64::from(std::process::id()) ^ victim as u64;
    eprintln!("seed {seed}");
    let mut random = Random::new(seed);
    let load = Load::start(lifeboat.disks(), CLIENTS, seed, Duration::from_millis(2));
    for _ in 0..scale("LIFEBOAT_KILLS", 10) {
        load.wait_for(20);
        std::thread::sleep(Duration::from_millis(random.below(1500)));
        match victim {
            Victim::Uploader => {
                lifeboat.kill_uploader();
                lifeboat.start_uploader();
            }
            Victim::Proxy => {
                lifeboat.kill_proxy();
                lifeboat.start_proxy();
            }
            Victim::Both => {
                lifeboat.kill_proxy();
                lifeboat = lifeboat.run();
            }
        }
    }
    load.wait_for(20);
    let stripes = load.stop();

    let last = lifeboat.cut_id();
    let images: Vec<PathBuf> = lifeboat.disks().iter().map(|disk| disk.image.clone()).collect();
    Checker::new(&stripes).end("the disks themselves", &images);
    let points = lifeboat.points();
    // The interval may have added points of its own behind the one just cut: they hold the same.
    let end = points.iter().position(|point| point.id == last).expect("the point just cut is listed");
    let mut checker = Checker::new(&stripes);
    for (n, point) in points.iter().enumerate() {
        assert!(
            n < first_points || point.bytes < STILL / 2,
            "point {} has {} bytes: a full copy again",
            point.id,
            point.bytes
        );
        let to = scratch.join("restored");
        let restored = lifeboat.restore(&point.id, &to);
        if n >= end {
            checker.end(&point.id, &restored);
            let same = restored.iter().zip(&images).all(|(a, b)| lab::model::same_file(a, b));
            assert!(same, "point {} is not what the disks hold", point.id);
        } else {
            checker.point(&point.id, point.time, &restored);
        }
        std::fs::remove_dir_all(&to).expect("the restored folder");
    }
    let resent = stripes.iter().flat_map(|stripe| &stripe.writes).filter(|write| write.resent).count();
    assert!(victim == Victim::Uploader || resent > 0, "no request was ever cut off: the kills hit nothing");
    eprintln!("{} points proven, {resent} requests were cut off by a kill", points.len());
}

/// Writes the part of each disk that stays still.
fn fill(lifeboat: &Lifeboat) {
    use std::os::unix::fs::FileExt;
    let mut random = Random::new(9);
    let mut piece = vec![0; usize::try_from(MIB).expect("a MiB")];
    for disk in lifeboat.disks() {
        let file = std::fs::File::options().write(true).open(&disk.image).expect("the image");
        for at in (disk.size - STILL..disk.size).step_by(piece.len()) {
            random.fill(&mut piece);
            file.write_all_at(&piece, at).expect("room");
        }
    }
}
