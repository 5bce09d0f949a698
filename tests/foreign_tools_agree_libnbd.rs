//! libnbd's tools, fio and fsx judge the exports of a protected machine, tracking on.
//!
//! `LIFEBOAT_FIO_SECONDS` and `LIFEBOAT_FSX_OPS` scale the long ones.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod lab;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lab::process::Process;
use lab::{Lifeboat, MIB, Random, Scratch, Setup, Store, judge, model, run, scale, tool, until};

fn protect(scratch: &Scratch, size: u64) -> Lifeboat {
    let setup = Setup::new().disk("root", size).disk("data", size).interval("2s");
    let lifeboat = setup.create(scratch, &Store::folder(scratch)).run();
    lifeboat.wait_protected();
    lifeboat
}

/// The point taken now is what the disks hold.
fn prove(lifeboat: &mut Lifeboat, scratch: &Scratch) {
    let point = lifeboat.cut_id();
    for (disk, restored) in lifeboat.disks().iter().zip(lifeboat.restore(&point, &scratch.join("restored"))) {
        assert!(model::same_file(&disk.image, &restored), "{} restored from {point} is another", disk.name);
    }
    lifeboat.stop();
}

#[test]
fn nbdinfo_lists_what_is_served() {
    if !judge::have(&["nbdinfo"]) {
        return;
    }
    let scratch = Scratch::new();
    let mut lifeboat = protect(&scratch, 16 * MIB);
    let disk = lifeboat.disk("root").target.clone();
    let answer = run(tool("nbdinfo").arg("--json").arg(disk.uri()));
    let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
    assert_eq!(answer["protocol"], "newstyle-fixed");
    assert_eq!(answer["structured"], true);
    let export = &answer["exports"][0];
    assert_eq!(export["export-size"], 16 * MIB);
    for what in ["can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero", "can_df", "can_cache"] {
        assert_eq!(export[what], true, "{what}: {export}");
    }
    assert_eq!(export["is_read_only"], false);
    assert_eq!(export["contexts"][0], "base:allocation", "{export}");

    // The empty name on a socket of one disk means that disk; LIST names it in full.
    let listed = run(tool("nbdinfo")
        .args(["--list", "--json"])
        .arg(lab::Target { export: String::new(), ..disk }.uri()));
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    let names: Vec<_> =
        listed["exports"].as_array().expect("exports").iter().map(|it| &it["export-name"]).collect();
    assert_eq!(names, ["vm1/root"], "{listed}");
    lifeboat.stop();
}

#[test]
fn nbdinfo_map_follows_the_data() {
    if !judge::have(&["nbdinfo"]) {
        return;
    }
    let scratch = Scratch::new();
    let mut lifeboat = protect(&scratch, 16 * MIB);
    let disk = lifeboat.disk("root");
    lab::Client::connect(&disk.target).write(4 * MIB, &vec![7; 65_536], 0);
    let map = run(tool("nbdinfo").args(["--map", "--json"]).arg(disk.target.uri()));
    let map: serde_json::Value = serde_json::from_str(&map).expect("JSON");
    let mut at = 0;
    for extent in map.as_array().expect("extents") {
        let (offset, len) =
            (lab::lifeboat::number(extent, "offset"), lab::lifeboat::number(extent, "length"));
        assert_eq!(offset, at, "extents follow one another: {map}");
        at += len;
        let data = offset < 4 * MIB + 65_536 && at > 4 * MIB;
        assert!(!data || extent["type"] == 0, "written bytes shown as a hole: {map}");
    }
    assert_eq!(at, 16 * MIB, "the map covers the disk: {map}");
    assert!(
        map.as_array().expect("extents").iter().any(|it| it["type"] == 3),
        "no hole in a sparse disk: {map}"
    );
    lifeboat.stop();
}

#[test]
fn nbdcopy_takes_a_disk_in_and_out_over_many_connections() {
    if !judge::have(&["nbdcopy"]) {
        return;
    }
    let scratch = Scratch::new();
    let mut lifeboat = protect(&scratch, 48 * MIB);
    let (there, back) = (scratch.join("there"), scratch.join("back"));
    let mut bytes = vec![0; usize::try_from(48 * MIB).expect("a size")];
    // Data, then nothing, then data again: holes are copied as such.
    let third = bytes.len() / 3;
    Random::new(1).fill(&mut bytes[..third]);
    Random::new(2).fill(&mut bytes[2 * third..]);
    std::fs::write(&there, &bytes).expect("room");
    let uri = lifeboat.disk("root").target.uri();
    run(tool("nbdcopy").args(["--connections=4", "--flush"]).arg(&there).arg(&uri));
    run(tool("nbdcopy").arg("--connections=4").arg(&uri).arg(&back));
    assert!(model::same_file(&there, &back), "what came out is not what went in");
    // From one of our disks to the other, by way of the judge.
    let other = lifeboat.disk("data").target.uri();
    run(tool("nbdcopy").args(["--connections=4", "--requests=16", "--flush"]).arg(&uri).arg(&other));
    assert!(
        model::same_file(&there, &lifeboat.disk("data").image),
        "the copy from export to export is another"
    );
    prove(&mut lifeboat, &scratch);
}

#[test]
fn fio_verifies_what_it_wrote_and_trimmed() {
    if !judge::have(&["fio"]) {
        return;
    }
    let scratch = Scratch::new();
    let mut lifeboat = protect(&scratch, 96 * MIB);
    let seconds = scale("LIFEBOAT_FIO_SECONDS", 8);
    let mut fio = tool("fio");
    fio.current_dir(scratch.path()).args([
        "--ioengine=nbd",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--group_reporting",
    ]);
    fio.args(["--time_based", &format!("--runtime={seconds}")]);
    fio.arg(format!("--uri={}", lifeboat.disk("root").target.uri()));
    // Deep and mixed; trims before writes of the same blocks, one at a time because their order matters; trims alone.
    fio.args(["--name=mixed", "--rw=randrw", "--bssplit=4k/60:64k/20:512/20", "--iodepth=16", "--size=32m"]);
    fio.args([
        "--name=trimmed",
        "--rw=randtrimwrite",
        "--bs=4k",
        "--iodepth=1",
        "--offset=32m",
        "--size=32m",
    ]);
    fio.args(["--verify_backlog=256", "--name=trim", "--rw=randtrim", "--bs=64k", "--iodepth=8"]);
    fio.args(["--offset=64m", "--size=32m"]);
    run(&mut fio);
    // And once more from the start to the end, so that everything is read back after the last write.
    let mut fio = tool("fio");
    fio.current_dir(scratch.path()).args([
        "--name=all",
        "--ioengine=nbd",
        "--verify=crc32c",
        "--verify_fatal=1",
    ]);
    fio.args(["--rw=randwrite", "--bs=4k", "--iodepth=16", "--size=24m", "--do_verify=1"]);
    run(fio.arg(format!("--uri={}", lifeboat.disk("data").target.uri())));
    prove(&mut lifeboat, &scratch);
}

#[test]
fn fsx_finds_no_difference_over_nbdfuse() {
    if !judge::have(&["fsx", "nbdfuse", "fusermount3"]) {
        return;
    }
    let scratch = Scratch::new();
    let mut lifeboat = protect(&scratch, 32 * MIB);
    let config = scratch.join("fsx.toml");
    let text = "blockmode = true\n[opsize]\nmin = 1\nmax = 65536\nalign = 1\n[weights]\nread = 10\nwrite = 10\n\
        punch_hole = 3\nfsync = 0.2\nfdatasync = 0.2\nclose_open = 0\ninvalidate = 0\nmapread = 0\nmapwrite = 0\n\
        truncate = 0\n";
    std::fs::write(&config, text).expect("a configuration");
    let mount = Mount::of(&lifeboat.disk("root").target.uri(), &scratch);
    let ops = scale("LIFEBOAT_FSX_OPS", 5_000).to_string();
    run(tool("fsx")
        .arg("-q")
        .arg("-P")
        .arg(scratch.path())
        .args(["-N", &ops, "-S", "5", "-f"])
        .arg(&config)
        .arg(&mount.file));
    drop(mount);
    prove(&mut lifeboat, &scratch);
}

/// Every illegal request gets the error that the protocol wants, and the connection lives on.
#[test]
fn libnbd_without_its_strictness_gets_the_exact_errors() {
    let python = Path::new("/usr/bin/python3");
    let present =
        python.exists() && judge::output(Command::new(python).args(["-c", "import nbd"])).status.success();
    if !(present || judge::absent("python3-libnbd")) {
        return;
    }
    let scratch = Scratch::new();
    let setup = Setup::new().disk("root", 64 * MIB).disk("iso", MIB).read_only("iso");
    let mut lifeboat = setup.create(&scratch, &Store::folder(&scratch)).run();
    lifeboat.wait_protected();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/judges/illegal_requests.py");
    let [disk, iso] = ["root", "iso"].map(|name| lifeboat.disk(name).target.uri());
    eprint!("{}", run(Command::new(python).arg(script).args([disk, iso])));
    prove(&mut lifeboat, &scratch);
}

/// A real file system on our export by way of nbdfuse and a loop device; needs root.
#[test]
fn ext4_on_nbdfuse_and_loop_stays_clean() {
    if !judge::have(&["nbdfuse", "fusermount3", "losetup", "mkfs.ext4", "e2fsck"]) {
        return;
    }
    if !run(Command::new("id").arg("-u")).starts_with("0\n") || !Path::new("/dev/loop-control").exists() {
        judge::absent("root, or the loop devices,");
        return;
    }
    let scratch = Scratch::new();
    let mut lifeboat = protect(&scratch, 64 * MIB);
    let mount = Mount::of(&lifeboat.disk("root").target.uri(), &scratch);
    let device = LoopDevice::of(&mount.file);
    run(tool("mkfs.ext4").arg("-q").arg(&device.0));
    let at = scratch.join("ext4");
    std::fs::create_dir(&at).expect("a folder");
    run(Command::new("mount").arg(&device.0).arg(&at));
    let script = "for i in $(seq 60); do head -c $((i * 3000)) /dev/urandom >f$i; [ $((i % 3)) = 0 ] && rm f$((i / 2)); done; \
        sync; sha256sum f* >sums; sync";
    run(Command::new("bash").args(["-ec", script]).current_dir(&at));
    run(Command::new("umount").arg(&at));
    run(tool("e2fsck").args(["-f", "-n"]).arg(&device.0));
    drop(device);
    drop(mount);
    let point = lifeboat.cut_id();
    let restored = lifeboat.restore(&point, &scratch.join("restored")).remove(0);
    run(tool("e2fsck").args(["-f", "-n"]).arg(&restored));
    run(Command::new("mount").args(["-o", "ro,loop"]).arg(&restored).arg(&at));
    let sums = judge::output(Command::new("sha256sum").args(["--quiet", "-c", "sums"]).current_dir(&at));
    run(Command::new("umount").arg(&at));
    assert!(sums.status.success(), "the restored files have other checksums: {sums:?}");
    lifeboat.stop();
}

/// An export as a file.
struct Mount {
    process: Process,
    folder: std::path::PathBuf,
    file: std::path::PathBuf,
}

impl Mount {
    fn of(uri: &str, scratch: &Scratch) -> Self {
        let folder = scratch.join("mount");
        std::fs::create_dir(&folder).expect("a folder");
        let process = Process::start(tool("nbdfuse").arg(&folder).arg(uri), &scratch.join("nbdfuse.log"));
        let file = folder.join("nbd");
        until("nbdfuse to serve", Duration::from_secs(10), || file.exists().then_some(()));
        Self { process, folder, file }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // A loop device lets go of its file a moment after it was told to.
        until("the end of nbdfuse", Duration::from_secs(10), || {
            judge::output(tool("fusermount3").arg("-u").arg(&self.folder)).status.success().then_some(())
        });
        self.process.wait(Duration::from_secs(10));
    }
}

struct LoopDevice(String);

impl LoopDevice {
    fn of(file: &Path) -> Self {
        Self(run(tool("losetup").args(["-f", "--show"]).arg(file)).trim().to_owned())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = judge::output(tool("losetup").args(["-d", &self.0]));
    }
}
