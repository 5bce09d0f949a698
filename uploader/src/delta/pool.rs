//! Compresses, hashes and seals frames on all cores, keeping their order and a bounded number in flight.
//!
//! Frame i goes to worker i mod n and comes back from it, so results need no numbers and are taken in order. Most
//! deltas are a frame or two: threads start with the second frame.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use nbd_proxy::{Error, Kind, Result};

use crate::cipher::Units;
use crate::digest::Digest;

/// A frame to be packed: its number and its raw bytes.
type Job = (u64, Vec<u8>);

/// A frame as it will be stored.
pub(super) struct Packed {
    pub stored: Vec<u8>,
    pub raw_len: usize,
    pub digest: Digest,
}

struct Worker {
    jobs: Option<SyncSender<Job>>,
    results: Receiver<Result<Packed>>,
    thread: Option<JoinHandle<()>>,
}

/// A queue of frames being compressed.
#[derive(Default)]
pub(super) struct Pool {
    units: Units,
    frames: u64,
    first: Option<Job>,
    workers: Vec<Worker>,
    submitted: usize,
    taken: usize,
}

/// Frames that a worker may have waiting; more would only cost memory.
const AHEAD: usize = 2;

impl Pool {
    /// A queue for the frames of the delta whose units `units` seals.
    pub fn new(units: Units) -> Self {
        let mut pool = Self::default();
        pool.units = units;
        pool
    }

    /// Adds the next frame; gives back the oldest one when enough are in flight.
    pub fn submit(&mut self, raw: Vec<u8>) -> Result<Option<Packed>> {
        let job = (self.frames, raw);
        self.frames += 1;
        if self.submitted == 0 {
            self.first = Some(job);
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
        self.send(job)?;
        Ok(done)
    }

    /// Waits for everything in flight, in order.
    pub fn finish(mut self) -> Result<VecDeque<Packed>> {
        if let Some(first) = self.first.take() {
            return Ok(VecDeque::from([pack(&mut compressor()?, &self.units, first)?]));
        }
        let mut rest = VecDeque::new();
        while self.taken < self.submitted {
            rest.push_back(self.take()?);
        }
        Ok(rest)
    }

    fn start(&mut self) -> Result<()> {
        let cores = thread::available_parallelism().map_or(1, usize::from).min(16);
        for _ in 0..cores {
            let (jobs, todo) = sync_channel::<Job>(AHEAD);
            let (done, results) = sync_channel(AHEAD);
            let units = self.units.clone();
            let run = move || work(&units, &todo, &done);
            let thread = thread::Builder::new().name("compress".to_owned()).spawn(run);
            let thread = thread.map_err(|e| failed("cannot start a thread", e))?;
            self.workers.push(Worker { jobs: Some(jobs), results, thread: Some(thread) });
        }
        Ok(())
    }

    fn send(&mut self, job: Job) -> Result<()> {
        let worker = &self.workers[self.submitted % self.workers.len()];
        let sent = worker.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        self.submitted += 1;
        if sent { Ok(()) } else { Err(gone()) }
    }

    fn take(&mut self) -> Result<Packed> {
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

fn gone() -> Error {
    Error::new(Kind::Io, "delta", "a compressing thread has ended")
}

fn failed(what: &str, error: std::io::Error) -> Error {
    Error::new(Kind::Io, "delta", format!("{what}: {error}")).source(error)
}

fn work(units: &Units, todo: &Receiver<Job>, done: &SyncSender<Result<Packed>>) {
    let mut compressor = match compressor() {
        Ok(compressor) => compressor,
        Err(e) => {
            let _ = done.send(Err(e));
            return;
        }
    };
    while let Ok(job) = todo.recv() {
        if done.send(pack(&mut compressor, units, job)).is_err() {
            return;
        }
    }
}

fn compressor() -> Result<zstd::bulk::Compressor<'static>> {
    zstd::bulk::Compressor::new(1).map_err(|e| failed("cannot compress", e))
}

fn pack(compressor: &mut zstd::bulk::Compressor<'static>, units: &Units, job: Job) -> Result<Packed> {
    let (number, raw) = job;
    let (digest, raw_len) = (Digest::of(&raw), raw.len());
    let packed = compressor.compress(&raw).map_err(|e| failed("cannot compress", e))?;
    let content = if packed.len() < raw_len { packed } else { raw };
    Ok(Packed { stored: units.seal(number, content)?, raw_len, digest })
}
