//! Help with an example for every command, exit codes, JSON errors, and what is said when nobody serves.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod site;

use site::{Site, bare, said};

fn commands() -> Vec<String> {
    let help = said(bare(&["--help"]));
    assert_eq!(help.code, 0);
    let list = help.stdout.split("Commands:").nth(1).unwrap().split("Options:").next().unwrap().to_owned();
    list.lines().filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect()
}

#[test]
fn every_command_has_help_with_an_example() {
    let commands = commands();
    for needed in
        ["run", "proxy", "uploader", "status", "jobs", "wait", "machines", "points", "cut", "pause", "resume"]
    {
        assert!(commands.iter().any(|command| command == needed), "{needed} in {commands:?}");
    }
    for command in &commands {
        let help = said(bare(&[command, "--help"]));
        assert_eq!(help.code, 0);
        assert!(help.stdout.contains("Example"), "{command}: {}", help.stdout);
        assert!(
            help.stdout.contains(&format!("lifeboat {command}")) || help.stdout.contains("--config"),
            "{command}"
        );
    }
}

#[test]
fn commands_that_are_not_built_do_not_appear() {
    for absent in ["serve", "failover", "failback", "verify", "top"] {
        assert!(!commands().iter().any(|command| command == absent));
        assert_eq!(said(bare(&[absent])).code, 2);
    }
}

#[test]
fn wrong_usage_exits_2_and_says_so_in_json_when_asked() {
    for args in [vec!["restore", "web1"], vec!["frobnicate"], vec!["wait", "web1", "--for", "happy"], vec![]]
    {
        let out = said(bare(&args));
        assert_eq!((out.code, out.stdout.as_str()), (2, ""), "{args:?}");
        let mut with_json = args.clone();
        with_json.push("--json");
        let out = said(bare(&with_json));
        assert_eq!((out.code, &out.error()["kind"]), (2, &"invalid-input".into()), "{args:?}");
    }
    assert_eq!(said(bare(&["--version"])).code, 0);
}

#[test]
fn a_log_filter_that_is_none_is_refused() {
    let mut command = bare(&["status"]);
    command.env("LIFEBOAT_LOG", "lifeboat=loudly");
    let out = said(command);
    assert_eq!(out.code, 2);
    assert!(out.stderr.contains("LIFEBOAT_LOG"), "{}", out.stderr);
}

#[test]
fn a_command_whose_daemon_is_away_asks_whether_it_runs() {
    let site = Site::with_machine();
    let asked = [
        vec!["status"],
        vec!["cut", "web1"],
        vec!["pause", "web1"],
        vec!["resume", "web1"],
        vec!["wait", "web1", "--for", "protected"],
    ];
    for args in asked {
        let out = site.run(&args);
        assert_eq!(out.code, 1, "{args:?}");
        assert!(
            out.stderr.contains("is lifeboat running?") && out.stderr.contains(".sock"),
            "{args:?}: {}",
            out.stderr
        );
        let mut args = args;
        args.push("--json");
        assert_eq!(site.run(&args).error()["kind"], "unavailable");
    }
    // The socket of a daemon that was killed is no daemon either.
    std::fs::create_dir_all(site.path("state")).unwrap();
    drop(std::os::unix::net::UnixListener::bind(site.path("state/uploader.sock")).unwrap());
    let out = site.run(&["cut", "web1"]);
    assert!(out.code == 1 && out.stderr.contains("is lifeboat running?"), "{}", out.stderr);
}

#[test]
fn jobs_are_listed_without_a_daemon() {
    let site = Site::with_machine();
    assert_eq!(site.ok(&["jobs", "--json"]).json()["jobs"], serde_json::json!([]));
}

#[test]
fn a_vault_that_is_not_there_is_named() {
    let site = Site::with_machine();
    for args in
        [vec!["points", "web1"], vec!["machines"], vec!["restore", "web1", "--to", "/tmp"], vec!["status"]]
    {
        let mut args = args;
        let url = format!("file://{}", site.path("no-vault").display());
        args.extend(["--vault", &url, "--json"]);
        let out = said(bare(&args));
        assert_eq!((out.code, &out.error()["kind"]), (1, &"not-found".into()), "{args:?}: {}", out.stderr);
        assert!(out.stderr.contains("no-vault"), "{}", out.stderr);
    }
    assert_eq!(said(bare(&["machines", "--vault", "gopher://x"])).code, 2);
    assert!(!site.path("no-vault").exists());
}

#[test]
fn inspect_names_what_is_no_file_of_ours() {
    let site = Site::with_machine();
    let out = site.run(&["inspect", &site.path("lifeboat.toml").display().to_string()]);
    assert_eq!(out.code, 2, "{}", out.stderr);
    assert!(out.stderr.contains("lifeboat.toml"));
    assert_eq!(site.run(&["inspect", "/nowhere"]).code, 1);
}
