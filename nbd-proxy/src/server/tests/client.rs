//! A small client for tests: sends what it is told, legal or not, and reads whole replies.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::nbd::wire::{self, cflag, chunk, cmd, opt};
use crate::nbd::{Framing, RawRequest};

/// One reply, put together from its chunks.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reply {
    pub cookie: u64,
    pub errno: u32,
    /// `(offset, bytes)` of data chunks, or of the body of a simple reply.
    pub data: Vec<(u64, Vec<u8>)>,
    /// `(offset, length)` of holes.
    pub holes: Vec<(u64, u32)>,
    /// Id, and `(length, status)` of each extent.
    pub contexts: Vec<(u32, Vec<(u64, u64)>)>,
    pub text: String,
}

pub struct Client<S> {
    pub stream: S,
    framing: Framing,
    /// Offset of the request that was sent last.
    offset: u64,
}

impl Client<UnixStream> {
    /// Connects to `export` with structured replies and block status.
    pub fn new(socket: &Path, export: &str) -> Self {
        Self::with(socket, export, Framing::Structured, &[wire::BASE_ALLOCATION])
    }

    /// Connects to `export` with extended headers and block status.
    pub fn extended(socket: &Path, export: &str) -> Self {
        Self::with(socket, export, Framing::Extended, &[wire::BASE_ALLOCATION])
    }

    /// Connects to `export` in a framing that has contexts.
    pub fn with(socket: &Path, export: &str, framing: Framing, contexts: &[&str]) -> Self {
        let mut client = Self::hello(socket);
        let extended = framing == Framing::Extended;
        client.option(if extended { opt::EXTENDED_HEADERS } else { opt::STRUCTURED_REPLY }, &[]);
        client.framing = framing;
        let count = u32::try_from(contexts.len()).unwrap();
        let mut query = [&string(export)[..], &count.to_be_bytes()].concat();
        contexts.iter().for_each(|context| query.extend(string(context)));
        client.option(opt::SET_META_CONTEXT, &query);
        client.go(export);
        client
    }

    /// Connects to `export` with simple replies.
    pub fn simple(socket: &Path, export: &str) -> Self {
        let mut client = Self::hello(socket);
        client.go(export);
        client
    }

    /// Connects and sends the client flags.
    pub fn hello(socket: &Path) -> Self {
        Self::over(UnixStream::connect(socket).unwrap())
    }

    fn over(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self { stream, framing: Framing::Simple, offset: 0 }.greeted()
    }
}

impl<S: Read + Write> Client<S> {
    /// Takes over a stream on which the server has been greeted, with structured replies.
    pub fn chosen(stream: S, export: &str) -> Self {
        let mut client = Self { stream, framing: Framing::Simple, offset: 0 };
        client.option(opt::STRUCTURED_REPLY, &[]);
        client.framing = Framing::Structured;
        client.go(export);
        client
    }

    /// Takes over a connected stream of any kind, with simple replies.
    pub fn on(stream: S, export: &str) -> Self {
        let mut client = Self { stream, framing: Framing::Simple, offset: 0 }.greeted();
        client.go(export);
        client
    }

    fn greeted(mut self) -> Self {
        let mut greeting = [0; 18];
        self.stream.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        self.stream.write_all(&3_u32.to_be_bytes()).unwrap();
        self
    }

    pub fn send_option(&mut self, number: u32, payload: &[u8]) {
        let len = u32::try_from(payload.len()).unwrap();
        let header = [&b"IHAVEOPT"[..], &number.to_be_bytes(), &len.to_be_bytes()].concat();
        self.stream.write_all(&header).unwrap();
        self.stream.write_all(payload).unwrap();
    }

    /// Sends an option and reads replies up to the last.
    pub fn option(&mut self, number: u32, payload: &[u8]) -> u32 {
        self.send_option(number, payload);
        loop {
            let mut header = [0; 20];
            self.stream.read_exact(&mut header).unwrap();
            let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
            io::copy(&mut (&mut self.stream).take(u64::from(word(16))), &mut io::sink()).unwrap();
            if word(12) == wire::rep::ACK || word(12) >= 1 << 31 {
                return word(12);
            }
        }
    }

    fn go(&mut self, export: &str) {
        let payload = [&string(export)[..], &[0, 0]].concat();
        assert_eq!(self.option(opt::GO, &payload), wire::rep::ACK);
    }

    pub fn send(&mut self, command: u16, flags: u16, cookie: u64, offset: u64, len: u32, payload: &[u8]) {
        let says = self.framing == Framing::Extended && command == cmd::WRITE;
        let flags = if says { flags | cflag::PAYLOAD_LEN } else { flags };
        self.send_raw(RawRequest { flags, command, cookie, offset, len: len.into() }, payload);
    }

    /// Sends a request as it is.
    pub fn send_raw(&mut self, request: RawRequest, payload: &[u8]) {
        self.offset = request.offset;
        let header = request.encode(self.framing);
        self.stream.write_all(&[&header[..], payload].concat()).unwrap();
    }

    /// Sends a request and reads its reply.
    pub fn ask(&mut self, command: u16, flags: u16, offset: u64, len: u32, payload: &[u8]) -> Reply {
        self.send(command, flags, 0x5eed, offset, len, payload);
        let expected = if command == wire::cmd::READ { len } else { 0 };
        let reply = self.reply(expected);
        assert_eq!(reply.cookie, 0x5eed);
        reply
    }

    pub fn read(&mut self, offset: u64, len: u32) -> Vec<u8> {
        let reply = self.ask(wire::cmd::READ, 0, offset, len, &[]);
        assert_eq!(reply.errno, 0, "{}", reply.text);
        reply.bytes(offset, len)
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> u32 {
        self.ask(wire::cmd::WRITE, 0, offset, u32::try_from(data.len()).unwrap(), data).errno
    }

    /// Reads one reply whose chunks follow one another; `len` is the body of a simple reply that succeeds.
    pub fn reply(&mut self, len: u32) -> Reply {
        let mut reply = Reply::default();
        while !self.chunk(&mut reply, len) {}
        reply
    }

    /// Reads a simple reply, or one chunk; true if it is the last.
    pub fn chunk(&mut self, reply: &mut Reply, len: u32) -> bool {
        let magic = self.u32();
        if magic == wire::SIMPLE_REPLY_MAGIC {
            reply.errno = self.u32();
            reply.cookie = self.u64();
            assert!(self.framing != Framing::Extended, "extended headers rule simple replies out");
            if reply.errno == 0 && len > 0 {
                assert!(
                    self.framing == Framing::Simple,
                    "a structured client never gets data in a simple reply"
                );
                reply.data.push((0, self.take(len)));
            }
            return true;
        }
        assert!(self.framing != Framing::Simple, "a simple client never gets a chunk");
        let word = self.u32();
        reply.cookie = self.u64();
        let len = if self.framing == Framing::Extended {
            assert_eq!(magic, wire::EXTENDED_CHUNK_MAGIC);
            assert_eq!(self.u64(), self.offset, "a chunk repeats the offset of its request");
            u32::try_from(self.u64()).unwrap()
        } else {
            assert_eq!(magic, wire::CHUNK_MAGIC);
            self.u32()
        };
        let kind = u16::try_from(word & 0xffff).unwrap();
        match kind {
            chunk::NONE => assert_eq!(len, 0),
            chunk::OFFSET_DATA => {
                let offset = self.u64();
                let bytes = self.take(len - 8);
                reply.data.push((offset, bytes));
            }
            chunk::OFFSET_HOLE => {
                assert_eq!(len, 12);
                let hole = (self.u64(), self.u32());
                reply.holes.push(hole);
            }
            chunk::BLOCK_STATUS => {
                assert_eq!(self.framing, Framing::Structured);
                let context = self.u32();
                let extents = (0..(len - 4) / 8).map(|_| (self.u32().into(), self.u32().into()));
                let extents = extents.collect();
                reply.contexts.push((context, extents));
            }
            chunk::BLOCK_STATUS_EXT => {
                assert_eq!(self.framing, Framing::Extended);
                let (context, count) = (self.u32(), self.u32());
                assert_eq!(len, 8 + 16 * count);
                let extents = (0..count).map(|_| (self.u64(), self.u64())).collect();
                reply.contexts.push((context, extents));
            }
            chunk::ERROR => {
                reply.errno = self.u32();
                let text = self.take(len - 4);
                reply.text = String::from_utf8(text[2..].to_vec()).unwrap();
            }
            other => panic!("chunk type {other}"),
        }
        word >> 16 & u32::from(chunk::DONE) != 0
    }

    fn take(&mut self, len: u32) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take(4).try_into().unwrap())
    }

    fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.take(8).try_into().unwrap())
    }

    /// Whether the server has closed the connection (what it sent before is thrown away).
    pub fn is_closed(&mut self) -> bool {
        match io::copy(&mut self.stream, &mut io::sink()) {
            Ok(_) => true,
            Err(error) => {
                matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof)
            }
        }
    }
}

impl Reply {
    /// The extents of what is allocated, if nothing else was told.
    pub fn extents(&self) -> &[(u64, u64)] {
        match &self.contexts[..] {
            [(wire::BASE_ALLOCATION_ID, extents)] => extents,
            other => panic!("{other:?}"),
        }
    }

    /// The bytes of `[offset, offset + len)`; every one must have been answered exactly once.
    pub fn bytes(&self, offset: u64, len: u32) -> Vec<u8> {
        if let [(0, data)] = &self.data[..]
            && data.len() == len as usize
        {
            return data.clone();
        }
        let mut bytes = vec![0; len as usize];
        let mut seen = vec![false; len as usize];
        let mut mark = |at: u64, len: usize| {
            let start = usize::try_from(at - offset).unwrap();
            assert!(!seen[start..start + len].contains(&true), "chunks do not overlap");
            seen[start..start + len].fill(true);
            start
        };
        for (at, data) in &self.data {
            let start = mark(*at, data.len());
            bytes[start..start + data.len()].copy_from_slice(data);
        }
        for (at, len) in &self.holes {
            mark(*at, *len as usize);
        }
        assert!(!seen.contains(&false), "every byte is answered");
        bytes
    }
}

pub fn string(text: &str) -> Vec<u8> {
    [&u32::try_from(text.len()).unwrap().to_be_bytes(), text.as_bytes()].concat()
}
