//! Entry points for fuzzing: any bytes go in, and what must hold for all of them is asserted.

use std::sync::Arc;

use super::negotiate::{ExportInfo, Negotiation, Step};
use super::wire;
use super::{RawRequest, Request, reply};
use crate::device::Capabilities;

/// Size of the exports that the entry points serve.
pub const EXPORT_SIZE: u64 = 1 << 30;

fn exports() -> Arc<[ExportInfo]> {
    let capabilities = Capabilities {
        read_only: false,
        trim: true,
        fast_zero: true,
        rotational: false,
        preferred_block: 4096,
    };
    let export = |name: &str, capabilities| ExportInfo {
        name: name.into(),
        description: "fuzzed".into(),
        size: EXPORT_SIZE,
        capabilities,
    };
    let read_only = Capabilities { read_only: true, trim: false, ..capabilities };
    Arc::from([export("a", capabilities), export("b", read_only)])
}

/// Feeds `input` to a handshake as one piece; returns how the handshake ended, and all that was answered.
///
/// Every step takes no more than there is, moves on, and answers little.
pub fn negotiation(input: &[u8]) -> (Step, Vec<u8>) {
    let mut negotiation = Negotiation::new(exports());
    let mut out = Vec::new();
    let mut at = 0;
    loop {
        let rest = input.get(at..).unwrap_or_default();
        let before = out.len();
        let step = negotiation.step(rest, &mut out);
        assert!(out.len() - before <= 1024, "an answer is bounded");
        match step {
            Step::Used(used) => {
                assert!(used > 0 && used <= rest.len(), "a step moves on, within its input");
                at += used;
            }
            Step::Go(used, chosen) => {
                assert!(used <= rest.len() && chosen.export < 2, "the choice is one of those offered");
                assert!(!chosen.allocation || chosen.structured, "contexts need structured replies");
                return (step, out);
            }
            Step::More | Step::Close | Step::Drop(_) => return (step, out),
        }
    }
}

/// Takes `input` as a stream of requests behind every outcome of a handshake, and asserts that what passes the gate
/// lies within the device and what was advertised.
pub fn transmission(input: &[u8]) {
    for (export, info) in exports().iter().enumerate() {
        for structured in [false, true] {
            let session = super::Negotiated {
                export,
                size: info.size,
                flags: info.flags(structured),
                structured,
                allocation: structured,
            };
            for header in input.chunks(wire::REQUEST_LEN).filter_map(<[u8]>::first_chunk) {
                // Fuzzers seldom guess a magic number: every header is tried with the right one as well.
                let mut known = *header;
                known[..4].copy_from_slice(&wire::REQUEST_MAGIC.to_be_bytes());
                for raw in [RawRequest::parse(header), RawRequest::parse(&known)].into_iter().flatten() {
                    request(&raw, &session);
                }
            }
        }
    }
}

fn request(raw: &RawRequest, session: &super::Negotiated) {
    assert_eq!(RawRequest::parse(&raw.encode()), Ok(*raw), "a header survives encoding");
    let read_only = session.flags & wire::tflag::READ_ONLY != 0;
    let (offset, len, changes) = match raw.validate(session) {
        Ok(Request::Read { offset, len, .. }) => {
            assert!(len <= wire::MAX_PAYLOAD, "reads are bounded");
            (offset, len, false)
        }
        Ok(Request::Write { offset, len, .. }) => {
            assert!(len <= wire::MAX_PAYLOAD && len == raw.payload(), "writes are bounded");
            (offset, len, true)
        }
        Ok(Request::Trim { offset, len, .. } | Request::Zero { offset, len, .. }) => (offset, len, true),
        Ok(Request::Cache { offset, len }) => (offset, len, false),
        Ok(Request::BlockStatus { offset, len, .. }) => {
            assert!(len > 0 && session.allocation, "block status needs a context and a range");
            (offset, len, false)
        }
        Ok(Request::Flush | Request::Disconnect) => return,
        Err(refusal) => {
            let mut out = Vec::new();
            reply::error(&mut out, session.structured, raw.cookie, refusal.errno, refusal.text);
            assert!(!out.is_empty(), "a refusal is answered");
            return;
        }
    };
    assert!(offset.checked_add(u64::from(len)).is_some_and(|end| end <= session.size), "ranges are inside");
    assert!(!changes || !read_only, "a read-only export is never changed");
}
