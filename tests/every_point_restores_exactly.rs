//! Random writes, trims and zeroes of odd offsets and lengths over several connections and two disks, with cuts at
//! random, on the real binary: every point restores to exactly what a plain model of the disks held at its cut.
//!
//! Requests follow one another, each on a connection chosen at random, so the model is never in doubt; what many
//! connections do at the same time is `kill_at_any_moment.rs`. `LIFEBOAT_SEEDS` is the number of rounds, and
//! `LIFEBOAT_SEED` the first seed.
#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod lab;

use lab::model::Model;
use lab::store::Kind;
use lab::{Client, Lifeboat, MIB, Random, Scratch, Setup, Store, scale};

const SIZE: u64 = 12 * MIB + 4096;
const CONNECTIONS: usize = 3;

#[test]
fn in_a_folder() {
    rounds(Kind::Folder, scale("LIFEBOAT_SEEDS", 20));
}

#[test]
fn in_seaweedfs() {
    rounds(Kind::Seaweed, scale("LIFEBOAT_SEEDS", 20).div_ceil(10));
}

#[test]
fn in_azurite_over_tls() {
    rounds(Kind::Azurite, scale("LIFEBOAT_SEEDS", 20).div_ceil(10));
}

/// One machine lives through all rounds, so its history grows as a real one's does.
fn rounds(kind: Kind, rounds: u64) {
    let scratch = Scratch::new();
    let Some(store) = Store::of(kind, &scratch) else { return };
    let setup = Setup::new().disk("root", SIZE).disk("data", SIZE);
    let mut lifeboat = setup.create(&scratch, &store).run();
    lifeboat.wait_protected();
    let mut models = vec![Model::new(SIZE); 2];
    let first = scale("LIFEBOAT_SEED", 1);
    for seed in first..first + rounds {
        round(&lifeboat, &scratch, seed, &mut models);
    }
    lifeboat.stop();
}

fn round(lifeboat: &Lifeboat, scratch: &Scratch, seed: u64, models: &mut [Model]) {
    let mut random = Random::new(seed);
    let connect =
        |disk: &lab::lifeboat::Disk| (0..CONNECTIONS).map(|_| Client::connect(&disk.target)).collect();
    let mut clients: Vec<Vec<Client>> = lifeboat.disks().iter().map(connect).collect();
    let mut points = Vec::new();
    for _ in 0..1 + random.below(3) {
        for _ in 0..random.below(120) {
            let disk = usize::from(random.below(2) == 1);
            let client = usize::try_from(random.below(CONNECTIONS as u64)).expect("small");
            models[disk].any_request(&mut clients[disk][client], &mut random);
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
    let after = lifeboat.disks().iter().zip(models.iter());
    after.for_each(|(disk, model)| {
        model.expect(&disk.image, &format!("LIFEBOAT_SEED={seed}, the disk itself"))
    });
}
