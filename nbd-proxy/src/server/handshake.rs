//! The handshake over a socket: feeds [`Negotiation`] and keeps the clock.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::buffer::Inbox;
use super::socket::{Socket, Wake};
use crate::nbd::{ExportInfo, Negotiated, Negotiation, Step, wire};

/// A client that has chosen an export and waits for `answer`.
pub(super) struct Chosen {
    pub(super) negotiated: Negotiated,
    pub(super) answer: Vec<u8>,
}

/// Negotiates until an export is chosen; nothing if the client left or had to be dropped. Bytes that the client sent
/// behind its choice stay in `inbox`.
pub(super) fn shake_hands(
    socket: &Socket,
    exports: Arc<[ExportInfo]>,
    inbox: &mut Inbox,
    deadline: Instant,
) -> io::Result<Option<Chosen>> {
    socket.send_by(&Negotiation::greeting(), deadline)?;
    let mut negotiation = Negotiation::new(exports);
    let mut answer = Vec::new();
    loop {
        let step = negotiation.step(inbox.bytes(), &mut answer);
        match step {
            Step::More => {
                if !receive(socket, inbox, deadline)? {
                    return Ok(None);
                }
            }
            Step::Used(len) => {
                inbox.consume(len);
                socket.send_by(&answer, deadline)?;
                answer.clear();
            }
            Step::Go(len, negotiated) => {
                inbox.consume(len);
                return Ok(Some(Chosen { negotiated, answer }));
            }
            Step::Close => {
                socket.send_by(&answer, deadline)?;
                return Ok(None);
            }
            Step::Drop(violation) => {
                tracing::info!(?violation, "dropped a client during the handshake");
                return Ok(None);
            }
        }
    }
}

fn receive(socket: &Socket, inbox: &mut Inbox, deadline: Instant) -> io::Result<bool> {
    /// The longest message: an option header and the largest payload that is kept.
    const LONGEST: usize = 16 + wire::MAX_OPTION as usize;
    loop {
        if socket.halted() {
            return Ok(false);
        }
        match socket.wait(true, false, Some(deadline))? {
            Wake::Timeout => {
                tracing::info!("dropped a client that did not finish its handshake in time");
                return Ok(false);
            }
            Wake::Bell => {}
            Wake::Readable | Wake::Writable => break,
        }
    }
    let received = socket.receive(inbox.space(LONGEST))?;
    inbox.received(received);
    Ok(received > 0)
}
