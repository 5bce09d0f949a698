//! Application-consistent points through an agent that fails in every way a guest can: the point is crash-consistent then and
//! says why, within bounded time, and the guest's file systems are never left frozen, whoever is killed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod site;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use site::{Site, until};

/// How the agent misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// It takes bytes and says nothing: no agent runs in the guest.
    Hangs,
    /// It refuses to freeze.
    Refuses,
    /// It never answers the freeze, but has done it.
    FreezesInSilence,
    /// It closes the connection in the middle of the freeze, having done it.
    ClosesMidway,
    /// Something in the guest thaws in between.
    ThawsByItself,
    /// It is frozen, it says, and thaws nothing.
    ThawsNone,
    /// One of its two file systems was thawed in between.
    ThawsFewer,
    /// Half an answer and bytes of no meaning stand before the first answer.
    Garbage,
    /// Somebody else has frozen the guest.
    Taken,
}

/// A guest with two file systems and an agent.
struct FakeAgent {
    fault: Mutex<Fault>,
    frozen: AtomicBool,
    freezes: AtomicU32,
    /// A process that is stopped when the guest is frozen, before the agent says so.
    stops: AtomicU32,
}

impl FakeAgent {
    fn start(site: &Site) -> Arc<Self> {
        let listener = UnixListener::bind(site.path("agent.sock")).unwrap();
        let agent = Arc::new(Self {
            fault: Mutex::new(Fault::None),
            frozen: AtomicBool::new(false),
            freezes: AtomicU32::new(0),
            stops: AtomicU32::new(0),
        });
        let guest = Arc::clone(&agent);
        // As QEMU does: one conversation at a time.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                guest.converse(stream.unwrap());
            }
        });
        agent
    }

    fn fault(&self) -> Fault {
        *self.fault.lock().unwrap()
    }

    fn converse(&self, mut stream: UnixStream) {
        let (mut pending, mut buf) = (Vec::new(), [0; 4096]);
        if self.fault() == Fault::Garbage {
            stream.write_all(b"{\"return\": 12}\n\xff{\"ret\0\0\xfe\n{}").unwrap();
        }
        loop {
            match stream.read(&mut buf) {
                Ok(len) if len > 0 => pending.extend(buf[..len].iter().filter(|byte| **byte != 0xFF)),
                _ => return,
            }
            while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = pending.drain(..=end).collect();
                let Some(answer) = self.answer(&serde_json::from_slice(&line).unwrap()) else { continue };
                if answer.is_null() || stream.write_all(&said(&answer)).is_err() {
                    return;
                }
            }
        }
    }

    /// `None` is silence, null the end of the conversation.
    fn answer(&self, command: &Value) -> Option<Value> {
        let fault = self.fault();
        match command["execute"].as_str().unwrap() {
            _ if fault == Fault::Hangs => None,
            "guest-sync-delimited" => Some(json!({ "delimited": command["arguments"]["id"] })),
            "guest-ping" => Some(json!({ "return": {} })),
            "guest-fsfreeze-status" => {
                let frozen = self.frozen.load(SeqCst) || fault == Fault::Taken;
                Some(json!({ "return": if frozen { "frozen" } else { "thawed" } }))
            }
            "guest-fsfreeze-freeze" => self.freeze(fault),
            "guest-fsfreeze-thaw" => {
                assert_ne!(fault, Fault::Taken, "what somebody else froze is not ours to thaw");
                let count = match fault {
                    _ if !self.frozen.swap(false, SeqCst) => 0,
                    Fault::ThawsNone => 0,
                    Fault::ThawsFewer => 1,
                    _ => 2,
                };
                Some(json!({ "return": count }))
            }
            other => panic!("asked for {other}"),
        }
    }

    fn freeze(&self, fault: Fault) -> Option<Value> {
        if fault == Fault::Refuses {
            return Some(json!({ "error": { "class": "GenericError", "desc": "no freezing here" } }));
        }
        self.freezes.fetch_add(1, SeqCst);
        self.frozen.store(fault != Fault::ThawsByItself, SeqCst);
        match self.stops.swap(0, SeqCst) {
            0 => {}
            process => signal("STOP", process),
        }
        match fault {
            Fault::FreezesInSilence => None,
            Fault::ClosesMidway => Some(Value::Null),
            _ => Some(json!({ "return": 2 })),
        }
    }

    fn is_frozen(&self) -> bool {
        self.frozen.load(SeqCst)
    }
}

fn said(answer: &Value) -> Vec<u8> {
    match &answer["delimited"] {
        Value::Null => format!("{answer}\n").into_bytes(),
        id => [&[0xFF], format!("{{\"return\": {id}}}\n").as_bytes()].concat(),
    }
}

fn signal(name: &str, process: u32) {
    let sent = Command::new("kill").arg(format!("-{name}")).arg(process.to_string()).status().unwrap();
    assert!(sent.success());
}

/// A site whose machine `web1` has one disk and an agent; points come by `policy`.
fn site(policy: &str) -> (Site, Arc<FakeAgent>) {
    let site = Site::new();
    site.disk("root.img", 1 << 20);
    let at = |name: &str| site.path(name).display().to_string();
    site.config(&format!(
        "state_dir = \"{}\"\nsite = \"lund\"\n[vault]\nurl = \"{}\"\nencryption = \"none\"\n[policy]\n{policy}\n\
         [[machine]]\nname = \"web1\"\nguest_agent = {{ socket = \"{}\" }}\n\
         [[machine.disk]]\nname = \"root\"\npath = \"{}\"\n",
        at("state"),
        site.vault(),
        at("agent.sock"),
        at("root.img"),
    ));
    let agent = FakeAgent::start(&site);
    (site, agent)
}

#[test]
fn an_agent_that_fails_costs_the_label_and_a_bounded_time() {
    let (mut site, agent) = site("interval = \"1h\"");
    site.start("run");
    site.ok(&["wait", "web1", "--for", "protected", "--timeout", "60s"]);
    let cut = ["cut", "web1", "--app-consistent", "--timeout", "60s", "--json"];
    let cases = [
        (Fault::Hangs, "does not answer"),
        (Fault::Refuses, "no freezing here"),
        (Fault::FreezesInSilence, "does not answer"),
        (Fault::ClosesMidway, "was closed"),
        (Fault::ThawsByItself, "thawed before the cut was done"),
        (Fault::ThawsNone, "2 file systems were frozen, 0 were"),
        (Fault::ThawsFewer, "2 file systems were frozen, 1 were"),
        (Fault::Taken, "frozen by somebody else"),
    ];
    for (fault, why) in cases {
        *agent.fault.lock().unwrap() = fault;
        let began = Instant::now();
        let out = site.run(&cut);
        assert!(began.elapsed() < Duration::from_secs(25), "{fault:?} took {:?}", began.elapsed());
        let made = out.json();
        assert_eq!((out.code, &made["kind"]), (1, &json!("crash")), "{fault:?}: {made}");
        let note = made["notes"][0].as_str().unwrap();
        assert!(note.starts_with("crash-consistent: ") && note.contains(why), "{fault:?}: {note}");
        assert_eq!(out.error()["remedy"], note);
        assert_eq!(site.ok(&["status", "--json"]).json()["machines"][0]["notes"][0], note);
        assert!(site.log("run").contains(why), "{fault:?} is not in the log");
        until("the guest to go on", || !agent.is_frozen());
    }
    for fault in [Fault::Garbage, Fault::None] {
        *agent.fault.lock().unwrap() = fault;
        let made = site.ok(&cut).json();
        assert_eq!((&made["kind"], &made["notes"]), (&json!("application"), &json!([])), "{made}");
        assert!(!agent.is_frozen());
        site.ok(&["cut", "web1"]);
        let to = site.path("restored").display().to_string();
        let restore =
            ["restore", "web1", "--to", &to, "--force", "--point", "latest-app-consistent", "--json"];
        assert_eq!(site.ok(&restore).json()["point"], made["point"]);
    }
}

/// The proxy stands still between freeze and thaw and is killed there; the uploader too.
#[test]
fn a_guest_thaws_when_the_proxy_is_killed_in_between() {
    let (mut site, agent) = site("interval = \"1h\"");
    let (proxy, uploader) = (site.start("proxy"), site.start("uploader"));
    site.ok(&["wait", "web1", "--for", "protected", "--timeout", "60s"]);
    agent.stops.store(proxy, SeqCst);
    let mut cut = site.command(&["cut", "web1", "--app-consistent"]).spawn().unwrap();
    until("the guest to be frozen", || agent.is_frozen());
    std::thread::sleep(Duration::from_millis(500));
    assert!(agent.is_frozen(), "nobody has let it go yet");
    site.kill(uploader);
    site.kill(proxy);
    let killed = Instant::now();
    until("the guest to go on", || !agent.is_frozen());
    assert!(killed.elapsed() < Duration::from_secs(3), "after {:?}", killed.elapsed());
    assert!(!cut.wait().unwrap().success());
    site.start("run");
    let made = site.ok(&["cut", "web1", "--app-consistent", "--timeout", "60s", "--json"]).json();
    assert_eq!(made["kind"], "application");
}

/// A proxy that hangs is no better than one that died.
#[test]
fn a_guest_thaws_by_itself_when_the_proxy_hangs() {
    let (mut site, agent) = site("interval = \"1h\"");
    let (proxy, _) = (site.start("proxy"), site.start("uploader"));
    site.ok(&["wait", "web1", "--for", "protected", "--timeout", "60s"]);
    agent.stops.store(proxy, SeqCst);
    let mut command = site.command(&["cut", "web1", "--app-consistent", "--json"]);
    let cut = std::thread::spawn(move || command.output().unwrap());
    until("the guest to be frozen", || agent.is_frozen());
    let frozen = Instant::now();
    until("the guest to go on", || !agent.is_frozen());
    assert!(frozen.elapsed() < Duration::from_secs(13), "after {:?}", frozen.elapsed());
    // It goes on and cuts, and must not believe in a freeze that is over.
    signal("CONT", proxy);
    let made = cut.join().unwrap();
    let made: Value = serde_json::from_slice(&made.stdout).unwrap();
    assert_eq!(made["kind"], "crash", "{made}");
}

#[test]
fn application_consistent_points_come_as_often_as_the_policy_says() {
    let (mut site, agent) = site("interval = \"1s\"\napp_consistent_every = \"4s\"");
    let run = site.start("run");
    std::thread::sleep(Duration::from_secs(13));
    assert_eq!(site.stop(run), 0);
    let points = site.ok(&["points", "web1", "--json"]).json();
    let points = points["points"].as_array().unwrap();
    let application = points.iter().filter(|point| point["kind"] == "application").count();
    assert!((3..=5).contains(&application) && points.len() > application + 3, "{points:?}");
    assert_eq!(agent.freezes.load(SeqCst) as usize, application, "no other point froze the guest");
}
