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
use std::sync::{Mutex, OnceLock};

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

/// The scenes that get to a failpoint, each with how often a process passes it.
type Reached = BTreeMap<String, Vec<(&'static str, u64)>>;

fn at_every_failpoint(action: &'static str, times: u64) {
    static REACHED: OnceLock<Reached> = OnceLock::new();
    let reached = REACHED.get_or_init(rehearse);
    let all: BTreeSet<String> = failpoint::all().collect();
    let found: BTreeSet<String> = reached.keys().cloned().collect();
    let missed: Vec<_> = all.difference(&found).collect();
    assert!(missed.is_empty(), "no scene gets to {missed:?}");
    let unlisted: Vec<_> = found.difference(&all).collect();
    assert!(unlisted.is_empty(), "not on the list of steps: {unlisted:?}");
    let strikes = reached.iter().flat_map(|(point, scenes)| {
        let passings = scenes[0].1;
        let order = [1, passings].into_iter().chain(2..passings);
        let nths: BTreeSet<u64> = order.take(usize::try_from(times).expect("a few")).collect();
        nths.into_iter().map(move |nth| (scenes, Strike { point: point.clone(), action, nth }))
    });
    let strikes: Vec<_> = strikes.collect();
    let count = strikes.len();
    let results = side_by_side(strikes, |(scenes, strike)| {
        let played = catch_unwind(AssertUnwindSafe(|| play(scenes, &strike)));
        played.unwrap_or_else(|panic| Err(format!("{strike}: {}", text_of(&*panic))))
    });
    let failed: Vec<&String> = results.iter().filter_map(|result| result.as_ref().err()).collect();
    assert!(failed.is_empty(), "{} of {count} strikes: {failed:#?}", failed.len());
    let struck = results.iter().flatten().flatten();
    eprintln!("{} strikes at {} failpoints, each survived", struck.clone().count(), all.len());
    // After a failed sync of the disk its flushes fail, until it is opened anew. Nothing else has to be helped.
    let helped = struck.flatten().filter(|stuck| action == "die" || !stuck.starts_with("Backing"));
    let helped: Vec<&String> = helped.collect();
    assert!(helped.is_empty(), "failed until all daemons were started again: {helped:#?}");
}

/// Plays every scene undisturbed.
fn rehearse() -> Reached {
    let mut reached = Reached::new();
    let traces = side_by_side(scenes::NAMES.to_vec(), |name| {
        let scene = scenes::play(name, Scene::new(None));
        let trace = scene.trace();
        scene.end();
        (name, trace)
    });
    for (name, trace) in traces {
        let mut passed: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        for line in trace.lines() {
            let (process, point) = line.split_once(' ').expect("a process and a failpoint");
            *passed.entry((point, process)).or_default() += 1;
        }
        let mut most: BTreeMap<&str, u64> = BTreeMap::new();
        for ((point, _), count) in passed {
            let known = most.entry(point).or_default();
            *known = count.max(*known);
        }
        for (point, count) in most {
            reached.entry(point.to_owned()).or_default().push((name, count));
        }
    }
    reached
}

/// Plays the scenes until the strike has come about in one: when a spare file is removed, say, depends on the moment. `None`: never,
/// which is right for a later passing only; else what went on failing until daemons were started again.
fn play(scenes: &[(&'static str, u64)], strike: &Strike) -> Result<Option<Option<String>>, String> {
    for (name, _) in scenes {
        let scene = scenes::play(name, Scene::new(Some(strike.clone())));
        let struck = scene.was_struck();
        let stuck = scene.end().map(|stuck| format!("{strike}: {stuck}"));
        if struck {
            return Ok(Some(stuck));
        }
    }
    if strike.nth == 1 { Err(format!("{strike}: it was not reached this time")) } else { Ok(None) }
}

/// Does `work` for each of `items`, several at once; the results in their order.
fn side_by_side<T: Send, R: Send>(items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let queue = Mutex::new(items.into_iter().enumerate());
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().expect("the queue").next();
                    let Some((n, item)) = next else { break };
                    let result = work(item);
                    done.lock().expect("the results").push((n, result));
                }
            });
        }
    });
    let mut done = done.into_inner().expect("the results");
    done.sort_by_key(|(n, _)| *n);
    done.into_iter().map(|(_, result)| result).collect()
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}
