//! A server for tests: in memory, with a volatile cache that it loses when it dies, and as hostile as it is told to be.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::disk::testing::losing::Platter;
use crate::nbd::wire::{self, cflag, chunk, cmd, info, opt, rep, tflag};

/// What the server serves, and how.
#[derive(Clone, Debug)]
pub struct Offer {
    pub size: u64,
    pub flags: u16,
    pub structured: bool,
    /// Least, preferred and greatest.
    pub blocks: Option<(u32, u32, u32)>,
    /// The export is refused with this error and text.
    pub refuse: Option<(u32, String)>,
    /// Nothing is ever said.
    pub silent: bool,
}

impl Offer {
    /// A server that can do everything.
    pub fn new(size: u64) -> Self {
        let flags = tflag::HAS_FLAGS | tflag::SEND_FLUSH | tflag::SEND_FUA | tflag::SEND_WRITE_ZEROES;
        Self { size, flags, structured: true, blocks: None, refuse: None, silent: false }
    }
}

/// What the next request gets instead of its reply.
#[derive(Clone, Copy, Debug)]
pub enum Quirk {
    HangUp,
    Hang,
    BadMagic,
    UnknownHandle,
    Outside,
    Twice,
    Missing,
    WrongLength,
    EndlessError,
    /// It is done, and then the server dies before it says so.
    DoneAndDead,
    /// An honest error.
    Refused,
}

#[derive(Debug)]
struct Shared {
    offer: Mutex<Offer>,
    platter: Mutex<Platter>,
    /// Which command gets which.
    quirks: Mutex<VecDeque<(u16, Quirk)>>,
    connections: Mutex<Vec<UnixStream>>,
    /// Counts lives: a connection of an earlier one does nothing any more.
    life: AtomicU64,
    up: AtomicBool,
    stop: AtomicBool,
}

/// See the module.
#[derive(Debug)]
pub struct Server {
    dir: tempfile::TempDir,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(offer: Offer) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        let shared = Arc::new(Shared {
            platter: Mutex::new(Platter::new(usize::try_from(offer.size).unwrap())),
            offer: Mutex::new(offer),
            quirks: Mutex::default(),
            connections: Mutex::default(),
            life: AtomicU64::new(0),
            up: AtomicBool::new(true),
            stop: AtomicBool::new(false),
        });
        let serve = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if serve.stop.load(Ordering::SeqCst) {
                    return;
                }
                serve.accept(stream.unwrap());
            }
        });
        Self { dir, shared, thread: Some(thread) }
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("nbd+unix:///disk?socket={}", self.dir.path().join("s").display()))
    }

    /// A folder that lives as long as the server.
    pub fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    pub fn offer(&self, change: impl FnOnce(&mut Offer)) {
        change(&mut self.shared.offer.lock().unwrap());
    }

    /// The next `command` gets `quirk`.
    pub fn quirk(&self, command: u16, quirk: Quirk) {
        self.shared.quirks.lock().unwrap().push_back((command, quirk));
    }

    /// What a reader sees.
    pub fn contents(&self) -> Vec<u8> {
        self.shared.platter.lock().unwrap().cache.clone()
    }

    /// Changes it behind everybody's back.
    pub fn scribble(&self, at: usize, byte: u8) {
        self.shared.platter.lock().unwrap().cache[at] = byte;
    }

    /// Dies, losing of each unsynced sector the new bytes unless `keep` says otherwise, and does not come back.
    pub fn die(&self, keep: impl FnMut() -> bool) {
        self.shared.up.store(false, Ordering::SeqCst);
        self.shared.die(keep);
    }

    pub fn come_back(&self) {
        self.shared.up.store(true, Ordering::SeqCst);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        let _ = UnixStream::connect(self.dir.path().join("s"));
        self.shared.die(|| true);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Shared {
    fn die(&self, keep: impl FnMut() -> bool) {
        let mut platter = self.platter.lock().unwrap();
        self.life.fetch_add(1, Ordering::SeqCst);
        platter.lose_power(keep);
        for stream in self.connections.lock().unwrap().drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }

    fn accept(self: &Arc<Self>, stream: UnixStream) {
        if !self.up.load(Ordering::SeqCst) {
            return;
        }
        self.connections.lock().unwrap().push(stream.try_clone().unwrap());
        let shared = Arc::clone(self);
        let life = self.life.load(Ordering::SeqCst);
        std::thread::spawn(move || {
            let offer = shared.offer.lock().unwrap().clone();
            let mut connection = Connection { stream, life, offer, shared };
            let _ = connection.handshake().and_then(|()| connection.serve());
            let _ = connection.stream.shutdown(std::net::Shutdown::Both);
        });
    }
}

struct Connection {
    stream: UnixStream,
    shared: Arc<Shared>,
    offer: Offer,
    life: u64,
}

impl Connection {
    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn hang(&self) -> io::Result<()> {
        while self.life == self.shared.life.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn handshake(&mut self) -> io::Result<()> {
        if self.offer.silent {
            self.hang()?;
        }
        self.stream.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
        self.take::<4>()?;
        loop {
            let _magic: [u8; 8] = self.take()?;
            let [option, len] = [self.take()?, self.take()?].map(u32::from_be_bytes);
            let mut data = vec![0; usize::try_from(len).unwrap()];
            self.stream.read_exact(&mut data)?;
            match option {
                opt::STRUCTURED_REPLY if self.offer.structured => self.option(option, rep::ACK, &[])?,
                opt::SET_META_CONTEXT if self.offer.structured => {
                    let context = [&9_u32.to_be_bytes()[..], wire::BASE_ALLOCATION.as_bytes()].concat();
                    self.option(option, rep::META_CONTEXT, &context)?;
                    self.option(option, rep::ACK, &[])?;
                }
                opt::GO => return self.go(),
                _ => self.option(option, rep::ERR_UNSUP, &[])?,
            }
        }
    }

    fn go(&mut self) -> io::Result<()> {
        let offer = self.offer.clone();
        if let Some((error, text)) = offer.refuse {
            self.option(opt::GO, error, text.as_bytes())?;
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let mut export = info::EXPORT.to_be_bytes().to_vec();
        export.extend(offer.size.to_be_bytes());
        export.extend(offer.flags.to_be_bytes());
        self.option(opt::GO, rep::INFO, &export)?;
        if let Some((least, preferred, greatest)) = offer.blocks {
            let mut sizes = info::BLOCK_SIZE.to_be_bytes().to_vec();
            for size in [least, preferred, greatest] {
                sizes.extend(size.to_be_bytes());
            }
            self.option(opt::GO, rep::INFO, &sizes)?;
        }
        self.option(opt::GO, rep::ACK, &[])
    }

    fn option(&mut self, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
        let mut bytes = wire::OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
        bytes.extend(option.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
        bytes.extend(data);
        self.stream.write_all(&bytes)
    }

    fn serve(&mut self) -> io::Result<()> {
        loop {
            let _magic: [u8; 4] = self.take()?;
            let [flags, command] = [self.take()?, self.take()?].map(u16::from_be_bytes);
            let [cookie, offset] = [self.take()?, self.take()?].map(u64::from_be_bytes);
            let len = usize::try_from(u32::from_be_bytes(self.take()?)).unwrap();
            let mut payload = vec![0; if command == cmd::WRITE { len } else { 0 }];
            self.stream.read_exact(&mut payload)?;
            if command == cmd::DISC {
                return Ok(());
            }
            let quirk = {
                let mut quirks = self.shared.quirks.lock().unwrap();
                quirks.pop_front_if(|(which, _)| *which == command).map(|(_, quirk)| quirk)
            };
            let at = usize::try_from(offset).unwrap();
            match quirk {
                Some(Quirk::DoneAndDead) => {
                    let _ = self.act(command, flags, at, len, &payload)?;
                    self.shared.die(|| false);
                }
                Some(quirk) => self.misbehave(quirk, cookie, offset, len)?,
                None => {
                    let reply = self.act(command, flags, at, len, &payload)?;
                    self.reply(command, cookie, offset, reply)?;
                }
            }
        }
    }

    fn act(
        &mut self,
        command: u16,
        flags: u16,
        at: usize,
        len: usize,
        payload: &[u8],
    ) -> io::Result<Result<Vec<u8>, u32>> {
        let mut platter = self.shared.platter.lock().unwrap();
        if self.life != self.shared.life.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let block = self.offer.blocks.map_or(1, |(least, _, _)| usize::try_from(least).unwrap());
        let most = self.offer.blocks.map_or(usize::MAX, |(_, _, most)| usize::try_from(most).unwrap());
        let carries = matches!(command, cmd::READ | cmd::WRITE);
        if !at.is_multiple_of(block)
            || !len.is_multiple_of(block)
            || at + len > platter.cache.len()
            || (carries && len > most)
        {
            return Ok(Err(22));
        }
        match command {
            cmd::READ => return Ok(Ok(platter.cache[at..at + len].to_vec())),
            cmd::WRITE => platter.write(at as u64, len, Some(payload)),
            cmd::WRITE_ZEROES => platter.write(at as u64, len, None),
            cmd::FLUSH => platter.sync()?,
            cmd::BLOCK_STATUS => {
                let runs = platter.cache[at..at + len].chunks(4096).flat_map(|block| {
                    let status = if block.iter().all(|byte| *byte == 0) { 3_u32 } else { 0 };
                    [u32::try_from(block.len()).unwrap().to_be_bytes(), status.to_be_bytes()].concat()
                });
                return Ok(Ok(runs.collect()));
            }
            _ => return Ok(Err(22)),
        }
        if flags & cflag::FUA != 0 {
            platter.sync_range(at, len);
        }
        Ok(Ok(Vec::new()))
    }

    fn reply(
        &mut self,
        command: u16,
        cookie: u64,
        offset: u64,
        reply: Result<Vec<u8>, u32>,
    ) -> io::Result<()> {
        let data = match reply {
            Ok(data) => data,
            Err(code) => return self.simple(code, cookie, &[]),
        };
        match command {
            cmd::READ if self.offer.structured => {
                // The second half first: a client must not count on an order.
                let half = data.len() / 2;
                self.data(false, cookie, offset + half as u64, &data[half..])?;
                if half > 0 {
                    self.data(false, cookie, offset, &data[..half])?;
                }
                self.chunk(chunk::NONE, true, cookie, &[])
            }
            cmd::BLOCK_STATUS => {
                self.chunk(chunk::BLOCK_STATUS, true, cookie, &[&9_u32.to_be_bytes()[..], &data].concat())
            }
            _ => self.simple(0, cookie, &data),
        }
    }

    fn misbehave(&mut self, quirk: Quirk, cookie: u64, offset: u64, len: usize) -> io::Result<()> {
        let bytes = vec![0xBB; len];
        match quirk {
            Quirk::HangUp | Quirk::DoneAndDead => return Err(io::ErrorKind::BrokenPipe.into()),
            Quirk::Hang => self.hang()?,
            Quirk::BadMagic => self.stream.write_all(&[0xEE; 64])?,
            Quirk::UnknownHandle => self.simple(0, cookie + 1000, &[])?,
            Quirk::Outside => self.data(true, cookie, offset + 1, &bytes)?,
            Quirk::Twice => {
                self.data(false, cookie, offset, &bytes)?;
                self.data(true, cookie, offset, &bytes)?;
            }
            Quirk::Missing => self.data(true, cookie, offset, &bytes[1..])?,
            Quirk::WrongLength => self.data(true, cookie, offset, &vec![0xBB; len + 1])?,
            Quirk::EndlessError => {
                let text = vec![b'!'; 100_000];
                self.chunk(chunk::ERROR, true, cookie, &[&[0, 0, 0, 5, 0xFF, 0xFF][..], &text].concat())?;
            }
            Quirk::Refused => return self.simple(5, cookie, &[]),
        }
        self.hang()
    }

    fn simple(&mut self, code: u32, cookie: u64, data: &[u8]) -> io::Result<()> {
        let mut bytes = wire::SIMPLE_REPLY_MAGIC.to_be_bytes().to_vec();
        bytes.extend(code.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(data);
        self.stream.write_all(&bytes)
    }

    fn data(&mut self, done: bool, cookie: u64, offset: u64, data: &[u8]) -> io::Result<()> {
        self.chunk(chunk::OFFSET_DATA, done, cookie, &[&offset.to_be_bytes()[..], data].concat())
    }

    fn chunk(&mut self, kind: u16, done: bool, cookie: u64, payload: &[u8]) -> io::Result<()> {
        let mut bytes = wire::CHUNK_MAGIC.to_be_bytes().to_vec();
        bytes.extend(u16::from(done).to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
        bytes.extend(payload);
        self.stream.write_all(&bytes)
    }
}
