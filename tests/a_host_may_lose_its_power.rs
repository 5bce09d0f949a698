//! Proxy and uploader run inside a VM, on disks without a host cache, under write load with flushes; the VM is killed with
//! -9, which is what a power loss is to it, and boots again. Then the next point equals the disk byte for byte, every earlier
//! point that was looked at restores as it did, and what was read again is within what was marked.
//!
//! The moments are random: during initial replication, under steady load, with a log so small that the disk goes in and out of
//! unlogged mode, and while the last round's catch-up is still going on. `LIFEBOAT_POWER_LOSSES` is the number of rounds.
#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod lab;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use lab::vm::{self, Vm};
use lab::{Client, MIB, Random, Scratch, Target, judge, run, scale, sparse, tool};
use serde_json::Value;

const DISK: u64 = 32 * MIB;
/// Programs of this system run in the guest with this system's libraries.
const RUN: &str = "/tools/ld.so --library-path /tools";

/// What this program is told in the guest: the seed of what to write.
const LOAD: &str = "LIFEBOAT_WRITE_LOAD";

/// Not a test but the guest's load: this program runs in the guest as well, and writes until it is killed.
#[test]
fn the_guest_writes() {
    let Ok(seed) = std::env::var(LOAD) else { return };
    let mut random = Random::new(seed.parse().expect("a seed"));
    let mut client = Client::connect(&Target::unix("/run/d.sock", "m/d"));
    let mut data = vec![0; 64 << 10];
    loop {
        let most = if random.below(4) == 0 { 128 } else { 8 };
        let len = 512 * (1 + random.below(most));
        let offset = random.below((DISK - len) / 512) * 512;
        let bytes = &mut data[..usize::try_from(len).expect("small")];
        random.fill(bytes);
        client.write(offset, bytes, 0);
        if random.below(12) == 0 {
            client.flush();
        }
    }
}

#[test]
fn power_loss_for_real() {
    let scratch = Scratch::new();
    if !(vm::available() && judge::have(&["mke2fs", "ldd", "strip"])) {
        return;
    }
    let disks = disks(&scratch);
    let seed = scale("LIFEBOAT_SEED", u64::from(std::process::id()));
    eprintln!("LIFEBOAT_SEED={seed}");
    let mut random = Random::new(seed);
    let mut proven: Vec<(String, String)> = Vec::new();
    for round in 0..scale("LIFEBOAT_POWER_LOSSES", 3) {
        let mut guest = boot(&disks);
        // Every third round the log is small, and the disk is without one most of the time.
        let small = round % 3 == 2;
        start(&mut guest, if small { "16 MiB" } else { "1 GiB" });
        if round > 0 {
            prove(&mut guest, &mut proven);
        }
        guest.type_line(&format!("{LOAD}={} {RUN} /tools/load the_guest_writes &", random.next() >> 1));
        std::thread::sleep(Duration::from_millis(500 + random.below(12_000)));
        guest.kill();
    }
    let mut guest = boot(&disks);
    start(&mut guest, "1 GiB");
    prove(&mut guest, &mut proven);
    eprintln!("{} points proven after power losses", proven.len());
    guest.kill();
}

/// Proves the next point, and again the earlier ones, which are in `proven` with the disk's checksum.
fn prove(guest: &mut Vm, proven: &mut Vec<(String, String)>) {
    let cut = json(&lifeboat(guest, "cut m --timeout 100s --json"));
    let point = cut["point"].as_str().unwrap_or_else(|| panic!("no point: {cut}")).to_owned();
    let disk = sum_of(&guest.sh("sha256sum /data/d.img"));
    proven.push((point, disk));
    for (point, wanted) in proven.iter() {
        guest.sh("rm -rf /vault/r");
        lifeboat(guest, &format!("restore m --to /vault/r --point {point}"));
        assert_eq!(&sum_of(&guest.sh("sha256sum /vault/r/d.raw")), wanted, "point {point}");
    }
    let jobs = json(&lifeboat(guest, "jobs --json"));
    let syncs = jobs["jobs"].as_array().into_iter().flatten().filter(|job| job["kind"] != "restore");
    let last = syncs.max_by_key(|job| job["started"].to_string()).unwrap_or(&Value::Null);
    assert_eq!(last["state"], "done", "{last}");
    let read = last["bytes_total"].as_u64().unwrap_or(u64::MAX);
    assert!(read <= DISK, "no more is read again than was marked: {last}");
    eprintln!("{}: {}, {read} of {DISK} bytes", proven.last().expect("one").0, last["cause"]);
}

/// What a command prints in the guest; it must succeed.
fn lifeboat(guest: &mut Vm, command: &str) -> String {
    guest.sh(&format!("{RUN} /tools/lifeboat --config /data/lifeboat.toml {command} 2>&1"))
}

fn json(printed: &str) -> Value {
    let text = printed.find('{').and_then(|from| printed.rfind('}').and_then(|to| printed.get(from..=to)));
    let text = text.unwrap_or_else(|| panic!("no JSON in {printed:?}"));
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

fn sum_of(printed: &str) -> String {
    let sum = printed.split_whitespace().find(|word| word.len() == 64);
    sum.unwrap_or_else(|| panic!("no checksum in {printed:?}")).to_owned()
}

/// Tools, data, vault.
fn disks(scratch: &Scratch) -> [PathBuf; 3] {
    let tools = scratch.join("tools.d");
    std::fs::create_dir(&tools).expect("a folder");
    let this = std::env::current_exe().expect("this program");
    for (program, name) in [(Path::new(env!("CARGO_BIN_EXE_lifeboat")), "lifeboat"), (&this, "load")] {
        let to = tools.join(name);
        run(Command::new("strip").arg("-o").arg(&to).arg(program));
        for line in run(Command::new("ldd").arg(program)).lines() {
            let Some(library) = line.split_whitespace().find(|word| word.starts_with('/')) else { continue };
            let name = Path::new(library).file_name().expect("a name");
            let name = if name.to_string_lossy().starts_with("ld-") { "ld.so".as_ref() } else { name };
            std::fs::copy(library, tools.join(name)).expect("a library");
        }
    }
    let [image, data, vault] = ["tools", "data", "vault"].map(|name| scratch.join(format!("{name}.img")));
    sparse(&image, 96 * MIB);
    sparse(&data, 256 * MIB);
    sparse(&vault, 256 * MIB);
    run(tool("mke2fs").args(["-q", "-t", "ext4", "-d"]).arg(&tools).arg(&image));
    let seed = scratch.join("data.d");
    std::fs::create_dir(&seed).expect("a folder");
    sparse(&seed.join("d.img"), DISK);
    run(tool("mke2fs").args(["-q", "-t", "ext4", "-d"]).arg(&seed).arg(&data));
    run(tool("mke2fs").args(["-q", "-t", "ext4"]).arg(&vault));
    [image, data, vault]
}

fn boot(disks: &[PathBuf; 3]) -> Vm {
    let mut guest = Vm::boot_files(disks);
    guest.sh("mkdir -p /tools /data /vault /run");
    guest.sh("mount -t ext4 -o ro /dev/vda /tools && mount -t ext4 /dev/vdb /data && mount -t ext4 /dev/vdc /vault");
    guest
}

fn start(guest: &mut Vm, log_limit: &str) {
    let config = format!(
        "state_dir = \"/data/state\"\nsite = \"here\"\n[vault]\nurl = \"file:///vault/v\"\nencryption = \"none\"\n\
         [policy]\ninterval = \"3s\"\nretry = [\"1s\"]\nlog_limit = \"{log_limit}\"\n\
         [[machine]]\nname = \"m\"\n[[machine.disk]]\nname = \"d\"\npath = \"/data/d.img\"\nlisten = \"unix:/run/d.sock\"\n"
    );
    let lines: Vec<String> = config.lines().map(|line| format!("echo '{line}'")).collect();
    guest.sh(&format!("({}) >/data/lifeboat.toml; mkdir -p /vault/v /data/state", lines.join("; ")));
    guest.sh(&format!(
        "{RUN} /tools/lifeboat --config /data/lifeboat.toml run >/run/ready 2>/run/log & sleep 1"
    ));
    guest.sh("n=0; until grep -q ready /run/ready || [ $n -gt 90 ]; do n=$((n+1)); sleep 1; done");
    guest.sh("grep -q ready /run/ready || { cat /run/log; false; }");
}
