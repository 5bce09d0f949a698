//! The first copy carried by hand: a *seed* is a folder that is the same vault as the one far away.
//!
//! [`prepare`] gives a folder the marker and the wrapped keys of a vault (or the folder is a vault of its own, if there is none yet at the
//! other end). The site replicates to the folder as to any vault; the folder is carried; [`import`] puts into the vault what the
//! folder has; the site is pointed at the vault and goes on. It notices nothing: the vault's id is the one its state is about, and
//! the line ends where it left it.
//!
//! Order: marker and keys; then, machine by machine, everything that entries rely on; then the entries, oldest first. So a death at any
//! moment leaves a vault in which no entry names what is not there, and importing again goes on: what is there already is left out.
//! Nothing is ever written over. Before anything of a machine is written, its entries are compared with what the vault has of it: if they
//! differ, somebody else has replicated a machine of that name, and it is refused. Each object is verified as it passes.

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use nbd_proxy::durable::{self, Op, Step};
use nbd_proxy::{Error, Kind, Result};
use serde::Serialize;
use std::collections::HashMap;

use crate::delta::reader;
use crate::keys::{self, MARKER};
use crate::line::ENTRY_LIMIT;
use crate::listing;
use crate::point;
use crate::store::{self, Store};
use crate::vault::Vault;

const SMALL: u64 = 64 << 10;
/// Objects on their way at the same time; each may be a delta of some 36 MiB.
const PARALLEL: usize = 4;

/// What an import did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Imported {
    /// The machines in the seed.
    pub machines: Vec<String>,
    /// Objects written.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Objects that were there already.
    pub present: u64,
}

/// Told (bytes done, bytes in all) now and then.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Sync);

/// Makes `folder`, which must hold no other vault, a seed of `vault`.
pub async fn prepare(vault: &Vault, folder: &Store) -> Result<()> {
    let marker = vault.store.get(MARKER, SMALL).await?;
    same_or_new(folder, &marker).await?;
    copy_keys(&vault.store, folder).await?;
    claim(folder, &marker).await
}

/// Puts everything that `seed` has into the vault in `target`, which is the same vault or none yet.
pub async fn import(seed: &Vault, target: &Store, progress: Progress<'_>) -> Result<Imported> {
    let marker = seed.store.get(MARKER, SMALL).await?;
    same_or_new(target, &marker).await?;
    let machines = listing::machines(seed).await?;
    let mut plans = Vec::new();
    for machine in &machines {
        plans.push(plan(seed, target, machine).await?);
    }
    copy_keys(&seed.store, target).await?;
    claim(target, &marker).await?;
    let total =
        plans.iter().flat_map(|plan| plan.first.iter().chain(&plan.entries)).map(|(_, size)| size).sum();
    let mut done = Imported { machines, ..Imported::default() };
    for Plan { first, entries, present } in plans {
        done.present += present;
        let carry =
            |(key, size): (String, u64)| async move { carry(seed, target, &key).await.map(|()| size) };
        let mut relied_on = stream::iter(first).map(carry).buffer_unordered(PARALLEL);
        while let Some(size) = relied_on.try_next().await? {
            (done.objects, done.bytes) = (done.objects + 1, done.bytes + size);
            progress(done.bytes, total);
        }
        for (key, size) in entries {
            carry_entry(seed, target, &key).await?;
            (done.objects, done.bytes) = (done.objects + 1, done.bytes + size);
            progress(done.bytes, total);
        }
    }
    Ok(done)
}

/// What of a machine has to be carried: names and sizes.
struct Plan {
    first: Vec<(String, u64)>,
    entries: Vec<(String, u64)>,
    present: u64,
}

/// Compares what both have of `machine`.
async fn plan(seed: &Vault, target: &Store, machine: &str) -> Result<Plan> {
    keys::check_name("machine", machine)?;
    let there: HashMap<String, u64> = target
        .list(&keys::machine_folder(machine))
        .await?
        .into_iter()
        .map(|object| (object.key, object.size))
        .collect();
    let (mut plan, mut both) = (Plan { first: Vec::new(), entries: Vec::new(), present: 0 }, Vec::new());
    let lines = [keys::line_folder(machine), keys::branches_folder(machine)];
    for object in seed.store.list(&keys::machine_folder(machine)).await? {
        let entry = lines.iter().any(|folder| object.key.starts_with(folder));
        match there.get(&object.key) {
            Some(_) if entry => both.push(object.key),
            // A name is never used for two contents; what is shorter is no object but a torn file.
            Some(size) if *size == object.size => plan.present += 1,
            _ if entry => plan.entries.push((object.key, object.size)),
            _ => plan.first.push((object.key, object.size)),
        }
    }
    plan.present += both.len() as u64;
    let same = |key: String| async move {
        let (ours, theirs) = (seed.store.get(&key, ENTRY_LIMIT).await?, target.get(&key, ENTRY_LIMIT).await?);
        if ours == theirs { Ok(()) } else { Err(occupied(target, machine, &key)) }
    };
    stream::iter(both).map(same).buffer_unordered(PARALLEL).try_collect::<()>().await?;
    if plan.present == 0 && there.keys().any(|key| key.starts_with(&keys::line_folder(machine))) {
        return Err(occupied(target, machine, &keys::line_folder(machine)));
    }
    Ok(plan)
}

async fn carry(seed: &Vault, target: &Store, key: &str) -> Result<()> {
    let bytes = seed.store.get(key, ENTRY_LIMIT).await?;
    if bytes.starts_with(&crate::delta::format::MAGIC) {
        reader::check(&seed.store.name_of(key), &seed.cipher, &bytes)?;
    }
    durable::request(Step::SeedPut, Op::Put, target.put(key, bytes.into())).await
}

async fn carry_entry(seed: &Vault, target: &Store, key: &str) -> Result<()> {
    let bytes = seed.store.get(key, ENTRY_LIMIT).await?;
    point::decode(&seed.named(key), &bytes)?;
    create(target, key, &bytes).await
}

/// Creates an object, or finds it there with this content.
async fn create(target: &Store, key: &str, bytes: &Bytes) -> Result<()> {
    let put = target.create(key, bytes.clone().into());
    match durable::request(Step::SeedCreated, Op::Put, put).await {
        Err(e) if e.kind == Kind::Exists && target.get(key, ENTRY_LIMIT).await? == *bytes => Ok(()),
        created => created,
    }
}

async fn copy_keys(from: &Store, to: &Store) -> Result<()> {
    for object in from.list(keys::KEYS).await? {
        create(to, &object.key, &from.get(&object.key, SMALL).await?).await?;
    }
    Ok(())
}

async fn same_or_new(target: &Store, marker: &Bytes) -> Result<()> {
    match target.get(MARKER, SMALL).await {
        Ok(there) if there == *marker => Ok(()),
        Ok(_) => Err(other_vault(target)),
        Err(e) if store::is_missing_object(&e) => Ok(()),
        Err(e) => Err(e),
    }
}

async fn claim(target: &Store, marker: &Bytes) -> Result<()> {
    create(target, MARKER, marker)
        .await
        .map_err(|e| if e.kind == Kind::Exists { other_vault(target) } else { e })
}

fn other_vault(target: &Store) -> Error {
    Error::new(Kind::Exists, target.url(), "there is another vault; a seed belongs to one vault only")
        .remedy("make the seed of that vault with `lifeboat vault seed DIR`, or import to an empty place")
}

fn occupied(target: &Store, machine: &str, key: &str) -> Error {
    let message = format!("the vault has another machine {machine}: its line differs from the seed's");
    Error::new(Kind::Exists, target.name_of(key), message)
        .remedy("give one of the two another name; nothing of this machine was written")
}

#[cfg(test)]
mod tests;
