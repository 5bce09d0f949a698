//! A machine's proxy as replication sees it, over the proxy's control socket.
//!
//! Nothing is remembered between calls, so the proxy may restart at any moment: a call then fails as `Unavailable`,
//! the loop tries again, and the proxy's own recovery decides what the next cut holds.

use std::path::PathBuf;

use bytes::Bytes;
use nbd_proxy::device::Extent;
use nbd_proxy::tracking::{Cut, CutRequest, MachineInfo, Round, Sync};
use nbd_proxy::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use uploader::source::Source;
use uuid::Uuid;

use super::client::Client;

/// One machine at its proxy.
#[derive(Debug)]
pub struct RemoteMachine {
    client: Client,
    base: String,
}

/// Names a cut to release.
#[derive(Debug, Serialize, Deserialize)]
pub struct Release {
    /// The cut.
    pub cut: Uuid,
}

/// Asks for a sync.
#[derive(Debug, Serialize, Deserialize)]
pub struct BeginSync {
    /// The tracking id under which the vault was last exact.
    pub known: Option<Uuid>,
}

/// Asks for what follows in a sync.
#[derive(Debug, Serialize, Deserialize)]
pub struct NextRound {
    /// The tracking id under which the vault was last exact.
    pub known: Option<Uuid>,
    /// The round at hand.
    pub have: Round,
    /// Whether the next one is logged.
    pub logged: bool,
}

/// Ends a sync.
#[derive(Debug, Serialize, Deserialize)]
pub struct EndSync {
    /// The tracking id that is exact now.
    pub tracking: Uuid,
}

/// The answer of a request that has nothing to say.
#[derive(Debug, Serialize, Deserialize)]
pub struct Done {}

impl RemoteMachine {
    /// The machine called `name` at the proxy that serves `socket`.
    pub fn new(socket: PathBuf, name: &str) -> Self {
        Self { client: Client::new(socket, "proxy"), base: format!("/v1/machines/{name}") }
    }
}

impl Source for RemoteMachine {
    async fn machine(&self) -> Result<MachineInfo> {
        self.client.get(&self.base).await
    }

    async fn cut(&self, request: CutRequest) -> Result<Cut> {
        self.client.post(&format!("{}/cut", self.base), &request).await
    }

    async fn release(&self, cut: Uuid) -> Result<()> {
        let Done {} = self.client.post(&format!("{}/release", self.base), &Release { cut }).await?;
        Ok(())
    }

    async fn begin_sync(&self, disk: &str, known: Option<Uuid>) -> Result<Sync> {
        self.client.post(&format!("{}/disks/{disk}/sync", self.base), &BeginSync { known }).await
    }

    async fn next_round(&self, disk: &str, known: Option<Uuid>, have: Round, logged: bool) -> Result<Sync> {
        let body = NextRound { known, have, logged };
        self.client.post(&format!("{}/disks/{disk}/sync/round", self.base), &body).await
    }

    async fn sync_extents(&self, disk: &str, tracking: Uuid, from: u64) -> Result<Vec<Extent>> {
        let base = &self.base;
        self.client.get(&format!("{base}/disks/{disk}/extents?tracking={tracking}&from={from}")).await
    }

    async fn read(&self, disk: &str, offset: u64, len: u32) -> Result<Bytes> {
        let bytes = self
            .client
            .get_bytes(&format!("{}/disks/{disk}/data?offset={offset}&len={len}", self.base))
            .await?;
        match u32::try_from(bytes.len()) {
            Ok(got) if got == len => Ok(bytes),
            _ => Err(Error::new(
                Kind::Corrupt,
                format!("disk {disk}"),
                format!("the proxy answered {} bytes for {len} at offset {offset}", bytes.len()),
            )),
        }
    }

    async fn end_sync(&self, disk: &str, tracking: Uuid) -> Result<()> {
        let body = EndSync { tracking };
        let Done {} = self.client.post(&format!("{}/disks/{disk}/sync/end", self.base), &body).await?;
        Ok(())
    }
}
