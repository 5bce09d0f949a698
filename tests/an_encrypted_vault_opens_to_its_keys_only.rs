//! A vault with a key, by the commands: made, written, listed, restored with the right key and with no other; keys added and
//! removed; two sites with a key each; and nothing of a key in any log, answer or file of the site.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod site;

use std::path::Path;

use nbd_proxy::client::Client;
use site::{Said, Site, bare, bytes, said};

const FIRST: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
const SECOND: &str = "ffeeddccbbaa99887766554433221100ffeeddccbbaa99887766554433221100";

fn key_file(site: &Site, name: &str, key: &str) -> String {
    std::fs::write(site.path(name), key).unwrap();
    site.path(name).display().to_string()
}

/// A site whose vault `key` opens, which is running and has two points.
fn protected(key: &str) -> (Site, [Vec<u8>; 2]) {
    let mut site = Site::with_machine();
    site.config(&site.usual("").replace("encryption = \"none\"", key));
    let run = site.start("run");
    let mut shown = Vec::new();
    for byte in [0x11_u8, 0x22] {
        let mut client = Client::connect(&site.socket("root"), "web1/root").unwrap();
        client.write(&b"a marker on the disk. ".repeat(4000), u64::from(byte) << 16).unwrap();
        client.flush().unwrap();
        client.close().unwrap();
        site.ok(&["wait", "web1", "--for", "protected", "--timeout", "60s"]);
        site.ok(&["cut", "web1", "--timeout", "60s"]);
        shown.push(bytes(&site.path("root.img")));
    }
    let status = site.ok(&["status", "--json"]).json();
    assert_eq!(status["machines"][0]["encryption"], "aes-256-gcm");
    assert!(site.ok(&["status"]).stdout.contains("vault: encrypted, aes-256-gcm"));
    assert_eq!(site.stop(run), 0);
    (site, shown.try_into().unwrap())
}

fn restore(site: &Site, to: &str, more: &[&str]) -> Said {
    let (vault, to) = (site.vault(), site.path(to).display().to_string());
    said(bare(&[&["restore", "web1", "--vault", &vault, "--to", &to, "--json"][..], more].concat()))
}

fn files(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() { files(&entry, found) } else { found.push(entry) }
    }
}

#[test]
fn it_restores_with_its_key_and_is_refused_with_any_other() {
    let at = tempfile::tempdir().unwrap();
    let first = at.path().join("first.key");
    std::fs::write(&first, FIRST).unwrap();
    let (site, shown) = protected(&format!("key_file = \"{}\"", first.display()));
    let first = first.display().to_string();
    let out = restore(&site, "restored", &["--key-file", &first]);
    assert_eq!(out.code, 0, "{}", out.stderr);
    assert!(bytes(&site.path("restored/root.raw")) == shown[1]);

    let second = key_file(&site, "second.key", SECOND);
    let short = key_file(&site, "short.key", &FIRST[1..]);
    for (more, code, says) in [
        (&["--key-file", second.as_str()][..], 1, "opens none of the vault's 1 keys"),
        (&["--key-file", short.as_str()], 2, "neither 32 bytes nor 64 hexadecimal digits"),
        (&[], 1, "no key was given"),
    ] {
        let out = restore(&site, "nowhere", more);
        assert_eq!(out.code, code, "{}", out.stderr);
        let error = out.error();
        assert!(error["message"].as_str().unwrap().contains(says), "{error}");
        assert!(!error["remedy"].as_str().unwrap().is_empty() && !site.path("nowhere").exists(), "{error}");
    }

    // Neither the disk's content in the vault, nor the key in anything that Lifeboat wrote or said.
    let (mut vault, mut local) = (Vec::new(), Vec::new());
    files(&site.path("vault"), &mut vault);
    files(&site.path("state"), &mut local);
    local.push(site.path("run.log"));
    assert!(vault.len() > 4);
    let holds = |path: &Path, needle: &[u8]| bytes(path).windows(needle.len()).any(|window| window == needle);
    let raw: Vec<u8> = (0..8).map(|at| u8::from_str_radix(&FIRST[2 * at..2 * at + 2], 16).unwrap()).collect();
    for path in vault.iter().chain(&local) {
        for needle in [b"a marker on the disk", &FIRST.as_bytes()[..16], &raw] {
            assert!(!holds(path, needle), "{needle:?} in {}", path.display());
        }
    }
}

#[test]
fn keys_are_added_listed_and_removed_and_two_sites_have_one_each() {
    let at = tempfile::tempdir().unwrap();
    let words = at.path().join("words");
    std::fs::write(&words, "correct horse battery\n").unwrap();
    let (site, shown) = protected(&format!("passphrase_file = \"{}\"", words.display()));
    let second = key_file(&site, "second.key", SECOND);
    let added = site.ok(&["vault", "key", "add", "--new-key-file", &second, "--json"]).json();
    let list = site.ok(&["vault", "key", "list", "--json"]).json();
    let keys = list["keys"].as_array().unwrap();
    assert_eq!(keys.len(), 2);
    let (first, other) = (&keys[0], &keys[1]);
    assert!(first["kind"] == "passphrase" && first["used"] == true, "{first}");
    assert!(other["kind"] == "key-file" && other["id"] == added["id"] && other["used"] == false, "{other}");
    let first = first["id"].as_str().unwrap();

    // The other site knows only its own key, and takes the first one away.
    let theirs = ["--vault", &site.vault(), "--key-file", &second];
    let remove = said(bare(&[&["vault", "key", "remove", first][..], &theirs].concat()));
    assert_eq!(remove.code, 0, "{}", remove.stderr);
    let gone = site.run(&["points", "web1"]);
    assert!(gone.code == 1 && gone.stderr.contains("was removed"), "{}", gone.stderr);
    assert_eq!(restore(&site, "restored", &["--key-file", &second]).code, 0);
    assert!(bytes(&site.path("restored/root.raw")) == shown[1]);
    let last =
        said(bare(&[&["vault", "key", "remove", added["id"].as_str().unwrap()][..], &theirs].concat()));
    assert!(last.code == 2 && last.stderr.contains("only key"), "{}", last.stderr);

    // By the environment, for a service.
    let add = site.path("more").display().to_string();
    std::fs::write(&add, "one more").unwrap();
    let add = said(bare(&[&["vault", "key", "add", "--new-passphrase-file", &add][..], &theirs].concat()));
    assert_eq!(add.code, 0, "{}", add.stderr);
    let mut points = bare(&["points", "web1", "--vault", &site.vault()]);
    points.env("LIFEBOAT_PASSPHRASE", "one more");
    assert_eq!(said(points).code, 0);
}

#[test]
fn an_encrypted_object_is_inspected_with_the_key_and_as_far_as_it_is_clear_without() {
    let at = tempfile::tempdir().unwrap();
    let key = at.path().join("first.key");
    std::fs::write(&key, FIRST).unwrap();
    let (site, _) = protected(&format!("key_file = \"{}\"", key.display()));
    let mut vault = Vec::new();
    files(&site.path("vault/machines"), &mut vault);
    let key = key.display().to_string();
    for path in &vault {
        let path = path.display().to_string();
        let open = site.ok(&["inspect", &path, "--json"]).json();
        assert!(open["type"] == "entry" || open["type"] == "delta", "{open}");
        let by_url = said(bare(&["inspect", &path, "--vault", &site.vault(), "--key-file", &key, "--json"]));
        assert_eq!(by_url.json(), open);
        let copy = at.path().join("copy");
        std::fs::copy(&path, &copy).unwrap();
        assert_eq!(site.ok(&["inspect", &copy.display().to_string(), "--json"]).json(), open);
        let sealed = said(bare(&["inspect", &path, "--json"]));
        let sealed = sealed.json();
        assert_eq!(sealed["type"], format!("sealed-{}", open["type"].as_str().unwrap()));
        assert_eq!(sealed["header"], open["header"], "what is clear is shown");
    }
}
