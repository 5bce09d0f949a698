//! Many clients, and clients that say nothing.

use std::os::unix::net::UnixStream;

use super::client::{Client, string};
use super::*;
use crate::nbd::wire::{opt, rep};

const MIB: usize = 1 << 20;

fn go(client: &mut Client<UnixStream>) -> u32 {
    client.option(opt::GO, &[&string("m/disk")[..], &[0, 0]].concat())
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

/// Ten thousand connections that never say a word: who works goes on, who comes is let in, and no more is held for them
/// than for a few.
#[test]
fn ten_thousand_half_open_connections_hurt_nobody() {
    let limits = Limits { handshake: Duration::from_secs(60), handshakes: 16, ..Limits::default() };
    let stand = Stand::with(MemDevice::new(MIB), limits);
    let mut working = Client::new(&stand.socket, "m/disk");
    let before = threads();
    let mut most = 0;
    let mut silent = std::collections::VecDeque::new();
    for n in 0..10_000_u32 {
        silent.push_back(UnixStream::connect(&stand.socket).unwrap());
        // The test has no ten thousand descriptors, but far more than the lobby has places.
        if silent.len() > 400 {
            silent.pop_front();
        }
        if n % 500 == 0 {
            let data = n.to_be_bytes();
            assert_eq!(working.write(0, &data), 0, "who works goes on");
            assert_eq!(Client::new(&stand.socket, "m/disk").read(0, 4), data, "who comes is let in");
            most = most.max(threads().saturating_sub(before));
        }
    }
    // Other tests of this process have threads of their own: what matters is that there are not thousands.
    assert!(most < 1000, "{most} threads more");
    until("only one is seated", || stand.server.connections("m/disk") == 1);
    drop(silent);
    assert_eq!(working.read(0, 4), 9500_u32.to_be_bytes());
}

#[test]
fn the_one_that_dallied_longest_makes_room() {
    let limits = Limits { handshake: Duration::from_secs(60), handshakes: 2, ..Limits::default() };
    let stand = Stand::with(MemDevice::new(MIB), limits);
    let mut clients: Vec<_> = (0..3).map(|_| Client::hello(&stand.socket)).collect();
    assert!(clients.remove(0).is_closed());
    for mut client in clients {
        assert_eq!(go(&mut client), rep::ACK, "the others have their time");
    }
}

#[test]
fn one_connection_too_many_is_refused_with_a_reason() {
    let stand = Stand::with(MemDevice::new(MIB), Limits { connections: 2, ..Limits::default() });
    let mut seated = [0, 1].map(|_| Client::new(&stand.socket, "m/disk"));
    let mut third = Client::hello(&stand.socket);
    assert_eq!(go(&mut third), rep::ERR_POLICY);
    assert!(third.is_closed());
    assert_eq!(seated[1].write(0, &[1]), 0, "the others go on");
    drop(seated);
    until("there is room again", || stand.server.connections("m/disk") == 0);
    assert_eq!(Client::new(&stand.socket, "m/disk").read(0, 1), [1]);
}

#[test]
fn an_export_has_no_more_clients_than_it_may() {
    let folder = tempfile::tempdir().unwrap();
    let device = Arc::new(MemDevice::new(MIB));
    let path = folder.path().join("s");
    let mut listener = listener(path.clone(), &device);
    listener.exports[0].max_clients = Some(1);
    listener.exports.push(Export::new("m/other", Arc::<MemDevice>::clone(&device)));
    let server = Server::start(vec![listener], Limits::default()).unwrap();
    let mut first = Client::new(&path, "m/disk");
    let mut second = Client::hello(&path);
    assert_eq!(go(&mut second), rep::ERR_POLICY);
    assert!(second.is_closed());
    let mut legacy = Client::hello(&path);
    legacy.send_option(opt::EXPORT_NAME, b"m/disk");
    assert!(legacy.is_closed(), "EXPORT_NAME has no other way to say no");
    assert_eq!(Client::new(&path, "m/other").write(0, &[1]), 0, "another export has its own limit");
    assert_eq!(first.read(0, 1), [1]);
    // The same client again: its old connection has ended, so it is not one too many.
    for round in 0..20 {
        drop(first);
        first = Client::new(&path, "m/disk");
        assert_eq!(first.write(1, &[round]), 0);
    }
    server.stop();
}
