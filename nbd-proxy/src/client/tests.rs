//! What a hostile server may say, and that a well-behaved one is understood.

use std::io::{self, Cursor, Read, Write};

use super::handshake::{OPTION_REPLIES_MAX, ZEROES};
use super::*;
use crate::nbd::wire::{OPTION_REPLY_MAGIC, SIMPLE_REPLY_MAGIC, opt, rep};

/// A server that says its part whatever it hears.
#[derive(Debug)]
struct Script {
    says: Cursor<Vec<u8>>,
    heard: Vec<u8>,
}

impl Read for Script {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.says.read(buf)
    }
}

impl Write for Script {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.heard.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn greeting() -> Vec<u8> {
    let mut says = b"NBDMAGICIHAVEOPT".to_vec();
    says.extend([0, 3]);
    says
}

fn option_reply(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut says = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
    says.extend(opt::GO.to_be_bytes());
    says.extend(kind.to_be_bytes());
    says.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
    says.extend(data);
    says
}

fn export(size: u64, flags: u16) -> Vec<u8> {
    let mut data = vec![0, 0];
    data.extend(size.to_be_bytes());
    data.extend(flags.to_be_bytes());
    option_reply(rep::INFO, &data)
}

fn simple_reply(error: u32, cookie: u64) -> Vec<u8> {
    let mut says = SIMPLE_REPLY_MAGIC.to_be_bytes().to_vec();
    says.extend(error.to_be_bytes());
    says.extend(cookie.to_be_bytes());
    says
}

fn talk(parts: &[Vec<u8>]) -> Result<Client<Script>> {
    Client::negotiate(Script { says: Cursor::new(parts.concat()), heard: Vec::new() }, "web1/root")
}

fn agreed(rest: &[Vec<u8>]) -> Client<Script> {
    let mut parts = vec![
        greeting(),
        export(1 << 20, 1 | tflag::SEND_FLUSH | tflag::SEND_TRIM),
        option_reply(rep::ACK, &[]),
    ];
    parts.extend_from_slice(rest);
    talk(&parts).unwrap()
}

#[test]
fn a_plain_server_is_understood() {
    let mut client = agreed(&[simple_reply(0, 1), simple_reply(0, 2), b"data".to_vec(), simple_reply(0, 3)]);
    assert_eq!((client.size(), client.read_only()), (1 << 20, false));
    client.write(b"data", 4096).unwrap();
    let mut back = [0; 4];
    client.read(&mut back, 4096).unwrap();
    assert_eq!(&back, b"data");
    client.flush().unwrap();
    let request = &client.stream.heard[4 + 8 + 4 + 4 + 6 + 9..];
    assert_eq!(&request[..8], &[0x25, 0x60, 0x95, 0x13, 0, 0, 0, 1], "magic, no flags, write");
    assert_eq!(&request[8..28], &[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 4]);
    assert_eq!(&request[28..32], b"data");
}

#[test]
fn an_answered_error_leaves_the_connection_in_step() {
    let mut client = agreed(&[simple_reply(28, 1), simple_reply(0, 2)]);
    assert_eq!(client.write(&[1; 512], 0).unwrap_err().kind, Kind::NoSpace);
    client.flush().unwrap();
}

#[test]
fn a_server_without_go_is_asked_by_export_name() {
    let described = [(1_u64 << 20).to_be_bytes().to_vec(), vec![0, 1]].concat();
    let unsupported = option_reply(rep::ERR_UNSUP, b"");
    let client = talk(&[greeting(), unsupported.clone(), described.clone()]).unwrap();
    assert_eq!((client.size(), client.agreed.flags), (1 << 20, 1));
    // A server that never heard of leaving the zeroes out sends them.
    let old = [b"NBDMAGICIHAVEOPT".to_vec(), vec![0, 1]].concat();
    let parts = [old, unsupported, described, vec![0; ZEROES], simple_reply(0, 1)];
    let mut client = talk(&parts).unwrap();
    client.write(b"data", 0).unwrap();
}

#[test]
fn an_absent_export_is_named() {
    let error = talk(&[greeting(), option_reply(rep::ERR_UNKNOWN, b"no such export")]).unwrap_err();
    assert_eq!(error.kind, Kind::NotFound);
    assert!(error.object == "web1/root" && error.message.contains("no such export"), "{error}");
}

#[test]
fn a_hostile_server_is_refused_before_anything_is_allocated() {
    let mut huge = option_reply(rep::INFO, &[]);
    huge.truncate(16);
    huge.extend(u32::MAX.to_be_bytes());
    let endless = vec![option_reply(rep::INFO, &[0, 7]); OPTION_REPLIES_MAX + 1].concat();
    let hostile: [(&str, Vec<u8>); 6] = [
        ("an endless option reply", huge),
        ("endless informations", endless),
        ("no size", option_reply(rep::ACK, &[])),
        ("a negative size", export(u64::MAX, 1)),
        ("a short description", option_reply(rep::INFO, &[0, 0, 1])),
        ("an unknown answer", option_reply(77, &[])),
    ];
    for (what, says) in hostile {
        let error = talk(&[greeting(), says]).unwrap_err();
        assert_eq!(error.kind, Kind::Corrupt, "{what}: {error}");
    }
    assert_eq!(talk(&[b"SSH-2.0-OpenSSH_9.2 and more".to_vec()]).unwrap_err().kind, Kind::Corrupt);
}

#[test]
fn a_reply_to_another_request_is_refused() {
    let mut client = agreed(&[simple_reply(0, 9)]);
    assert_eq!(client.flush().unwrap_err().kind, Kind::Corrupt);
}

#[test]
fn a_server_that_hangs_up_is_said_to_be_gone() {
    let mut client = agreed(&[simple_reply(0, 1), vec![1, 2]]);
    assert_eq!(client.read(&mut [0; 4], 0).unwrap_err().kind, Kind::Unavailable);
}
