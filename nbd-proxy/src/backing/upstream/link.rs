//! One connection to an upstream: requests go out from any thread, replies come in by one.
//!
//! A request has a *slot* in which its thread waits. Each slot is filled exactly once: by the reply, or with the word that the
//! connection was lost, in which case nobody knows whether the server did it. That word comes at the latest when the server has
//! left the oldest request unanswered for the reply timeout.

use std::io::{self, Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::address::Address;
use super::stream::{Stream, Until};
use crate::client::handshake::{Agreed, Handshake};
use crate::nbd::answer::{Answer, Question, Refused, Replies};
use crate::nbd::wire::{Cookie, cmd};
use crate::nbd::{Framing, RawRequest};
use crate::{Error, Kind, Result};

/// Bytes taken off the socket at a time.
const RECEIVE: usize = 256 << 10;
/// How often a silent connection is looked after.
const LOOK: Duration = Duration::from_secs(1);

/// A request to be sent.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Command number.
    pub command: u16,
    /// Command flags.
    pub flags: u16,
    /// Byte offset.
    pub offset: u64,
    /// Length in bytes.
    pub len: u32,
    /// What follows the header.
    pub payload: &'a [u8],
    /// What is to be told.
    pub question: Question,
}

/// What carrying a request out means for the durability of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing: it changes nothing.
    None,
    /// One more change that a flush must cover; if it is `durable` by itself, only as long as it is not known to be done.
    Change {
        /// It has FUA.
        durable: bool,
    },
    /// So many changes are durable.
    Flush(u64),
}

/// What became of a request.
#[derive(Debug)]
pub enum Outcome {
    /// The server said.
    Answered(Result<Answer, Refused>),
    /// The connection was lost first.
    Lost,
}

/// See the module.
#[derive(Debug)]
pub struct Slot {
    /// See [`Effect`].
    pub effect: Effect,
    since: Instant,
    outcome: Mutex<Option<Outcome>>,
    filled: Condvar,
}

impl Slot {
    fn new(effect: Effect) -> Arc<Self> {
        Arc::new(Self { effect, since: Instant::now(), outcome: Mutex::default(), filled: Condvar::new() })
    }

    /// Waits for the outcome.
    pub fn wait(&self) -> Outcome {
        let mut outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match outcome.take() {
                Some(outcome) => return outcome,
                None => outcome = self.filled.wait(outcome).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// Fills it.
    pub fn fill(&self, outcome: Outcome) {
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        self.filled.notify_one();
    }
}

#[derive(Debug)]
struct Table {
    replies: Replies<Arc<Slot>>,
    cookie: Cookie,
    lost: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Link {
    /// What both sides agreed on.
    pub agreed: Agreed,
    /// Names the run of the server's process, where that can be told.
    pub server: Option<String>,
    stream: Stream,
    table: Mutex<Table>,
    /// Held while one request's bytes go out, so that they stay together; bounded by the send timeout.
    sending: Mutex<()>,
}

impl Link {
    /// Connects and agrees on the export.
    pub fn open(address: &Address, reply_timeout: Duration) -> Result<Self> {
        let failed = |what: &str, error: io::Error| {
            Error::new(Kind::Unavailable, address.text(), format!("cannot {what}: {error}"))
                .remedy("is the server running, and does it listen there?")
                .source(error)
        };
        let stream = Stream::connect(&address.place).map_err(|error| failed("connect", error))?;
        let agreed = Handshake::run(Until::handshake(&stream), address.text(), &address.export, true)?;
        stream
            .set_timeouts(LOOK.min(reply_timeout / 4), reply_timeout)
            .map_err(|error| failed("set the time limits", error))?;
        let table = Table { replies: Replies::new(agreed.structured), cookie: 0, lost: false };
        let server = stream.server();
        Ok(Self { agreed, server, stream, table: Mutex::new(table), sending: Mutex::default() })
    }

    /// Sends a request; its slot.
    pub fn send(&self, request: &Request<'_>, effect: Effect) -> Arc<Slot> {
        let slot = Slot::new(effect);
        let cookie = {
            let mut table = self.lock();
            if table.lost {
                drop(table);
                slot.fill(Outcome::Lost);
                return slot;
            }
            table.cookie += 1;
            let cookie = table.cookie;
            table.replies.ask(cookie, request.question, Arc::clone(&slot));
            cookie
        };
        let Request { command, flags, offset, len, payload, .. } = *request;
        let header = RawRequest { flags, command, cookie, offset, len: u64::from(len) };
        let mut bytes = Vec::with_capacity(32 + payload.len());
        bytes.extend_from_slice(&header.encode(Framing::Structured));
        bytes.extend_from_slice(payload);
        let sent = {
            let _turn = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
            (&self.stream).write_all(&bytes)
        };
        if sent.is_err() {
            // Who takes the replies in finds out, and tells all that wait.
            self.stream.shut_down();
        }
        slot
    }

    /// Takes replies in until the connection is lost; why it was. `note` hears of each answer, well or
    /// not, before its thread does.
    pub fn receive(&self, reply_timeout: Duration, note: impl Fn(Effect, bool)) -> String {
        let mut buf = vec![0; RECEIVE];
        loop {
            let len = match (&self.stream).read(&mut buf) {
                Ok(0) => return "the server hung up".to_owned(),
                Ok(len) => len,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    0
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                Err(error) => return format!("the connection broke: {error}"),
            };
            if let Err(violation) = self.take_in(&buf[..len], &note) {
                return format!("the server broke the protocol: {violation}");
            }
            if self.lock().replies.oldest().is_some_and(|slot| slot.since.elapsed() > reply_timeout) {
                return format!("the server has not answered for {reply_timeout:?}");
            }
        }
    }

    fn take_in(&self, bytes: &[u8], note: &impl Fn(Effect, bool)) -> Result<(), &'static str> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let (used, answered) = self.lock().replies.feed(rest)?;
            rest = rest.get(used..).unwrap_or_default();
            if let Some(answered) = answered {
                note(answered.ticket.effect, answered.outcome.is_ok());
                answered.ticket.fill(Outcome::Answered(answered.outcome));
            }
        }
        Ok(())
    }

    /// Ends the connection: whoever waits for a reply is the caller's, and nobody else will wait.
    pub fn give_up(&self) -> Vec<Arc<Slot>> {
        self.stream.shut_down();
        let mut table = self.lock();
        table.lost = true;
        table.replies.take_all().collect()
    }

    /// Says goodbye; the server hangs up.
    pub fn close(&self) {
        let question = Question::Plain;
        let goodbye = Request { command: cmd::DISC, flags: 0, offset: 0, len: 0, payload: &[], question };
        self.send(&goodbye, Effect::None);
        self.stream.shut_down();
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
