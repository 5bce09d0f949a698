//! What a disk's tracking must remember across restarts: one small record (JSON), in a file of two `slots` with the magic "LBSTATE1".

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::sample::Sample;
use super::slots::{self, Kept, Slots};
use crate::backing::Identity;
use crate::durable::Step;
use crate::tracking::SyncScope;
use crate::{Error, Kind, Result};

const KIND: slots::Kind = slots::Kind {
    what: "tracking state",
    magic: b"LBSTATE1",
    made: Step::StateMade,
    filled: Step::StateFilled,
    written: Step::StateWritten,
};
/// Room for the record, in bytes.
const ROOM: usize = 8 << 10;

/// What is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskState {
    /// Random, made when the disk was first opened.
    pub disk: Uuid,
    /// The stretch of records that is, or was, going on.
    pub tracking: Uuid,
    /// Every write since `tracking` began has a record.
    pub logged: bool,
    /// The sync that is under way.
    pub sync: Option<SyncScope>,
    /// The ids under which the vault may be exact, and from which the intent map names every difference after a crash.
    pub bases: Vec<Uuid>,
    /// Why the disk is, or was last, not exact.
    pub cause: String,
    /// The intent map is kept: every region that may differ is marked there.
    pub intent: bool,
    /// A sync of the backing has failed: what the page cache shows may not be on the disk.
    pub sync_failed: bool,
    /// The host's boot in which this was written.
    pub boot: String,
    /// The mounts that image and log were on: another mount has another page cache. Empty if the kernel does not number them.
    pub mount: String,
    /// The backing as it was found at the open, or left at a clean close.
    pub image: Identity,
    /// Closed in good order: log and backing are durable and `image` is exact.
    pub clean: bool,
    /// What is to be known besides of a disk that is not a file here.
    #[serde(default)]
    pub afar: Afar,
}

/// See [`DiskState::afar`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Afar {
    /// What remembers what was not flushed; see [`crate::backing::Backing::server`].
    pub server: Option<String>,
    /// Something that was not flushed may have been lost, and no client has heard of it.
    pub untold: bool,
    /// Some of what was on it at a clean close.
    pub sample: Option<Sample>,
}

/// What the file says.
#[derive(Debug)]
pub struct FoundState {
    /// What was last durable, if that is known.
    pub state: Option<DiskState>,
    /// It is not known what was last written.
    pub damaged: bool,
}

/// The file.
#[derive(Debug)]
pub struct StateFile {
    slots: Slots,
    path: PathBuf,
}

impl StateFile {
    /// Opens or makes the file, and reads what it says.
    ///
    /// # Errors
    /// A newer version has written it.
    pub fn open(path: &Path) -> Result<(Self, FoundState)> {
        let (slots, kept) = Slots::open(path, &KIND, ROOM)?;
        let (state, damage) = match kept {
            Kept::Nothing => (None, None),
            Kept::Damaged(why) => (None, Some(why)),
            Kept::Record(json) => match serde_json::from_slice(&json) {
                Ok(state) => (Some(state), None),
                Err(error) => (None, Some(error.to_string())),
            },
        };
        if let Some(why) = &damage {
            tracing::warn!(path = %path.display(), "the tracking state is damaged: {why}");
        }
        Ok((Self { slots, path: path.to_owned() }, FoundState { state, damaged: damage.is_some() }))
    }

    /// Writes `state`; durable on return. There is one writer at a time: the thread that changes the disk's mode.
    pub fn write(&self, state: &DiskState) -> Result<()> {
        self.slots.write(&self.encode(state)?)
    }

    /// Whether the next open would find the file.
    pub fn is_in_place(&self) -> bool {
        self.slots.is_in_place()
    }

    /// Makes the file again where the next open looks for it.
    pub fn remake(&self, state: &DiskState) -> Result<()> {
        self.slots.remake(&self.encode(state)?)
    }

    fn encode(&self, state: &DiskState) -> Result<Vec<u8>> {
        serde_json::to_vec(state).map_err(|error| {
            Error::new(Kind::InvalidInput, self.path.display().to_string(), format!("cannot encode: {error}"))
        })
    }
}
