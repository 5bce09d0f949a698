//! Where an export is: the two forms of NBD's own URIs that name a server of ours.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::nbd::wire::MAX_STRING;
use crate::{Error, Kind, Result};

const PORT: u16 = 10809;
const REMEDY: &str = "write nbd+unix:///EXPORT?socket=PATH or nbd://HOST:PORT/EXPORT";

/// An export on a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Where the server listens.
    pub place: Place,
    /// The export's name; empty for the server's default.
    pub export: String,
    text: String,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A Unix socket.
    Unix(PathBuf),
    /// A host and a port.
    Tcp(String, u16),
}

impl Address {
    /// Whether `path` is meant as an address rather than a file: it has a scheme.
    pub fn is_meant(path: &Path) -> bool {
        path.to_str().is_some_and(|text| text.contains("://"))
    }

    /// Reads an address.
    ///
    /// # Errors
    /// `InvalidInput`, with what is wrong.
    pub fn parse(path: &Path) -> Result<Self> {
        let text = path.to_string_lossy();
        let wrong = |message: &str| Error::new(Kind::InvalidInput, &*text, message).remedy(REMEDY);
        let (place, export) = if let Some(rest) = text.strip_prefix("nbd+unix:///") {
            let (export, query) = rest.split_once('?').ok_or_else(|| wrong("the address has no socket"))?;
            let socket = query.strip_prefix("socket=").filter(|rest| !rest.contains('&'));
            let socket = socket.ok_or_else(|| wrong("the address has other parameters than socket"))?;
            let socket = PathBuf::from(decoded(socket).ok_or_else(|| wrong("a % without two digits"))?);
            if !socket.is_absolute() {
                return Err(wrong("the socket is not an absolute path"));
            }
            (Place::Unix(socket), export)
        } else if let Some(rest) = text.strip_prefix("nbd://") {
            let (host, export) = rest.split_once('/').unwrap_or((rest, ""));
            if export.contains('?') || host.contains('@') {
                return Err(wrong("the address has a user or parameters, which mean nothing here"));
            }
            let (host, port) = match host.rsplit_once(':') {
                Some((host, port)) if !port.contains(']') => {
                    (host, port.parse().map_err(|_| wrong("the port is no number"))?)
                }
                _ => (host, PORT),
            };
            let host = host.trim_start_matches('[').trim_end_matches(']');
            if host.is_empty() {
                return Err(wrong("the address has no host"));
            }
            (Place::Tcp(host.to_owned(), port), export)
        } else {
            return Err(wrong("an address of unknown kind"));
        };
        let export = decoded(export).ok_or_else(|| wrong("a % without two digits"))?;
        if export.len() > MAX_STRING {
            return Err(wrong("the export's name is longer than 4096 bytes"));
        }
        Ok(Self { place, export, text: text.into_owned() })
    }

    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Without percent signs; `None` if one is not followed by two digits, or what comes out is no text.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut parts = text.split('%');
    bytes.extend(parts.next()?.bytes());
    for part in parts {
        let (digits, rest) = part.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend(rest.bytes());
    }
    String::from_utf8(bytes).ok()
}
