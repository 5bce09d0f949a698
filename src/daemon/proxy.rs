//! The proxy role: opens the machines' disks, serves their exports and the control socket.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use nbd_proxy::disk::DiskSettings;
use nbd_proxy::machine::group::Group;
use nbd_proxy::machine::{Machine, MachineSettings};
use nbd_proxy::{Error, Kind, Result};
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};

use super::exports::Exports;
use super::hand_over::Successor;
use super::sockets::Passed;
use crate::config::{Config, MachineConfig, check_backings};
use crate::control::proxy_api::{self, Machines};
use crate::control::server::{self, Ownership};
use crate::guest_agent::GuestAgent;

/// A running proxy.
pub struct Proxy {
    machines: Machines,
    exports: Arc<Exports>,
    stop: watch::Sender<bool>,
    control: JoinHandle<Result<()>>,
    // Last: the role is given up when everything else has ended.
    _ownership: Ownership,
}

impl Proxy {
    /// Opens every disk and returns when all sockets accept. One disk that cannot be opened refuses the start: a proxy
    /// that serves some of a machine's disks helps nobody. `passed` are sockets that clients may be waiting at already.
    pub async fn start(config: &Config, passed: Passed) -> Result<Self> {
        check_backings(config)?;
        let ownership = Ownership::claim(&config.state_dir, "proxy")?;
        let listener = ownership.listen()?;
        let machines: Machines = Arc::new(open(config).await?);
        let exports = match Exports::serve(config, &machines, passed) {
            Ok(exports) => Arc::new(exports),
            Err(error) => return close(&machines).await.and(Err(error)),
        };
        let (stop, stopped) = watch::channel(false);
        let control = tokio::spawn(server::serve(
            listener,
            proxy_api::routes(machines.clone(), exports.clone()),
            stopped,
        ));
        tracing::info!(machines = machines.len(), "proxy is ready");
        Ok(Self { machines, exports, stop, control, _ownership: ownership })
    }

    /// Whether `config` could be served: what [`Proxy::start`] looks at before it touches anything.
    pub fn check(config: &Config) -> Result<()> {
        check_backings(config)?;
        config.tls.as_ref().map_or(Ok(()), |files| files.check())
    }

    /// Finishes what clients have asked for, makes the tracking state durable, and gives the role up.
    pub async fn stop(self) -> Result<()> {
        self.end(Exports::stop).await.1
    }

    /// Becomes `successor`, sockets and all; comes back only if the successor does not want to.
    pub async fn hand_over(self, successor: &Arc<Successor>) -> Result<Self> {
        let next = Arc::clone(successor);
        if let Err(error) = off_thread(move || next.rehearse()).await {
            tracing::error!(%error, "not handed over");
            return Ok(self);
        }
        let (sockets, closed) = self.end(Exports::hand_over).await;
        if let Err(error) = closed {
            // Machines wait for the successor, who finds out what is not durable.
            tracing::error!(%error, "handing over what could not be closed");
        }
        Err(successor.take_the_place(sockets))
    }

    /// From the outside in. What becomes of the exports is for `how` to say.
    async fn end<T: Default + Send + 'static>(
        self,
        how: impl FnOnce(&Exports) -> T + Send + 'static,
    ) -> (T, Result<()>) {
        let Self { machines, exports, stop, control, _ownership } = self;
        let (left, ended) = match off_thread(move || Ok(how(&exports))).await {
            Ok(left) => (left, Ok(())),
            Err(error) => (T::default(), Err(error)),
        };
        let answered = super::end_control(stop, control).await;
        (left, ended.and(close(&machines).await).and(answered))
    }
}

async fn open(config: &Config) -> Result<BTreeMap<String, Arc<Machine>>> {
    let mut machines = BTreeMap::new();
    for machine in &config.machines {
        let settings = settings(machine);
        let opened = off_thread(move || Machine::open(&settings)).await?;
        if let Some(socket) = &machine.guest_agent {
            opened.attend(Box::new(GuestAgent::new(socket)));
        }
        machines.insert(machine.name.clone(), opened);
    }
    form_groups(config, &machines);
    Ok(machines)
}

/// The machines of a group in the order of the configuration.
fn form_groups(config: &Config, machines: &BTreeMap<String, Arc<Machine>>) {
    let names: BTreeSet<&String> =
        config.machines.iter().filter_map(|machine| machine.group.as_ref()).collect();
    for name in names {
        let members = config.machines.iter().filter(|machine| machine.group.as_ref() == Some(name));
        let members: Vec<_> =
            members.filter_map(|machine| machines.get(&machine.name)).map(Arc::clone).collect();
        Group::form(name, &members);
    }
}

fn settings(machine: &MachineConfig) -> MachineSettings {
    let disks = machine.disks.iter().map(|disk| DiskSettings {
        name: disk.name.clone(),
        path: disk.path.clone(),
        log_dir: disk.log_dir.clone(),
        read_only: disk.read_only,
        log_limit: machine.policy.log_limit,
        upstream: disk.upstream,
    });
    MachineSettings { name: machine.name.clone(), disks: disks.collect() }
}

/// Closes every machine, whatever became of the one before; the first failure is reported.
async fn close(machines: &Machines) -> Result<()> {
    let mut result = Ok(());
    for machine in machines.values() {
        let machine = machine.clone();
        result = result.and(off_thread(move || machine.close()).await);
    }
    result
}

async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => {
            Err(Error::new(Kind::Io, "proxy", format!("its work ended early: {error}")).source(error))
        }
    }
}
