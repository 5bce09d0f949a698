//! How connections and servers end, and what must hold when they do.

use std::io::Write as _;
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::Ordering;

use super::client::{Client, string};
use super::*;
use crate::nbd::wire::{cflag, cmd, opt, rep};

const MIB: usize = 1 << 20;

#[test]
fn a_stop_finishes_and_answers_what_is_in_flight() {
    let stand = Stand::new(MemDevice::new(MIB));
    let mut client = Client::new(&stand.socket, "m/disk");
    stand.device.gate.shut();
    client.send(cmd::FLUSH, 0, 1, 0, 0, &[]);
    client.send(cmd::WRITE, cflag::FUA, 2, 0, 3, &[1, 2, 3]);
    until("both wait", || stand.device.gate.waiting() == 2);
    let Stand { server, device, socket, _folder: folder } = stand;
    let stopping = std::thread::spawn(move || server.stop());
    until("the stop is under way", || UnixStream::connect(&socket).is_err());
    device.gate.open();
    let mut cookies = [client.reply(0), client.reply(0)].map(|reply| (reply.cookie, reply.errno));
    cookies.sort_unstable();
    assert_eq!(cookies, [(1, 0), (2, 0)]);
    assert!(client.is_closed());
    stopping.join().unwrap();
    assert_eq!(folder.path().read_dir().unwrap().count(), 0, "the socket file is removed");
    assert_eq!(Arc::strong_count(&device), 1, "no device is referred to after a stop");
}

#[test]
fn a_stop_does_not_wait_for_a_client_that_does_not_read() {
    let limits = Limits { grace: Duration::from_millis(200), ..Limits::default() };
    let stand = Stand::with(MemDevice::new(8 * MIB), limits);
    let mut client = Client::new(&stand.socket, "m/disk");
    client.write(0, &pattern(8 * MIB, 0));
    for cookie in 0..4 {
        client.send(cmd::READ, if cookie == 0 { cflag::DF } else { 0 }, cookie, 0, 8 << 20, &[]);
    }
    let begin = Instant::now();
    stand.server.stop();
    assert!(begin.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_client_that_asks_without_reading_stops_only_itself() {
    let stand = Stand::new(MemDevice::new(8 * MIB));
    let mut greedy = Client::new(&stand.socket, "m/disk");
    greedy.write(0, &pattern(8 * MIB, 0));
    stand.device.cold.store(true, Ordering::SeqCst);
    for cookie in 0..40 {
        greedy.send(cmd::READ, 0, cookie, 0, 8 << 20, &[]);
    }
    let mut other = Client::new(&stand.socket, "m/disk");
    for _ in 0..50 {
        assert_eq!(other.read(7, 100), pattern(107, 0)[7..]);
        assert_eq!(other.ask(cmd::FLUSH, 0, 0, 0, &[]).errno, 0);
    }
    drop(greedy);
    until("its connection is gone", || stand.server.connections("m/disk") == 1);
}

#[test]
fn a_slow_reader_gets_everything() {
    let stand = Stand::new(MemDevice::new(8 * MIB));
    let mut client = Client::new(&stand.socket, "m/disk");
    client.write(0, &pattern(8 * MIB, 0));
    stand.device.cold.store(true, Ordering::SeqCst);
    for cookie in 0..6 {
        client.send(cmd::READ, 0, cookie, 0, 8 << 20, &[]);
    }
    std::thread::sleep(Duration::from_millis(50));
    let mut replies: Vec<super::client::Reply> = Vec::new();
    let mut done = 0;
    replies.resize_with(6, Default::default);
    while done < 6 {
        let mut piece = super::client::Reply::default();
        done += usize::from(client.chunk(&mut piece, 0));
        replies[usize::try_from(piece.cookie).unwrap()].data.append(&mut piece.data);
    }
    for reply in replies {
        assert!(reply.bytes(0, 8 << 20) == pattern(8 * MIB, 0));
    }
}

#[test]
fn garbage_ends_its_own_connection_only() {
    let stand = Stand::new(MemDevice::new(MIB));
    let mut good = Client::new(&stand.socket, "m/disk");
    let mut bad = Client::new(&stand.socket, "m/disk");
    bad.stream.write_all(&[0xee; 4096]).unwrap();
    assert!(bad.is_closed());
    let mut rude = Client::hello(&stand.socket);
    rude.stream.write_all(&[0xee; 64]).unwrap();
    assert!(rude.is_closed());
    assert_eq!(good.write(0, &[1]), 0);
}

#[test]
fn a_handshake_has_a_deadline() {
    let limits = Limits { handshake: Duration::from_millis(100), ..Limits::default() };
    let stand = Stand::with(MemDevice::new(MIB), limits);
    let mut slow = Client::hello(&stand.socket);
    let mut done = Client::new(&stand.socket, "m/disk");
    assert!(slow.is_closed());
    assert_eq!(done.read(0, 1), [0], "the deadline ends with the handshake");
}

#[test]
fn disconnect_and_abort_close_the_connection() {
    let stand = Stand::new(MemDevice::new(MIB));
    let mut client = Client::new(&stand.socket, "m/disk");
    client.send(cmd::WRITE, 0, 1, 0, 1, &[9]);
    client.send(cmd::DISC, 0, 2, 0, 0, &[]);
    assert_eq!(client.reply(0).cookie, 1);
    assert!(client.is_closed());
    let mut polite = Client::hello(&stand.socket);
    assert_eq!(polite.option(opt::ABORT, &[]), rep::ACK);
    assert!(polite.is_closed());
}

/// A client hangs up with a durable write in flight and another one unread; the next client must find the first one
/// finished before it is let in, and its own newer write must stay.
#[test]
fn a_client_that_comes_back_waits_for_its_old_connection() {
    let stand = Stand::with(MemDevice::new(MIB), Limits { workers: 1, ..Limits::default() });
    let mut old = Client::new(&stand.socket, "m/disk");
    stand.device.gate.shut();
    old.send(cmd::WRITE, cflag::FUA, 1, 0, 4, b"old!");
    until("the old write is in flight", || stand.device.gate.waiting() == 1);
    drop(old);
    let mut new = Client::hello(&stand.socket);
    new.send_option(opt::GO, &[&string("m/disk")[..], &[0, 0]].concat());
    new.stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let early = std::io::Read::read(&mut new.stream, &mut [0; 1]);
    assert!(early.is_err(), "the new client is not let in yet");
    stand.device.gate.open();
    new.stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut answer = [0; 20 + 12 + 20];
    std::io::Read::read_exact(&mut new.stream, &mut answer).unwrap();
    assert_eq!(stand.device.data.lock().unwrap()[..4], *b"old!");
    assert_eq!(new.write(0, b"new!"), 0);
    until("the old connection is gone", || stand.server.connections("m/disk") == 1);
    assert_eq!(new.read(0, 4), b"new!");
}

#[test]
fn what_a_hung_up_client_left_unread_is_never_carried_out_after_newer_writes() {
    for round in 0..30_u8 {
        let stand = Stand::new(MemDevice::new(MIB));
        let mut old = Client::new(&stand.socket, "m/disk");
        for cookie in 0..40 {
            old.send(cmd::WRITE, 0, cookie, 0, 4096, &[round.wrapping_add(100); 4096]);
        }
        drop(old);
        let mut new = Client::new(&stand.socket, "m/disk");
        assert_eq!(new.write(0, &[round; 4096]), 0);
        until("the old connection is gone", || stand.server.connections("m/disk") == 1);
        assert_eq!(new.read(0, 4096), [round; 4096]);
    }
}

#[test]
fn a_half_closed_client_gets_its_replies_before_the_next_one_is_let_in() {
    let stand = Stand::new(MemDevice::new(MIB));
    let mut old = Client::new(&stand.socket, "m/disk");
    stand.device.gate.shut();
    old.send(cmd::FLUSH, 0, 1, 0, 0, &[]);
    old.stream.shutdown(Shutdown::Write).unwrap();
    until("the flush is in flight", || stand.device.gate.waiting() == 1);
    let socket = stand.socket.clone();
    let next = std::thread::spawn(move || Client::new(&socket, "m/disk").read(0, 1));
    std::thread::sleep(Duration::from_millis(50));
    stand.device.gate.open();
    assert_eq!(old.reply(0).cookie, 1);
    assert!(old.is_closed());
    assert_eq!(next.join().unwrap(), [0]);
}

#[test]
fn a_hang_up_with_replies_queued_is_an_ordinary_end() {
    let stand = Stand::new(MemDevice::new(8 * MIB));
    for cold in [false, true] {
        stand.device.cold.store(cold, Ordering::SeqCst);
        for _ in 0..20 {
            let mut client = Client::new(&stand.socket, "m/disk");
            for cookie in 0..10 {
                client.send(cmd::READ, 0, cookie, 0, 2 << 20, &[]);
                client.send(cmd::FLUSH, 0, cookie, 0, 0, &[]);
            }
        }
    }
    until("all are gone", || stand.server.connections("m/disk") == 0);
    assert_eq!(Client::new(&stand.socket, "m/disk").write(0, &[1]), 0);
}

#[test]
fn the_socket_file_is_private_and_a_dead_one_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "a dead socket lies there");
    let device = Arc::new(MemDevice::new(MIB));
    let server = Server::start(vec![listener(path.clone(), &device)], Limits::default()).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let second = Server::start(vec![listener(path.clone(), &device)], Limits::default()).err().unwrap();
    assert_eq!(second.kind, Kind::InUse);
    assert_eq!(Client::new(&path, "").write(0, &[1]), 0, "the first one still serves");
    server.stop();
    assert!(!path.exists());
}

#[test]
fn what_is_not_a_socket_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    std::fs::write(&path, "precious").unwrap();
    let device = Arc::new(MemDevice::new(MIB));
    let error = Server::start(vec![listener(path.clone(), &device)], Limits::default()).err().unwrap();
    assert_eq!(error.kind, Kind::Exists);
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[test]
fn a_failed_start_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let device = Arc::new(MemDevice::new(MIB));
    let good = listener(folder.path().join("good"), &device);
    let bad = listener(folder.path().join("no/such/folder"), &device);
    assert!(Server::start(vec![good, bad], Limits::default()).is_err());
    assert_eq!(folder.path().read_dir().unwrap().count(), 0);
    assert_eq!(Arc::strong_count(&device), 1);
}

#[test]
fn one_device_under_two_sockets_is_one_disk() {
    let folder = tempfile::tempdir().unwrap();
    let device = Arc::new(MemDevice::new(MIB));
    let paths = ["a", "b"].map(|name| folder.path().join(name));
    let listeners = paths.iter().map(|path| listener(path.clone(), &device)).collect();
    let server = Server::start(listeners, Limits::default()).unwrap();
    let mut clients = paths.each_ref().map(|path| Client::new(path, ""));
    assert_eq!(server.connections("m/disk"), 2);
    assert_eq!(clients[0].write(0, &[5]), 0);
    assert_eq!(clients[1].read(0, 1), [5]);
}

#[test]
fn a_handed_over_socket_refuses_nobody_and_belongs_to_the_next_server() {
    let stand = Stand::new(MemDevice::new(MIB));
    let mut client = Client::new(&stand.socket, "m/disk");
    stand.device.gate.shut();
    client.send(cmd::WRITE, cflag::FUA, 2, 0, 3, &[1, 2, 3]);
    until("it waits", || stand.device.gate.waiting() == 1);
    let Stand { server, device, socket, _folder: folder } = stand;
    let handing = std::thread::spawn(move || server.hand_over());
    std::thread::sleep(Duration::from_millis(20));
    // Who comes in between is not refused.
    let waiting = UnixStream::connect(&socket).unwrap();
    device.gate.open();
    assert_eq!(client.reply(0).errno, 0, "what was in flight is answered");
    assert!(client.is_closed());
    let [handed] = <[HandedOver; 1]>::try_from(handing.join().unwrap()).unwrap();
    assert!(handed.ours && socket.exists());
    assert_eq!(Arc::strong_count(&device), 1, "no device is referred to");

    let inherited = Inherited { socket: Listening::Unix(handed.fd.into()), ours: handed.ours };
    let next = Listener { inherited: Some(inherited), ..listener(socket.clone(), &device) };
    let server = Server::start(vec![next], Limits::default()).unwrap();
    assert_eq!(Client::on(waiting, "m/disk").read(0, 3), [1, 2, 3], "who waited is served by the next one");
    server.stop();
    assert_eq!(folder.path().read_dir().unwrap().count(), 0, "which removes the file at its end");
}
