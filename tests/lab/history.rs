//! What a disk may hold at an instant, when many clients wrote to it while cuts were taken and processes were killed.
//!
//! Each client writes a *stripe* of its own, one request after another, and notes when it sent each request and when it
//! was answered. So a stripe's content at a cut is its first `k` writes for some `k`: at least those answered before the
//! cut, at most those sent before it. [`Checker`] finds that `k` in the restored bytes or fails, and then holds the
//! stripes against each other: a write sent after another's answer is never there without it.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::Random;

/// The cut's instant is noted beside the roll of the logs, not in it, so stamps within this many seconds decide nothing.
const SLACK: f64 = 0.25;
/// A write that was running when its server was killed may be there in part, in whole pages.
const PAGE: usize = 4096;

/// Seconds since 1970.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock past 1970").as_secs_f64()
}

/// One write or zero, as its client saw it. Offsets count from the start of the stripe.
#[derive(Clone, Copy, Debug)]
pub struct Write {
    pub offset: usize,
    pub len: usize,
    /// The data is what this seed gives; none means zeroes.
    pub seed: Option<u64>,
    pub sent: f64,
    pub answered: f64,
    /// The connection broke before the answer came, and the request was sent again.
    pub resent: bool,
}

impl Write {
    /// The bytes that it leaves.
    pub fn data(&self) -> Vec<u8> {
        let mut data = vec![0; self.len];
        if let Some(seed) = self.seed {
            Random::new(seed).fill(&mut data);
        }
        data
    }
}

/// What one client did to its own range of a disk.
#[derive(Clone, Debug)]
pub struct Stripe {
    /// Which disk, in the order of the configuration.
    pub disk: usize,
    pub offset: u64,
    pub len: usize,
    pub writes: Vec<Write>,
}

/// A stripe's content, moved forward write by write.
struct Replay<'a> {
    stripe: &'a Stripe,
    bytes: Vec<u8>,
    done: usize,
}

impl Replay<'_> {
    fn step(&mut self) {
        let write = &self.stripe.writes[self.done];
        self.bytes[write.offset..write.offset + write.len].copy_from_slice(&write.data());
        self.done += 1;
    }

    /// Whether `found` is the content now, the next write perhaps there in part if it was cut off by a kill.
    fn matches(&self, found: &[u8]) -> bool {
        if found == self.bytes {
            return true;
        }
        let Some(next) = self.stripe.writes.get(self.done).filter(|next| next.resent) else { return false };
        let (start, end) = (next.offset, next.offset + next.len);
        let after = next.data();
        let untouched = found[..start] == self.bytes[..start] && found[end..] == self.bytes[end..];
        untouched
            && pages(self.stripe.offset, start, end).all(|(from, to)| {
                let piece = &found[from..to];
                *piece == self.bytes[from..to] || *piece == after[from - start..to - start]
            })
    }
}

/// The range `[start, end)` of a stripe, split at the pages of the disk that the stripe lies on.
fn pages(base: u64, start: usize, end: usize) -> impl Iterator<Item = (usize, usize)> {
    let shift = usize::try_from(base % PAGE as u64).expect("less than a page");
    let mut from = start;
    std::iter::from_fn(move || {
        (from < end).then(|| {
            let to = end.min((from + shift) / PAGE * PAGE + PAGE - shift);
            let page = (from, to);
            from = to;
            page
        })
    })
}

/// Holds points, oldest first, against what the clients did.
pub struct Checker<'a> {
    replays: Vec<Replay<'a>>,
}

impl<'a> Checker<'a> {
    pub fn new(stripes: &'a [Stripe]) -> Self {
        let replays = stripes.iter().map(|stripe| Replay { stripe, bytes: vec![0; stripe.len], done: 0 });
        Self { replays: replays.collect() }
    }

    /// The disks restored to `images` must be what they could have been at `time`.
    pub fn point(&mut self, name: &str, time: f64, images: &[PathBuf]) {
        let mut prefixes = Vec::new();
        for (n, replay) in self.replays.iter_mut().enumerate() {
            let writes = &replay.stripe.writes;
            let low = writes.iter().take_while(|write| write.answered <= time - SLACK).count();
            let high = writes.iter().take_while(|write| write.sent < time + SLACK).count();
            let found = read(&images[replay.stripe.disk], replay.stripe.offset, replay.stripe.len);
            while replay.done < low {
                replay.step();
            }
            while replay.done < high && !replay.matches(&found) {
                replay.step();
            }
            assert!(
                replay.matches(&found),
                "{name}: stripe {n} is not the first k writes for any k in {low}..={high}; {}",
                difference(&replay.bytes, &found)
            );
            prefixes.push(replay.prefix(&found));
        }
        in_order(name, &prefixes);
    }

    /// All that was answered is there: for a disk that rests, or the point taken then.
    pub fn end(&mut self, name: &str, images: &[PathBuf]) {
        for (n, replay) in self.replays.iter_mut().enumerate() {
            while replay.done < replay.stripe.writes.len() {
                replay.step();
            }
            let found = read(&images[replay.stripe.disk], replay.stripe.offset, replay.stripe.len);
            assert!(found == replay.bytes, "{name}: stripe {n}: {}", difference(&replay.bytes, &found));
        }
    }
}

/// Between which writes a stripe was cut: the last one that is surely there, the first that is surely not.
struct Prefix<'a> {
    last: Option<&'a Write>,
    next: Option<&'a Write>,
}

impl<'a> Replay<'a> {
    /// A write that changes nothing may be there or not.
    fn prefix(&self, found: &[u8]) -> Prefix<'a> {
        let writes = &self.stripe.writes;
        let silent = |write: &&Write| found[write.offset..write.offset + write.len] == write.data();
        let next = writes[self.done..].iter().find(|write| !silent(write));
        Prefix { last: self.done.checked_sub(1).map(|last| &writes[last]), next }
    }
}

/// No write is there that was sent after the answer to one that is not.
fn in_order(name: &str, prefixes: &[Prefix<'_>]) {
    for (a, missing) in prefixes.iter().enumerate().filter_map(|(n, prefix)| Some((n, prefix.next?))) {
        for (b, present) in prefixes.iter().enumerate().filter_map(|(n, prefix)| Some((n, prefix.last?))) {
            assert!(
                missing.answered >= present.sent,
                "{name}: stripe {b} has a write that was sent {:.6} s after the answer to one that stripe {a} lacks",
                present.sent - missing.answered
            );
        }
    }
}

fn read(image: &Path, offset: u64, len: usize) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; len];
    let file = std::fs::File::open(image).unwrap_or_else(|error| panic!("{}: {error}", image.display()));
    file.read_exact_at(&mut bytes, offset).unwrap_or_else(|error| panic!("{}: {error}", image.display()));
    bytes
}

/// Where two runs of bytes differ first, and in how many places.
pub fn difference(wanted: &[u8], found: &[u8]) -> String {
    if wanted.len() != found.len() {
        return format!("{} bytes wanted, {} found", wanted.len(), found.len());
    }
    let differing = || wanted.iter().zip(found).enumerate().filter(|(_, (a, b))| a != b);
    match differing().next() {
        None => "no difference".into(),
        Some((at, (a, b))) => format!(
            "{} of {} bytes differ, the first at {at}: {a:#04x} wanted, {b:#04x} found",
            differing().count(),
            wanted.len()
        ),
    }
}
