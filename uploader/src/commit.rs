//! How a point comes to exist.
//!
//! A point means: the machine's disks could have shown exactly this after a crash at the cut's instant. The order of
//! things, and what a death between them leaves:
//!
//! 1. *Cut.* The proxy rolls the logs; their segments stay until released. Death: the next cut includes them again.
//! 2. *Upload* each delta under a name drawn for it ([`upload`] → [`Uploaded`]). They may overtake each other. Death:
//!    objects that no point names, which no reader ever looks at; cleaning them up is pruning's work.
//! 3. *Append* the entry that names them to the line ([`append`] → [`Committed`]). This is the commit: before it the
//!    point does not exist, after it the point is durable, complete and found by every reader. It needs the
//!    [`Uploaded`] value of each object it names, so a name can never dangle. Death, or a lost reply: the next append
//!    of the same number is answered "exists" and reading the entry tells whose it is ([`Outcome::Adopted`]). An
//!    adopted entry is a true point of an earlier cut. The cut at hand includes that earlier one, which was never
//!    released, so it follows as the next entry: records that both hold are applied twice, and the later records
//!    decide in both. Whether an entry that was created, or found, counts at all is for the [`line`](crate::line) to say.
//! 4. *Remember* the new head and each disk's tracking id in the local state, durably. Death: the next start looks for
//!    what is above the head and adopts it.
//! 5. *End syncs, then release the cut.* Only now may segments go. Death: both are repeated.
//!
//! Chain of positions: released ≤ remembered ≤ committed ≤ uploaded ≤ cut.
//!
//! The writer's id and generation are durable locally before the first append, so "ours" is decidable after any crash.
//! Nothing is retried here; a failed cycle starts again at 1.

use std::collections::BTreeSet;

use nbd_proxy::durable::{self, Op, Step};
use nbd_proxy::{Error, Kind, Result};

use crate::delta::Encoded;
use crate::digest::Digest;
use crate::elapsed::Elapsed;
use crate::keys::{self, PointId};
use crate::line::{Appended, Entry, Line, Owner, Writer};
use crate::point::{self, DeltaRef, Header};
use crate::vault::Vault;

/// Proof that a delta is durable in the vault. Not clonable: each is named by one point.
#[derive(Debug)]
pub struct Uploaded(DeltaRef);

impl Uploaded {
    /// A delta that an earlier run of this writer uploaded and durably wrote down.
    pub(crate) fn remembered(delta: DeltaRef) -> Self {
        Self(delta)
    }

    /// How a point will name it.
    pub fn reference(&self) -> &DeltaRef {
        &self.0
    }
}

/// Proof that a point exists.
#[derive(Debug)]
pub struct Committed {
    header: Header,
    mark: Digest,
    deltas: Vec<DeltaRef>,
}

impl Committed {
    /// What the point says about itself.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Tells the entry from any other of the same number.
    pub fn mark(&self) -> Digest {
        self.mark
    }

    /// Whether the entry consists, among others, of all of `deltas`.
    pub fn names_all(&self, deltas: &[Uploaded]) -> bool {
        let named: BTreeSet<_> = self.deltas.iter().filter_map(|delta| delta.name.as_deref()).collect();
        deltas.iter().all(|delta| delta.0.name.as_deref().is_some_and(|name| named.contains(name)))
    }
}

/// How a commit ended.
#[derive(Debug)]
pub enum Outcome {
    /// The entry is ours and new.
    Committed(Committed),
    /// The number was taken by an earlier attempt of this writer: that entry counts, and ours has to come after it.
    Adopted(Committed),
}

/// Puts a delta of `machine`, made for the entry `id`, into the vault.
pub async fn upload(vault: &Vault, machine: &str, id: EntryId, delta: Encoded) -> Result<Uploaded> {
    let name = match id {
        EntryId::Line(number) => keys::new_delta(number, delta.salt),
        EntryId::Branch(point) => keys::new_branch_delta(point, delta.salt),
    };
    let key = keys::delta(machine, &name);
    durable::request(Step::DeltaPut, Op::Put, vault.store.put(&key, delta.payload())).await?;
    Ok(Uploaded(DeltaRef::to(&delta, Some(name))))
}

/// Which entry a delta is meant for.
#[derive(Clone, Copy, Debug)]
pub enum EntryId {
    /// The entry of this number on the machine's line.
    Line(u64),
    /// An entry of a branch.
    Branch(PointId),
}

/// The branch that `owner`, fenced, has made of the line of `machine`.
pub fn branch(vault: &Vault, machine: &str, owner: Owner) -> Line {
    let folder = keys::branch_folder(machine, owner.generation, owner.writer);
    Line::new(vault.store.clone(), vault.cipher.clone(), folder, point::owner_of)
}

/// The line of `machine` in `vault`.
pub fn line(vault: &Vault, machine: &str) -> Line {
    Line::new(vault.store.clone(), vault.cipher.clone(), keys::line_folder(machine), point::owner_of)
}

/// Begins a generation on `line`: `claim` is told the newest entry, with its mark, and says what the next one is to be, which it first
/// makes sure to remember; or nothing, if the newest entry is its own.
pub async fn claim(
    line: Line,
    clock: Elapsed,
    mut claim: impl FnMut(Option<(Header, Digest)>) -> Result<Option<Header>>,
) -> Result<Option<(Writer, Committed)>> {
    let reader = line.clone();
    let mut made = None;
    let entry = |newest: Option<&Entry>| {
        let marked = |newest: &Entry| {
            let mark = point::mark(&reader.key(newest.number), &newest.bytes)?;
            Ok::<_, Error>((read(&reader, newest)?, mark))
        };
        let Some(header) = claim(newest.map(marked).transpose()?)? else { return Ok(None) };
        let entry = point::encode(&reader.named(header.number), &header, &[], None)?;
        let mark = point::mark(&reader.key(header.number), &entry)?;
        let owner = header.owner();
        made = Some(Committed { header, mark, deltas: Vec::new() });
        Ok(Some((owner, entry)))
    };
    let claimed = Writer::claim(line, clock, entry).await?;
    Ok(claimed.zip(made).map(|((writer, _), claim)| (writer, claim)))
}

/// Appends the entry that `header` describes, consisting of `deltas` and then `embedded`.
pub async fn append(
    writer: &mut Writer,
    header: Header,
    deltas: &[&Uploaded],
    embedded: Option<&Encoded>,
) -> Result<Outcome> {
    let mut header = header;
    let mut list: Vec<DeltaRef> = deltas.iter().map(|uploaded| uploaded.0.clone()).collect();
    if let Some(delta) = embedded {
        list.push(DeltaRef::to(delta, None));
    }
    header.bytes = list.iter().map(|delta| delta.size).sum();
    header.logical = list.iter().map(|delta| delta.logical).sum();
    let writes = writer.line();
    let entry = point::encode(&writes.named(header.number), &header, &list, embedded)?;
    let mark = point::mark(&writes.key(header.number), &entry)?;
    match writer.append(header.number, entry).await? {
        Appended::Created => Ok(Outcome::Committed(Committed { header, mark, deltas: list })),
        Appended::Ours(entry) => adopted(writer.line(), &entry).map(Outcome::Adopted),
        Appended::Foreign(entry) => Err(fenced(writer.line(), &entry)?),
    }
}

/// An entry that is ours, and was there.
pub fn adopted(line: &Line, entry: &Entry) -> Result<Committed> {
    read(line, entry)?;
    let point::Entry { header, mark, deltas, .. } = point::decode(&line.named(entry.number), &entry.bytes)?;
    Ok(Committed { header, mark, deltas })
}

/// Reads the header of a line's entry and checks that it stands where it says.
pub fn read(line: &Line, entry: &Entry) -> Result<Header> {
    let named = line.named(entry.number);
    let header = point::decode_header(&named, &entry.bytes)?;
    if header.number != entry.number {
        let message = format!("says that it is entry {}: objects were moved or swapped", header.number);
        return Err(Error::corrupt(named.object, message));
    }
    Ok(header)
}

/// What `entry`, which is not ours, means to us.
pub fn fenced(line: &Line, entry: &Entry) -> Result<Error> {
    let entry = read(line, entry)?;
    let message = format!(
        "another writer owns the machine's line now: entry {} was written in generation {} on host {} at {}",
        entry.number, entry.generation, entry.host, entry.time
    );
    let remedy = "let only one site run and replicate this machine; points up to there are safe";
    Ok(Error::new(Kind::Fenced, entry.machine, message).remedy(remedy))
}
