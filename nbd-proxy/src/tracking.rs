//! What the layer above may know of tracking: plain data that crosses the control socket.
//!
//! The vocabulary of replication is small. A *tracking id* names an unbroken stretch of change records for one disk:
//! while it stays the same and the disk is *exact*, the segments of successive cuts, replayed in order, lead from the
//! state the vault has to the state at the cut. Whatever breaks that (a new disk, an unlogged stretch, a host power
//! loss, an image changed behind our back) makes a new tracking id, and the disk is *inexact* until a *sync* under the
//! new id has been committed.

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A protected machine as its proxy sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MachineInfo {
    /// The machine's name.
    pub name: String,
    /// Its disks in configuration order.
    pub disks: Vec<DiskInfo>,
}

/// One disk as its proxy sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DiskInfo {
    /// The disk's name within its machine.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// Names the unbroken stretch of records; see the module.
    pub tracking: Uuid,
    /// Whether writes are being logged under `tracking`.
    pub logged: bool,
    /// Why the disk is, or was last, not exact: "new disk", "log full", …; for people.
    pub cause: String,
    /// Whether a sync under `tracking` has been begun and not ended.
    pub syncing: bool,
    /// The ids under one of which the vault has to be exact for a sync to be less than whole.
    pub bases: Vec<Uuid>,
    /// Bytes in blocks written since the last released cut (upper bound of what the next delta reads).
    pub dirty_bytes: u64,
    /// Bytes held by log segments on local disk.
    pub log_bytes: u64,
    /// Clients connected to the export now.
    pub clients: u32,
    /// What is wrong with the disk behind it now, for people.
    #[serde(default)]
    pub trouble: Option<String>,
}

/// What a cut is asked to be. By default: made now, and of the disks alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CutRequest {
    /// The machine's share of a cut that another member of its consistency group asked for will do, if it was made at
    /// most this long ago.
    pub max_age: Duration,
    /// The guest is to hold its file systems still meanwhile.
    pub application: bool,
}

/// The cut of a consistency group: its members' disks at one instant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupCut {
    /// The group's name.
    pub name: String,
    /// Names the cut; the same in each member's share.
    pub cut: Uuid,
    /// The machines that were cut.
    pub members: Vec<String>,
}

/// The instant at which all logs of a machine rolled over together, and what they held.
///
/// The segments stay readable until the cut, or a later one, is released. Everything in them has reached the backing.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Cut {
    /// Names the cut; meaningful to the proxy that made it until it restarts.
    pub id: Uuid,
    /// The instant, by the proxy's clock.
    pub time: Timestamp,
    /// Every disk of the machine, in configuration order.
    pub disks: Vec<CutDisk>,
    /// The guest reported that its file systems were held still at the instant.
    #[serde(default)]
    pub application: bool,
    /// The cut of the machine's consistency group that this is a share of.
    #[serde(default)]
    pub group: Option<GroupCut>,
    /// What the cut is not though it was to be, and why; for people.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// One disk's share of a [`Cut`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CutDisk {
    /// The disk's name.
    pub name: String,
    /// Its size at the cut, in bytes.
    pub size: u64,
    /// The stretch the segments belong to.
    pub tracking: Uuid,
    /// Segments in the order their records apply: a later record wins.
    pub segments: Vec<SegmentRef>,
}

/// A sealed segment: read it with [`crate::log::SegmentReader`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentRef {
    /// Where the file is, on the proxy's host.
    pub path: PathBuf,
    /// The log the records belong to; their checksums depend on it.
    pub log: Uuid,
    /// The segment's number within that log.
    pub segment: u64,
    /// How many records it holds: fewer readable ones mean corruption.
    pub records: u64,
    /// Bytes of the file that the records take, header included.
    pub bytes: u64,
}

/// What has to be copied to make a disk exact again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sync {
    /// The tracking id this sync makes exact. Names the sync.
    pub tracking: Uuid,
    /// What to copy.
    pub scope: SyncScope,
    /// Why; for status, log and job record.
    pub cause: String,
    /// Size of the disk in bytes.
    pub size: u64,
    /// Names the extents: see [`Round`].
    pub round: Uuid,
    /// The complete round that this one follows; without one the sync has just begun.
    pub follows: Option<Uuid>,
    /// Whether writes are being logged, so that a cut can end the sync. If not, another round has to follow this one.
    pub logged: bool,
}

/// How far a caller came with a round of a sync.
///
/// A sync that outlives its log goes on in rounds: what is written while the blocks of one round are copied, by whatever
/// name it is known (a record in a log that was lost, a bit), is what the next round names. The last round is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Round {
    /// Which round.
    pub id: Uuid,
    /// All that it named is durable in the vault.
    pub complete: bool,
}

/// What a [`Sync`] copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SyncScope {
    /// The whole address space: allocated ranges as they are, everything else as zero. What the vault has may be relied on only as
    /// far as its hashes prove.
    Whole,
    /// Only the ranges that [`Sync`]'s extents name may differ from what the vault has under the base (after a power loss): holes
    /// among them read as zero. Much of it does not differ: to be compared before it is shipped.
    Marked,
    /// Only the blocks that [`Sync`]'s extents name, all of which were written; everything else is in the vault already.
    Dirty,
}
