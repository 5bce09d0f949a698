//! Proxy and uploader run inside a VM, on disks without a host cache, under write load with flushes; the VM is killed with
//! -9, which is what a power loss is to it, and boots again. Then the next point equals the disk byte for byte, earlier points
//! restore as they did, and what was read again is within what was marked. In the end every point of every machine is restored
//! from what is left of the vault.
//!
//! The moments are random, each within one of these phases, which the daemons say they are in:
//! initial replication of a new machine, unlogged mode, a resync that was asked for, steady load, and the catch-up after the
//! power loss before. The first three rounds are one each of the first three. `LIFEBOAT_POWER_LOSSES` is the number of rounds.
#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod lab;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use lab::guest::{NEEDED, RUN, Tools, check_ext4, make_ext4, take_out_folder};
use lab::lifeboat::{number, text};
use lab::vm::{self, Vm};
use lab::{Client, GIB, MIB, Random, Scratch, Target, judge, run, scale};
use serde_json::Value;

const DISK: u64 = 48 * MIB;
/// Where the guest writes: three regions of the intent map in twelve. Elsewhere stands what does not compress.
const WRITTEN: Range<u64> = 16 * MIB..28 * MIB;

/// What this program is told in the guest: the seed of what to write.
const LOAD: &str = "LIFEBOAT_WRITE_LOAD";

/// Not a test but the guest's load: this program runs in the guest as well, and writes until it is killed.
#[test]
fn the_guest_writes() {
    let Ok(seed) = std::env::var(LOAD) else { return };
    let mut random = Random::new(seed.parse().expect("a seed"));
    let mut client = Client::connect(&Target::unix("/run/d.sock", ""));
    let mut data = vec![0; 64 << 10];
    loop {
        let most = if random.below(4) == 0 { 128 } else { 8 };
        let len = 512 * (1 + random.below(most));
        let offset = WRITTEN.start + random.below((WRITTEN.end - WRITTEN.start - len) / 512) * 512;
        let bytes = &mut data[..usize::try_from(len).expect("small")];
        random.fill(bytes);
        client.write(offset, bytes, 0);
        if random.below(12) == 0 {
            client.flush();
        }
    }
}

/// What goes on when the power goes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Initial,
    Unlogged,
    Resync,
    Steady,
    CatchUp,
}

const PHASES: [Phase; 5] = [Phase::Initial, Phase::Unlogged, Phase::Resync, Phase::Steady, Phase::CatchUp];

impl Phase {
    /// Lines of the policy. What is copied slowly is still being copied when the power goes.
    fn policy(self) -> &'static str {
        match self {
            Self::Steady => "",
            Self::Unlogged => "log_limit = \"16 MiB\"\ncopy_limit = \"1 MiB/s\"",
            Self::Initial | Self::Resync | Self::CatchUp => "copy_limit = \"2 MiB/s\"",
        }
    }

    /// What `status --json` shows in it, as a pattern of grep.
    fn shows(self) -> &'static str {
        match self {
            Self::Steady => "\"state\": *\"protected\"",
            Self::Unlogged => "log_limit",
            Self::Initial => "\"state\": *\"initial\"",
            Self::Resync => "asked for by",
            Self::CatchUp => "\"state\": *\"\\(initial\\|resync\\|catching-up\\)\"",
        }
    }
}

/// A point that was equal to the disk.
struct Proven {
    machine: String,
    point: String,
    sum: String,
}

/// The host that loses its power again and again.
struct Host {
    disks: [PathBuf; 3],
    random: Random,
    /// How many machines there have been; each has had the same disk.
    machines: u32,
    proven: Vec<Proven>,
    /// What each catch-up has read.
    read: Vec<u64>,
}

#[test]
fn power_loss_for_real() {
    let scratch = Scratch::new();
    if !(vm::available() && judge::have(&NEEDED)) {
        return;
    }
    let seed = scale("LIFEBOAT_SEED", u64::from(std::process::id()));
    eprintln!("LIFEBOAT_SEED={seed}");
    let mut random = Random::new(seed);
    let disks = disks(&scratch, &mut random);
    let mut host = Host { disks, random, machines: 0, proven: Vec::new(), read: Vec::new() };
    for round in 0..scale("LIFEBOAT_POWER_LOSSES", 3) {
        let phase = match usize::try_from(round) {
            Ok(round) if round < 3 => PHASES[round],
            _ => PHASES[usize::try_from(host.random.below(5)).expect("small")],
        };
        host.lose_power_in(phase);
    }
    let mut guest = host.boot();
    host.prove(&mut guest);
    guest.sh("umount /vault");
    guest.kill();
    assert!(host.read.iter().any(|read| *read < DISK), "everything was marked every time: {:?}", host.read);
    host.restore_everything(&scratch);
}

impl Host {
    fn machine(&self) -> String {
        format!("m{}", self.machines)
    }

    fn lose_power_in(&mut self, phase: Phase) {
        let mut guest = self.boot();
        if self.machines > 0 && phase != Phase::CatchUp {
            self.prove(&mut guest);
            guest.sh("kill $(cat /run/pid); wait $(cat /run/pid)");
        }
        if phase == Phase::Initial {
            self.machines += 1;
        }
        self.start(&mut guest, phase.policy());
        if phase == Phase::Resync {
            lifeboat(&mut guest, &format!("resync {}", self.machine()));
        }
        guest.type_line(&format!("{LOAD}={} {RUN} /tools/load the_guest_writes &", self.random.next() >> 1));
        guest.sh(&format!(
            "n=0; until {RUN} /tools/lifeboat --config /data/lifeboat.toml status --json | grep -q '{}'; do \
             n=$((n+1)); [ $n -lt 400 ] || break; sleep 0.1; done; [ $n -lt 400 ]",
            phase.shows()
        ));
        let longer = self.random.below(if phase == Phase::Steady { 12_000 } else { 5_000 });
        std::thread::sleep(Duration::from_millis(longer));
        guest.kill();
        eprintln!("power lost: {phase:?}, {longer} ms after it had begun");
    }

    /// Proves the next point, and again some of the earlier ones.
    fn prove(&mut self, guest: &mut Vm) {
        let marked = self.marked(guest);
        self.start(guest, "");
        let machine = self.machine();
        let cut = json(&lifeboat(guest, &format!("cut {machine} --timeout 100s --json")));
        let (point, sum) = (text(&cut, "point"), sum_of(&guest.sh("sha256sum /data/d.img")));
        let jobs = json(&lifeboat(guest, "jobs --json"));
        let syncs = jobs["jobs"].as_array().into_iter().flatten().filter(|job| job["machine"] == *machine);
        let syncs = syncs.filter(|job| job["kind"] != "restore");
        let last = syncs.max_by_key(|job| text(job, "started")).expect("a sync");
        assert_eq!(last["state"], "done", "{last}");
        // A new machine, and a resync that was asked for, read everything.
        let whole = last["kind"] == "initial-replication" || text(last, "cause").contains("asked for");
        let (read, bound) = (number(last, "bytes_total"), if whole { DISK } else { marked });
        assert!(read <= bound, "{read} bytes are read again, {bound} were marked: {last}");
        eprintln!("{machine} {point}: {}, {read} read of {marked} marked", last["cause"]);
        self.read.push(read);
        self.proven.push(Proven { machine, point, sum });
        for _ in 0..2 {
            let at = self.random.below(self.proven.len() as u64);
            self.restores(guest, &self.proven[usize::try_from(at).expect("small")]);
        }
        self.restores(guest, self.proven.last().expect("the one just made"));
    }

    fn restores(&self, guest: &mut Vm, proven: &Proven) {
        let Proven { machine, point, sum } = proven;
        guest.sh("rm -rf /vault/r");
        lifeboat(guest, &format!("restore {machine} --to /vault/r --point {point}"));
        assert_eq!(sum_of(&guest.sh("sha256sum /vault/r/d.raw")), *sum, "point {point} of {machine}");
        guest.sh("rm -rf /vault/r");
    }

    /// From the vault's disk alone: the proven points are what they were, and the others restore.
    fn restore_everything(&self, scratch: &Scratch) {
        check_ext4(&self.disks[2]);
        let (vault, to) = (scratch.join("left"), scratch.join("restored"));
        take_out_folder(&self.disks[2], "/v", &vault);
        let config = scratch.join("reader.toml");
        let text_of = format!(
            "state_dir = \"{}\"\nsite = \"elsewhere\"\n[vault]\nurl = \"file://{}/v\"\nencryption = \"none\"\n",
            scratch.join("state").display(),
            vault.display()
        );
        std::fs::write(&config, text_of).expect("a configuration");
        let elsewhere = |args: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
            json(&run(command.arg("--config").arg(&config).arg("--json").args(args)))
        };
        let mut points = 0;
        for machine in (1..=self.machines).map(|number| format!("m{number}")) {
            let listed = elsewhere(&["points", &machine, "--generation", "all"]);
            for point in listed["points"].as_array().into_iter().flatten().map(|point| text(point, "id")) {
                let folder = to.to_str().expect("a plain path");
                elsewhere(&["restore", &machine, "--to", folder, "--point", &point, "--force"]);
                let proven =
                    self.proven.iter().find(|proven| proven.machine == machine && proven.point == point);
                if let Some(proven) = proven {
                    let sum = sum_of(&run(Command::new("sha256sum").arg(to.join("d.raw"))));
                    assert_eq!(sum, proven.sum, "point {point} of {machine}");
                }
                points += 1;
            }
        }
        eprintln!("{points} points restored, {} of them proven equal to the disk", self.proven.len());
        assert!(points >= self.proven.len());
    }

    fn boot(&self) -> Vm {
        let mut guest = Vm::boot_files(&self.disks);
        guest.sh("mkdir -p /tools /data /vault /run");
        guest.sh("mount -t ext4 -o ro /dev/vda /tools && mount -t ext4 /dev/vdb /data && mount -t ext4 /dev/vdc /vault");
        guest
    }

    fn start(&self, guest: &mut Vm, policy: &str) {
        let machine = self.machine();
        let config = format!(
            "state_dir = \"/data/state\"\nsite = \"here\"\n[vault]\nurl = \"file:///vault/v\"\nencryption = \"none\"\n\
             [policy]\ninterval = \"3s\"\nresync_window = \"always\"\nretry = [\"1s\"]\n{policy}\n\
             [[machine]]\nname = \"{machine}\"\n[[machine.disk]]\nname = \"d\"\npath = \"/data/d.img\"\nlisten = \"unix:/run/d.sock\"\n"
        );
        let lines: Vec<String> = config.lines().map(|line| format!("echo '{line}'")).collect();
        guest.sh(&format!(
            "({}) >/data/lifeboat.toml; mkdir -p /vault/v /data/state; rm -f /run/ready",
            lines.join("; ")
        ));
        guest.type_line(&format!("{RUN} /tools/lifeboat --config /data/lifeboat.toml run >/run/ready 2>>/run/log & echo $! >/run/pid"));
        guest.sh("n=0; until grep -q ready /run/ready || [ $n -gt 900 ]; do n=$((n+1)); sleep 0.1; done");
        guest.sh("grep -q ready /run/ready || { cat /run/log; false; }");
    }

    /// How many bytes the intent map of the disk marks, by the table of its format.
    fn marked(&self, guest: &mut Vm) -> u64 {
        let file = format!("/data/lifeboat-logs/{}/d/intent", self.machine());
        let printed = guest.sh(&format!("xxd -p {file}"));
        let digits: String =
            printed.lines().filter(|line| line.bytes().all(|byte| byte.is_ascii_hexdigit())).collect();
        let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).expect("two digits");
        let bytes: Vec<u8> = (0..digits.len() / 2).map(|at| byte(2 * at)).collect();
        let number = |sector: &[u8], at: usize| {
            u64::from_le_bytes(sector[at..at + 8].try_into().expect("eight bytes"))
        };
        let sound = |sector: &[u8]| {
            let sum = crc32c::crc32c_append(crc32c::crc32c(&sector[..20]), &sector[24..]);
            sector.starts_with(b"LBINTEN1") && sector[20..24] == sum.to_le_bytes()
        };
        let whole = |slot: &&[u8]| {
            slot.chunks(512).all(|sector| sound(sector) && number(sector, 8) == number(slot, 8))
        };
        let newest = bytes.chunks(bytes.len() / 2).filter(whole).max_by_key(|slot| number(slot, 8));
        let payload: Vec<u8> =
            newest.expect("a readable slot").chunks(512).flat_map(|sector| sector[24..].to_vec()).collect();
        let len = u32::from_le_bytes(payload[..4].try_into().expect("four bytes"));
        let map = &payload[4 + 32..4 + usize::try_from(len).expect("small")];
        map.iter().map(|byte| u64::from(byte.count_ones())).sum::<u64>() * 4 * MIB
    }
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

/// Tools, data, vault. The last two are sparse, with room for what all rounds write.
fn disks(scratch: &Scratch, random: &mut Random) -> [PathBuf; 3] {
    let tools = Tools::new(scratch);
    tools.program(Path::new(env!("CARGO_BIN_EXE_lifeboat")), "lifeboat");
    tools.program(&std::env::current_exe().expect("this program"), "load");
    let [data, vault] = ["data", "vault"].map(|name| scratch.join(format!("{name}.img")));
    let folder = scratch.join("data.d");
    std::fs::create_dir(&folder).expect("a folder");
    let mut disk = vec![0; usize::try_from(DISK).expect("small")];
    random.fill(&mut disk);
    std::fs::write(folder.join("d.img"), disk).expect("an image");
    make_ext4(&data, 2 * GIB, Some(&folder));
    make_ext4(&vault, 16 * GIB, None);
    [tools.image(96 * MIB), data, vault]
}
