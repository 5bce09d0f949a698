//! `lifeboat demo` runs on its own, proves every point, cleans up after itself, and says so when it cannot begin.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod site;

use site::{bare, said};

#[test]
fn every_point_comes_back_and_nothing_is_left_behind() {
    let dir = tempfile::tempdir().unwrap();
    let scratch = dir.path().join("story");
    let out = said(bare(&["demo", "--json", "--dir", &scratch.display().to_string()]));
    assert_eq!(out.code, 0, "{}", out.stderr);
    let points = out.json()["points"].as_array().unwrap().clone();
    assert_eq!(points.len(), 3);
    for point in &points {
        assert!(point["equal"] == true && point["before"] == point["restored"], "{point}");
        assert_eq!(point["restored"].as_str().unwrap().len(), 64);
    }
    assert_ne!(points[0]["restored"], points[2]["restored"], "the points differ, or nothing was proven");
    assert!(!scratch.exists());
}

#[test]
fn a_folder_with_something_in_it_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("mine"), "precious").unwrap();
    let out = said(bare(&["demo", "--dir", &dir.path().display().to_string()]));
    assert_eq!(out.code, 1);
    assert!(out.stderr.contains("not empty"), "{}", out.stderr);
    assert!(dir.path().join("mine").exists());
}
