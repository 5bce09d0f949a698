//! What nobody needs any more, and its deletion.
//!
//! The vault is asked each time: nothing is taken over from the pruning that published the catalogue, so it does not
//! matter who that was, whether it was killed, or how much an earlier sweep had done.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use jiff::{SignedDuration, Timestamp};
use nbd_proxy::durable::{self, Op, Step};
use nbd_proxy::{Error, Kind, Result};

use super::survey::Survey;
use super::{Object, Report};
use crate::catalogue::{self, Catalogue};
use crate::holds::{self, Held};
use crate::keys;
use crate::point;
use crate::store::{self, Listed};
use crate::vault::Vault;

/// An object must be this much older than the catalogue that does not name it: stores stamp by the second, and from
/// several machines.
pub(super) const MARGIN: Duration = Duration::from_secs(60);
/// Deletions at the same time.
const PARALLEL: usize = 8;
/// The longest start of an entry that is read for its list of deltas.
const START: u64 = 1 << 20;

/// How long it is until what the catalogue that was `published` does not need may go.
pub(super) fn left(published: Timestamp, now: Timestamp, wait: Duration) -> Duration {
    let passed = now.duration_since(published).max(SignedDuration::ZERO);
    wait.saturating_sub(passed.unsigned_abs())
}

/// What objects are needed by those who read.
#[derive(Default)]
struct Needed {
    /// Deltas, by their names in the machine's folder.
    deltas: HashSet<String>,
    /// Entries of the line, by their numbers.
    entries: BTreeSet<u64>,
    catalogues: BTreeSet<u64>,
}

/// The objects that nobody needs, by the survey's catalogue and what was written since.
pub(super) async fn judge(
    vault: &Vault,
    survey: &Survey,
    now: Timestamp,
    margin: Duration,
) -> Result<Vec<Object>> {
    let catalogue = &survey.catalogue;
    let machine = &catalogue.machine;
    let (held, over) = holds::counting(vault, machine, now).await?;
    let mut going = over;
    going.extend(
        vault
            .store
            .list(&keys::clock_folder(machine))
            .await?
            .into_iter()
            .filter(|object| now.duration_since(object.modified) > SignedDuration::from_mins(1)),
    );
    if let Some(published) = survey.published {
        let needed = needed(vault, survey, &held).await?;
        let older = |object: &Listed| {
            let age = published.duration_since(object.modified);
            age >= SignedDuration::try_from(margin).unwrap_or(SignedDuration::MAX)
        };
        let line = vault.store.list(&keys::line_folder(machine)).await?;
        going.extend(line.into_iter().filter(|object| entry_goes(catalogue, &needed, object)));
        let deltas = vault.store.list(&keys::delta_folder(machine)).await?;
        going.extend(
            deltas.into_iter().filter(|object| older(object) && delta_goes(catalogue, &needed, object)),
        );
        let catalogues = vault.store.list(&keys::catalogue_folder(machine)).await?;
        going.extend(catalogues.into_iter().filter(|object| {
            let number = keys::parse_line_entry(&object.key);
            number.is_some_and(|number| number < catalogue.number && !needed.catalogues.contains(&number))
        }));
    }
    Ok(going.into_iter().map(|object| Object { key: object.key, bytes: object.size }).collect())
}

fn entry_goes(catalogue: &Catalogue, needed: &Needed, object: &Listed) -> bool {
    keys::parse_line_entry(&object.key).is_some_and(|number| {
        let below = number <= catalogue.floor && catalogue.claim(number).is_none();
        below && !needed.entries.contains(&number)
    })
}

fn delta_goes(catalogue: &Catalogue, needed: &Needed, object: &Listed) -> bool {
    let name = object.key.rsplit('/').next().unwrap_or_default();
    keys::parse_delta(name).is_some_and(|number| number <= catalogue.floor && !needed.deltas.contains(name))
}

async fn needed(vault: &Vault, survey: &Survey, held: &[Held]) -> Result<Needed> {
    let mut needed = Needed { deltas: survey.of_branches.clone(), ..Needed::default() };
    needed.deltas.extend(survey.catalogue.deltas().map(str::to_owned));
    needed.deltas.extend(survey.above().flat_map(|entry| entry.names.iter().cloned()));
    for held in held {
        needed.hold(vault, survey, *held).await?;
    }
    Ok(needed)
}

impl Needed {
    /// Adds what a reader needs that reads by an older catalogue.
    async fn hold(&mut self, vault: &Vault, survey: &Survey, held: Held) -> Result<()> {
        let machine = &survey.catalogue.machine;
        self.catalogues.insert(held.catalogue);
        if held.catalogue >= survey.catalogue.number {
            return Ok(());
        }
        let by = match held.catalogue {
            0 => Catalogue::empty(machine),
            number => match catalogue::read(vault, machine, number).await {
                Ok(by) => by,
                // It was gone before the hold came: its reader looked again, and has another hold.
                Err(e) if store::is_missing_object(&e) => return Ok(()),
                Err(e) => return Err(e),
            },
        };
        let mut next = Some(held.point);
        while let Some(id) = next {
            if id.number <= by.floor {
                let Some(kept) = by.point(id.number) else { return Ok(()) };
                self.deltas.extend(kept.deltas.iter().map(|delta| delta.name().to_owned()));
                next = kept.header.parent;
                continue;
            }
            let known =
                survey.entries.get(&id.number).map(|entry| (entry.header.parent, entry.names.clone()));
            let (parent, names) = match known {
                Some(known) => known,
                None => match entry(vault, machine, id.number).await? {
                    Some(entry) => entry,
                    None => return Ok(()),
                },
            };
            self.entries.insert(id.number);
            self.deltas.extend(names);
            next = parent;
        }
        Ok(())
    }
}

/// The parent of entry `number`, and the deltas it names.
async fn entry(
    vault: &Vault,
    machine: &str,
    number: u64,
) -> Result<Option<(Option<keys::PointId>, Vec<String>)>> {
    let key = keys::line_entry(&keys::line_folder(machine), number);
    match vault.store.get_start(&key, START).await {
        Ok(start) => {
            let (header, list) = point::decode_start(&vault.named(&key), &start)?;
            Ok(Some((header.parent, list.into_iter().filter_map(|delta| delta.name).collect())))
        }
        Err(e) if store::is_missing_object(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Deletes the objects of `report`. What the store refuses to delete is locked, or not ours to delete: it is counted, and tried
/// again by the next sweep. Any other error ends the sweep, which then goes on where it was when it is run again.
pub(super) async fn delete(vault: &Vault, report: &mut Report) -> Result<()> {
    let all = std::mem::take(&mut report.objects);
    let delete = |object: Object| async move {
        let result = durable::request(Step::Swept, Op::Delete, vault.store.delete(&object.key)).await;
        (object, result)
    };
    let mut results = stream::iter(all).map(delete).buffer_unordered(PARALLEL);
    report.freed = 0;
    while let Some((object, result)) = results.next().await {
        match result {
            Ok(()) => {
                report.freed += object.bytes;
                report.objects.push(object);
            }
            Err(e) if is_refusal(&e) => {
                report.refused += 1;
                report.refused_bytes += object.bytes;
                report.refusal = e.message;
            }
            Err(e) => return Err(e),
        }
    }
    report.objects.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    Ok(())
}

/// S3 Object Lock answers "access denied", Azure's immutability policies answer with a conflict.
fn is_refusal(error: &Error) -> bool {
    matches!(error.kind, Kind::Denied | Kind::Exists)
}
