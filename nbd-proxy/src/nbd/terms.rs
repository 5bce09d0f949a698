//! What a handshake is about: the exports that are offered, and what was agreed on in the end.

use uuid::Uuid;

use super::wire::{self, tflag};
use crate::device::Capabilities;

/// What the handshake tells about an export.
#[derive(Clone, Debug)]
pub struct ExportInfo {
    /// The name clients ask for.
    pub name: String,
    /// A sentence for people; may be empty.
    pub description: String,
    /// Size in bytes.
    pub size: u64,
    /// What the device can do, `read_only` being that of the export.
    pub capabilities: Capabilities,
    /// The cut that is out: the changes it froze are a context.
    pub cut: Option<Uuid>,
}

impl ExportInfo {
    /// Transmission flags: a flag is advertised only if the command behind it is implemented and allowed.
    pub fn flags(&self, framing: Framing) -> u16 {
        let can = self.capabilities;
        let mut flags = tflag::HAS_FLAGS
            | tflag::SEND_FLUSH
            | tflag::SEND_FUA
            | tflag::CAN_MULTI_CONN
            | tflag::SEND_CACHE;
        for (set, flag) in [
            (can.read_only, tflag::READ_ONLY),
            (can.rotational, tflag::ROTATIONAL),
            (!can.read_only, tflag::SEND_WRITE_ZEROES),
            (!can.read_only && can.trim, tflag::SEND_TRIM),
            (!can.read_only && can.fast_zero, tflag::SEND_FAST_ZERO),
            (framing != Framing::Simple, tflag::SEND_DF),
            (framing == Framing::Extended, tflag::BLOCK_STATUS_PAYLOAD),
        ] {
            if set {
                flags |= flag;
            }
        }
        flags
    }

    /// Every context the export has.
    pub(super) fn contexts(&self) -> Contexts {
        Contexts { allocation: true, changes: self.cut }
    }

    /// The contexts that `query` names; a wildcard names its namespace, where wildcards are meant.
    pub(super) fn named(&self, query: &[u8], wildcards: bool) -> Contexts {
        const NAMESPACE: &[u8] = b"qemu:";
        let allocation = query == wire::BASE_ALLOCATION.as_bytes() || (wildcards && query == b"base:");
        let any = wildcards && (query == NAMESPACE || query == wire::DIRTY_BITMAP.as_bytes());
        let names = |cut: &Uuid| {
            let id = query.strip_prefix(wire::DIRTY_BITMAP.as_bytes());
            id.is_some_and(|id| id == cut.to_string().as_bytes())
        };
        Contexts { allocation, changes: self.cut.filter(|cut| any || names(cut)) }
    }
}

/// How requests and replies are framed; each form can do more than the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// Simple replies only.
    #[default]
    Simple,
    /// Structured replies.
    Structured,
    /// Extended headers: 64-bit lengths, and every reply in chunks that repeat the request's offset.
    Extended,
}

impl Framing {
    /// Bytes of a request header.
    pub fn request_len(self) -> usize {
        match self {
            Self::Extended => wire::EXTENDED_REQUEST_LEN,
            Self::Simple | Self::Structured => wire::REQUEST_LEN,
        }
    }
}

/// What BLOCK_STATUS tells about: any of the contexts that an export has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contexts {
    /// `base:allocation`
    pub allocation: bool,
    /// `qemu:dirty-bitmap:` of this cut.
    pub changes: Option<Uuid>,
}

impl Contexts {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// These and those of `other`.
    pub(super) fn and(self, other: Self) -> Self {
        Self { allocation: self.allocation || other.allocation, changes: self.changes.or(other.changes) }
    }

    /// Those of these that `ids` names; nothing if one is named twice, or is not among these, or none is.
    pub(super) fn choose(&self, ids: impl Iterator<Item = u32>) -> Option<Self> {
        let mut chosen = Self::default();
        for id in ids {
            match id {
                wire::BASE_ALLOCATION_ID if self.allocation && !chosen.allocation => chosen.allocation = true,
                wire::DIRTY_BITMAP_ID if self.changes.is_some() && chosen.changes.is_none() => {
                    chosen.changes = self.changes;
                }
                _ => return None,
            }
        }
        Some(chosen).filter(|chosen| !chosen.is_empty())
    }

    /// Id and name of each.
    pub(super) fn each(&self) -> impl Iterator<Item = (u32, String)> {
        let allocation =
            self.allocation.then(|| (wire::BASE_ALLOCATION_ID, wire::BASE_ALLOCATION.to_owned()));
        let changes = self.changes.map(|cut| (wire::DIRTY_BITMAP_ID, format!("{}{cut}", wire::DIRTY_BITMAP)));
        allocation.into_iter().chain(changes)
    }
}

/// What a connection may do after the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// Index of the export.
    pub export: usize,
    /// Its size in bytes.
    pub size: u64,
    /// The transmission flags that were advertised.
    pub flags: u16,
    /// How requests and replies are framed.
    pub framing: Framing,
    /// The contexts that were selected.
    pub contexts: Contexts,
}
