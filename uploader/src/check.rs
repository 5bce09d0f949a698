//! What a store must be before a vault is trusted to it: each thing tried on the store itself, with a verdict and what it means.
//!
//! Everything is written below one folder of its own, `check/<random>`, which no vault uses, and removed at the end as far as the store
//! allows. A check that could not be made because an earlier one failed says so; none is left out silently.
//!
//! The replication of machines rests on four of the rows: what was written is read back, of several who create one name exactly one
//! does, a listing after a write shows it, and ranges are exact. A store that fails one of those is refused; the others cost money,
//! time or comfort, and say which.

mod rows;

use jiff::Timestamp;
use nbd_proxy::{Error, Kind};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::store::Store;

/// How one thing went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As it must be.
    Pass,
    /// Good to know.
    Note,
    /// A vault works here, and something will hurt.
    Warn,
    /// No vault should be here.
    Fail,
    /// It could not be tried.
    Unknown,
}

/// One thing that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// What.
    pub name: String,
    /// How it went.
    pub verdict: Verdict,
    /// What was seen.
    pub seen: String,
    /// What that means for a vault.
    pub means: String,
}

/// All that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The store.
    pub vault: String,
    /// When, by this host's clock.
    pub time: Timestamp,
    /// In the order in which it was tried.
    pub rows: Vec<Row>,
    /// Requests that it took.
    pub requests: u64,
    /// Objects that could not be removed again.
    pub left: u64,
}

impl Report {
    /// The worst verdict; what could not be tried counts as a warning.
    pub fn verdict(&self) -> Verdict {
        let any = |verdict| self.rows.iter().any(|row| row.verdict == verdict);
        match () {
            () if any(Verdict::Fail) => Verdict::Fail,
            () if any(Verdict::Warn) || any(Verdict::Unknown) => Verdict::Warn,
            () => Verdict::Pass,
        }
    }

    /// The first failure as an error; none if a vault may be here.
    pub fn refusal(&self) -> Option<Error> {
        let row = self.rows.iter().find(|row| row.verdict == Verdict::Fail)?;
        let message = format!("is no store for a vault: {}: {}", row.name, row.seen);
        Some(Error::new(Kind::InvalidInput, &self.vault, message).remedy(&row.means))
    }
}

/// Tries everything on `store`: about 1,300 small requests and one of 48 MiB.
pub async fn check(store: &Store) -> Report {
    let store = store.counted_apart();
    let folder = format!("check/{}", Uuid::new_v4().simple());
    let mut probe = rows::Probe { store: &store, folder, rows: Vec::new() };
    probe.run().await;
    let left = probe.tidy_up().await;
    let rows = probe.rows;
    let counts = store.counts();
    Report {
        vault: store.url().to_owned(),
        time: Timestamp::now(),
        rows,
        requests: counts.puts + counts.gets + counts.lists,
        left,
    }
}

#[cfg(test)]
mod tests;
