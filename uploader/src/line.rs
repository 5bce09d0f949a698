//! A machine's numbered line of entries, each created if absent. Whoever creates entry n+1 wins.
//!
//! This unit knows nothing of points, claims or disks: an entry is bytes with an *owner*, who is a writer in a
//! generation. What it promises:
//!
//! - of any number of writers that append entry n, exactly one does; the others learn who did;
//! - a writer that lost its reply, its process or its patience finds out on the next append whether the entry is its
//!   own: "already exists" means *unknown*, and reading the entry resolves it;
//! - no lease and no clock is asked. A writer that stalled for a day between deciding and writing loses by the same
//!   rule as one that stalled for a millisecond.
//!
//! What it does not promise: that names are never freed. A store in which entries are deleted needs a floor below
//! which nobody appends; nothing deletes entries today.

use bytes::Bytes;
use nbd_proxy::durable::{self, Op, Step};
use nbd_proxy::{Kind, Result};
use uuid::Uuid;

use crate::cipher::{Cipher, Named};
use crate::keys;
use crate::store::{self, Store};

/// Entries, with what is embedded in them, are not larger than this.
pub const ENTRY_LIMIT: u64 = 256 << 20;

/// Who writes: one writer in one generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Drawn once and kept durably before the first append.
    pub writer: Uuid,
    /// The writer's reign.
    pub generation: u64,
}

/// How an append ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Appended {
    /// The entry is what we just wrote.
    Created,
    /// An earlier attempt of ours, whose reply never came, wrote the entry; its bytes may differ from today's.
    Ours(Bytes),
    /// Somebody else wrote the entry.
    Foreign(Bytes),
}

/// Reads an entry's owner out of its bytes.
pub type OwnerOf = fn(name: &Named, entry: &[u8]) -> Result<Owner>;

/// One machine's line.
#[derive(Clone, Debug)]
pub struct Line {
    store: Store,
    cipher: Cipher,
    folder: String,
    owner_of: OwnerOf,
}

impl Line {
    /// The line in `folder` of `store`, whose entries `cipher` seals.
    pub fn new(store: Store, cipher: Cipher, folder: String, owner_of: OwnerOf) -> Self {
        Self { store, cipher, folder, owner_of }
    }

    /// The name of entry `number`.
    pub fn key(&self, number: u64) -> String {
        keys::line_entry(&self.folder, number)
    }

    /// Entry `number`, to be sealed or opened.
    pub fn named(&self, number: u64) -> Named {
        let key = self.key(number);
        Named { cipher: self.cipher.clone(), object: self.store.name_of(&key), key }
    }

    /// Tries to make `entry` the line's entry `number`.
    pub async fn append(&self, number: u64, owner: Owner, entry: Bytes) -> Result<Appended> {
        let key = self.key(number);
        match durable::request(Step::EntryPut, Op::Put, self.store.create(&key, entry.into())).await {
            Ok(()) => return Ok(Appended::Created),
            Err(e) if e.kind == Kind::Exists => {}
            Err(e) => return Err(e),
        }
        let there = self.store.get(&key, ENTRY_LIMIT).await?;
        self.resolve(number, owner, there)
    }

    /// Whether the entry `number` exists, and whose it is; [`Appended::Created`] is never the answer.
    pub async fn probe(&self, number: u64, owner: Owner) -> Result<Option<Appended>> {
        match self.read(number).await? {
            Some(there) => self.resolve(number, owner, there).map(Some),
            None => Ok(None),
        }
    }

    fn resolve(&self, number: u64, owner: Owner, there: Bytes) -> Result<Appended> {
        let theirs = (self.owner_of)(&self.named(number), &there)?;
        Ok(if theirs == owner { Appended::Ours(there) } else { Appended::Foreign(there) })
    }

    /// The bytes of entry `number`.
    pub async fn read(&self, number: u64) -> Result<Option<Bytes>> {
        match self.store.get(&self.key(number), ENTRY_LIMIT).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if store::is_missing_object(&e) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The newest entry's number, zero for an empty line. Costs a listing: for a cold start only.
    pub async fn find_head(&self) -> Result<u64> {
        let listed = self.store.list(&self.folder).await?;
        Ok(listed.iter().filter_map(|object| keys::parse_line_entry(&object.key)).max().unwrap_or(0))
    }
}

#[cfg(test)]
mod tests;
