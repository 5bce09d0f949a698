//! Whatever a real store refuses is said with the thing's name and a remedy: by every command that reads the vault, and by
//! a running uploader in its status, while the guest reads and writes as ever. What only an operator can mend stops
//! replication; what may mend itself is tried again, and the status says when.
#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod lab;

use std::path::Path;
use std::time::Duration;

use lab::lifeboat::MACHINE;
use lab::store::{self, Kind};
use lab::{Client, Lifeboat, MIB, Scratch, Setup, Store, until};
use serde_json::Value;

/// What must be said, by everybody.
struct Said {
    kind: &'static str,
    /// Stands in the name of the thing or in the message.
    thing: String,
    remedy: &'static str,
}

fn machine(scratch: &Scratch, store: &Store) -> Lifeboat {
    Setup::new().disk("root", 8 * MIB).interval("1s").policy("retry = [\"1s\"]").create(scratch, store)
}

/// Each command from elsewhere fails with exit code 1 and says it; `restore` leaves nothing behind.
fn commands_say(lifeboat: &Lifeboat, said: &Said, scratch: &Scratch) {
    let to = scratch.join("out");
    let to_text = to.to_str().expect("a plain path");
    let commands: [&[&str]; 3] =
        [&["points", MACHINE], &["restore", MACHINE, "--to", to_text], &["machines"]];
    for command in commands {
        let output = lifeboat.output_elsewhere(command);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{command:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{command:?} said more than its error:\n{stderr}");
        let error: Value = serde_json::from_str(&stderr).expect("an error in JSON");
        let error = &error["error"];
        check(&error["object"], &error["message"], &error["remedy"], said);
        assert_eq!(error["kind"], said.kind, "{error}");
    }
    assert!(!to.exists(), "restore left {} behind", to.display());
}

fn check(object: &Value, message: &Value, remedy: &Value, said: &Said) {
    let text = format!("{object} {message}");
    assert!(text.contains(&said.thing), "{:?} is not named: {text}", said.thing);
    assert!(
        remedy.as_str().unwrap_or_default().contains(said.remedy),
        "{:?} is not in {remedy}",
        said.remedy
    );
    assert!(!text.contains("max_retries") && !text.contains("<Code>"), "noise: {text}");
}

/// Waits until the running uploader says it with that health; its status then.
fn status_says(lifeboat: &Lifeboat, health: &str, said: &Said) -> Value {
    let status = until(&format!("{health} because of {}", said.thing), Duration::from_secs(60), || {
        let status = lifeboat.status();
        (status["health"] == health).then_some(status)
    });
    check(&Value::Null, &status["cause"], &status["remedy"], said);
    status
}

/// The guest's writes are answered, and what it reads is what it wrote.
fn guest_goes_on(lifeboat: &Lifeboat) {
    let mut client = Client::connect(&lifeboat.disk("root").target);
    client.write(MIB, &[0x5A; 65_536], lab::client::FUA);
    assert!(client.read(MIB, 65_536) == [0x5A; 65_536]);
}

fn attempts(scratch: &Scratch) -> usize {
    let log = std::fs::read_to_string(scratch.join("lifeboat.log")).expect("the log");
    let attempt = |line: &&str| line.contains("will be tried again") || line.contains("replication stopped");
    log.lines().filter(attempt).count()
}

/// Replication has stopped: it is critical, no further attempt is made, and every disk says `failed`.
fn stops_for(store: &Store, said: &Said, scratch: &Scratch) -> Lifeboat {
    let mut lifeboat = machine(scratch, store);
    commands_say(&lifeboat, said, scratch);
    lifeboat.expect_log("replication stopped");
    let lifeboat = lifeboat.run();
    let status = status_says(&lifeboat, "critical", said);
    assert_eq!(status["next_retry"], Value::Null, "{status}");
    guest_goes_on(&lifeboat);
    let before = attempts(scratch);
    // Longer than the gap after which what is transient is tried again.
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(attempts(scratch), before, "what cannot mend itself was tried again");
    let cut = lab::judge::output(lifeboat.command().args(["--json", "cut", MACHINE, "--timeout", "60s"]));
    let stderr = String::from_utf8_lossy(&cut.stderr).into_owned();
    assert!(cut.status.code() == Some(1) && stderr.contains(&said.thing), "a cut says why: {stderr}");
    lifeboat
}

/// What was missing is there now: `resume` is all that it takes.
fn goes_on_after_resume(mut lifeboat: Lifeboat, scratch: &Scratch) {
    lifeboat.json(&["resume", MACHINE]);
    lifeboat.wait_protected();
    let point = lifeboat.cut_id();
    let restored = lifeboat.restore(&point, &scratch.join("out"));
    assert!(
        lab::model::same_file(&restored[0], &lifeboat.disk("root").image),
        "the guest's write is in the vault"
    );
    lifeboat.stop();
}

#[test]
fn a_bucket_or_container_that_does_not_exist() {
    for (kind, missing, url) in [
        (Kind::Seaweed, "nobucket", "s3://nobucket/p"),
        (Kind::Azurite, "nocontainer", "azure://nocontainer/p"),
    ] {
        let scratch = Scratch::new();
        let Some(mut store) = Store::of(kind, &scratch) else { continue };
        store.url = url.to_owned();
        let said =
            Said { kind: "not-found", thing: url.to_owned(), remedy: "create the bucket or container" };
        let lifeboat = stops_for(&store, &said, &scratch);
        store.make(missing);
        goes_on_after_resume(lifeboat, &scratch);
    }
}

#[test]
fn wrong_credentials_for_s3() {
    let scratch = Scratch::new();
    if !lab::judge::have(&["weed"]) {
        return;
    }
    let (_server, store) = store::guarded_seaweed(&scratch);
    for (name, says) in
        [("AWS_ACCESS_KEY_ID", "InvalidAccessKeyId"), ("AWS_SECRET_ACCESS_KEY", "SignatureDoesNotMatch")]
    {
        let scratch = Scratch::new();
        let wrong = store.clone().with(name, "wrong");
        let said = Said { kind: "denied", thing: says.to_owned(), remedy: "credentials" };
        let mut lifeboat = stops_for(&wrong, &said, &scratch);
        lifeboat.stop();
    }
}

#[test]
fn wrong_credentials_for_azure() {
    let scratch = Scratch::new();
    let Some(store) = Store::of(Kind::Azurite, &scratch) else { return };
    let wrong = store.with("AZURE_STORAGE_ACCOUNT_KEY", "d3Jvbmcga2V5");
    let said = Said { kind: "denied", thing: wrong.url.clone(), remedy: "credentials" };
    stops_for(&wrong, &said, &scratch).stop();
}

#[test]
fn an_authority_that_nobody_vouches_for() {
    let scratch = Scratch::new();
    let Some(mut store) = Store::of(Kind::Azurite, &scratch) else { return };
    store.ca_file = None;
    let said = Said { kind: "denied", thing: "UnknownIssuer".to_owned(), remedy: "ca_file" };
    stops_for(&store, &said, &scratch).stop();
}

#[test]
fn an_endpoint_that_refuses_is_tried_again_until_it_answers() {
    if !lab::judge::have(&["weed"]) {
        return;
    }
    let scratch = Scratch::new();
    let (mut server, port) = store::own_seaweed(&scratch);
    let store = Store {
        kind: Kind::Seaweed,
        url: "s3://bucket1/refused".to_owned(),
        ca_file: None,
        env: store::s3_env(port),
    };
    let mut lifeboat = machine(&scratch, &store).run();
    lifeboat.wait_protected();
    lifeboat.cut();
    server.kill();

    let said = Said { kind: "unavailable", thing: format!("127.0.0.1:{port}"), remedy: "endpoint" };
    commands_say(&lifeboat, &said, &scratch);
    let status = status_says(&lifeboat, "warning", &said);
    assert!(status["next_retry"].is_string(), "{status}");
    guest_goes_on(&lifeboat);
    let before = attempts(&scratch);
    let lag = |status: &Value| status["rpo_seconds"].as_f64().expect("an age");
    until("more attempts", Duration::from_secs(30), || (attempts(&scratch) >= before + 2).then_some(()));
    let later = lifeboat.status();
    assert!(lag(&later) > lag(&status) + 1.0, "the lag shows: {status}, then {later}");

    let mut again = std::process::Command::new(lab::script());
    again.arg("s3").arg(scratch.join("s3")).arg(port.to_string());
    let _server = lab::process::Process::start(&mut again, &scratch.join("s3.log"));
    until("replication to go on by itself", Duration::from_secs(120), || {
        (lifeboat.status()["health"] == "normal").then_some(())
    });
    let point = lifeboat.cut_id();
    let restored = lifeboat.restore(&point, &scratch.join("out"));
    assert!(lab::model::same_file(&restored[0], &lifeboat.disk("root").image));
    lifeboat.stop();
}

/// A file system of 8 MiB of its own.
struct Small<'a>(&'a Path);

impl<'a> Small<'a> {
    /// Mounts one at `at`; nothing if this is not allowed here and this is not CI.
    fn mount(at: &'a Path) -> Option<Self> {
        std::fs::create_dir_all(at).expect("a folder to mount on");
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=8m", "lifeboat-small"]).arg(at);
        if lab::judge::output(&mut mount).status.success() {
            return Some(Self(at));
        }
        lab::judge::absent("the right to mount a tmpfs");
        None
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[test]
fn no_space_while_restoring() {
    let scratch = Scratch::new();
    let store = Store::folder(&scratch);
    let mut lifeboat = Setup::new().disk("root", 64 * MIB).create(&scratch, &store).run();
    lifeboat.wait_protected();
    // One sector of each page: the data would fit, the pages that the file system gives for it do not.
    let mut client = Client::connect(&lifeboat.disk("root").target);
    for at in 0..3000 {
        client.write(at * 4096, &[0xA5; 512], 0);
    }
    drop(client);
    let point = lifeboat.cut_id();
    lifeboat.stop();

    let at = scratch.join("small");
    let Some(small) = Small::mount(&at) else { return };
    refused(&lifeboat, &point, &at.join("out"), "cannot write");
    std::fs::write(at.join("filler"), vec![1; 7 << 20]).expect("a file that takes room");
    refused(&lifeboat, &point, &at.join("out"), "MiB free");
    drop(small);
    // Nothing was lost: with room the same command works.
    let restored = lifeboat.restore(&point, &scratch.join("roomy"));
    assert!(lab::model::same_file(&restored[0], &lifeboat.disk("root").image));
}

/// `restore` to `out` finds no space, says `says` of it, and leaves nothing there.
fn refused(lifeboat: &Lifeboat, point: &str, out: &Path, says: &str) {
    let to = out.to_str().expect("a plain path");
    let output = lifeboat.output_elsewhere(&["restore", MACHINE, "--to", to, "--point", point]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let error: Value = serde_json::from_str(&stderr).expect("an error in JSON");
    let error = &error["error"];
    assert_eq!(error["kind"], "no-space", "{error}");
    assert!(error["object"].as_str().expect("an object").contains(to), "{error}");
    assert!(error["message"].as_str().expect("a message").contains(says), "{error}");
    assert!(error["remedy"].as_str().expect("a remedy").contains("make room"), "{error}");
    let left = std::fs::read_dir(out).map(Iterator::count).unwrap_or_default();
    assert_eq!(left, 0, "a restore that failed left files in {}", out.display());
}

#[test]
fn keys_that_are_rotated_in_mid_run_are_read_again() {
    if !lab::judge::have(&["weed"]) {
        return;
    }
    let scratch = Scratch::new();
    let rotating = store::rotating_seaweed(&scratch);
    let mut lifeboat = machine(&scratch, &rotating.store);
    lifeboat.expect_log("replication stopped");
    let lifeboat = lifeboat.run();
    lifeboat.wait_protected();
    lifeboat.cut();

    // The new key is where the uploader finds it when the old one is refused: nobody notices.
    rotating.takes(&["lifeboat", "second"], "third");
    rotating.give("second");
    rotating.takes(&["second"], "lifeboat");
    guest_goes_on(&lifeboat);
    lifeboat.cut();
    assert_eq!(lifeboat.status()["health"], "normal");

    // It is not: the uploader has looked once, and waits for somebody to act.
    rotating.takes(&["third"], "second");
    let said = Said { kind: "denied", thing: "InvalidAccessKeyId".to_owned(), remedy: "credentials" };
    let status = status_says(&lifeboat, "critical", &said);
    assert_eq!(status["next_retry"], Value::Null, "{status}");
    rotating.give("third");
    goes_on_after_resume(lifeboat, &scratch);
}
