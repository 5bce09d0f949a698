//! `docs/formats.md` is the byte tables of the code, word for word: a format that changes without it turns this red.
//!
//! The tables stand beside the code that they bind, as the headers of its files. `LIFEBOAT_WRITE_DOCS=1 cargo test --test
//! formats_are_documented` writes the page anew.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::fmt::Write as _;
use std::path::Path;

const PAGE: &str = "docs/formats.md";

/// Sections of the page: a heading, and the file whose header it shows.
const LOCAL: &[(&str, &str)] = &[
    ("Segments of the change log", "nbd-proxy/src/log/format.rs"),
    ("The tracking state of a disk", "nbd-proxy/src/disk/state.rs"),
    ("The intent map", "nbd-proxy/src/disk/intent/file.rs"),
    ("The ends of the log", "nbd-proxy/src/disk/ends.rs"),
    ("The bitmap of an unlogged disk", "nbd-proxy/src/disk/bitmap_file.rs"),
    ("The note beside the image", "nbd-proxy/src/disk/void.rs"),
    ("The state of a machine's writer", "uploader/src/replicate/state.rs"),
    ("The journal of a sync", "uploader/src/replicate/journal.rs"),
];
const VAULT: &[(&str, &str)] = &[
    ("Names of objects", "uploader/src/keys.rs"),
    ("The marker", "uploader/src/vault.rs"),
    ("Sealed units", "uploader/src/cipher.rs"),
    ("Wrapped keys", "uploader/src/cipher/wrap.rs"),
    ("Entries of a line: points and claims", "uploader/src/point.rs"),
    ("Deltas", "uploader/src/delta/format.rs"),
    ("Catalogues", "uploader/src/catalogue.rs"),
    ("Holds", "uploader/src/holds.rs"),
];

const INTRODUCTION: &str = "# Formats

Every byte that Lifeboat keeps, as the headers of the files that read and write it have it; `tests/formats_are_documented.rs` holds the two
together. `lifeboat inspect FILE` shows what is in any of them.

**Versions.** Each format carries its version from its first byte on. A program reads every version that a released Lifeboat has
written, and writes the newest. What a *newer* one has written it refuses by name, and leaves alone. Golden files of every version stay in the tests
for ever. Local files may be lost: a machine whose state is gone begins a new generation and compares its disks with the vault. The
vault can be read alone: with nothing but its URL and, where it is encrypted, a key, every point restores.
";

fn header_of(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{file}: {error}"));
    let lines = text.lines().map_while(|line| line.strip_prefix("//!"));
    let header: Vec<_> = lines.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect();
    assert!(!header.is_empty(), "{file} has no header");
    // Links that only rustdoc can follow.
    header.join("\n").replace("[`", "`").replace("`]", "`")
}

fn page() -> String {
    let mut page = INTRODUCTION.to_owned();
    for (part, sections) in [("On the host", LOCAL), ("In the vault", VAULT)] {
        write!(page, "\n## {part}\n").expect("text");
        for (heading, file) in sections {
            write!(page, "\n### {heading}\n\n`{file}`\n\n{}\n", header_of(file)).expect("text");
        }
    }
    page
}

#[test]
fn the_page_of_formats_is_what_the_code_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    if std::env::var_os("LIFEBOAT_WRITE_DOCS").is_some() {
        std::fs::write(&path, page()).expect("the page");
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = there.lines().zip(page().lines()).position(|(there, wanted)| there != wanted);
    assert!(
        there == page(),
        "{PAGE}, line {}: write it anew with LIFEBOAT_WRITE_DOCS=1",
        differs.unwrap_or(0) + 1
    );
}
