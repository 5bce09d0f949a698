//! Third-party readers of block status: the changes of a cut as `nbdinfo` and QEMU see them, and QEMU 10's extended headers,
//! whose lengths go past 32 bits.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod lab;

use std::ops::Range;

use lab::lifeboat::{number, text};
use lab::{Client, GIB, KIB, Lifeboat, MIB, Scratch, Setup, Store, judge, run, tool};
use serde_json::Value;

/// Asks the proxy's control socket, as the uploader does.
fn control(lifeboat: &Lifeboat, path: &str, body: &str) -> Value {
    let socket = lifeboat.config().with_file_name("state").join("proxy.sock");
    let mut curl = tool("curl");
    curl.args(["--silent", "--show-error", "--fail-with-body", "--unix-socket"]).arg(socket);
    curl.args(["--json", body]).arg(format!("http://proxy/v1/machines/vm1/{path}"));
    serde_json::from_str(&run(&mut curl)).expect("JSON")
}

/// What a judge's map calls changed, neighbours joined.
fn changed(map: &Value, at: &str, len: &str, dirty: impl Fn(&Value) -> bool) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for extent in map.as_array().expect("extents").iter().filter(|extent| dirty(extent)) {
        let (start, end) = (number(extent, at), number(extent, at) + number(extent, len));
        match ranges.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => ranges.push(start..end),
        }
    }
    ranges
}

#[test]
fn nbdinfo_and_qemu_see_the_changes_of_the_cut_that_is_out() {
    if !judge::have(&["nbdinfo", "qemu-img", "qemu7:qemu-img", "curl"]) {
        return;
    }
    let scratch = Scratch::new();
    let mut lifeboat = Setup::new().disk("root", 8 * GIB).create(&scratch, &Store::folder(&scratch)).run();
    lifeboat.wait_protected();
    // Whatever was written before is in a point: the next cut has what follows and nothing else.
    lifeboat.cut();
    let disk = lifeboat.disk("root").target.clone();
    let mut client = Client::connect(&disk);
    client.write(MIB, &[1; 4096], 0);
    client.write(5 * GIB + 3 * 4096 + 17, &[2; 8192], 0);
    client.zero(7 * GIB, 64 << 10, 0);
    let written =
        vec![MIB..MIB + 4 * KIB, 5 * GIB + 12 * KIB..5 * GIB + 24 * KIB, 7 * GIB..7 * GIB + 64 * KIB];
    let cut = text(&control(&lifeboat, "cut", "{}"), "id");
    client.write(2 * MIB, &[3; 4096], 0);

    let context = format!("qemu:dirty-bitmap:{cut}");
    let info: Value =
        serde_json::from_str(&run(tool("nbdinfo").arg("--json").arg(disk.uri()))).expect("JSON");
    let contexts = info["exports"][0]["contexts"].as_array().expect("contexts");
    assert!(contexts.iter().any(|listed| *listed == context), "{info}");
    let map = run(tool("nbdinfo").args(["--json", &format!("--map={context}")]).arg(disk.uri()));
    let map: Value = serde_json::from_str(&map).expect("JSON");
    assert_eq!(changed(&map, "offset", "length", |extent| extent["type"] == 1), written, "{map}");
    // QEMU shows what is dirty as what holds no data; backup tools read bitmaps that way.
    for generation in ["qemu7:qemu-img", "qemu-img"] {
        let lab::client::Place::Unix(path) = &disk.place else { panic!("a Unix socket") };
        let options = format!(
            "driver=nbd,server.type=unix,server.path={},export=vm1/root,x-dirty-bitmap={context}",
            path.display()
        );
        let map = run(tool(generation).args(["map", "--output=json", "--image-opts", &options]));
        let map: Value = serde_json::from_str(&map).expect("JSON");
        assert_eq!(changed(&map, "start", "length", |extent| extent["data"] == false), written, "{map}");
    }

    control(&lifeboat, "release", &format!("{{\"cut\": \"{cut}\"}}"));
    let info: Value =
        serde_json::from_str(&run(tool("nbdinfo").arg("--json").arg(disk.uri()))).expect("JSON");
    let contexts = info["exports"][0]["contexts"].as_array().expect("contexts");
    assert_eq!(contexts, &["base:allocation"], "a released cut is told no more");
    let gone = judge::output(tool("nbdinfo").arg(format!("--map={context}")).arg(disk.uri()));
    let said = String::from_utf8_lossy(&gone.stdout);
    assert!(!said.contains("dirty") && !said.contains("clean"), "an answer about a released cut: {said}");
    lifeboat.stop();
}

/// QEMU 10 asks for extended headers first. Gigabytes are zeroed, discarded and mapped in requests of their length.
#[test]
fn qemu_10_speaks_in_extended_headers() {
    if !judge::have(&["qemu-io", "qemu-img", "qemu7:qemu-io"]) {
        return;
    }
    let scratch = Scratch::new();
    let setup = Setup::new().disk("root", 12 * GIB).log("nbd_proxy=debug,info");
    let mut lifeboat = setup.create(&scratch, &Store::folder(&scratch)).run();
    lifeboat.wait_protected();
    let uri = lifeboat.disk("root").target.uri();
    let framings = || {
        let log = std::fs::read_to_string(lifeboat.log()).expect("a log");
        let said = |what: &str| log.lines().filter(|line| line.contains(&format!("framing={what}"))).count();
        (said("Structured"), said("Extended"))
    };
    let mut old = tool("qemu7:qemu-io");
    run(old.args(["-f", "raw", "-c", "write -P 0x11 5G 64k", "-c", "read -P 0x11 5G 64k"]).arg(&uri));
    assert_eq!(framings(), (1, 0));
    let mut new = tool("qemu-io");
    new.args(["-f", "raw", "--discard=unmap"]);
    for command in [
        "write -P 0x22 11G 1M",
        "read -P 0x11 5G 64k",
        "write -z -u -n 0 9G",
        "read -P 0 5G 64k",
        "write -P 0x33 2G 64k",
        "discard 1G 1500M",
        "read -P 0 2G 64k",
        "read -P 0x22 11G 1M",
        "flush",
    ] {
        new.args(["-c", command]);
    }
    let output = judge::output(new.arg(&uri));
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("failed") && !said.contains("rror"), "{said}");
    assert_eq!(framings().1, 1, "QEMU 10 asked for extended headers and got them");
    let map: Value =
        serde_json::from_str(&run(tool("qemu-img").args(["map", "--output=json"]).arg(&uri))).expect("JSON");
    let first = &map[0];
    assert_eq!(
        (number(first, "start"), number(first, "length")),
        (0, 11 * GIB),
        "one extent past 32 bits: {map}"
    );
    // One record for gigabytes: what the log holds does not grow with the length.
    let log_bytes = number(&lifeboat.status()["disks"][0], "log_bytes");
    assert!(log_bytes < 4 * MIB, "{log_bytes} bytes of log for a few requests");
    lifeboat.cut();
    lifeboat.stop();
}
