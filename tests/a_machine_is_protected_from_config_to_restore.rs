//! The way of a machine through the commands: run, wait, cut, points, status, restore; over restarts of either daemon;
//! and, at the end, with nothing left but the vault.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod site;

use std::path::Path;

use nbd_proxy::client::Client;
use serde_json::Value;
use site::{Site, bare, bytes, said, until};

/// Writes `byte` over 64 KiB at `at` of a disk of `web1`.
fn write(site: &Site, disk: &str, at: u64, byte: u8) {
    let mut client = Client::connect(&site.socket(disk), &format!("web1/{disk}")).unwrap();
    client.write(&[byte; 65536], at).unwrap();
    client.flush().unwrap();
    client.close().unwrap();
}

fn cut(site: &Site) -> String {
    let cut = site.ok(&["cut", "web1", "--timeout", "60s", "--json"]).json();
    for key in ["point", "time", "bytes", "puts", "gets", "lists"] {
        assert!(!cut[key].is_null(), "{key} in {cut}");
    }
    assert_eq!(cut["lists"], 0);
    cut["point"].as_str().unwrap().to_owned()
}

fn points(site: &Site) -> Vec<Value> {
    let answer = site.ok(&["points", "web1", "--json"]).json();
    answer["points"].as_array().unwrap().clone()
}

fn machine(site: &Site) -> Value {
    site.ok(&["status", "--json"]).json()["machines"][0].clone()
}

fn restore(vault: &str, to: &Path, more: &[&str]) -> Value {
    let to = to.display().to_string();
    let mut args = vec!["restore", "web1", "--vault", vault, "--to", &to, "--json"];
    args.extend(more);
    let out = said(bare(&args));
    assert_eq!(out.code, 0, "{}", out.stderr);
    out.json()
}

#[test]
fn it_is_copied_cut_listed_and_restored() {
    let mut site = Site::with_machine();
    let run = site.start("run");
    write(&site, "root", 1 << 20, 0x11);
    write(&site, "data", 0, 0x22);
    site.ok(&["wait", "web1", "--for", "protected", "--timeout", "60s"]);
    let first = cut(&site);
    let before = [bytes(&site.path("root.img")), bytes(&site.path("data.img"))];
    write(&site, "root", 3 << 20, 0x33);
    let second = cut(&site);
    let after = bytes(&site.path("root.img"));
    assert_ne!(first, second);

    let listed = points(&site);
    let ids: Vec<&str> = listed.iter().map(|point| point["id"].as_str().unwrap()).collect();
    assert!(ids.contains(&first.as_str()) && ids.contains(&second.as_str()), "{ids:?}");
    assert!(listed.iter().all(|point| point["kind"] == "crash" && point["generation"] == 1));
    let status = machine(&site);
    assert_eq!((&status["name"], &status["health"]), (&"web1".into(), &"normal".into()), "{status}");
    assert!(status["rpo_seconds"].as_f64().unwrap() < 60.0);
    for disk in status["disks"].as_array().unwrap() {
        assert_eq!(disk["state"], "protected");
        assert!(disk["dirty_bytes"].is_u64() && disk["log_bytes"].is_u64() && disk["bytes_total"].is_u64());
    }
    let jobs = site.ok(&["jobs", "--json"]).json();
    assert_eq!(jobs["jobs"][0]["kind"], "initial-replication", "{jobs}");
    assert_eq!(site.stop(run), 0);
    let usage = site.ok(&["vault", "usage", "--json"]).json();
    let used = &usage["machines"][0];
    assert!(
        used["stored_bytes"].as_u64() > Some(0) && used["stored_bytes"] == usage["stored_bytes"],
        "{usage}"
    );
    assert!(
        used["days"][0]["puts"].as_u64() > Some(3) && used["days"][0]["bytes_up"].as_u64() > Some(0),
        "{usage}"
    );

    // The host is lost: only the vault is left.
    for gone in ["root.img", "data.img", "lifeboat.toml"] {
        std::fs::remove_file(site.path(gone)).unwrap();
    }
    std::fs::remove_dir_all(site.path("state")).unwrap();
    let vault = site.vault();
    let restored = restore(&vault, &site.path("first"), &["--point", &first]);
    assert_eq!(restored["point"], first.as_str());
    for (disk, expected) in ["root", "data"].iter().zip(&before) {
        assert!(bytes(&site.path(&format!("first/{disk}.raw"))) == *expected, "{disk} at {first}");
    }
    let restored = restore(&vault, &site.path("newest"), &["--disk", "root"]);
    assert_eq!(restored["disks"].as_array().unwrap().len(), 1);
    assert_eq!(restored["disks"][0]["sha256"].as_str().unwrap().len(), 64);
    assert!(bytes(&site.path("newest/root.raw")) == after);
    assert_eq!(said(bare(&["status", "--vault", &vault, "--json"])).json()["machines"][0]["name"], "web1");
    assert_eq!(said(bare(&["machines", "--vault", &vault, "--json"])).json()["machines"][0]["name"], "web1");
}

#[test]
fn what_does_not_exist_is_named_and_what_exists_is_not_overwritten() {
    let mut site = Site::with_machine();
    let run = site.start("run");
    site.ok(&["wait", "web1", "--for", "protected", "--timeout", "60s"]);
    cut(&site);
    let unknown = site.run(&["cut", "web9", "--json"]);
    assert_eq!((unknown.code, &unknown.error()["kind"]), (1, &"not-found".into()));
    assert!(unknown.error()["remedy"].as_str().unwrap().contains("web1"));
    assert_eq!(site.stop(run), 0);

    let to = site.path("out").display().to_string();
    let refused = |args: &[&str], kind: &str, names: &str| {
        let mut all = args.to_vec();
        all.push("--json");
        let out = site.run(&all);
        assert_eq!((out.code, &out.error()["kind"]), (1, &kind.into()), "{args:?}: {}", out.stderr);
        assert!(out.stderr.contains(names), "{args:?}: {}", out.stderr);
    };
    refused(&["points", "web9"], "not-found", "web9");
    refused(&["restore", "web9", "--to", &to], "not-found", "web9");
    refused(&["restore", "web1", "--to", &to, "--disk", "swap"], "not-found", "swap");
    refused(&["restore", "web1", "--to", &to, "--point", "g7-99"], "not-found", "g7-99");
    refused(&["restore", "web1", "--to", &to, "--point", "2001-01-01T00:00:00Z"], "not-found", "2001-01-01");
    assert!(!site.path("out/root.raw").exists());

    site.ok(&["restore", "web1", "--to", &to]);
    std::fs::write(site.path("out/root.raw"), "mine").unwrap();
    refused(&["restore", "web1", "--to", &to], "exists", "root.raw");
    assert_eq!(bytes(&site.path("out/root.raw")), b"mine");
    site.ok(&["restore", "web1", "--to", &to, "--force"]);
    assert!(bytes(&site.path("out/root.raw")) == bytes(&site.path("root.img")));
    let jobs = site.ok(&["jobs", "--json"]).json();
    let restores = jobs["jobs"].as_array().unwrap().iter().filter(|job| job["kind"] == "restore").count();
    assert!(restores >= 2, "{jobs}");
}

#[test]
fn either_daemon_may_be_killed_and_come_back() {
    let mut site = Site::with_machine();
    // The uploader may be first: it waits.
    let uploader = site.start("uploader");
    assert_eq!(site.run(&["status", "--json"]).code, 0);
    let proxy = site.start("proxy");
    write(&site, "root", 0, 1);
    site.ok(&["wait", "web1", "--for", "protected", "--timeout", "60s"]);
    cut(&site);

    site.kill(proxy);
    let proxy = site.start("proxy");
    write(&site, "root", 4 << 20, 2);
    site.ok(&["wait", "web1", "--for", "protected", "--timeout", "60s"]);
    cut(&site);

    site.kill(uploader);
    let status = machine(&site);
    assert!(
        status["health"] == "warning" && status["remedy"].as_str().unwrap().contains("uploader"),
        "{status}"
    );
    write(&site, "data", 1 << 20, 3);
    let uploader = site.start("uploader");
    site.ok(&["wait", "web1", "--for", "protected", "--timeout", "60s"]);
    let newest = cut(&site);
    assert_eq!((site.stop(uploader), site.stop(proxy)), (0, 0));

    restore(&site.vault(), &site.path("out"), &["--point", &newest]);
    for disk in ["root", "data"] {
        assert!(
            bytes(&site.path(&format!("out/{disk}.raw"))) == bytes(&site.path(&format!("{disk}.img"))),
            "{disk}"
        );
    }
    let initial = site.ok(&["jobs", "--json"]).json();
    let copies = initial["jobs"].as_array().unwrap().iter().filter(|job| job["kind"] != "restore").count();
    assert_eq!(copies, 1, "a kill costs no second copy: {initial}");
}

#[test]
fn a_paused_machine_makes_no_point_until_it_is_resumed() {
    let mut site = Site::with_machine();
    site.start("run");
    site.ok(&["wait", "web1", "--for", "protected", "--timeout", "60s"]);
    site.ok(&["pause", "web1"]);
    site.ok(&["wait", "web1", "--for", "paused", "--timeout", "20s"]);
    let count = points(&site).len();
    write(&site, "root", 0, 9);
    std::thread::sleep(std::time::Duration::from_millis(2500));
    assert_eq!(points(&site).len(), count);
    let late = site.run(&["wait", "web1", "--for", "protected", "--timeout", "1s"]);
    assert!(late.code == 1 && late.stderr.contains("paused"), "{}", late.stderr);
    site.ok(&["resume", "web1"]);
    site.ok(&["wait", "web1", "--for", "protected", "--timeout", "60s"]);
    until("a point after resume", || points(&site).len() > count);
}

#[test]
fn a_second_lifeboat_is_refused_and_names_the_first() {
    let mut site = Site::with_machine();
    let run = site.start("run");
    for role in ["run", "proxy", "uploader"] {
        let out = site.run(&[role]);
        assert_eq!(out.code, 1, "{role}: {}", out.stderr);
        assert!(out.stderr.contains(&format!("process {run}")), "{role}: {}", out.stderr);
    }
    // Another state folder, the same disks.
    let text = site
        .usual("")
        .replace(&site.path("state").display().to_string(), &site.path("other").display().to_string());
    std::fs::write(site.path("other.toml"), text).unwrap();
    let out = site.run(&["proxy", "--config", &site.path("other.toml").display().to_string()]);
    assert_eq!(out.code, 1, "{}", out.stderr);
    assert!(out.stderr.contains("root.img"), "{}", out.stderr);
    assert_eq!(site.ok(&["status", "--json"]).json()["machines"][0]["name"], "web1");
}

#[test]
fn a_vault_that_cannot_be_made_stops_nobody_and_says_what_to_do() {
    let mut site = Site::with_machine();
    site.config(&site.usual("").replace("encryption = \"none\"", ""));
    let run = site.start("run");
    write(&site, "root", 0, 5);
    until("the cause in status", || {
        machine(&site)["remedy"].as_str().unwrap().contains("encryption = \"none\"")
    });
    assert_ne!(machine(&site)["health"], "normal");
    assert!(!site.path("vault").exists());
    write(&site, "root", 1 << 20, 6);
    assert_eq!(site.stop(run), 0);
}

#[test]
fn a_resync_keeps_every_point_and_ends_in_an_exact_one() {
    let mut site = Site::with_machine();
    let run = site.start("run");
    write(&site, "root", 0, 1);
    site.ok(&["wait", "web1", "--for", "protected", "--timeout", "60s"]);
    let before = cut(&site);
    let then = bytes(&site.path("root.img"));
    // Asked at once after the reply, it says what is going on: nobody takes the old state for the new one.
    site.ok(&["resync", "web1"]);
    let early = site.run(&["wait", "web1", "--for", "protected", "--timeout", "0s"]);
    assert!(early.code == 0 || early.stderr.contains("root is resync"), "{}", early.stderr);
    if early.code == 0 {
        assert_eq!(
            site.ok(&["jobs", "--json"]).json()["jobs"][0]["kind"],
            "resync",
            "the old state was seen"
        );
    }
    write(&site, "root", 1 << 20, 2);
    site.ok(&["wait", "web1", "--for", "protected", "--timeout", "60s"]);
    let after = cut(&site);
    assert_eq!(site.stop(run), 0);
    let jobs = site.ok(&["jobs", "--json"]).json();
    assert_eq!(jobs["jobs"][0]["kind"], "resync", "{jobs}");
    assert_eq!(jobs["jobs"][0]["state"], "done", "{jobs}");
    assert_eq!(jobs["jobs"][0]["cause"], "asked for by `lifeboat resync`", "{jobs}");
    restore(&site.vault(), &site.path("before"), &["--point", &before]);
    assert!(bytes(&site.path("before/root.raw")) == then);
    restore(&site.vault(), &site.path("after"), &["--point", &after]);
    assert!(bytes(&site.path("after/root.raw")) == bytes(&site.path("root.img")));
}
