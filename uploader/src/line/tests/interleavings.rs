//! Every interleaving of writers, pruning, lost and late requests and time, on the real [`Line`] and [`Writer`].
//!
//! The programs do what replication does: look at the head, append, look again after an error, and go on in a branch once fenced. In
//! every state that can be reached:
//!
//! - whatever a writer takes for durable is what was created first under that name: nobody counts an entry in a freed name;
//! - an entry that counts is of the owner who made the last claim before it: there is one line;
//! - nobody writes the main line after it has learnt of being fenced; a branch holds, in order and without a gap, what its writer has
//!   put there, and nothing of anybody else.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use super::world::{Seat, Truth, World, every_state};
use super::*;

const MAIN: &str = "machines/m/line";

fn who(writer: u128, generation: u64) -> Owner {
    Owner { writer: Uuid::from_u128(writer), generation }
}

fn line_of(seat: &Seat, folder: &str) -> Line {
    Line::new(seat.store(), Cipher::None, folder.to_owned(), owner_of)
}

fn whose(entry: &[u8]) -> Owner {
    owner_of(&Named::plain("an entry"), entry).unwrap()
}

fn branch_of(owner: Owner) -> String {
    format!("machines/m/branches/{}", owner.writer.simple())
}

fn is_claim(bytes: &[u8]) -> bool {
    bytes.ends_with(b"claim")
}

/// Appends `points` entries above `head`, as replication does.
async fn go_on(seat: &Seat, mut writer: Writer, mut head: u64, owner: Owner, points: usize) {
    let mut on_branch = false;
    let mut left = points;
    let mut looked = false;
    while left > 0 {
        let number = head + 1;
        let bytes = entry(owner, &format!("{}{number}", if on_branch { "branch " } else { "" }));
        let appended = match looked {
            true => writer.append(number, bytes.clone()).await.map(Some),
            false => writer.find(head).await,
        };
        looked = appended.is_ok();
        match appended {
            Ok(None) | Err(_) => {}
            Ok(Some(Appended::Created)) => {
                seat.believes(writer.line().key(number), bytes);
                (head, left) = (number, left - 1);
            }
            Ok(Some(Appended::Ours(found))) => {
                seat.believes(writer.line().key(found.number), found.bytes);
                (head, left) = (found.number, left - 1);
            }
            Ok(Some(Appended::Foreign(newest))) => {
                assert!(!on_branch, "a branch is nobody else's");
                // Numbers go on above the line's newest, so that no two entries of a generation share one.
                (on_branch, looked, head) = (true, false, newest.number);
                writer = Writer::new(line_of(seat, &branch_of(owner)), owner, seat.clock());
            }
        }
    }
}

/// A writer whose claim is entry 1.
async fn first(seat: Seat, points: usize) {
    let owner = who(1, 1);
    let writer = Writer::new(line_of(&seat, MAIN), owner, seat.clock());
    go_on(&seat, writer, 1, owner, points).await;
}

/// A writer that takes the line over.
async fn claimer(seat: Seat, id: u128, points: usize) {
    let mut owner = who(id, 0);
    loop {
        let line = line_of(&seat, MAIN);
        let claim = |newest: Option<&Entry>| {
            let newest = newest.map(|newest| whose(&newest.bytes));
            if newest.is_some_and(|newest| newest.writer == owner.writer) {
                owner = newest.unwrap();
                return Ok(None);
            }
            owner.generation = newest.map_or(0, |newest| newest.generation) + 1;
            Ok(Some((owner, entry(owner, "claim"))))
        };
        match Writer::claim(line, seat.clock(), claim).await {
            Ok(Some((writer, number))) => {
                seat.believes(writer.line().key(number), entry(owner, "claim"));
                return go_on(&seat, writer, number, owner, points).await;
            }
            Ok(None) => {
                let line = line_of(&seat, MAIN);
                let found = loop {
                    if let Ok(found) = line.newest_after(0).await {
                        break found.unwrap();
                    }
                };
                if whose(&found.bytes) != owner {
                    continue;
                }
                return go_on(&seat, Writer::new(line, owner, seat.clock()), found.number, owner, points)
                    .await;
            }
            Err(_) => {}
        }
    }
}

/// Deletes all between the first and the newest entry, after the wait.
async fn prune(seat: Seat) {
    let line = line_of(&seat, MAIN);
    let newest = loop {
        if let Ok(newest) = line.newest_after(0).await {
            break newest.unwrap().number;
        }
    };
    seat.wait().await;
    for number in 2..newest {
        seat.delete(&line.key(number)).await;
    }
}

fn check(truth: &Truth, over: bool) {
    let number = |key: &str| keys::parse_line_entry(key).unwrap();
    for (program, key, bytes) in &truth.believed {
        assert_eq!(&truth.first[key], bytes, "program {program} counts what stands in a freed name");
    }
    let main = truth.first.iter().filter(|(key, _)| key.starts_with(MAIN));
    let mut last: Option<(u64, Owner)> = None;
    for (key, bytes) in main {
        let owner = whose(bytes);
        let (before, of) = last.unwrap_or((0, owner));
        assert_eq!(number(key), before + 1, "the line has a gap");
        assert!(is_claim(bytes) || owner == of, "{key} is not of the owner");
        assert!(!bytes[17..].starts_with(b"branch"), "a fenced writer wrote the main line");
        last = Some((number(key), owner));
    }
    let branches = truth.first.iter().filter(|(key, _)| key.contains("/branches/"));
    let mut last: Option<(&str, u64)> = None;
    for (key, bytes) in branches {
        let (folder, _) = key.rsplit_once('/').unwrap();
        assert_eq!(folder, branch_of(whose(bytes)), "a branch has a stranger's entry");
        if let Some((_, before)) = last.filter(|(before, _)| *before == folder) {
            assert_eq!(number(key), before + 1, "a branch has a gap");
        }
        last = Some((folder, number(key)));
        // All of them are known to their writers in the end.
        let known = truth.believed.iter().any(|(_, believed, _)| believed == key);
        assert!(!over || known, "{key} is nobody's");
    }
}

fn world(time: u32, faults: u32) -> World {
    let world = World::new(time, faults);
    world.put(&format!("{MAIN}/{:020}", 1), entry(who(1, 1), "claim"));
    world
}

/// Runs it, and sees to it that writers were fenced on the way and went on in branches.
fn every_interleaving(begin: impl Fn() -> World) -> usize {
    let branched = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&branched);
    let states = every_state(begin, move |truth, over| {
        check(truth, over);
        if over && truth.believed.iter().any(|(_, key, _)| key.contains("/branches/")) {
            seen.fetch_add(1, SeqCst);
        }
    });
    assert!(branched.load(SeqCst) > 0, "nobody was ever fenced");
    println!("{states} states, {} ends with a branch", branched.load(SeqCst));
    states
}

/// How much happens: little, or more when the variable asks for it.
fn scaled(little: u32, more: u32) -> u32 {
    if std::env::var_os("LIFEBOAT_LINE_FULL").is_some() { more } else { little }
}

#[test]
fn one_line_whatever_stalls_and_whatever_is_pruned_meanwhile() {
    let states = every_interleaving(|| {
        let mut world = world(scaled(1, 2), 0);
        world.add(|seat| first(seat, scaled(1, 2) as usize));
        world.add(|seat| claimer(seat, 2, 1));
        world.add(prune);
        world
    });
    assert!(states > 1000, "{states}");
}

#[test]
fn one_line_whatever_request_is_lost_or_late() {
    let states = every_interleaving(|| {
        let mut world = world(1, 1);
        if scaled(0, 1) > 0 {
            world.lose_anything();
        }
        world.add(|seat| first(seat, 1));
        world.add(|seat| claimer(seat, 2, 1));
        world.add(prune);
        world
    });
    assert!(states > 1000, "{states}");
}

#[test]
fn one_line_of_three_writers() {
    let states = every_interleaving(|| {
        let mut world = world(scaled(0, 1), 0);
        world.add(|seat| first(seat, 1));
        world.add(|seat| claimer(seat, 2, 1));
        world.add(|seat| claimer(seat, 3, scaled(0, 1) as usize));
        if scaled(0, 1) > 0 {
            world.add(prune);
        }
        world
    });
    assert!(states > 1000, "{states}");
}
