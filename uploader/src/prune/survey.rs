//! What there is of a machine: the newest catalogue, and the entries above its floor.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use jiff::Timestamp;
use nbd_proxy::{Error, Kind, Result};

use crate::catalogue::{self, Catalogue};
use crate::digest::Digest;
use crate::keys::{self, PointId};
use crate::point::{self, Header};
use crate::store::{self, Listed};
use crate::vault::Vault;

/// Entries read at the same time.
const PARALLEL: usize = 16;
/// What a first read of an entry fetches: enough for the header and the list of an ordinary one.
const START_GUESS: u64 = 8 << 10;

/// An entry, without what is embedded in it.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub header: Header,
    /// Tells it from any other of its name.
    pub mark: Digest,
    /// When the store received it.
    pub stored: Timestamp,
    /// The deltas that it names.
    pub names: Vec<String>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Survey {
    pub catalogue: Catalogue,
    /// When the store received the catalogue; nothing if the machine has none.
    pub published: Option<Timestamp>,
    /// The entries above its floor, by number; after a renewal those below the new floor too, as far as they were seen.
    pub entries: BTreeMap<u64, Entry>,
    /// Points that points of branches go on from.
    pub forked: BTreeSet<PointId>,
    /// Deltas that points of branches name.
    pub of_branches: HashSet<String>,
}

impl Survey {
    pub async fn load(vault: &Vault, machine: &str) -> Result<Self> {
        let mut survey = Self {
            catalogue: Catalogue::empty(machine),
            published: None,
            entries: BTreeMap::new(),
            forked: BTreeSet::new(),
            of_branches: HashSet::new(),
        };
        survey.renew(vault).await?;
        if survey.entries.is_empty() && survey.catalogue.number == 0 {
            let message = format!("the vault at {} has no such machine", vault.store.url());
            let remedy = "`lifeboat machines` lists what the vault holds";
            return Err(Error::new(Kind::NotFound, machine, message).remedy(remedy));
        }
        Ok(survey)
    }

    /// Looks again: at the newest catalogue, and at what has been written since the last look.
    pub async fn renew(&mut self, vault: &Vault) -> Result<()> {
        let machine = self.catalogue.machine.clone();
        let line = vault.store.list(&keys::line_folder(&machine)).await?;
        self.catalogue = catalogue::newest(vault, &machine).await?;
        self.published = match self.catalogue.number {
            0 => None,
            number => Some(vault.store.describe(&keys::catalogue(&machine, number)).await?.modified),
        };
        let numbered = |object: Listed| Some((keys::parse_line_entry(&object.key)?, object));
        let new = |(number, _): &(u64, Listed)| {
            *number > self.catalogue.floor && !self.entries.contains_key(number)
        };
        let new: Vec<(u64, Listed)> = line.into_iter().filter_map(numbered).filter(new).collect();
        let machine_ref = machine.as_str();
        let read = |(number, object): (u64, Listed)| async move {
            let name = vault.store.name_of(&object.key);
            let entry = read(vault, object).await?;
            let header = &entry.header;
            if header.number != number || header.machine != machine_ref {
                let message =
                    format!("says that it is {} of {}: objects were moved", header.id(), header.machine);
                return Err(Error::corrupt(name, message));
            }
            Ok((number, entry))
        };
        let read: Vec<(u64, Entry)> = stream::iter(new).map(read).buffered(PARALLEL).try_collect().await?;
        self.entries.extend(read);
        self.look_at_branches(vault, &machine).await
    }

    /// Branches are read whole: there are few, they are short, and they end.
    async fn look_at_branches(&mut self, vault: &Vault, machine: &str) -> Result<()> {
        let listed = vault.store.list(&keys::branches_folder(machine)).await?;
        let entries = listed.into_iter().filter(|object| keys::parse_line_entry(&object.key).is_some());
        let read = |object| read(vault, object);
        let read: Vec<Entry> = stream::iter(entries).map(read).buffered(PARALLEL).try_collect().await?;
        self.forked = read.iter().filter_map(|entry| entry.header.parent).collect();
        self.of_branches = read.into_iter().flat_map(|entry| entry.names).collect();
        Ok(())
    }

    /// The points above the catalogue's floor.
    pub fn points(&self) -> impl Iterator<Item = &Entry> {
        self.above().filter(|entry| entry.header.is_point())
    }

    /// The entries above the catalogue's floor.
    pub fn above(&self) -> impl Iterator<Item = &Entry> {
        self.entries.range(self.catalogue.floor + 1..).map(|(_, entry)| entry)
    }
}

/// What the entry `object` says about itself: one request, two if its list is long.
async fn read(vault: &Vault, object: Listed) -> Result<Entry> {
    let name = vault.store.name_of(&object.key);
    let gone = |e: Error| {
        if !store::is_missing_object(&e) {
            return e;
        }
        let message = "was deleted while it was being looked at: somebody else prunes";
        Error::new(Kind::Unavailable, name.as_str(), message).remedy("try again")
    };
    let mut start = vault.store.get_start(&object.key, START_GUESS).await.map_err(gone)?;
    let end = point::list_end(&name, &start)?;
    if end > start.len() && start.len() as u64 == START_GUESS {
        start = vault.store.get_range(&object.key, 0..end as u64).await.map_err(gone)?;
    }
    let (header, list) = point::decode_start(&vault.named(&object.key), &start)?;
    let mark = point::mark(&name, &start)?;
    let names = list.into_iter().filter_map(|delta| delta.name).collect();
    Ok(Entry { header, mark, stored: object.modified, names })
}
