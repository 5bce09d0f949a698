//! libnbd and QEMU judge exports on TCP that want a certificate of both sides, and `openssl` those who have none.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod lab;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use lab::client::Place;
use lab::{Lifeboat, MIB, Random, Scratch, Setup, Store, judge, model, run, tool};

/// A throw-away authority, made by GnuTLS's own tool, in the folder layout that QEMU and libnbd expect.
struct Authority(PathBuf);

impl Authority {
    fn new(scratch: &Scratch, name: &str) -> Self {
        let folder = scratch.join(name);
        std::fs::create_dir(&folder).expect("a folder");
        let authority = Self(folder);
        authority.key("ca-key.pem");
        let template =
            authority.template("ca", &format!("cn = {name}\nca\ncert_signing_key\nexpiration_days = 10\n"));
        let mut certtool = authority.certtool(&["--generate-self-signed", "--load-privkey"]);
        run(certtool
            .arg(authority.file("ca-key.pem"))
            .arg("--template")
            .arg(template)
            .args(["--outfile".as_ref(), authority.file("ca-cert.pem").as_os_str()]));
        authority.sign(
            "server",
            "tls_www_server\nip_address = 127.0.0.1\ndns_name = localhost\nexpiration_days = 10\n",
        );
        authority.sign("client", "tls_www_client\nexpiration_days = 10\n");
        authority
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn certtool(&self, args: &[&str]) -> Command {
        let mut command = tool("certtool");
        command.args(args);
        command
    }

    fn key(&self, name: &str) {
        run(self.certtool(&["--generate-privkey", "--outfile"]).arg(self.file(name)));
    }

    fn template(&self, name: &str, text: &str) -> PathBuf {
        let path = self.file(&format!("{name}.info"));
        std::fs::write(&path, text).expect("a template");
        path
    }

    /// A certificate `NAME-cert.pem` and its key.
    fn sign(&self, name: &str, text: &str) {
        self.key(&format!("{name}-key.pem"));
        let text = format!("cn = {name}\nsigning_key\nencryption_key\n{text}");
        let mut certtool = self.certtool(&["--generate-certificate", "--load-ca-certificate"]);
        certtool.arg(self.file("ca-cert.pem")).arg("--load-ca-privkey").arg(self.file("ca-key.pem"));
        certtool.arg("--load-privkey").arg(self.file(&format!("{name}-key.pem")));
        certtool.arg("--template").arg(self.template(name, &text));
        run(certtool.arg("--outfile").arg(self.file(&format!("{name}-cert.pem"))));
    }

    /// `[tls]`
    fn table(&self) -> String {
        let [cert, key, ca] =
            ["server-cert.pem", "server-key.pem", "ca-cert.pem"].map(|name| self.file(name));
        format!(
            "[tls]\ncert_file = \"{}\"\nkey_file = \"{}\"\nclient_ca_file = \"{}\"",
            cert.display(),
            key.display(),
            ca.display()
        )
    }
}

fn judges() -> bool {
    judge::have(&["certtool", "openssl", "nbdinfo", "nbdcopy", "qemu-img", "qemu7:qemu-img"])
}

fn protect(scratch: &Scratch, authority: &Authority) -> Lifeboat {
    let setup = Setup::new().disk("root", 32 * MIB).tcp().table(&authority.table());
    let lifeboat = setup.create(scratch, &Store::folder(scratch)).run();
    lifeboat.wait_protected();
    lifeboat
}

fn port(lifeboat: &Lifeboat) -> u16 {
    match lifeboat.disk("root").target.place {
        Place::Tcp(port) => port,
        Place::Unix(_) => panic!("TCP was asked for"),
    }
}

/// The disk as libnbd names it, with the certificates in `folder`.
fn nbds(lifeboat: &Lifeboat, folder: &Path) -> String {
    format!("nbds://127.0.0.1:{}/vm1%2Froot?tls-certificates={}", port(lifeboat), folder.display())
}

/// libnbd takes the certificates of a folder by the names it knows.
#[test]
fn libnbd_copies_in_and_out_over_tls() {
    if !judges() {
        return;
    }
    let scratch = Scratch::new();
    let authority = Authority::new(&scratch, "pki");
    let mut lifeboat = protect(&scratch, &authority);
    let uri = nbds(&lifeboat, &authority.0);
    let info = run(tool("nbdinfo").arg("--json").arg(&uri));
    let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
    assert_eq!(info["TLS"], true, "{info}");
    let (there, back) = (scratch.join("there"), scratch.join("back"));
    let mut bytes = vec![0; usize::try_from(32 * MIB).expect("a size")];
    Random::new(3).fill(&mut bytes[..20_000_000]);
    std::fs::write(&there, &bytes).expect("room");
    run(tool("nbdcopy").args(["--connections=4", "--flush"]).arg(&there).arg(&uri));
    run(tool("nbdcopy").arg("--connections=4").arg(&uri).arg(&back));
    assert!(model::same_file(&there, &back), "what came out is not what went in");
    let point = lifeboat.cut_id();
    let restored = lifeboat.restore(&point, &scratch.join("restored")).remove(0);
    assert!(model::same_file(&there, &restored), "the point is another");
    lifeboat.stop();
}

#[test]
fn qemu_of_two_generations_converts_and_compares_over_tls() {
    if !judges() {
        return;
    }
    let scratch = Scratch::new();
    let authority = Authority::new(&scratch, "pki");
    let mut lifeboat = protect(&scratch, &authority);
    let source = scratch.join("source");
    let mut bytes = vec![0; usize::try_from(32 * MIB).expect("a size")];
    Random::new(4).fill(&mut bytes[5_000_000..9_000_000]);
    std::fs::write(&source, &bytes).expect("room");
    for generation in ["qemu7:qemu-img", "qemu-img"] {
        let credentials = format!("tls-creds-x509,id=tls0,endpoint=client,dir={}", authority.0.display());
        let target = format!(
            "driver=nbd,server.type=inet,server.host=127.0.0.1,server.port={},export=vm1/root,tls-creds=tls0",
            port(&lifeboat)
        );
        let img = |command: &str| {
            let mut img = tool(generation);
            img.arg(command).args(["--object", &credentials]);
            img
        };
        run(img("convert").args(["-n", "--target-image-opts", "-f", "raw"]).arg(&source).arg(&target));
        let opened = format!("driver=raw,file.filename={}", source.display());
        run(img("compare").args(["--image-opts", &opened, &target]));
    }
    lifeboat.stop();
}

#[test]
fn who_has_no_certificate_an_expired_or_a_foreign_one_is_refused_and_named_in_the_log() {
    if !judges() {
        return;
    }
    let scratch = Scratch::new();
    let authority = Authority::new(&scratch, "pki");
    let mut lifeboat = protect(&scratch, &authority);
    let good = nbds(&lifeboat, &authority.0);
    authority.sign("expired", "tls_www_client\nactivation_date = \"2001-01-01 00:00:00\"\nexpiration_date = \"2002-01-01 00:00:00\"\n");
    let stranger = Authority::new(&scratch, "stranger");
    let credentials = |name: &str, from: &Authority| {
        let folder = scratch.join(format!("as-{name}"));
        std::fs::create_dir(&folder).expect("a folder");
        std::fs::copy(authority.file("ca-cert.pem"), folder.join("ca-cert.pem")).expect("a copy");
        if name != "nobody" {
            for kind in ["cert", "key"] {
                let to = folder.join(format!("client-{kind}.pem"));
                let source = if name == "stranger" { "client" } else { name };
                std::fs::copy(from.file(&format!("{source}-{kind}.pem")), to).expect("a copy");
            }
        }
        folder
    };
    let lines = || {
        let log = std::fs::read_to_string(lifeboat.log()).expect("a log");
        log.lines()
            .filter(|line| line.contains("ended a client's TLS connection"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    for (name, from, reasons) in [
        ("nobody", &authority, &["peer sent no certificates"][..]),
        ("expired", &authority, &["certificate expired"]),
        // GnuTLS keeps a certificate back that the server would not know.
        ("stranger", &stranger, &["UnknownIssuer", "peer sent no certificates"]),
    ] {
        let before = lines().len();
        let uri = nbds(&lifeboat, &credentials(name, from));
        let refused = judge::output(tool("nbdinfo").arg(&uri));
        assert!(!refused.status.success(), "{name} was let in");
        let line = lab::until(&format!("a line about {name}"), std::time::Duration::from_secs(10), || {
            lines().get(before).cloned()
        });
        assert!(reasons.iter().any(|reason| line.contains(reason)), "{name}: {line}");
        run(tool("nbdinfo").args(["--size", &good]));
    }
    // In the clear nothing is told, whatever the tool.
    let clear = format!("nbd://127.0.0.1:{}/vm1%2Froot", port(&lifeboat));
    let refused = judge::output(tool("nbdinfo").arg(&clear));
    assert!(!refused.status.success(), "served in the clear");
    let refused = judge::output(tool("qemu-img").args(["info", &clear]));
    assert!(!refused.status.success(), "served in the clear");
    lifeboat.stop();
}

/// What a man in the middle can do before the handshake of TLS: put bytes behind the client's STARTTLS.
#[test]
fn unprotected_bytes_behind_starttls_are_never_looked_at() {
    let scratch = Scratch::new();
    if !judges() {
        return;
    }
    let authority = Authority::new(&scratch, "pki");
    let mut lifeboat = protect(&scratch, &authority);
    let mut stream = TcpStream::connect(("127.0.0.1", port(&lifeboat))).expect("a connection");
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).expect("a greeting");
    let option = |number: u32| [&b"IHAVEOPT"[..], &number.to_be_bytes(), &[0; 4]].concat();
    let injected = [&3_u32.to_be_bytes()[..], &option(5), &option(3)].concat();
    stream.write_all(&injected).expect("sent");
    let mut answer = Vec::new();
    // A reset is an end as well.
    let _ = stream.read_to_end(&mut answer);
    assert_eq!(answer.len(), 20, "the acknowledgement of STARTTLS and nothing more");
    let log = std::fs::read_to_string(lifeboat.log()).expect("a log");
    assert!(log.contains("unprotected bytes behind STARTTLS"), "{log}");
    run(tool("nbdinfo").args(["--size", &nbds(&lifeboat, &authority.0)]));
    lifeboat.stop();
}
