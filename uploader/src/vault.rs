//! A vault: a store with Lifeboat's marker in it.
//!
//! The marker, `lifeboat.json`, is created once, if absent, and never changed. It carries the format version, so that
//! an older program refuses what it would misread; the vault's id, so that a local state meant for another vault is
//! noticed even when the URL is the same; and how content is encrypted.

use jiff::Timestamp;
use nbd_proxy::durable::{self, Op, Step};
use nbd_proxy::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::cipher::{Cipher, Named};
use crate::keys::MARKER;
use crate::store::{self, Store, StoreConfig};

pub use crate::cipher::Encryption;

/// The format of everything in the vault that this program writes.
pub const FORMAT: u32 = 1;

const MARKER_LIMIT: u64 = 64 << 10;

#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    format: u32,
    vault: Uuid,
    encryption: Encryption,
    created: Timestamp,
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
}

impl Vault {
    /// The object `key` of this vault, to be sealed or opened.
    pub fn named(&self, key: &str) -> Named {
        Named { cipher: self.cipher.clone(), key: key.to_owned(), object: self.store.name_of(key) }
    }

    /// Opens the vault that `config` names; one that is not there is [`Kind::NotFound`].
    pub async fn open(config: &StoreConfig) -> Result<Self> {
        Self::at(store::open(config, false)?).await
    }

    /// Opens the vault that `config` names, making it if there is none.
    pub async fn open_or_create(config: &StoreConfig, encryption: Encryption) -> Result<Self> {
        Self::at_or_create(store::open(config, true)?, encryption).await
    }

    /// Opens the vault in `store`.
    pub async fn at(store: Store) -> Result<Self> {
        match store.get(MARKER, MARKER_LIMIT).await {
            Ok(bytes) => Self::from_marker(store, &bytes),
            Err(e) if store::is_missing_object(&e) => {
                let missing = Error::new(Kind::NotFound, store.url(), "there is no vault at this URL");
                Err(missing.remedy("check the URL; the first machine that replicates there makes the vault"))
            }
            Err(e) => Err(e),
        }
    }

    /// Opens the vault in `store`, making it if there is none. Of two who make it at once, one wins and both open that.
    pub async fn at_or_create(store: Store, encryption: Encryption) -> Result<Self> {
        match Self::at(store.clone()).await {
            Err(e) if e.kind == Kind::NotFound && e.object == store.url() && !is_bucket(&e) => {}
            opened => return opened,
        }
        let marker = Marker { format: FORMAT, vault: Uuid::new_v4(), encryption, created: Timestamp::now() };
        let bytes = serde_json::to_vec_pretty(&marker).map_err(|e| unwritable(&store, e))?;
        match durable::request(Step::MarkerPut, Op::Put, store.create(MARKER, bytes.into())).await {
            Ok(()) => Ok(Self { store, id: marker.vault, cipher: Cipher::None }),
            Err(e) if e.kind == Kind::Exists => Self::at(store).await,
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

    fn from_marker(store: Store, bytes: &[u8]) -> Result<Self> {
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
        Ok(Self { store, id: marker.vault, cipher: Cipher::None })
    }
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
