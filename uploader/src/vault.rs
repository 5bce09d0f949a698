//! A vault: a store with Lifeboat's marker in it.
//!
//! The marker, `lifeboat.json`, is created once, if absent, and never changed. It carries the format version, so that
//! an older program refuses what it would misread; the vault's id, so that a local state meant for another vault is
//! noticed even when the URL is the same; and how content is encrypted. If it is, a *check value* marks all that under the data
//! key: a wrong key, or a marker that somebody changed, is noticed before anything else is read.
//!
//! ```text
//! {"format":1, "vault":"<uuid>", "encryption":"none" or "aes-256-gcm", "created":"<time>",
//!  "check":{"salt":"<32 hex>", "mark":"<32 hex>"}}      of an encrypted vault: marks the text "format vault encryption created"
//! ```
//!
//! How a vault is opened and what its marker says must agree. Who has a key and finds the marker saying "not encrypted" stops: it
//! may not be his vault.

use jiff::Timestamp;
use nbd_proxy::durable::{self, Op, Step};
use nbd_proxy::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::cipher::{Cipher, DataKey, HEADER, Named, Salt, ring};
use crate::digest::Digest;
use crate::keys::MARKER;
use crate::store::{self, Store, StoreConfig};

pub use crate::cipher::{Encryption, Secret};

/// The format of everything in the vault that this program writes.
pub const FORMAT: u32 = 1;

const MARKER_LIMIT: u64 = 64 << 10;

#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    format: u32,
    vault: Uuid,
    encryption: Encryption,
    created: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    check: Option<CheckValue>,
}

/// The mark of the marker's other fields.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct CheckValue {
    salt: Salt,
    mark: Digest,
}

impl Marker {
    fn marked(&self) -> Vec<u8> {
        format!("{} {} {} {}", self.format, self.vault, self.encryption, self.created).into_bytes()
    }

    fn check_value(&self, cipher: &Cipher) -> Result<Option<CheckValue>> {
        let (salt, units) = cipher.sealer(MARKER)?;
        let of = |salt| Ok(CheckValue { salt, mark: units.mark(HEADER, &self.marked())? });
        salt.map(of).transpose()
    }

    fn fits(&self, cipher: &Cipher) -> Result<bool> {
        let Some(CheckValue { salt, mark }) = self.check else { return Ok(false) };
        let units = cipher.opener(MARKER, MARKER, Some(salt))?;
        Ok(units.is_marked(HEADER, &self.marked(), mark))
    }
}

/// How the content of a vault that is to be made will be protected; one that is there must be protected like that.
#[derive(Clone, Debug)]
pub enum Protection {
    /// Not at all, which is the operator's written word.
    None,
    /// Encrypted, and this opens it.
    Secret(Secret),
}

impl Protection {
    fn secret(&self) -> Option<&Secret> {
        match self {
            Self::None => None,
            Self::Secret(secret) => Some(secret),
        }
    }
}

/// An opened vault; cheap to clone.
#[derive(Clone, Debug)]
pub struct Vault {
    /// Where its objects are.
    pub store: Store,
    /// Drawn when the vault was made.
    pub id: Uuid,
    /// What seals and opens its content.
    pub cipher: Cipher,
    /// Which of its keys opened it.
    pub key_id: Option<String>,
}

impl Vault {
    /// The object `key` of this vault, to be sealed or opened.
    pub fn named(&self, key: &str) -> Named {
        Named { cipher: self.cipher.clone(), key: key.to_owned(), object: self.store.name_of(key) }
    }

    /// Opens the vault that `config` names; one that is not there is [`Kind::NotFound`].
    pub async fn open(config: &StoreConfig, secret: Option<&Secret>) -> Result<Self> {
        Self::at(store::open(config, false)?, secret).await
    }

    /// Opens the vault that `config` names, making it if there is none.
    pub async fn open_or_create(config: &StoreConfig, protection: &Protection) -> Result<Self> {
        Self::at_or_create(store::open(config, true)?, protection).await
    }

    /// Opens the vault in `store`.
    pub async fn at(store: Store, secret: Option<&Secret>) -> Result<Self> {
        match store.get(MARKER, MARKER_LIMIT).await {
            Ok(bytes) => Self::from_marker(store, &bytes, secret).await,
            Err(e) if store::is_missing_object(&e) => {
                let missing = Error::new(Kind::NotFound, store.url(), "there is no vault at this URL");
                Err(missing.remedy("check the URL; the first machine that replicates there makes the vault"))
            }
            Err(e) => Err(e),
        }
    }

    /// Opens the vault in `store`, making it if there is none. Of two who make it at once, one wins and both open that.
    pub async fn at_or_create(store: Store, protection: &Protection) -> Result<Self> {
        match Self::at(store.clone(), protection.secret()).await {
            Err(e) if e.kind == Kind::NotFound && e.object == store.url() && !is_bucket(&e) => {}
            opened => return opened,
        }
        let encryption = match protection {
            Protection::None => Encryption::None,
            Protection::Secret(_) => Encryption::Aes256Gcm,
        };
        let (vault, created) = (Uuid::new_v4(), Timestamp::now());
        let mut marker = Marker { format: FORMAT, vault, encryption, created, check: None };
        let mut made = Self { store: store.clone(), id: vault, cipher: Cipher::None, key_id: None };
        if let Some(secret) = protection.secret() {
            made.cipher = Cipher::aes(DataKey::draw()?);
            made.key_id = Some(ring::add(&made, secret, "").await?.id);
        }
        marker.check = marker.check_value(&made.cipher)?;
        let bytes = serde_json::to_vec_pretty(&marker).map_err(|e| unwritable(&store, e))?;
        match durable::request(Step::MarkerPut, Op::Put, store.create(MARKER, bytes.into())).await {
            Ok(()) => Ok(made),
            Err(e) if e.kind == Kind::Exists => {
                // It is ours after all, if a reply was lost.
                let opened = Self::at(store, protection.secret()).await?;
                if let Some(id) = made.key_id.filter(|_| opened.id != vault) {
                    ring::delete(&opened.store, &id).await?;
                }
                Ok(opened)
            }
            Err(e) => Err(e),
        }
    }

    /// Refuses a store that ignores conditions on writes, unless the operator has vouched for a single writer: two sites could both
    /// own a machine's line there. Costs one request, which writes nothing.
    pub async fn refuse_unconditional(&self) -> Result<()> {
        if !self.store.is_conditional() {
            return Ok(());
        }
        let marker = self.store.get(MARKER, MARKER_LIMIT).await?;
        let message = match self.store.create(MARKER, marker.into()).await {
            Err(e) if e.kind == Kind::Exists => return Ok(()),
            // As it was: what we wrote is what we had read.
            Ok(()) => "writes over a name that is taken although it was told not to".to_owned(),
            Err(e) if e.kind == Kind::InvalidInput => format!("knows no conditional writes: {}", e.message),
            Err(e) => return Err(e),
        };
        let remedy = "two sites could both own a machine's line there: use another store, or, if no other host will ever write, say \
                      single_writer = true in [vault]";
        Err(Error::new(Kind::InvalidInput, self.store.url(), message).remedy(remedy))
    }

    /// The same vault with counters of its own.
    #[must_use]
    pub fn counted_apart(&self) -> Self {
        Self { store: self.store.counted_apart(), ..self.clone() }
    }

    async fn from_marker(store: Store, bytes: &[u8], secret: Option<&Secret>) -> Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let broken = |e| Error::corrupt(store.name_of(MARKER), format!("cannot understand the marker: {e}"));
        let version: Version = serde_json::from_slice(bytes).map_err(broken)?;
        if version.format != FORMAT {
            let message = format!("the vault has format {}, this program knows {FORMAT}", version.format);
            let remedy = "use a version of Lifeboat that knows this format";
            return Err(Error::new(Kind::InvalidInput, store.url(), message).remedy(remedy));
        }
        let marker: Marker = serde_json::from_slice(bytes).map_err(broken)?;
        let (cipher, key_id) = match (marker.encryption, secret) {
            (Encryption::None, None) => (Cipher::None, None),
            (Encryption::None, Some(_)) => return Err(not_encrypted(&store)),
            (Encryption::Aes256Gcm, None) => return Err(needs_key(&store)),
            (Encryption::Aes256Gcm, Some(secret)) => {
                let (cipher, id) =
                    ring::unlock(&store, marker.vault, secret, |cipher| marker.fits(cipher)).await?;
                (cipher, Some(id))
            }
        };
        Ok(Self { store, id: marker.vault, cipher, key_id })
    }
}

/// Whether `error` says that a vault is encrypted and nothing was there to open it with.
pub fn is_locked(error: &Error) -> bool {
    error.kind == Kind::Denied && error.message == LOCKED
}

const LOCKED: &str = "the vault is encrypted, and no key was given";

fn needs_key(store: &Store) -> Error {
    Error::new(Kind::Denied, store.url(), LOCKED).remedy(
        "name its key: key_file or passphrase_file in [vault], --key-file or --passphrase-file with --vault, or LIFEBOAT_PASSPHRASE",
    )
}

fn not_encrypted(store: &Store) -> Error {
    let message = "a key was given, and the vault is not encrypted: it is another vault, or somebody put another one in its place";
    Error::new(Kind::InvalidInput, store.url(), message)
        .remedy("check the URL; if it is meant to be readable by everybody, say encryption = \"none\" and name no key")
}

/// A missing bucket is reported on the store's URL too, but carries the store's answer as its source.
fn is_bucket(error: &Error) -> bool {
    std::error::Error::source(error).is_some()
}

fn unwritable(store: &Store, error: serde_json::Error) -> Error {
    Error::new(Kind::InvalidInput, store.name_of(MARKER), "cannot write the marker").source(error)
}

#[cfg(test)]
mod tests;
