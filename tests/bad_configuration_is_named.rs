//! Whatever is wrong with the configuration, the message names the file, the thing and the remedy, the exit code is 2,
//! and nothing was touched.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod site;

use std::os::unix::fs::symlink;

use site::{Site, bare, said};

/// Runs `proxy` on a configuration that must be refused, and checks the refusal's shape.
fn refused(site: &Site, text: &str) -> String {
    site.config(text);
    let plain = site.run(&["proxy"]);
    assert_eq!(plain.code, 2, "{text}\n{}", plain.stderr);
    assert!(plain.stdout.is_empty(), "nothing is ready");
    assert!(
        plain.stderr.contains("lifeboat.toml") && plain.stderr.contains("what to do:"),
        "{}",
        plain.stderr
    );
    let json = site.run(&["proxy", "--json"]);
    let error = json.error();
    assert_eq!((json.code, &error["kind"]), (2, &"invalid-input".into()));
    assert!(error["object"].as_str().unwrap().contains("lifeboat.toml"), "{error}");
    assert!(!error["message"].as_str().unwrap().is_empty() && !error["remedy"].as_str().unwrap().is_empty());
    plain.stderr
}

#[track_caller]
fn says(text: &str, expected: &str) {
    assert!(text.contains(expected), "no \"{expected}\" in: {text}");
}

#[test]
fn a_missing_file() {
    let out = said(bare(&["--config", "/nowhere/lifeboat.toml", "status"]));
    assert_eq!(out.code, 2);
    says(&out.stderr, "/nowhere/lifeboat.toml");
    says(&out.stderr, "--config FILE");
}

#[test]
fn what_is_not_toml_an_unknown_key_and_a_wrong_unit() {
    let site = Site::with_machine();
    says(&refused(&site, "this is no TOML"), "line 1");
    let unknown = site.usual("").replace("interval =", "intervall =");
    says(&refused(&site, &unknown), "unknown field `intervall`");
    says(&refused(&site, &site.usual("").replace("\"1s\"\nretry", "1\nretry")), "without a unit");
    says(&refused(&site, &site.usual("").replace("[policy]", "[policy]\nlog_limit = \"4\"")), "has no unit");
    says(
        &refused(&site, &site.usual("").replace("interval = \"1s\"", "interval = \"1 MiB\"")),
        "not a duration",
    );
}

#[test]
fn a_machine_a_disk_or_a_socket_that_stands_twice() {
    let site = Site::with_machine();
    site.disk("other.img", 4096);
    let disk = |name: &str, file: &str, more: &str| {
        format!("[[machine.disk]]\nname = \"{name}\"\npath = \"{}\"\n{more}\n", site.path(file).display())
    };
    let usual = site.usual("");
    let twice = format!("{usual}[[machine]]\nname = \"web1\"\n{}", disk("x", "other.img", ""));
    says(&refused(&site, &twice), "the machine \"web1\" is configured twice");
    says(
        &refused(&site, &format!("{usual}{}", disk("root", "other.img", ""))),
        "the disk \"root\" is configured twice",
    );
    let listen = format!("listen = \"unix:{}\"", site.socket("root").display());
    says(&refused(&site, &format!("{usual}{}", disk("x", "other.img", &listen))), "is taken already");
}

#[test]
fn two_disks_on_one_backing_under_any_name() {
    let site = Site::with_machine();
    symlink(site.path("root.img"), site.path("alias.img")).unwrap();
    let text = site.usual("").replace("data.img", "alias.img");
    says(&refused(&site, &text), "is the same disk as that of machine web1, disk root");
}

#[test]
fn a_backing_that_is_missing_or_a_directory() {
    let site = Site::with_machine();
    let missing = refused(&site, &site.usual("").replace("data.img", "gone.img"));
    says(&missing, "gone.img");
    says(&missing, "disk data");
    std::fs::create_dir(site.path("folder")).unwrap();
    says(&refused(&site, &site.usual("").replace("data.img", "folder")), "is a directory");
    assert!(
        !site.path("gone.img").exists() && !site.path("state").exists(),
        "a refused start leaves nothing"
    );
}

#[test]
fn a_backing_that_may_not_be_written() {
    let site = Site::with_machine();
    // Nobody, root included, may write the file of a program that runs.
    let busy = env!("CARGO_BIN_EXE_lifeboat");
    let text = site.usual("").replace(&site.path("data.img").display().to_string(), busy);
    says(&refused(&site, &text), &format!("cannot open {busy}"));
}

#[test]
fn a_vault_of_unknown_kind_or_with_an_impossible_key() {
    let site = Site::with_machine();
    let gopher = refused(&site, &site.usual("").replace(&site.vault(), "gopher://backups"));
    says(&gopher, "gopher://backups");
    says(&gopher, "s3://BUCKET/PREFIX");
    says(&refused(&site, &site.usual("key_file = \"/k\"")), "contradict");
    says(&refused(&site, &site.usual("passphrase = \"hush\"")), "passphrase_file");
    std::fs::write(site.path("short.key"), [7; 31]).unwrap();
    let key = format!("key_file = \"{}\"", site.path("short.key").display());
    site.config(&site.usual("").replace("encryption = \"none\"", &key));
    // The proxy has no business with keys.
    let short = site.run(&["uploader"]);
    assert_eq!(short.code, 2, "{}", short.stderr);
    says(&short.stderr, "31 bytes are neither 32 bytes nor 64 hexadecimal digits");
    says(&short.stderr, "short.key");
    says(&refused(&site, &site.usual("").replace("\"none\"", "\"aes\"")), "vault.encryption");
}

#[test]
fn no_refusal_shows_a_secret() {
    let site = Site::with_machine();
    for broken in ["secret_access_key = \"hunter2", "secret_access_key = 0xh\"hunter2\"", "hunter2 = 7"] {
        let text = site.usual(&format!("[vault.options]\naccess_key_id = \"id\"\n{broken}"));
        let told = refused(&site, &text);
        assert!(broken.starts_with("hunter2") || !told.contains("hunter2"), "{told}");
    }
}
