//! Who is connected to a disk, and the rule for a client that comes back.
//!
//! A client that lost its connection (or a VM that was killed and started again) connects anew and writes. Bytes of
//! its old connection that nobody has read yet must not be carried out after those newer writes. So a connection that
//! has chosen an export first waits for every older one whose client has hung up: what that one has in flight is
//! finished, what it has not read is thrown away. A client that has only closed its sending side may still be reading
//! replies: it may finish what it sent, for a while.
//!
//! Only older connections are waited for, so that two hung-up ones cannot wait for each other.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::session::Session;
use super::socket::{HangUp, Socket};

/// How long a half-closed connection may go on before it counts as hung up.
const HALF_CLOSED: Duration = Duration::from_secs(3);
/// Hang-ups during the wait are noticed after this.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

#[derive(Default)]
struct State {
    next: u64,
    members: Vec<(u64, Arc<Session>)>,
}

/// The connections of one disk.
#[derive(Default)]
pub(super) struct Clients {
    state: Mutex<State>,
    left: Condvar,
}

impl Clients {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a connection; it is a member until the guard is dropped.
    pub(super) fn enter(session: &Arc<Session>) -> Member {
        let mut state = session.disk.clients.lock();
        let ticket = state.next;
        state.next += 1;
        state.members.push((ticket, Arc::clone(session)));
        drop(state);
        Member { ticket, session: Arc::clone(session) }
    }

    /// How many connections use the export of that name.
    pub(super) fn count(&self, export: &str) -> usize {
        self.lock().members.iter().filter(|(_, session)| session.export == export).count()
    }
}

/// A connection's membership.
pub(super) struct Member {
    ticket: u64,
    session: Arc<Session>,
}

impl Member {
    /// Waits until no older connection is left whose client has hung up; false if this one was halted meanwhile.
    pub(super) fn wait_for_hung_up(&self) -> bool {
        let clients = &self.session.disk.clients;
        let patience = Instant::now() + HALF_CLOSED;
        let mut state = clients.lock();
        loop {
            let older = state.members.iter().filter(|(ticket, _)| *ticket < self.ticket);
            let waiting = older.filter(|(_, old)| is_leaving(&old.socket, patience)).count();
            if waiting == 0 {
                return true;
            }
            if self.session.socket.halted() {
                return false;
            }
            state = clients.left.wait_timeout(state, LOOK_AGAIN).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// How many clients of the same export came before and are still there.
    pub(super) fn older(&self) -> usize {
        let state = self.session.disk.clients.lock();
        let same = |old: &Arc<Session>| old.export == self.session.export;
        state.members.iter().filter(|(ticket, old)| *ticket < self.ticket && same(old)).count()
    }
}

fn is_leaving(socket: &Socket, patience: Instant) -> bool {
    match socket.hang_up() {
        HangUp::No => false,
        HangUp::Half if Instant::now() < patience => true,
        HangUp::Half | HangUp::Full => {
            if !socket.halted() {
                socket.cut();
            }
            true
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let clients = &self.session.disk.clients;
        clients.lock().members.retain(|(ticket, _)| *ticket != self.ticket);
        clients.left.notify_all();
    }
}
