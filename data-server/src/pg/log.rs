//! The operation log of a group: which operations this store executed last, without their bytes.
//!
//! It tells a member that returns what changed while it was away, and a new primary who is ahead of whom.
//! Positions are dense in their sequence, and two logs with an equal position are equal up to it (one primary
//! per configuration version orders behind a log that it holds whole).

use std::collections::VecDeque;

use protocol::replication::{LogEntry, Position, Run, Unit};

/// The log: everything after `floor`.
#[derive(Debug, Default)]
pub(super) struct OpLog {
    floor: Position,
    entries: VecDeque<LogEntry>,
}

impl OpLog {
    pub(super) fn new(floor: Position) -> Self {
        Self { floor, entries: VecDeque::new() }
    }

    /// Position before the first entry.
    pub(super) fn floor(&self) -> Position {
        self.floor
    }

    /// Position of the last entry.
    pub(super) fn head(&self) -> Position {
        self.entries.back().map_or(self.floor, |entry| entry.position)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn append(&mut self, entry: LogEntry) {
        assert_eq!(entry.position.sequence, self.head().sequence + 1, "sequences are dense");
        self.entries.push_back(entry);
    }

    /// Forgets the oldest entries.
    pub(super) fn trim(&mut self, count: usize) {
        for entry in self.entries.drain(..count.min(self.entries.len())) {
            self.floor = entry.position;
        }
    }

    pub(super) fn last_mut(&mut self) -> Option<&mut LogEntry> {
        self.entries.back_mut()
    }

    fn at(&self, sequence: u64) -> Option<Position> {
        match sequence.checked_sub(self.floor.sequence)? {
            0 => Some(self.floor),
            index => self.entries.get(index as usize - 1).map(|entry| entry.position),
        }
    }

    pub(super) fn contains(&self, position: Position) -> bool {
        self.at(position.sequence) == Some(position)
    }

    /// Entries behind a sequence that is not below the floor.
    pub(super) fn after(&self, sequence: u64) -> impl Iterator<Item = &LogEntry> + Clone {
        let skip = sequence.saturating_sub(self.floor.sequence) as usize;
        self.entries.iter().skip(skip)
    }

    /// The last entries, at most `count`, and the position before them.
    pub(super) fn end(&self, count: usize) -> (Position, Vec<LogEntry>) {
        let skip = self.entries.len().saturating_sub(count);
        let floor = skip.checked_sub(1).map_or(self.floor, |before| self.entries[before].position);
        (floor, self.entries.iter().skip(skip).cloned().collect())
    }

    /// What the entries behind a sequence touched.
    pub(super) fn units_after(&self, sequence: u64) -> impl Iterator<Item = Unit> {
        self.after(sequence).map(|entry| entry.op.unit())
    }

    /// The log as stretches of equal versions.
    pub(super) fn runs(&self) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for entry in &self.entries {
            let Position { version, sequence } = entry.position;
            if runs.last().is_none_or(|run| run.version != version) {
                runs.push(Run { version, first: sequence });
            }
        }
        runs
    }

    /// The last position that this log and another one share.
    pub(super) fn common(&self, other: &LogOutline<'_>) -> Option<Position> {
        let from = self.floor.sequence.max(other.floor.sequence);
        let to = self.head().sequence.min(other.head.sequence);
        (from..=to).rev().find_map(|sequence| {
            let mine = self.at(sequence)?;
            (other.at(sequence) == Some(mine)).then_some(mine)
        })
    }
}

/// Another member's log as its `Hello` describes it.
#[derive(Clone, Copy, Debug)]
pub(super) struct LogOutline<'a> {
    pub(super) floor: Position,
    pub(super) head: Position,
    pub(super) runs: &'a [Run],
}

impl LogOutline<'_> {
    fn at(&self, sequence: u64) -> Option<Position> {
        if sequence == self.floor.sequence {
            return Some(self.floor);
        }
        if sequence < self.floor.sequence || sequence > self.head.sequence {
            return None;
        }
        let run = self.runs.iter().rev().find(|run| run.first <= sequence)?;
        Some(Position { version: run.version, sequence })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::InodeId;
    use protocol::replication::{GroupObject, LogOp};

    fn log(floor: (u64, u64), versions: &[u64]) -> OpLog {
        let floor = Position { version: floor.0, sequence: floor.1 };
        let mut log = OpLog::new(floor);
        for version in versions {
            let object = GroupObject { inode: InodeId(1), chunk: 0 };
            log.append(LogEntry {
                position: Position { version: *version, sequence: log.head().sequence + 1 },
                request: None,
                op: LogOp::Zero { object, cut: None, truncate_seq: 0, offset: 0, length: 1 },
                allocated: 0,
            });
        }
        log
    }

    fn common(a: &OpLog, b: &OpLog) -> Option<(u64, u64)> {
        let runs = b.runs();
        let outline = LogOutline { floor: b.floor(), head: b.head(), runs: &runs };
        a.common(&outline).map(|p| (p.version, p.sequence))
    }

    #[test]
    fn logs_agree_up_to_where_their_primaries_parted() {
        let a = log((0, 0), &[1, 1, 1, 4]);
        assert_eq!(common(&a, &log((0, 0), &[1, 1, 3, 3, 3])), Some((1, 2)));
        assert_eq!(common(&a, &log((1, 2), &[1, 4, 4])), Some((4, 4)));
        assert_eq!(common(&a, &log((3, 3), &[3])), None);
        assert_eq!(common(&a, &log((4, 9), &[])), None);
        assert_eq!(common(&log((0, 0), &[]), &a), Some((0, 0)));
    }
}
