//! What makes the vault's content unreadable, and unchangeable, to whoever has only the bucket.
//!
//! An object consists of *units*: a frame, an index, a list, a page. Each is sealed by AES-256-GCM, which adds a tag of 16
//! bytes. The key of an object is drawn from the vault's data key and belongs to this object alone:
//!
//! ```text
//! object key = HKDF-SHA256(data key, salt = 16 random bytes in the object's clear header, info = "lifeboat object\0" + name)
//! nonce      = the unit's number in the object, 8 bytes, little-endian; 4 zero bytes
//! ```
//!
//! The salt is drawn whenever an object is made, and units are numbered once: so no key meets a nonce twice, whatever is
//! retried, abandoned or adopted. What is retried is the same bytes; what is made again has another salt. (122 random bits:
//! 2^40 objects meet by chance once in 2^42 vaults.) Tests watch every unit that is ever sealed; see `witness`.
//!
//! So an object that is moved to another name, a unit at another place, a byte that was changed, all fail to open. For
//! deltas, whose names hold their salt and which may stand inside an entry, the name says [`DELTA`] only: whoever refers to
//! a delta says which salt it must have. That a name shows an older version of itself is refused likewise: entries say
//! which version of their parent they mean.
//!
//! Not secret are names, sizes, times, and what [`point::Header`](crate::point::Header) says; but it is *marked*: the mark is
//! a GCM tag over clear bytes. Plain hashes of content stand inside sealed units only. What has to be checked without the
//! key is a hash of sealed bytes.
//!
//! The primitives are those of AWS-LC, which TLS brings along anyway: measured on one core, it seals 23 GB/s, so that sealing
//! costs 2 % of what compressing and hashing do, and 4 % where nothing can be compressed (in pure Rust: 6 % and 26 %).
//!
//! Without encryption nothing is sealed, a unit is its bytes, a mark is a plain digest, and there are no salts. An object
//! that is not sealed where it should be is refused, as is the opposite: nobody who writes to the bucket can talk a reader
//! out of checking.

pub mod ring;
pub mod wrap;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hkdf;
use bytes::Bytes;
use nbd_proxy::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::digest::{Digest, hex};

pub use wrap::{KeyKind, Secret};

/// What stands for the name of a delta.
pub const DELTA: &str = "delta";
/// What a sealed unit is longer than its content.
pub const TAG_LEN: usize = 16;
/// The mark of an object's clear header is made as if that were this unit.
pub const HEADER: u64 = u64::MAX;
/// An object's directory (an index, a list, a root) is this unit; its other units count from zero.
pub const DIRECTORY: u64 = u64::MAX - 1;

const INFO: &[u8] = b"lifeboat object\0";

/// How a vault's content is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Encryption {
    /// Not at all, which was the operator's written word.
    None,
    /// As the [module](self) says.
    #[serde(rename = "aes-256-gcm")]
    Aes256Gcm,
}

impl fmt::Display for Encryption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Aes256Gcm => "aes-256-gcm",
        })
    }
}

/// A vault's data key. It is never shown, and wiped when nobody needs it any more.
pub struct DataKey(Zeroizing<[u8; 32]>);

impl DataKey {
    /// The key with these bytes.
    pub fn new(bytes: Zeroizing<[u8; 32]>) -> Self {
        Self(bytes)
    }

    /// A new key.
    pub fn draw() -> Result<Self> {
        let mut bytes = Zeroizing::new([0; 32]);
        random(&mut *bytes)?;
        Ok(Self(bytes))
    }

    /// Its bytes, to be wrapped.
    pub(crate) fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Random bytes of the system's.
pub(crate) fn random(bytes: &mut [u8]) -> Result<()> {
    let failed = |e: Unspecified| Error::new(Kind::Io, "random numbers", "the system gives none").source(e);
    aws_lc_rs::rand::fill(bytes).map_err(failed)
}

/// Names the key of one object; not secret.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Salt(pub [u8; 16]);

impl Salt {
    /// A salt that no object has.
    pub fn draw() -> Self {
        Self(*Uuid::new_v4().as_bytes())
    }
}

impl fmt::Display for Salt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Salt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Salt {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Digest(self.0).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Salt {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Digest::deserialize(deserializer).map(|digest| Self(digest.0))
    }
}

/// How a vault's objects are sealed and opened; cheap to clone.
#[derive(Clone, Debug, Default)]
pub enum Cipher {
    /// Not at all.
    #[default]
    None,
    /// Under this data key.
    Aes(Arc<DataKey>),
}

impl Cipher {
    /// Under `key`.
    pub fn aes(key: DataKey) -> Self {
        Self::Aes(Arc::new(key))
    }

    /// Nothing is encrypted.
    pub fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    /// What kind it is.
    pub fn encryption(&self) -> Encryption {
        match self {
            Self::None => Encryption::None,
            Self::Aes(_) => Encryption::Aes256Gcm,
        }
    }

    /// What seals the units of a new object called `name`, and the salt to write into its header.
    pub fn sealer(&self, name: &str) -> Result<(Option<Salt>, Units)> {
        match self {
            Self::None => Ok((None, Units::default())),
            Self::Aes(key) => {
                let salt = Salt::draw();
                Ok((Some(salt), Units::of(key, salt, name)?))
            }
        }
    }

    /// What opens the units of the object called `name`, in whose header `salt` was found. `object` is how people name it.
    pub fn opener(&self, object: &str, name: &str, salt: Option<Salt>) -> Result<Units> {
        match (self, salt) {
            (Self::None, None) => Ok(Units::default()),
            (Self::Aes(key), Some(salt)) => Units::of(key, salt, name),
            (Self::None, Some(_)) => Err(Error::corrupt(object, "is encrypted, in a vault that is not")),
            (Self::Aes(_), None) => {
                Err(Error::corrupt(object, "is not encrypted, in a vault that is: somebody else wrote it"))
            }
        }
    }

    /// The stored form of a small object that is one unit: its bytes, or 16 bytes of salt and its sealed bytes.
    pub fn seal_object(&self, name: &str, content: Vec<u8>) -> Result<Bytes> {
        let (salt, units) = self.sealer(name)?;
        let sealed = units.seal(DIRECTORY, content)?;
        Ok(match salt {
            Some(salt) => [&salt.0[..], &sealed].concat().into(),
            None => sealed.into(),
        })
    }

    /// The content of what [`Self::seal_object`] made.
    pub fn open_object<'a>(&self, object: &str, name: &str, stored: &'a [u8]) -> Result<Cow<'a, [u8]>> {
        let Self::Aes(_) = self else { return Ok(Cow::Borrowed(stored)) };
        let cut_off = || Error::corrupt(object, "is shorter than any encrypted object");
        let (salt, sealed) = stored.split_first_chunk().ok_or_else(cut_off)?;
        self.opener(object, name, Some(Salt(*salt)))?.open(object, DIRECTORY, sealed)
    }
}

/// An object, as whoever seals or opens it has to know it.
#[derive(Clone, Debug)]
pub struct Named {
    /// The vault's cipher.
    pub cipher: Cipher,
    /// The object's name in the vault.
    pub key: String,
    /// How people name it.
    pub object: String,
}

impl Named {
    /// An object that is not encrypted, for messages called `object`.
    pub fn plain(object: &str) -> Self {
        Self { cipher: Cipher::None, key: object.to_owned(), object: object.to_owned() }
    }

    /// What seals its units when it is made, and the salt to write into its header.
    pub fn sealer(&self) -> Result<(Option<Salt>, Units)> {
        self.cipher.sealer(&self.key)
    }

    /// What opens its units, given the salt from its header.
    pub fn opener(&self, salt: Option<Salt>) -> Result<Units> {
        self.cipher.opener(&self.object, &self.key, salt)
    }
}

/// Seals and opens the units of one object; cheap to clone.
#[derive(Clone, Default)]
pub struct Units(Option<Arc<ObjectKey>>);

struct ObjectKey {
    cipher: LessSafeKey,
    #[cfg(test)]
    id: Digest,
}

impl Units {
    fn of(key: &DataKey, salt: Salt, name: &str) -> Result<Self> {
        let bytes = derive(key.expose(), &salt.0, &[INFO, name.as_bytes()])?;
        Self::under(&bytes)
    }

    /// Units that are sealed under this very key, which nothing else may be.
    fn under(bytes: &[u8; 32]) -> Result<Self> {
        let cipher = UnboundKey::new(&AES_256_GCM, bytes).map_err(cannot_seal)?;
        Ok(Self(Some(Arc::new(ObjectKey {
            cipher: LessSafeKey::new(cipher),
            #[cfg(test)]
            id: Digest::of(bytes),
        }))))
    }

    /// How much longer a stored unit is than its content.
    pub fn overhead(&self) -> usize {
        if self.0.is_some() { TAG_LEN } else { 0 }
    }

    /// The stored form of the unit `number`.
    pub fn seal(&self, number: u64, content: Vec<u8>) -> Result<Vec<u8>> {
        let Some(key) = &self.0 else { return Ok(content) };
        #[cfg(test)]
        witness::saw(key.id, number, &content);
        let mut unit = content;
        key.cipher.seal_in_place_append_tag(nonce(number), Aad::empty(), &mut unit).map_err(cannot_seal)?;
        Ok(unit)
    }

    /// The content of the unit `number` of `object`.
    pub fn open<'a>(&self, object: &str, number: u64, stored: &'a [u8]) -> Result<Cow<'a, [u8]>> {
        let Some(key) = &self.0 else { return Ok(Cow::Borrowed(stored)) };
        let open = || {
            let (sealed, tag) = stored.split_last_chunk::<TAG_LEN>()?;
            let mut content = vec![0; sealed.len()];
            let opened =
                key.cipher.open_separate_gather(nonce(number), Aad::empty(), sealed, tag, &mut content);
            opened.ok().map(|()| content)
        };
        open().map(Cow::Owned).ok_or_else(|| not_ours(object))
    }

    /// The mark of clear bytes that stand in the object as, so to speak, unit `number`.
    pub fn mark(&self, number: u64, clear: &[u8]) -> Result<Digest> {
        let Some(key) = &self.0 else { return Ok(Digest::of(clear)) };
        #[cfg(test)]
        witness::saw(key.id, number, clear);
        let tag = key.cipher.seal_in_place_separate_tag(nonce(number), Aad::from(clear), &mut []);
        let tag = tag.map_err(cannot_seal)?;
        Ok(Digest(tag.as_ref().try_into().map_err(|_| cannot_seal(Unspecified))?))
    }

    /// Whether `mark` is that of the clear bytes.
    pub fn is_marked(&self, number: u64, clear: &[u8], mark: Digest) -> bool {
        let Some(key) = &self.0 else { return Digest::of(clear) == mark };
        key.cipher.open_separate_gather(nonce(number), Aad::from(clear), &[], &mark.0, &mut []).is_ok()
    }
}

impl fmt::Debug for Units {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Units(***)" } else { "Units(plain)" })
    }
}

/// 32 bytes of HKDF-SHA256.
pub(crate) fn derive(secret: &[u8], salt: &[u8], info: &[&[u8]]) -> Result<Zeroizing<[u8; 32]>> {
    let mut bytes = Zeroizing::new([0; 32]);
    let drawn = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(secret);
    let expanded = drawn.expand(info, hkdf::HKDF_SHA256).and_then(|okm| okm.fill(&mut *bytes));
    expanded.map_err(cannot_seal)?;
    Ok(bytes)
}

fn nonce(number: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&number.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

fn cannot_seal(error: Unspecified) -> Error {
    Error::new(Kind::InvalidInput, "encryption", "cannot encrypt so much at once").source(error)
}

/// Something sealed that does not open.
fn not_ours(object: &str) -> Error {
    Error::corrupt(
        object,
        "cannot be decrypted: it was changed, or belongs under another name or at another place",
    )
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod witness;
