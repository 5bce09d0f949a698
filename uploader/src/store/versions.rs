//! A bucket that keeps versions, seen as if nothing in it had ever been deleted or written over.
//!
//! Who deletes a locked bucket's objects only puts markers in front of them, and who writes over them only adds versions: what was
//! written first is still there until its retention time is over. Names in a vault are written once, so the *oldest* version of a name
//! is what Lifeboat wrote. This view shows those, read-only, for a restore after somebody has emptied the vault.
//!
//! All versions are listed once, when the view is first used: a page of a thousand each request.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use object_store::aws::{AmazonS3, AwsAuthorizer};
use object_store::client::{HttpClient, HttpRequest, HttpRequestBody};
use object_store::path::Path;
use object_store::signer::Signer as _;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use serde::Deserialize;
use tokio::sync::OnceCell;

const STORE: &str = "S3";

/// See the module.
pub(super) struct Undeleted(Arc<Versions>);

struct Versions {
    inner: AmazonS3,
    region: String,
    http: HttpClient,
    /// What versions are looked for below.
    prefix: String,
    first: OnceCell<BTreeMap<Path, ObjectMeta>>,
}

impl Undeleted {
    /// The view of what is below `prefix` in the bucket of `inner`.
    pub fn new(inner: AmazonS3, region: String, http: HttpClient, prefix: String) -> Self {
        Self(Arc::new(Versions { inner, region, http, prefix, first: OnceCell::new() }))
    }
}

impl Versions {
    async fn first(&self) -> Result<&BTreeMap<Path, ObjectMeta>> {
        self.first.get_or_try_init(|| self.list_versions()).await
    }

    async fn list_versions(&self) -> Result<BTreeMap<Path, ObjectMeta>> {
        let mut first: BTreeMap<Path, ObjectMeta> = BTreeMap::new();
        let mut from = (String::new(), String::new());
        loop {
            let page = self.page(&from).await?;
            for version in page.versions {
                let meta = version.into_meta()?;
                let known = first.entry(meta.location.clone()).or_insert_with(|| meta.clone());
                // Newest first: of those of the same second the last one listed is the oldest.
                if meta.last_modified <= known.last_modified {
                    *known = meta;
                }
            }
            if !page.is_truncated {
                return Ok(first);
            }
            from =
                (page.next_key_marker.unwrap_or_default(), page.next_version_id_marker.unwrap_or_default());
        }
    }

    async fn page(&self, from: &(String, String)) -> Result<Page> {
        let mut query = vec![("versions", ""), ("prefix", self.prefix.as_str())];
        if !from.0.is_empty() {
            query.push(("key-marker", &from.0));
        }
        if !from.1.is_empty() {
            query.push(("version-id-marker", &from.1));
        }
        let query: Vec<String> =
            query.iter().map(|(name, value)| format!("{name}={}", escape(value))).collect();
        // The library below knows the bucket's address and tells it only in a signed URL.
        let signed = self.inner.signed_url(Method::GET, &Path::from("x"), Duration::from_secs(60)).await?;
        let address = signed.as_str().split('?').next().unwrap_or_default().trim_end_matches('x');
        let uri = format!("{address}?{}", query.join("&"));
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.uri_mut() = uri.parse().map_err(generic)?;
        let credential = self.inner.credentials().get_credential().await?;
        AwsAuthorizer::new(&credential, "s3", &self.region).try_authorize(&mut request, None)?;
        let response = self.http.execute(request).await.map_err(generic)?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(generic)?.to_bytes();
        if status != StatusCode::OK {
            return Err(refused(status, &body));
        }
        let text = String::from_utf8_lossy(&body);
        quick_xml::de::from_str(&text).map_err(generic)
    }
}

fn refused(status: StatusCode, body: &Bytes) -> Error {
    let text = format!("listing versions: {status}: {}", String::from_utf8_lossy(body));
    if status == StatusCode::FORBIDDEN {
        return Error::PermissionDenied { path: String::new(), source: text.into() };
    }
    generic(text)
}

fn generic(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Generic { store: STORE, source: error.into() }
}

/// As it must stand in a query, which is what is signed.
fn escape(value: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(byte);
    value
        .bytes()
        .map(|byte| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Page {
    #[serde(default)]
    is_truncated: bool,
    next_key_marker: Option<String>,
    next_version_id_marker: Option<String>,
    #[serde(default, rename = "Version")]
    versions: Vec<Version>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Version {
    key: String,
    version_id: String,
    last_modified: String,
    size: u64,
}

impl Version {
    fn into_meta(self) -> Result<ObjectMeta> {
        Ok(ObjectMeta {
            location: Path::parse(self.key).map_err(generic)?,
            last_modified: self
                .last_modified
                .parse()
                .map_err(|e| generic(format!("{}: {e}", self.last_modified)))?,
            size: self.size,
            e_tag: None,
            version: Some(self.version_id),
        })
    }
}

impl fmt::Debug for Undeleted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Undeleted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the first versions in {}", self.0.inner)
    }
}

/// As from a bucket that we may only read: whoever can do without writing does.
fn read_only<T>() -> Result<T> {
    let source = "what was deleted or written over is only looked at: leave --undelete out to write".into();
    Err(Error::PermissionDenied { path: String::new(), source })
}

#[async_trait::async_trait]
impl ObjectStore for Undeleted {
    async fn put_opts(&self, _: &Path, _: PutPayload, _: PutOptions) -> Result<PutResult> {
        read_only()
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        read_only()
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let Some(meta) = self.0.first().await?.get(location) else {
            return Err(Error::NotFound {
                path: location.to_string(),
                source: "it was never written".into(),
            });
        };
        let version = meta.version.clone();
        self.0.inner.get_opts(location, GetOptions { version, ..options }).await
    }

    fn delete_stream(&self, _: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        stream::once(async { read_only() }).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (versions, prefix) = (Arc::clone(&self.0), prefix.cloned());
        let listed = async move {
            let inside = |meta: &&ObjectMeta| {
                prefix.as_ref().is_none_or(|prefix| meta.location.prefix_matches(prefix))
            };
            let found: Vec<_> = versions.first().await?.values().filter(inside).cloned().map(Ok).collect();
            Ok::<_, Error>(stream::iter(found))
        };
        stream::once(listed).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let root = Path::default();
        let prefix = prefix.unwrap_or(&root);
        let mut result = ListResult {
            objects: Vec::new(),
            common_prefixes: Vec::new(),
            extensions: object_store::Extensions::default(),
        };
        let all = self.0.first().await?.range(prefix..);
        for (location, meta) in all {
            let Some(mut parts) = location.prefix_match(prefix) else { continue };
            let Some(next) = parts.next() else { continue };
            if parts.next().is_none() {
                result.objects.push(meta.clone());
            } else {
                let folder = prefix.clone().join(next);
                if result.common_prefixes.last() != Some(&folder) {
                    result.common_prefixes.push(folder);
                }
            }
        }
        Ok(result)
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        read_only()
    }
}
