//! Runs of data that a file is known to have, so that reads need not ask the kernel for holes again and again.
//!
//! The kernel finds the next hole by walking the file's extents to it: on a large, fragmented image without holes that
//! can take longer than the read that wanted to know. Each run is walked once and remembered here.
//!
//! A run may be out of date in one direction only: calling a hole data is always legal (it reads as zero). What is
//! remembered is forgotten when the range is punched through us.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

/// Runs remembered; beyond that a file has so many holes that asking is cheap.
const MAX_RUNS: usize = 4096;

/// See the module. Maps the start of a run to its end.
#[derive(Debug, Default)]
pub(super) struct Runs(RwLock<BTreeMap<u64, u64>>);

impl Runs {
    /// The end of the run of data that `at` is known to lie in.
    pub(super) fn end_of(&self, at: u64) -> Option<u64> {
        let runs = self.0.read().unwrap_or_else(PoisonError::into_inner);
        runs.range(..=at).next_back().map(|(_, end)| *end).filter(|end| *end > at)
    }

    /// `[start, end)` was found to be data.
    pub(super) fn learn(&self, start: u64, end: u64) {
        let mut runs = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let (mut first, mut last) = (start, end);
        while let Some((&from, &to)) = runs.range(..=last).next_back().filter(|(_, to)| **to >= first) {
            runs.remove(&from);
            (first, last) = (first.min(from), last.max(to));
        }
        if runs.len() >= MAX_RUNS {
            runs.clear();
        }
        runs.insert(first, last);
    }

    /// `[start, end)` may be a hole from now on.
    pub(super) fn forget(&self, start: u64, end: u64) {
        let mut runs = self.0.write().unwrap_or_else(PoisonError::into_inner);
        while let Some((&from, &to)) = runs.range(..end).next_back().filter(|(_, to)| **to > start) {
            runs.remove(&from);
            if from < start {
                runs.insert(from, start);
            }
            if to > end {
                runs.insert(end, to);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(runs: &Runs) -> Vec<(u64, u64)> {
        runs.0.read().unwrap().iter().map(|(from, to)| (*from, *to)).collect()
    }

    #[test]
    fn runs_join_and_are_cut() {
        let runs = Runs::default();
        runs.learn(10, 20);
        runs.learn(30, 40);
        assert_eq!([9, 10, 19, 20, 35].map(|at| runs.end_of(at)), [None, Some(20), Some(20), None, Some(40)]);
        runs.learn(20, 30);
        assert_eq!(all(&runs), [(10, 40)]);
        runs.forget(15, 25);
        assert_eq!(all(&runs), [(10, 15), (25, 40)]);
        runs.forget(0, 12);
        runs.forget(12, 100);
        assert_eq!(all(&runs), []);
    }

    #[test]
    fn they_are_bounded() {
        let runs = Runs::default();
        (0..3 * MAX_RUNS as u64).for_each(|index| runs.learn(index * 10, index * 10 + 5));
        assert!(all(&runs).len() <= MAX_RUNS);
    }
}
