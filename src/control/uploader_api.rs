//! The uploader's routes: what the commands ask, answered by the replication loops.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use nbd_proxy::{Error, Kind};
use serde::{Deserialize, Serialize};
use uploader::replicate::{CutReport, Handle, Status};
use uuid::Uuid;

use super::About;
use super::remote::Done;
use super::server::Refusal;

/// The replication loops of this uploader, by machine, in the order of the configuration.
pub type Loops = Arc<Vec<(String, Handle)>>;

type Answer<T> = Result<Json<T>, Refusal>;

/// Asks for a point.
#[derive(Debug, Serialize, Deserialize)]
pub struct CutBody {
    /// The guest is to hold its file systems still meanwhile.
    pub application: bool,
}

/// The routes over `loops`.
pub fn routes(loops: Loops) -> Router {
    Router::new()
        .route("/v1/about", get(async || Json(About::of("uploader"))))
        .route("/v1/machines", get(list))
        .route("/v1/machines/{machine}", get(status))
        .route("/v1/machines/{machine}/cut", post(cut))
        .route("/v1/machines/{machine}/pause", post(pause))
        .route("/v1/machines/{machine}/resume", post(resume))
        .route("/v1/machines/{machine}/resync", post(resync))
        .route("/v1/machines/{machine}/resync/now", post(resync_now))
        .route("/v1/machines/{machine}/jobs/{job}/cancel", post(cancel))
        .with_state(loops)
}

fn find(loops: &Loops, name: &str) -> Result<Handle, Refusal> {
    match loops.iter().find(|(machine, _)| machine == name) {
        Some((_, handle)) => Ok(handle.clone()),
        None => {
            let known: Vec<&str> = loops.iter().map(|(machine, _)| machine.as_str()).collect();
            Err(Error::new(Kind::NotFound, format!("machine {name}"), "the uploader does not replicate it")
                .remedy(format!("it replicates: {}", known.join(", ")))
                .into())
        }
    }
}

async fn list(State(loops): State<Loops>) -> Json<Vec<Status>> {
    Json(loops.iter().map(|(_, handle)| handle.status()).collect())
}

async fn status(State(loops): State<Loops>, Path(name): Path<String>) -> Answer<Status> {
    Ok(Json(find(&loops, &name)?.status()))
}

/// A point of a machine is one of its whole group: the others take theirs, as far as they can.
async fn cut(
    State(loops): State<Loops>,
    Path(name): Path<String>,
    Json(CutBody { application }): Json<CutBody>,
) -> Answer<CutReport> {
    let handle = find(&loops, &name)?;
    let report = handle.cut_as(application).await?;
    // Only now is there a share for them to take. One who asked earlier would not know whether a share that it finds is too old, and
    // have the group cut again.
    let fellow = |(other, each): &&(String, Handle)| *other != name && each.group() == handle.group();
    if handle.group().is_some() {
        loops.iter().filter(fellow).for_each(|(_, each)| each.join_cut());
    }
    Ok(Json(report))
}

async fn pause(State(loops): State<Loops>, Path(name): Path<String>) -> Answer<Done> {
    find(&loops, &name)?.pause().await?;
    Ok(Json(Done {}))
}

async fn resume(State(loops): State<Loops>, Path(name): Path<String>) -> Answer<Done> {
    find(&loops, &name)?.resume().await?;
    Ok(Json(Done {}))
}

async fn resync(State(loops): State<Loops>, Path(name): Path<String>) -> Answer<Done> {
    find(&loops, &name)?.resync().await?;
    Ok(Json(Done {}))
}

async fn resync_now(State(loops): State<Loops>, Path(name): Path<String>) -> Answer<Done> {
    find(&loops, &name)?.resync_now().await?;
    Ok(Json(Done {}))
}

async fn cancel(State(loops): State<Loops>, Path((name, job)): Path<(String, Uuid)>) -> Answer<Done> {
    find(&loops, &name)?.cancel(job).await?;
    Ok(Json(Done {}))
}
