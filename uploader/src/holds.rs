//! Holds: whoever reads a point for long says so, and pruning leaves what that reader needs.
//!
//! A hold is a small object of JSON: the point, and the catalogue by which it is read. The order is what makes it
//! work: the reader writes the hold, *then* looks whether that catalogue is still the newest; pruning publishes its
//! catalogue, *then* looks for holds, and only then deletes. Whichever comes first, one of them sees the other: either
//! the reader finds a newer catalogue and begins again with that, or pruning finds the hold and keeps all that the
//! point consists of by the catalogue that the hold names, that catalogue included.
//!
//! A hold counts for an hour from when the store received it, by the store's clock, and is renewed well before: by a new object
//! under a new name, since objects are never changed. A reader that dies leaves one that ends by itself. A reader that
//! may not write reads all the same, without a hold: what it can count on is the wait between a catalogue and its deletions.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use nbd_proxy::durable::{self, Op, Step};
use nbd_proxy::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use crate::catalogue::{self, Catalogue};
use crate::keys::{self, PointId};
use crate::store::{self, Listed};
use crate::vault::Vault;

/// How long a hold counts.
pub const COUNTS_FOR: Duration = Duration::from_secs(3600);
/// How often a reader renews it.
const RENEWED: Duration = Duration::from_secs(15 * 60);
const LIMIT: u64 = 64 << 10;
/// How often the catalogue may change while a hold is taken.
const ATTEMPTS: usize = 8;

/// What a hold says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The point that is being read.
    pub point: PointId,
    /// The catalogue by which it is read; zero if there is none.
    pub catalogue: u64,
}

/// A hold that is kept up until it is released or dropped.
#[derive(Debug)]
pub struct Hold {
    vault: Vault,
    /// The catalogue by which the point is to be read.
    pub catalogue: Arc<Catalogue>,
    /// The hold's object; none if the store did not let us write one.
    key: Arc<Mutex<Option<String>>>,
    renewal: Option<JoinHandle<()>>,
}

impl Hold {
    /// Holds `point` of `machine`. Whether the point exists is for the caller to see, in [`Hold::catalogue`].
    pub async fn take(vault: &Vault, machine: &str, point: PointId) -> Result<Self> {
        Self::renewed(vault, machine, point, RENEWED).await
    }

    async fn renewed(vault: &Vault, machine: &str, point: PointId, every: Duration) -> Result<Self> {
        for _ in 0..ATTEMPTS {
            let catalogue = catalogue::newest(vault, machine).await?;
            let held = Held { point, catalogue: catalogue.number };
            let key = match write(vault, machine, held).await {
                Ok(key) => Some(key),
                Err(e) if matches!(e.kind, Kind::Denied | Kind::NoSpace) => {
                    tracing::info!(machine, %point, error = %e, "reading goes on without a hold");
                    None
                }
                Err(e) => return Err(e),
            };
            if key.is_none() || catalogue::newest_number(vault, machine).await? == catalogue.number {
                return Ok(Self::kept_up(vault, machine, held, every, catalogue, key));
            }
            remove(vault, key).await;
        }
        let message = "its catalogue is being changed by others all the time";
        Err(Error::new(Kind::Unavailable, machine, message).remedy("try again"))
    }

    fn kept_up(
        vault: &Vault,
        machine: &str,
        held: Held,
        every: Duration,
        catalogue: Catalogue,
        key: Option<String>,
    ) -> Self {
        let renewed = key.is_some();
        let key = Arc::new(Mutex::new(key));
        let renewal = renew(vault.clone(), machine.to_owned(), held, every, Arc::clone(&key));
        let renewal = renewed.then(|| tokio::spawn(renewal));
        Self { vault: vault.clone(), catalogue: Arc::new(catalogue), key, renewal }
    }

    /// Gives the point up.
    pub async fn release(mut self) {
        if let Some(renewal) = self.renewal.take() {
            renewal.abort();
            // Until it has ended it might write one more; how it ended does not matter.
            let _ = renewal.await;
        }
        remove(&self.vault, self.key.lock().await.take()).await;
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // What it wrote last ends by itself.
        self.renewal.iter().for_each(JoinHandle::abort);
    }
}

async fn write(vault: &Vault, machine: &str, held: Held) -> Result<String> {
    let key = keys::new_hold(machine);
    let bytes = serde_json::to_vec(&held)
        .map_err(|e| Error::new(Kind::InvalidInput, &key, "cannot write the hold").source(e))?;
    durable::request(Step::HoldPut, Op::Put, vault.store.put(&key, bytes.into())).await?;
    Ok(key)
}

/// A hold that stays where it is only keeps its point a while longer.
async fn remove(vault: &Vault, key: Option<String>) {
    let Some(key) = key else { return };
    if let Err(error) = durable::request(Step::HoldDeleted, Op::Delete, vault.store.delete(&key)).await {
        tracing::debug!(%error, "a hold stays until its time is over");
    }
}

async fn renew(vault: Vault, machine: String, held: Held, every: Duration, key: Arc<Mutex<Option<String>>>) {
    loop {
        tokio::time::sleep(every).await;
        match write(&vault, &machine, held).await {
            Ok(newer) => {
                let older = key.lock().await.replace(newer);
                remove(&vault, older).await;
            }
            Err(error) => tracing::debug!(%error, "a hold was not renewed; it is tried again"),
        }
    }
}

/// The holds that count at `now`, by the store's clock, and those that do so no more.
pub(crate) async fn counting(
    vault: &Vault,
    machine: &str,
    now: Timestamp,
) -> Result<(Vec<Held>, Vec<Listed>)> {
    let counts_for = SignedDuration::try_from(COUNTS_FOR).unwrap_or(SignedDuration::MAX);
    for _ in 0..ATTEMPTS {
        let listed = vault.store.list(&keys::hold_folder(machine)).await?;
        let (over, counting): (Vec<_>, Vec<_>) =
            listed.into_iter().partition(|object| now.duration_since(object.modified) > counts_for);
        if let Some(held) = read_all(vault, &counting).await? {
            return Ok((held, over));
        }
    }
    let message = "the holds on its points change all the time";
    Err(Error::new(Kind::Unavailable, machine, message).remedy("try again"))
}

/// What `holds` say; nothing if one of them is gone, for then another may have taken its place since they were listed.
async fn read_all(vault: &Vault, holds: &[Listed]) -> Result<Option<Vec<Held>>> {
    let mut held = Vec::with_capacity(holds.len());
    for object in holds {
        let bytes = match vault.store.get(&object.key, LIMIT).await {
            Ok(bytes) => bytes,
            Err(e) if store::is_missing_object(&e) => return Ok(None),
            Err(e) => return Err(e),
        };
        held.push(serde_json::from_slice(&bytes).map_err(|e| {
            let name = vault.store.name_of(&object.key);
            Error::corrupt(name, format!("cannot read the hold: {e}"))
                .remedy("it ends by itself an hour after it was written")
        })?);
    }
    Ok(Some(held))
}

#[cfg(test)]
mod tests;
