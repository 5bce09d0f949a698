//! The NBD protocol without any I/O: bytes in, typed values out.
//!
//! - [`wire`]: every constant of the protocol that we speak, and the one errno table.
//! - [`terms`]: what is offered in a handshake, and what was agreed on at its end.
//! - [`negotiate`]: the handshake as a state machine that is fed bytes and says what to answer. [`option`] parses the
//!   payloads of its options.
//! - [`request`]: the one gate that turns a raw request header, and what was negotiated, into a typed [`Request`] or a
//!   typed [`Refusal`]. Below the gate nothing checks a range or a flag again.
//! - [`reply`]: the bytes of every reply; [`answer`]: how a client of ours takes replies in.
//! - [`fuzz`]: entry points that take arbitrary bytes and assert what must hold for any of them.
//!
//! Invariants: no length that a peer sends is ever allocated; an option's payload is read before it is answered; a
//! capability is advertised only where the device has it, and the gate refuses whatever was not advertised.

pub mod answer;
pub mod fuzz;
pub mod negotiate;
pub mod option;
pub mod reply;
pub mod request;
pub mod terms;
pub mod wire;

pub use negotiate::{Negotiation, Step, Tls, Violation};
pub use reply::Tag;
pub use request::{RawRequest, Refusal, Request};
pub use terms::{Contexts, ExportInfo, Framing, Negotiated};
pub use wire::{Cookie, Errno};
