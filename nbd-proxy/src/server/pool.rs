//! A few threads for work that may wait.
//!
//! Threads are started when work arrives and none is free, up to a limit, and leave after some idle seconds. Each
//! disk has a pool of its own, so that a slow disk delays only its own clients. Jobs run in the order they came.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A thread without work leaves after this.
const IDLE: Duration = Duration::from_secs(5);
/// Stack of a worker; only touched pages count.
const STACK: usize = 512 << 10;

/// Something to be done on a worker.
pub(super) trait Task: Send + 'static {
    /// Does it.
    fn run(self);
}

struct State<T> {
    queue: VecDeque<T>,
    threads: Vec<JoinHandle<()>>,
    running: usize,
    idle: usize,
    closed: bool,
}

/// See the module.
pub(super) struct Pool<T> {
    limit: usize,
    state: Mutex<State<T>>,
    work: Condvar,
}

impl<T: Task> Pool<T> {
    /// A pool of at most `limit` threads (at least one).
    pub(super) fn new(limit: usize) -> Arc<Self> {
        let state = State { queue: VecDeque::new(), threads: Vec::new(), running: 0, idle: 0, closed: false };
        Arc::new(Self { limit: limit.max(1), state: Mutex::new(state), work: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has `task` done by a worker, or by the caller if no thread can be had at all.
    pub(super) fn submit(self: &Arc<Self>, task: T) {
        let mut state = self.lock();
        state.queue.push_back(task);
        // An idle thread takes one task; those queued before this one have theirs already.
        if state.queue.len() <= state.idle {
            drop(state);
            self.work.notify_one();
            return;
        }
        if state.running >= self.limit || self.start(&mut state) || state.running > 0 {
            return;
        }
        let task = state.queue.pop_back();
        drop(state);
        if let Some(task) = task {
            task.run();
        }
    }

    fn start(self: &Arc<Self>, state: &mut State<T>) -> bool {
        state.threads.retain(|thread| !thread.is_finished());
        let pool = Arc::clone(self);
        let builder = thread::Builder::new().name("nbd-worker".into()).stack_size(STACK);
        match builder.spawn(move || pool.serve()) {
            Ok(thread) => {
                state.threads.push(thread);
                state.running += 1;
                true
            }
            Err(_) => false,
        }
    }

    fn serve(&self) {
        while let Some(task) = self.next() {
            task.run();
        }
    }

    /// The next task, or nothing when this thread should leave (it is no longer counted then).
    fn next(&self) -> Option<T> {
        let mut state = self.lock();
        loop {
            if let Some(task) = state.queue.pop_front() {
                return Some(task);
            }
            if state.closed {
                state.running -= 1;
                return None;
            }
            state.idle += 1;
            let (guard, timeout) =
                self.work.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
            state = guard;
            state.idle -= 1;
            if timeout.timed_out() && state.queue.is_empty() {
                state.running -= 1;
                return None;
            }
        }
    }

    /// Finishes what is queued and joins the threads.
    pub(super) fn close(&self) {
        let threads = {
            let mut state = self.lock();
            state.closed = true;
            std::mem::take(&mut state.threads)
        };
        self.work.notify_all();
        for thread in threads {
            // A worker that panicked has said so on its own.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
