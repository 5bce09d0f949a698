//! An NBD client for tests, written from the protocol and sharing no code with the server it tests.
//!
//! One request at a time on one connection: what is concurrent in a test is several clients. [`Client::write`] and its
//! like do what a patient VM does: when the connection is lost they connect again and send the request once more, until
//! [`PATIENCE`] has passed.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Where an export is and what it is called.
#[derive(Clone, Debug)]
pub struct Target {
    pub place: Place,
    pub export: String,
}

#[derive(Clone, Debug)]
pub enum Place {
    Unix(PathBuf),
    Tcp(u16),
}

impl Target {
    pub fn unix(socket: impl Into<PathBuf>, export: &str) -> Self {
        Self { place: Place::Unix(socket.into()), export: export.to_owned() }
    }

    /// As foreign tools want it.
    pub fn uri(&self) -> String {
        let export = self.export.replace('/', "%2F");
        match &self.place {
            Place::Unix(path) => format!("nbd+unix:///{export}?socket={}", path.display()),
            Place::Tcp(port) => format!("nbd://127.0.0.1:{port}/{export}"),
        }
    }
}

/// How long a lost server is waited for.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// A server that answers nothing for so long has hung.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

const OPTION_MAGIC: u64 = 0x4948_4156_454F_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_E889_0455_65A9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;

const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const WRITE_ZEROES: u16 = 6;
/// Command flag: durable before the reply.
pub const FUA: u16 = 1;
/// Transmission flag: TRIM is understood.
pub const SEND_TRIM: u16 = 1 << 5;
/// Command flag: keep the space allocated.
pub const NO_HOLE: u16 = 2;

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

struct Connection {
    stream: Box<dyn Stream>,
    size: u64,
    flags: u16,
}

/// A client of one export.
pub struct Client {
    target: Target,
    connection: Option<Connection>,
    cookie: u64,
    /// Requests that had to be sent again.
    pub resent: u64,
}

impl Client {
    /// Connects, waiting for the server if need be.
    pub fn connect(target: &Target) -> Self {
        let mut client = Self { target: target.clone(), connection: None, cookie: 0, resent: 0 };
        client.reconnect(Instant::now() + PATIENCE);
        client
    }

    /// The export's size in bytes.
    pub fn size(&self) -> u64 {
        self.connection.as_ref().expect("a connection").size
    }

    /// The transmission flags.
    pub fn flags(&self) -> u16 {
        self.connection.as_ref().expect("a connection").flags
    }

    pub fn read(&mut self, offset: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.patient(READ, 0, offset, len, &[], &mut data);
        data
    }

    pub fn write(&mut self, offset: u64, data: &[u8], flags: u16) {
        self.patient(WRITE, flags, offset, data.len(), data, &mut []);
    }

    pub fn flush(&mut self) {
        self.patient(FLUSH, 0, 0, 0, &[], &mut []);
    }

    pub fn trim(&mut self, offset: u64, len: usize) {
        self.patient(TRIM, 0, offset, len, &[], &mut []);
    }

    pub fn zero(&mut self, offset: u64, len: usize, flags: u16) {
        self.patient(WRITE_ZEROES, flags, offset, len, &[], &mut []);
    }

    /// One attempt to connect.
    pub fn try_connect(target: &Target) -> io::Result<Self> {
        let connection = Some(Connection::open(target)?);
        Ok(Self { target: target.clone(), connection, cookie: 0, resent: 0 })
    }

    /// One attempt at a write; an errno is an error too.
    pub fn try_write(&mut self, offset: u64, data: &[u8], flags: u16) -> io::Result<()> {
        self.attempt(WRITE, flags, offset, data)
    }

    /// One attempt at a flush.
    pub fn try_flush(&mut self) -> io::Result<()> {
        self.attempt(FLUSH, 0, 0, &[])
    }

    fn attempt(&mut self, kind: u16, flags: u16, offset: u64, data: &[u8]) -> io::Result<()> {
        self.cookie += 1;
        let connection = self.connection.as_mut().expect("a connection");
        match connection.request(self.cookie, kind, flags, offset, data.len(), data, &mut [])? {
            0 => Ok(()),
            errno => Err(io::Error::other(format!("errno {errno}"))),
        }
    }

    /// A server's error is the test's end: nothing here asks for what may fail.
    fn patient(&mut self, kind: u16, flags: u16, offset: u64, len: usize, out: &[u8], into: &mut [u8]) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.cookie += 1;
            let connection = self.connection.as_mut().expect("a connection");
            match connection.request(self.cookie, kind, flags, offset, len, out, into) {
                Ok(0) => return,
                Ok(errno) => {
                    panic!("command {kind} at {offset}+{len} of {}: errno {errno}", self.target.uri())
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    panic!(
                        "command {kind} at {offset}+{len} of {} got no answer in {ANSWER_LIMIT:?}",
                        self.target.uri()
                    )
                }
                Err(_) => {
                    self.resent += 1;
                    self.reconnect(deadline);
                }
            }
        }
    }

    fn reconnect(&mut self, deadline: Instant) {
        self.connection = None;
        loop {
            match Connection::open(&self.target) {
                Ok(connection) => {
                    self.connection = Some(connection);
                    return;
                }
                Err(error) if Instant::now() >= deadline => panic!("{}: {error}", self.target.uri()),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }
}

impl Connection {
    fn open(target: &Target) -> io::Result<Self> {
        let stream: Box<dyn Stream> = match &target.place {
            Place::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(ANSWER_LIMIT))?;
                Box::new(stream)
            }
            Place::Tcp(port) => {
                let stream = TcpStream::connect(("127.0.0.1", *port))?;
                stream.set_read_timeout(Some(ANSWER_LIMIT))?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
        };
        let mut connection = Self { stream, size: 0, flags: 0 };
        connection.negotiate(&target.export)?;
        Ok(connection)
    }

    fn negotiate(&mut self, export: &str) -> io::Result<()> {
        expect(&self.take::<8>()?, b"NBDMAGIC", "the greeting")?;
        expect(&self.take::<8>()?, &OPTION_MAGIC.to_be_bytes(), "the option magic")?;
        let offered = u16::from_be_bytes(self.take()?);
        if offered & 1 == 0 {
            return Err(wrong("the server is not fixed newstyle"));
        }
        // Fixed newstyle, and no 124 zeroes if that was offered.
        self.stream.write_all(&u32::from(offered & 3).to_be_bytes())?;
        let name = export.as_bytes();
        let name_len = u32::try_from(name.len()).map_err(|_| wrong("the name is too long"))?;
        let mut option = Vec::new();
        option.extend(OPTION_MAGIC.to_be_bytes());
        option.extend(OPT_GO.to_be_bytes());
        option.extend((name_len + 6).to_be_bytes());
        option.extend(name_len.to_be_bytes());
        option.extend(name);
        option.extend([0, 0]);
        self.stream.write_all(&option)?;
        loop {
            expect(&self.take::<8>()?, &OPTION_REPLY_MAGIC.to_be_bytes(), "the magic of an option's reply")?;
            expect(&self.take::<4>()?, &OPT_GO.to_be_bytes(), "the option that is answered")?;
            let kind = u32::from_be_bytes(self.take()?);
            let len = u32::from_be_bytes(self.take()?);
            let mut data = vec![0; usize::try_from(len).map_err(|_| wrong("a reply is too long"))?];
            self.stream.read_exact(&mut data)?;
            match kind {
                REP_ACK => return Ok(()),
                REP_INFO if data.len() == 12 && data[..2] == [0, 0] => {
                    self.size = u64::from_be_bytes(data[2..10].try_into().expect("eight bytes"));
                    self.flags = u16::from_be_bytes(data[10..].try_into().expect("two bytes"));
                }
                REP_INFO => {}
                other => {
                    let said = String::from_utf8_lossy(&data);
                    return Err(wrong(&format!("GO was answered with {other:#x}: {said}")));
                }
            }
        }
    }

    /// One request and its reply; the errno.
    #[allow(clippy::too_many_arguments, reason = "the fields of a request")]
    fn request(
        &mut self,
        cookie: u64,
        kind: u16,
        flags: u16,
        offset: u64,
        len: usize,
        out: &[u8],
        into: &mut [u8],
    ) -> io::Result<u32> {
        let mut message = Vec::with_capacity(28 + out.len());
        message.extend(REQUEST_MAGIC.to_be_bytes());
        message.extend(flags.to_be_bytes());
        message.extend(kind.to_be_bytes());
        message.extend(cookie.to_be_bytes());
        message.extend(offset.to_be_bytes());
        message.extend(u32::try_from(len).map_err(|_| wrong("the length is too long"))?.to_be_bytes());
        message.extend(out);
        self.stream.write_all(&message)?;
        expect(&self.take::<4>()?, &SIMPLE_REPLY_MAGIC.to_be_bytes(), "the magic of a reply")?;
        let errno = u32::from_be_bytes(self.take()?);
        expect(&self.take::<8>()?, &cookie.to_be_bytes(), "the cookie")?;
        if errno == 0 {
            self.stream.read_exact(into)?;
        }
        Ok(errno)
    }

    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

/// A server that answers nonsense is a failure of the test and no reason to connect again.
fn expect(got: &[u8], wanted: &[u8], what: &str) -> io::Result<()> {
    assert_eq!(got, wanted, "{what}");
    Ok(())
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}
