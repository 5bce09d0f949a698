//! QEMU's tools, of two generations, judge the exports of a protected machine, tracking on.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod lab;

use std::path::Path;
use std::time::Duration;

use lab::vm::{self, Vm};
use lab::{Lifeboat, MIB, Random, Scratch, Setup, Store, judge, model, run, tool};

/// QEMU 10 asks for extended headers first and takes no for an answer; 7.2 never heard of them.
const GENERATIONS: [&str; 2] = ["qemu7:", ""];

fn protect(scratch: &Scratch, size: u64) -> Lifeboat {
    let setup = Setup::new().disk("root", size).interval("2s");
    let lifeboat = setup.create(scratch, &Store::folder(scratch)).run();
    lifeboat.wait_protected();
    lifeboat
}

fn prove(lifeboat: &mut Lifeboat, scratch: &Scratch, name: &str) {
    let point = lifeboat.cut_id();
    let restored =
        lifeboat.restore(&point, &scratch.join(format!("restored-{}", name.trim_end_matches(':')))).remove(0);
    assert!(
        model::same_file(&lifeboat.disk("root").image, &restored),
        "what was restored from {point} is another"
    );
}

#[test]
fn qemu_io_reads_back_what_it_wrote_zeroed_and_discarded() {
    let scratch = Scratch::new();
    if !judge::have(&["qemu7:qemu-io", "qemu-io"]) {
        return;
    }
    let mut lifeboat = protect(&scratch, 64 * MIB);
    for generation in GENERATIONS {
        let commands = [
            "write -P 0x11 0 64M",
            "write -f -P 0x22 1000 3000",
            "write -z 8k 64k",
            "write -z -u 1M 5M",
            "write -z -u -f 6M 4k",
            "write -z -n 7M 1M",
            "discard 10M 3M",
            "aio_write -P 0x33 20M 8M",
            "aio_write -P 0x44 29M 8M",
            "aio_flush",
            "flush",
            "read -P 0x11 0 1000",
            "read -P 0x22 1000 3000",
            "read -P 0x11 4000 4192",
            "read -P 0 8k 64k",
            "read -P 0x11 72k 952k",
            "read -P 0 1M 5M",
            "read -P 0 6M 4k",
            "read -P 0 7M 1M",
            "read -P 0 10M 3M",
            "read -P 0x33 20M 8M",
            "read -P 0x11 28M 1M",
            "read -P 0x44 29M 8M",
        ];
        let mut qemu_io = tool(&format!("{generation}qemu-io"));
        qemu_io.args(["-f", "raw", "--discard=unmap"]);
        for command in commands {
            // Refused where it may be: fast zeroing is a wish.
            qemu_io.args(["-c", command]);
        }
        let output = judge::output(qemu_io.arg(lifeboat.disk("root").target.uri()));
        let said =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = said.lines().filter(|line| !fast_zero_refused(line)).collect();
        let wrong =
            lines.iter().any(|line| ["failed", "rror", "nvalid"].iter().any(|word| line.contains(word)));
        assert!(!wrong, "qemu-io {generation}: {said}");
        prove(&mut lifeboat, &scratch, &format!("io-{generation}"));
    }
    lifeboat.stop();
}

fn fast_zero_refused(line: &str) -> bool {
    line.contains("Operation not supported")
}

#[test]
fn qemu_img_converts_compares_and_maps() {
    let scratch = Scratch::new();
    if !judge::have(&["qemu7:qemu-img", "qemu-img"]) {
        return;
    }
    let mut lifeboat = protect(&scratch, 64 * MIB);
    let uri = lifeboat.disk("root").target.uri();
    for (n, generation) in GENERATIONS.into_iter().enumerate() {
        let img = || tool(&format!("{generation}qemu-img"));
        let (source, qcow2) = (scratch.join(format!("source{n}")), scratch.join(format!("out{n}.qcow2")));
        noise_and_holes(&source, n as u64);
        // In: -n writes into the export that is there. Out: to another format. Then each against each.
        run(img().args(["convert", "-n", "-f", "raw", "-O", "raw", "-W", "-m", "16"]).arg(&source).arg(&uri));
        run(img().args(["convert", "-f", "raw", "-O", "qcow2"]).arg(&uri).arg(&qcow2));
        run(img().args(["compare", "-f", "raw", "-F", "raw"]).arg(&source).arg(&uri));
        run(img().args(["compare", "-f", "raw", "-F", "qcow2"]).arg(&uri).arg(&qcow2));
        let map = run(img().args(["map", "-f", "raw", "--output=json"]).arg(&uri));
        check_map(&map, &source);
        prove(&mut lifeboat, &scratch, &format!("img-{generation}"));
    }
    lifeboat.stop();
}

fn noise_and_holes(path: &Path, seed: u64) {
    use std::os::unix::fs::FileExt;
    lab::sparse(path, 64 * MIB);
    let file = std::fs::File::options().write(true).open(path).expect("an image");
    let mut random = Random::new(seed);
    for _ in 0..40 {
        let mut piece = vec![0; 1 + usize::try_from(random.below(300_000)).expect("small")];
        random.fill(&mut piece);
        file.write_all_at(&piece, random.below(64 * MIB - 300_001)).expect("room");
    }
}

/// The map covers the disk without a gap, and what it calls zero is zero in `source`.
fn check_map(map: &str, source: &Path) {
    let extents: serde_json::Value = serde_json::from_str(map).expect("JSON");
    let bytes = std::fs::read(source).expect("the source");
    let mut at = 0;
    for extent in extents.as_array().expect("extents") {
        let (start, length) =
            (lab::lifeboat::number(extent, "start"), lab::lifeboat::number(extent, "length"));
        assert_eq!(start, at, "extents follow one another: {map}");
        at += length;
        let range = usize::try_from(start).expect("an offset")..usize::try_from(at).expect("an offset");
        let zero = extent["zero"].as_bool().expect("a flag");
        assert!(!zero || bytes[range].iter().all(|byte| *byte == 0), "{extent} is not zero");
    }
    assert_eq!(at, 64 * MIB, "the map covers the disk");
    let called_zero = |extent: &serde_json::Value| extent["zero"] == true;
    assert!(extents.as_array().expect("extents").iter().any(called_zero), "no hole is seen: {map}");
}

/// Every read of a guest is compared, live, with a reference file that got the same writes; QEMU ends on a difference.
#[test]
fn blkverify_sees_the_same_as_the_guest() {
    let scratch = Scratch::new();
    if !(vm::available() && judge::have(&["mke2fs", "e2fsck"])) {
        return;
    }
    let setup = Setup::new().disk("root", 64 * MIB).interval("1s");
    let lifeboat = setup.create(&scratch, &Store::folder(&scratch));
    let reference = scratch.join("reference.img");
    let image = lifeboat.disk("root").image.clone();
    run(tool("mke2fs").args(["-q", "-t", "ext4"]).arg(&image));
    run(std::process::Command::new("cp").arg("--sparse=always").arg(&image).arg(&reference));
    let mut lifeboat = lifeboat.run();
    let mut guest = Vm::boot_verified(&lifeboat.disk("root").target, &reference);
    guest.sh("mount -t ext4 /dev/vda /mnt");
    for round in 0..4 {
        let script = "for i in 1 2 3 4 5 6 7 8; do dd if=/dev/urandom of=/mnt/r{round}f$i bs=16k count=$((i * 4)) conv=fsync \
            2>/dev/null; done; cat /mnt/* | sha256sum >/tmp/a; echo 3 >/proc/sys/vm/drop_caches; cat /mnt/* | sha256sum >/tmp/b; \
            rm -f /mnt/r{round}f3; cmp /tmp/a /tmp/b";
        guest.sh(&script.replace("{round}", &round.to_string()));
    }
    guest.sh("umount /mnt");
    guest.power_off();
    std::thread::sleep(Duration::from_millis(100));
    run(tool("e2fsck").args(["-f", "-n"]).arg(&image));
    assert!(model::same_file(&image, &reference), "the disk differs from the reference");
    prove(&mut lifeboat, &scratch, "verified");
    lifeboat.stop();
}
