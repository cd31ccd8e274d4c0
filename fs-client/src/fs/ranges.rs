//! A set of byte ranges. Pure.

/// Ranges that do not touch each other, in order. Bounds are inclusive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Adds `start..=end`.
    pub(crate) fn add(&mut self, start: u64, end: u64) {
        let touches = |&(s, e): &(u64, u64)| s <= end.saturating_add(1) && start <= e.saturating_add(1);
        let (mut low, mut high) = (start, end);
        for &(s, e) in self.0.iter().filter(|range| touches(range)) {
            low = low.min(s);
            high = high.max(e);
        }
        self.0.retain(|range| !touches(range));
        let at = self.0.partition_point(|&(s, _)| s < low);
        self.0.insert(at, (low, high));
    }

    /// Takes `start..=end` away.
    pub(crate) fn remove(&mut self, start: u64, end: u64) {
        let mut left = Vec::with_capacity(self.0.len() + 1);
        for &(s, e) in &self.0 {
            if s < start {
                left.push((s, e.min(start - 1)));
            }
            if e > end {
                left.push((s.max(end + 1), e));
            }
        }
        self.0 = left;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn neighbours_merge_and_holes_split() {
        let mut ranges = Ranges::default();
        ranges.add(0, 9);
        ranges.add(10, 19);
        assert_eq!(ranges, Ranges(vec![(0, 19)]));
        ranges.remove(5, 6);
        assert_eq!(ranges, Ranges(vec![(0, 4), (7, 19)]));
        ranges.remove(0, u64::MAX);
        assert!(ranges.is_empty());
    }

    proptest! {
        #[test]
        fn it_is_a_set(steps in prop::collection::vec((any::<bool>(), 0_u64..40, 0_u64..40), 1..30)) {
            let mut ranges = Ranges::default();
            let mut model = std::collections::BTreeSet::new();
            for (add, a, b) in steps {
                let (start, end) = (a.min(b), a.max(b));
                if add {
                    ranges.add(start, end);
                    model.extend(start..=end);
                } else {
                    ranges.remove(start, end);
                    model.retain(|x| !(start..=end).contains(x));
                }
                let all: std::collections::BTreeSet<u64> = ranges.0.iter().flat_map(|&(s, e)| s..=e).collect();
                prop_assert_eq!(&all, &model);
                prop_assert!(ranges.0.windows(2).all(|w| w[0].1 + 1 < w[1].0), "{:?}", ranges);
            }
        }
    }
}
