//! Counts what each machine asks of the vault, by day.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::ZonedDateTime;
use tokio::task::JoinHandle;
use uploader::store::Counts;
use uploader::usage::Usage;

use crate::control::uploader_api::Loops;

/// How often it is written down.
const EVERY: Duration = Duration::from_secs(60);

/// Goes on counting until it is stopped.
pub struct Counting {
    loops: Loops,
    state_dir: PathBuf,
    task: JoinHandle<Vec<Counts>>,
    stop: tokio::sync::oneshot::Sender<()>,
}

impl Counting {
    /// Begins to count.
    pub fn start(loops: Loops, state_dir: &Path) -> Self {
        let (stop, mut stopped) = tokio::sync::oneshot::channel();
        let (counted, folder) = (loops.clone(), state_dir.to_owned());
        let task = tokio::spawn(async move {
            let mut before = vec![Counts::default(); counted.len()];
            loop {
                tokio::select! {
                    _ = &mut stopped => return before,
                    () = tokio::time::sleep(EVERY) => write_down(&counted, &folder, &mut before),
                }
            }
        });
        Self { loops, state_dir: state_dir.to_owned(), task, stop }
    }

    /// Writes down what came since, once the loops have ended.
    pub async fn stop(self) {
        // Dropped or sent, both end it.
        let _ = self.stop.send(());
        if let Ok(mut before) = self.task.await {
            write_down(&self.loops, &self.state_dir, &mut before);
        }
    }
}

fn write_down(loops: &Loops, state_dir: &Path, before: &mut [Counts]) {
    let today = ZonedDateTime::now().date();
    for ((machine, handle), before) in loops.iter().zip(before) {
        let now = handle.status().counts;
        if now == *before {
            continue;
        }
        let added = Usage::load(state_dir, machine).and_then(|mut usage| {
            usage.add(today, now.since(*before));
            usage.save(state_dir, machine)
        });
        match added {
            Ok(()) => *before = now,
            Err(error) => tracing::info!(machine, %error, "what was used is not written down"),
        }
    }
}
