//! A guest that can be asked to hold its file systems still for the instant of a cut.
//!
//! How it is asked is the business of whoever attends to the machine ([`Machine::attend`]). What counts here: holding
//! ends by itself if we die, and a guest is believed only if it says *afterwards* that it was still all the time.

use std::thread;

use super::Machine;
use crate::Result;

/// A guest that can hold still. Both calls block for a bounded time.
pub trait Guest: std::fmt::Debug + Send + Sync {
    /// Makes the guest hold its file systems still, consistent on disk.
    ///
    /// # Errors
    /// It does not, and is not left doing so.
    fn hold(&self) -> Result<Box<dyn Held>>;
}

/// A guest that holds still; dropped, it goes on.
pub trait Held: Send {
    /// Lets the guest go on.
    ///
    /// # Errors
    /// It cannot be said that it was still until now.
    fn release(self: Box<Self>) -> Result<()>;
}

/// A guest that holds still, or why it does not.
pub(super) type Holding = Result<Box<dyn Held>, String>;

/// Asks the guests of all `machines` at the same time.
pub(super) fn hold_all(machines: &[&Machine]) -> Vec<Holding> {
    in_parallel(machines.iter().map(|machine| move || hold(machine)))
}

/// Lets all go on, at the same time; which of them were still until now.
pub(super) fn release_all(held: Vec<Holding>) -> Vec<Result<(), String>> {
    in_parallel(held.into_iter().map(|held| move || release(held)))
}

fn hold(machine: &Machine) -> Holding {
    let Some(guest) = machine.guest.get() else {
        return Err("crash-consistent: the machine has no guest agent configured".to_owned());
    };
    guest.hold().map_err(|error| fallen_back(&error))
}

fn release(held: Holding) -> Result<(), String> {
    held?.release().map_err(|error| fallen_back(&error))
}

fn fallen_back(error: &crate::Error) -> String {
    format!("crash-consistent: {}: {}", error.object, error.message)
}

fn in_parallel<T: Send, E: From<String> + Send>(
    work: impl Iterator<Item = impl FnOnce() -> Result<T, E> + Send>,
) -> Vec<Result<T, E>> {
    thread::scope(|scope| {
        let running: Vec<_> = work.map(|work| scope.spawn(work)).collect();
        let ended = running.into_iter().map(thread::ScopedJoinHandle::join);
        ended.map(|ended| ended.unwrap_or_else(|_| Err("its thread panicked".to_owned().into()))).collect()
    })
}

#[cfg(test)]
mod tests;
