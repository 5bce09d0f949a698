//! The uploader role: a replication loop for each machine, against the proxy's control socket.

use std::sync::Arc;

use nbd_proxy::Result;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use uploader::elapsed::Elapsed;
use uploader::jobs::Jobs;
use uploader::replicate::{self, Clock, Settings};
use uploader::store::limit::Limit;

use crate::config::Config;
use crate::control::remote::RemoteMachine;
use crate::control::server::{self, Ownership};
use crate::control::uploader_api::{self, Loops};
use crate::daemon::usage::Counting;

/// A running uploader.
pub struct Uploader {
    loops: Loops,
    usage: Counting,
    stop: watch::Sender<bool>,
    control: JoinHandle<Result<()>>,
    /// Ended by being dropped.
    _pruners: JoinSet<()>,
    // Last: the role is given up when everything else has ended.
    _ownership: Ownership,
}

impl Uploader {
    /// Starts replication of every machine and returns when the control socket accepts. Neither the proxy nor the vault
    /// has to be there: replication waits for both.
    pub async fn start(config: &Config) -> Result<Self> {
        let ownership = Ownership::claim(&config.state_dir, "uploader")?;
        let listener = ownership.listen()?;
        let clock = Clock::new(jiff::ZonedDateTime::now);
        let limit = Arc::new(Limit::new(config.vault.limit.clone(), clock.clone()));
        let mut loops = Vec::new();
        let mut pruners = JoinSet::new();
        for machine in &config.machines {
            let settings = Settings {
                machine: machine.name.clone(),
                interval: machine.policy.interval,
                state_dir: config.state_dir.clone(),
                jobs: Jobs::open(&config.jobs_dir())?,
                retry_gaps: machine.policy.retry.clone(),
                host: config.site.clone(),
                resync_window: machine.policy.resync_window,
                clock: clock.clone(),
                elapsed: Elapsed::of_host(),
                on_fenced: machine.policy.on_fenced,
                copy_limit: machine.policy.copy_limit,
                group: machine.group.clone(),
                app_consistent_every: machine.policy.app_consistent_every,
            };
            let source = RemoteMachine::new(config.proxy_socket(), &machine.name);
            let connect = crate::vault::connect(config, &limit)?;
            let policy = machine.policy.clone();
            pruners.spawn(super::pruner::run(config.clone(), machine.name.clone(), policy));
            loops.push((machine.name.clone(), replicate::start(settings, source, connect)));
        }
        let loops: Loops = Arc::new(loops);
        let (stop, stopped) = watch::channel(false);
        let control = tokio::spawn(server::serve(listener, uploader_api::routes(loops.clone()), stopped));
        let usage = Counting::start(loops.clone(), &config.state_dir);
        tracing::info!(machines = loops.len(), vault = config.vault.url, "uploader is ready");
        Ok(Self { loops, usage, stop, control, _pruners: pruners, _ownership: ownership })
    }

    /// Ends every loop where it can go on later, answers what was asked, and gives the role up.
    pub async fn stop(self) -> Result<()> {
        // The loops first: a `cut` that waits for a point is answered by its loop's end.
        for (_, handle) in self.loops.iter() {
            handle.stop().await;
        }
        self.usage.stop().await;
        super::end_control(self.stop, self.control).await
    }
}
