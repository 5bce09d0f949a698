//! Entry points for fuzzing: any bytes go in, and what must hold for all of them is asserted.

use std::sync::Arc;

use uuid::Uuid;

use super::answer::{Answer, Question, Replies, Violation};
use super::negotiate::{Negotiation, Step, Tls};
use super::{Contexts, ExportInfo, Framing, Negotiated, RawRequest, Request, reply, wire};
use crate::device::Capabilities;

/// Size of the exports that the entry points serve.
pub const EXPORT_SIZE: u64 = 1 << 30;

/// The cut that is out for one of them.
pub const CUT: Uuid = Uuid::from_u128(0x1234_5678);

fn exports() -> Arc<[ExportInfo]> {
    let capabilities = Capabilities {
        read_only: false,
        trim: true,
        fast_zero: true,
        rotational: false,
        preferred_block: 4096,
    };
    let export = |name: &str, cut, capabilities| ExportInfo {
        name: name.into(),
        description: "fuzzed".into(),
        size: EXPORT_SIZE,
        capabilities,
        cut,
    };
    let read_only = Capabilities { read_only: true, trim: false, ..capabilities };
    Arc::from([export("a", Some(CUT), capabilities), export("b", None, read_only)])
}

/// Feeds `input` to a handshake as one piece; returns how the handshake ended, and all that was answered.
///
/// Every step takes no more than there is, moves on, and answers little. Where TLS is required, no export is chosen before
/// it has begun.
pub fn negotiation(input: &[u8], tls: Tls) -> (Step, Vec<u8>) {
    let mut negotiation = Negotiation::new(exports(), tls);
    let mut out = Vec::new();
    let mut at = 0;
    loop {
        let rest = input.get(at..).unwrap_or_default();
        let before = out.len();
        let step = negotiation.step(rest, &mut out);
        assert!(out.len() - before <= 1024, "an answer is bounded");
        match step {
            Step::Used(used) | Step::StartTls(used) => {
                assert!(used > 0 && used <= rest.len(), "a step moves on, within its input");
                at += used;
            }
            Step::Go(used, chosen) => {
                assert!(used <= rest.len() && chosen.export < 2, "the choice is one of those offered");
                let simple = chosen.framing == Framing::Simple;
                assert!(!simple || chosen.contexts.is_empty(), "contexts need structured replies");
                let secure = tls != Tls::Required || starts_tls(input);
                assert!(secure, "nothing is chosen in the clear where TLS is required");
                return (step, out);
            }
            Step::More | Step::Close | Step::Drop(_) => return (step, out),
        }
    }
}

fn starts_tls(input: &[u8]) -> bool {
    let option = [&wire::OPTION_MAGIC.to_be_bytes()[..], &wire::opt::STARTTLS.to_be_bytes()].concat();
    input.windows(option.len()).any(|window| window == option)
}

/// Takes `input` as a stream of requests behind every outcome of a handshake, and asserts that what passes the gate
/// lies within the device and what was advertised.
pub fn transmission(input: &[u8]) {
    for (export, info) in exports().iter().enumerate() {
        for framing in [Framing::Simple, Framing::Structured, Framing::Extended] {
            let contexts = match framing {
                Framing::Simple => Contexts::default(),
                Framing::Structured | Framing::Extended => info.contexts(),
            };
            let session =
                Negotiated { export, size: info.size, flags: info.flags(framing), framing, contexts };
            for header in input.chunks_exact(framing.request_len()) {
                // Fuzzers seldom guess a magic number: every header is tried with the right one as well.
                let magic = match framing {
                    Framing::Extended => wire::EXTENDED_REQUEST_MAGIC,
                    Framing::Simple | Framing::Structured => wire::REQUEST_MAGIC,
                };
                let mut known = header.to_vec();
                known[..4].copy_from_slice(&magic.to_be_bytes());
                for raw in [RawRequest::parse(header, framing), RawRequest::parse(&known, framing)] {
                    raw.into_iter().for_each(|raw| request(&raw, &session, input));
                }
            }
        }
    }
}

/// Takes `input` as what a server says to a few requests, in pieces of several lengths: however the bytes are split, the same
/// requests are answered in the same way, and each read with exactly as much as was asked for.
pub fn replies(input: &[u8]) {
    for structured in [false, true] {
        let whole = taken_in(input, structured, input.len().max(1));
        for step in [1, 7, 4096] {
            assert_eq!(taken_in(input, structured, step), whole, "in pieces of {step}");
        }
    }
}

type TakenIn = (Vec<(u64, bool)>, Option<Violation>);

fn taken_in(input: &[u8], structured: bool, step: usize) -> TakenIn {
    let mut replies = Replies::new(structured);
    replies.ask(1, Question::Plain, 1);
    replies.ask(2, Question::Read { offset: 4096, len: 512 }, 2);
    replies.ask(3, Question::Read { offset: 1 << 40, len: 1 << 16 }, 3);
    replies.ask(4, Question::Status { context: 1 }, 4);
    let mut answers = Vec::new();
    for piece in input.chunks(step) {
        let mut rest = piece;
        while !rest.is_empty() {
            let (used, answered) = match replies.feed(rest) {
                Ok(fed) => fed,
                Err(violation) => return (answers, Some(violation)),
            };
            assert!(used > 0 && used <= rest.len(), "it moves on, within its input");
            rest = rest.get(used..).unwrap_or_default();
            let Some(answered) = answered else { continue };
            match &answered.outcome {
                Ok(Answer::Done) => assert_eq!(answered.ticket, 1, "only a plain request is just done"),
                Ok(Answer::Data(data)) => {
                    assert_eq!(data.len(), [512, 1 << 16][usize::from(answered.ticket == 3)])
                }
                Ok(Answer::Runs(runs)) => assert!(!runs.is_empty() && runs.iter().all(|(len, _)| *len > 0)),
                Err(refused) => assert!(refused.code != 0 && refused.text.chars().count() <= 200),
            }
            answers.push((answered.ticket, answered.outcome.is_ok()));
        }
    }
    (answers, None)
}

/// `payload` is anything: what follows the header may be as long as it says, or not.
fn request(raw: &RawRequest, session: &Negotiated, payload: &[u8]) {
    let framing = session.framing;
    assert_eq!(RawRequest::parse(&raw.encode(framing), framing), Ok(*raw), "a header survives encoding");
    let read_only = session.flags & wire::tflag::READ_ONLY != 0;
    let announced = usize::try_from(raw.payload(framing)).unwrap_or(usize::MAX);
    let payload = payload.get(..announced).unwrap_or(payload);
    let (offset, len, changes) = match raw.validate(session, payload) {
        Ok(Request::Read { offset, len, .. }) => {
            assert!(len <= wire::MAX_PAYLOAD, "reads are bounded");
            (offset, u64::from(len), false)
        }
        Ok(Request::Write { offset, len, .. }) => {
            let whole = u64::from(len) == raw.payload(framing);
            assert!(len <= wire::MAX_PAYLOAD && whole, "writes are bounded");
            (offset, u64::from(len), true)
        }
        Ok(Request::Trim { offset, len, .. } | Request::Zero { offset, len, .. }) => (offset, len, true),
        Ok(Request::Cache { offset, len }) => (offset, len, false),
        Ok(Request::BlockStatus { offset, len, contexts, .. }) => {
            assert!(len > 0 && !contexts.is_empty(), "block status needs a context and a range");
            let all = session.contexts;
            let selected = contexts.allocation <= all.allocation
                && (contexts.changes.is_none() || contexts.changes == all.changes);
            assert!(selected, "a context that was not selected is never told");
            (offset, len, false)
        }
        Ok(Request::Flush | Request::Disconnect) => return,
        Err(refusal) => {
            let mut out = Vec::new();
            reply::error(&mut out, framing, raw.tag(), refusal.errno, refusal.text);
            assert!(!out.is_empty(), "a refusal is answered");
            return;
        }
    };
    assert!(offset.checked_add(len).is_some_and(|end| end <= session.size), "ranges are inside");
    assert!(!changes || !read_only, "a read-only export is never changed");
}
