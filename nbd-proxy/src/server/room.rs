//! What is served on one socket, and the way of a client into it: handshake, TLS if it is required, a seat, and the wait for
//! those that hung up. Only then is it told that it is connected.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Export;
use super::buffer::Inbox;
use super::clients::Clients;
use super::connection::Connection;
use super::hall::Guest;
use super::handshake::{self, Chosen, End};
use super::outbox::Outbox;
use super::session::{Disk, Session};
use super::socket::Socket;
use super::tls::TlsFiles;
use crate::nbd::{ExportInfo, Negotiation, Tls, wire};

/// Receive buffer of a connection that has not chosen an export: the longest message of a handshake.
const LOBBY_INBOX: usize = 16 + wire::MAX_OPTION as usize;
/// Time for the last answer of a handshake, after the wait for others.
const ANSWER: Duration = Duration::from_secs(10);

/// See the module.
pub(super) struct Room {
    /// Each with its disk.
    pub(super) exports: Vec<(Export, Arc<Disk>)>,
    /// Nothing is served without it, if it is set.
    pub(super) tls: Option<TlsFiles>,
}

impl Room {
    /// One connection from first byte to last.
    pub(super) fn receive(&self, guest: &Guest, socket: &Arc<Socket>) {
        let deadline = Instant::now() + guest.hall().limits.handshake;
        let tls = if self.tls.is_some() { Tls::Required } else { Tls::Off };
        // What the exports have is looked at anew for each client: a cut may be out.
        let exports = self.exports.iter().map(|(export, _)| describe(export)).collect();
        let mut negotiation = Negotiation::new(exports, tls);
        let mut inbox = Inbox::new(LOBBY_INBOX);
        let greeted = socket.send_by(&Negotiation::greeting(), deadline);
        match greeted.and_then(|()| handshake::shake_hands(socket, &mut negotiation, &mut inbox, deadline)) {
            Ok(End::Chosen(chosen)) => self.serve(guest, socket, &negotiation, chosen, inbox),
            Ok(End::StartTls) => self.protect(guest, socket, negotiation, &inbox, deadline),
            Ok(End::Left) => {}
            Err(error) => lost(&error),
        }
    }

    /// The rest of the connection, over TLS.
    fn protect(
        &self,
        guest: &Guest,
        client: &Arc<Socket>,
        mut negotiation: Negotiation,
        inbox: &Inbox,
        deadline: Instant,
    ) {
        if !inbox.bytes().is_empty() {
            // Whoever sits in between could have put them there, to be taken for the client's own.
            tracing::info!("dropped a client that sent unprotected bytes behind STARTTLS");
            return;
        }
        let Some(files) = &self.tls else { return };
        let protected = match files.protect(client, deadline) {
            Ok(protected) => protected,
            Err(error) => {
                tracing::error!(%error, "refused a client: TLS cannot be begun");
                return;
            }
        };
        let socket = &protected.socket;
        guest.is_behind(socket);
        let mut inbox = Inbox::new(LOBBY_INBOX);
        match handshake::shake_hands(socket, &mut negotiation, &mut inbox, deadline) {
            Ok(End::Chosen(chosen)) => self.serve(guest, socket, &negotiation, chosen, inbox),
            Ok(End::StartTls | End::Left) => {}
            Err(error) => lost(&error),
        }
        protected.end();
    }

    /// The client has chosen: lets it in, and serves it to the end.
    fn serve(
        &self,
        guest: &Guest,
        socket: &Arc<Socket>,
        negotiation: &Negotiation,
        chosen: Chosen,
        inbox: Inbox,
    ) {
        let Chosen { negotiated, answer } = chosen;
        let Some((export, disk)) = self.exports.get(negotiated.export) else { return };
        let refuse = |why: &str| {
            tracing::info!(export = export.name, "refused a client: {why}");
            // It may be gone already.
            let _ = socket.send_by(&negotiation.refusal(why), Instant::now() + ANSWER);
        };
        if !guest.sit_down() {
            return refuse("the server has as many clients as it may have");
        }
        let share = guest.hall().budget.share();
        let session = Arc::new(Session {
            socket: Arc::clone(socket),
            outbox: Outbox::new(share.sizes.in_flight),
            negotiated,
            disk: Arc::clone(disk),
            export: export.name.clone(),
            chunk: share.sizes.chunk,
        });
        let member = Clients::enter(&session);
        if !member.wait_for_hung_up() {
            return;
        }
        if export.max_clients.is_some_and(|max| member.older() >= max) {
            return refuse("the export has as many clients as it may have (max_clients)");
        }
        // Only now may the client believe that it is connected: nothing older will be carried out behind its back.
        if socket.send_by(&answer, Instant::now() + ANSWER).is_ok() {
            tracing::debug!(export = export.name, framing = ?negotiated.framing, "a client has connected");
            Connection::new(session, inbox.grown(share.sizes.inbox)).run();
        }
    }
}

fn lost(error: &io::Error) {
    tracing::debug!(%error, "a client was lost during the handshake");
}

fn describe(export: &Export) -> ExportInfo {
    let mut capabilities = export.device.capabilities();
    capabilities.read_only |= export.read_only;
    ExportInfo {
        name: export.name.clone(),
        description: export.description.clone(),
        size: export.device.size(),
        capabilities,
        cut: export.device.cut_out(),
    }
}
