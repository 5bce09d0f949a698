//! Compresses and hashes frames on all cores, keeping their order and a bounded number in flight.
//!
//! Frame i goes to worker i mod n and comes back from it, so results need no numbers and are taken in order. Most
//! deltas are a frame or two: threads start with the second frame.

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use crate::digest::Digest;

/// A frame as it will be stored.
pub(super) struct Packed {
    pub stored: Vec<u8>,
    pub raw_len: usize,
    pub digest: Digest,
}

struct Worker {
    jobs: Option<SyncSender<Vec<u8>>>,
    results: Receiver<io::Result<Packed>>,
    thread: Option<JoinHandle<()>>,
}

/// A queue of frames being compressed.
#[derive(Default)]
pub(super) struct Pool {
    first: Option<Vec<u8>>,
    workers: Vec<Worker>,
    submitted: usize,
    taken: usize,
}

/// Frames that a worker may have waiting; more would only cost memory.
const AHEAD: usize = 2;

impl Pool {
    /// Adds a frame; gives back the oldest one when enough are in flight.
    pub fn submit(&mut self, raw: Vec<u8>) -> io::Result<Option<Packed>> {
        if self.submitted == 0 {
            self.first = Some(raw);
            self.submitted = 1;
            return Ok(None);
        }
        if let Some(first) = self.first.take() {
            self.start()?;
            self.submitted = 0;
            self.send(first)?;
        }
        let done =
            if self.submitted - self.taken >= AHEAD * self.workers.len() { Some(self.take()?) } else { None };
        self.send(raw)?;
        Ok(done)
    }

    /// Waits for everything in flight, in order.
    pub fn finish(mut self) -> io::Result<VecDeque<Packed>> {
        if let Some(first) = self.first.take() {
            return Ok(VecDeque::from([pack(&mut compressor()?, first)?]));
        }
        let mut rest = VecDeque::new();
        while self.taken < self.submitted {
            rest.push_back(self.take()?);
        }
        Ok(rest)
    }

    fn start(&mut self) -> io::Result<()> {
        let cores = thread::available_parallelism().map_or(1, usize::from).min(16);
        for _ in 0..cores {
            let (jobs, todo) = sync_channel::<Vec<u8>>(AHEAD);
            let (done, results) = sync_channel(AHEAD);
            let thread =
                thread::Builder::new().name("compress".to_owned()).spawn(move || work(&todo, &done))?;
            self.workers.push(Worker { jobs: Some(jobs), results, thread: Some(thread) });
        }
        Ok(())
    }

    fn send(&mut self, raw: Vec<u8>) -> io::Result<()> {
        let worker = &self.workers[self.submitted % self.workers.len()];
        let sent = worker.jobs.as_ref().is_some_and(|jobs| jobs.send(raw).is_ok());
        self.submitted += 1;
        if sent { Ok(()) } else { Err(gone()) }
    }

    fn take(&mut self) -> io::Result<Packed> {
        let worker = &self.workers[self.taken % self.workers.len()];
        self.taken += 1;
        worker.results.recv().map_err(|_| gone())?
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for worker in &mut self.workers {
            worker.jobs = None;
        }
        for worker in &mut self.workers {
            // A worker may wait for its results to be taken: they are of no use to anybody now.
            while worker.results.recv().is_ok() {}
            if let Some(thread) = worker.thread.take() {
                let _ = thread.join();
            }
        }
    }
}

fn gone() -> io::Error {
    io::Error::other("a compressing thread has ended")
}

fn work(todo: &Receiver<Vec<u8>>, done: &SyncSender<io::Result<Packed>>) {
    let mut compressor = match compressor() {
        Ok(compressor) => compressor,
        Err(e) => {
            let _ = done.send(Err(e));
            return;
        }
    };
    while let Ok(raw) = todo.recv() {
        if done.send(pack(&mut compressor, raw)).is_err() {
            return;
        }
    }
}

fn compressor() -> io::Result<zstd::bulk::Compressor<'static>> {
    zstd::bulk::Compressor::new(1)
}

fn pack(compressor: &mut zstd::bulk::Compressor<'static>, raw: Vec<u8>) -> io::Result<Packed> {
    let (digest, raw_len) = (Digest::of(&raw), raw.len());
    let packed = compressor.compress(&raw)?;
    let stored = if packed.len() < raw_len { packed } else { raw };
    Ok(Packed { stored, raw_len, digest })
}
