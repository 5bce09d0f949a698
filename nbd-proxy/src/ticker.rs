//! The thread that gives each disk of a machine its regular work.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::disk::TrackedDisk;

/// How often; a stamp lasts several times as long.
const EVERY: Duration = Duration::from_secs(2);

/// Ticks until it is dropped.
#[derive(Debug)]
pub(crate) struct Ticker {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    /// Starts the thread.
    pub(crate) fn start(disks: &[Arc<TrackedDisk>]) -> std::io::Result<Self> {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let (flag, disks) = (Arc::clone(&stop), disks.to_vec());
        let run = move || {
            while !wait(&flag) {
                disks.iter().for_each(|disk| disk.tick(Instant::now()));
            }
        };
        let thread = thread::Builder::new().name("ticker".into()).spawn(run)?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

/// Waits for the next tick; true if there is none.
fn wait((stop, bell): &(Mutex<bool>, Condvar)) -> bool {
    let guard = stop.lock().unwrap_or_else(PoisonError::into_inner);
    let (guard, _) =
        bell.wait_timeout_while(guard, EVERY, |stop| !*stop).unwrap_or_else(PoisonError::into_inner);
    *guard
}

impl Drop for Ticker {
    fn drop(&mut self) {
        *self.stop.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.1.notify_all();
        // It held the disks: when this returns they are nobody's but the owner's.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
