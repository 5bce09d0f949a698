//! Extended headers over real sockets, on devices larger than 32 bits, and the contexts of block status.

use std::io;
use std::ops::Range;
use std::sync::Mutex;

use uuid::Uuid;

use super::client::Client;
use super::*;
use crate::device::{Capabilities, Extent, Write, ZeroMode};
use crate::nbd::wire::{self, Errno, cflag, cmd};
use crate::nbd::{Framing, RawRequest};

const SIZE: u64 = 1 << 44;

/// An empty device of 16 TiB that remembers what it was asked.
#[derive(Default)]
struct Vast {
    asked: Mutex<Vec<(&'static str, Range<u64>)>>,
}

impl Vast {
    fn note(&self, what: &'static str, offset: u64, len: u64) -> io::Result<()> {
        self.asked.lock().unwrap().push((what, offset..offset + len));
        Ok(())
    }
}

impl BlockDevice for Vast {
    fn size(&self) -> u64 {
        SIZE
    }

    fn capabilities(&self) -> Capabilities {
        MemDevice::new(0).capabilities
    }

    fn try_read(&self, buf: &mut [u8], _: u64) -> io::Result<bool> {
        buf.fill(0);
        Ok(true)
    }

    fn read(&self, buf: &mut [u8], _: u64) -> io::Result<()> {
        buf.fill(0);
        Ok(())
    }

    fn write_batch(&self, writes: &[Write<'_>], results: &mut Vec<io::Result<()>>) {
        results.extend(writes.iter().map(|write| self.note("write", write.offset, write.data.len() as u64)));
    }

    fn zero(&self, offset: u64, len: u64, mode: ZeroMode) -> io::Result<()> {
        self.note(if mode.punch { "punch" } else { "zero" }, offset, len)
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn extents(&self, offset: u64, len: u64, out: &mut Vec<Extent>) -> io::Result<()> {
        out.push(Extent { offset, len, hole: true });
        Ok(())
    }

    fn cache(&self, offset: u64, len: u64) -> io::Result<()> {
        self.note("cache", offset, len)
    }
}

fn raw(command: u16, flags: u16, offset: u64, len: u64) -> RawRequest {
    RawRequest { flags, command, cookie: 9, offset, len }
}

#[test]
fn lengths_of_64_bits_reach_the_device_in_one_piece() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let device = Arc::new(Vast::default());
    let mut listener = listener(path.clone(), &Arc::new(MemDevice::new(0)));
    listener.exports[0].device = Arc::<Vast>::clone(&device);
    let server = Server::start(vec![listener], Limits::default()).unwrap();
    let mut client = Client::extended(&path, "m/disk");
    let len = 5 << 40;
    for (command, flags) in
        [(cmd::TRIM, 0), (cmd::WRITE_ZEROES, cflag::NO_HOLE), (cmd::CACHE, 0), (cmd::BLOCK_STATUS, 0)]
    {
        client.send_raw(raw(command, flags, 1 << 40, len), &[]);
        let reply = client.reply(0);
        assert_eq!((reply.cookie, reply.errno), (9, 0), "{}", reply.text);
        if command == cmd::BLOCK_STATUS {
            assert_eq!(reply.extents(), [(len, 3)], "one extent says it all");
        }
    }
    let range = 1 << 40..6 << 40;
    let expected = ["punch", "zero", "cache"].map(|what| (what, range.clone()));
    assert_eq!(*device.asked.lock().unwrap(), expected);
    drop(client);
    server.stop();
}

#[test]
fn refused_extended_requests_leave_the_stream_in_step() {
    let stand = Stand::new(MemDevice::new(1 << 20));
    let mut client = Client::extended(&stand.socket, "m/disk");
    let big = vec![7; 2 << 20];
    for (request, payload, errno) in [
        (raw(cmd::WRITE, cflag::PAYLOAD_LEN, 1 << 20, 2 << 20), &big[..], Errno::NoSpc),
        (raw(cmd::READ, cflag::PAYLOAD_LEN, 0, 512), &big[..512], Errno::Inval),
        (raw(cmd::TRIM, cflag::PAYLOAD_LEN, 0, 2 << 20), &big[..], Errno::Inval),
        (raw(cmd::BLOCK_STATUS, cflag::PAYLOAD_LEN, 0, 2 << 20), &big[..], Errno::Inval),
        (raw(cmd::BLOCK_STATUS, cflag::PAYLOAD_LEN, 0, 3), &big[..3], Errno::Inval),
        (raw(cmd::TRIM, 0, 0, u64::MAX), &[], Errno::Inval),
        (raw(cmd::WRITE_ZEROES, 0, 4096, u64::MAX - 100), &[], Errno::NoSpc),
        (raw(99, cflag::PAYLOAD_LEN, 0, 100), &big[..100], Errno::Inval),
    ] {
        client.send_raw(request, payload);
        assert_eq!(client.reply(0).errno, errno.code(), "{request:?}");
        assert_eq!(client.read(0, 4), [0; 4], "the connection lives on after {request:?}");
    }
    client.send_raw(raw(cmd::WRITE, cflag::PAYLOAD_LEN, 0, u64::MAX), &[]);
    assert!(client.is_closed(), "nobody reads that to its end");
    assert!(stand.device.batches.lock().unwrap().is_empty(), "nothing was written");
}

#[test]
fn several_contexts_are_answered_together_or_those_that_were_chosen() {
    let stand = Stand::new(MemDevice::new(1 << 20));
    let cut = Uuid::from_u128(5);
    *stand.device.changes.lock().unwrap() = Some((cut, vec![(4096, 8192)]));
    let name = format!("{}{cut}", wire::DIRTY_BITMAP);
    for framing in [Framing::Structured, Framing::Extended] {
        let mut client = Client::with(&stand.socket, "m/disk", framing, &[wire::BASE_ALLOCATION, &name]);
        let changes = vec![(4096, 0), (4096, 1), (8192, 0)];
        let reply = client.ask(cmd::BLOCK_STATUS, 0, 0, 16_384, &[]);
        assert_eq!(reply.contexts, [(1, vec![(16_384, 3)]), (2, changes.clone())]);
        if framing == Framing::Extended {
            let payload = [&16_384_u64.to_be_bytes()[..], &2_u32.to_be_bytes()].concat();
            client.send_raw(raw(cmd::BLOCK_STATUS, cflag::PAYLOAD_LEN, 0, 12), &payload);
            assert_eq!(client.reply(0).contexts, [(2, changes)]);
        }
    }
}

#[test]
fn a_client_that_looks_while_the_cut_is_released_gets_an_error() {
    let stand = Stand::new(MemDevice::new(1 << 20));
    let cut = Uuid::from_u128(5);
    *stand.device.changes.lock().unwrap() = Some((cut, vec![(4096, 8192)]));
    let name = format!("{}{cut}", wire::DIRTY_BITMAP);
    let mut client = Client::with(&stand.socket, "m/disk", Framing::Extended, &[&name]);
    assert_eq!(client.ask(cmd::BLOCK_STATUS, 0, 4096, 4096, &[]).contexts, [(2, vec![(4096, 1)])]);
    *stand.device.changes.lock().unwrap() = None;
    let reply = client.ask(cmd::BLOCK_STATUS, 0, 4096, 4096, &[]);
    assert_eq!((reply.errno, reply.contexts), (Errno::Inval.code(), vec![]));
    assert_eq!(client.read(0, 4), [0; 4], "and the connection lives on");
}
