//! The proxy's routes: what [`super::remote`] asks, answered by the machines. Each machine call blocks (locks, disk
//! reads) and runs off the serving threads.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use nbd_proxy::device::Extent;
use nbd_proxy::machine::Machine;
use nbd_proxy::tracking::{Cut, CutRequest, MachineInfo, Sync};
use nbd_proxy::{Error, Kind};
use serde::Deserialize;
use uuid::Uuid;

use super::About;
use super::buffers::Lent;
use super::remote::{BeginSync, Done, EndSync, NextRound, Release};
use super::server::{Refusal, blocking};
use crate::daemon::exports::Exports;

/// The most bytes that one read of a live disk answers.
const READ_MAX: u32 = 1 << 20;

/// The machines that this proxy serves, by name.
pub type Machines = Arc<BTreeMap<String, Arc<Machine>>>;

/// What the routes answer from.
#[derive(Clone)]
struct Served {
    machines: Machines,
    exports: Arc<Exports>,
}

impl Served {
    fn find(&self, name: &str) -> Result<Arc<Machine>, Refusal> {
        self.machines.get(name).cloned().ok_or_else(|| {
            Refusal(
                Error::new(Kind::NotFound, format!("machine {name}"), "the proxy does not serve it")
                    .remedy("add it to the configuration and restart the proxy"),
            )
        })
    }

    /// The machine with the clients that its exports have.
    fn describe(&self, machine: &Machine) -> MachineInfo {
        let mut info = machine.info();
        for disk in &mut info.disks {
            disk.clients = self.exports.clients(&info.name, &disk.name);
        }
        info
    }
}

type Answer<T> = Result<Json<T>, Refusal>;

/// The routes over `machines` and their `exports`.
pub fn routes(machines: Machines, exports: Arc<Exports>) -> Router {
    Router::new()
        .route("/v1/about", get(async || Json(About::of("proxy"))))
        .route("/v1/machines", get(list))
        .route("/v1/machines/{machine}", get(info))
        .route("/v1/machines/{machine}/cut", post(cut))
        .route("/v1/machines/{machine}/release", post(release))
        .route("/v1/machines/{machine}/disks/{disk}/sync", post(begin_sync))
        .route("/v1/machines/{machine}/disks/{disk}/sync/round", post(next_round))
        .route("/v1/machines/{machine}/disks/{disk}/sync/end", post(end_sync))
        .route("/v1/machines/{machine}/disks/{disk}/extents", get(extents))
        .route("/v1/machines/{machine}/disks/{disk}/data", get(data))
        .with_state(Served { machines, exports })
}

async fn list(State(served): State<Served>) -> Answer<Vec<MachineInfo>> {
    blocking(move || Ok(served.machines.values().map(|machine| served.describe(machine)).collect()))
        .await
        .map(Json)
}

async fn info(State(served): State<Served>, Path(name): Path<String>) -> Answer<MachineInfo> {
    let machine = served.find(&name)?;
    blocking(move || Ok(served.describe(&machine))).await.map(Json)
}

async fn cut(
    State(served): State<Served>,
    Path(name): Path<String>,
    Json(request): Json<CutRequest>,
) -> Answer<Cut> {
    let machine = served.find(&name)?;
    blocking(move || machine.cut_as(&request)).await.map(Json)
}

async fn release(
    State(served): State<Served>,
    Path(name): Path<String>,
    Json(body): Json<Release>,
) -> Answer<Done> {
    let machine = served.find(&name)?;
    blocking(move || machine.release(body.cut).map(|()| Done {})).await.map(Json)
}

async fn begin_sync(
    State(served): State<Served>,
    Path((name, disk)): Path<(String, String)>,
    Json(body): Json<BeginSync>,
) -> Answer<Sync> {
    let machine = served.find(&name)?;
    blocking(move || machine.begin_sync(&disk, body.known)).await.map(Json)
}

async fn next_round(
    State(served): State<Served>,
    Path((name, disk)): Path<(String, String)>,
    Json(body): Json<NextRound>,
) -> Answer<Sync> {
    let machine = served.find(&name)?;
    blocking(move || machine.next_round(&disk, body.known, body.have, body.logged)).await.map(Json)
}

async fn end_sync(
    State(served): State<Served>,
    Path((name, disk)): Path<(String, String)>,
    Json(body): Json<EndSync>,
) -> Answer<Done> {
    let machine = served.find(&name)?;
    blocking(move || machine.end_sync(&disk, body.tracking).map(|()| Done {})).await.map(Json)
}

#[derive(Deserialize)]
struct ExtentsQuery {
    tracking: Uuid,
    from: u64,
}

async fn extents(
    State(served): State<Served>,
    Path((name, disk)): Path<(String, String)>,
    Query(query): Query<ExtentsQuery>,
) -> Answer<Vec<Extent>> {
    let machine = served.find(&name)?;
    blocking(move || machine.sync_extents(&disk, query.tracking, query.from)).await.map(Json)
}

#[derive(Deserialize)]
struct DataQuery {
    offset: u64,
    len: u32,
}

async fn data(
    State(served): State<Served>,
    Path((name, disk)): Path<(String, String)>,
    Query(query): Query<DataQuery>,
) -> Result<Bytes, Refusal> {
    let machine = served.find(&name)?;
    let DataQuery { offset, len } = query;
    if len > READ_MAX {
        let message = format!("a read of {len} bytes is larger than {READ_MAX}");
        return Err(Error::new(Kind::InvalidInput, format!("disk {disk}"), message).into());
    }
    blocking(move || {
        let mut buffer = Lent::new(usize::try_from(len).unwrap_or_default());
        machine.read_into(&disk, offset, buffer.as_mut())?;
        Ok(buffer.freeze())
    })
    .await
}
