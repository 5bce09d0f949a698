//! A map from disjoint ranges of bytes to where their content is. What is inserted last wins.

use std::collections::BTreeMap;

/// Says what a value means further into its range.
pub trait Source: Clone + PartialEq {
    /// The value for the bytes from `by` on.
    #[must_use]
    fn advanced(&self, by: u64) -> Self;
}

/// See the module.
#[derive(Clone, Debug)]
pub struct IntervalMap<V> {
    ranges: BTreeMap<u64, (u64, V)>,
}

impl<V> Default for IntervalMap<V> {
    fn default() -> Self {
        Self { ranges: BTreeMap::new() }
    }
}

impl<V: Source> IntervalMap<V> {
    /// How many ranges there are.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// All ranges as (start, length, value), in order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64, &V)> {
        self.ranges.iter().map(|(start, (end, value))| (*start, end - start, value))
    }

    /// The ranges that touch `[start, end)`, in order, as (start, length, value).
    pub fn touching(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, u64, &V)> {
        let before = self.ranges.range(..start).next_back().filter(|(_, (end, _))| *end > start);
        let within = self.ranges.range(start..end.max(start));
        before.into_iter().chain(within).map(|(start, (end, value))| (*start, end - start, value))
    }

    /// Maps `len` bytes from `start` to `value`, over whatever was there.
    pub fn insert(&mut self, start: u64, len: u64, value: V) {
        if len == 0 {
            return;
        }
        self.cut_out(start, start + len);
        // Neighbours that continue each other are one range: sequential runs stay small.
        let (mut start, mut end, mut value) = (start, start + len, value);
        if let Some((&before, (before_end, before_value))) = self.ranges.range(..start).next_back()
            && *before_end == start
            && before_value.advanced(start - before) == value
        {
            value = before_value.clone();
            start = before;
        }
        if let Some((after_end, after_value)) = self.ranges.get(&end)
            && value.advanced(end - start) == *after_value
        {
            let after_end = *after_end;
            self.ranges.remove(&end);
            end = after_end;
        }
        self.ranges.insert(start, (end, value));
    }

    /// Unmaps `[start, end)`.
    fn cut_out(&mut self, start: u64, end: u64) {
        if let Some((&before, (before_end, value))) = self.ranges.range_mut(..start).next_back()
            && *before_end > start
        {
            let old_end = std::mem::replace(before_end, start);
            if old_end > end {
                let rest = value.advanced(end - before);
                self.ranges.insert(end, (old_end, rest));
                return;
            }
        }
        while let Some((&inner, (inner_end, value))) = self.ranges.range(start..end).next() {
            let rest = (*inner_end > end).then(|| (*inner_end, value.advanced(end - inner)));
            self.ranges.remove(&inner);
            if let Some(rest) = rest {
                self.ranges.insert(end, rest);
                return;
            }
        }
    }

    /// Drops the upper half of the ranges and returns where what is left ends: everything from there on is unmapped.
    pub fn drop_upper_half(&mut self) -> Option<u64> {
        let middle = *self.ranges.keys().nth(self.ranges.len() / 2)?;
        self.ranges.split_off(&middle);
        Some(middle)
    }
}

#[cfg(test)]
mod tests;
