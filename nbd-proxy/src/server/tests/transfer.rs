//! Requests and their replies.

use std::collections::HashSet;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;

use super::client::{Client, Reply};
use super::*;
use crate::device::{Capabilities, ZeroMode};
use crate::nbd::wire::{Errno, cflag, cmd};
use crate::nbd::{Framing, RawRequest};

const MIB: usize = 1 << 20;

const FRAMINGS: [Framing; 3] = [Framing::Simple, Framing::Structured, Framing::Extended];

fn connect(stand: &Stand, framing: Framing) -> Client<UnixStream> {
    match framing {
        Framing::Simple => Client::simple(&stand.socket, "m/disk"),
        Framing::Structured => Client::new(&stand.socket, "m/disk"),
        Framing::Extended => Client::extended(&stand.socket, "m/disk"),
    }
}

#[test]
fn what_is_written_is_read_back_at_any_length() {
    let stand = Stand::new(MemDevice::new(80 * MIB));
    for framing in FRAMINGS {
        let mut client = connect(&stand, framing);
        for (index, len) in [1, 511, 4096, 65_537, MIB - 28, MIB - 27, MIB, 3 * MIB + 5, 33 * MIB, 64 * MIB]
            .into_iter()
            .enumerate()
        {
            let data = pattern(len, index);
            assert_eq!(client.write(4097, &data), 0);
            assert!(client.read(4097, u32::try_from(len).unwrap()) == data, "{len} {framing:?}");
        }
    }
}

#[test]
fn slow_reads_give_the_same_bytes_as_cached_ones() {
    let stand = Stand::new(MemDevice::new(8 * MIB));
    let data = pattern(5 * MIB, 3);
    let mut client = Client::new(&stand.socket, "m/disk");
    assert_eq!(client.write(12_345, &data), 0);
    stand.device.cold.store(true, Ordering::SeqCst);
    for len in [1, 4096, 100_000, MIB, 5 * MIB] {
        assert!(client.read(12_345, u32::try_from(len).unwrap()) == data[..len]);
        let mut simple = Client::simple(&stand.socket, "m/disk");
        assert!(simple.read(12_345, u32::try_from(len).unwrap()) == data[..len]);
    }
}

#[test]
fn holes_are_chunks_from_32_kib_on_unless_df_asks_for_one() {
    let stand = Stand::new(MemDevice::new(4 * MIB));
    let mut client = Client::new(&stand.socket, "m/disk");
    let data = pattern(8192, 1);
    client.write(MIB as u64, &data);
    let reply = client.ask(cmd::READ, 0, MIB as u64 - 65_536, 200_000, &[]);
    assert_eq!(reply.data, [(MIB as u64, data.clone())]);
    assert_eq!(reply.holes.len(), 2);
    assert_eq!(reply.bytes(MIB as u64 - 65_536, 200_000)[65_536..65_536 + 8192], data);
    let whole = client.ask(cmd::READ, cflag::DF, MIB as u64 - 65_536, 200_000, &[]);
    assert_eq!((whole.data.len(), whole.holes.len()), (1, 0));
    let short = client.ask(cmd::READ, 0, 0, 4096, &[]);
    assert_eq!((short.data.len(), short.holes.len()), (1, 0));
    let big = client.ask(cmd::READ, cflag::DF, 0, 3 * 1024 * 1024, &[]);
    assert_eq!((big.data.len(), big.holes.len()), (1, 0));
}

/// Sends `count` writes of 4 KiB at once, byte `cookie + 1` in each, and reads their replies.
fn write_together(client: &mut Client<UnixStream>, count: u8) {
    let mut together = Vec::new();
    for cookie in 0..count {
        let offset = u64::from(cookie) * 4096;
        let header = RawRequest { flags: 0, command: cmd::WRITE, cookie: cookie.into(), offset, len: 4096 };
        together.extend(header.encode(Framing::Structured));
        together.extend([cookie + 1; 4096]);
    }
    client.stream.write_all(&together).unwrap();
    let replies: HashSet<(u64, u32)> =
        (0..count).map(|_| client.reply(0)).map(|r| (r.cookie, r.errno)).collect();
    assert_eq!(replies, (0..count).map(|cookie| (cookie.into(), 0)).collect());
    for cookie in 0..count {
        assert_eq!(client.read(u64::from(cookie) * 4096, 4096), [cookie + 1; 4096]);
    }
}

#[test]
fn the_writes_of_one_wake_up_are_one_batch() {
    let stand = Stand::new(MemDevice::new(MIB));
    write_together(&mut Client::new(&stand.socket, "m/disk"), 8);
    assert_eq!(*stand.device.batches.lock().unwrap(), [8]);
}

#[test]
fn large_writes_in_a_row_are_received_while_the_device_takes_them() {
    let stand = Stand::new(MemDevice::new(32 * MIB));
    let mut client = Client::new(&stand.socket, "m/disk");
    let len = 200_000_u32;
    let mut sender = client.stream.try_clone().unwrap();
    let sending = std::thread::spawn(move || {
        for cookie in 0..100_u64 {
            let offset = cookie * u64::from(len);
            let header = RawRequest { flags: 0, command: cmd::WRITE, cookie, offset, len: len.into() };
            let header = header.encode(Framing::Structured);
            let data = pattern(len as usize, usize::try_from(cookie).unwrap());
            sender.write_all(&[&header[..], &data].concat()).unwrap();
        }
    });
    let replies: HashSet<(u64, u32)> =
        (0..100).map(|_| client.reply(0)).map(|reply| (reply.cookie, reply.errno)).collect();
    assert_eq!(replies, (0..100).map(|cookie| (cookie, 0)).collect());
    sending.join().unwrap();
    for cookie in 0..100_u64 {
        let read = client.read(cookie * u64::from(len), len);
        assert!(read == pattern(len as usize, usize::try_from(cookie).unwrap()), "write {cookie}");
    }
}

#[test]
fn durable_writes_reach_the_device_as_such() {
    let stand = Stand::new(MemDevice::new(8 * MIB));
    let mut client = Client::new(&stand.socket, "m/disk");
    assert_eq!(client.ask(cmd::WRITE, cflag::FUA, 0, 512, &[1; 512]).errno, 0);
    assert_eq!(stand.device.durable_writes.load(Ordering::SeqCst), 1);
    assert_eq!(stand.device.flushes.load(Ordering::SeqCst), 0);
    let data = pattern(3 * MIB, 0);
    assert_eq!(client.ask(cmd::WRITE, cflag::FUA, 0, 3 << 20, &data).errno, 0);
    assert_eq!(stand.device.flushes.load(Ordering::SeqCst), 1, "a write in pieces ends with a flush");
    assert_eq!(client.ask(cmd::FLUSH, cflag::FUA, 0, 0, &[]).errno, 0);
    assert_eq!(stand.device.flushes.load(Ordering::SeqCst), 2);
}

#[test]
fn trim_and_zeroes_carry_their_flags() {
    let stand = Stand::new(MemDevice::new(MIB));
    let mut client = Client::new(&stand.socket, "m/disk");
    client.write(0, &[9; 20_000]);
    for (command, flags) in [
        (cmd::TRIM, cflag::FUA),
        (cmd::WRITE_ZEROES, 0),
        (cmd::WRITE_ZEROES, cflag::NO_HOLE | cflag::FAST_ZERO | cflag::FUA),
        (cmd::CACHE, 0),
    ] {
        assert_eq!(client.ask(command, flags, 1, 9000, &[]).errno, 0);
    }
    let mode = |punch, fast, fua| ZeroMode { punch, fast, fua };
    let expected = [
        (1, 9000, mode(true, false, true)),
        (1, 9000, mode(true, false, false)),
        (1, 9000, mode(false, true, true)),
    ];
    assert_eq!(*stand.device.zeroes.lock().unwrap(), expected);
    assert_eq!(client.read(0, 9002)[..], [&[9][..], &[0; 9000], &[9]].concat());
}

#[test]
fn block_status_is_consecutive_and_one_when_asked() {
    let stand = Stand::new(MemDevice::new(MIB));
    let mut client = Client::new(&stand.socket, "m/disk");
    client.write(8192, &[1; 4096]);
    client.write(65_536, &[1; 1]);
    let all = client.ask(cmd::BLOCK_STATUS, 0, 100, 1_000_000, &[]);
    assert_eq!(all.extents()[..3], [(8092, 3), (4096, 0), (53_248, 3)]);
    assert_eq!(all.extents().iter().map(|(len, _)| len).sum::<u64>(), 1_000_000);
    let one = client.ask(cmd::BLOCK_STATUS, cflag::REQ_ONE, 8192 + 100, 1000, &[]);
    assert_eq!(one.extents(), [(1000, 0)]);
}

#[test]
fn refused_requests_leave_the_stream_in_step() {
    let stand = Stand::new(MemDevice::new(MIB));
    for framing in FRAMINGS {
        let mut client = connect(&stand, framing);
        for len in [1, 5000, 2 * MIB, 65 * MIB] {
            let data = vec![7; len];
            let reply = client.ask(cmd::WRITE, 0, MIB as u64, u32::try_from(len).unwrap(), &data);
            assert_eq!(reply.errno, Errno::NoSpc.code());
            assert_eq!(reply.text.is_empty(), framing == Framing::Simple);
        }
        assert_eq!(client.ask(cmd::READ, 0, u64::MAX, 1, &[]).errno, Errno::Inval.code());
        assert_eq!(client.ask(99, 0, 0, 1, &[]).errno, Errno::Inval.code());
        assert_eq!(client.ask(cmd::WRITE, 1 << 9, 0, 3, &[1, 2, 3]).errno, Errno::Inval.code());
        assert_eq!(client.read(0, 16), [0; 16]);
        assert_eq!(client.ask(cmd::READ, 0, 0, 0, &[]), Reply { cookie: 0x5eed, ..Reply::default() });
        assert_eq!(client.write(0, &[]), 0);
    }
}

#[test]
fn more_than_64_mib_is_refused_after_its_payload() {
    let stand = Stand::new(MemDevice::new(70 * MIB));
    let mut client = Client::new(&stand.socket, "m/disk");
    let data = vec![7; 64 * MIB + 1];
    assert_eq!(client.write(0, &data), Errno::Inval.code());
    assert_eq!(client.read(0, 4), [0; 4]);
}

#[test]
fn a_read_only_export_answers_eperm() {
    let folder = tempfile::tempdir().unwrap();
    let device = Arc::new(MemDevice::new(MIB));
    let mut listener = listener(folder.path().join("s"), &device);
    listener.exports[0].read_only = true;
    let server = Server::start(vec![listener], Limits::default()).unwrap();
    let mut client = Client::new(&folder.path().join("s"), "m/disk");
    for command in [cmd::WRITE, cmd::TRIM, cmd::WRITE_ZEROES] {
        let payload: &[u8] = if command == cmd::WRITE { &[1; 512] } else { &[] };
        assert_eq!(client.ask(command, 0, 0, 512, payload).errno, Errno::Perm.code());
    }
    assert_eq!(client.read(0, 512), [0; 512]);
    server.stop();
}

#[test]
fn device_errors_reach_the_client_and_the_rest_goes_on() {
    let stand = Stand::new(MemDevice::new(8 * MIB));
    let mut client = Client::new(&stand.socket, "m/disk");
    client.write(0, &pattern(8 * MIB, 2));
    stand.device.bad_byte.store(5 * MIB as u64, Ordering::SeqCst);
    for cold in [false, true] {
        stand.device.cold.store(cold, Ordering::SeqCst);
        for (offset, len) in [(5 * MIB as u64 - 10, 4096), (MIB as u64, 6 << 20)] {
            let reply = client.ask(cmd::READ, 0, offset, len, &[]);
            assert_eq!((reply.errno, reply.text.is_empty()), (Errno::Io.code(), false));
        }
        assert_eq!(client.read(0, 4096), pattern(4096, 2));
    }
    stand.device.bad_errno.store(28, Ordering::SeqCst);
    assert_eq!(client.write(5 * MIB as u64, &[1; 10]), Errno::NoSpc.code());
    assert_eq!(client.write(4 * MIB as u64, &vec![1; 3 * MIB]), Errno::NoSpc.code());
    assert_eq!(client.write(0, &[1; 10]), 0);
    let simple = Client::simple(&stand.socket, "m/disk").ask(cmd::READ, 0, 5 << 20, 4096, &[]);
    assert_eq!(simple.errno, Errno::NoSpc.code());
}

#[test]
fn a_contiguous_body_that_fails_late_ends_the_connection() {
    let stand = Stand::new(MemDevice::new(8 * MIB));
    stand.device.bad_byte.store(3 * MIB as u64 + 5, Ordering::SeqCst);
    let mut client = Client::new(&stand.socket, "m/disk");
    let first = client.ask(cmd::READ, cflag::DF, 3 << 20, 2 << 20, &[]);
    assert_eq!(first.errno, Errno::Io.code(), "nothing was promised yet");
    client.send(cmd::READ, cflag::DF, 1, 0, 6 << 20, &[]);
    assert!(client.is_closed());
    assert_eq!(Client::new(&stand.socket, "m/disk").read(0, 10), [0; 10]);
}

#[test]
fn a_large_reply_does_not_hold_up_a_small_one() {
    let stand = Stand::new(MemDevice::new(40 * MIB));
    let mut client = Client::new(&stand.socket, "m/disk");
    client.write(0, &pattern(33 * MIB, 0));
    client.send(cmd::READ, 0, 1, 0, 32 << 20, &[]);
    client.send(cmd::READ, 0, 2, 77, 4096, &[]);
    let (mut chunks_before, mut big) = (0, Reply::default());
    let small = loop {
        let mut reply = Reply::default();
        client.chunk(&mut reply, 0);
        if reply.cookie == 2 {
            break reply;
        }
        chunks_before += 1;
        big.data.append(&mut reply.data);
    };
    assert_eq!(small.bytes(77, 4096), pattern(33 * MIB, 0)[77..77 + 4096]);
    assert!(chunks_before < 10, "{chunks_before} MiB went first");
    while !client.chunk(&mut big, 0) {}
    assert!(big.bytes(0, 32 << 20) == pattern(32 * MIB, 0));
}

#[test]
fn small_shares_of_memory_carry_big_requests_too() {
    let limits = Limits { memory: 0, ..Limits::default() };
    let stand = Stand::with(MemDevice::new(40 * MIB), limits);
    let data = pattern(33 * MIB, 9);
    let mut client = Client::new(&stand.socket, "m/disk");
    assert_eq!(client.write(5, &data), 0);
    assert_eq!(client.ask(cmd::WRITE, cflag::FUA, 5, 60_000, &data[..60_000]).errno, 0);
    for cold in [false, true] {
        stand.device.cold.store(cold, Ordering::SeqCst);
        assert!(client.read(5, 33 << 20) == data);
        assert!(client.ask(cmd::READ, cflag::DF, 5, 33 << 20, &[]).bytes(5, 33 << 20) == data);
    }
}

#[test]
fn a_device_without_trim_does_not_offer_it() {
    let mut device = MemDevice::new(MIB);
    device.capabilities = Capabilities { trim: false, fast_zero: false, ..device.capabilities };
    let stand = Stand::new(device);
    let mut client = Client::new(&stand.socket, "m/disk");
    assert_eq!(client.ask(cmd::TRIM, 0, 0, 512, &[]).errno, Errno::Inval.code());
    assert_eq!(client.ask(cmd::WRITE_ZEROES, cflag::FAST_ZERO, 0, 512, &[]).errno, Errno::Inval.code());
    assert_eq!(client.ask(cmd::WRITE_ZEROES, 0, 0, 512, &[]).errno, 0);
}

#[test]
fn tcp_serves_the_same() {
    let device = Arc::new(MemDevice::new(MIB));
    let mut listener = listener(PathBuf::new(), &device);
    listener.listen = Listen::Tcp("127.0.0.1:0".parse().unwrap());
    let server = Server::start(vec![listener], Limits::default()).unwrap();
    let stream = std::net::TcpStream::connect(server.local_addr(0).unwrap()).unwrap();
    let mut client = Client::on(stream, "");
    assert_eq!(client.write(10, &[1, 2, 3]), 0);
    assert_eq!(client.read(9, 5), [0, 1, 2, 3, 0]);
    server.stop();
    assert!(client.is_closed());
}
