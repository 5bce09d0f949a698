//! What time it is for the store.
//!
//! Ages decide what is deleted, so they count by the one clock that also stamped the objects: a host whose clock is wrong
//! must not make anything old. A store says its time only of objects that it was given, so it is given one.

use jiff::Timestamp;
use nbd_proxy::Result;
use nbd_proxy::durable::{self, Op, Step};

use crate::keys;
use crate::vault::Vault;

pub(super) async fn now(vault: &Vault, machine: &str) -> Result<Timestamp> {
    let key = keys::new_clock(machine);
    let asking = bytes::Bytes::from_static(b"what time is it?\n");
    durable::request(Step::ClockPut, Op::Put, vault.store.put(&key, asking.into())).await?;
    let written = vault.store.describe(&key).await?.modified;
    // What stays goes with the next sweep.
    if let Err(error) = durable::request(Step::ClockDeleted, Op::Delete, vault.store.delete(&key)).await {
        tracing::debug!(%error, "left to be swept");
    }
    Ok(written)
}
