//! Numbers of requests that take effect exactly once, and the low-water mark that lets servers forget them. Pure.

use protocol::mutant;
use std::collections::BTreeSet;

/// Numbers given out and not finished. The span between the low-water mark and the next number is bounded: at the
/// bound nothing more is given until the oldest is finished, because servers remember that many replies only.
#[derive(Debug)]
pub struct SequenceWindow {
    next: u64,
    outstanding: BTreeSet<u64>,
    span_max: u64,
}

impl SequenceWindow {
    /// Starts at 1. `span_max`: most numbers from the oldest unfinished one to the newest.
    pub fn new(span_max: u64) -> Self {
        Self { next: 1, outstanding: BTreeSet::new(), span_max }
    }

    /// The next number, or `None` at the bound.
    pub fn begin(&mut self) -> Option<u64> {
        if self.next - self.low_water() >= self.span_max {
            return None;
        }
        let sequence = self.next;
        self.next += 1;
        self.outstanding.insert(sequence);
        Some(sequence)
    }

    /// `sequence` has its final answer. Idempotent.
    pub fn finish(&mut self, sequence: u64) {
        self.outstanding.remove(&sequence);
    }

    /// Every number below this is finished.
    pub fn low_water(&self) -> u64 {
        let oldest = self.outstanding.first().filter(|_| !mutant!("low-water-mark-runs-ahead"));
        oldest.copied().unwrap_or(self.next)
    }

    /// Numbers without a final answer.
    pub fn outstanding(&self) -> usize {
        self.outstanding.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_low_water_mark_is_the_oldest_unfinished_number() {
        let mut window = SequenceWindow::new(100);
        assert_eq!(window.low_water(), 1);
        let numbers: Vec<u64> = (0..4).filter_map(|_| window.begin()).collect();
        assert_eq!(numbers, [1, 2, 3, 4]);
        window.finish(2);
        window.finish(3);
        assert_eq!(window.low_water(), 1);
        window.finish(1);
        assert_eq!(window.low_water(), 4);
        window.finish(4);
        window.finish(4);
        assert_eq!((window.low_water(), window.outstanding()), (5, 0));
    }

    #[test]
    fn the_span_is_bounded_by_the_oldest() {
        let mut window = SequenceWindow::new(2);
        assert_eq!((window.begin(), window.begin(), window.begin()), (Some(1), Some(2), None));
        window.finish(2);
        assert_eq!(window.begin(), None, "1 still holds it back");
        window.finish(1);
        assert_eq!((window.begin(), window.begin(), window.begin()), (Some(3), Some(4), None));
    }
}
