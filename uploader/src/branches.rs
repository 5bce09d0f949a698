//! The branches of a machine's line: what writers went on with after they were fenced.
//!
//! A branch is a line of its own ([`crate::line`]) in a folder of its own, with one writer. Its first entry is a claim, which names as its
//! parent the point that the branch forks from, and is thereby a hold on that point: whoever deletes points looks for
//! branches first, and the writer of a branch looks for the point after it has made the claim; so one of them sees the other. Its points
//! name each other as parents down to the fork. Numbers go on from above what the line had reached, so the first number
//! tells which ancestors stand on the branch and which on the line: a generation never has two entries of one number.
//!
//! The newest point of a branch is never deleted.

use std::collections::BTreeMap;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use nbd_proxy::Result;
use uuid::Uuid;

use crate::commit;
use crate::keys::{self, PointId};
use crate::line::{Line, Owner};
use crate::listing;
use crate::point::Header;
use crate::vault::Vault;

/// Entries read at the same time.
const PARALLEL: usize = 16;

/// A branch and the numbers of its entries, in order; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Branch {
    /// The generation that was fenced.
    pub generation: u64,
    /// Its writer.
    pub writer: Uuid,
    /// The numbers of its entries.
    pub numbers: Vec<u64>,
}

impl Branch {
    /// Whether the point `id` would stand on it, and not on the line.
    pub fn holds(&self, id: PointId) -> bool {
        id.generation == self.generation && self.numbers.first().is_some_and(|first| *first <= id.number)
    }

    /// Its entries.
    pub fn line(&self, vault: &Vault, machine: &str) -> Line {
        commit::branch(vault, machine, Owner { writer: self.writer, generation: self.generation })
    }

    /// What entry `number` says about itself.
    pub async fn header(&self, vault: &Vault, machine: &str, number: u64) -> Result<Header> {
        let folder = keys::branch_folder(machine, self.generation, self.writer);
        listing::header_in(vault, machine, &folder, number).await
    }
}

/// The branches of `machine`, in the order of their generations. One listing.
pub async fn list(vault: &Vault, machine: &str) -> Result<Vec<Branch>> {
    let mut found: BTreeMap<(u64, Uuid), Vec<u64>> = BTreeMap::new();
    for object in vault.store.list(&keys::branches_folder(machine)).await? {
        let folder = object.key.rsplit('/').nth(1).and_then(keys::parse_branch);
        if let (Some(branch), Some(number)) = (folder, keys::parse_line_entry(&object.key)) {
            found.entry(branch).or_default().push(number);
        }
    }
    let branch = |((generation, writer), numbers)| Branch { generation, writer, numbers };
    Ok(found.into_iter().map(branch).collect())
}

/// The branch on which the entry `id` stands.
pub async fn holding(vault: &Vault, machine: &str, id: PointId) -> Result<Option<Branch>> {
    let branches = list(vault, machine).await?;
    Ok(branches.into_iter().find(|branch| branch.holds(id) && branch.numbers.contains(&id.number)))
}

/// The headers of the entries of all branches of `machine`, branch after branch.
pub async fn headers(vault: &Vault, machine: &str) -> Result<Vec<Header>> {
    let branches = list(vault, machine).await?;
    let entries =
        branches.iter().flat_map(|branch| branch.numbers.iter().map(move |number| (branch, *number)));
    let read = |(branch, number): (&Branch, u64)| {
        let branch = branch.clone();
        async move { branch.header(vault, machine, number).await }
    };
    let reads: Vec<_> = entries.map(read).collect();
    stream::iter(reads).buffered(PARALLEL).try_collect().await
}

#[cfg(test)]
mod tests;
