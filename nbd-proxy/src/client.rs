//! A small NBD client: one connection, one request at a time, fixed newstyle with GO and simple replies. A server that
//! does not know GO is asked by EXPORT_NAME, which can refuse only by hanging up.
//!
//! It exists to put load on an export from inside our own programs. It trusts no server: every length is bounded before
//! anything is allocated, the reply must name the request, and a server that hangs is given up after
//! [`PATIENCE`]. After any error the connection is spent, because where the stream stands is not known; the one
//! exception is an error that the server *answered*, which leaves it in step.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::{Error, Kind, Result};

#[cfg(test)]
mod tests;

/// How long one answer may take.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// The most bytes of one read or write; servers take at least this much.
pub const PAYLOAD_MAX: usize = 1 << 20;
/// The most bytes of one option reply, and the most replies to one option.
const OPTION_REPLY_MAX: u32 = 64 << 10;
const OPTION_REPLIES_MAX: usize = 64;

const MAGIC: u64 = 0x4e42_444d_4147_4943; // NBDMAGIC
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054; // IHAVEOPT
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;
const OPTION_EXPORT_NAME: u32 = 1;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_IS_ERROR: u32 = 1 << 31;
const REPLY_UNSUPPORTED: u32 = REPLY_IS_ERROR | 1;
/// What follows the answer to EXPORT_NAME, unless both sides agreed to leave it out.
const ZEROES: usize = 124;
const INFO_EXPORT: u16 = 0;

const FLAG_READ_ONLY: u16 = 1 << 1;
const FLAG_FLUSH: u16 = 1 << 2;
const FLAG_TRIM: u16 = 1 << 5;

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;

/// A connection to one export.
#[derive(Debug)]
pub struct Client<S: Read + Write> {
    stream: S,
    export: String,
    size: u64,
    flags: u16,
    cookie: u64,
}

impl Client<UnixStream> {
    /// Connects to `export` on a Unix socket.
    pub fn connect(socket: &Path, export: &str) -> Result<Self> {
        let stream = UnixStream::connect(socket).map_err(|error| Error::io("connect", socket, error))?;
        stream
            .set_read_timeout(Some(PATIENCE))
            .and_then(|()| stream.set_write_timeout(Some(PATIENCE)))
            .map_err(|error| Error::io("set the time limit of", socket, error))?;
        Self::negotiate(stream, export)
    }
}

impl<S: Read + Write> Client<S> {
    /// Agrees on `export` over a fresh connection.
    pub fn negotiate(stream: S, export: &str) -> Result<Self> {
        let mut client = Self { stream, export: export.to_owned(), size: 0, flags: 0, cookie: 0 };
        let no_zeroes = client.greet()?;
        if !client.go()? {
            client.export_name(no_zeroes)?;
        }
        Ok(client)
    }

    /// Size of the export in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether the export refuses writes.
    pub fn read_only(&self) -> bool {
        self.flags & FLAG_READ_ONLY != 0
    }

    /// Fills `buf` from `offset`.
    pub fn read(&mut self, buf: &mut [u8], offset: u64) -> Result<()> {
        let mut at = offset;
        for part in buf.chunks_mut(PAYLOAD_MAX) {
            let len = self.length(part.len())?;
            self.request(READ, at, len, &[])?;
            self.reply("read")?;
            self.stream.read_exact(part).map_err(|error| lost(&self.export, "read", &error))?;
            at += u64::from(len);
        }
        Ok(())
    }

    /// Writes `data` at `offset`.
    pub fn write(&mut self, data: &[u8], offset: u64) -> Result<()> {
        let mut at = offset;
        for part in data.chunks(PAYLOAD_MAX) {
            let len = self.length(part.len())?;
            self.request(WRITE, at, len, part)?;
            self.reply("write")?;
            at += u64::from(len);
        }
        Ok(())
    }

    /// Makes everything written durable.
    pub fn flush(&mut self) -> Result<()> {
        if self.flags & FLAG_FLUSH == 0 {
            return Ok(());
        }
        self.request(FLUSH, 0, 0, &[])?;
        self.reply("flush")
    }

    /// Gives a range back.
    pub fn trim(&mut self, offset: u64, len: u32) -> Result<()> {
        if self.flags & FLAG_TRIM == 0 {
            return Err(Error::new(Kind::InvalidInput, &*self.export, "the export does not offer trim"));
        }
        self.request(TRIM, offset, len, &[])?;
        self.reply("trim")
    }

    /// Says goodbye: the server finishes what it has and closes.
    pub fn close(mut self) -> Result<()> {
        self.request(DISCONNECT, 0, 0, &[])
    }

    /// Whether the zeroes after EXPORT_NAME are left out.
    fn greet(&mut self) -> Result<bool> {
        let magic = self.u64()?;
        let option_magic = self.u64()?;
        let flags = self.u16()?;
        if magic != MAGIC || option_magic != OPTION_MAGIC || flags & FIXED_NEWSTYLE == 0 {
            return Err(self.nonsense("the server does not speak fixed newstyle NBD"));
        }
        self.send(&u32::from(flags & (FIXED_NEWSTYLE | NO_ZEROES)).to_be_bytes())?;
        Ok(flags & NO_ZEROES != 0)
    }

    fn export_name(&mut self, no_zeroes: bool) -> Result<()> {
        let name = self.export.clone().into_bytes();
        let mut option = Vec::with_capacity(name.len() + 16);
        option.extend(OPTION_MAGIC.to_be_bytes());
        option.extend(OPTION_EXPORT_NAME.to_be_bytes());
        option.extend(self.length(name.len())?.to_be_bytes());
        option.extend(name);
        self.send(&option)?;
        let described = self.bytes::<10>()?;
        self.describe(described)?;
        if !no_zeroes {
            self.bytes::<ZEROES>()?;
        }
        Ok(())
    }

    /// Asks for the export; `false` if the server does not know how to be asked.
    fn go(&mut self) -> Result<bool> {
        let name = self.export.clone().into_bytes();
        let name_len = self.length(name.len())?;
        let mut option = Vec::with_capacity(name.len() + 22);
        option.extend(OPTION_MAGIC.to_be_bytes());
        option.extend(OPTION_GO.to_be_bytes());
        option.extend((name_len + 6).to_be_bytes());
        option.extend(name_len.to_be_bytes());
        option.extend(name);
        option.extend(0_u16.to_be_bytes());
        self.send(&option)?;
        let mut described = false;
        for _ in 0..OPTION_REPLIES_MAX {
            let (kind, data) = self.option_reply()?;
            match kind {
                REPLY_ACK if described => return Ok(true),
                REPLY_UNSUPPORTED if !described => return Ok(false),
                REPLY_ACK => return Err(self.nonsense("the server agreed without saying the export's size")),
                REPLY_INFO => described |= self.info(&data)?,
                kind if kind & REPLY_IS_ERROR != 0 => {
                    let said = String::from_utf8_lossy(&data).chars().take(200).collect::<String>();
                    let message =
                        format!("the server refused the export (error {}): {said}", kind & !REPLY_IS_ERROR);
                    return Err(Error::new(Kind::NotFound, &*self.export, message));
                }
                _ => return Err(self.nonsense("an answer of unknown kind to GO")),
            }
        }
        Err(self.nonsense("endless answers to GO"))
    }

    fn option_reply(&mut self) -> Result<(u32, Vec<u8>)> {
        let magic = self.u64()?;
        let option = self.u32()?;
        let kind = self.u32()?;
        let len = self.u32()?;
        if magic != OPTION_REPLY_MAGIC || option != OPTION_GO || len > OPTION_REPLY_MAX {
            return Err(self.nonsense("a broken answer to GO"));
        }
        let mut data = vec![0; usize::try_from(len).unwrap_or_default()];
        self.stream.read_exact(&mut data).map_err(|error| lost(&self.export, "negotiate", &error))?;
        Ok((kind, data))
    }

    /// Takes in one piece of information; whether it was the export's description.
    fn info(&mut self, data: &[u8]) -> Result<bool> {
        let Some((kind, rest)) = data.split_first_chunk() else {
            return Err(self.nonsense("an information without a type"));
        };
        if u16::from_be_bytes(*kind) != INFO_EXPORT {
            return Ok(false);
        }
        let described =
            rest.try_into().map_err(|_| self.nonsense("an export description of the wrong length"))?;
        self.describe(described)?;
        Ok(true)
    }

    /// Takes in an export's size and flags.
    fn describe(&mut self, described: [u8; 10]) -> Result<()> {
        let [size @ .., high, low] = described;
        self.size = u64::from_be_bytes(size);
        self.flags = u16::from_be_bytes([high, low]);
        if i64::try_from(self.size).is_err() {
            return Err(self.nonsense("an export of impossible size"));
        }
        Ok(())
    }

    fn request(&mut self, command: u16, offset: u64, len: u32, payload: &[u8]) -> Result<()> {
        self.cookie += 1;
        let mut header = [0; 28];
        header[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        header[6..8].copy_from_slice(&command.to_be_bytes());
        header[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        header[16..24].copy_from_slice(&offset.to_be_bytes());
        header[24..28].copy_from_slice(&len.to_be_bytes());
        self.send(&header)?;
        self.send(payload)
    }

    fn reply(&mut self, what: &str) -> Result<()> {
        let magic = self.u32()?;
        let error = self.u32()?;
        let cookie = self.u64()?;
        if magic != REPLY_MAGIC || cookie != self.cookie {
            return Err(self.nonsense("a reply to a request that was not made"));
        }
        match i32::try_from(error) {
            Ok(0) => Ok(()),
            Ok(error) => Err(Error::io(what, Path::new(&self.export), io::Error::from_raw_os_error(error))),
            Err(_) => Err(self.nonsense("an error number that none has")),
        }
    }

    fn length(&self, len: usize) -> Result<u32> {
        u32::try_from(len)
            .map_err(|_| Error::new(Kind::InvalidInput, &*self.export, format!("{len} bytes are too many")))
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).map_err(|error| lost(&self.export, "send", &error))
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).map_err(|error| lost(&self.export, "receive", &error))?;
        Ok(bytes)
    }

    fn u16(&mut self) -> Result<u16> {
        self.bytes().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        self.bytes().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.bytes().map(u64::from_be_bytes)
    }

    fn nonsense(&self, message: &str) -> Error {
        Error::new(Kind::Corrupt, &*self.export, message)
    }
}

fn lost(export: &str, what: &str, error: &io::Error) -> Error {
    Error::new(Kind::Unavailable, export, format!("cannot {what}: {error}"))
        .remedy("is the export still served?")
}
