//! An object store, with everything that Lifeboat needs of one and nothing more.
//!
//! Objects are immutable: a name is created once and never written again. [`Store::create`] decides races (whoever
//! creates the name wins), [`Store::put`] is for names that nobody else can know. A folder, S3 and Azure Blob behave
//! alike behind it; errors arrive as the few kinds of [`nbd_proxy::Error`] with the object's full name. Each request
//! is counted, because a point's price is part of its result.
//!
//! The library below retries a little by itself (seconds); the long retries are the replication loop's.

mod errors;
pub mod limit;
mod open;
mod patience;
mod versions;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use futures_util::stream::BoxStream;
use jiff::Timestamp;
use nbd_proxy::{Error, Kind, Result};
use object_store::path::Path;
use object_store::{
    Attribute, GetOptions, GetRange, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutPayload,
};
use serde::{Deserialize, Serialize};

use limit::Limit;
pub use open::{StoreConfig, open};
#[cfg(test)]
pub(crate) use patience::LeftAlone;
pub(crate) use patience::asked_to_wait;

/// Requests made and bytes moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Objects written.
    pub puts: u64,
    /// Objects, or ranges of them, read.
    pub gets: u64,
    /// Listings.
    pub lists: u64,
    /// Bytes of the objects written.
    pub bytes_up: u64,
    /// Bytes read.
    pub bytes_down: u64,
}

impl Counts {
    /// What was added since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            puts: self.puts - earlier.puts,
            gets: self.gets - earlier.gets,
            lists: self.lists - earlier.lists,
            bytes_up: self.bytes_up - earlier.bytes_up,
            bytes_down: self.bytes_down - earlier.bytes_down,
        }
    }
}

impl std::ops::Add for Counts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            puts: self.puts + other.puts,
            gets: self.gets + other.gets,
            lists: self.lists + other.lists,
            bytes_up: self.bytes_up + other.bytes_up,
            bytes_down: self.bytes_down + other.bytes_down,
        }
    }
}

#[derive(Debug, Default)]
struct Counters {
    puts: AtomicU64,
    gets: AtomicU64,
    lists: AtomicU64,
    bytes_up: AtomicU64,
    bytes_down: AtomicU64,
}

/// An object as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name in the vault.
    pub key: String,
    /// Its size in bytes.
    pub size: u64,
    /// When it was written, by the store's clock.
    pub modified: Timestamp,
}

impl From<object_store::ObjectMeta> for Listed {
    fn from(meta: object_store::ObjectMeta) -> Self {
        Self { modified: modified(&meta), key: meta.location.into(), size: meta.size }
    }
}

/// When an object was written, by the store's clock.
fn modified(meta: &object_store::ObjectMeta) -> Timestamp {
    let (second, part) = (meta.last_modified.timestamp(), meta.last_modified.timestamp_subsec_nanos());
    // A time that no store can mean is taken for a late one: what is young is never deleted.
    Timestamp::new(second, i32::try_from(part).unwrap_or(0)).unwrap_or(Timestamp::MAX)
}

/// What a store says of an object besides its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// When it was written, by the store's clock.
    pub modified: Timestamp,
    /// Names this version of it, where the store keeps several.
    pub version: Option<String>,
    /// Where the store keeps it, if it says so.
    pub storage_class: Option<String>,
}

/// A place for objects; cheap to clone, clones share their counters.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<dyn ObjectStore>,
    url: Arc<str>,
    /// Conditional writes are relied on.
    conditional: bool,
    limit: Option<Arc<Limit>>,
    counters: Arc<Counters>,
}

impl Store {
    /// Wraps `inner`; `url` is how errors name it.
    pub fn new(inner: Arc<dyn ObjectStore>, url: &str) -> Self {
        Self {
            inner,
            url: url.trim_end_matches('/').into(),
            conditional: true,
            limit: None,
            counters: Arc::default(),
        }
    }

    /// The same store, of which conditional writes are not expected: a name is looked up before it is written. Right as long as nobody else
    /// writes.
    #[must_use]
    pub fn unconditional(self) -> Self {
        Self { conditional: false, ..self }
    }

    /// The same store, written to no faster than `limit` allows.
    #[must_use]
    pub fn limited(self, limit: Arc<Limit>) -> Self {
        Self { limit: Some(limit), ..self }
    }

    /// Whether conditional writes are relied on.
    pub fn is_conditional(&self) -> bool {
        self.conditional
    }

    /// The same store with counters of its own, starting at zero.
    #[must_use]
    pub fn counted_apart(&self) -> Self {
        Self { counters: Arc::default(), ..self.clone() }
    }

    /// How people name this store.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// How people name the object `key`.
    pub fn name_of(&self, key: &str) -> String {
        format!("{}/{key}", self.url)
    }

    /// What was asked of the store through this value and its clones.
    pub fn counts(&self) -> Counts {
        let of = |counter: &AtomicU64| counter.load(Relaxed);
        let c = &self.counters;
        Counts {
            puts: of(&c.puts),
            gets: of(&c.gets),
            lists: of(&c.lists),
            bytes_up: of(&c.bytes_up),
            bytes_down: of(&c.bytes_down),
        }
    }

    /// Writes an object under a name that no other writer can know, so that writing it twice is harmless.
    pub async fn put(&self, key: &str, payload: PutPayload) -> Result<()> {
        match self.write(key, payload, PutMode::Overwrite).await {
            // What may not be changed was written by an attempt whose reply was lost. Under another name it will do.
            Err(mut e) if e.kind == Kind::Exists => {
                e.kind = Kind::Unavailable;
                Err(e)
            }
            written => written,
        }
    }

    /// Writes an object unless the name is taken, which is [`Kind::Exists`].
    ///
    /// That answer means *unknown*: the object may be what an earlier attempt of ours wrote, whose reply was lost.
    pub async fn create(&self, key: &str, payload: PutPayload) -> Result<()> {
        if self.conditional {
            return self.write(key, payload, PutMode::Create).await;
        }
        match self.describe(key).await {
            Ok(_) => Err(Error::new(Kind::Exists, self.name_of(key), "cannot write: the name is taken")),
            Err(e) if is_missing_object(&e) => self.write(key, payload, PutMode::Overwrite).await,
            Err(e) => Err(e),
        }
    }

    async fn write(&self, key: &str, payload: PutPayload, mode: PutMode) -> Result<()> {
        self.counters.puts.fetch_add(1, Relaxed);
        let len = payload.content_length() as u64;
        if let Some(limit) = &self.limit {
            limit.take(len).await;
        }
        let options = PutOptions { mode, ..PutOptions::default() };
        let put = self.inner.put_opts(&Path::from(key), payload, options).await;
        put.map_err(|e| self.error("write", key, e))?;
        self.counters.bytes_up.fetch_add(len, Relaxed);
        Ok(())
    }

    /// A whole object, if it is not larger than `limit` bytes.
    pub async fn get(&self, key: &str, limit: u64) -> Result<Bytes> {
        self.counters.gets.fetch_add(1, Relaxed);
        let got = self.inner.get_opts(&Path::from(key), GetOptions::default()).await;
        let got = got.map_err(|e| self.error("read", key, e))?;
        let size = got.meta.size;
        if size > limit {
            let message = format!("is {size} bytes long; nothing that belongs here is longer than {limit}");
            return Err(Error::corrupt(self.name_of(key), message));
        }
        let bytes = got.bytes().await.map_err(|e| self.error("read", key, e))?;
        self.counters.bytes_down.fetch_add(bytes.len() as u64, Relaxed);
        self.check_length(key, &bytes, size)?;
        Ok(bytes)
    }

    /// Exactly `range` of an object; a shorter answer is corruption.
    pub async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        let len = range.end.saturating_sub(range.start);
        if len == 0 {
            return Ok(Bytes::new());
        }
        let bytes = self.ranged(key, range).await?;
        self.check_length(key, &bytes, len)?;
        Ok(bytes)
    }

    /// The first `len` bytes of an object, or all of it if it is shorter.
    pub async fn get_start(&self, key: &str, len: u64) -> Result<Bytes> {
        self.ranged(key, 0..len).await
    }

    async fn ranged(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        self.counters.gets.fetch_add(1, Relaxed);
        let options = GetOptions { range: Some(GetRange::Bounded(range)), ..GetOptions::default() };
        let read = async { self.inner.get_opts(&Path::from(key), options).await?.bytes().await };
        let bytes = read.await.map_err(|e| self.error("read", key, e))?;
        self.counters.bytes_down.fetch_add(bytes.len() as u64, Relaxed);
        Ok(bytes)
    }

    fn check_length(&self, key: &str, bytes: &Bytes, expected: u64) -> Result<()> {
        if bytes.len() as u64 == expected {
            return Ok(());
        }
        let message = format!("is truncated: {} bytes came where {expected} must be", bytes.len());
        Err(Error::corrupt(self.name_of(key), message))
    }

    /// What the store says of an object.
    pub async fn describe(&self, key: &str) -> Result<Described> {
        self.counters.gets.fetch_add(1, Relaxed);
        let options = GetOptions { head: true, ..GetOptions::default() };
        let got = self.inner.get_opts(&Path::from(key), options).await;
        let got = got.map_err(|e| self.error("look at", key, e))?;
        let modified = modified(&got.meta);
        let storage_class =
            got.attributes.get(&Attribute::StorageClass).map(|class| class.as_ref().to_owned());
        Ok(Described { modified, version: got.meta.version, storage_class })
    }

    /// Everything below `folder`, sorted by name.
    pub async fn list(&self, folder: &str) -> Result<Vec<Listed>> {
        self.listed(folder, self.inner.list(Some(&Path::from(folder)))).await
    }

    /// What is below `folder` and sorts after `key`, sorted by name.
    pub async fn list_after(&self, folder: &str, key: &str) -> Result<Vec<Listed>> {
        self.listed(folder, self.inner.list_with_offset(Some(&Path::from(folder)), &Path::from(key))).await
    }

    async fn listed(
        &self,
        folder: &str,
        found: BoxStream<'static, object_store::Result<object_store::ObjectMeta>>,
    ) -> Result<Vec<Listed>> {
        self.counters.lists.fetch_add(1, Relaxed);
        let mut found: Vec<Listed> = match found.map_ok(Listed::from).try_collect().await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) if self.is_folder() => Vec::new(),
            Err(e) => return Err(self.error("list", folder, e)),
        };
        found.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }

    /// The names of the folders directly in `folder`, sorted.
    pub async fn list_folders(&self, folder: &str) -> Result<Vec<String>> {
        self.counters.lists.fetch_add(1, Relaxed);
        let found = match self.inner.list_with_delimiter(Some(&Path::from(folder))).await {
            Ok(found) => found.common_prefixes,
            Err(object_store::Error::NotFound { .. }) if self.is_folder() => Vec::new(),
            Err(e) => return Err(self.error("list", folder, e)),
        };
        let name = |path: &Path| path.filename().map(str::to_owned);
        let mut names: Vec<String> = found.iter().filter_map(name).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Removes an object; it need not exist.
    pub async fn delete(&self, key: &str) -> Result<()> {
        match self.inner.delete(&Path::from(key)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(self.error("delete", key, e)),
        }
    }

    /// In a plain folder a listing of what was never written answers "not found"; elsewhere that means no bucket.
    fn is_folder(&self) -> bool {
        self.url.starts_with("file:")
    }

    fn error(&self, what: &str, key: &str, error: object_store::Error) -> Error {
        errors::translate(what, &self.url, &self.name_of(key), error)
    }
}

/// Whether `error` says that the vault has no such object, as opposed to no such bucket.
pub fn is_missing_object(error: &Error) -> bool {
    error.kind == Kind::NotFound && error.message.ends_with(errors::NO_SUCH_OBJECT)
}

#[cfg(test)]
mod tests;
