//! Each refusal names the thing and the remedy; what is accepted comes out as plain data.

use std::os::unix::fs::symlink;
use std::path::Path;

use nbd_proxy::Kind;
use uploader::replicate::ResyncWindow;

use super::*;

const HEAD: &str =
    "state_dir = \"/tmp/lb\"\nsite = \"lund\"\n[vault]\nurl = \"file:///srv/vault\"\nencryption = \"none\"\n";

fn load(text: &str) -> Result<Config> {
    let file = Path::new("/etc/lifeboat.toml");
    validate::validate(file, settings::parse(file, text)?)
}

fn with(rest: &str) -> Result<Config> {
    load(&format!("{HEAD}{rest}"))
}

fn disk(name: &str, path: &str, more: &str) -> String {
    format!("[[machine.disk]]\nname = \"{name}\"\npath = \"{path}\"\n{more}\n")
}

#[test]
fn a_plain_file_gets_every_default() {
    let config =
        with(&format!("[[machine]]\nname = \"web1\"\n{}", disk("root", "/images/a.img", ""))).unwrap();
    let machine = &config.machines[0];
    assert_eq!(machine.policy, Policy::default());
    assert_eq!(machine.policy.interval, Duration::from_secs(30));
    assert_eq!(machine.policy.retry.last(), Some(&Duration::from_secs(1800)));
    assert_eq!(machine.disks[0].listen, ListenAt::Unix("/tmp/lb/web1-root.sock".into()));
    assert!(
        config.vault.key == VaultKey::Unencrypted && !config.vault.allow_http && !machine.disks[0].read_only
    );
}

#[test]
fn a_machines_policy_goes_over_the_general_one() {
    let rest = format!(
        "[policy]\ninterval = \"5m\"\n[[machine]]\nname = \"a\"\n{}\
         [machine.policy]\ninterval = \"2s\"\nretry = [\"5s\"]\nlog_limit = \"1 GiB\"\n\
         resync_window = \"always\"\ncopy_limit = \"50 MiB/s\"\nkeep = {{ daily = \"2w\" }}\n",
        disk("d", "/a.img", "listen = \"tcp:127.0.0.1:10809\"\nread_only = true\nlog_dir = \"/logs\"")
    );
    let config = with(&rest).unwrap();
    let machine = &config.machines[0];
    assert_eq!(machine.policy.interval, Duration::from_secs(2));
    assert_eq!(machine.policy.retry, [Duration::from_secs(5)]);
    assert_eq!(machine.policy.log_limit, Some(1 << 30));
    assert_eq!(machine.policy.resync_window, ResyncWindow::Always);
    assert_eq!(machine.policy.copy_limit, Some(50 << 20));
    let keep = machine.policy.keep;
    assert_eq!(
        (keep.all, keep.daily),
        (Duration::ZERO, Duration::from_secs(14 * 24 * 3600)),
        "nothing else is kept"
    );
    assert_eq!(config.policy.keep, uploader::retention::Policy::default());
    assert_eq!(machine.disks[0].listen, ListenAt::Tcp("127.0.0.1:10809".into()));
}

#[test]
fn each_bad_line_is_refused_by_name() {
    let machine = |rest: &str| format!("[[machine]]\nname = \"web1\"\n{rest}");
    let plain = disk("root", "/a.img", "");
    let cases = [
        ("[policy]\nintervall = \"30s\"", "intervall"),
        ("[policy]\ninterval = 30", "without a unit"),
        ("[policy]\ninterval = \"30\"", "no unit"),
        ("[policy]\ninterval = \"30 parsecs\"", "not a duration"),
        ("[policy]\ninterval = \"10ms\"", "policy.interval"),
        ("[policy]\nlog_limit = \"64\"", "no unit"),
        ("[policy]\nlog_limit = \"64 furlongs\"", "not a size"),
        ("[policy]\nlog_limit = \"1 MiB\"", "policy.log_limit"),
        ("[policy]\nretry = []", "policy.retry"),
        ("[policy]\ncopy_limit = \"50 MiB\"", "not a rate"),
        ("[policy]\ncopy_limit = \"1 KiB/s\"", "policy.copy_limit"),
        ("[policy]\nkeep = { all = \"0s\" }", "delete the last point"),
        ("[policy]\nkeep = {}", "delete the last point"),
        ("[policy]\nkeep = { all = \"7 moons\" }", "not an age"),
        ("[policy]\nkeep = { yearly = \"7y\" }", "yearly"),
        ("[policy]\nprune_every = \"1s\"", "policy.prune_every"),
        ("[policy]\nprune_wait = \"59m\"", "policy.prune_wait"),
        ("[policy]\nresync_window = \"at night\"", "no hours of the day"),
        ("[policy]\nresync_window = \"18:30-25:00\"", "no hours of the day"),
        ("[policy]\nresync_window = \"06:00-06:00\"", "never opens"),
        ("[[machine]]\nname = \"web 1\"", "web 1"),
        ("[[machine]]\nname = \"../x\"", "../x"),
        ("[[machine]]\nname = \"web1\"", "no disk"),
        (&format!("{0}{0}", machine(&plain)), "\"web1\" is configured twice"),
        (&machine(&format!("{plain}{plain}")), "\"root\" is configured twice"),
        (&machine(&disk("root", "a.img", "")), "not an absolute path"),
        (&machine(&disk("root", "/dev/vg0/root", "")), "log_dir"),
        (&machine(&disk("root", "nbd+unix:///x?socket=/s", "")), "log_dir"),
        (&machine(&disk("root", "nbd+unix:///x", "log_dir = \"/l\"")), "no socket"),
        (&machine(&disk("root", "nbds://h/x", "log_dir = \"/l\"")), "unknown kind"),
        (&machine(&disk("root", "/a.img", "reply_timeout = \"9s\"")), "not on another NBD server"),
        (
            &machine(&disk("root", "nbd://h/x", "log_dir = \"/l\"\nreconnect_delay = \"2h\"")),
            "reconnect_delay",
        ),
        (&machine(&disk("root", "/a.img", "listen = \"/run/x.sock\"")), "no place to listen at"),
        (&machine(&disk("root", "/a.img", "socket_mode = \"rw\"")), "no file mode"),
        (&machine(&disk("root", "/a.img", "listen = \"tcp:localhost\"")), "no place to listen at"),
        (&machine(&disk("root", "/a.img", "max_clients = 0")), "max_clients"),
        ("[proxy]\nmax_connections = 0", "proxy.max_connections"),
        ("[proxy]\nmax_connections = \"many\"", "invalid type"),
        ("[proxy]\nhandshake_timeout = 10", "without a unit"),
        ("[proxy]\nhandshake_timeout = \"1h\"", "proxy.handshake_timeout"),
        ("[tls]\ncert_file = \"/c\"\nkey_file = \"/k\"", "client_ca_file"),
        ("[tls]\ncert_file = \"/c\"\nkey_file = \"k\"\nclient_ca_file = \"/a\"", "tls.key_file"),
        (
            &machine(&disk("root", "/a.img", &format!("listen = \"unix:/{}\"", "x".repeat(120)))),
            "longer than",
        ),
        (
            &machine(&format!(
                "{plain}{}",
                disk("data", "/b.img", "listen = \"unix:/tmp/lb/web1-root.sock\"")
            )),
            "taken",
        ),
        (&machine(&disk("root", "/a.img", "listen = \"unix:/tmp/lb/proxy.sock\"")), "taken"),
    ];
    for (rest, expected) in cases {
        let error = with(rest).expect_err(rest);
        assert_eq!(error.kind, Kind::InvalidInput, "{error}");
        assert!(error.to_string().contains(expected), "{rest}\n→ {error}");
        assert!(!error.remedy.is_empty() && error.object.starts_with("/etc/lifeboat.toml"), "{error}");
    }
}

#[test]
fn two_names_that_join_to_one_socket_are_refused() {
    let rest = format!(
        "[[machine]]\nname = \"a-b\"\n{}[[machine]]\nname = \"a\"\n{}",
        disk("c", "/i/1.img", ""),
        disk("b-c", "/i/2.img", "")
    );
    assert!(with(&rest).unwrap_err().message.contains("a-b-c.sock is taken"));
}

#[test]
fn a_vault_is_refused_by_its_url_and_its_encryption() {
    let vault = |lines: &str| load(&format!("state_dir = \"/tmp/lb\"\nsite = \"lund\"\n[vault]\n{lines}"));
    let gopher = vault("url = \"gopher://x\"").unwrap_err();
    assert!(gopher.to_string().contains("gopher") && gopher.remedy.contains("s3://"), "{gopher}");
    let word = vault("url = \"file:///v\"\nencryption = \"rot13\"").unwrap_err();
    assert!(word.to_string().contains("rot13"), "{word}");
    let key = |lines: &str| vault(&format!("url = \"file:///v\"\n{lines}")).map(|config| config.vault.key);
    assert_eq!(key("").unwrap(), VaultKey::Unstated);
    assert_eq!(key("key_file = \"/k\"").unwrap(), VaultKey::File("/k".into()));
    assert_eq!(key("passphrase_file = \"/p\"").unwrap(), VaultKey::PassphraseFile("/p".into()));
    for both in ["key_file = \"/k\"\nencryption = \"none\"", "key_file = \"/k\"\npassphrase_file = \"/p\""] {
        assert!(key(both).unwrap_err().message.contains("contradict"), "{both}");
    }
    assert!(key("key_file = \"k\"").unwrap_err().object.ends_with("vault.key_file"));
}

#[test]
fn no_secret_is_ever_shown() {
    let text = format!("{HEAD}[vault.options]\nsecret_access_key = \"hunter2\"\n");
    let config = load(&text).unwrap();
    assert_eq!(config.vault.options["secret_access_key"].expose(), "hunter2");
    assert!(!format!("{config:?}").contains("hunter2"));
    let broken = load(&format!("{HEAD}[vault.options]\nsecret_access_key = \"hunter2\n")).unwrap_err();
    assert!(
        broken.object.contains("line 7") && !format!("{broken}{broken:?}").contains("hunter2"),
        "{broken}"
    );
    let number = load(&format!("{HEAD}[vault.options]\nsecret_access_key = 424242\n")).unwrap_err();
    assert!(!number.to_string().contains("424242"), "{number}");
}

#[test]
fn a_missing_file_is_named_with_the_way_out() {
    let error = Config::load(Path::new("/nowhere/lifeboat.toml")).unwrap_err();
    assert!(error.object == "/nowhere/lifeboat.toml" && error.remedy.contains("--config"), "{error}");
}

#[test]
fn backings_are_looked_at_as_the_kernel_sees_them() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("a.img"), [0; 512]).unwrap();
    symlink(at("a.img"), at("soft.img")).unwrap();
    std::fs::hard_link(at("a.img"), at("hard.img")).unwrap();
    std::fs::create_dir(at("folder")).unwrap();
    let check = |first: &str, second: &str| {
        let rest = format!(
            "[[machine]]\nname = \"m\"\n{}{}",
            disk("one", at(first).to_str().unwrap(), ""),
            disk("two", at(second).to_str().unwrap(), "")
        );
        check_backings(&with(&rest).unwrap())
    };
    for same in ["a.img", "soft.img", "hard.img"] {
        let error = check("a.img", same).unwrap_err();
        assert!(error.message.contains("same disk as that of machine m, disk one"), "{error}");
    }
    assert!(check("a.img", "folder").unwrap_err().message.contains("is a directory"));
    let missing = check("a.img", "gone.img").unwrap_err();
    assert!(missing.message.contains("gone.img") && missing.object.contains("disk two"), "{missing}");
    std::fs::write(at("b.img"), [0; 512]).unwrap();
    check("a.img", "b.img").unwrap();
}

#[test]
fn the_table_of_keys_in_the_docs_is_complete_and_true() {
    let docs = include_str!("../../docs/operations.md");
    let keys = [
        ("`state_dir`", settings::STATE_DIR),
        ("`site`", "the host's name"),
        ("`vault.url`", "file://"),
        ("`vault.encryption`", "\"none\""),
        ("`vault.key_file`", "32 bytes"),
        ("`vault.passphrase_file`", "first line"),
        ("`vault.ca_file`", ""),
        ("`vault.credentials_file`", "AWS_SHARED_CREDENTIALS_FILE"),
        ("`vault.limit`", "\"20 MB/s\""),
        ("`vault.prices.puts`", "1,000"),
        ("`vault.single_writer`", "false"),
        ("`vault.allow_http`", "false"),
        ("`vault.options`", ""),
        ("`tls.cert_file`", "PEM"),
        ("`tls.key_file`", "PEM"),
        ("`tls.client_ca_file`", "PEM"),
        ("`proxy.max_connections`", "1 to 65536"),
        ("`proxy.handshake_timeout`", "\"10s\""),
        ("`policy.interval`", "\"30s\""),
        ("`policy.retry`", "[\"1m\", \"2m\", \"4m\", \"8m\", \"10m\", \"30m\"]"),
        ("`policy.log_limit`", "16 MiB"),
        ("`policy.resync_window`", "\"18:30-06:00\""),
        ("`policy.copy_limit`", "1 MiB/s"),
        ("`policy.app_consistent_every`", "168h"),
        ("`policy.keep`", "{ all = \"24h\", hourly = \"7d\", daily = \"30d\", weekly = \"1y\" }"),
        ("`policy.prune_every`", "\"24h\""),
        ("`policy.prune_wait`", "\"1h\""),
        ("`policy.on_fenced`", "\"serve\""),
        ("`machine.name`", "128"),
        ("`machine.policy`", ""),
        ("`machine.group`", ""),
        ("`machine.guest_agent.socket`", "107"),
        ("`machine.disk.name`", "128"),
        ("`machine.disk.path`", ""),
        ("`machine.disk.listen`", "unix:STATE_DIR/MACHINE-DISK.sock"),
        ("`machine.disk.socket_mode`", "\"0600\""),
        ("`machine.disk.log_dir`", ""),
        ("`machine.disk.read_only`", "false"),
        ("`machine.disk.max_clients`", "1 to 1024"),
        ("`machine.disk.reconnect_delay`", "\"60s\""),
        ("`machine.disk.reply_timeout`", "\"2m\""),
    ];
    for (key, value) in keys {
        let row = docs.lines().find(|line| line.starts_with(&format!("| {key}"))).expect(key);
        assert!(row.contains(value), "the row of {key} does not say {value}: {row}");
    }
    let rows = docs.lines().filter(|line| line.starts_with("| `")).count();
    assert!(rows >= keys.len());
    let text = "interval = \"30s\"\nretry = [\"1m\", \"2m\", \"4m\", \"8m\", \"10m\", \"30m\"]\nresync_window = \"18:30-06:00\"\n\
                keep = { all = \"24h\", hourly = \"7d\", daily = \"30d\", weekly = \"1y\" }\nprune_every = \"24h\"\nprune_wait = \"1h\"";
    let stated =
        with(&format!("[policy]\n{text}\n[[machine]]\nname = \"m\"\n{}", disk("d", "/d", ""))).unwrap();
    assert_eq!(stated.machines[0].policy, Policy::default());
}

#[test]
fn every_example_in_the_documents_is_taken() {
    let documents = [include_str!("../../README.md"), include_str!("../../docs/operations.md")];
    let mut examples = 0;
    for document in documents {
        for block in document.split("```toml\n").skip(1) {
            let text = block.split("```").next().unwrap();
            load(&format!("site = \"lund\"\n{}", text.replace("site = \"lund\"\n", ""))).expect(text);
            examples += 1;
        }
    }
    assert_eq!(examples, 4);
}

#[test]
fn limits_are_read_as_people_write_them_and_refused_by_name() {
    use jiff::civil::{Weekday, time};
    let with = |limit: &str| {
        let text = format!("state_dir = \"/s\"\n[vault]\nurl = \"file:///v\"\nlimit = {limit}\n");
        settings::parse(Path::new("lifeboat.toml"), &text)
            .and_then(|file| validate::validate(Path::new("c"), file))
    };
    let config = with(
        "[{ when = \"mon-fri 08:00-18:00\", rate = \"20 MB/s\" }, { when = \"sat,sun\", rate = \"unlimited\" }, { rate = \"1 GiB/s\" }]",
    );
    let limit = config.unwrap().vault.limit;
    let office = limit[0].when.as_ref().unwrap();
    assert_eq!((office.days.len(), office.days[4], limit[0].rate), (5, Weekday::Friday, Some(20_000_000)));
    assert_eq!((office.from, office.to), (time(8, 0, 0, 0), time(18, 0, 0, 0)));
    let weekend = limit[1].when.as_ref().unwrap();
    assert_eq!((&weekend.days[..], limit[1].rate), (&[Weekday::Saturday, Weekday::Sunday][..], None));
    assert!(limit[2].when.is_none() && limit[2].rate == Some(1 << 30));
    for (wrong, says) in [
        ("[{ when = \"funday\", rate = \"1 MB/s\" }]", "no hours of the week"),
        ("[{ when = \"mon 25:00-26:00\", rate = \"1 MB/s\" }]", "no hours of the day"),
        ("[{ when = \"mon tue\", rate = \"1 MB/s\" }]", "no hours of the week"),
        ("[{ when = \"\", rate = \"1 MB/s\" }]", "no hours of the week"),
        ("[{ rate = \"20 MB\" }]", "not a rate"),
        ("[{ rate = \"0 B/s\" }]", "pause the machine"),
        ("[{ when = \"mon\" }]", "rate"),
    ] {
        let error = with(wrong).unwrap_err();
        assert!(error.to_string().contains(says), "{wrong}: {error}");
    }
}
