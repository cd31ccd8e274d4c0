//! Completed requests per session and truncation floors per inode, replicated with the operations.
//!
//! Recognising retries in the log alone would execute an old write again once the log was trimmed, so this
//! table lives beside it (DESIGN 7, rule 6).

use std::collections::BTreeMap;

use protocol::replication::{LogEntry, LogOp, Position, SessionImage, TableImage};
use protocol::{InodeId, RequestId, SessionId, mutant};

/// Sessions remembered; the one that was silent in this group for longest goes first.
pub(super) const SESSIONS_MAX: usize = 2048;
/// Completed requests remembered over all sessions, with the same rule.
pub(super) const COMPLETED_MAX: usize = 32_768;
/// Floors remembered; the oldest truncation goes first.
pub(super) const FLOORS_MAX: usize = 8192;

/// What is known about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Nothing: it is to be executed.
    New,
    /// It was ordered with this result at this sequence.
    Ordered { allocated: i64, at: u64 },
    /// The client said before that it was finished.
    Superseded,
}

#[derive(Debug, Default)]
struct SessionRecord {
    low_water: u64,
    /// Sequence in this group of the session's last operation.
    last: u64,
    /// Request number → change of allocated bytes, and the operation's sequence.
    done: BTreeMap<u64, (i64, u64)>,
}

#[derive(Debug, Default)]
pub(super) struct Table {
    sessions: BTreeMap<u64, SessionRecord>,
    floors: BTreeMap<u64, u64>,
    completed: usize,
}

impl Table {
    pub(super) fn seen(&self, request: RequestId) -> Seen {
        let Some(session) = self.sessions.get(&request.session.0) else { return Seen::New };
        match session.done.get(&request.sequence) {
            Some((allocated, at)) => Seen::Ordered { allocated: *allocated, at: *at },
            None if request.sequence < session.low_water && !mutant!("low-water-mark-ignored") => {
                Seen::Superseded
            }
            None => Seen::New,
        }
    }

    /// Least truncation sequence that operations on the inode must know.
    pub(super) fn floor(&self, inode: InodeId) -> u64 {
        self.floors.get(&inode.0).copied().unwrap_or(0)
    }

    /// Takes in an ordered operation.
    pub(super) fn record(&mut self, entry: &LogEntry) {
        if let Some(request) = entry.request {
            self.record_request(request, entry.allocated, entry.position.sequence);
        }
        if let LogOp::Trim { inode, floor, .. } = &entry.op {
            let known = self.floors.entry(inode.0).or_default();
            *known = (*known).max(*floor);
            while self.floors.len() > FLOORS_MAX {
                let oldest = self.floors.iter().min_by_key(|(_, floor)| **floor).map(|(inode, _)| *inode);
                oldest.and_then(|inode| self.floors.remove(&inode));
            }
        }
    }

    fn record_request(&mut self, request: RequestId, allocated: i64, at: u64) {
        let session = self.sessions.entry(request.session.0).or_default();
        session.last = at;
        session.low_water = session.low_water.max(request.low_water);
        let before = session.done.len();
        session.done = session.done.split_off(&session.low_water);
        session.done.insert(request.sequence, (allocated, at));
        self.completed = self.completed + session.done.len() - before;
        while self.sessions.len() > SESSIONS_MAX
            || (self.completed > COMPLETED_MAX && self.sessions.len() > 1)
        {
            let silent = self.sessions.iter().min_by_key(|(_, s)| s.last).map(|(id, _)| *id);
            let Some(gone) = silent.and_then(|id| self.sessions.remove(&id)) else { return };
            self.completed -= gone.done.len();
        }
    }

    pub(super) fn image(&self, at: Position) -> TableImage {
        let sessions = self.sessions.iter().map(|(id, session)| {
            let done = session.done.iter().map(|(number, (allocated, _))| (*number, *allocated)).collect();
            let (low_water, last) = (session.low_water, session.last);
            SessionImage { session: SessionId(*id), low_water, last, done }
        });
        let floors = self.floors.iter().map(|(inode, floor)| (*inode, *floor)).collect();
        TableImage { at, sessions: sessions.collect(), floors }
    }

    pub(super) fn from_image(image: &TableImage) -> Self {
        let at = image.at.sequence;
        let mut table = Table { floors: image.floors.iter().copied().collect(), ..Table::default() };
        for SessionImage { session, low_water, last, done } in &image.sessions {
            table.completed += done.len();
            let done = done.iter().map(|(number, allocated)| (*number, (*allocated, at))).collect();
            table.sessions.insert(session.0, SessionRecord { low_water: *low_water, last: *last, done });
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::replication::GroupObject;

    fn entry(sequence: u64, request: RequestId, allocated: i64) -> LogEntry {
        let object = GroupObject { inode: InodeId(1), chunk: 0 };
        LogEntry {
            position: Position { version: 1, sequence },
            request: Some(request),
            op: LogOp::Zero { object, cut: None, truncate_seq: 0, offset: 0, length: 1 },
            allocated,
        }
    }

    fn request(session: u64, sequence: u64, low_water: u64) -> RequestId {
        RequestId { session: SessionId(session), sequence, low_water }
    }

    #[test]
    fn a_retry_is_recognised_until_the_client_lets_go() {
        let mut table = Table::default();
        table.record(&entry(1, request(7, 10, 0), 4096));
        assert_eq!(table.seen(request(7, 10, 0)), Seen::Ordered { allocated: 4096, at: 1 });
        assert_eq!(table.seen(request(7, 11, 0)), Seen::New);
        table.record(&entry(2, request(7, 12, 11), 0));
        assert_eq!(table.seen(request(7, 10, 0)), Seen::Superseded);
        let copy = Table::from_image(&table.image(Position { version: 1, sequence: 2 }));
        assert_eq!(copy.seen(request(7, 12, 0)), Seen::Ordered { allocated: 0, at: 2 });
        assert_eq!(copy.seen(request(7, 9, 0)), Seen::Superseded);
    }

    #[test]
    fn the_table_is_bounded_by_forgetting_silent_sessions() {
        let mut table = Table::default();
        for number in 0..(COMPLETED_MAX as u64 + 10) {
            table.record(&entry(number + 1, request(number % 3000, number, 0), 0));
        }
        assert!(table.sessions.len() <= SESSIONS_MAX && table.completed <= COMPLETED_MAX);
        assert_eq!(table.completed, table.sessions.values().map(|s| s.done.len()).sum::<usize>());
    }
}
