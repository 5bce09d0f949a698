//! What happens at a failpoint: nothing, an error, or death. Only in builds with the feature `failpoints`, and in this package's tests.
//!
//! A process is given a plan as a text, which its `main` takes from the environment ([`plan`]); there death is SIGKILL to ourselves, so
//! that nothing is flushed, unwound or answered. A test within a process arms its own thread ([`arm`]); there the dead cannot be
//! stopped, but nothing durable comes of them any more: every later step of the thread fails without being done.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Write as _};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::steps::{ALL, Op, Step, When};
use crate::{Error, Kind, Result};

/// A failpoint's name.
pub fn name(step: Step, op: Op, when: When) -> String {
    let when = if when == When::Before { "before" } else { "after" };
    format!("{step:?}.{op:?}.{when}")
}

/// The names of all failpoints.
pub fn all() -> impl Iterator<Item = String> {
    let sides = [When::Before, When::After];
    ALL.iter()
        .flat_map(move |(step, ops)| ops.iter().flat_map(move |op| sides.map(|when| name(*step, *op, when))))
}

/// Armed instead of one failpoint: all of them.
pub const ANY: &str = "*";

/// What is to happen at a failpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// An I/O error.
    Fail,
    /// The process ends as by kill -9.
    Die,
}

/// One line of a plan.
#[derive(Debug)]
struct Armed {
    point: String,
    action: Action,
    /// Which passing it is about, from 1 on; 0: every one.
    nth: u64,
    passed: AtomicU64,
}

impl Armed {
    fn strikes(&self, point: &str) -> bool {
        (self.point == point || self.point == ANY) && {
            let passed = 1 + self.passed.fetch_add(1, Ordering::Relaxed);
            self.nth == 0 || self.nth == passed
        }
    }
}

#[derive(Debug)]
struct Plan {
    armed: Vec<Armed>,
    trace: Option<File>,
}

static PLAN: OnceLock<Plan> = OnceLock::new();

/// Plans for this whole process: words `POINT=fail`, `POINT=fail@N`, `POINT=die@N`, and `trace=FILE` for a file to which a line
/// is added for each failpoint that is passed: our process id, and its name.
///
/// # Errors
/// `InvalidInput`: a word cannot be understood, or there is no such failpoint.
pub fn plan(text: &str) -> Result<()> {
    let mut plan = Plan { armed: Vec::new(), trace: None };
    for word in text.split_whitespace() {
        let refused = || Error::new(Kind::InvalidInput, word, "is no plan for a failpoint");
        let (point, wish) = word.split_once('=').ok_or_else(refused)?;
        if point == "trace" {
            let open = File::options().append(true).create(true).open(wish);
            plan.trace = Some(open.map_err(|error| Error::io("open the trace", wish.as_ref(), error))?);
            continue;
        }
        let (action, nth) = wish.split_once('@').unwrap_or((wish, "0"));
        let action = match action {
            "fail" => Action::Fail,
            "die" => Action::Die,
            _ => return Err(refused()),
        };
        if !all().any(|known| known == point) {
            return Err(refused());
        }
        let nth = nth.parse().map_err(|_| refused())?;
        plan.armed.push(Armed { point: point.to_owned(), action, nth, passed: AtomicU64::new(0) });
    }
    PLAN.set(plan).map_err(|_| Error::new(Kind::InvalidInput, "failpoints", "are planned already"))
}

thread_local! {
    static LOCAL: RefCell<Option<Local>> = const { RefCell::new(None) };
}

type Watch = Box<dyn FnMut(&str)>;

#[derive(Default)]
struct Local {
    armed: Vec<Armed>,
    watch: Option<Watch>,
    passed: Vec<String>,
    dead: bool,
}

/// This thread's failpoints are armed until this is dropped.
#[derive(Debug)]
#[must_use]
pub struct Guard(());

impl Guard {
    /// Calls `watch` with the name of each failpoint that is passed on this thread, before anything happens there.
    pub fn watch(&self, watch: impl FnMut(&str) + 'static) {
        set_watch(Box::new(watch));
    }

    /// The failpoints that were passed on this thread, in order.
    pub fn passed(&self) -> Vec<String> {
        LOCAL.with_borrow(|local| local.as_ref().map(|local| local.passed.clone()).unwrap_or_default())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        LOCAL.set(None);
    }
}

/// Whether this thread's program has died.
pub fn is_dead() -> bool {
    LOCAL.with_borrow(|local| local.as_ref().is_some_and(|local| local.dead))
}

/// Arms failpoints for the calling thread: (name, what happens, at which passing from 1 on, or 0 for every one).
pub fn arm(wishes: &[(&str, Action, u64)]) -> Guard {
    let armed = |(point, action, nth): &(&str, Action, u64)| {
        debug_assert!(*point == ANY || all().any(|known| known == *point), "there is no failpoint {point}");
        Armed { point: (*point).to_owned(), action: *action, nth: *nth, passed: AtomicU64::new(0) }
    };
    LOCAL.set(Some(Local { armed: wishes.iter().map(armed).collect(), ..Local::default() }));
    Guard(())
}

fn set_watch(watch: Watch) {
    LOCAL.with_borrow_mut(|local| {
        if let Some(local) = local {
            local.watch = Some(watch);
        }
    });
}

/// Passes a failpoint.
pub(super) fn hit(step: Step, op: Op, when: When) -> io::Result<()> {
    // Not borrowed meanwhile: who watches may pass failpoints himself.
    let watch = LOCAL.with_borrow_mut(|local| local.as_mut().and_then(|local| local.watch.take()));
    if let Some(mut watch) = watch {
        watch(&name(step, op, when));
        set_watch(watch);
    }
    LOCAL.with_borrow_mut(|local| local.as_mut().map_or(Ok(()), |local| local.hit(step, op, when)))?;
    let Some(plan) = PLAN.get() else { return Ok(()) };
    let point = name(step, op, when);
    if let Some(mut trace) = plan.trace.as_ref() {
        trace.write_all(format!("{} {point}\n", std::process::id()).as_bytes())?;
    }
    match plan.armed.iter().find(|armed| armed.strikes(&point)).map(|armed| armed.action) {
        None => Ok(()),
        Some(Action::Fail) => Err(failure(&point)),
        Some(Action::Die) => {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            // The signal is on its way to every thread, and nothing may happen any more.
            loop {
                std::thread::park();
            }
        }
    }
}

impl Local {
    fn hit(&mut self, step: Step, op: Op, when: When) -> io::Result<()> {
        let point = name(step, op, when);
        if self.dead {
            return Err(failure(&point));
        }
        let action = self.armed.iter().find(|armed| armed.strikes(&point)).map(|armed| armed.action);
        self.passed.push(point);
        match (action, self.passed.last()) {
            (Some(action), Some(point)) => {
                self.dead = action == Action::Die;
                Err(failure(point))
            }
            _ => Ok(()),
        }
    }
}

fn failure(point: &str) -> io::Error {
    io::Error::other(format!("the failpoint {point} says so"))
}
