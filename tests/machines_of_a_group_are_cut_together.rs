//! Two machines of one consistency group: write A on the first and, after its reply, B on the second; no group's points have
//! B without A. And a member that is away does not hold the other up. `LIFEBOAT_GROUP_SECONDS` is how long they write.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod lab;
mod site;

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use lab::scale;
use nbd_proxy::client::Client;
use serde_json::Value;
use site::{Site, bytes, until};

/// A site whose machines `db` and `web` are the group `shop`.
fn shop() -> Site {
    let site = Site::new();
    let at = |name: &str| site.path(name).display().to_string();
    let mut text = format!(
        "state_dir = \"{}\"\nsite = \"lund\"\n[vault]\nurl = \"{}\"\nencryption = \"none\"\n\
         [policy]\ninterval = \"1s\"\nretry = [\"1s\"]\nlog_limit = \"1 GiB\"\n",
        at("state"),
        site.vault()
    );
    for name in ["db", "web"] {
        site.disk(&format!("{name}.img"), 1 << 20);
        let (image, socket) = (at(&format!("{name}.img")), at(&format!("{name}.sock")));
        text.push_str(&format!(
            "[[machine]]\nname = \"{name}\"\ngroup = \"shop\"\n[[machine.disk]]\nname = \"d\"\npath = \"{image}\"\n\
             listen = \"unix:{socket}\"\n"
        ));
    }
    site.config(&text);
    site
}

fn client(site: &Site, machine: &str) -> Client<UnixStream> {
    Client::connect(&site.path(&format!("{machine}.sock")), &format!("{machine}/d")).unwrap()
}

fn points(site: &Site, machine: &str) -> Vec<Value> {
    let answer = site.ok(&["points", machine, "--json"]).json();
    answer["points"].as_array().unwrap().clone()
}

/// The points of a machine that are shares of a group cut, by that cut.
fn shares(site: &Site, machine: &str) -> BTreeMap<String, Value> {
    let share = |point: Value| Some((point["group"]["cut"].as_str()?.to_owned(), point));
    points(site, machine).into_iter().filter_map(share).collect()
}

/// The number that a point shows at the beginning of the disk.
fn number(site: &Site, machine: &str, point: &Value) -> u64 {
    let to = site.path("restored").display().to_string();
    let id = point["id"].as_str().unwrap();
    site.ok(&["restore", machine, "--to", &to, "--force", "--point", id]);
    u64::from_le_bytes(bytes(&site.path("restored/d.raw"))[..8].try_into().unwrap())
}

#[test]
fn no_points_of_a_group_have_b_without_a() {
    let mut site = shop();
    let run = site.start("run");
    let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let (mut db, mut web) = (client(&site, "db"), client(&site, "web"));
        let (stop, written) = (&stop, &written);
        scope.spawn(move || {
            for number in 1u64.. {
                db.write(&number.to_le_bytes(), 0).unwrap();
                web.write(&number.to_le_bytes(), 0).unwrap();
                written.store(number, SeqCst);
                if stop.load(SeqCst) {
                    return;
                }
            }
        });
        std::thread::sleep(Duration::from_secs(scale("LIFEBOAT_GROUP_SECONDS", 8)));
        stop.store(true, SeqCst);
    });
    // On demand, too: the point of one is one of the group.
    site.ok(&["cut", "db"]);
    let last = points(&site, "db").pop().unwrap()["group"]["cut"].as_str().unwrap().to_owned();
    until("the other's share", || shares(&site, "web").contains_key(&last));
    assert_eq!(site.stop(run), 0);
    let (db, web) = (shares(&site, "db"), shares(&site, "web"));
    let complete: Vec<_> = db.iter().filter_map(|(cut, point)| Some((point, web.get(cut)?))).collect();
    assert!(complete.len() >= 5, "{} complete of {} and {}", complete.len(), db.len(), web.len());
    assert!(written.into_inner() > 2000);
    for (a_point, b_point) in complete {
        assert_eq!((&a_point["group"]["complete"], &a_point["time"]), (&Value::Bool(true), &b_point["time"]));
        let (a, b) = (number(&site, "db", a_point), number(&site, "web", b_point));
        assert!(a == b || a == b + 1, "{}: A {a}, B {b}", a_point["group"]["cut"]);
    }
}

#[test]
fn a_paused_member_holds_nobody_up_and_joins_again() {
    let mut site = shop();
    site.start("run");
    for machine in ["db", "web"] {
        site.ok(&["wait", machine, "--for", "protected", "--timeout", "60s"]);
    }
    let grouped = |machine: &str| {
        let point = points(&site, machine).pop().unwrap();
        !point["group"].is_null() && point["group"]["complete"] == true
    };
    until("points of the whole group", || grouped("db"));
    site.ok(&["pause", "web"]);
    let note = || site.ok(&["status", "--json"]).json()["machines"][0]["notes"][0].clone();
    until("the reason in the status", || {
        note().as_str().is_some_and(|note| note.contains("web has not taken"))
    });
    let before = points(&site, "db").len();
    until("points of the other alone", || points(&site, "db").len() > before + 2);
    assert!(points(&site, "db").pop().unwrap()["group"].is_null());
    site.ok(&["resume", "web"]);
    until("points of the whole group again", || grouped("db") && grouped("web"));
    until("no more reason in the status", || note().is_null());
}
