//! `scripts/mutate` takes hours, so its table must not rot in between: every text that it replaces is where it says, once, and
//! every test that must go red is there.
#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All Rust below `folder`, as one text.
fn sources(folder: &Path, out: &mut String) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            out.push_str(&read(&path));
        }
    }
}

#[test]
fn every_mutation_finds_its_text_and_its_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table: toml::Table = read(&root.join("scripts/mutations.toml")).parse().expect("the table");
    let mutations = table["mutation"].as_array().expect("mutations");
    assert!(mutations.len() > 90, "only {} mutations", mutations.len());
    let mut wrong = Vec::new();
    for mutation in mutations {
        let of = |key: &str| mutation[key].as_str().unwrap_or_else(|| panic!("no {key} in {mutation}"));
        let times = read(&root.join(of("file"))).matches(of("old")).count();
        if times != 1 || of("old") == of("new") {
            wrong.push(format!("{}: its text occurs {times} times in {}", of("guard"), of("file")));
        }
        let (place, name) = of("test").split_once("::").expect("PLACE::NAME");
        let mut text = String::new();
        match place.ends_with(".rs") {
            true => text = read(&root.join("tests").join(place)),
            false => sources(&root.join(place).join("src"), &mut text),
        }
        if !text.contains(&format!("fn {name}(")) {
            wrong.push(format!("{}: there is no test {}", of("guard"), of("test")));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
