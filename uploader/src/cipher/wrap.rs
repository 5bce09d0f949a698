//! A vault's data key, wrapped: `keys/<id>.json`, one object for each secret that opens the vault.
//!
//! ```text
//! {"format":1, "id":"<16 hex>", "vault":"<uuid>", "kind":"key-file" or "passphrase", "created":…, "host":…,
//!  "salt":"<32 hex>", "argon2":{"memory_kib":65536,"passes":3,"lanes":4}, "wrapped":"<96 hex>"}
//!
//! secret       = the 32 bytes of the key file, or Argon2id(passphrase, salt) of 32 bytes at the stated cost
//! wrapping key = HKDF-SHA256(secret, salt, info = "lifeboat wrapped key\0" + id, vault, kind and cost)
//! wrapped      = AES-256-GCM of the data key under it: 32 bytes and the tag
//! ```
//!
//! The data key itself is drawn once, when the vault is made. Adding and removing secrets changes these objects only, so it costs
//! nothing and disturbs nobody who has the vault open. For the same reason it does not help against somebody who had a secret
//! *and* kept a copy of its object, or of the data key: then the content has to go to a new vault.
//!
//! Whether a secret fits is known at once, by the tag. Time and host are for people; nothing rests on them.

use std::fmt;
use std::path::Path;

use argon2::{Algorithm, Argon2, Params, Version};
use jiff::Timestamp;
use nbd_proxy::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::{DataKey, Salt, Units, derive, random};
use crate::digest::{hex, unhex};

const FORMAT: u32 = 1;
const INFO: &[u8] = b"lifeboat wrapped key\0";
const KEY_LEN: usize = 32;
/// Key files are read up to here: enough to say that one is too long.
const FILE_MAX: usize = 4096;

/// What kind of secret opens a wrapped key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyKind {
    /// A file with 32 random bytes.
    KeyFile,
    /// Words that somebody remembers.
    Passphrase,
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::KeyFile => "key file",
            Self::Passphrase => "passphrase",
        })
    }
}

/// What opens a vault. It is never shown, and wiped when nobody needs it any more.
#[derive(Clone)]
pub enum Secret {
    /// The content of a key file.
    KeyFile(Zeroizing<[u8; KEY_LEN]>),
    /// A passphrase.
    Passphrase(Zeroizing<String>),
}

impl Secret {
    /// Reads a key file: 32 bytes, or 64 hexadecimal digits and perhaps a line's end.
    pub fn from_key_file(path: &Path) -> Result<Self> {
        let bytes = read(path)?;
        let text = bytes.trim_ascii_end();
        let key = match (<[u8; KEY_LEN]>::try_from(&bytes[..]), text.len()) {
            (Ok(raw), _) => Some(Zeroizing::new(raw)),
            (_, 64) => std::str::from_utf8(text).ok().and_then(unhex).map(Zeroizing::new),
            _ => None,
        };
        let what = match bytes.len() {
            FILE_MAX.. => "is no key file: it is far too long".to_owned(),
            len => format!("is no key file: {len} bytes are neither 32 bytes nor 64 hexadecimal digits"),
        };
        key.map(Self::KeyFile).ok_or_else(|| {
            let remedy = "name the vault's key file; `openssl rand -hex 32` makes a key for a new vault";
            Error::new(Kind::InvalidInput, path.display().to_string(), what).remedy(remedy)
        })
    }

    /// Reads a passphrase from the first line of a file.
    pub fn from_passphrase_file(path: &Path) -> Result<Self> {
        let bytes = read(path)?;
        let line = bytes.split(|byte| matches!(byte, b'\n' | b'\r')).next().unwrap_or_default();
        let text = std::str::from_utf8(line).ok().filter(|_| bytes.len() < FILE_MAX);
        let refuse = |what| Error::new(Kind::InvalidInput, path.display().to_string(), what);
        let text = text
            .ok_or_else(|| refuse("holds no passphrase: its first line is no text of reasonable length"))?;
        Self::passphrase(text).map_err(|_| refuse("holds no passphrase: its first line is empty"))
    }

    /// A passphrase; an empty one is refused.
    pub fn passphrase(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Err(Error::new(Kind::InvalidInput, "passphrase", "is empty"));
        }
        Ok(Self::Passphrase(Zeroizing::new(text.to_owned())))
    }

    /// What kind it is.
    pub fn kind(&self) -> KeyKind {
        match self {
            Self::KeyFile(_) => KeyKind::KeyFile,
            Self::Passphrase(_) => KeyKind::Passphrase,
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ***", self.kind())
    }
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>> {
    use std::io::Read as _;
    let cannot =
        |e| Error::io("read the vault's key from", path, e).remedy("name a file that exists and may be read");
    let mut bytes = Zeroizing::new(Vec::with_capacity(FILE_MAX));
    let file = std::fs::File::open(path).map_err(cannot)?;
    file.take(FILE_MAX as u64).read_to_end(&mut bytes).map_err(cannot)?;
    Ok(bytes)
}

/// What Argon2id costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cost {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

impl Cost {
    /// What RFC 9106 recommends where memory is to be spared.
    const USUAL: Self = Self { memory_kib: 64 << 10, passes: 3, lanes: 4 };

    /// Whoever wrote the object does not decide how much memory and time a reader spends.
    fn is_sane(self) -> bool {
        self.memory_kib <= 4 << 20 && self.passes <= 64 && self.lanes <= 64
    }
}

/// See the module.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrappedKey {
    format: u32,
    /// Names it.
    pub id: String,
    /// The vault that the data key is of.
    pub vault: Uuid,
    /// What opens it.
    pub kind: KeyKind,
    /// When it was made.
    pub created: Timestamp,
    /// Where it was made.
    pub host: String,
    salt: Salt,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    argon2: Option<Cost>,
    wrapped: String,
}

impl WrappedKey {
    /// Wraps `key` of `vault` so that `secret` opens it. Takes a while for a passphrase.
    pub fn wrap(key: &DataKey, vault: Uuid, secret: &Secret, host: &str) -> Result<Self> {
        let mut id = [0; 8];
        random(&mut id)?;
        let mut this = Self {
            format: FORMAT,
            id: hex(&id),
            vault,
            kind: secret.kind(),
            created: Timestamp::now(),
            host: host.to_owned(),
            salt: Salt::draw(),
            argon2: (secret.kind() == KeyKind::Passphrase).then_some(Cost::USUAL),
            wrapped: String::new(),
        };
        this.wrapped = hex(&this.units(&this.id, secret)?.seal(0, key.expose().to_vec())?);
        Ok(this)
    }

    /// The data key, if `secret` is the one that opens it. Takes a while for a passphrase. `object` names the key in errors.
    pub fn unwrap(&self, object: &str, secret: &Secret) -> Result<Option<DataKey>> {
        if self.kind != secret.kind() {
            return Ok(None);
        }
        let wrapped: [u8; KEY_LEN + super::TAG_LEN] =
            unhex(&self.wrapped).ok_or_else(|| Error::corrupt(object, "holds no wrapped key"))?;
        // That it does not open is no corruption: it is what happens to every other secret.
        let Ok(key) = self.units(object, secret)?.open(object, 0, &wrapped) else { return Ok(None) };
        let key = Zeroizing::new(key.into_owned());
        Ok(<[u8; KEY_LEN]>::try_from(&key[..]).ok().map(|key| DataKey::new(Zeroizing::new(key))))
    }

    /// The object's bytes.
    pub fn encode(&self) -> Result<Vec<u8>> {
        serde_json::to_vec_pretty(self).map_err(|e| {
            Error::new(Kind::InvalidInput, self.id.as_str(), format!("cannot write the key: {e}"))
        })
    }

    /// Reads the object's bytes.
    pub fn decode(object: &str, bytes: &[u8]) -> Result<Self> {
        let corrupt =
            |what: String| Error::corrupt(object, format!("cannot understand the wrapped key: {what}"));
        let this: Self = serde_json::from_slice(bytes).map_err(|e| corrupt(e.to_string()))?;
        match this.format {
            FORMAT => Ok(this),
            other => Err(corrupt(format!("its format is {other}, this program knows {FORMAT}"))),
        }
    }

    fn units(&self, object: &str, secret: &Secret) -> Result<Units> {
        let stretched = match (secret, self.argon2) {
            (Secret::KeyFile(bytes), None) => bytes.clone(),
            (Secret::Passphrase(text), Some(cost)) if cost.is_sane() => self.stretch(object, text, cost)?,
            _ => return Err(Error::corrupt(object, "states an impossible cost for its passphrase")),
        };
        let Self { id, vault, kind, .. } = self;
        let cost = self.argon2.map_or_else(String::new, |cost| {
            format!("argon2id {} {} {}", cost.memory_kib, cost.passes, cost.lanes)
        });
        let bound = format!("{id} {vault} {kind} {cost}");
        let bytes = derive(&*stretched, &self.salt.0, &[INFO, bound.as_bytes()])?;
        Units::under(&bytes)
    }

    fn stretch(&self, object: &str, text: &str, cost: Cost) -> Result<Zeroizing<[u8; KEY_LEN]>> {
        let failed =
            |e: argon2::Error| Error::corrupt(object, format!("cannot derive a key at its cost: {e}"));
        let params = Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(KEY_LEN)).map_err(failed)?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let mut out = Zeroizing::new([0; KEY_LEN]);
        argon2.hash_password_into(text.as_bytes(), &self.salt.0, &mut *out).map_err(failed)?;
        Ok(out)
    }
}
