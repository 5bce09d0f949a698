//! A catalogue: what thinning left of a machine, version 1. Numbers are little-endian.
//!
//! ```text
//! prefix   7  "LBCATLG"
//!          1  1, or 2 if it is encrypted
//!          8  length of the body, as stored
//!        (16  salt; only if it is encrypted)
//! body        one unit: zstd of JSON, see `Catalogue`
//! seal    32  SHA-256 of everything before
//! ```
//!
//! Catalogues are numbered, each is created if absent, and the newest counts. It has a *floor*: of the entries of
//! the line at or below that number, the points that it lists exist and no others do, whatever objects may still lie
//! about. A listed point has the nearest listed point before it as its parent, and its own list of deltas, which take
//! the one to the other exactly as an entry's deltas do; all of them are objects of their own. So a point is
//! read below the floor as it is read above it, and nothing else of the vault had to change for pruning: block maps stay
//! what they are, an optimisation. Claims are listed too, though their entries are never deleted: a listing of old times then
//! costs one request.
//!
//! Whoever changes what exists below the floor, or what must not be pruned, does it by creating the next number from
//! what the newest said. Two who try at once are told apart by the store: one has to look again. So a pin
//! needs no protocol with a pruning that runs elsewhere: either that pruning sees it, or it fails and begins again.
//!
//! A writer that stalled may create a number that was taken, superseded and deleted long ago. It does not matter: the
//! newest counts, and everybody who acts on a catalogue reads which one that is.
//!
//! The floor is always below the newest point of the main line, so the entry that everybody looks for is always there,
//! and no entry is ever created at or below it by a writer that knows its line's head.

use std::collections::BTreeSet;
use std::io::Read as _;

use bytes::Bytes;
use jiff::Timestamp;
use nbd_proxy::durable::{self, Op, Step};
use nbd_proxy::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::cipher::{DIRECTORY, Named, Salt};
use crate::digest::{Digest, sha256};
use crate::keys::{self, PointId};
use crate::point::{DeltaRef, Header};
use crate::store;
use crate::vault::Vault;

/// The first bytes of every catalogue.
pub const MAGIC: [u8; 7] = *b"LBCATLG";
/// The byte after them.
const PLAIN: u8 = 1;
const SEALED: u8 = 2;
const PREFIX_LEN: usize = 16;
const SEAL_LEN: usize = 32;
/// No catalogue is longer, as stored or raw.
const LIMIT: u64 = 1 << 30;
/// How often the newest catalogue may be superseded and deleted while we try to read it.
const ATTEMPTS: usize = 8;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalogue {
    /// The machine.
    pub machine: String,
    /// Its number.
    pub number: u64,
    /// Drawn for it, so that a lost reply is told from a lost race.
    pub id: Uuid,
    /// Entries of the line up to this number are as listed here.
    pub floor: u64,
    /// Points that stay until they are unpinned, wherever they are.
    pub pins: BTreeSet<PointId>,
    /// The points at or below the floor, in the order of their numbers.
    pub points: Vec<Kept>,
    /// The claims at or below the floor, in the order of their numbers.
    pub claims: Vec<Header>,
}

/// A point that was kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// What it says about itself; the parent is the nearest point before it that was kept.
    pub header: Header,
    /// The mark of its entry, by which the point after it knows it.
    pub mark: Digest,
    /// When the store received it, by the store's clock.
    pub stored: Timestamp,
    /// What leads from its parent to it, in the order in which it applies.
    pub deltas: Vec<KeptDelta>,
}

/// A delta of a point that was kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptDelta {
    /// The delta; it is an object of its own.
    pub delta: DeltaRef,
    /// How many of its bytes, as stored, the point needs.
    pub live: u64,
}

impl KeptDelta {
    /// The delta's name in the machine's folder of deltas.
    pub fn name(&self) -> &str {
        self.delta.name.as_deref().unwrap_or_default()
    }
}

impl Catalogue {
    /// What a machine that was never pruned has: everything stands in its line.
    pub fn empty(machine: &str) -> Self {
        Self {
            machine: machine.to_owned(),
            number: 0,
            id: Uuid::nil(),
            floor: 0,
            pins: BTreeSet::new(),
            points: Vec::new(),
            claims: Vec::new(),
        }
    }

    /// The same under the next number, to be changed and published.
    #[must_use]
    pub fn next(&self) -> Self {
        Self { number: self.number + 1, id: Uuid::new_v4(), ..self.clone() }
    }

    /// The point with this number, if it was kept.
    pub fn point(&self, number: u64) -> Option<&Kept> {
        let at = self.points.binary_search_by_key(&number, |kept| kept.header.number).ok()?;
        self.points.get(at)
    }

    /// The claim with this number.
    pub fn claim(&self, number: u64) -> Option<&Header> {
        let at = self.claims.binary_search_by_key(&number, |claim| claim.number).ok()?;
        self.claims.get(at)
    }

    /// The header of the entry with this number, which is at or below the floor.
    pub fn header(&self, number: u64) -> Option<&Header> {
        self.point(number).map(|kept| &kept.header).or_else(|| self.claim(number))
    }

    /// The numbers of all entries at or below the floor, in order.
    pub fn numbers(&self) -> Vec<u64> {
        let points = self.points.iter().map(|kept| kept.header.number);
        let mut numbers: Vec<u64> = points.chain(self.claims.iter().map(|claim| claim.number)).collect();
        numbers.sort_unstable();
        numbers
    }

    /// The names of all deltas that kept points consist of.
    pub fn deltas(&self) -> impl Iterator<Item = &str> {
        self.points.iter().flat_map(|kept| kept.deltas.iter().map(KeptDelta::name))
    }
}

/// The bytes of `catalogue`, which is the object `named`.
pub fn encode(named: &Named, catalogue: &Catalogue) -> Result<Bytes> {
    let unwritable = |e: &dyn std::fmt::Display| {
        Error::new(Kind::InvalidInput, &named.object, format!("cannot write the catalogue: {e}"))
    };
    let (salt, units) = named.sealer()?;
    let body = serde_json::to_vec(catalogue).map_err(|e| unwritable(&e))?;
    let body = units.seal(DIRECTORY, zstd::bulk::compress(&body, 3).map_err(|e| unwritable(&e))?)?;
    let mut out = Vec::with_capacity(64 + body.len() + SEAL_LEN);
    out.extend_from_slice(&MAGIC);
    out.push(if salt.is_some() { SEALED } else { PLAIN });
    out.extend_from_slice(&(body.len() as u64).to_le_bytes());
    out.extend(salt.iter().flat_map(|salt| salt.0));
    out.extend_from_slice(&body);
    let seal = sha256(&out);
    out.extend_from_slice(&seal);
    Ok(out.into())
}

/// Reads the catalogue `named`.
pub fn decode(named: &Named, bytes: &[u8]) -> Result<Catalogue> {
    let corrupt = |what: &str| Error::corrupt(&named.object, format!("cannot read the catalogue: {what}"));
    let short = || corrupt("it is shorter than any catalogue");
    let (prefix, rest) = bytes.split_first_chunk::<PREFIX_LEN>().ok_or_else(short)?;
    if prefix[..7] != MAGIC {
        return Err(corrupt("this is no catalogue"));
    }
    let (salt, rest) = match prefix[7] {
        PLAIN => (None, rest),
        SEALED => rest.split_first_chunk().map(|(salt, rest)| (Some(Salt(*salt)), rest)).ok_or_else(short)?,
        _ => return Err(corrupt("this catalogue has a version that this program does not know")),
    };
    let (body, seal) = rest.split_last_chunk::<SEAL_LEN>().ok_or_else(short)?;
    let mut len = [0; 8];
    len.copy_from_slice(&prefix[8..]);
    if body.len() as u64 != u64::from_le_bytes(len) {
        return Err(corrupt("its length is not what it states"));
    }
    if sha256(&bytes[..bytes.len() - SEAL_LEN]) != *seal {
        return Err(corrupt("it does not match its SHA-256"));
    }
    let body = named.opener(salt)?.open(&named.object, DIRECTORY, body)?;
    let catalogue = unpack(&body).map_err(|e| corrupt(&e.to_string()))?;
    check(&catalogue).map_err(corrupt)?;
    Ok(catalogue)
}

fn unpack(body: &[u8]) -> std::io::Result<Catalogue> {
    let mut raw = Vec::new();
    zstd::Decoder::new(body)?.take(LIMIT).read_to_end(&mut raw)?;
    Ok(serde_json::from_slice(&raw)?)
}

/// What every reader relies on.
fn check(catalogue: &Catalogue) -> Result<(), &'static str> {
    let rising = |numbers: Vec<u64>| {
        let below = numbers.last().is_none_or(|last| *last <= catalogue.floor);
        below && numbers.is_sorted_by(|a, b| a < b)
    };
    let points = catalogue.points.iter().map(|kept| kept.header.number).collect();
    let claims = catalogue.claims.iter().map(|claim| claim.number).collect();
    if !rising(points) || !rising(claims) {
        return Err("its entries are not in order, or not below its floor");
    }
    for kept in &catalogue.points {
        let parent = kept.header.parent;
        let listed = |id: PointId| catalogue.point(id.number).is_some_and(|kept| kept.header.id() == id);
        if parent.is_some_and(|id| id.number >= kept.header.number || !listed(id)) {
            return Err("a point's parent is not listed");
        }
        if kept.deltas.iter().any(|delta| delta.delta.name.is_none()) {
            return Err("a delta of a kept point has no name");
        }
    }
    Ok(())
}

/// The number of the newest catalogue of `machine`, zero if there is none: a listing.
pub async fn newest_number(vault: &Vault, machine: &str) -> Result<u64> {
    let listed = vault.store.list(&keys::catalogue_folder(machine)).await?;
    Ok(listed.iter().filter_map(|object| keys::parse_line_entry(&object.key)).max().unwrap_or(0))
}

/// The newest catalogue of `machine`; an empty one if it was never pruned. A listing and a read.
pub async fn newest(vault: &Vault, machine: &str) -> Result<Catalogue> {
    let mut attempts = 0;
    loop {
        let number = newest_number(vault, machine).await?;
        if number == 0 {
            return Ok(Catalogue::empty(machine));
        }
        attempts += 1;
        match read(vault, machine, number).await {
            // It was superseded and deleted since it was listed.
            Err(e) if store::is_missing_object(&e) && attempts < ATTEMPTS => {}
            read => return read,
        }
    }
}

/// Catalogue `number` of `machine`.
pub async fn read(vault: &Vault, machine: &str, number: u64) -> Result<Catalogue> {
    let key = keys::catalogue(machine, number);
    let object = vault.store.name_of(&key);
    let catalogue = decode(&vault.named(&key), &vault.store.get(&key, LIMIT).await?)?;
    if catalogue.machine != machine || catalogue.number != number {
        let message = format!(
            "says that it is catalogue {} of {}: objects were moved",
            catalogue.number, catalogue.machine
        );
        return Err(Error::corrupt(object, message));
    }
    Ok(catalogue)
}

/// Makes `catalogue` the newest of its machine; false if somebody else took the number.
///
/// It must have been made from the newest of its time by [`Catalogue::next`].
pub async fn publish(vault: &Vault, catalogue: &Catalogue) -> Result<bool> {
    let key = keys::catalogue(&catalogue.machine, catalogue.number);
    let bytes = encode(&vault.named(&key), catalogue)?;
    match durable::request(Step::CataloguePut, Op::Put, vault.store.create(&key, bytes.into())).await {
        Ok(()) => Ok(true),
        Err(e) if e.kind == Kind::Exists => match read(vault, &catalogue.machine, catalogue.number).await {
            Ok(there) => Ok(there.id == catalogue.id),
            // Taken, superseded and deleted since.
            Err(e) if store::is_missing_object(&e) => Ok(false),
            Err(e) => Err(e),
        },
        Err(e) => Err(e),
    }
}

/// Publishes the newest catalogue as it is under the next number: whatever was planned by it without seeing what stands in
/// the vault by now has to look again.
pub async fn touch(vault: &Vault, machine: &str) -> Result<()> {
    update(vault, machine, |_| true).await
}

/// Changes the newest catalogue by `change`, which says whether there is anything to change.
pub(crate) async fn update(
    vault: &Vault,
    machine: &str,
    mut change: impl FnMut(&mut Catalogue) -> bool,
) -> Result<()> {
    for _ in 0..ATTEMPTS {
        let mut next = newest(vault, machine).await?.next();
        if !change(&mut next) || publish(vault, &next).await? {
            return Ok(());
        }
    }
    let message = "its catalogue is being changed by others all the time";
    Err(Error::new(Kind::Unavailable, machine, message).remedy("try again"))
}

#[cfg(test)]
mod tests;
