//! The upstream over all its connections: who waits for a lost one, what may be gone with it, and who hears of that.
//!
//! A lost connection is a power loss of the disk behind it, for all we know: what the server had acknowledged and not flushed may be
//! there or not. So, when a connection is lost:
//! 1. no request is sent any more, and none is answered;
//! 2. if anything was not covered by a flush, the watcher hears of it, and has returned before
//! 3. there is a new connection. Requests that were not answered are sent again on it, by the threads that wait for them; they hold
//!    their ranges, so nothing newer has been written there meanwhile.
//!
//! A flush counts changes: those answered before it was sent are covered by its reply, and only by a reply on the connection on which
//! it was sent first, unless nothing was lost in between. A change that was in flight when a connection was lost may have been
//! done, so it counts as not covered from then on.
//!
//! What is assumed of servers: a flush makes all they have durable, whoever wrote it, and a request of a connection that ended is
//! not carried out after requests of the next one. Servers of files are like that when they die; one that only hangs is given
//! up after the reply timeout, which is why that is long.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::Settings;
use super::address::Address;
use super::link::{Effect, Link, Outcome, Request, Slot};
use crate::backing::{Lost, Watcher};
use crate::client::handshake::Agreed;
use crate::nbd::answer::{Answer, Question, Refused};
use crate::nbd::wire::{cmd, tflag};
use crate::{Error, Kind, Result};

/// From one attempt to connect again to the next, doubled each time …
const RETRY_FIRST: Duration = Duration::from_millis(10);
/// … up to this.
const RETRY_LAST: Duration = Duration::from_secs(5);
/// The transmission flags that a new connection must have if the first one had them.
const NEEDED: u16 = tflag::SEND_FLUSH | tflag::SEND_FUA | tflag::SEND_WRITE_ZEROES;

#[derive(Debug)]
struct State {
    link: Option<Arc<Link>>,
    /// Since when there is no link, and why.
    away: Option<(Instant, String)>,
    closing: bool,
    /// Changes that may have been made, those of them that a flush has covered, and losses of some that none had.
    changes: u64,
    durable: u64,
    losses: u64,
    /// Names the run of the server's process.
    server: Option<String>,
    watcher: Option<Weak<dyn Watcher>>,
}

/// See the module.
#[derive(Debug)]
pub struct Session {
    pub address: Address,
    /// What was agreed on first; later connections agree on no less.
    pub agreed: Agreed,
    settings: Settings,
    state: Mutex<State>,
    changed: Condvar,
}

impl Session {
    /// Connects for the first time.
    pub fn open(address: Address, settings: Settings, writable: bool) -> Result<Self> {
        let link = Link::open(&address, settings.reply_timeout)?;
        let (agreed, server) = (link.agreed, link.server.clone());
        let state = State {
            link: Some(Arc::new(link)),
            away: None,
            closing: false,
            // What an earlier client of the server wrote may not be durable.
            changes: u64::from(writable),
            durable: 0,
            losses: 0,
            server,
            watcher: None,
        };
        Ok(Self { address, agreed, settings, state: Mutex::new(state), changed: Condvar::new() })
    }

    /// Who is told of losses.
    pub fn watch(&self, watcher: Weak<dyn Watcher>) {
        let (early, told) = {
            let mut state = self.lock();
            state.watcher = Some(watcher.clone());
            (state.losses > 0, watcher.upgrade())
        };
        // It was lost before anybody watched.
        told.filter(|_| early).iter().for_each(|watcher| watcher.power_lost());
    }

    /// Names the run of the server's process that answers now.
    pub fn server(&self) -> Option<String> {
        self.lock().server.clone()
    }

    /// What is wrong, if there is no connection.
    pub fn trouble(&self) -> Option<String> {
        let state = self.lock();
        let (since, why) = state.away.as_ref()?;
        Some(format!("{}: no connection for {} s: {why}", self.address, since.elapsed().as_secs()))
    }

    /// Has a request carried out, on however many connections that takes.
    pub fn perform(&self, request: &Request<'_>, effect: Effect) -> io::Result<Answer> {
        self.finish(request, effect, self.begin(request, effect)?)
    }

    /// Sends a request, for [`Session::finish`] to wait for.
    pub fn begin(&self, request: &Request<'_>, effect: Effect) -> io::Result<Arc<Slot>> {
        Ok(self.link(None)?.send(request, effect))
    }

    /// Waits for a request that was sent; sends it again if its connection is lost.
    pub fn finish(&self, request: &Request<'_>, effect: Effect, sent: Arc<Slot>) -> io::Result<Answer> {
        let mut slot = sent;
        let mut since = None;
        loop {
            match slot.wait() {
                Outcome::Answered(Ok(answer)) => return Ok(answer),
                Outcome::Answered(Err(refused)) => return Err(self.refused(request, &refused)),
                Outcome::Lost => {
                    let since = *since.get_or_insert_with(Instant::now);
                    slot = self.link(Some(since))?.send(request, effect);
                }
            }
        }
    }

    /// Makes durable what was answered before.
    ///
    /// # Errors
    /// [`Lost`] if some of that may be gone.
    pub fn flush(&self) -> io::Result<()> {
        let (covers, losses) = {
            let state = self.lock();
            (state.changes, state.losses)
        };
        let question = Question::Plain;
        let flush = Request { command: cmd::FLUSH, flags: 0, offset: 0, len: 0, payload: &[], question };
        self.perform(&flush, Effect::Flush(covers))?;
        if self.lock().losses == losses {
            return Ok(());
        }
        Err(Lost::error("the connection to the server of this disk was lost while it was flushed"))
    }

    /// How often changes that were not durable may have been lost.
    pub fn losses(&self) -> u64 {
        self.lock().losses
    }

    /// Serves connection after connection, until [`Session::close`].
    pub fn run(&self) {
        loop {
            let Some(link) = self.lock().link.clone() else { return };
            let why = link.receive(self.settings.reply_timeout, |effect, well| self.note(effect, well));
            self.lose(&link, why);
            if !self.connect_again() {
                return;
            }
        }
    }

    /// Ends it all. Whoever still waits gets an error.
    pub fn close(&self) {
        let link = {
            let mut state = self.lock();
            state.closing = true;
            self.changed.notify_all();
            state.link.take()
        };
        if let Some(link) = link {
            link.close();
        }
    }

    /// A reply has come, `well` or not: what was refused may have been done in part.
    fn note(&self, effect: Effect, well: bool) {
        let mut state = self.lock();
        match effect {
            Effect::Change { durable } => state.changes += u64::from(!(durable && well)),
            Effect::Flush(covers) if well => state.durable = state.durable.max(covers),
            Effect::Flush(_) | Effect::None => {}
        }
    }

    fn lose(&self, link: &Link, why: String) {
        let (watcher, told) = {
            let mut state = self.lock();
            state.link = None;
            let told = state.changes > state.durable && !state.closing;
            if !state.closing {
                tracing::warn!(upstream = %self.address, why, unflushed = told, "the connection to the disk's server is lost");
                state.away = Some((Instant::now(), why));
                state.losses += u64::from(told);
            }
            (state.watcher.clone().and_then(|watcher| watcher.upgrade()), told)
        };
        if let Some(watcher) = watcher.filter(|_| told) {
            watcher.power_lost();
        }
        let waiting = link.give_up();
        let in_flight = waiting.iter().filter(|slot| matches!(slot.effect, Effect::Change { .. })).count();
        self.lock().changes += u64::try_from(in_flight).unwrap_or(u64::MAX);
        waiting.iter().for_each(|slot| slot.fill(Outcome::Lost));
    }

    /// Tries until there is a connection, or nobody wants one any more.
    fn connect_again(&self) -> bool {
        let mut gap = RETRY_FIRST;
        loop {
            let mut state = self.lock();
            let deadline = Instant::now() + gap;
            while !state.closing && Instant::now() < deadline {
                let wait = deadline.saturating_duration_since(Instant::now());
                state = self.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
            }
            if state.closing {
                return false;
            }
            drop(state);
            gap = (gap * 2).min(RETRY_LAST);
            match Link::open(&self.address, self.settings.reply_timeout).and_then(|link| self.same(link)) {
                Ok(link) => return self.resume(link),
                Err(error) => {
                    if let Some((_, why)) = &mut self.lock().away {
                        *why = error.message;
                    }
                }
            }
        }
    }

    /// The new connection must be to what the first one was to.
    fn same(&self, link: Link) -> Result<Link> {
        let (first, now) = (&self.agreed, &link.agreed);
        let missing = first.flags & NEEDED & !now.flags;
        let read_only = now.has(tflag::READ_ONLY) && !first.has(tflag::READ_ONLY);
        let message = if now.size != first.size {
            format!("the server came back with an export of {} bytes instead of {}", now.size, first.size)
        } else if missing != 0 || read_only || now.minimum_block > first.minimum_block {
            "the server came back with an export that can do less".to_owned()
        } else if now.maximum_payload < first.maximum_payload || now.structured != first.structured {
            "the server came back with other limits".to_owned()
        } else {
            return Ok(link);
        };
        Err(Error::new(Kind::InvalidInput, self.address.text(), message)
            .remedy("have it serve the same disk in the same way, or restart the proxy"))
    }

    fn resume(&self, link: Link) -> bool {
        let mut state = self.lock();
        if state.closing {
            drop(state);
            link.close();
            return false;
        }
        if let Some((since, _)) = state.away.take() {
            let away = since.elapsed();
            tracing::info!(upstream = %self.address, ?away, "the disk's server is back");
        }
        state.server.clone_from(&link.server);
        state.link = Some(Arc::new(link));
        drop(state);
        self.changed.notify_all();
        true
    }

    /// The connection, waited for if need be, but no longer than a lost one is waited for: `since` is when the request lost its own.
    fn link(&self, since: Option<Instant>) -> io::Result<Arc<Link>> {
        let mut state = self.lock();
        loop {
            if state.closing {
                return Err(io::Error::other("the disk is being closed"));
            }
            let since = since.or(state.away.as_ref().map(|(since, _)| *since));
            let left = since.map(|since| self.settings.reconnect_delay.saturating_sub(since.elapsed()));
            let over = left.is_some_and(|left| left.is_zero());
            match &state.link {
                Some(link) if !over => return Ok(Arc::clone(link)),
                _ if over => {
                    let why = state.away.as_ref().map_or("it loses every connection", |(_, why)| why);
                    return Err(Lost::error(&format!("the server of this disk is away: {why}")));
                }
                _ => {}
            }
            let wait = left.unwrap_or(self.settings.reconnect_delay);
            state = self.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn refused(&self, request: &Request<'_>, refused: &Refused) -> io::Error {
        let Request { command, offset, len, .. } = *request;
        tracing::debug!(upstream = %self.address, command, offset, len, ?refused, "refused");
        // Of the numbers that may stand on the wire, all are errnos of Linux; any other says only that it failed.
        let errno = match refused.code {
            1 | 12 | 22 | 28 | 75 | 95 => i32::try_from(refused.code).unwrap_or(5),
            _ => 5,
        };
        io::Error::from_raw_os_error(errno)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
