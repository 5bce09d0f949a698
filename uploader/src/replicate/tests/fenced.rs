//! Two uploaders of one machine, one of which stalls at some request for longer than any wait while the other takes over, makes points
//! and has the names in between deleted: there is one line, the other uploader is fenced, and every point of both is exact.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Mutex;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt as _, PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use tokio::sync::Notify;

use super::*;
use crate::elapsed::{Elapsed, Moment};
use crate::keys;
use crate::line::BOUND;
use crate::testing::{Random, memory_vault, vault_in};

type Answer<T> = object_store::Result<T>;

const MIB: u64 = 1 << 20;

/// At which request a store stalls: its number, and whether it has had its effect by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stall {
    request: usize,
    after: bool,
}

#[derive(Default)]
struct Gate {
    armed: Mutex<(usize, Option<Stall>)>,
    stalled: Notify,
    go_on: Notify,
}

impl Gate {
    fn arm(&self, stall: Stall) {
        *self.armed.lock().unwrap() = (0, Some(stall));
    }

    fn next(&self) -> usize {
        let mut armed = self.armed.lock().unwrap();
        armed.0 += 1;
        armed.0 - 1
    }

    async fn pass(&self, request: usize, after: bool) {
        let here = |stall: &mut Stall| *stall == Stall { request, after };
        if self.armed.lock().unwrap().1.take_if(here).is_some() {
            self.stalled.notify_one();
            self.go_on.notified().await;
        }
    }
}

/// One uploader's way to a store.
#[derive(Clone)]
struct Stalling {
    inner: Arc<InMemory>,
    gate: Arc<Gate>,
}

impl Stalling {
    async fn through<T>(&self, request: impl Future<Output = T> + Send) -> T {
        let number = self.gate.next();
        self.gate.pass(number, false).await;
        let answer = request.await;
        self.gate.pass(number, true).await;
        answer
    }
}

impl fmt::Debug for Stalling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stalling")
    }
}

impl fmt::Display for Stalling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stalling")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Stalling {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Answer<PutResult> {
        self.through(self.inner.put_opts(location, payload, opts)).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Answer<GetResult> {
        self.through(self.inner.get_opts(location, options)).await
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Answer<ObjectMeta>> {
        let (this, prefix) = (self.clone(), prefix.cloned());
        let listing = async move {
            let inner = Arc::clone(&this.inner);
            let found: Answer<Vec<_>> = this.through(inner.list(prefix.as_ref()).try_collect()).await;
            found.map(|found| stream::iter(found.into_iter().map(Ok)))
        };
        stream::once(listing).try_flatten().boxed()
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Answer<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, opts).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Answer<Path>>) -> BoxStream<'static, Answer<Path>> {
        self.inner.delete_stream(locations)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Answer<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Answer<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// One machine at two places, a vault that both replicate to, and what was deleted there.
struct Sites {
    memory: Arc<InMemory>,
    gate: Arc<Gate>,
    rigs: [Rig; 2],
    vaults: [Vault; 2],
    time: Arc<Mutex<Duration>>,
    hidden: Vec<(Path, Bytes)>,
}

impl Sites {
    async fn new(seed: u64) -> Self {
        let (memory, gate) = (Arc::new(InMemory::new()), Arc::new(Gate::default()));
        let plain = vault_in(memory.clone()).await;
        let stalling = vault_in(Arc::new(Stalling { inner: memory.clone(), gate: gate.clone() })).await;
        let rigs = [seed, seed + 1].map(|seed| {
            let rig = Rig::new(&[("a", MIB)], seed);
            rig.write("a", 0, &Random::new(seed).bytes(200_000));
            rig
        });
        Self { memory, gate, rigs, vaults: [stalling, plain], time: Arc::default(), hidden: Vec::new() }
    }

    fn start(&self, site: usize) -> Handle {
        let time = Arc::clone(&self.time);
        let mut settings = self.rigs[site].settings();
        settings.elapsed = Elapsed::new(move || Moment::new(*time.lock().unwrap(), Duration::ZERO));
        start(settings, self.rigs[site].clone(), connect(&self.vaults[site]))
    }

    async fn keys(&self) -> BTreeSet<Path> {
        let found: Vec<ObjectMeta> = self.memory.list(None).try_collect().await.unwrap();
        found.into_iter().map(|meta| meta.location).collect()
    }

    async fn head(&self) -> u64 {
        let found = listing::headers(&self.vaults[1], "m").await;
        found.map_or(0, |found| found.last().unwrap().number)
    }

    /// Hides the line's entries above `from` but for the newest, and `deltas`, for longer than any wait.
    async fn prune(&mut self, from: u64, deltas: impl Iterator<Item = Path>) {
        *self.time.lock().unwrap() += 2 * BOUND;
        let entry = |number| Path::from(keys::line_entry(&keys::line_folder("m"), number));
        let entries: Vec<Path> = (from + 1..self.head().await).map(entry).collect();
        for key in entries.into_iter().chain(deltas) {
            let bytes = self.memory.get(&key).await.unwrap().bytes().await.unwrap();
            self.memory.delete(&key).await.unwrap();
            self.hidden.push((key, bytes));
        }
    }

    /// Takes the markers away: what was deleted is there again, in place of what was put there since.
    async fn unhide(&mut self) {
        for (key, bytes) in self.hidden.drain(..) {
            self.memory.put(&key, bytes.into()).await.unwrap();
        }
    }

    /// Each point of those that `wanted` chooses shows what its own disks held at its cut. Returns how many there are.
    async fn exact(&self, wanted: impl Fn(&listing::PointInfo) -> bool) -> usize {
        let vault = &self.vaults[1];
        let points = listing::points(vault, "m").await.unwrap();
        let mut count = 0;
        for point in points.iter().filter(|point| wanted(point)) {
            let held = self.rigs.iter().find_map(|rig| rig.cuts().remove(&point.time)).unwrap();
            let shown = testing::contents(vault, "m", point.id).await.unwrap();
            assert!(shown == held, "{} differs", point.id);
            assert_eq!(
                listing::resolve(vault, "m", &listing::PointName::Id(point.id)).await.unwrap().id,
                point.id
            );
            count += 1;
        }
        count
    }
}

/// Uploader 0 stalls at `stall`, in its first copy or after its first point; false if it never made that request.
async fn stalled(stall: Stall, first_copy: bool) -> bool {
    let mut sites = Sites::new(if first_copy { 81 } else { 83 }).await;
    if !first_copy {
        let handle = sites.start(0);
        handle.cut().await.unwrap();
        handle.stop().await;
        // More than an entry embeds.
        sites.rigs[0].write("a", 300_000, &Random::new(85).bytes(700_000));
    }
    let (before, head) = (sites.keys().await, sites.head().await);
    sites.gate.arm(stall);
    let one = sites.start(0);
    let waiting = one.clone();
    let mut cut = tokio::spawn(async move { waiting.cut().await });
    let reached = tokio::select! {
        () = sites.gate.stalled.notified() => true,
        done = &mut cut => { done.unwrap().unwrap(); false }
    };
    if !reached {
        return false;
    }
    let uploaded: Vec<Path> = sites.keys().await.difference(&before).cloned().collect();
    let uploaded = uploaded.into_iter().filter(|key| key.as_ref().contains("/deltas/"));
    let other = sites.start(1);
    for _ in 0..3 {
        other.cut().await.unwrap();
        sites.rigs[1].churn(3);
    }
    sites.prune(head, uploaded).await;
    sites.gate.go_on.notify_one();
    let point = cut.await.unwrap().unwrap();
    sites.rigs[0].churn(3);
    one.cut().await.unwrap();
    other.cut().await.unwrap();

    let fenced = [&one, &other].map(|handle| handle.status().fenced.is_some());
    assert!(fenced[0] != fenced[1], "one of them owns the line: {fenced:?} ({stall:?})");
    let (loser, owner) = if fenced[0] { (&one, &other) } else { (&other, &one) };
    let status = loser.status();
    assert_eq!((status.health, status.disks[0].state), (Health::Critical, DiskState::Fenced));
    assert!(
        status.cause.contains("another writer owns") && status.remedy.contains("--generation"),
        "{status:?}"
    );
    assert_eq!(owner.status().health, Health::Normal);
    if fenced[0] {
        assert!(point.notes.iter().any(|note| note.contains("branch")), "{point:?}");
        let generation = point.point.generation;
        let on_branch = |point: &listing::PointInfo| point.branch && point.generation == generation;
        let branched = sites.exact(|info| on_branch(info) && info.id.number >= point.point.number).await;
        // And what came by itself meanwhile.
        assert!(branched >= 2, "{stall:?}: {branched}");
    }
    // It stays where it is over a restart, whatever stands in freed names.
    loser.stop().await;
    let again = sites.start(usize::from(!fenced[0]));
    let later = again.cut().await.unwrap().point;
    assert_eq!(Some(later.generation), status.head.map(|head| head.generation));
    assert!(again.status().fenced.is_some());
    again.stop().await;
    owner.stop().await;
    sites.unhide().await;
    assert!(sites.exact(|_| true).await >= 6);
    let latest = listing::resolve(&sites.vaults[1], "m", &listing::PointName::Latest).await.unwrap();
    assert_eq!(Some(latest.id), owner.status().head, "the newest point is the owner's");
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_stalls_at_any_request_is_fenced_and_its_branch_restores() {
    for after in [false, true] {
        let mut request = 0;
        while stalled(Stall { request, after }, false).await {
            request += 1;
        }
        assert!(request >= 3, "a look, a delta and an entry: {request}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_copy_that_stalls_at_any_request_leaves_one_line() {
    for after in [false, true] {
        let mut request = 0;
        while stalled(Stall { request, after }, true).await {
            request += 1;
        }
        assert!(request >= 4, "a look, a claim, a copy and an entry: {request}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_whose_fork_was_pruned_holds_everything() {
    let mut sites = Sites::new(87).await;
    let one = sites.start(0);
    one.cut().await.unwrap();
    one.stop().await;
    let other = sites.start(1);
    other.cut().await.unwrap();
    sites.prune(0, std::iter::empty()).await;
    let one = sites.start(0);
    let point = one.cut().await.unwrap().point;
    let header = listing::find(&sites.vaults[1], "m", point).await.unwrap();
    assert_eq!((header.parent, header.disks[0].whole), (None, true));
    assert_eq!(sites.exact(|info| info.id == point).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_told_to_refuse_stops_when_fenced() {
    let rig = Rig::new(&[("a", MIB)], 89);
    let vault = memory_vault().await;
    let mut settings = rig.settings();
    settings.on_fenced = OnFenced::Refuse;
    let old = start(settings, rig.clone(), connect(&vault));
    old.cut().await.unwrap();
    let other = Rig::new(&[("a", MIB)], 90);
    start_on(&other, &vault).cut().await.unwrap();
    let fenced = old.cut().await.unwrap_err();
    assert_eq!(fenced.kind, Kind::Fenced, "{fenced}");
    assert!(fenced.message.contains("generation 2"), "{fenced}");
    let status = old.status();
    assert_eq!((status.phase, status.disks[0].state), (Phase::Stopped, DiskState::Fenced));
    // Asking again does not help.
    old.resume().await.unwrap();
    assert_eq!(old.cut().await.unwrap_err().kind, Kind::Fenced);
}
