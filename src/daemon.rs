//! The long-running side: [`proxy`] serves disks, [`uploader`] replicates them, `run` does both in one process over the
//! same sockets. This file holds what they share: the runtime, and when to stop.
//!
//! Stopping is asked for by SIGTERM or SIGINT and goes from the outside in: no new requests, those under way are
//! finished and answered, then the state is made durable, then exit 0. A second signal ends the process at once.

pub mod exports;
pub mod proxy;
pub mod sockets;
pub mod uploader;

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

/// Turns true at the first SIGTERM or SIGINT.
pub fn stop_signal() -> Result<watch::Receiver<bool>> {
    let failed = |error: std::io::Error| {
        Error::new(Kind::Io, "signals", format!("cannot listen for SIGTERM and SIGINT: {error}"))
            .source(error)
    };
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            }
        };
        tracing::info!("{}: stopping", next().await);
        let _ = sender.send(true);
        tracing::warn!("{} again: ending at once, as if killed", next().await);
        std::process::exit(KILLED);
    });
    Ok(receiver)
}

/// Waits until `stop` turns true, or its sender is gone.
pub async fn stopped(mut stop: watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
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
