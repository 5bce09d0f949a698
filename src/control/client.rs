//! HTTP over a daemon's Unix socket.
//!
//! Connections are kept and reused. A daemon that restarts closes them; a request that meets a closed connection is
//! sent again on a new one, once. That is safe for every route: each is a read, or may happen twice (a second cut joins
//! the first, a second release names nothing).

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use nbd_proxy::{Error, Kind, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::ErrorBody;
use super::buffers::Lent;

/// From this length on, an answer is gathered in a buffer that is used again.
const LONG: u64 = 256 << 10;
/// No answer that is gathered so is longer.
const LONGEST: u64 = 1 << 20;
/// A request that a daemon does not answer within this is given up: it hangs, or its disk does.
const PATIENCE: Duration = Duration::from_secs(300);
/// Connections kept for reuse.
const KEPT: usize = 8;

type Connection = SendRequest<Full<Bytes>>;

/// A daemon's control socket, seen from outside.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    role: &'static str,
    patience: Duration,
    kept: Mutex<Vec<Connection>>,
}

impl Client {
    /// The daemon of `role` that serves, or will serve, `socket`. Connects when asked something.
    pub fn new(socket: PathBuf, role: &'static str) -> Self {
        Self { socket, role, patience: PATIENCE, kept: Mutex::new(Vec::new()) }
    }

    /// How long an answer may take.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// GET, answered by JSON.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.decode(path, &self.send(Method::GET, path, Bytes::new()).await?)
    }

    /// GET, answered by bytes.
    pub async fn get_bytes(&self, path: &str) -> Result<Bytes> {
        self.send(Method::GET, path, Bytes::new()).await
    }

    /// POST of JSON, answered by JSON.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        let body = serde_json::to_vec(body).map_err(|error| self.broken(path, &error))?;
        self.decode(path, &self.send(Method::POST, path, body.into()).await?)
    }

    fn decode<T: DeserializeOwned>(&self, path: &str, body: &[u8]) -> Result<T> {
        serde_json::from_slice(body).map_err(|error| self.broken(path, &error))
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes> {
        let exchange = async {
            let kept = self.keep().pop();
            if let Some(connection) = kept {
                match self.exchange(connection, method.clone(), path, body.clone()).await {
                    Ok(answer) => return Ok(answer),
                    // The daemon closed it while it was idle, or died: the second try tells which.
                    Err(error) => {
                        tracing::debug!(socket = %self.socket.display(), %error, "connection was closed")
                    }
                }
                self.keep().clear();
            }
            let connection = self.connect().await?;
            self.exchange(connection, method, path, body).await.map_err(|error| self.lost(path, &error))
        };
        let (success, bytes) = match tokio::time::timeout(self.patience, exchange).await {
            Ok(answer) => answer?,
            Err(_) => {
                let message = format!("the {} did not answer {path} within {:?}", self.role, self.patience);
                return Err(Error::new(Kind::Unavailable, self.object(), message).remedy("see its log"));
            }
        };
        if success {
            return Ok(bytes);
        }
        match serde_json::from_slice::<ErrorBody>(&bytes) {
            Ok(body) => Err(body.into()),
            Err(error) => Err(self.broken(path, &error)),
        }
    }

    async fn exchange(
        &self,
        mut connection: Connection,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(bool, Bytes), hyper::Error> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        // Paths are made of names that the configuration checked, ids and numbers; an odd one asks for nothing.
        *request.uri_mut() = path.parse().unwrap_or_default();
        let headers = request.headers_mut();
        headers.insert(hyper::header::HOST, hyper::header::HeaderValue::from_static("lifeboat"));
        headers
            .insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
        connection.ready().await?;
        let response: Response<Incoming> = connection.send_request(request).await?;
        let success = response.status().is_success();
        let bytes = gather(response.into_body()).await?;
        let mut kept = self.keep();
        if kept.len() < KEPT {
            kept.push(connection);
        }
        Ok((success, bytes))
    }

    async fn connect(&self) -> Result<Connection> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.absent(error))?;
        let (connection, driver) =
            handshake(TokioIo::new(stream)).await.map_err(|error| self.lost("connect", &error))?;
        tokio::spawn(async move {
            if let Err(error) = driver.await {
                tracing::debug!(%error, "control connection ended");
            }
        });
        Ok(connection)
    }

    fn keep(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn object(&self) -> String {
        self.socket.display().to_string()
    }

    fn absent(&self, error: std::io::Error) -> Error {
        let kind = match error.kind() {
            std::io::ErrorKind::PermissionDenied => Kind::Denied,
            _ => Kind::Unavailable,
        };
        let remedy = match kind {
            Kind::Denied => "run the command as the user that runs Lifeboat".to_owned(),
            _ => format!("is lifeboat running? Start `lifeboat run` or `lifeboat {}`", self.role),
        };
        Error::new(kind, self.object(), format!("cannot reach the {}: {error}", self.role))
            .remedy(remedy)
            .source(error)
    }

    fn lost(&self, path: &str, error: &hyper::Error) -> Error {
        let message = format!("the {} closed the connection during {path}: {error}", self.role);
        Error::new(Kind::Unavailable, self.object(), message).remedy("it was stopped or died; see its log")
    }

    fn broken(&self, path: &str, error: &serde_json::Error) -> Error {
        let message =
            format!("the {} and this command do not understand each other at {path}: {error}", self.role);
        Error::new(Kind::InvalidInput, self.object(), message)
            .remedy("run the same version of lifeboat on both sides")
    }
}

/// The whole of an answer.
async fn gather(mut body: Incoming) -> Result<Bytes, hyper::Error> {
    let told = body.size_hint().exact().filter(|told| (LONG..=LONGEST).contains(told));
    let Some(told) = told.and_then(|told| usize::try_from(told).ok()) else {
        return Ok(body.collect().await?.to_bytes());
    };
    let (mut buffer, mut filled) = (Lent::new(told), 0);
    while let Some(frame) = body.frame().await {
        // What stands behind the data is of no use here.
        let Ok(data) = frame?.into_data() else { continue };
        // An exact length is kept to: what is longer or shorter is an error of the connection.
        let Some(room) = buffer.as_mut().get_mut(filled..filled + data.len()) else { break };
        room.copy_from_slice(&data);
        filled += data.len();
    }
    Ok(buffer.freeze().slice(..filled))
}
