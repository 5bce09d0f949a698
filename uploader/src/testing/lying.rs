//! A store in memory that does not keep its word in one way.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    Attribute, CopyOptions, Error, GetOptions, GetRange, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// The way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lie {
    IgnoresCondition,
    ChecksBeforeItWrites,
    ShortensRanges,
    RefusesLarge,
    ListsLate,
    SaysForbiddenForMissing,
    ClockOff(i64),
    RefusesDeletions,
    KeepsVersions,
    Archives,
    PutsOff,
    RefusesWrites,
}

#[derive(Debug)]
pub(crate) struct Lying {
    inner: InMemory,
    lie: Lie,
    reading: AtomicU64,
}

impl Lying {
    pub fn new(lie: Lie) -> Arc<Self> {
        Arc::new(Self { inner: InMemory::new(), lie, reading: AtomicU64::new(0) })
    }

    fn tell(&self, mut got: GetResult) -> GetResult {
        if let Lie::ClockOff(seconds) = self.lie {
            got.meta.last_modified = match u64::try_from(seconds) {
                Ok(ahead) => got.meta.last_modified + Duration::from_secs(ahead),
                Err(_) => got.meta.last_modified - Duration::from_secs(seconds.unsigned_abs()),
            };
        }
        if self.lie == Lie::KeepsVersions {
            got.meta.version = Some("1".to_owned());
        }
        if self.lie == Lie::Archives {
            got.attributes.insert(Attribute::StorageClass, "GLACIER".into());
        }
        got
    }
}

fn denied(path: &Path) -> Error {
    Error::PermissionDenied { path: path.to_string(), source: "AccessDenied".into() }
}

impl fmt::Display for Lying {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.lie)
    }
}

#[async_trait::async_trait]
impl ObjectStore for Lying {
    async fn put_opts(&self, key: &Path, payload: PutPayload, mut opts: PutOptions) -> Result<PutResult> {
        match self.lie {
            Lie::RefusesWrites => return Err(denied(key)),
            Lie::RefusesLarge if payload.content_length() > 5 << 20 => {
                return Err(Error::Generic { store: "lying", source: "413 Payload Too Large".into() });
            }
            Lie::IgnoresCondition => opts.mode = PutMode::Overwrite,
            Lie::ChecksBeforeItWrites
                if opts.mode == PutMode::Create
                    && self.inner.get_opts(key, GetOptions::default()).await.is_err() =>
            {
                tokio::task::yield_now().await;
                opts.mode = PutMode::Overwrite;
            }
            _ => {}
        }
        self.inner.put_opts(key, payload, opts).await
    }

    async fn put_multipart_opts(
        &self,
        key: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(key, opts).await
    }

    async fn get_opts(&self, key: &Path, mut options: GetOptions) -> Result<GetResult> {
        if self.lie == Lie::PutsOff {
            let others = self.reading.fetch_add(1, SeqCst);
            tokio::task::yield_now().await;
            self.reading.fetch_sub(1, SeqCst);
            if others > 16 {
                return Err(Error::Generic { store: "lying", source: "503 SlowDown".into() });
            }
        }
        if let (Lie::ShortensRanges, Some(GetRange::Bounded(range))) = (self.lie, &mut options.range) {
            range.end = range.end.max(range.start + 2) - 1;
        }
        match self.inner.get_opts(key, options).await {
            Err(Error::NotFound { .. }) if self.lie == Lie::SaysForbiddenForMissing => Err(denied(key)),
            got => got.map(|got| self.tell(got)),
        }
    }

    fn delete_stream(&self, keys: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        if self.lie == Lie::RefusesDeletions {
            return keys.and_then(|key| async move { Err(denied(&key)) }).boxed();
        }
        self.inner.delete_stream(keys)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let listed = self.inner.list(prefix);
        if self.lie != Lie::ListsLate {
            return listed.boxed();
        }
        stream::once(listed.try_collect::<Vec<_>>())
            .map_ok(|mut all| {
                all.pop();
                stream::iter(all.into_iter().map(Ok))
            })
            .try_flatten()
            .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
