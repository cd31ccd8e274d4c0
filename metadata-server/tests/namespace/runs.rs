//! Contents of large sparse files: runs of equal bytes; what no run covers is zero.

use std::collections::BTreeMap;

/// Runs by start: (end, byte), disjoint, none empty.
#[derive(Clone, Debug, Default)]
pub(crate) struct Runs(BTreeMap<u64, (u64, u8)>);

impl Runs {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let mut runs = Self::default();
        for (at, byte) in bytes.iter().enumerate() {
            runs.write(at as u64, at as u64 + 1, *byte);
        }
        runs
    }

    /// Sets `[start, end)` to `byte`.
    pub(crate) fn write(&mut self, start: u64, end: u64, byte: u8) {
        if start >= end {
            return;
        }
        self.erase(start, end);
        if byte != 0 {
            self.0.insert(start, (end, byte));
        }
    }

    fn erase(&mut self, start: u64, end: u64) {
        let touched: Vec<_> =
            self.0.range(..end).filter(|(_, run)| run.0 > start).map(|(s, r)| (*s, *r)).collect();
        for (s, (e, byte)) in touched {
            self.0.remove(&s);
            if s < start {
                self.0.insert(s, (start, byte));
            }
            if e > end {
                self.0.insert(end, (e, byte));
            }
        }
    }

    /// Forgets everything from `size` on.
    pub(crate) fn cut(&mut self, size: u64) {
        self.erase(size, u64::MAX);
    }

    /// Copies all runs of `other` over these.
    pub(crate) fn overlay(&mut self, other: &Runs) {
        for (start, (end, byte)) in &other.0 {
            self.write(*start, *end, *byte);
        }
    }

    /// The parts of the runs in `[start, end)`.
    pub(crate) fn slice(&self, start: u64, end: u64) -> Runs {
        let mut part = self.clone();
        part.erase(0, start);
        part.cut(end);
        part
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl PartialEq for Runs {
    /// Equal bytes, however they are divided.
    fn eq(&self, other: &Self) -> bool {
        let joined = |runs: &Runs| {
            let mut all: Vec<(u64, u64, u8)> = Vec::new();
            for (start, (end, byte)) in &runs.0 {
                match all.last_mut() {
                    Some(last) if last.1 == *start && last.2 == *byte => last.1 = *end,
                    _ => all.push((*start, *end, *byte)),
                }
            }
            all
        };
        joined(self) == joined(other)
    }
}

#[test]
fn later_runs_cover_earlier_ones() {
    let mut runs = Runs::of(&[1; 10]);
    runs.write(3, 5, 2);
    runs.write(8, 20, 0);
    assert_eq!(runs, Runs::of(&[1, 1, 1, 2, 2, 1, 1, 1]));
    assert_eq!(runs.slice(4, 6), {
        let mut r = Runs::default();
        r.write(4, 5, 2);
        r.write(5, 6, 1);
        r
    });
    runs.cut(0);
    assert!(runs.is_empty());
}
