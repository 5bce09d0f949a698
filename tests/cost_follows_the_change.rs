//! What a point costs depends on what was changed and on nothing else: not on the disk's size, not on its history.
#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod lab;

use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;
use std::time::Instant;

use lab::lifeboat::number;
use lab::{Client, GIB, KIB, MIB, Random, Scratch, Setup, Store, judge, run, scale, tool};

const BLOCK: usize = 4096;

/// 2,000 random 4 KiB blocks on an 8 GiB disk cost what `zstd -1` makes of them, a tenth more, and 64 KiB.
#[test]
fn a_point_ships_what_was_written_and_little_more() {
    let scratch = Scratch::new();
    let setup = Setup::new().disk("root", 8 * GIB);
    let mut lifeboat = setup.create(&scratch, &Store::folder(&scratch)).run();
    lifeboat.wait_protected();

    let mut client = Client::connect(&lifeboat.disk("root").target);
    let mut random = Random::new(2);
    let (mut all, mut taken) = (Vec::new(), std::collections::HashSet::new());
    while taken.len() < 2000 {
        let block = random.below(8 * GIB / BLOCK as u64);
        if !taken.insert(block) {
            continue;
        }
        // Half noise, half text: as well compressible as disks are.
        let mut data = "a line of a log file, like many others\n".repeat(BLOCK / 39 + 1).into_bytes();
        data.truncate(BLOCK);
        random.fill(&mut data[..BLOCK / 2]);
        client.write(block * BLOCK as u64, &data, 0);
        all.extend(data);
    }
    let blocks = scratch.join("blocks");
    std::fs::write(&blocks, &all).expect("room");
    run(Command::new("zstd").args(["-q", "-1"]).arg(&blocks));
    let compressed = std::fs::metadata(scratch.join("blocks.zst")).expect("what zstd made").len();

    let cut = lifeboat.cut();
    let (bytes, puts, lists) = (number(&cut, "bytes"), number(&cut, "puts"), number(&cut, "lists"));
    eprintln!(
        "2,000 blocks of 4 KiB: {bytes} bytes in {puts} puts, {lists} lists; zstd -1 makes {compressed}"
    );
    assert!(bytes * 10 <= compressed * 11 + 640 * KIB, "{bytes} bytes for {compressed} compressed");
    assert!(puts <= 4, "{puts} puts");
    assert_eq!(lists, 0, "lists on the hot path");
    lifeboat.stop();
}

/// A 1 TiB disk with a little data is protected, cut and restored at the cost of that data.
/// `LIFEBOAT_SPARSE_MIB` is how much.
#[test]
fn an_empty_tebibyte_costs_nothing() {
    if !judge::have(&["qemu-img"]) {
        return;
    }
    let scratch = Scratch::new();
    let setup = Setup::new().disk("big", 1024 * GIB);
    let lifeboat = setup.create(&scratch, &Store::folder(&scratch));
    let mib = scale("LIFEBOAT_SPARSE_MIB", 128);
    scatter(&lifeboat.disk("big").image, mib);

    let start = Instant::now();
    let mut lifeboat = lifeboat.run();
    lifeboat.wait_protected();
    let protected = start.elapsed();
    Client::connect(&lifeboat.disk("big").target).write(777 * GIB + 5, b"the last write", 0);
    let cut = lifeboat.cut();
    assert!(number(&cut, "bytes") < 64 * KIB, "one small write: {cut}");
    let vault: u64 = run(Command::new("du").args(["-sb"]).arg(scratch.join("vault")))
        .split_whitespace()
        .next()
        .expect("a size")
        .parse()
        .expect("a size");
    assert!(vault < (mib + mib / 20 + 4) * MIB, "{vault} bytes in the vault for {mib} MiB of data");

    let start = Instant::now();
    let restored = lifeboat.restore("latest", &scratch.join("restored")).remove(0);
    eprintln!("{mib} MiB on 1 TiB: protected in {protected:?}, restored in {:?}", start.elapsed());
    let metadata = std::fs::metadata(&restored).expect("the restored disk");
    assert_eq!(metadata.len(), 1024 * GIB);
    assert!(metadata.blocks() * 512 < (mib + mib / 20 + 4) * MIB, "the restored disk is not sparse");
    lifeboat.stop();
    let image = &lifeboat.disk("big").image;
    run(tool("qemu-img").args(["compare", "-q", "-f", "raw", "-F", "raw"]).arg(image).arg(&restored));
}

/// Puts `mib` pieces of 1 MiB of noise all over an image.
fn scatter(image: &std::path::Path, mib: u64) {
    let file = std::fs::File::options().write(true).open(image).expect("the image");
    let size = file.metadata().expect("its size").len();
    let mut random = Random::new(7);
    let mut piece = vec![0; usize::try_from(MIB).expect("a MiB")];
    for n in 0..mib {
        random.fill(&mut piece);
        file.write_all_at(&piece, n * (size / mib) / BLOCK as u64 * BLOCK as u64).expect("room");
    }
}
