//! The number below which everything is done, when things are done out of order.

/// Counts completions of numbers 0, 1, 2, … given as ranges in any order.
#[derive(Debug, Default)]
pub struct Watermark {
    below: u64,
    /// Completed ranges above `below`; few, for they are writes in flight.
    early: Vec<(u64, u64)>,
}

impl Watermark {
    /// Every number below this is done.
    pub fn below(&self) -> u64 {
        self.below
    }

    /// `[first, end)` is done.
    pub fn complete(&mut self, first: u64, end: u64) {
        if first != self.below {
            self.early.push((first, end));
            return;
        }
        self.below = end;
        while let Some(at) = self.early.iter().position(|(first, _)| *first == self.below) {
            self.below = self.early.swap_remove(at).1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Watermark;

    #[test]
    fn the_mark_passes_a_gap_only_when_it_is_filled() {
        let mut mark = Watermark::default();
        mark.complete(2, 5);
        mark.complete(7, 8);
        assert_eq!(mark.below(), 0);
        mark.complete(0, 2);
        assert_eq!(mark.below(), 5);
        mark.complete(5, 7);
        assert_eq!(mark.below(), 8);
    }
}
