//! What a machine's replication asked of its vault, by day: for the bill.
//!
//! One small JSON file a machine in the state folder, replaced now and then; what was counted since the last time is lost with the process.
//! It is for people and relied on by nothing: a file that cannot be read begins anew.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::civil::Date;
use nbd_proxy::durable::{self, Step};
use nbd_proxy::{Error, Kind, Result};
use serde::{Deserialize, Serialize};

use crate::store::Counts;

/// Days that are kept.
const DAYS: usize = 400;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Requests and bytes of each day, by this host's date.
    pub days: BTreeMap<Date, Counts>,
}

impl Usage {
    /// What is kept for `machine` below `state_dir`; nothing if nothing can be read.
    pub fn load(state_dir: &Path, machine: &str) -> Result<Self> {
        let path = path(state_dir, machine);
        let bytes = durable::read(&path).map_err(|e| Error::io("read what was used", &path, e))?;
        Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default())
    }

    /// Adds `more`, used on `day`.
    pub fn add(&mut self, day: Date, more: Counts) {
        let counts = self.days.entry(day).or_default();
        *counts = *counts + more;
        while self.days.len() > DAYS {
            self.days.pop_first();
        }
    }

    /// Keeps it for `machine`.
    pub fn save(&self, state_dir: &Path, machine: &str) -> Result<()> {
        let path = path(state_dir, machine);
        let bytes = serde_json::to_vec(self)
            .map_err(|e| Error::new(Kind::InvalidInput, path.display().to_string(), e.to_string()))?;
        durable::replace(Step::UsageSaved, &path, &bytes)
            .map_err(|e| Error::io("write what was used", &path, e))
    }
}

fn path(state_dir: &Path, machine: &str) -> PathBuf {
    state_dir.join(format!("{machine}.usage.json"))
}

#[cfg(test)]
mod tests;
