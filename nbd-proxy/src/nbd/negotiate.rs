//! The handshake (fixed newstyle) as a state machine that is fed bytes.
//!
//! [`Negotiation::greeting`] goes out first; then every byte received is offered to [`Negotiation::step`], which takes
//! one whole message off the front of it, appends the answer to `out` and says how to go on. The caller sends `out`
//! and bounds the time; how bytes were split on the way makes no difference.
//!
//! What holds: an option's payload is read in full before any answer; an unknown option is refused and the handshake
//! goes on; flags that were not offered end it; a context set belongs to the export that it was asked for and dies
//! when another one is chosen, and every new set replaces the last, even one that fails. Where TLS is required nothing
//! but STARTTLS is done before it, and nothing that was agreed on before it holds after it.

use std::sync::Arc;

use super::option::{ContextRequest, InfoRequest, Malformed};
use super::terms::{Contexts, ExportInfo, Framing, Negotiated};
use super::wire::{self, handshake, info, opt, rep, tflag};

/// Bytes of an option header: magic, option, length.
const OPTION_HEADER: usize = 16;
/// Bytes of a name that are repeated in an error text.
const ECHOED: usize = 80;

/// How the handshake goes on.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// The input does not hold a whole message: ask again with more bytes behind the same ones.
    More,
    /// So many bytes were used.
    Used(usize),
    /// So many bytes were used and the transmission phase begins behind them, once `out` is sent.
    Go(usize, Negotiated),
    /// So many bytes were used: send `out`, and everything behind it over TLS. Bytes that the client sent behind the used
    /// ones were not protected and must drop it.
    StartTls(usize),
    /// The client said goodbye: send `out`, then close.
    Close,
    /// The client broke the rules: close without another word.
    Drop(Violation),
}

/// Why a client was dropped during the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// Client flags that were not offered.
    UnknownFlags(u32),
    /// An option did not begin with its magic number.
    BadMagic,
    /// An option longer than anything that would be read.
    OptionTooLong(u32),
    /// More options than any client needs.
    TooManyOptions,
    /// EXPORT_NAME with a name that is not served here.
    UnknownExport,
    /// EXPORT_NAME without TLS where that is required.
    NotSecure,
}

/// Whether a connection is to be protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    /// Never; STARTTLS is refused.
    Off,
    /// Before anything else.
    Required,
    /// It is.
    On,
}

#[derive(Debug)]
enum Phase {
    Flags,
    Options,
    /// Throwing away the payload of an option that is too long to be looked at.
    Skip {
        option: u32,
        left: usize,
    },
}

/// One handshake.
#[derive(Debug)]
pub struct Negotiation {
    exports: Arc<[ExportInfo]>,
    tls: Tls,
    phase: Phase,
    no_zeroes: bool,
    framing: Framing,
    /// The contexts selected, and the export they belong to.
    contexts: Option<(usize, Contexts)>,
    /// The client chose its export by EXPORT_NAME, to which there is no answer but the good one.
    by_name: bool,
    options: u32,
}

impl Negotiation {
    /// A handshake that offers `exports`. Where there is exactly one, the empty name means it as well.
    pub fn new(exports: Arc<[ExportInfo]>, tls: Tls) -> Self {
        Self {
            exports,
            tls,
            phase: Phase::Flags,
            no_zeroes: false,
            framing: Framing::Simple,
            contexts: None,
            by_name: false,
            options: 0,
        }
    }

    /// What the server says first.
    pub fn greeting() -> [u8; 18] {
        let mut bytes = [0; 18];
        bytes[..8].copy_from_slice(&wire::NBD_MAGIC.to_be_bytes());
        bytes[8..16].copy_from_slice(&wire::OPTION_MAGIC.to_be_bytes());
        bytes[16..].copy_from_slice(&(handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES).to_be_bytes());
        bytes
    }

    /// Handles the message at the front of `input`, if it is complete; the answer is appended to `out`.
    pub fn step(&mut self, input: &[u8], out: &mut Vec<u8>) -> Step {
        match self.phase {
            Phase::Flags => self.client_flags(input),
            Phase::Options => self.option(input, out),
            Phase::Skip { option, left } => self.skip(option, left, input, out),
        }
    }

    fn client_flags(&mut self, input: &[u8]) -> Step {
        let Some(bytes) = input.first_chunk::<4>() else { return Step::More };
        let flags = u32::from_be_bytes(*bytes);
        if flags & !u32::from(handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES) != 0 {
            return Step::Drop(Violation::UnknownFlags(flags));
        }
        self.no_zeroes = flags & u32::from(handshake::NO_ZEROES) != 0;
        self.phase = Phase::Options;
        Step::Used(4)
    }

    fn option(&mut self, input: &[u8], out: &mut Vec<u8>) -> Step {
        let Some((header, rest)) = input.split_first_chunk::<OPTION_HEADER>() else { return Step::More };
        let [m0, m1, m2, m3, m4, m5, m6, m7, o0, o1, o2, o3, l0, l1, l2, l3] = *header;
        if u64::from_be_bytes([m0, m1, m2, m3, m4, m5, m6, m7]) != wire::OPTION_MAGIC {
            return Step::Drop(Violation::BadMagic);
        }
        let option = u32::from_be_bytes([o0, o1, o2, o3]);
        let len = u32::from_be_bytes([l0, l1, l2, l3]);
        if len > wire::MAX_OPTION_SKIPPED {
            return Step::Drop(Violation::OptionTooLong(len));
        }
        let wanted = usize::try_from(len).unwrap_or(usize::MAX);
        if len <= wire::MAX_OPTION && rest.len() < wanted {
            return Step::More;
        }
        self.options += 1;
        if self.options > wire::MAX_OPTIONS {
            return Step::Drop(Violation::TooManyOptions);
        }
        if len > wire::MAX_OPTION {
            self.phase = Phase::Skip { option, left: wanted };
            return Step::Used(OPTION_HEADER);
        }
        let used = OPTION_HEADER + wanted;
        self.answer(option, rest.get(..wanted).unwrap_or_default(), used, &mut Answer { option, out })
    }

    fn skip(&mut self, option: u32, left: usize, input: &[u8], out: &mut Vec<u8>) -> Step {
        if input.is_empty() {
            return Step::More;
        }
        let used = left.min(input.len());
        self.phase = Phase::Skip { option, left: left - used };
        if left == used {
            self.phase = Phase::Options;
            match option {
                opt::EXPORT_NAME => return Step::Drop(Violation::UnknownExport),
                opt::SET_META_CONTEXT => self.contexts = None,
                _ => {}
            }
            Answer { option, out }.error(rep::ERR_TOO_BIG, "the option's payload is too large");
        }
        Step::Used(used)
    }

    fn answer(&mut self, option: u32, payload: &[u8], used: usize, answer: &mut Answer<'_>) -> Step {
        let done = match option {
            opt::ABORT => {
                answer.ack();
                return Step::Close;
            }
            opt::STARTTLS if self.tls != Tls::Off => match self.start_tls(payload, answer) {
                Ok(()) => return Step::StartTls(used),
                wrong => wrong,
            },
            opt::EXPORT_NAME if self.tls == Tls::Required => return Step::Drop(Violation::NotSecure),
            _ if self.tls == Tls::Required => {
                answer.error(rep::ERR_TLS_REQD, "this server serves nothing without TLS");
                Ok(())
            }
            opt::EXPORT_NAME => return self.export_name(payload, used, answer.out),
            opt::LIST => self.list(payload, answer),
            opt::INFO => self.info(payload, answer).map(|_| ()),
            opt::GO => match self.info(payload, answer) {
                Ok(Some(export)) => return Step::Go(used, self.chosen(export)),
                other => other.map(|_| ()),
            },
            opt::STRUCTURED_REPLY => self.structured_reply(payload, answer),
            opt::EXTENDED_HEADERS => self.extended_headers(payload, answer),
            opt::LIST_META_CONTEXT => self.list_contexts(payload, answer),
            opt::SET_META_CONTEXT => self.set_contexts(payload, answer),
            _ => {
                answer.error(rep::ERR_UNSUP, "this option is not supported");
                Ok(())
            }
        };
        if let Err(text) = done {
            answer.error(rep::ERR_INVALID, text);
        }
        Step::Used(used)
    }

    /// What to send instead of the answer to the choice of an export that cannot be had after all.
    pub fn refusal(&self, text: &str) -> Vec<u8> {
        let mut out = Vec::new();
        if !self.by_name {
            Answer { option: opt::GO, out: &mut out }.error(rep::ERR_POLICY, text);
        }
        out
    }

    fn start_tls(&mut self, payload: &[u8], answer: &mut Answer<'_>) -> Result<(), Malformed> {
        empty(payload)?;
        if self.tls == Tls::On {
            return Err("TLS has begun already");
        }
        // Whoever sat in between may have asked for anything.
        (self.framing, self.contexts, self.tls) = (Framing::Simple, None, Tls::On);
        answer.ack();
        Ok(())
    }

    /// Which export a name means.
    fn find(&self, name: &[u8]) -> Option<(usize, &ExportInfo)> {
        let alone = name.is_empty() && self.exports.len() == 1;
        let mut exports = self.exports.iter().enumerate();
        exports.find(|(_, export)| alone || export.name.as_bytes() == name)
    }

    fn chosen(&self, export: usize) -> Negotiated {
        let framing = self.framing;
        let (size, flags) =
            self.exports.get(export).map_or((0, tflag::HAS_FLAGS), |info| (info.size, info.flags(framing)));
        let mine = self.contexts.filter(|(of, _)| *of == export);
        let contexts = mine.map(|(_, contexts)| contexts).unwrap_or_default();
        Negotiated { export, size, flags, framing, contexts }
    }

    fn export_name(&mut self, name: &[u8], used: usize, out: &mut Vec<u8>) -> Step {
        let found = if name.len() <= wire::MAX_STRING { self.find(name) } else { None };
        let Some((export, _)) = found else { return Step::Drop(Violation::UnknownExport) };
        self.by_name = true;
        let chosen = self.chosen(export);
        out.extend_from_slice(&chosen.size.to_be_bytes());
        out.extend_from_slice(&chosen.flags.to_be_bytes());
        if !self.no_zeroes {
            out.extend_from_slice(&[0; 124]);
        }
        Step::Go(used, chosen)
    }

    fn list(&self, payload: &[u8], answer: &mut Answer<'_>) -> Result<(), Malformed> {
        empty(payload)?;
        for export in &*self.exports {
            let name_len = length(export.name.as_bytes());
            answer.reply(
                rep::SERVER,
                &[&name_len.to_be_bytes(), export.name.as_bytes(), export.description.as_bytes()],
            );
        }
        answer.ack();
        Ok(())
    }

    /// Answers INFO and GO alike; returns the export, or nothing if there is none of that name.
    fn info(&self, payload: &[u8], answer: &mut Answer<'_>) -> Result<Option<usize>, Malformed> {
        let request = InfoRequest::parse(payload)?;
        let Some((index, export)) = self.find(request.name) else {
            answer.unknown(request.name);
            return Ok(None);
        };
        let flags = export.flags(self.framing);
        let item = |kind: u16| kind.to_be_bytes();
        answer.reply(rep::INFO, &[&item(info::EXPORT), &export.size.to_be_bytes(), &flags.to_be_bytes()]);
        if request.want_name {
            answer.reply(rep::INFO, &[&item(info::NAME), export.name.as_bytes()]);
        }
        if request.want_description && !export.description.is_empty() {
            answer.reply(rep::INFO, &[&item(info::DESCRIPTION), export.description.as_bytes()]);
        }
        if request.want_block_size {
            let preferred = export.capabilities.preferred_block;
            answer.reply(
                rep::INFO,
                &[
                    &item(info::BLOCK_SIZE),
                    &1_u32.to_be_bytes(),
                    &preferred.to_be_bytes(),
                    &wire::MAX_PAYLOAD_ADVERTISED.to_be_bytes(),
                ],
            );
        }
        answer.ack();
        Ok(Some(index))
    }

    fn structured_reply(&mut self, payload: &[u8], answer: &mut Answer<'_>) -> Result<(), Malformed> {
        empty(payload)?;
        if self.framing == Framing::Extended {
            answer.error(rep::ERR_EXT_HEADER_REQD, "extended headers were agreed on already");
            return Ok(());
        }
        self.framing = Framing::Structured;
        answer.ack();
        Ok(())
    }

    fn extended_headers(&mut self, payload: &[u8], answer: &mut Answer<'_>) -> Result<(), Malformed> {
        empty(payload)?;
        if self.framing == Framing::Extended {
            return Err("extended headers were agreed on already");
        }
        self.framing = Framing::Extended;
        answer.ack();
        Ok(())
    }

    fn list_contexts(&self, payload: &[u8], answer: &mut Answer<'_>) -> Result<(), Malformed> {
        let request = self.contexts(payload)?;
        let Some((_, export)) = self.find(request.name) else {
            answer.unknown(request.name);
            return Ok(());
        };
        let named = match request.count {
            0 => export.contexts(),
            _ => named(export, &request, true),
        };
        for (_, name) in named.each() {
            answer.reply(rep::META_CONTEXT, &[&0_u32.to_be_bytes(), name.as_bytes()]);
        }
        answer.ack();
        Ok(())
    }

    fn set_contexts(&mut self, payload: &[u8], answer: &mut Answer<'_>) -> Result<(), Malformed> {
        self.contexts = None;
        let request = self.contexts(payload)?;
        let Some((index, export)) = self.find(request.name) else {
            answer.unknown(request.name);
            return Ok(());
        };
        let selected = named(export, &request, false);
        for (id, name) in selected.each() {
            answer.reply(rep::META_CONTEXT, &[&id.to_be_bytes(), name.as_bytes()]);
        }
        self.contexts = Some((index, selected));
        answer.ack();
        Ok(())
    }

    fn contexts<'a>(&self, payload: &'a [u8]) -> Result<ContextRequest<'a>, Malformed> {
        let request = ContextRequest::parse(payload)?;
        match self.framing {
            Framing::Simple => Err("contexts need structured replies, agreed on before"),
            Framing::Structured | Framing::Extended => Ok(request),
        }
    }
}

fn named(export: &ExportInfo, request: &ContextRequest<'_>, wildcards: bool) -> Contexts {
    request.queries().map(|query| export.named(query, wildcards)).fold(Contexts::default(), Contexts::and)
}

fn empty(payload: &[u8]) -> Result<(), Malformed> {
    if payload.is_empty() { Ok(()) } else { Err("this option has no payload") }
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

/// Appends the replies to one option.
struct Answer<'a> {
    option: u32,
    out: &'a mut Vec<u8>,
}

impl Answer<'_> {
    fn reply(&mut self, kind: u32, parts: &[&[u8]]) {
        let len: u32 = parts.iter().map(|part| length(part)).sum();
        self.out.extend_from_slice(&wire::OPTION_REPLY_MAGIC.to_be_bytes());
        for word in [self.option, kind, len] {
            self.out.extend_from_slice(&word.to_be_bytes());
        }
        for part in parts {
            self.out.extend_from_slice(part);
        }
    }

    fn ack(&mut self) {
        self.reply(rep::ACK, &[]);
    }

    fn error(&mut self, kind: u32, text: &str) {
        self.reply(kind, &[text.as_bytes()]);
    }

    fn unknown(&mut self, name: &[u8]) {
        let shown = String::from_utf8_lossy(name.get(..ECHOED).unwrap_or(name));
        self.error(rep::ERR_UNKNOWN, &format!("no export \"{shown}\" is served here"));
    }
}

#[cfg(test)]
mod tests;
