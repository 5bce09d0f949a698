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
    /// that serves some of a machine's disks helps nobody.
    pub async fn start(config: &Config) -> Result<Self> {
        check_backings(config)?;
        let ownership = Ownership::claim(&config.state_dir, "proxy")?;
        let listener = ownership.listen()?;
        let machines: Machines = Arc::new(open(config).await?);
        let exports = match Exports::serve(config, &machines) {
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

    /// Finishes what clients have asked for, makes the tracking state durable, and gives the role up.
    pub async fn stop(self) -> Result<()> {
        let Self { machines, exports, stop, control, _ownership } = self;
        off_thread(move || {
            exports.stop();
            Ok(())
        })
        .await?;
        let answered = super::end_control(stop, control).await;
        close(&machines).await.and(answered)
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
