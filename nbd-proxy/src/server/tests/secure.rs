//! TLS: who is let in, what it carries, and how it ends.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::client::Client;
use super::*;
use crate::nbd::wire::{cflag, cmd, opt, rep};

const MIB: usize = 1 << 20;

type Secure = StreamOwned<ClientConnection, UnixStream>;

/// An authority.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// A certificate and its key.
    fn sign(&self, expired: bool) -> (String, String) {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        if expired {
            params.not_after = rcgen::date_time_ymd(2001, 1, 1);
            params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        (cert.pem(), key.serialize_pem())
    }
}

/// A server that serves nothing without TLS.
struct Vault {
    server: Server,
    device: Arc<MemDevice>,
    socket: PathBuf,
    authority: Authority,
    folder: TempDir,
}

impl Vault {
    fn new(device: MemDevice) -> Self {
        Self::with(device, Limits::default())
    }

    fn with(device: MemDevice, limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new();
        let (cert, key) = authority.sign(false);
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let files = TlsFiles {
            cert: file("cert.pem", &cert),
            key: file("key.pem", &key),
            client_ca: file("ca.pem", &authority.pem),
        };
        let socket = folder.path().join("s");
        let device = Arc::new(device);
        let listener = Listener { tls: Some(files), ..listener(socket.clone(), &device) };
        let server = Server::start(vec![listener], limits).unwrap();
        Self { server, device, socket, authority, folder }
    }

    /// TLS with a certificate or without, as far as the greeting of the protocol inside.
    fn starttls(&self, certificate: Option<(String, String)>) -> Secure {
        let mut client = Client::hello(&self.socket);
        assert_eq!(client.option(opt::STARTTLS, &[]), rep::ACK);
        secure(client.stream, &self.authority, certificate)
    }

    fn connect(&self) -> Client<Secure> {
        let stream = self.starttls(Some(self.authority.sign(false)));
        Client::chosen(stream, "m/disk")
    }
}

fn secure(stream: UnixStream, authority: &Authority, certificate: Option<(String, String)>) -> Secure {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let config = match certificate {
        None => config.with_no_client_auth(),
        Some((cert, key)) => {
            let cert = CertificateDer::from_pem_slice(cert.as_bytes()).unwrap();
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            config.with_client_auth_cert(vec![cert], key).unwrap()
        }
    };
    let name = ServerName::try_from("localhost").unwrap();
    StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), stream)
}

#[test]
fn a_client_with_a_certificate_is_served_over_tls() {
    let vault = Vault::new(MemDevice::new(40 * MIB));
    let mut client = vault.connect();
    for (seed, len) in [1, 4096, 65_537, MIB, 5 * MIB + 3, 33 * MIB].into_iter().enumerate() {
        let data = pattern(len, seed);
        assert_eq!(client.write(777, &data), 0);
        assert!(client.read(777, u32::try_from(len).unwrap()) == data, "{len}");
    }
    let mut other = vault.connect();
    assert_eq!(other.ask(cmd::FLUSH, 0, 0, 0, &[]).errno, 0);
    assert_eq!(vault.server.connections("m/disk"), 2);
    drop((client, other));
    until("both are gone", || vault.server.connections("m/disk") == 0);
}

#[test]
fn nothing_is_served_without_tls() {
    let vault = Vault::new(MemDevice::new(MIB));
    let mut client = Client::hello(&vault.socket);
    for option in [opt::LIST, opt::GO, opt::INFO, opt::STRUCTURED_REPLY] {
        assert_eq!(client.option(option, b"\0\0\0\0\0\0"), rep::ERR_TLS_REQD);
    }
    client.send_option(opt::EXPORT_NAME, b"m/disk");
    assert!(client.is_closed());
}

#[test]
fn unprotected_bytes_behind_starttls_end_the_connection() {
    let vault = Vault::new(MemDevice::new(MIB));
    let mut client = Client::hello(&vault.socket);
    let option = |number: u32| [&b"IHAVEOPT"[..], &number.to_be_bytes(), &[0; 4]].concat();
    client.stream.write_all(&[option(opt::STARTTLS), option(opt::LIST)].concat()).unwrap();
    let mut answer = [0; 20];
    client.stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer[12..16], rep::ACK.to_be_bytes());
    assert!(client.is_closed(), "not one byte more");
    assert_eq!(vault.connect().read(0, 1), [0], "others are served");
}

#[test]
fn a_client_without_a_good_certificate_ends_only_its_own_connection() {
    let vault = Vault::new(MemDevice::new(MIB));
    let mut good = vault.connect();
    let bad = [None, Some(vault.authority.sign(true)), Some(Authority::new().sign(false))];
    for (n, certificate) in bad.into_iter().enumerate() {
        let mut stream = vault.starttls(certificate);
        let said = [&b"IHAVEOPT"[..], &opt::LIST.to_be_bytes(), &[0; 4]].concat();
        // The refusal may come before or after it is sent.
        let _ = stream.write_all(&said);
        let answer = stream.read(&mut [0; 1]);
        assert!(!matches!(answer, Ok(1..)), "client {n} was answered");
        assert_eq!(good.write(0, &[1]), 0, "the other one goes on");
    }
}

#[test]
fn a_handshake_of_tls_has_the_same_deadline() {
    let limits = Limits { handshake: Duration::from_millis(200), ..Limits::default() };
    let vault = Vault::with(MemDevice::new(MIB), limits);
    let mut client = Client::hello(&vault.socket);
    assert_eq!(client.option(opt::STARTTLS, &[]), rep::ACK);
    assert!(client.is_closed(), "it never said hello");
}

#[test]
fn over_tls_what_a_hung_up_client_left_unread_is_never_carried_out_after_newer_writes() {
    let vault = Vault::new(MemDevice::new(MIB));
    for round in 0..10_u8 {
        let mut old = vault.connect();
        for cookie in 0..40 {
            old.send(cmd::WRITE, 0, cookie, 0, 4096, &[round + 100; 4096]);
        }
        drop(old);
        let mut new = vault.connect();
        assert_eq!(new.write(0, &[round; 4096]), 0);
        until("the old connection is gone", || vault.server.connections("m/disk") == 1);
        assert_eq!(new.read(0, 4096), [round; 4096]);
    }
}

#[test]
fn a_stop_answers_what_is_in_flight_over_tls() {
    let vault = Vault::new(MemDevice::new(MIB));
    let mut client = vault.connect();
    vault.device.gate.shut();
    client.send(cmd::FLUSH, 0, 1, 0, 0, &[]);
    client.send(cmd::WRITE, cflag::FUA, 2, 0, 3, &[1, 2, 3]);
    until("both wait", || vault.device.gate.waiting() == 2);
    let Vault { server, device, socket, folder, .. } = vault;
    let stopping = std::thread::spawn(move || server.stop());
    until("the stop is under way", || UnixStream::connect(&socket).is_err());
    device.gate.open();
    let mut cookies = [client.reply(0), client.reply(0)].map(|reply| (reply.cookie, reply.errno));
    cookies.sort_unstable();
    assert_eq!(cookies, [(1, 0), (2, 0)]);
    assert!(client.is_closed());
    stopping.join().unwrap();
    assert_eq!(Arc::strong_count(&device), 1, "no device is referred to after a stop");
    drop(folder);
}

#[test]
fn a_client_that_reads_nothing_over_tls_stops_only_itself() {
    let limits = Limits { grace: Duration::from_millis(200), ..Limits::default() };
    let vault = Vault::with(MemDevice::new(8 * MIB), limits);
    let mut greedy = vault.connect();
    greedy.write(0, &pattern(8 * MIB, 0));
    for cookie in 0..4 {
        greedy.send(cmd::READ, 0, cookie, 0, 8 << 20, &[]);
    }
    assert_eq!(vault.connect().write(0, &[1]), 0);
    let begin = Instant::now();
    vault.server.stop();
    assert!(begin.elapsed() < Duration::from_secs(5), "a stop does not wait for it");
}

#[test]
fn a_half_closed_client_gets_its_replies_over_tls() {
    let vault = Vault::new(MemDevice::new(MIB));
    let mut client = vault.connect();
    vault.device.gate.shut();
    client.send(cmd::FLUSH, 0, 1, 0, 0, &[]);
    until("the flush is in flight", || vault.device.gate.waiting() == 1);
    client.stream.conn.send_close_notify();
    client.stream.flush().unwrap();
    client.stream.sock.shutdown(Shutdown::Write).unwrap();
    vault.device.gate.open();
    assert_eq!(client.reply(0).cookie, 1);
    assert!(client.is_closed());
}

#[test]
fn a_renewed_certificate_counts_from_the_next_client_on() {
    let vault = Vault::new(MemDevice::new(MIB));
    let mut old = vault.connect();
    let path = vault.folder.path().join("ca.pem");
    let renewed = Authority::new();
    std::fs::write(&path, &renewed.pem).unwrap();
    let stream = vault.starttls(Some(renewed.sign(false)));
    assert_eq!(Client::chosen(stream, "m/disk").read(0, 1), [0], "who the new authority knows");
    assert_eq!(old.read(0, 1), [0], "who is in stays in");
    std::fs::write(&path, "nonsense").unwrap();
    let mut refused = vault.starttls(Some(renewed.sign(false)));
    let _ = refused.write_all(b"x");
    assert!(!matches!(refused.read(&mut [0; 1]), Ok(1..)), "files that cannot be used let nobody in");
}

#[test]
fn files_that_cannot_be_used_refuse_the_start_and_are_named() {
    let authority = Authority::new();
    let (cert, key) = authority.sign(false);
    let (_, other_key) = authority.sign(false);
    let good = [cert.as_str(), &key, &authority.pem];
    for (bad, text) in [(0, "nonsense"), (1, "nonsense"), (2, ""), (1, other_key.as_str())] {
        let folder = tempfile::tempdir().unwrap();
        let mut texts = good;
        texts[bad] = text;
        let paths = ["cert", "key", "ca"].map(|name| folder.path().join(name));
        paths.iter().zip(texts).for_each(|(path, text)| std::fs::write(path, text).unwrap());
        let [cert, key, client_ca] = paths;
        let tls = Some(TlsFiles { cert, key, client_ca });
        let device = Arc::new(MemDevice::new(MIB));
        let listener = Listener { tls, ..listener(folder.path().join("s"), &device) };
        let error = Server::start(vec![listener], Limits::default()).err().unwrap();
        assert_eq!(error.kind, Kind::InvalidInput);
        // A key of another certificate is found when the two are put together.
        let named = if text == other_key { "cert" } else { ["cert", "key", "ca"][bad] };
        assert!(error.object.ends_with(named), "{error}");
    }
}
