//! From the thread that packs to the vault: a few uploads at a time, accounted for in order.

use futures_util::stream::FuturesOrdered;
use futures_util::{FutureExt as _, StreamExt as _};
use nbd_proxy::tracking::Cut;
use nbd_proxy::{Error, Kind, Result};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::changes;
use crate::commit::{self, Uploaded};
use crate::delta::Encoded;
use crate::vault::Vault;

/// Uploads at a time. With one delta being packed and one waiting, five full deltas are in memory at most: 160 MiB.
const UPLOADS: usize = 3;

/// A delta of at most this many bytes stands inside its point.
pub(super) const EMBED_MAX: u64 = 256 << 10;

/// Where deltas go.
pub(super) struct Target<'a> {
    pub vault: &'a Vault,
    pub machine: &'a str,
    /// The entry that will name them.
    pub number: u64,
}

impl Target<'_> {
    /// Uploads `first` and then whatever `packed` delivers; `done` sees each, in that order, once it is durable.
    pub async fn ship<T: Send>(
        &self,
        first: Vec<(Encoded, T)>,
        packed: &mut mpsc::Receiver<(Encoded, T)>,
        mut done: impl FnMut(Uploaded, T) -> Result<()>,
    ) -> Result<()> {
        let upload = |(delta, tag): (Encoded, T)| {
            let uploaded = commit::upload(self.vault, self.machine, self.number, delta);
            uploaded.map(|uploaded| (uploaded, tag)).boxed()
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

/// Deltas being packed by a thread, and how that ends.
pub(super) struct Packing<T> {
    pub packed: mpsc::Receiver<(Encoded, T)>,
    thread: JoinHandle<Result<()>>,
}

impl<T: Send + 'static> Packing<T> {
    /// Runs `pack` on a thread; it hands finished deltas to the sender it gets.
    pub fn start(pack: impl FnOnce(mpsc::Sender<(Encoded, T)>) -> Result<()> + Send + 'static) -> Self {
        let (sender, packed) = mpsc::channel(1);
        Self { packed, thread: spawn_blocking(move || pack(sender)) }
    }

    /// How the packing ended.
    pub async fn end(self) -> Result<()> {
        drop(self.packed);
        self.thread
            .await
            .map_err(|e| Error::new(Kind::Io, "uploader", format!("packing ended early: {e}")).source(e))?
    }
}

/// Packs what `cut` holds.
pub(super) fn pack_cut(cut: Cut) -> Packing<()> {
    Packing::start(move |sender| changes::pack(&cut, &mut |delta| hand_on(&sender, delta, ())))
}

/// Hands a delta on; nobody is there to take it when the step was dropped.
pub(super) fn hand_on<T>(sender: &mpsc::Sender<(Encoded, T)>, delta: Encoded, tag: T) -> Result<()> {
    let gone = |_| Error::new(Kind::NotReady, "uploader", "nobody waits for this delta any more");
    sender.blocking_send((delta, tag)).map_err(gone)
}
