//! A store whose clock the test sets.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use jiff::Timestamp;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// Stamps objects with the time that the test says.
pub(crate) struct Clocked<S> {
    inner: Arc<S>,
    now: Mutex<Timestamp>,
    written: Arc<Mutex<HashMap<Path, Timestamp>>>,
}

impl<S> Clocked<S> {
    pub fn new(inner: Arc<S>, now: Timestamp) -> Arc<Self> {
        Arc::new(Self { inner, now: Mutex::new(now), written: Arc::default() })
    }

    pub fn set(&self, now: Timestamp) {
        *self.now.lock().unwrap() = now;
    }

    pub fn now(&self) -> Timestamp {
        *self.now.lock().unwrap()
    }
}

/// `meta` as if it had been written when the test says; what was never stamped is as old as can be.
fn stamp(written: &Mutex<HashMap<Path, Timestamp>>, mut meta: ObjectMeta) -> ObjectMeta {
    let time = written.lock().unwrap().get(&meta.location).copied().unwrap_or(Timestamp::UNIX_EPOCH);
    meta.last_modified -= Duration::from_nanos(meta.last_modified.timestamp_subsec_nanos().into());
    let real = Timestamp::new(meta.last_modified.timestamp(), 0).unwrap();
    let ahead = time.duration_since(real);
    let by = Duration::from_secs(ahead.abs().as_secs().unsigned_abs());
    meta.last_modified = if ahead.is_negative() { meta.last_modified - by } else { meta.last_modified + by };
    meta
}

impl<S> fmt::Debug for Clocked<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clocked")
    }
}

impl<S> fmt::Display for Clocked<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clocked")
    }
}

#[async_trait::async_trait]
impl<S: ObjectStore> ObjectStore for Clocked<S> {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let put = self.inner.put_opts(location, payload, opts).await?;
        self.written.lock().unwrap().insert(location.clone(), self.now());
        Ok(put)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let mut got = self.inner.get_opts(location, options).await?;
        got.meta = stamp(&self.written, got.meta);
        Ok(got)
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let written = Arc::clone(&self.written);
        self.inner.list(prefix).map(move |meta| meta.map(|meta| stamp(&written, meta))).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
