//! From a vault's URL to its store: `file:///folder`, `s3://bucket/prefix`, `azure://container/prefix`.
//!
//! Options carry the names that the usual `AWS_*` and `AZURE_*` variables have, in either case. Plain http is taken
//! only to this host itself, or when the caller says so. Names that no backend knows are refused, so that a typing
//! error does not become a default.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use nbd_proxy::durable::{self, Op, Step};
use nbd_proxy::{Error, Kind, Result};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::client::HttpConnector as _;
use object_store::local::LocalFileSystem;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, Certificate, ClientOptions, ObjectStore, RetryConfig};
use serde::{Deserialize, Serialize};

use super::Store;
use super::patience::Patience;
use super::versions::Undeleted;

/// Where a vault is and how to reach it.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreConfig {
    /// `file:///folder`, `s3://bucket/prefix` or `azure://container/prefix`.
    pub url: String,
    /// Credentials, endpoint, region …, named as the usual variables are: `aws_access_key_id`,
    /// `AWS_ENDPOINT_URL`, `azure_storage_account_name`, `AZURE_STORAGE_CONNECTION_STRING` …
    pub options: BTreeMap<String, String>,
    /// A PEM file with certificates to trust besides the system's.
    pub ca_file: Option<PathBuf>,
    /// Plain http to other hosts is wanted.
    pub allow_http: bool,
    /// See what was first written under each name, whatever was deleted or written over since; nothing can be written.
    pub undelete: bool,
    /// The operator's word that nobody else ever writes there: a store without conditional writes will do.
    pub single_writer: bool,
}

impl fmt::Debug for StoreConfig {
    /// Names the options, never their values: some are secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.options.keys().collect();
        f.debug_struct("StoreConfig").field("url", &self.url).field("options", &names).finish_non_exhaustive()
    }
}

/// Opens the store that `config` names. Makes no request; `create` says whether a folder may be made.
pub fn open(config: &StoreConfig, create: bool) -> Result<Store> {
    let url = config.url.trim_end_matches('/');
    let (scheme, rest) = url.split_once("://").unwrap_or((url, ""));
    let inner: Arc<dyn ObjectStore> = match scheme {
        "file" => folder(url, rest, create)?,
        "s3" if config.undelete => prefixed(undeleted(config, bucket(url, rest)?, rest)?, rest),
        _ if config.undelete => {
            return Err(invalid(url, "keeps no versions that could be looked at").remedy(
                "only S3 does: restore the objects with the store's own tools, then leave --undelete out",
            ));
        }
        "s3" => prefixed(s3(config, bucket(url, rest)?)?.0, rest),
        "azure" => prefixed(azure(config, bucket(url, rest)?)?, rest),
        _ => {
            let remedy = "use file:///FOLDER, s3://BUCKET/PREFIX or azure://CONTAINER/PREFIX";
            return Err(invalid(&config.url, "is no vault URL that Lifeboat knows").remedy(remedy));
        }
    };
    let store = Store::new(inner, url);
    Ok(if config.single_writer { store.unconditional() } else { store })
}

fn folder(url: &str, path: &str, create: bool) -> Result<Arc<dyn ObjectStore>> {
    let path = Path::new(path);
    if !path.is_absolute() {
        return Err(invalid(url, "names no absolute folder").remedy("write it as file:///FOLDER"));
    }
    match std::fs::metadata(path) {
        Ok(meta) if !meta.is_dir() => return Err(invalid(url, "is not a folder")),
        Ok(_) => {}
        // Only the last step is made: a missing parent is more often a file system that is not mounted.
        Err(_) if create => {
            match durable::take(Step::VaultFolder, Op::Create, || std::fs::create_dir(path)) {
                // Another machine's loop was faster.
                Err(_) if path.is_dir() => {}
                made => made.map_err(|e| Error::io("create the vault's folder", path, e))?,
            }
        }
        Err(_) => {
            let missing = Error::new(Kind::NotFound, url, "there is no vault: the folder does not exist");
            return Err(missing.remedy("check the URL, and that its file system is mounted"));
        }
    }
    let opened = LocalFileSystem::new_with_prefix(path).map_err(|e| refused(url, e))?;
    Ok(Arc::new(opened.with_fsync(true)))
}

fn bucket<'a>(url: &str, rest: &'a str) -> Result<&'a str> {
    match rest.split('/').next() {
        Some(bucket) if !bucket.is_empty() => Ok(bucket),
        _ => Err(invalid(url, "names no bucket or container")),
    }
}

fn prefixed<S: ObjectStore>(store: S, rest: &str) -> Arc<dyn ObjectStore> {
    match rest.split_once('/').map(|(_, prefix)| prefix.trim_matches('/')) {
        Some(prefix) if !prefix.is_empty() => Arc::new(PrefixStore::new(store, prefix)),
        _ => Arc::new(store),
    }
}

/// The bucket, its region, and how it is spoken to.
fn s3(config: &StoreConfig, bucket: &str) -> Result<(AmazonS3, String, ClientOptions)> {
    let mut known = Vec::new();
    let mut http = plain_http_wanted(config);
    for (name, value) in &config.options {
        match AmazonS3ConfigKey::from_str(&name.to_ascii_lowercase()) {
            Ok(_) if is_allow_http(name) => {}
            Ok(key) => {
                if matches!(key, AmazonS3ConfigKey::Endpoint | AmazonS3ConfigKey::S3Endpoint) {
                    http |= check_endpoint(config, value)?;
                }
                known.push((key, value));
            }
            Err(_) => unknown_option(name, "aws_", "azure_")?,
        }
    }
    let client = client(config, http)?;
    let mut builder = AmazonS3Builder::new().with_client_options(client.clone());
    for (key, value) in known {
        builder = builder.with_config(key, value);
    }
    let region = builder.get_config_value(&AmazonS3ConfigKey::Region);
    let builder = builder
        .with_http_connector(Patience)
        .with_bucket_name(bucket)
        .with_conditional_put(S3ConditionalPut::ETagMatch);
    let store = builder.with_retry(retries()).build().map_err(|e| refused(&config.url, e))?;
    Ok((store, region.unwrap_or_else(|| "us-east-1".to_owned()), client))
}

fn undeleted(config: &StoreConfig, bucket: &str, rest: &str) -> Result<Undeleted> {
    let (store, region, client) = s3(config, bucket)?;
    let http = Patience.connect(&client).map_err(|e| refused(&config.url, e))?;
    let prefix = rest.split_once('/').map_or("", |(_, prefix)| prefix.trim_matches('/'));
    Ok(Undeleted::new(store, region, http, prefix.to_owned()))
}

fn azure(config: &StoreConfig, container: &str) -> Result<impl ObjectStore> {
    let mut known = Vec::new();
    let mut http = plain_http_wanted(config);
    for (name, value) in azure_options(config)? {
        match AzureConfigKey::from_str(&name.to_ascii_lowercase()) {
            Ok(_) if is_allow_http(&name) => {}
            Ok(key) => {
                if key == AzureConfigKey::Endpoint {
                    http |= check_endpoint(config, &value)?;
                }
                // The emulator listens on this host.
                http |= key == AzureConfigKey::UseEmulator && value.eq_ignore_ascii_case("true");
                known.push((key, value));
            }
            Err(_) => unknown_option(&name, "azure_", "aws_")?,
        }
    }
    let mut builder = MicrosoftAzureBuilder::new().with_client_options(client(config, http)?);
    for (key, value) in known {
        builder = builder.with_config(key, value);
    }
    let builder = builder.with_http_connector(Patience).with_container_name(container);
    builder.with_retry(retries()).build().map_err(|e| refused(&config.url, e))
}

/// The options with a connection string, if there is one, taken apart.
fn azure_options(config: &StoreConfig) -> Result<Vec<(String, String)>> {
    let mut options = Vec::new();
    for (name, value) in &config.options {
        if !name.eq_ignore_ascii_case("azure_storage_connection_string") {
            options.push((name.clone(), value.clone()));
            continue;
        }
        for part in value.split(';').filter(|part| !part.trim().is_empty()) {
            let Some((field, value)) = part.split_once('=') else {
                return Err(invalid(name, "is no connection string: a part has no '='"));
            };
            let key = match field.trim() {
                "AccountName" => "azure_storage_account_name",
                "AccountKey" => "azure_storage_account_key",
                "BlobEndpoint" => "azure_storage_endpoint",
                "SharedAccessSignature" => "azure_storage_sas_key",
                "UseDevelopmentStorage" => "azure_storage_use_emulator",
                _ => continue,
            };
            options.push((key.to_owned(), value.trim().to_owned()));
        }
    }
    Ok(options)
}

/// Variables of the other cloud are often set too; anything else unknown is a mistake.
fn unknown_option(name: &str, own: &str, other: &str) -> Result<()> {
    let lower = name.to_ascii_lowercase();
    let from_environment = name.chars().all(|c| !c.is_ascii_lowercase());
    if lower.starts_with(other) || (from_environment && lower.starts_with(own)) {
        return Ok(());
    }
    Err(invalid(name, "is no option of this kind of vault").remedy("see the table of vault options"))
}

fn is_allow_http(name: &str) -> bool {
    name.to_ascii_lowercase().ends_with("allow_http")
}

fn plain_http_wanted(config: &StoreConfig) -> bool {
    let in_options =
        |(name, value): (&String, &String)| is_allow_http(name) && value.eq_ignore_ascii_case("true");
    config.allow_http || config.options.iter().any(in_options)
}

/// Whether plain http has to be allowed for `endpoint`; refuses it to other hosts.
fn check_endpoint(config: &StoreConfig, endpoint: &str) -> Result<bool> {
    let Some(rest) = endpoint.strip_prefix("http://") else { return Ok(false) };
    let host = rest.split(['/', '?']).next().unwrap_or_default();
    let host = if host.starts_with('[') {
        host.split(']').next().unwrap_or_default().trim_start_matches('[')
    } else {
        host.split(':').next().unwrap_or_default()
    };
    let here = host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
    if here || plain_http_wanted(config) {
        return Ok(true);
    }
    let message = "would carry disks and credentials over plain http to another host";
    Err(invalid(endpoint, message).remedy("use https, or set allow_http = true in [vault]"))
}

fn client(config: &StoreConfig, http: bool) -> Result<ClientOptions> {
    // A 32 MiB object has to fit through a slow line within the timeout.
    let mut options = ClientOptions::new()
        .with_allow_http(http)
        .with_connect_timeout(Duration::from_secs(5))
        .with_timeout(Duration::from_secs(300));
    if let Some(path) = &config.ca_file {
        let pem = std::fs::read(path).map_err(|e| Error::io("read ca_file", path, e))?;
        let object = path.display().to_string();
        let certificates = Certificate::from_pem_bundle(&pem)
            .map_err(|e| invalid(&object, "is no PEM file of certificates").source(e))?;
        if certificates.is_empty() {
            return Err(invalid(&object, "holds no certificate in PEM form"));
        }
        for certificate in certificates {
            options = options.with_root_certificate(certificate);
        }
    }
    Ok(options)
}

fn retries() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(2),
            base: 2.0,
        },
        max_retries: 2,
        retry_timeout: Duration::from_secs(10),
    }
}

fn invalid(object: &str, message: &str) -> Error {
    Error::new(Kind::InvalidInput, object, message)
}

fn refused(url: &str, error: object_store::Error) -> Error {
    let text = error.to_string();
    let remedy = if text.contains("Account must be specified") {
        "set AZURE_STORAGE_ACCOUNT_NAME, or azure_storage_account_name in [vault.options]"
    } else {
        "check the vault's url and options"
    };
    invalid(url, &format!("cannot open the vault: {text}")).remedy(remedy).source(error)
}
