//! `vault check` on every kind of store, and what is left of a locked bucket that somebody has emptied.
#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod lab;

use lab::lifeboat::MACHINE;
use lab::model::Model;
use lab::store::Kind;
use lab::{Client, Lifeboat, MIB, Scratch, Setup, Store};
use serde_json::Value;

const SIZE: u64 = 4 * MIB;

fn verdict(lifeboat: &Lifeboat, row: &str) -> String {
    let report = lifeboat.json_elsewhere(&["vault", "check"]);
    let rows = report["rows"].as_array().expect("rows").clone();
    assert!(rows.iter().all(|row| row["verdict"] != "fail" && row["verdict"] != "unknown"), "{report:#}");
    let row = rows.iter().find(|found| found["name"] == row).expect("the row");
    row["verdict"].as_str().expect("a verdict").to_owned()
}

fn check(kind: Kind) {
    let scratch = Scratch::new();
    let Some(store) = Store::of(kind, &scratch) else { return };
    let lifeboat = Setup::new().disk("root", SIZE).create(&scratch, &store);
    assert_eq!(verdict(&lifeboat, "deletion"), "pass");
}

#[test]
fn a_folder_is_fit_for_a_vault() {
    check(Kind::Folder);
}

#[test]
fn seaweedfs_is_fit_for_a_vault() {
    check(Kind::Seaweed);
}

#[test]
fn azurite_over_tls_is_fit_for_a_vault() {
    check(Kind::Azurite);
}

/// Everything in the bucket gets a delete marker, and one object a later version of another content besides.
fn empty(store: &Store) -> usize {
    let (bucket, prefix) = store.url.trim_start_matches("s3://").split_once('/').expect("a prefix");
    let listed = store.signed(&[], &format!("{bucket}?list-type=2&prefix={prefix}"));
    let keys = listed.split("<Key>").skip(1).map(|rest| rest.split("</Key>").next().expect("a key"));
    let keys: Vec<String> = keys.map(str::to_owned).collect();
    for key in &keys {
        if key.ends_with("lifeboat.json") {
            store.signed(&["-X", "PUT", "-d", "pay us"], &format!("{bucket}/{key}"));
        }
        store.signed(&["-X", "DELETE"], &format!("{bucket}/{key}"));
    }
    keys.len()
}

#[test]
fn an_emptied_bucket_that_keeps_versions_restores_every_point() {
    let scratch = Scratch::new();
    let Some(store) = Store::of(Kind::Seaweed, &scratch) else { return };
    let store = store.locked();
    let mut lifeboat = Setup::new().disk("root", SIZE).create(&scratch, &store).run();
    lifeboat.wait_protected();
    let mut model = Model::new(SIZE);
    let mut client = Client::connect(&lifeboat.disk("root").target);
    let mut points = Vec::new();
    for round in 0..3u8 {
        let data = vec![round + 1; 300_000];
        client.write(u64::from(round) * 200_000, &data, 0);
        model.write(u64::from(round) * 200_000, &data);
        points.push((lifeboat.cut_id(), model.clone()));
    }
    drop(client);
    lifeboat.stop();
    assert_eq!(verdict(&lifeboat, "deletion"), "note", "deleted by a marker");

    assert!(empty(&store) > 4);
    let gone = lifeboat.output_elsewhere(&["points", MACHINE, "--json"]);
    assert!(!gone.status.success(), "nothing is left to be seen");
    let seen: Value = lifeboat.json_elsewhere(&["points", MACHINE, "--undelete"]);
    assert!(seen["points"].as_array().expect("points").len() >= 3, "{seen}");
    for (point, model) in points {
        let to = scratch.join(&point);
        let target = to.display().to_string();
        lifeboat.json_elsewhere(&["restore", MACHINE, "--undelete", "--point", &point, "--to", &target]);
        model.expect(&to.join("root.raw"), &point);
    }
}
