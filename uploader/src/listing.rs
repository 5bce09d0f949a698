//! What a vault holds: its machines and their points. Read from the vault alone; no local state is asked.
//!
//! Above the floor of the newest catalogue the line's entries count, at or below it the catalogue alone: an entry that
//! pruning could not delete is no point. The line is listed before the catalogue is read, so that an entry that
//! is missing in the one is in the other.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::str::FromStr;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use jiff::Timestamp;
use nbd_proxy::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::branches;
use crate::catalogue::{self, Catalogue};
use crate::keys::{self, PointId};
use crate::point::{self, EntryKind, Gap, Header};
use crate::vault::Vault;

/// Entries read at the same time.
const PARALLEL: usize = 16;
/// What a first read of an entry fetches: enough for the header of a machine with dozens of disks.
const HEADER_GUESS: u64 = 8 << 10;

const LATEST: &str = "latest";
const LATEST_APPLICATION: &str = "latest-app-consistent";

/// How a user names a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PointName {
    /// The newest point of the owning generation.
    Latest,
    /// The point with this id.
    Id(PointId),
    /// The newest application-consistent point of the owning generation.
    LatestApplication,
    /// The newest point not after this instant.
    At(Timestamp),
}

impl FromStr for PointName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            LATEST => return Ok(Self::Latest),
            LATEST_APPLICATION => return Ok(Self::LatestApplication),
            _ => {}
        }
        let time = || text.parse().map(Self::At);
        text.parse().map(Self::Id).or_else(|_| time()).map_err(|_| {
            let remedy = "use an id as `lifeboat points` prints it, `latest`, `latest-app-consistent`, or a time such as \
                          2026-02-01T12:00:00Z";
            Error::new(Kind::InvalidInput, text, "names no point").remedy(remedy)
        })
    }
}

impl fmt::Display for PointName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str(LATEST),
            Self::LatestApplication => f.write_str(LATEST_APPLICATION),
            Self::Id(id) => id.fmt(f),
            Self::At(time) => time.fmt(f),
        }
    }
}

/// A disk as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSummary {
    /// Its name.
    pub name: String,
    /// Its size in bytes at the point.
    pub size: u64,
    /// What could not be read of it when it was copied; empty almost always.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<Gap>,
}

/// The cut of a consistency group that a point is a share of, as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupShare {
    /// The group.
    pub name: String,
    /// Names the cut; the points of its other members say the same.
    pub cut: Uuid,
    /// Whether every member's line has its point of the cut; not said where no line but one was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub complete: Option<bool>,
}

/// A point as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointInfo {
    /// Its id.
    pub id: PointId,
    /// The instant it shows.
    pub time: Timestamp,
    /// The generation it belongs to.
    pub generation: u64,
    /// Its number on the line.
    pub sequence: u64,
    /// `crash` or `application`.
    pub kind: EntryKind,
    /// Bytes of its deltas in the vault.
    pub bytes: u64,
    /// The machine's disks at that instant.
    pub disks: Vec<DiskSummary>,
    /// The cut of the machine's consistency group that it is a share of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupShare>,
    /// It stays until it is unpinned.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pinned: bool,
    /// It stands on a branch: nothing of the owning generation was built on it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub branch: bool,
}

impl From<Header> for PointInfo {
    fn from(header: Header) -> Self {
        let summary = |disk: point::PointDisk| DiskSummary {
            name: disk.name,
            size: disk.size,
            unreadable: disk.unreadable,
        };
        Self {
            id: PointId { generation: header.generation, number: header.number },
            time: header.time,
            generation: header.generation,
            sequence: header.number,
            kind: header.kind,
            bytes: header.bytes,
            disks: header.disks.into_iter().map(summary).collect(),
            group: header.group.map(|group| GroupShare { name: group.name, cut: group.cut, complete: None }),
            branch: false,
            pinned: false,
        }
    }
}

/// The machines in the vault, sorted.
pub async fn machines(vault: &Vault) -> Result<Vec<String>> {
    vault.store.list_folders(keys::MACHINES).await
}

/// The points of `machine`, oldest first, those of its branches among them. Those of a consistency group say whether their
/// group has the whole cut.
pub async fn points(vault: &Vault, machine: &str) -> Result<Vec<PointInfo>> {
    let view = View::load(vault, machine).await?;
    let line = view.headers(vault).await?;
    let owned = owned(&line);
    let headers = by_time(line, branches::headers(vault, machine).await?);
    let others = cuts_of_others(vault, machine, &headers).await?;
    let info = |header: Header| {
        let complete = header.group.as_ref().map(|group| {
            let mut others = group.members.iter().filter_map(|member| others.get(member));
            others.all(|cuts| cuts.contains(&group.cut))
        });
        let branch = !owned.contains(&header.id());
        let mut info = PointInfo { branch, ..view.info(header) };
        info.group.iter_mut().for_each(|group| group.complete = complete);
        info
    };
    Ok(headers.into_iter().filter(Header::is_point).map(info).collect())
}

/// The points that lead to the newest one of `line`: those of the owning generation, and those that it was forked from.
fn owned(line: &[Header]) -> HashSet<PointId> {
    let mut highest = u64::MAX;
    let mut owned = HashSet::new();
    for header in line.iter().rev() {
        if header.number > highest {
            continue;
        }
        if header.is_point() {
            owned.insert(header.id());
        } else {
            // Between a claim and the point that it forks from lies what lost.
            highest = header.parent.map_or(0, |fork| fork.number);
        }
    }
    owned
}

/// The line with what stands on branches at its place in time; the line's own order stays.
fn by_time(line: Vec<Header>, mut branches: Vec<Header>) -> Vec<Header> {
    branches.sort_by_key(|header| header.time);
    let mut branches = branches.into_iter().peekable();
    let mut all = Vec::with_capacity(line.len());
    for header in line {
        while let Some(earlier) = branches.next_if(|branch| branch.time < header.time) {
            all.push(earlier);
        }
        all.push(header);
    }
    all.extend(branches);
    all
}

/// The group cuts in the lines of the machines that share one with `machine`.
async fn cuts_of_others(
    vault: &Vault,
    machine: &str,
    own: &[Header],
) -> Result<HashMap<String, HashSet<Uuid>>> {
    let members = own.iter().filter_map(|header| header.group.as_ref()).flat_map(|group| &group.members);
    let names: HashSet<&String> = members.filter(|member| *member != machine).collect();
    let mut others = HashMap::new();
    for name in names {
        let headers = match headers(vault, name).await {
            // It has not written anything yet.
            Err(e) if e.kind == Kind::NotFound => Vec::new(),
            headers => headers?,
        };
        let cuts = headers.into_iter().filter_map(|header| Some(header.group?.cut)).collect();
        others.insert(name.clone(), cuts);
    }
    Ok(others)
}

/// The headers of all entries of `machine`, in the order of the line.
pub async fn headers(vault: &Vault, machine: &str) -> Result<Vec<Header>> {
    View::load(vault, machine).await?.headers(vault).await
}

/// What exists of a machine, at one look.
struct View {
    catalogue: Catalogue,
    /// The numbers of its entries, in order.
    numbers: Vec<u64>,
}

impl View {
    async fn load(vault: &Vault, machine: &str) -> Result<Self> {
        keys::check_name("machine", machine)?;
        let listed = vault.store.list(&keys::line_folder(machine)).await?;
        let catalogue = catalogue::newest(vault, machine).await?;
        let mut numbers = catalogue.numbers();
        let above = listed.iter().filter_map(|object| keys::parse_line_entry(&object.key));
        numbers.extend(above.filter(|number| *number > catalogue.floor));
        if numbers.is_empty() {
            let message = format!("the vault at {} has no such machine", vault.store.url());
            let remedy = "`lifeboat machines` lists what the vault holds";
            return Err(Error::new(Kind::NotFound, machine, message).remedy(remedy));
        }
        Ok(Self { catalogue, numbers })
    }

    async fn headers(&self, vault: &Vault) -> Result<Vec<Header>> {
        let read = |number| self.header(vault, number);
        stream::iter(self.numbers.iter().copied()).map(read).buffered(PARALLEL).try_collect().await
    }

    async fn header(&self, vault: &Vault, number: u64) -> Result<Header> {
        match self.catalogue.header(number) {
            Some(header) => Ok(header.clone()),
            None => header(vault, &self.catalogue.machine, number).await,
        }
    }

    fn info(&self, header: Header) -> PointInfo {
        let mut info = PointInfo::from(header);
        info.pinned = self.catalogue.pins.contains(&info.id);
        info
    }
}

/// The point that `name` names.
pub async fn resolve(vault: &Vault, machine: &str, name: &PointName) -> Result<PointInfo> {
    let missing = || {
        let message = format!("has no point {name}");
        Error::new(Kind::NotFound, machine, message).remedy("`lifeboat points` lists the machine's points")
    };
    let mut view = View::load(vault, machine).await?;
    if let PointName::Id(id) = name {
        return match find_by(vault, &view.catalogue, *id).await {
            Ok(header) if header.is_point() => Ok(view.info(header)),
            Ok(_) => Err(missing()),
            Err(e) if e.kind == Kind::NotFound => Err(missing()),
            Err(e) => Err(e),
        };
    }
    // An old instant is found by reading all headers, many at a time; the newest point needs but one or two.
    let mut known: HashMap<u64, Header> = HashMap::new();
    if matches!(name, PointName::At(_) | PointName::LatestApplication) {
        known.extend(view.headers(vault).await?.into_iter().map(|header| (header.number, header)));
    }
    while let Some(number) = view.numbers.pop() {
        let header = match known.remove(&number) {
            Some(header) => header,
            None => view.header(vault, number).await?,
        };
        if !header.is_point() {
            // Between a claim and the point that it forks from lies a branch that lost.
            let fork = header.parent.map_or(0, |fork| fork.number);
            view.numbers.retain(|number| *number <= fork);
            continue;
        }
        let wanted = match name {
            PointName::At(time) => header.time <= *time,
            PointName::LatestApplication => header.kind == EntryKind::Application,
            _ => true,
        };
        if wanted {
            return Ok(view.info(header));
        }
    }
    Err(missing())
}

/// What the entry `id` says about itself, wherever it stands.
pub async fn find(vault: &Vault, machine: &str, id: PointId) -> Result<Header> {
    find_by(vault, &catalogue::newest(vault, machine).await?, id).await
}

async fn find_by(vault: &Vault, catalogue: &Catalogue, id: PointId) -> Result<Header> {
    let machine = catalogue.machine.as_str();
    let pruned = || Error::new(Kind::NotFound, machine, format!("has no point {id}: it was pruned"));
    let found = if id.number > catalogue.floor {
        header(vault, machine, id.number).await
    } else {
        catalogue.header(id.number).cloned().ok_or_else(pruned)
    };
    if matches!(&found, Ok(header) if header.id() == id) {
        return found;
    }
    match branches::holding(vault, machine, id).await? {
        Some(branch) => branch.header(vault, machine, id.number).await,
        None => found.and_then(|other| {
            let message = format!("has no point {id}: entry {} stands in its place", other.id());
            Err(Error::new(Kind::NotFound, machine, message))
        }),
    }
}

/// The header of entry `number` of the line, which is above the floor: one request, two for a machine with very many disks.
pub async fn header(vault: &Vault, machine: &str, number: u64) -> Result<Header> {
    header_in(vault, machine, &keys::line_folder(machine), number).await
}

/// The same in `folder`, which is the line's or a branch's.
pub(crate) async fn header_in(vault: &Vault, machine: &str, folder: &str, number: u64) -> Result<Header> {
    let key = keys::line_entry(folder, number);
    let object = vault.store.name_of(&key);
    let mut start = vault.store.get_start(&key, HEADER_GUESS).await?;
    let end = point::header_end(&object, &start)?;
    if end > start.len() && start.len() as u64 == HEADER_GUESS {
        start = vault.store.get_range(&key, 0..end as u64).await?;
    }
    let header = point::decode_header(&vault.named(&key), &start)?;
    if header.number != number || header.machine != machine {
        let message = format!("says that it is {} of {}: objects were moved", header.id(), header.machine);
        return Err(Error::corrupt(object, message));
    }
    Ok(header)
}

#[cfg(test)]
mod tests;
