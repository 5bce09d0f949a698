//! The program dies at every durable step it takes, before it and after it, and nothing is lost.
//!
//! The list of steps is the program's own (`nbd_proxy::durable::steps`). For each failpoint of it a scene is played that gets
//! there, with the real binary: the proxy and the uploader as processes, a client that sends again what was not answered, commands.
//! The process that comes to the failpoint is gone as by kill -9; it is started again and the scene goes on to its end. Then:
//! the next point is the disk bit for bit, every point restores as a state that the disk had, in their order, and nothing is
//! stuck. In a second pass the step fails instead. A failpoint that no scene reaches makes the test red, and so does one that is
//! reached and not on the list.
//!
//! `LIFEBOAT_DEATHS` is at how many of its passings in a scene a failpoint strikes: the first, the last, then those between.
#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../lab/mod.rs"]
mod lab;
mod scene;
mod scenes;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

use nbd_proxy::durable::failpoint;
use scene::{Scene, Strike};

/// Most of a scene is waiting.
const AT_ONCE: usize = 6;

#[test]
fn nothing_is_lost_by_a_death_at_any_durable_step() {
    at_every_failpoint("die", lab::scale("LIFEBOAT_DEATHS", 2));
}

#[test]
fn nothing_is_lost_by_a_failure_of_any_durable_step() {
    at_every_failpoint("fail", lab::scale("LIFEBOAT_DEATHS", 1));
}

fn at_every_failpoint(action: &'static str, times: u64) {
    let reached = rehearse();
    let all: BTreeSet<String> = failpoint::all().collect();
    let found: BTreeSet<String> = reached.keys().cloned().collect();
    let missed: Vec<_> = all.difference(&found).collect();
    assert!(missed.is_empty(), "no scene gets to {missed:?}");
    let unlisted: Vec<_> = found.difference(&all).collect();
    assert!(unlisted.is_empty(), "not on the list of steps: {unlisted:?}");
    let mut strikes = Vec::new();
    for (point, (scene, passings)) in reached {
        let between = 2..passings;
        let order = [1, passings].into_iter().chain(between).take(usize::try_from(times).expect("a few"));
        for nth in order.collect::<BTreeSet<u64>>() {
            strikes.push((scene, Strike { point: point.clone(), action, nth }));
        }
    }
    let count = strikes.len();
    let failed = play(strikes);
    assert!(failed.is_empty(), "{} of {count} strikes:\n{}", failed.len(), failed.join("\n"));
    eprintln!("{count} strikes over {} failpoints", all.len());
}

/// Plays every scene undisturbed. For each failpoint: the first scene that gets there, and how often a process passes it in it.
fn rehearse() -> BTreeMap<String, (&'static str, u64)> {
    let mut reached = BTreeMap::new();
    for name in scenes::NAMES {
        let scene = scenes::play(name, Scene::new(None));
        let mut passed: BTreeMap<(String, String), u64> = BTreeMap::new();
        for line in scene.trace().lines() {
            let (process, point) = line.split_once(' ').expect("a process and a failpoint");
            *passed.entry((point.to_owned(), process.to_owned())).or_default() += 1;
        }
        let mut here: BTreeMap<String, u64> = BTreeMap::new();
        for ((point, _), count) in passed {
            let most = here.entry(point).or_default();
            *most = count.max(*most);
        }
        for (point, count) in here {
            reached.entry(point).or_insert((*name, count));
        }
        scene.end();
    }
    reached
}

/// Plays a scene for each strike, several at once; says of those that went wrong how.
fn play(strikes: Vec<(&'static str, Strike)>) -> Vec<String> {
    let queue = Mutex::new(strikes.into_iter());
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().expect("the queue").next();
                    let Some((name, strike)) = next else { break };
                    let what = format!("{name}: {strike}");
                    let played = catch_unwind(AssertUnwindSafe(|| {
                        let scene = scenes::play(name, Scene::new(Some(strike)));
                        assert!(scene.was_struck(), "it was not reached this time");
                        scene.end();
                    }));
                    if let Err(panic) = played {
                        let text = panic.downcast_ref::<String>().cloned();
                        let text =
                            text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                        failed
                            .lock()
                            .expect("the list")
                            .push(format!("{what}: {}", text.unwrap_or_default()));
                    }
                }
            });
        }
    });
    failed.into_inner().expect("the list")
}
