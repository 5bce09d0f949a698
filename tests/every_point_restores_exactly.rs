//! Random writes, trims and zeroes of odd offsets and lengths over several connections and two disks, with cuts at
//! random, on the real binary: every point restores to exactly what a plain model of the disks held at its cut.
//!
//! Requests follow one another, each on a connection chosen at random, so the model is never in doubt; what many
//! connections do at the same time is `kill_at_any_moment.rs`. `LIFEBOAT_SEEDS` is the number of rounds, and
//! `LIFEBOAT_SEED` the first seed.
#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod lab;

use lab::client::{FUA, NO_HOLE};
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
            request(&mut clients[disk][client], &mut models[disk], &mut random);
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

fn request(client: &mut Client, model: &mut Model, random: &mut Random) {
    // Mostly small, sometimes big; every offset and length, and now and then whole blocks.
    let limit = [600, 9_000, 70_000, 1_500_000][usize::try_from(random.below(4)).expect("small")];
    let (mut len, mut offset) = (1 + random.below(limit), 0);
    if random.below(3) == 0 {
        len = len.next_multiple_of(4096);
    }
    if SIZE > len {
        offset = random.below(SIZE - len);
    }
    if random.below(3) == 0 {
        offset = offset / 4096 * 4096;
    }
    let len = usize::try_from(len).expect("a length");
    match random.below(10) {
        0 => client.flush(),
        1 => {
            client.trim(offset, len);
            model.zero(offset, len);
        }
        2 => {
            client.zero(offset, len, if random.below(2) == 0 { NO_HOLE } else { 0 });
            model.zero(offset, len);
        }
        3 => {
            let start = usize::try_from(offset).expect("an offset");
            assert!(
                client.read(offset, len) == model.bytes()[start..start + len],
                "a read at {offset}+{len}"
            );
        }
        kind => {
            let mut data = vec![0; len];
            random.fill(&mut data);
            client.write(offset, &data, if kind == 4 { FUA } else { 0 });
            model.write(offset, &data);
        }
    }
}
