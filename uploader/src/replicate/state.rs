//! What a machine's writer must not forget: one JSON file, replaced as a whole and synced before what depends on it.
//!
//! Losing it is safe: the next start claims a new generation and copies everything again. Going back to an old copy of
//! it is safe too: the head it names has been overtaken, and reading the next entry tells.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use nbd_proxy::durable::{self, Step};
use nbd_proxy::tracking::SyncScope;
use nbd_proxy::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::commit::EntryId;
use crate::digest::Digest;
use crate::keys::PointId;
use crate::line::Owner;
use crate::point::{Gap, Header};

const FORMAT: u32 = 1;

/// A disk as the newest point holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// The tracking id under which the vault is exact.
    pub tracking: Uuid,
    /// Its size at the newest point.
    pub size: u64,
    /// What could not be read of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<Gap>,
}

/// A disk that is being copied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncDisk {
    /// Its name.
    pub name: String,
    /// Its size.
    pub size: u64,
    /// The tracking id that the sync makes exact.
    pub tracking: Uuid,
    /// Drawn each time the copy of this disk begins: what the journal has of another attempt does not count.
    pub attempt: Uuid,
    /// The round that the copy is in, as the proxy names it.
    pub round: Uuid,
    /// How many rounds came before it.
    pub number: u32,
    /// Writes are being logged, so that a cut can end the sync.
    pub logged: bool,
    /// What the proxy names to be read.
    pub scope: SyncScope,
    /// From here to the end everything is read, whatever the proxy names: the disk has grown by that.
    pub tail: u64,
    /// The next point says all there is to say of the disk: nothing of its parent is relied on.
    pub whole: bool,
    /// What is read is compared with the vault before it is shipped …
    pub compare: bool,
    /// … and relied on is what this point holds, which has to be the next one's parent.
    pub against: Option<PointId>,
    /// What could not be read, in earlier rounds or when the disk was copied before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<Gap>,
    /// Why.
    pub cause: String,
    /// Bytes of data to read.
    pub total: u64,
}

/// A sync under way; how far it is stands in the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncState {
    /// Names the sync and its journal.
    pub id: Uuid,
    /// Its job record.
    pub job: Uuid,
    /// The disks that it copies, in the order in which it does.
    pub disks: Vec<SyncDisk>,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    format: u32,
    /// The machine.
    pub machine: String,
    /// The vault that all of this is about.
    pub vault: Uuid,
    /// This writer; durable before its first entry.
    pub writer: Uuid,
    /// This writer's generation, or the one it is about to claim.
    pub generation: u64,
    /// The claim is known to be in the vault.
    pub claimed: bool,
    /// The newest entry of the line that is known to be ours, or to be forked from.
    pub head: u64,
    /// The newest point, which the next one names as its parent.
    pub point: Option<PointId>,
    /// That point's mark.
    #[serde(default)]
    pub point_mark: Option<Digest>,
    /// Its instant.
    pub time: Option<Timestamp>,
    /// The disks as it holds them, as far as they can be built upon.
    pub disks: BTreeMap<String, Known>,
    /// The sync under way.
    pub sync: Option<SyncState>,
    /// The operator has paused the machine.
    pub paused: bool,
    /// It was by cancelling a copy.
    pub cancelled: bool,
    /// The operator has asked for all disks to be compared, and no point has come of it yet.
    pub resync_asked: bool,
    /// The operator does not want to wait for the resync window, and no point has come of it yet.
    pub start_now: bool,
    /// Another writer owns the machine's line: what is written is a branch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fenced: Option<Fenced>,
}

/// How a writer came to write a branch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fenced {
    /// The number of the branch's first entry.
    pub first: u64,
    /// Who owns the line, for people.
    pub cause: String,
}

impl State {
    /// A writer that has not claimed anything yet.
    pub fn new(machine: &str, vault: Uuid) -> Self {
        Self {
            format: FORMAT,
            machine: machine.to_owned(),
            vault,
            writer: Uuid::new_v4(),
            generation: 0,
            claimed: false,
            head: 0,
            point: None,
            point_mark: None,
            time: None,
            disks: BTreeMap::new(),
            sync: None,
            paused: false,
            cancelled: false,
            resync_asked: false,
            start_now: false,
            fenced: None,
        }
    }

    /// Where the state of `machine` is.
    pub fn path(folder: &Path, machine: &str) -> PathBuf {
        folder.join(format!("{machine}.state.json"))
    }

    /// The state of `machine`, if it has one.
    pub fn load(folder: &Path, machine: &str) -> Result<Option<Self>> {
        let path = Self::path(folder, machine);
        let read = durable::read(&path).map_err(|e| Error::io("read the local state", &path, e))?;
        let Some(bytes) = read else { return Ok(None) };
        let object = path.display().to_string();
        let unreadable = |e: &dyn std::fmt::Display| {
            Error::corrupt(&object, format!("cannot understand the local state: {e}"))
                .remedy("remove the file: the machine then begins a new generation with a whole copy")
        };
        let state: Self = serde_json::from_slice(&bytes).map_err(|e| unreadable(&e))?;
        if state.format != FORMAT {
            return Err(unreadable(&format!("its format is {}, this program knows {FORMAT}", state.format)));
        }
        if state.machine != machine {
            return Err(unreadable(&format!("it is about {}", state.machine)));
        }
        Ok(Some(state))
    }

    /// Makes the state durable.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let path = Self::path(folder, &self.machine);
        let bytes = serde_json::to_vec_pretty(self)
            .map_err(|e| Error::new(Kind::InvalidInput, path.display().to_string(), e.to_string()))?;
        durable::replace(Step::WriterSaved, &path, &bytes)
            .map_err(|e| Error::io("write the local state", &path, e))
    }

    /// The entry that the next point will be.
    pub fn next_entry(&self) -> EntryId {
        let number = self.head + 1;
        match self.fenced {
            None => EntryId::Line(number),
            Some(_) => EntryId::Branch(PointId { generation: self.generation, number }),
        }
    }

    /// Who appends.
    pub fn owner(&self) -> Owner {
        Owner { writer: self.writer, generation: self.generation }
    }

    /// Another writer owns the line, as `cause` says; from the entry `first` on, a branch is written. Returns the sync that was
    /// under way, which is given up with its journal: what it has shipped so far was meant for the line, and is deleted when the
    /// line has passed it. Logs that were shipped meanwhile are in the journal alone: without it no disk is exact any more.
    pub fn branch_off(&mut self, first: u64, cause: String) -> Option<SyncState> {
        self.fenced = Some(Fenced { first, cause });
        self.head = first - 1;
        if self.sync.is_some() {
            self.disks.clear();
        }
        self.sync.take()
    }

    /// The mark of `point`, if that is the newest one.
    pub fn mark_of(&self, point: PointId) -> Option<Digest> {
        self.point_mark.filter(|_| self.point == Some(point))
    }

    /// The vault has the entry `header`, which is ours and has this mark. A point that holds the whole sync under way makes all its disks
    /// exact and ends the sync.
    ///
    /// Any other point was on its way when an earlier step was dropped. Logs that came later may have been released on
    /// the strength of the journal alone, so the sync and its journal stay, for the next point to follow with. Nor does
    /// such a point make anything exact that is not known to be: what it held may have been given up since. And whatever
    /// was compared with the point before it has to be compared again: what it changed may have been left out as equal.
    pub fn remember(&mut self, header: &Header, mark: Digest, whole_sync: bool) {
        self.head = header.number;
        if !header.is_point() {
            return;
        }
        (self.point, self.point_mark) = (Some(header.id()), Some(mark));
        self.time = Some(header.time);
        if !whole_sync {
            let agrees = |name: &str, known: &Known| {
                let same = |disk: &crate::point::PointDisk| {
                    disk.name == name && disk.tracking == known.tracking && disk.size == known.size
                };
                header.disks.iter().any(same)
            };
            self.disks.retain(|name, known| agrees(name, known));
            let head = self.point;
            if let Some(sync) = &mut self.sync {
                sync.disks.retain(|disk| disk.against.is_none() || disk.against == head);
            }
            return;
        }
        let known = |disk: &crate::point::PointDisk| {
            let unreadable = disk.unreadable.clone();
            (disk.name.clone(), Known { tracking: disk.tracking, size: disk.size, unreadable })
        };
        self.disks = header.disks.iter().map(known).collect();
        self.sync = None;
        self.resync_asked = false;
        self.start_now = false;
    }
}
