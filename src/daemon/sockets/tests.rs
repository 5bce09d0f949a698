use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::Path;

use super::*;

fn unix(folder: &Path, name: &str) -> (Socket, Listen) {
    let path = folder.join(format!("{name}.sock"));
    let socket = Listening::Unix(UnixListener::bind(&path).unwrap());
    let place = Place::Path(path.clone());
    (Socket { name: name.to_owned(), place, socket }, Listen::Unix { path, mode: 0o600 })
}

fn elsewhere() -> Listen {
    Listen::Unix { path: "/nowhere".into(), mode: 0o600 }
}

#[test]
fn a_socket_goes_to_the_disk_of_its_name_or_of_its_address() {
    let folder = tempfile::tempdir().unwrap();
    let (by_name, _) = unix(folder.path(), "web1");
    let (by_path, listen) = unix(folder.path(), "other");
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = tcp.local_addr().unwrap();
    let by_address = Socket { name: "x".into(), place: Place::Address(address), socket: Listening::Tcp(tcp) };
    let mut passed = Passed { sockets: vec![by_name, by_path, by_address] };
    passed.sockets[0].name = "web1/root".into();
    assert!(passed.for_disk("web1/data", &elsewhere(), false).is_none());
    assert!(
        passed.for_disk("web1/data", &elsewhere(), true).is_none(),
        "one disk and several sockets say nothing"
    );
    assert!(matches!(
        passed.for_disk("web1/root", &elsewhere(), false),
        Some(Inherited { socket: Listening::Unix(_), ours: false })
    ));
    assert!(matches!(
        passed.for_disk("web1/data", &listen, false),
        Some(Inherited { socket: Listening::Unix(_), ours: false })
    ));
    assert!(matches!(
        passed.for_disk("web1/tcp", &Listen::Tcp(address), false),
        Some(Inherited { socket: Listening::Tcp(_), ours: false })
    ));
    assert!(passed.none_left().is_ok());
}

#[test]
fn the_only_socket_goes_to_the_only_disk() {
    let folder = tempfile::tempdir().unwrap();
    let mut passed = Passed { sockets: vec![unix(folder.path(), "unknown").0] };
    assert!(passed.for_disk("web1/root", &elsewhere(), false).is_none(), "there are other disks");
    assert!(passed.for_disk("web1/root", &elsewhere(), true).is_some());
}

#[test]
fn a_socket_that_belongs_to_no_disk_is_refused_by_its_address() {
    let folder = tempfile::tempdir().unwrap();
    let (socket, Listen::Unix { path, .. }) = unix(folder.path(), "stray") else { panic!("a path") };
    let error = Passed { sockets: vec![socket] }.none_left().unwrap_err();
    assert_eq!(error.kind, Kind::InvalidInput);
    assert!(error.message.contains(path.to_str().unwrap()) && error.message.contains("stray"), "{error}");
}

#[test]
fn what_a_lifeboat_handed_over_is_ours_and_may_be_left() {
    let folder = tempfile::tempdir().unwrap();
    let (mut socket, listen) = unix(folder.path(), "root");
    let (mut dropped, _) = unix(folder.path(), "dropped");
    for socket in [&mut socket, &mut dropped] {
        socket.name = HANDED_OVER.to_owned();
    }
    let mut passed = Passed { sockets: vec![socket, dropped] };
    assert!(passed.for_disk("web1/root", &listen, false).is_some_and(|inherited| inherited.ours));
    assert!(passed.none_left().is_ok(), "a disk may leave the configuration");
}
