//! A machine's numbered line of entries, each created if absent. Whoever creates entry n+1 wins.
//!
//! This unit knows nothing of points, claims or disks: an entry is bytes with an *owner*, who is a writer in a
//! generation. What it promises:
//!
//! - of any number of writers that append entry n, exactly one does; the others learn who did;
//! - a writer that lost its reply, its process or its patience finds out on the next append whether the entry is its
//!   own: "already exists" means *unknown*, and reading the entry resolves it;
//! - no lease is asked. A writer that stalled for a day between deciding and writing loses by the same rule as one that
//!   stalled for a millisecond, and so does one whose name was taken and has been freed again meanwhile.
//!
//! # Names that were freed
//!
//! Pruning deletes old entries, so a name that was taken once may be free when a stalled writer gets to it, and then the store
//! says "created". (A store that keeps versions only hides what is deleted behind a marker; for a create the name is as free.)
//! What must be told apart is a name that was *never taken* from one that was *freed*, and one rule of pruning suffices:
//!
//! > **The newest entry of a line is never deleted, and nothing is deleted sooner than twice [`BOUND`] after a newer one came.**
//!
//! So a freed name always has a newer entry above it. An append counts if it is known that there is none:
//!
//! 1. Our head was *confirmed* (nothing was above it) by a request that was sent less than [`BOUND`] before the reply at hand. What
//!    took our name took it after that request was sent, and cannot have been freed yet. This is the ordinary case and costs nothing.
//! 2. Otherwise, after "created", the names above our entry are listed, which is one request. If there are none, our entry counts: had
//!    its name been freed, the newest entry would stand above it, now and for ever. If there are some, ours is taken for
//!    nothing, even if it might count: the newest entry says who owns the line, and if that is not us we are fenced.
//!
//! The same goes for an entry of ours that is found (its reply was lost): an earlier attempt may have created it in a freed name, maybe in
//! the very moment between our listing a name and reading what stands there, which therefore have to be less than [`BOUND`] apart. An
//! entry that stands in a freed name is no harm: nobody's parent, below what readers look at, deleted by the next pruning.
//! Asking the line itself, and not what pruning says it has deleted, keeps the two apart: whatever deleted an entry in the middle, by
//! marker or for good, a writer whose entry has a newer one above it does not go on.
//!
//! Time is what [`crate::elapsed`] says. Half of the shortest wait of pruning is the margin for clocks that run unlike the store's. A host
//! that is itself a paused machine, and whose clocks both stood still for an hour between a request and its reply, is not covered.
//!
//! # Branches
//!
//! A writer that is fenced never appends to that line again. It may go on with a line of its own in another folder, whose entries
//! nobody else makes: a *branch*. The rules above hold there too; they matter when it goes on from an old copy of its memory.

use std::time::Duration;

use bytes::Bytes;
use nbd_proxy::durable::{self, Op, Step};
use nbd_proxy::{Error, Kind, Result};
use uuid::Uuid;

use crate::cipher::{Cipher, Named};
use crate::elapsed::{Elapsed, Moment};
use crate::keys;
use crate::store::{self, Store};

/// Entries, with what is embedded in them, are not larger than this.
pub const ENTRY_LIMIT: u64 = 256 << 20;

/// For how long it is believed that our head is the newest entry. Pruning waits at least twice as long, at every site: a site that
/// pruned sooner would set a trap for writers elsewhere.
pub const BOUND: Duration = Duration::from_secs(30 * 60);

/// How often the newest entry is looked for when it goes while it is read.
const LOOKS: usize = 8;

/// Who writes: one writer in one generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Drawn once and kept durably before the first append.
    pub writer: Uuid,
    /// The writer's reign.
    pub generation: u64,
}

/// An entry as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number on the line.
    pub number: u64,
    /// All of it.
    pub bytes: Bytes,
}

/// How an append ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Appended {
    /// The entry is what we just wrote.
    Created,
    /// This entry is there, which we wrote in an earlier attempt whose reply never came; it counts.
    Ours(Entry),
    /// This entry is there, which somebody else wrote: the line is not ours.
    Foreign(Entry),
}

/// Reads an entry's owner out of its bytes.
pub type OwnerOf = fn(name: &Named, entry: &[u8]) -> Result<Owner>;

/// One machine's line, to read.
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

    /// The bytes of entry `number`.
    pub async fn read(&self, number: u64) -> Result<Option<Bytes>> {
        match self.store.get(&self.key(number), ENTRY_LIMIT).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if store::is_missing_object(&e) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The newest entry, if it is above `number`. Costs a listing: not for every day.
    pub async fn newest_after(&self, number: u64) -> Result<Option<Entry>> {
        for _ in 0..LOOKS {
            let listed = self.store.list_after(&self.folder, &self.key(number)).await?;
            let newest = listed.iter().filter_map(|object| keys::parse_line_entry(&object.key)).max();
            let Some(newest) = newest.filter(|newest| *newest > number) else { return Ok(None) };
            // It may go as soon as it is not the newest any more.
            if let Some(bytes) = self.read(newest).await? {
                return Ok(Some(Entry { number: newest, bytes }));
            }
        }
        let message = "the newest entry goes whenever it is looked for";
        Err(Error::new(Kind::Unavailable, self.store.name_of(&self.folder), message))
    }

    fn owner_of(&self, entry: &Entry) -> Result<Owner> {
        (self.owner_of)(&self.named(entry.number), &entry.bytes)
    }
}

/// Nothing was above `head` when a request was made that was sent at `sent`, or later.
#[derive(Clone, Copy, Debug)]
struct Confirmed {
    head: u64,
    sent: Moment,
}

/// One machine's line, to write.
#[derive(Debug)]
pub struct Writer {
    line: Line,
    owner: Owner,
    clock: Elapsed,
    confirmed: Option<Confirmed>,
}

impl Writer {
    /// `owner` at work on `line`; nothing is known of its head yet.
    pub fn new(line: Line, owner: Owner, clock: Elapsed) -> Self {
        Self { line, owner, clock, confirmed: None }
    }

    /// Begins a reign: picks the newest entry, has `claim` make the one that follows it, and tries to append that. Whoever was
    /// quicker has `claim` asked again. It answers nothing if the newest entry is its own.
    ///
    /// `claim` makes durable whatever must be known of the claim before it can exist.
    pub async fn claim(
        line: Line,
        clock: Elapsed,
        mut claim: impl FnMut(Option<&Entry>) -> Result<Option<(Owner, Bytes)>>,
    ) -> Result<Option<(Self, u64)>> {
        let nobody = Owner { writer: Uuid::nil(), generation: 0 };
        let mut writer = Self::new(line, nobody, clock);
        for _ in 0..LOOKS {
            let (sent, newest) = writer.newest_after(0).await?;
            let head = newest.as_ref().map_or(0, |entry| entry.number);
            let Some((owner, entry)) = claim(newest.as_ref())? else { return Ok(None) };
            writer.owner = owner;
            writer.confirmed = Some(Confirmed { head, sent });
            match writer.append(head + 1, entry).await? {
                Appended::Created => return Ok(Some((writer, head + 1))),
                Appended::Ours(entry) => return Ok(Some((writer, entry.number))),
                Appended::Foreign(_) => {}
            }
        }
        let name = writer.line.store.name_of(&writer.line.folder);
        let message = "other writers keep claiming the machine's line";
        Err(Error::new(Kind::Fenced, name, message).remedy("let only one site replicate this machine"))
    }

    /// The line.
    pub fn line(&self) -> &Line {
        &self.line
    }

    /// Whether something is above `head`, which is the last entry that we know of; [`Appended::Created`] is never the answer.
    /// Costs a listing: for a start, and after what went wrong.
    pub async fn find(&mut self, head: u64) -> Result<Option<Appended>> {
        match self.newest_after(head).await? {
            (sent, Some(newest)) => self.judge(newest, sent).map(Some),
            (sent, None) => {
                self.confirmed = Some(Confirmed { head, sent });
                Ok(None)
            }
        }
    }

    /// Tries to make `entry` the line's entry `number`, which is the one above our head.
    ///
    /// May be dropped at any await, as by a kill: what it has written by then is found by [`Writer::find`].
    pub async fn append(&mut self, number: u64, entry: Bytes) -> Result<Appended> {
        let sent = self.clock.now();
        let key = self.line.key(number);
        let store = &self.line.store;
        let there = match durable::request(Step::EntryPut, Op::Put, store.create(&key, entry.into())).await {
            Ok(()) => None,
            Err(e) if e.kind == Kind::Exists => match self.line.read(number).await? {
                Some(bytes) => Some(Entry { number, bytes }),
                None => return self.vanished(number).await,
            },
            Err(e) => return Err(e),
        };
        if let Some(there) = &there
            && self.line.owner_of(there)? != self.owner
        {
            return Ok(Appended::Foreign(there.clone()));
        }
        let confirmed = match self.never_freed(number) {
            // Of an entry that is there we know only that it is younger than what confirmed our head.
            Some(before) => Confirmed { head: number, sent: if there.is_some() { before } else { sent } },
            None => {
                let (sent, newest) = self.newest_after(number).await?;
                if let Some(newest) = newest {
                    return self.judge(newest, sent);
                }
                Confirmed { head: number, sent }
            }
        };
        self.confirmed = Some(confirmed);
        Ok(there.map_or(Appended::Created, Appended::Ours))
    }

    /// The newest entry above `number`, and when that was asked. It is read after it was listed, and must be what was listed: in a long
    /// stall between the two its name can have been freed, and an entry of ours that was late have taken it.
    async fn newest_after(&self, number: u64) -> Result<(Moment, Option<Entry>)> {
        for _ in 0..LOOKS {
            let sent = self.clock.now();
            let newest = self.line.newest_after(number).await?;
            if newest.is_none() || self.clock.now().since(sent) < BOUND {
                return Ok((sent, newest));
            }
        }
        let message = "the store takes too long to say what is there";
        Err(Error::new(Kind::Unavailable, self.line.store.name_of(&self.line.folder), message))
    }

    /// When our head was confirmed, if that is so short ago that the name of `number` cannot have been taken and freed since.
    fn never_freed(&self, number: u64) -> Option<Moment> {
        let Confirmed { head, sent } = self.confirmed?;
        let fresh = head + 1 == number && self.clock.now().since(sent) < BOUND;
        fresh.then_some(sent)
    }

    /// The name of `number` was taken, and then there was nothing.
    async fn vanished(&mut self, number: u64) -> Result<Appended> {
        match self.newest_after(number).await? {
            (sent, Some(newest)) => self.judge(newest, sent),
            // Not what a store may do; the next attempt sees more.
            (_, None) => {
                let name = self.line.store.name_of(&self.line.key(number));
                Err(Error::new(
                    Kind::Unavailable,
                    name,
                    "the store said that it exists, and then that it does not",
                ))
            }
        }
    }

    /// `newest` was the newest entry when a request was made that was sent at `sent`.
    fn judge(&mut self, newest: Entry, sent: Moment) -> Result<Appended> {
        if self.line.owner_of(&newest)? != self.owner {
            return Ok(Appended::Foreign(newest));
        }
        self.confirmed = Some(Confirmed { head: newest.number, sent });
        Ok(Appended::Ours(newest))
    }
}

#[cfg(test)]
mod tests;
