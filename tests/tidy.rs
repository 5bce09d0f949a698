//! The rules of the house that no compiler knows, kept by a machine.
//!
//! Layers by their imports; lengths of files and functions, as a ratchet that only gets tighter; no unwrap outside tests; no
//! unfinished words; no paths of somebody's machine; no durable step without failpoints; each test that a document names exists. Sources are read as text,
//! line by line, in the shape that rustfmt gives them: that is enough for rules, and far from parsing Rust.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The longest file and the longest function, in lines. Lower them when you can; never raise them.
const FILE_MAX: usize = 500;
const FUNCTION_MAX: usize = 75;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A tracked file: its path below the root, and its text.
struct Source {
    path: String,
    text: String,
}

/// Everything that git would commit, so that what a build leaves behind is not looked at.
fn sources(wanted: impl Fn(&str) -> bool) -> Vec<Source> {
    let listing = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git");
    let names: Vec<String> = if listing.status.success() {
        String::from_utf8(listing.stdout).expect("names in UTF-8").lines().map(str::to_owned).collect()
    } else {
        // Unpacked from an archive: there is nothing but the source.
        let mut found = Vec::new();
        walk(root(), &mut found);
        found
    };
    let read =
        |path: String| Source { text: std::fs::read_to_string(root().join(&path)).unwrap_or_default(), path };
    let sources: Vec<Source> = names.into_iter().filter(|name| wanted(name)).map(read).collect();
    assert!(!sources.is_empty(), "found no source to look at");
    sources
}

fn walk(folder: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path: PathBuf = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                walk(&path, found);
            }
        } else if let Some(below) = path.strip_prefix(root()).ok().and_then(Path::to_str) {
            found.push(below.to_owned());
        }
    }
}

fn rust() -> Vec<Source> {
    sources(|name| name.ends_with(".rs"))
}

fn is_test(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    let in_folder =
        path.split('/').any(|part| matches!(part, "tests" | "testing" | "benches" | "examples" | "fuzz"));
    in_folder || name == "tests.rs" || name == "testing.rs" || name.ends_with("_tests.rs")
}

fn fail(rule: &str, found: &[String]) {
    assert!(found.is_empty(), "{rule}:\n  {}", found.join("\n  "));
}

/// Imports run downwards only, and each layer is ignorant of what its users deal in.
#[test]
fn layers_import_downwards_only() {
    let banned: [(&str, &[&str]); 3] = [
        (
            "nbd-proxy/src/",
            &["uploader::", "lifeboat::", "object_store::", "clap::", "toml::", "axum::", "anyhow::"],
        ),
        (
            "uploader/src/",
            &["lifeboat::", "clap::", "toml::", "axum::", "anyhow::", "nbd_proxy::nbd", "nbd_proxy::server"],
        ),
        ("src/", &["object_store::", "nbd_proxy::nbd::"]),
    ];
    let mut found = Vec::new();
    for source in rust() {
        let Some((_, words)) = banned.iter().find(|(layer, _)| source.path.starts_with(layer)) else {
            continue;
        };
        for (n, line) in code_lines(&source.text) {
            let named = |word: &&str| {
                line.match_indices(*word).any(|(at, _)| {
                    let before = line[..at].chars().next_back();
                    !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
                })
            };
            found.extend(
                words.iter().copied().filter(named).map(|word| format!("{}:{n} names {word}", source.path)),
            );
        }
    }
    fail("a layer knows what it must not", &found);
    manifests_depend_downwards_only();
}

fn manifests_depend_downwards_only() {
    let banned: [(&str, &[&str]); 2] = [
        ("nbd-proxy/Cargo.toml", &["uploader", "object_store", "clap", "toml", "lifeboat"]),
        ("uploader/Cargo.toml", &["clap", "toml", "lifeboat", "axum"]),
    ];
    let mut found = Vec::new();
    for (path, names) in banned {
        let text = std::fs::read_to_string(root().join(path)).expect("a manifest");
        let depends = |name: &&str| {
            text.lines()
                .any(|line| line.split(['.', ' ', '=']).next() == Some(*name) && !line.starts_with("name"))
        };
        found.extend(names.iter().copied().filter(depends).map(|name| format!("{path} depends on {name}")));
    }
    fail("a layer depends on what it must not", &found);
}

#[test]
fn files_stay_short() {
    let long = |source: &Source| source.text.lines().count() > FILE_MAX;
    let found: Vec<String> = rust().into_iter().filter(long).map(|source| source.path).collect();
    fail(&format!("over {FILE_MAX} lines: split by the question each part answers"), &found);
}

#[test]
fn functions_fit_a_screen() {
    let mut found = Vec::new();
    for source in rust() {
        found.extend(
            long_functions(&source.text).map(|(n, len)| format!("{}:{n} has {len} lines", source.path)),
        );
    }
    fail(&format!("a function of more than {FUNCTION_MAX} lines"), &found);
}

/// Functions by rustfmt's indentation: from `fn` to the closing brace at the same depth.
fn long_functions(text: &str) -> impl Iterator<Item = (usize, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (n, line) in lines.iter().enumerate() {
        let indent = line.len() - line.trim_start().len();
        if !is_function(line.trim_start()) {
            continue;
        }
        let close = format!("{}}}", &line[..indent]);
        let len = lines[n..].iter().position(|line| *line == close).map_or(1, |len| len + 1);
        if len > FUNCTION_MAX {
            found.push((n + 1, len));
        }
    }
    found.into_iter()
}

fn is_function(line: &str) -> bool {
    let mut words = line.split_whitespace();
    let modifier = |word: &str| {
        matches!(word, "pub" | "const" | "async" | "unsafe" | "extern") || word.starts_with("pub(")
    };
    words.find(|word| !modifier(word)) == Some("fn") && !line.ends_with(';')
}

/// Lines with their numbers, without comments; what stands inside texts is taken for code.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let numbered = text.lines().enumerate().map(|(n, line)| (n + 1, line));
    numbered.filter_map(|(n, line)| {
        let code = line.split_once("//").map_or(line, |(code, _)| code);
        (!code.trim().is_empty()).then_some((n, code))
    })
}

#[test]
fn nothing_panics_by_convenience() {
    let words = [
        ".unwrap()",
        ".expect(",
        "panic!(",
        "unreachable!(",
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
    ];
    let mut found = Vec::new();
    for source in rust().iter().filter(|source| !is_test(&source.path)) {
        for (n, line) in code_lines(production(source)) {
            found.extend(
                words
                    .iter()
                    .filter(|word| line.contains(**word))
                    .map(|word| format!("{}:{n} {word}", source.path)),
            );
        }
    }
    fail("a panic outside tests: return an error, or say by the types that it cannot be", &found);
}

#[test]
fn nothing_is_left_for_later() {
    let words = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X"),
        concat!("#[ig", "nore"),
        concat!("for ", "now"),
        concat!("place", "holder"),
        concat!("not yet ", "implemented"),
    ];
    let mut found = Vec::new();
    for source in sources(|name| is_text(name) && name != "Cargo.lock") {
        for (n, line) in source.text.lines().enumerate() {
            let hit = words.iter().filter(|word| holds_word(line, word));
            found.extend(hit.map(|word| format!("{}:{}: {word}", source.path, n + 1)));
        }
    }
    fail("unfinished by its own words", &found);
}

/// Not `mktemp -d x.XXXXXX`: a word ends where letters end.
fn holds_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let letter = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
        !letter(line[..at].chars().next_back()) && !letter(line[at + word.len()..].chars().next())
    })
}

fn is_text(name: &str) -> bool {
    let known = [".rs", ".toml", ".md", ".py", ".sh", ".yml", ".yaml"].iter().any(|end| name.ends_with(end));
    known || name.starts_with("scripts/") || name.starts_with(".ci/")
}

#[test]
fn no_path_of_somebodys_machine_and_no_registry_host() {
    let words = [
        concat!("/ho", "me/"),
        concat!("/ro", "ot/"),
        concat!("/wo", "rk/"),
        concat!("deb.", "debian.org"),
        concat!("registry.", "npmjs"),
        concat!("index.", "crates"),
        concat!("static.", "crates"),
        concat!("files.", "pythonhosted"),
    ];
    let mut found = Vec::new();
    for source in sources(|name| is_text(name) && name != "Cargo.lock") {
        for (n, line) in source.text.lines().enumerate() {
            let hit = words.iter().filter(|word| starts_with_it(line, word));
            found.extend(hit.map(|word| format!("{}:{}: {word}", source.path, n + 1)));
        }
    }
    fail("a path or host that is true on one machine only", &found);
}

/// A folder in the middle of a path may have any name.
fn starts_with_it(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| !line[..at].chars().next_back().is_some_and(char::is_alphanumeric))
}

/// What makes, syncs, renames, removes or puts something.
const DURABLE: [&str; 21] = [
    "sync_all(",
    "sync_data(",
    "::fsync(",
    "::fdatasync(",
    "syncfs(",
    "DSYNC",
    "rename(",
    "renameat",
    ".create(true)",
    "create_new(",
    "File::create(",
    "fs::write(",
    "fs::copy(",
    "create_dir",
    "remove_file(",
    "remove_dir",
    ".put_opts(",
    ".inner.delete(",
    "store.put(",
    "store.create(",
    "store.delete(",
];

/// Where that is done without a failpoint on the line, and why that is right.
const WITHOUT_FAILPOINT: [(&str, &[&str], &str); 9] = [
    ("nbd-proxy/src/durable.rs", &[], "this is where it is done"),
    ("nbd-proxy/src/backing/raw.rs", &["DSYNC"], "its only caller takes the step"),
    ("uploader/src/store.rs", &[".put_opts(", ".inner.delete("], "its callers take the step"),
    ("nbd-proxy/src/server/listen.rs", &["remove_file("], "a socket means nothing without its process"),
    ("src/control/server.rs", &["remove_file(", ".create(true)"], "the same, and the lock"),
    ("src/demo/scene.rs", &["create_dir", "File::create(", "sync_all(", "remove_dir"], "a scratch folder"),
    ("uploader/src/check/rows.rs", &["store.put(", "store.create(", "store.delete("], "probes, and no vault"),
    (
        "uploader/src/vault.rs",
        &["store.create("],
        "tries a name that is taken: writes nothing that was not there",
    ),
    ("nbd-proxy/src/durable/failpoint.rs", &[".create(true)"], "for tests only"),
];

/// So that a test can die on either side of it; see the module's header.
#[test]
fn every_durable_step_has_failpoints() {
    let mut found = Vec::new();
    let mut needed = BTreeSet::new();
    for source in rust().iter().filter(|source| is_production(&source.path)) {
        let excused = WITHOUT_FAILPOINT.iter().find(|(path, ..)| *path == source.path);
        for (n, line) in code_lines(production(source)) {
            for word in goes_around(line) {
                match excused {
                    Some((path, words, _)) if words.is_empty() || words.contains(word) => {
                        needed.insert((*path, if words.is_empty() { "" } else { *word }));
                    }
                    _ => found.push(format!("{}:{n} {word}", source.path)),
                }
            }
        }
    }
    fail("a durable step that goes around nbd_proxy::durable", &found);
    let listed = WITHOUT_FAILPOINT.iter().flat_map(|(path, words, _)| {
        let words = if words.is_empty() { &[""] } else { *words };
        words.iter().map(move |word| (*path, *word))
    });
    let idle: Vec<String> =
        listed.filter(|known| !needed.contains(known)).map(|(path, word)| format!("{path} {word}")).collect();
    fail("an exception that nothing needs", &idle);
}

/// What is shipped is built without development dependencies, and only they ask for failpoints.
#[test]
fn nothing_that_is_shipped_has_failpoints() {
    for source in sources(|name| name.ends_with("Cargo.toml")) {
        let mut section = "";
        for line in source.text.lines() {
            section = if line.starts_with('[') { line } else { section };
            let asks = line.contains("\"failpoints\"") || line.contains("/failpoints");
            assert!(!asks || section == "[dev-dependencies]", "{}: {section} {line}", source.path);
            assert!(!line.starts_with("default =") || source.path != "nbd-proxy/Cargo.toml", "{line}");
        }
    }
}

fn goes_around(line: &str) -> impl Iterator<Item = &'static &'static str> {
    let through = line.contains("Step::") || line.contains("durable::");
    DURABLE.iter().filter(move |word| !through && line.contains(**word))
}

#[test]
fn every_durable_step_of_the_list_is_taken_in_one_place() {
    let list = std::fs::read_to_string(root().join("nbd-proxy/src/durable/steps.rs")).expect("the list");
    let steps: Vec<&str> = list
        .lines()
        .skip_while(|line| !line.starts_with("steps! {"))
        .filter_map(|line| line.strip_prefix("    ")?.split_once(": "))
        .filter(|(name, ops)| ops.ends_with(';') && name.chars().all(char::is_alphanumeric))
        .map(|(name, _)| name)
        .collect();
    assert!(steps.len() > 30, "the list has another form now: {steps:?}");
    let mut places: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let sources = rust();
    for source in sources.iter().filter(|source| is_production(&source.path)) {
        for (n, line) in code_lines(production(source)) {
            for (at, word) in line.match_indices("Step::") {
                let rest = &line[at + word.len()..];
                let name = rest.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
                places.entry(name).or_default().push(format!("{}:{n}", source.path));
            }
        }
    }
    let taken = |step: &&str| places.get(*step).map_or(0, Vec::len) != 1;
    let wrong = steps.into_iter().filter(taken).map(|step| format!("{step}: {:?}", places.get(step)));
    fail("a durable step stands for exactly one place of the code", &wrong.collect::<Vec<_>>());
}

/// Code that is shipped, and not for show.
fn is_production(path: &str) -> bool {
    !is_test(path) && !path.starts_with("fuzz/") && path != "nbd-proxy/src/durable/steps.rs"
}

fn production(source: &Source) -> &str {
    source.text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default()
}

/// Documents name tests as `file.rs::function` or `file.rs`, in backticks; where that is long, by the function's or the
/// file's name alone, which is known by its many words.
#[test]
fn documents_name_tests_that_exist() {
    let tests = rust();
    let known: BTreeSet<String> = tests.iter().flat_map(names_of_tests).collect();
    let mut found = Vec::new();
    let mut seen = 0;
    for document in sources(|name| name.starts_with("docs/") && name.ends_with(".md")) {
        for (n, line) in document.text.lines().enumerate() {
            for quoted in line.split('`').skip(1).step_by(2).filter(|text| is_reference(text)) {
                seen += 1;
                let ends = [format!("/{quoted}"), format!("::{quoted}"), format!("/{quoted}.rs")];
                if !known.iter().any(|name| name == quoted || ends.iter().any(|end| name.ends_with(end))) {
                    found.push(format!("{}:{}: {quoted}", document.path, n + 1));
                }
            }
        }
    }
    fail("a document names a test that does not exist", &found);
    assert!(seen > 0, "no document names a test: the form of the references has changed");
}

fn is_reference(text: &str) -> bool {
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if text.chars().all(word) {
        return text.matches('_').count() >= 3;
    }
    let file = text.split("::").next().unwrap_or_default();
    let is_file = file.ends_with(".rs") && !file.contains(' ');
    is_file && (text.contains("::") || is_test(file))
}

/// A file, and the file with each of its test functions.
fn names_of_tests(source: &Source) -> Vec<String> {
    let mut names = vec![source.path.clone()];
    let mut marked = false;
    for line in source.text.lines().map(str::trim) {
        if line.starts_with("#[") && (line.contains("test]") || line.contains("test(")) {
            marked = true;
        } else if let Some(rest) = line.strip_prefix("async fn ").or_else(|| line.strip_prefix("fn ")) {
            let name = rest.split(['(', '<']).next().unwrap_or_default();
            if marked {
                names.push(format!("{}::{name}", source.path));
            }
            marked = false;
        }
    }
    names
}

/// The rules must be able to fail.
#[test]
fn the_rules_see_what_they_look_for() {
    let long = format!("fn long() {{\n{}}}\n", "    line();\n".repeat(FUNCTION_MAX));
    assert_eq!(long_functions(&long).collect::<Vec<_>>(), [(1, FUNCTION_MAX + 2)]);
    assert_eq!(long_functions("pub(crate) async fn short() {\n}\n").count(), 0);
    assert!(
        is_function("pub const fn f() {") && !is_function("fn declared();") && !is_function("let fn_ = 1;")
    );
    assert!(
        holds_word(concat!("// TO", "DO: this"), concat!("TO", "DO"))
            && !holds_word("mktemp a.XXXXXX", concat!("XX", "X"))
    );
    assert_eq!(goes_around("file.sync_data()?;").count(), 1);
    assert_eq!(goes_around("durable::sync(Step::JournalWritten, &file)?;").count(), 0);
    assert_eq!(code_lines("a(); // b\n// c\n").collect::<Vec<_>>(), [(1, "a(); ")]);
    assert!(is_test("a/tests.rs") && is_test("tests/lab/mod.rs") && !is_test("src/contests.rs"));
    let source = Source { path: "tests/p.rs".into(), text: "#[test]\nfn holds() {}\n".into() };
    assert_eq!(names_of_tests(&source), ["tests/p.rs", "tests/p.rs::holds"]);
    assert!(
        is_reference("it_holds_what_it_says") && !is_reference("log_dir") && !is_reference("log_limit_bytes")
    );
    assert!(is_reference("p.rs::holds") && is_reference("tests/p.rs") && !is_reference("cargo test p.rs"));
}
