//! From the thread that packs to the vault: a few uploads at a time, accounted for in order.
//!
//! Packing has threads of its own: it lives as long as a stretch does and waits for both ends, so in a pool that what it
//! waits for also needs, enough machines would wait for each other for ever.
//!
//! What the uploader needs of memory does not grow with the machines: see [`Turn`] and [`ROOM`].

use std::thread;

use futures_util::stream::FuturesOrdered;
use futures_util::{FutureExt as _, StreamExt as _};
use nbd_proxy::tracking::{Cut, SegmentRef};
use nbd_proxy::{Error, Kind, Result};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, oneshot};

use crate::changes;
use crate::cipher::Cipher;
use crate::commit::{self, EntryId, Uploaded};
use crate::delta::Encoded;
use crate::vault::Vault;

/// Uploads at a time for one machine.
const UPLOADS: usize = 3;

/// A delta of at most this many bytes stands inside its point.
pub(super) const EMBED_MAX: u64 = 256 << 10;

/// Copies at a time, over all machines: each packs a delta of 32 MiB and has 8 MiB of pieces waiting.
static COPIES: Semaphore = Semaphore::const_new(2);
/// Large cuts at a time: each packs a delta of 32 MiB out of a map of 40 MiB.
static LARGE_CUTS: Semaphore = Semaphore::const_new(1);
/// Small cuts at a time; they never wait for large ones.
static SMALL_CUTS: Semaphore = Semaphore::const_new(2);
/// A cut is small up to this many bytes of segments …
const SMALL_BYTES: u64 = 4 << 20;
/// … and this many records.
const SMALL_RECORDS: u64 = 50_000;

/// Room, in KiB, for deltas that are packed and not yet durable: three full ones. With all turns taken and no room left,
/// 80 + 72 + 16 + 102 = 270 MiB are in use.
static ROOM: Semaphore = Semaphore::const_new(ROOM_KIB as usize);
const ROOM_KIB: u32 = 102 << 10;

/// Waits for room for `bytes` of what is not a delta.
pub(super) async fn room(bytes: u64) -> Result<SemaphorePermit<'static>> {
    let size = u32::try_from(bytes.div_ceil(1 << 10)).unwrap_or(ROOM_KIB).min(ROOM_KIB);
    ROOM.acquire_many(size).await.map_err(|e| failed(&e))
}

/// The turn to pack; given back when the packing thread ends.
pub(super) struct Turn(#[expect(dead_code, reason = "held, not used")] SemaphorePermit<'static>);

impl Turn {
    /// Waits for the turn to pack a copy.
    pub async fn to_copy() -> Result<Self> {
        Self::of(&COPIES).await
    }

    /// Waits for the turn to pack `cut`.
    async fn to_cut(cut: &Cut) -> Result<Self> {
        let segments = || cut.disks.iter().flat_map(|disk| &disk.segments);
        let sum = |of: fn(&SegmentRef) -> u64| segments().map(of).sum::<u64>();
        let small = sum(|segment| segment.bytes) <= SMALL_BYTES && sum(|s| s.records) <= SMALL_RECORDS;
        Self::of(if small { &SMALL_CUTS } else { &LARGE_CUTS }).await
    }

    async fn of(turns: &'static Semaphore) -> Result<Self> {
        turns.acquire().await.map(Self).map_err(|e| failed(&e))
    }
}

/// A packed delta and what it is to be accounted for as, with the room that it takes.
pub(super) struct Packed<T> {
    pub delta: Encoded,
    pub tag: T,
    room: SemaphorePermit<'static>,
}

/// Where deltas go.
pub(super) struct Target<'a> {
    pub vault: &'a Vault,
    pub machine: &'a str,
    /// The entry that will name them.
    pub entry: EntryId,
}

impl Target<'_> {
    /// Uploads `first` and then whatever `packed` delivers; `done` sees each, in that order, once it is durable.
    pub async fn ship<T: Send>(
        &self,
        first: Vec<Packed<T>>,
        packed: &mut mpsc::Receiver<Packed<T>>,
        mut done: impl FnMut(Uploaded, T) -> Result<()>,
    ) -> Result<()> {
        let upload = |Packed { delta, tag, room }: Packed<T>| {
            let uploading = commit::upload(self.vault, self.machine, self.entry, delta);
            async move {
                let uploaded = uploading.await;
                drop(room);
                (uploaded, tag)
            }
            .boxed()
        };
        let mut flying: FuturesOrdered<_> = first.into_iter().map(upload).collect();
        let mut more = true;
        while more || !flying.is_empty() {
            tokio::select! {
                next = packed.recv(), if more && flying.len() < UPLOADS => match next {
                    Some(next) => flying.push_back(upload(next)),
                    None => more = false,
                },
                Some((uploaded, tag)) = flying.next(), if !flying.is_empty() => done(uploaded?, tag)?,
            }
        }
        Ok(())
    }
}

/// The packing thread's way out.
pub(super) struct Exit<T> {
    sender: mpsc::Sender<Packed<T>>,
    runtime: Handle,
}

impl<T> Exit<T> {
    /// Hands a delta on, as soon as there is room; nobody is there to take it when the step was dropped.
    pub fn hand_on(&self, delta: Encoded, tag: T) -> Result<()> {
        let gone = || Error::new(Kind::NotReady, "uploader", "nobody waits for this delta any more");
        let size = u32::try_from(delta.size.div_ceil(1 << 10)).unwrap_or(ROOM_KIB).min(ROOM_KIB);
        self.runtime.block_on(async {
            let room = tokio::select! {
                () = self.sender.closed() => return Err(gone()),
                room = ROOM.acquire_many(size) => room.map_err(|e| failed(&e))?,
            };
            self.sender.send(Packed { delta, tag, room }).await.map_err(|_| gone())
        })
    }
}

/// Deltas being packed by a thread, and how that ends.
pub(super) struct Packing<T> {
    pub packed: mpsc::Receiver<Packed<T>>,
    ended: oneshot::Receiver<Result<()>>,
}

impl<T: Send + 'static> Packing<T> {
    /// Runs `pack` on a thread; it hands finished deltas on through what it gets.
    pub fn start(turn: Turn, pack: impl FnOnce(&Exit<T>) -> Result<()> + Send + 'static) -> Result<Self> {
        let (sender, packed) = mpsc::channel(1);
        let (end, ended) = oneshot::channel();
        let exit = Exit { sender, runtime: Handle::current() };
        let run = move || {
            let result = pack(&exit);
            drop(exit);
            drop(turn);
            // Nobody asks when the step was dropped.
            let _ = end.send(result);
        };
        thread::Builder::new().name("pack".to_owned()).spawn(run).map_err(|e| failed(&e))?;
        Ok(Self { packed, ended })
    }

    /// How the packing ended.
    pub async fn end(self) -> Result<()> {
        drop(self.packed);
        self.ended.await.map_err(|e| failed(&e))?
    }
}

/// Packs what `cut` holds, when it is its turn.
pub(super) async fn pack_cut(cut: &Cut, cipher: &Cipher) -> Result<Packing<()>> {
    let turn = Turn::to_cut(cut).await?;
    let (cut, cipher) = (cut.clone(), cipher.clone());
    Packing::start(turn, move |exit| changes::pack(&cut, &cipher, &mut |delta| exit.hand_on(delta, ())))
}

fn failed(error: &dyn std::error::Error) -> Error {
    Error::new(Kind::Io, "uploader", format!("packing failed: {error}"))
}

#[cfg(test)]
mod tests;
