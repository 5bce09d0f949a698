//! TLS with certificates on both sides.
//!
//! The server behind it knows nothing of TLS: a thread per protected connection, the *relay*, carries bytes between the
//! client's socket and one end of a socket pair, and everything else works on the other end as it does on a plain
//! socket. What must be known of the client itself, whether it has hung up, is asked of its own socket
//! ([`Socket::behind`]).
//!
//! The files are read at every handshake, so that a renewed certificate counts without a restart. If they cannot be
//! used at that moment, the client is refused and the log says why: there is no way on without TLS.

mod relay;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};

use super::socket::Socket;
use crate::{Error, Kind, Result};

use relay::Relay;

/// Stack of a relay; only touched pages count.
const STACK: usize = 512 << 10;

/// Who we are, and whom we let in: PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, and those between it and its authority.
    pub cert: PathBuf,
    /// The certificate's key.
    pub key: PathBuf,
    /// The authorities whose clients are let in.
    pub client_ca: PathBuf,
}

impl TlsFiles {
    /// Reads the files.
    ///
    /// # Errors
    /// `InvalidInput` that names the file, if one cannot be read, holds nothing of its kind, or the key is another's.
    pub fn check(&self) -> Result<()> {
        self.load().map(drop)
    }

    fn load(&self) -> Result<Arc<ServerConfig>> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        for authority in certificates(&self.client_ca)? {
            roots.add(authority).map_err(|error| unusable(&self.client_ca, "is no authority", error))?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|error| unusable(&self.client_ca, "cannot be used", error))?;
        let chain = certificates(&self.cert)?;
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|error| unusable(&self.key, "has no private key that can be read", error))?;
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| unusable(&self.cert, "cannot be used", error))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(|error| unusable(&self.cert, "cannot be used with its key", error))?;
        Ok(Arc::new(config))
    }

    /// Puts a relay between the client's socket and a new one, which takes the other's place.
    pub(super) fn protect(&self, client: &Arc<Socket>, deadline: Instant) -> Result<Protected> {
        let failed = |error: io::Error| {
            Error::new(Kind::Io, "the NBD server", format!("cannot begin TLS: {error}")).source(error)
        };
        let tls = ServerConnection::new(self.load()?).map_err(|error| failed(io::Error::other(error)))?;
        let (socket, inner) = Socket::behind(client).map_err(failed)?;
        let mut relay = Relay::new(Arc::clone(client), inner, tls);
        let builder = thread::Builder::new().name("nbd-tls".into()).stack_size(STACK);
        let relay = builder
            .spawn(move || {
                if let Err(error) = relay.run(deadline) {
                    tracing::info!(%error, "ended a client's TLS connection");
                }
            })
            .map_err(failed)?;
        Ok(Protected { socket: Arc::new(socket), relay })
    }
}

/// A connection over TLS.
pub(super) struct Protected {
    /// Stands for the client's own socket.
    pub(super) socket: Arc<Socket>,
    relay: JoinHandle<()>,
}

impl Protected {
    /// Has everything sent, within the time that the relay allows, and ends the connection.
    pub(super) fn end(self) {
        self.socket.end_sending();
        // A relay that panicked has said so on its own.
        let _ = self.relay.join();
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let read =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>);
    match read {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(unusable(path, "holds no certificate", io::Error::from(io::ErrorKind::InvalidData))),
        Err(error) => Err(unusable(path, "holds no certificate that can be read", error)),
    }
}

fn unusable<E>(path: &Path, what: &str, error: E) -> Error
where
    E: std::error::Error + Send + Sync + 'static,
{
    Error::new(Kind::InvalidInput, path.display().to_string(), format!("the file {what}: {error}"))
        .remedy("name PEM files in [tls]: the server's certificate, its key, and the clients' authority")
        .source(error)
}
