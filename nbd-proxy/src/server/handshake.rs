//! The handshake over a socket: feeds a [`Negotiation`] and keeps the clock.

use std::io;
use std::time::Instant;

use super::buffer::Inbox;
use super::socket::{Socket, Wake};
use crate::nbd::{Negotiated, Negotiation, Step};

/// A client that has chosen an export and waits for `answer`.
pub(super) struct Chosen {
    pub(super) negotiated: Negotiated,
    pub(super) answer: Vec<u8>,
}

/// How a handshake ended.
pub(super) enum End {
    /// An export was chosen.
    Chosen(Chosen),
    /// Everything behind this is TLS, and the negotiation goes on there.
    StartTls,
    /// The client left, or had to be dropped.
    Left,
}

/// Negotiates to an end. Bytes that the client sent behind it stay in `inbox`.
pub(super) fn shake_hands(
    socket: &Socket,
    negotiation: &mut Negotiation,
    inbox: &mut Inbox,
    deadline: Instant,
) -> io::Result<End> {
    let mut answer = Vec::new();
    loop {
        let step = negotiation.step(inbox.bytes(), &mut answer);
        match step {
            Step::More => {
                if !receive(socket, inbox, deadline)? {
                    return Ok(End::Left);
                }
            }
            Step::Used(len) => {
                inbox.consume(len);
                socket.send_by(&answer, deadline)?;
                answer.clear();
            }
            Step::Go(len, negotiated) => {
                inbox.consume(len);
                return Ok(End::Chosen(Chosen { negotiated, answer }));
            }
            Step::StartTls(len) => {
                inbox.consume(len);
                socket.send_by(&answer, deadline)?;
                return Ok(End::StartTls);
            }
            Step::Close => {
                socket.send_by(&answer, deadline)?;
                return Ok(End::Left);
            }
            Step::Drop(violation) => {
                tracing::info!(?violation, "dropped a client during the handshake");
                return Ok(End::Left);
            }
        }
    }
}

fn receive(socket: &Socket, inbox: &mut Inbox, deadline: Instant) -> io::Result<bool> {
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
    let received = socket.receive(inbox.space(inbox.capacity()))?;
    inbox.received(received);
    Ok(received > 0)
}
