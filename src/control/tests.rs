//! One daemon of a role, stale sockets, errors across the socket, and a client that outlives its daemon.

use std::time::Duration;

use axum::routing::{get, post};
use axum::{Json, Router};
use nbd_proxy::Result;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::client::Client;
use super::remote::Done;
use super::server::{Ownership, Refusal, serve};
use super::*;

fn full() -> Error {
    Error::new(Kind::NoSpace, "/images/web1-root.lifeboat", "cannot write: no space").remedy("make room")
}

fn routes() -> Router {
    Router::new()
        .route("/v1/about", get(async || Json(About::of("proxy"))))
        .route("/v1/full", post(async || Err::<Json<Done>, _>(Refusal(full()))))
        .route("/v1/slow", get(async || tokio::time::sleep(Duration::from_millis(300)).await))
        .route("/v1/hangs", get(async || std::future::pending::<()>().await))
}

struct Daemon {
    ownership: Ownership,
    stop: watch::Sender<bool>,
    task: JoinHandle<Result<()>>,
}

fn daemon(dir: &std::path::Path) -> Daemon {
    let ownership = Ownership::claim(dir, "proxy").unwrap();
    let listener = ownership.listen().unwrap();
    let (stop, stopped) = watch::channel(false);
    let task = tokio::spawn(serve(listener, routes(), stopped));
    Daemon { ownership, stop, task }
}

impl Daemon {
    async fn end(self) {
        self.stop.send(true).unwrap();
        self.task.await.unwrap().unwrap();
        drop(self.ownership);
    }
}

#[tokio::test]
async fn an_error_crosses_the_socket_whole() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = daemon(dir.path());
    let client = Client::new(daemon.ownership.socket(), "proxy");
    let about: About = client.get("/v1/about").await.unwrap();
    assert_eq!((about.role.as_str(), about.pid), ("proxy", std::process::id()));
    let error = client.post::<Done>("/v1/full", &Done {}).await.unwrap_err();
    assert_eq!(format!("{error}"), format!("{}", full()));
    assert_eq!((error.kind, error.remedy.as_str()), (Kind::NoSpace, "make room"));
    daemon.end().await;
}

#[tokio::test]
async fn a_client_outlives_a_restart_of_its_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let first = daemon(dir.path());
    let client = Client::new(first.ownership.socket(), "proxy");
    client.get::<About>("/v1/about").await.unwrap();
    first.end().await;
    let away = client.get::<About>("/v1/about").await.unwrap_err();
    assert_eq!(away.kind, Kind::Unavailable);
    assert!(away.remedy.contains("is lifeboat running?"), "{away}");
    let second = daemon(dir.path());
    client.get::<About>("/v1/about").await.unwrap();
    second.end().await;
}

#[tokio::test]
async fn a_second_daemon_is_refused_by_the_firsts_name_and_a_stale_socket_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    // What a killed daemon leaves: a socket that nobody serves.
    drop(std::os::unix::net::UnixListener::bind(dir.path().join("proxy.sock")).unwrap());
    let first = daemon(dir.path());
    let error = Ownership::claim(dir.path(), "proxy").unwrap_err();
    assert_eq!(error.kind, Kind::InUse);
    assert!(error.message.contains(&format!("process {}", std::process::id())), "{error}");
    Ownership::claim(dir.path(), "uploader").unwrap();
    let client = Client::new(first.ownership.socket(), "proxy");
    client.get::<About>("/v1/about").await.unwrap();
    first.end().await;
    assert!(!dir.path().join("proxy.sock").exists());
}

#[tokio::test]
async fn requests_under_way_are_answered_before_a_stop() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = daemon(dir.path());
    let client = Client::new(daemon.ownership.socket(), "proxy");
    let slow = tokio::spawn(async move { client.get_bytes("/v1/slow").await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    daemon.end().await;
    slow.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_daemon_that_hangs_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = daemon(dir.path());
    let client = Client::new(daemon.ownership.socket(), "proxy").patience(Duration::from_millis(100));
    assert_eq!(client.get_bytes("/v1/hangs").await.unwrap_err().kind, Kind::Unavailable);
    daemon.task.abort();
}

#[tokio::test]
async fn only_our_own_user_may_connect() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let daemon = daemon(dir.path());
    let mode = std::fs::metadata(daemon.ownership.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    daemon.end().await;
}
