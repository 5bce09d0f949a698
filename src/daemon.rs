//! The long-running side: [`proxy`] serves disks, [`uploader`] replicates them, `run` does both in one process over the
//! same sockets. This file holds what they share: the runtime, and when to stop.
//!
//! Stopping is asked for by SIGTERM or SIGINT and goes from the outside in: no new requests, those under way are
//! finished and answered, then the state is made durable, then exit 0. A second signal ends the process at once. SIGHUP asks
//! a proxy to become its successor ([`hand_over`]).

pub mod exports;
pub mod hand_over;
pub mod proxy;
pub mod pruner;
pub mod sockets;
pub mod uploader;
pub mod usage;

use std::future::Future;

use nbd_proxy::{Error, Kind, Result};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Threads that serve control requests and drive replication. The data path has threads of its own.
const WORKERS: usize = 2;
/// Threads for short work that blocks: disk reads, folder vaults. None of it may wait for other work of the pool: with
/// enough machines all threads would wait. Packing, which does wait, has threads of its own.
const BLOCKING: usize = 16;

/// The exit code after a second signal: nothing is lost by it that a kill would not lose, which is nothing.
const KILLED: i32 = 1;

/// The runtime of a daemon or command.
pub fn runtime() -> Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING)
        .enable_all()
        .build()
        .map_err(|error| Error::new(Kind::Io, "runtime", format!("cannot start: {error}")).source(error))
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Nothing yet.
    GoOn,
    /// End in good order.
    Stop,
    /// Become the program that stands at our path now.
    HandOver,
}

/// The wishes that come by signal.
pub struct Wishes(watch::Receiver<Wish>);

impl Wishes {
    /// Listens from now on.
    pub fn listen() -> Result<Self> {
        let failed = |error: std::io::Error| {
            Error::new(Kind::Io, "signals", format!("cannot listen for signals: {error}")).source(error)
        };
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut hang_up = signal(SignalKind::hangup()).map_err(failed)?;
        let (sender, receiver) = watch::channel(Wish::GoOn);
        tokio::spawn(async move {
            let mut next = async || {
                tokio::select! {
                    _ = terminate.recv() => ("SIGTERM", Wish::Stop),
                    _ = interrupt.recv() => ("SIGINT", Wish::Stop),
                    _ = hang_up.recv() => ("SIGHUP", Wish::HandOver),
                }
            };
            loop {
                let (name, wish) = next().await;
                let before = *sender.borrow();
                match (before, wish) {
                    (Wish::Stop, Wish::Stop) => {
                        tracing::warn!("{name} again: ending at once, as if killed");
                        std::process::exit(KILLED);
                    }
                    // A stop that has begun is not taken back.
                    (Wish::Stop, _) => {}
                    _ => {
                        tracing::info!(
                            "{name}: {}",
                            if wish == Wish::Stop { "stopping" } else { "handing over" }
                        );
                        sender.send_replace(wish);
                    }
                }
            }
        });
        Ok(Self(receiver))
    }

    /// Waits for the next one.
    pub async fn next(&mut self) -> Wish {
        match self.0.changed().await {
            Ok(()) => *self.0.borrow_and_update(),
            Err(_) => Wish::Stop,
        }
    }

    /// Waits until a stop is asked for; nothing else is possible.
    pub async fn stop(&mut self) {
        while self.next().await != Wish::Stop {
            tracing::warn!("only a proxy can be handed over: restart this daemon instead");
        }
    }
}

/// Runs `work` on a runtime of its own.
pub fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    runtime()?.block_on(work)
}

/// Ends a control server: no new requests, those under way are answered.
async fn end_control(stop: watch::Sender<bool>, control: JoinHandle<Result<()>>) -> Result<()> {
    let _ = stop.send(true);
    match control.await {
        Ok(result) => result,
        Err(error) => {
            Err(Error::new(Kind::Io, "control socket", format!("it ended early: {error}")).source(error))
        }
    }
}
