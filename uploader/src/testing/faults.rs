//! A store that fails as it is told.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use futures_util::stream::BoxStream;
use futures_util::{FutureExt as _, StreamExt as _};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt as _, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing: it works.
    None,
    /// It fails and nothing happened.
    Before,
    /// It happens, and the reply is lost.
    After,
    /// The reply never comes; nothing happened.
    HangBefore,
    /// The reply never comes; it happened.
    HangAfter,
    /// The reply never comes; it happens when [`Faulty::land`] says so.
    Late,
    /// It works, but what was late happens first.
    AfterLate,
    /// Refused for want of rights.
    Denied,
    /// The store says that there is no such object.
    Missing,
}

/// What is asked of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    Put,
    Get,
    Delete,
}

type Plan = Arc<dyn Fn(u64, Ask, &str) -> Fault + Send + Sync>;

/// An in-memory store under a plan: the number, kind and key of a request decide its fate. Listings are never disturbed.
pub(crate) struct Faulty {
    pub inner: Arc<InMemory>,
    plan: Plan,
    requests: Arc<AtomicU64>,
    pub hung: tokio::sync::Notify,
    late: Mutex<Vec<(Path, PutPayload, PutOptions)>>,
}

impl Faulty {
    pub fn new(
        inner: Arc<InMemory>,
        plan: impl Fn(u64, Ask, &str) -> Fault + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            inner,
            plan: Arc::new(plan),
            requests: Arc::default(),
            hung: tokio::sync::Notify::new(),
            late: Mutex::default(),
        })
    }

    /// Makes the puts happen that were late; returns how many there were.
    pub async fn land(&self) -> usize {
        let late = std::mem::take(&mut *self.late.lock().unwrap());
        let count = late.len();
        for (location, payload, opts) in late {
            self.inner.put_opts(&location, payload, opts).await.unwrap();
        }
        count
    }

    fn fate(&self, ask: Ask, key: &Path) -> Fault {
        (self.plan)(self.requests.fetch_add(1, SeqCst), ask, key.as_ref())
    }

    /// How many requests were made, listings not counted.
    pub fn requests(&self) -> u64 {
        self.requests.load(SeqCst)
    }

    async fn decide<T>(
        &self,
        fate: Fault,
        key: &Path,
        request: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        let lost = || Error::Generic { store: "faulty", source: "connection reset".into() };
        match fate {
            Fault::None | Fault::AfterLate => request.await,
            Fault::Before => Err(lost()),
            Fault::After => {
                request.await?;
                Err(lost())
            }
            Fault::HangBefore | Fault::Late => self.hang().await,
            Fault::HangAfter => {
                let _ = request.await;
                self.hang().await
            }
            Fault::Denied => {
                Err(Error::PermissionDenied { path: key.to_string(), source: "AccessDenied".into() })
            }
            Fault::Missing => Err(Error::NotFound { path: key.to_string(), source: "gone".into() }),
        }
    }

    async fn hang<T>(&self) -> T {
        self.hung.notify_one();
        std::future::pending().await
    }
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faulty")
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faulty")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let fate = self.fate(Ask::Put, location);
        if fate == Fault::Late {
            self.late.lock().unwrap().push((location.clone(), payload.clone(), opts.clone()));
        }
        if fate == Fault::AfterLate {
            self.land().await;
        }
        self.decide(fate, location, self.inner.put_opts(location, payload, opts)).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.decide(self.fate(Ask::Get, location), location, self.inner.get_opts(location, options).boxed())
            .await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (inner, plan, requests) =
            (Arc::clone(&self.inner), Arc::clone(&self.plan), Arc::clone(&self.requests));
        let delete = move |location: Result<Path>| {
            let (inner, plan, requests) = (Arc::clone(&inner), Arc::clone(&plan), Arc::clone(&requests));
            async move {
                let location = location?;
                let lost = || Error::Generic { store: "faulty", source: "connection reset".into() };
                let denied =
                    || Error::PermissionDenied { path: location.to_string(), source: "AccessDenied".into() };
                match plan(requests.fetch_add(1, SeqCst), Ask::Delete, location.as_ref()) {
                    Fault::Before => Err(lost()),
                    Fault::After => inner.delete(&location).await.and(Err(lost())),
                    Fault::Denied => Err(denied()),
                    Fault::HangBefore => std::future::pending().await,
                    _ => inner.delete(&location).await.map(|()| location),
                }
            }
        };
        locations.then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
