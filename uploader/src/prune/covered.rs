//! Which bytes of each disk later deltas have, so that earlier ones need not.

use std::collections::{HashMap, HashSet};

use crate::intervals::{self, IntervalMap};

/// Ranges remembered at most; a few dozen bytes each.
pub(super) const FULL: usize = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct There;

impl intervals::Source for There {
    fn advanced(&self, _: u64) -> Self {
        Self
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Covered {
    disks: HashMap<String, IntervalMap<There>>,
    /// Disks of which nothing earlier is needed, whatever is covered.
    shut: HashSet<String>,
}

impl Covered {
    /// Nothing earlier of `disk` is needed.
    pub fn shut(&mut self, disk: &str) {
        self.shut.insert(disk.to_owned());
    }

    pub fn is_shut(&self, disk: &str) -> bool {
        self.shut.contains(disk)
    }

    /// Forgets what is covered; what is shut stays so.
    pub fn forget(&mut self) {
        self.disks.clear();
    }

    /// As much is remembered as should be.
    pub fn is_full(&self, limit: usize) -> bool {
        self.disks.values().map(IntervalMap::len).sum::<usize>() >= limit
    }

    /// Covers `len` bytes at `offset`; `each` is told what of that was not covered before, as (offset, length).
    pub fn add(&mut self, disk: &str, offset: u64, len: u64, mut each: impl FnMut(u64, u64)) {
        if !self.disks.contains_key(disk) {
            self.disks.insert(disk.to_owned(), IntervalMap::default());
        }
        let Some(map) = self.disks.get_mut(disk) else { return };
        let end = offset + len;
        let mut at = offset;
        for (start, len, _) in map.touching(offset, end) {
            if start > at {
                each(at, start - at);
            }
            at = at.max(start + len);
        }
        if at < end {
            each(at, end - at);
        }
        map.insert(offset, len, There);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_new_is_told() {
        let mut covered = Covered::default();
        let mut told = |disk: &str, offset, len| {
            let mut told = Vec::new();
            covered.add(disk, offset, len, |offset, len| told.push((offset, len)));
            told
        };
        assert_eq!(told("a", 10, 10), [(10, 10)]);
        assert_eq!(told("a", 30, 10), [(30, 10)]);
        assert_eq!(told("a", 0, 50), [(0, 10), (20, 10), (40, 10)]);
        assert_eq!(told("a", 5, 40), []);
        assert_eq!(told("b", 5, 40), [(5, 40)]);
    }
}
