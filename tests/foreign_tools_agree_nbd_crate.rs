//! The `nbd` crate's client is a legacy client if ever there was one: EXPORT_NAME, the 124 zeroes, simple replies. Its server is
//! as poor a peer: no GO, no flags to speak of, and it hangs up rather than say no.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod lab;

use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;

use lab::client::Place;
use lab::{MIB, Random, Scratch, Setup, Store};

#[test]
fn a_legacy_client_is_served() {
    let scratch = Scratch::new();
    let setup = Setup::new().disk("root", 8 * MIB);
    let mut lifeboat = setup.create(&scratch, &Store::folder(&scratch)).run();
    lifeboat.wait_protected();
    let target = &lifeboat.disk("root").target;
    let Place::Unix(socket) = &target.place else { panic!("a Unix socket") };
    let mut data = vec![0; 150_001];
    Random::new(4).fill(&mut data);
    // Once by its full name, once by the empty name of a socket with one disk.
    for (name, offset) in [(target.export.as_str(), 4_097), ("", 3_000_001)] {
        let mut stream = UnixStream::connect(socket).expect("a listening proxy");
        let export = nbd::client::handshake(&mut stream, name.as_bytes()).expect("a handshake");
        assert_eq!(export.size, 8 * MIB);
        assert!(!export.readonly && export.send_flush);
        let mut disk = nbd::client::NbdClient::new(&mut stream, &export);
        disk.seek(SeekFrom::Start(offset)).expect("a place on the disk");
        disk.write_all(&data).expect("a write");
        disk.flush().expect("a flush");
        disk.seek(SeekFrom::Start(offset)).expect("a place on the disk");
        let mut back = vec![0; data.len()];
        disk.read_exact(&mut back).expect("a read");
        assert!(back == data, "the legacy client reads other bytes than it wrote");
    }
    let point = lifeboat.cut_id();
    let restored = lifeboat.restore(&point, &scratch.join("restored")).remove(0);
    assert!(lab::model::same_file(&lifeboat.disk("root").image, &restored));
    let bytes = std::fs::read(restored).expect("the restored disk");
    assert!(bytes[4_097..4_097 + data.len()] == data && bytes[3_000_001..3_000_001 + data.len()] == data);
    lifeboat.stop();
}

#[test]
fn a_legacy_client_that_names_no_export_of_ours_is_hung_up_on() {
    let scratch = Scratch::new();
    let mut lifeboat = Setup::new().disk("root", MIB).create(&scratch, &Store::folder(&scratch)).run();
    let Place::Unix(socket) = lifeboat.disk("root").target.place.clone() else { panic!("a Unix socket") };
    let mut stream = UnixStream::connect(&socket).expect("a listening proxy");
    nbd::client::handshake(&mut stream, b"vm1/other")
        .expect_err("EXPORT_NAME can only be refused by hanging up");
    // The others do not notice.
    let mut stream = UnixStream::connect(&socket).expect("a listening proxy");
    nbd::client::handshake(&mut stream, b"vm1/root").expect("a handshake");
    lifeboat.wait_protected();
    lifeboat.stop();
}

/// Serves `size` bytes to one client, as poorly as it can; the export is called "disk".
fn poor_server(size: u64) -> (UnixStream, std::thread::JoinHandle<std::io::Result<()>>) {
    let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
    let limit = Some(std::time::Duration::from_secs(30));
    ours.set_read_timeout(limit).and_then(|()| theirs.set_read_timeout(limit)).expect("time limits");
    let serve = std::thread::spawn(move || {
        let export = |name: &str| match name {
            "disk" => Ok(nbd::Export { size, send_flush: true, ..nbd::Export::<()>::default() }),
            _ => Err(std::io::ErrorKind::NotFound.into()),
        };
        nbd::server::handshake(&mut theirs, export)?;
        nbd::server::transmission(
            &mut theirs,
            std::io::Cursor::new(vec![0; usize::try_from(size).expect("a size")]),
        )
    });
    (ours, serve)
}

#[test]
fn our_client_copes_with_a_poor_server() {
    let (stream, serve) = poor_server(4 * MIB);
    let mut client = nbd_proxy::client::Client::negotiate(stream, "disk").expect("a handshake without GO");
    assert_eq!((client.size(), client.read_only()), (4 * MIB, false));
    let mut data = vec![0; 2_500_000];
    Random::new(6).fill(&mut data);
    client.write(&data, 12_345).expect("a write");
    client.flush().expect("a flush");
    let mut back = vec![0; data.len()];
    client.read(&mut back, 12_345).expect("a read");
    assert!(back == data, "other bytes came back than were written");
    // What it does not offer is refused here, so that the stream stays in step.
    assert_eq!(client.trim(0, 4096).expect_err("no trim").kind, nbd_proxy::Kind::InvalidInput);
    client.read(&mut back[..512], 0).expect("the connection is in step");
    client.close().expect("a farewell");
    serve.join().expect("the server").expect("an end without error");
}

#[test]
fn our_client_names_what_a_poor_server_hung_up_on() {
    let (stream, serve) = poor_server(MIB);
    let error = nbd_proxy::client::Client::negotiate(stream, "other").expect_err("there is no such export");
    assert_eq!((error.kind, error.object.as_str()), (nbd_proxy::Kind::Unavailable, "other"));
    serve.join().expect("the server").expect_err("it refused");
}
