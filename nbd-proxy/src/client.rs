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

use self::handshake::{Agreed, Handshake};
use crate::nbd::wire::{self, cmd, tflag};
use crate::{Error, Kind, Result};

pub mod handshake;

#[cfg(test)]
mod tests;

/// How long one answer may take.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// The most bytes of one read or write; servers take at least this much.
pub const PAYLOAD_MAX: usize = 1 << 20;

/// A connection to one export.
#[derive(Debug)]
pub struct Client<S: Read + Write> {
    stream: S,
    export: String,
    agreed: Agreed,
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
    pub fn negotiate(mut stream: S, export: &str) -> Result<Self> {
        let agreed = Handshake::run(&mut stream, export, export, false)?;
        Ok(Self { stream, export: export.to_owned(), agreed, cookie: 0 })
    }

    /// Size of the export in bytes.
    pub fn size(&self) -> u64 {
        self.agreed.size
    }

    /// Whether the export refuses writes.
    pub fn read_only(&self) -> bool {
        self.agreed.has(tflag::READ_ONLY)
    }

    /// Fills `buf` from `offset`.
    pub fn read(&mut self, buf: &mut [u8], offset: u64) -> Result<()> {
        let mut at = offset;
        for part in buf.chunks_mut(PAYLOAD_MAX) {
            let len = self.length(part.len())?;
            self.request(cmd::READ, at, len, &[])?;
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
            self.request(cmd::WRITE, at, len, part)?;
            self.reply("write")?;
            at += u64::from(len);
        }
        Ok(())
    }

    /// Makes everything written durable.
    pub fn flush(&mut self) -> Result<()> {
        if !self.agreed.has(tflag::SEND_FLUSH) {
            return Ok(());
        }
        self.request(cmd::FLUSH, 0, 0, &[])?;
        self.reply("flush")
    }

    /// Gives a range back.
    pub fn trim(&mut self, offset: u64, len: u32) -> Result<()> {
        if !self.agreed.has(tflag::SEND_TRIM) {
            return Err(Error::new(Kind::InvalidInput, &*self.export, "the export does not offer trim"));
        }
        self.request(cmd::TRIM, offset, len, &[])?;
        self.reply("trim")
    }

    /// Says goodbye: the server finishes what it has and closes.
    pub fn close(mut self) -> Result<()> {
        self.request(cmd::DISC, 0, 0, &[])
    }

    fn request(&mut self, command: u16, offset: u64, len: u32, payload: &[u8]) -> Result<()> {
        self.cookie += 1;
        let mut header = [0; 28];
        header[0..4].copy_from_slice(&wire::REQUEST_MAGIC.to_be_bytes());
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
        if magic != wire::SIMPLE_REPLY_MAGIC || cookie != self.cookie {
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
