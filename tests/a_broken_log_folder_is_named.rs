//! Whatever is wrong with the folder of a change log, the message names it and the remedy, and the disk is left alone or goes on; who
//! has a disk is named to whoever wants it too; and a crowd is kept within its bounds.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod lab;
mod site;

use std::path::Path;
use std::process::{Command, Stdio};

use lab::judge;
use nbd_proxy::client::Client;
use site::{Site, bytes, said, until};

/// Runs the program where only it sees what `prepare` mounts at `$DIR`.
fn where_mounted(site: &Site, prepare: &str, args: &[&str]) -> Command {
    let program = site.command(args);
    let mut command = Command::new("unshare");
    command.args(["-rm", "sh", "-c", &format!("{prepare} && exec \"$@\""), "sh"]);
    command.arg(program.get_program()).args(program.get_args());
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.env("DIR", site.path("logs")).stdin(Stdio::null());
    command
}

/// A site with its logs in a folder of their own; nothing where mounting is not possible.
fn site() -> Option<Site> {
    if !judge::have(&["unshare", "mount"]) {
        return None;
    }
    let site = Site::with_machine();
    std::fs::create_dir(site.path("logs")).unwrap();
    let log_dir = format!("\nlog_dir = \"{}\"\n", site.path("logs").display());
    let text = site.usual("");
    let text = text.replace("root.img\"\n", &format!("root.img\"{log_dir}"));
    site.config(&text.replace("data.img\"\n", &format!("data.img\"{log_dir}")));
    Some(site)
}

/// A proxy that must not start, and does not touch the disks.
fn refused(prepare: &str, kind: &str) -> String {
    let Some(site) = site() else { return String::new() };
    let out = said(where_mounted(&site, prepare, &["proxy", "--json"]));
    assert_eq!((out.code, &out.error()["kind"]), (1, &kind.into()), "{}", out.stderr);
    let error = out.error();
    assert!(error["object"].as_str().unwrap().contains("logs"), "{error}");
    assert!(error["remedy"].as_str().unwrap().contains("log_dir"), "{error}");
    assert!(bytes(&site.path("root.img")).iter().all(|byte| *byte == 0));
    error["message"].as_str().unwrap().to_owned()
}

#[test]
fn a_log_folder_that_is_read_only_refuses_the_start() {
    let said = refused("mount -t tmpfs tmpfs $DIR && mount -o remount,ro $DIR", "io");
    assert!(said.is_empty() || said.contains("Read-only"), "{said}");
}

#[test]
fn a_log_folder_on_a_full_disk_refuses_the_start() {
    let said = refused("mount -t tmpfs -o size=16k tmpfs $DIR && head -c 16k /dev/zero >$DIR/x", "no-space");
    assert!(said.is_empty() || said.contains("No space"), "{said}");
}

/// It starts, is full before the log has reached its limit, and the disk goes on; with room again, it is logged again.
#[test]
fn a_log_folder_that_fills_up_costs_the_log_and_no_write() {
    let Some(site) = site() else { return };
    let prepare = "mount -t tmpfs -o size=9m tmpfs $DIR";
    let mut run = where_mounted(&site, prepare, &["run"]);
    let log = std::fs::File::create(site.path("run.log")).unwrap();
    let mut run = Daemon(run.stdout(Stdio::piped()).stderr(log).spawn().unwrap());
    site.ok(&["wait", "web1", "--for", "protected", "--timeout", "60s"]);
    site.ok(&["pause", "web1"]);
    let mut client = Client::connect(&site.socket("root"), "web1/root").unwrap();
    for at in 0..12 {
        client.write(&vec![at + 1; 1 << 20], u64::from(at) << 20).unwrap();
    }
    client.close().unwrap();
    assert!(site.log("run").contains("no new log segment"), "{}", site.log("run"));
    site.ok(&["resume", "web1"]);
    site.ok(&["cut", "web1", "--timeout", "60s"]);
    site.ok(&["restore", "web1", "--to", &site.path("out").display().to_string()]);
    assert!(bytes(&site.path("out/root.raw")) == bytes(&site.path("root.img")), "the point is not the disk");
    run.0.kill().unwrap();
    run.0.wait().unwrap();
}

#[test]
fn a_second_proxy_on_a_disk_is_refused_and_told_who_has_it() {
    let mut site = Site::with_machine();
    let pid = site.start("proxy");
    // Under another state folder and name, so that only the disk is shared.
    let other = site.usual("").replace(&path(&site.path("state")), &path(&site.path("other")));
    site.config(&other.replace("web1", "web2"));
    let second = site.run(&["proxy", "--json"]);
    let error = second.error();
    assert_eq!((second.code, &error["kind"]), (1, &"in-use".into()), "{error}");
    assert!(error["object"].as_str().unwrap().contains("root.img"), "{error}");
    assert!(error["message"].as_str().unwrap().contains(&format!("process {pid} (lifeboat)")), "{error}");
    assert_eq!(site.stop(pid), 0);
}

#[test]
fn one_client_more_than_max_connections_is_refused() {
    let mut site = Site::with_machine();
    site.config(&format!("{}\n[proxy]\nmax_connections = 2\n", site.usual("")));
    let pid = site.start("proxy");
    let connect = |disk: &str| Client::connect(&site.socket(disk), &format!("web1/{disk}"));
    let (first, second) = (connect("root").unwrap(), connect("data").unwrap());
    let error = connect("root").map(drop).unwrap_err();
    assert!(error.to_string().contains("as many clients as it may have"), "{error}");
    first.close().unwrap();
    until("a place to be free again", || connect("root").is_ok());
    second.close().unwrap();
    assert_eq!(site.stop(pid), 0);
}

/// Ended with the test.
struct Daemon(std::process::Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn path(path: &Path) -> String {
    path.display().to_string()
}
