//! A vault that cannot be reached, or must not be reached like this: commands say so by name, daemons go on and show it,
//! the guest does not notice, and no secret is in anything that was said.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod site;

use nbd_proxy::client::Client;
use serde_json::Value;
use site::{Said, Site, bare, said, until};

const SECRET: &str = "hunter2hunter2";

/// An S3 vault at `endpoint`, by the environment alone.
fn points(endpoint: &str, more: &[&str]) -> Said {
    let mut args = vec!["points", "web1", "--vault", "s3://bucket/prefix", "--json"];
    args.extend(more);
    let mut command = bare(&args);
    command.envs([("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", SECRET), ("AWS_REGION", "here")]);
    command.envs([("AWS_ENDPOINT_URL", endpoint), ("LIFEBOAT_LOG", "trace")]);
    let out = said(command);
    assert!(!out.stderr.contains(SECRET) && !out.stdout.contains(SECRET), "{}", out.stderr);
    out
}

/// The error, which stands after the log on stderr.
fn error(out: &Said) -> Value {
    let last = out.stderr.lines().last().unwrap();
    serde_json::from_str::<Value>(last).unwrap_or_else(|error| panic!("{error} in {last}"))["error"].clone()
}

#[test]
fn an_endpoint_that_refuses() {
    let out = points("http://127.0.0.1:1", &[]);
    let error = error(&out);
    assert_eq!((out.code, &error["kind"]), (1, &"unavailable".into()), "{error}");
    assert!(error["message"].as_str().unwrap().contains("127.0.0.1:1"), "{error}");
    assert!(error["remedy"].as_str().unwrap().contains("endpoint"), "{error}");
}

#[test]
fn plain_http_to_another_host_is_not_even_tried() {
    let out = points("http://192.0.2.1:9000", &[]);
    assert_eq!((out.code, &error(&out)["kind"]), (2, &"invalid-input".into()));
    assert!(error(&out)["remedy"].as_str().unwrap().contains("https"));
}

#[test]
fn an_authority_file_that_is_missing_or_none() {
    let site = Site::new();
    let missing = site.path("ca.pem").display().to_string();
    let out = points("https://127.0.0.1:1", &["--ca-file", &missing]);
    assert_eq!(out.code, 1);
    assert!(error(&out)["object"].as_str().unwrap().contains("ca.pem"));
    std::fs::write(site.path("ca.pem"), "not a certificate").unwrap();
    let out = points("https://127.0.0.1:1", &["--ca-file", &missing]);
    assert_eq!(out.code, 2, "{}", out.stderr);
    assert!(error(&out)["object"].as_str().unwrap().contains("ca.pem"));
}

#[test]
fn a_daemon_shows_it_and_the_guest_does_not_notice() {
    let mut site = Site::with_machine();
    let options = format!(
        "[vault.options]\naws_endpoint_url = \"http://127.0.0.1:1\"\naws_region = \"here\"\n\
         aws_access_key_id = \"id\"\naws_secret_access_key = \"{SECRET}\""
    );
    site.config(&site.usual(&options).replace(&site.vault(), "s3://bucket/prefix"));
    let run = site.start("run");
    let machine = || site.ok(&["status", "--json"]).json()["machines"][0].clone();
    until("a warning with its cause", || {
        machine()["health"] == "warning" && machine()["next_retry"].is_string()
    });
    let status = machine();
    assert!(status["cause"].as_str().unwrap().contains("127.0.0.1:1"), "{status}");
    assert_eq!(status["rpo_seconds"], Value::Null);
    let mut client = Client::connect(&site.socket("root"), "web1/root").unwrap();
    client.write(&[7; 4096], 8192).unwrap();
    client.flush().unwrap();
    let mut back = [0; 4096];
    client.read(&mut back, 8192).unwrap();
    assert_eq!(back, [7; 4096]);
    client.close().unwrap();
    let text = site.ok(&["status"]).stdout;
    assert!(text.contains("what to do:") && !text.contains(SECRET), "{text}");
    assert_eq!(site.stop(run), 0);
    assert!(!site.log("run").contains(SECRET));
}

#[test]
fn an_option_that_no_vault_knows_is_refused_at_the_start() {
    let site = Site::with_machine();
    let text =
        site.usual("[vault.options]\naws_secret_key = \"x\"").replace(&site.vault(), "s3://bucket/prefix");
    site.config(&text);
    let out = site.run(&["run"]);
    assert_eq!((out.code, out.stdout.as_str()), (2, ""), "{}", out.stderr);
    assert!(out.stderr.contains("aws_secret_key"), "{}", out.stderr);
}
