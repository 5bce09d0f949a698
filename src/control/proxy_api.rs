//! The proxy's routes: what [`super::remote`] asks, answered by the machines. Each machine call blocks (locks, disk
//! reads) and runs off the serving threads.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use nbd_proxy::device::Extent;
use nbd_proxy::machine::Machine;
use nbd_proxy::tracking::{Cut, MachineInfo, Sync};
use nbd_proxy::{Error, Kind};
use serde::Deserialize;
use uuid::Uuid;

use super::About;
use super::remote::{BeginSync, Done, EndSync, Release};
use super::server::{Refusal, blocking};

/// The most bytes that one read of a live disk answers.
const READ_MAX: u32 = 1 << 20;

/// The machines that this proxy serves, by name.
pub type Machines = Arc<BTreeMap<String, Arc<Machine>>>;

type Answer<T> = Result<Json<T>, Refusal>;

/// The routes over `machines`.
pub fn routes(machines: Machines) -> Router {
    Router::new()
        .route("/v1/about", get(async || Json(About::of("proxy"))))
        .route("/v1/machines", get(list))
        .route("/v1/machines/{machine}", get(info))
        .route("/v1/machines/{machine}/cut", post(cut))
        .route("/v1/machines/{machine}/release", post(release))
        .route("/v1/machines/{machine}/disks/{disk}/sync", post(begin_sync))
        .route("/v1/machines/{machine}/disks/{disk}/sync/end", post(end_sync))
        .route("/v1/machines/{machine}/disks/{disk}/extents", get(extents))
        .route("/v1/machines/{machine}/disks/{disk}/data", get(data))
        .with_state(machines)
}

fn find(machines: &Machines, name: &str) -> Result<Arc<Machine>, Refusal> {
    machines.get(name).cloned().ok_or_else(|| {
        Refusal(
            Error::new(Kind::NotFound, format!("machine {name}"), "the proxy does not serve it")
                .remedy("add it to the configuration and restart the proxy"),
        )
    })
}

async fn list(State(machines): State<Machines>) -> Answer<Vec<MachineInfo>> {
    blocking(move || Ok(machines.values().map(|machine| machine.info()).collect())).await.map(Json)
}

async fn info(State(machines): State<Machines>, Path(name): Path<String>) -> Answer<MachineInfo> {
    let machine = find(&machines, &name)?;
    blocking(move || Ok(machine.info())).await.map(Json)
}

async fn cut(State(machines): State<Machines>, Path(name): Path<String>) -> Answer<Cut> {
    let machine = find(&machines, &name)?;
    blocking(move || machine.cut()).await.map(Json)
}

async fn release(
    State(machines): State<Machines>, Path(name): Path<String>, Json(body): Json<Release>,
) -> Answer<Done> {
    let machine = find(&machines, &name)?;
    blocking(move || {
        machine.release(body.cut);
        Ok(Done {})
    })
    .await
    .map(Json)
}

async fn begin_sync(
    State(machines): State<Machines>, Path((name, disk)): Path<(String, String)>, Json(body): Json<BeginSync>,
) -> Answer<Sync> {
    let machine = find(&machines, &name)?;
    blocking(move || machine.begin_sync(&disk, body.known)).await.map(Json)
}

async fn end_sync(
    State(machines): State<Machines>, Path((name, disk)): Path<(String, String)>, Json(body): Json<EndSync>,
) -> Answer<Done> {
    let machine = find(&machines, &name)?;
    blocking(move || machine.end_sync(&disk, body.tracking).map(|()| Done {})).await.map(Json)
}

#[derive(Deserialize)]
struct ExtentsQuery {
    tracking: Uuid,
    from: u64,
}

async fn extents(
    State(machines): State<Machines>, Path((name, disk)): Path<(String, String)>, Query(query): Query<ExtentsQuery>,
) -> Answer<Vec<Extent>> {
    let machine = find(&machines, &name)?;
    blocking(move || machine.sync_extents(&disk, query.tracking, query.from)).await.map(Json)
}

#[derive(Deserialize)]
struct DataQuery {
    offset: u64,
    len: u32,
}

async fn data(
    State(machines): State<Machines>, Path((name, disk)): Path<(String, String)>, Query(query): Query<DataQuery>,
) -> Result<Vec<u8>, Refusal> {
    let machine = find(&machines, &name)?;
    let DataQuery { offset, len } = query;
    if len > READ_MAX {
        let message = format!("a read of {len} bytes is larger than {READ_MAX}");
        return Err(Error::new(Kind::InvalidInput, format!("disk {disk}"), message).into());
    }
    blocking(move || machine.read(&disk, offset, len)).await
}
