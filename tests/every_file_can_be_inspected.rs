//! `inspect` says what is in each kind of file, and names a broken one; `restore` never turns a broken object into a disk.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod site;

use std::fs;
use std::path::{Path, PathBuf};

use nbd_proxy::client::Client;
use serde_json::Value;
use site::{Said, Site, bare, bytes, said};

/// Every file below `dir`.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

fn inspect(path: &Path) -> Said {
    said(bare(&["inspect", &path.display().to_string(), "--json"]))
}

/// A site with a large delta, small ones inside their points, and a segment with records that are not shipped.
fn site() -> (Site, u32) {
    let mut site = Site::with_machine();
    site.config(&site.usual("").replace("interval = \"1s\"", "interval = \"24h\""));
    let noise: Vec<u8> =
        (0..2_u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0]).collect();
    let run = site.start("run");
    let mut client = Client::connect(&site.socket("root"), "web1/root").unwrap();
    client.write(&noise, 0).unwrap();
    site.ok(&["wait", "web1", "--for", "protected", "--timeout", "60s"]);
    client.write(&noise, 4 << 20).unwrap();
    site.ok(&["cut", "web1", "--timeout", "60s"]);
    client.write(&[3; 5000], 100).unwrap();
    site.ok(&["cut", "web1", "--timeout", "60s"]);
    client.write(&[4; 70_000], 1 << 20).unwrap();
    client.trim(8 << 20, 1 << 20).unwrap();
    client.close().unwrap();
    (site, run)
}

/// What is said of the segment with the records that are not shipped. One that was shipped may vanish meanwhile.
fn segment(site: &Site) -> Value {
    let folder = site.path("lifeboat-logs/web1/root");
    let segments = files(&folder).into_iter().filter(|path| path.extension().is_some_and(|end| end == "seg"));
    let said: Vec<Said> = segments.map(|path| inspect(&path)).collect();
    let gone = |said: &Said| said.code != 0 && said.error()["kind"] == "not-found";
    let mut told = said.iter().filter(|said| !gone(said)).map(Said::json);
    told.find(|segment| segment["data_bytes"] == 70_000).unwrap_or_else(|| panic!("no such segment"))
}

#[test]
fn segments_deltas_points_and_claims() {
    let (mut site, run) = site();
    let segment = segment(&site);
    assert_eq!(
        (&segment["kind"], &segment["zero_bytes"]),
        (&"segment".into(), &(1 << 20).into()),
        "{segment}"
    );
    assert_eq!(site.stop(run), 0);

    let objects = files(&site.path("vault/machines/web1"));
    assert!(objects.len() >= 4, "{objects:?}");
    for object in &objects {
        let out = inspect(object);
        assert_eq!(out.code, 0, "{}: {}", object.display(), out.stderr);
        assert!(out.json().is_object());
        let people = said(bare(&["inspect", &object.display().to_string()]));
        assert!(people.code == 0 && !people.stdout.trim().is_empty());
    }
}

#[test]
fn a_truncated_or_flipped_object_is_named_and_never_restored() {
    let (mut site, run) = site();
    assert_eq!(site.stop(run), 0);
    let vault = site.vault();
    let to = site.path("out");
    let to_text = to.display().to_string();
    let restore = || said(bare(&["restore", "web1", "--vault", &vault, "--to", &to_text, "--json"]));
    assert_eq!(restore().code, 0);
    let expected = [bytes(&to.join("root.raw")), bytes(&to.join("data.raw"))];
    fs::remove_dir_all(&to).unwrap();
    let mut refusals = 0;
    for object in files(&site.path("vault/machines/web1")) {
        let whole = bytes(&object);
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 0x10;
        for broken in [flipped, whole[..whole.len() - 3].to_vec(), Vec::new()] {
            fs::write(&object, &broken).unwrap();
            let name = object.file_name().unwrap().to_str().unwrap();
            let out = inspect(&object);
            assert!(out.code != 0 && out.stderr.contains(name), "{name}: {}", out.stderr);
            let out = restore();
            if out.code == 0 {
                // Not needed for this point, such as the claim; then the disks are exactly right.
                let restored = [bytes(&to.join("root.raw")), bytes(&to.join("data.raw"))];
                assert!(restored == expected, "{name} broken, wrong data restored");
            } else {
                refusals += 1;
                assert!(out.stderr.contains(name), "{name}: {}", out.stderr);
                assert!(!to.join("root.raw").exists() && !to.join("data.raw").exists(), "{name}");
            }
            let _ = fs::remove_dir_all(&to);
        }
        fs::write(&object, &whole).unwrap();
    }
    assert!(refusals >= 6, "hardly anything was needed: {refusals}");
}
