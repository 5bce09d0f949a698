//! Pins: points that stay until somebody says otherwise.
//!
//! They stand in the catalogue, so that pinning and pruning are put in order by the store: a pruning that was planned without
//! the pin cannot publish, and plans again.

use nbd_proxy::{Error, Kind, Result};

use crate::catalogue;
use crate::keys::PointId;
use crate::listing::{self, PointName};
use crate::vault::Vault;

/// Pins `point` of `machine`; to pin it twice changes nothing.
pub async fn pin(vault: &Vault, machine: &str, point: PointId) -> Result<()> {
    listing::resolve(vault, machine, &PointName::Id(point)).await?;
    catalogue::update(vault, machine, |catalogue| catalogue.pins.insert(point)).await?;
    // It may have been pruned between the look and the pin.
    let still = listing::resolve(vault, machine, &PointName::Id(point)).await;
    if still.as_ref().is_err_and(|e| e.kind == Kind::NotFound) {
        unpin(vault, machine, point).await?;
    }
    still.map(drop)
}

/// Takes the pin of `point` away.
pub async fn unpin(vault: &Vault, machine: &str, point: PointId) -> Result<()> {
    let mut pinned = false;
    let change = |catalogue: &mut catalogue::Catalogue| {
        pinned = catalogue.pins.remove(&point);
        pinned
    };
    catalogue::update(vault, machine, change).await?;
    if pinned {
        return Ok(());
    }
    let message = format!("point {point} is not pinned");
    Err(Error::new(Kind::NotFound, machine, message).remedy("`lifeboat points` shows which points are"))
}
