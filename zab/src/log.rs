//! The history in memory: everything of the durable log, plus what is on its way to disk.
//!
//! Invariants: entries are neighbours (`Zxid::follows`), the first follows `start`; `start` itself is a position of
//! the history whose entry was purged (or replaced by a snapshot). Entries of one epoch are the same in every log,
//! and so is everything before them, because one leader proposed them in order; the common prefix of two logs
//! therefore ends at the smaller end of the newest epoch that both contain.

use std::collections::VecDeque;

use crate::{Entry, Membership, Payload, Zxid, mutant};

/// Fixed cost of an entry in every byte bound, so that empty transactions are bounded too.
const ENTRY_OVERHEAD_BYTES: u64 = 64;

#[derive(Clone, Debug)]
struct Slot {
    entry: Entry,
    /// Bytes of all entries ever pushed up to and including this one.
    end: u64,
}

/// The history after `start`.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    start: Zxid,
    start_end: u64,
    slots: VecDeque<Slot>,
    /// The changes of the membership among the entries, oldest first.
    memberships: VecDeque<(Zxid, Membership)>,
}

/// An entry that is not the neighbour of the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotContiguous;

impl Log {
    pub(crate) fn new(start: Zxid) -> Log {
        Log { start, start_end: 0, slots: VecDeque::new(), memberships: VecDeque::new() }
    }

    /// The position before the first entry.
    pub(crate) fn start(&self) -> Zxid {
        self.start
    }

    /// The last position.
    pub(crate) fn last(&self) -> Zxid {
        self.slots.back().map_or(self.start, |slot| slot.entry.zxid)
    }

    /// Bytes held, overheads included.
    pub(crate) fn bytes(&self) -> u64 {
        self.slots.back().map_or(0, |slot| slot.end - self.start_end)
    }

    /// Whether `zxid` is a position of this history, `start` included.
    pub(crate) fn contains(&self, zxid: Zxid) -> bool {
        self.index_after(zxid).is_some()
    }

    /// The only way into the history.
    pub(crate) fn push(&mut self, entry: Entry) -> Result<(), NotContiguous> {
        if !entry.zxid.follows(self.last()) && !mutant!("log-with-holes") {
            return Err(NotContiguous);
        }
        let end = self.slots.back().map_or(self.start_end, |slot| slot.end) + size(&entry);
        if let Payload::Membership(membership) = &entry.payload {
            self.memberships.push_back((entry.zxid, (**membership).clone()));
        }
        self.slots.push_back(Slot { entry, end });
        Ok(())
    }

    /// Drops everything after `zxid`, which must be contained.
    pub(crate) fn truncate_after(&mut self, zxid: Zxid) {
        let keep = self.index_after(zxid).expect("the caller checked that the new end is in the log");
        self.slots.truncate(keep);
        // The membership before a change that is cut is in force again.
        self.memberships.retain(|(at, _)| *at <= zxid);
    }

    /// Drops everything up to and including `zxid`, which must be contained.
    pub(crate) fn purge_to(&mut self, zxid: Zxid) {
        let drop = self.index_after(zxid).expect("the caller checked that the new start is in the log");
        if drop > 0 {
            self.start_end = self.slots[drop - 1].end;
            self.slots.drain(..drop);
            self.start = zxid;
            self.memberships.retain(|(at, _)| *at > zxid);
        }
    }

    /// The changes of the membership in this history, newest first.
    pub(crate) fn memberships(&self) -> impl Iterator<Item = (Zxid, &Membership)> {
        self.memberships.iter().rev().map(|(zxid, membership)| (*zxid, membership))
    }

    /// The history is now what a snapshot at `zxid` contains.
    pub(crate) fn reset(&mut self, zxid: Zxid) {
        *self = Log::new(zxid);
    }

    /// Bytes of the entries after `from` up to `to`; positions before `start` count as `start`.
    pub(crate) fn bytes_between(&self, from: Zxid, to: Zxid) -> u64 {
        self.end_of(to).saturating_sub(self.end_of(from))
    }

    /// The entries after `from` up to `to`: as many as fit into `bytes_max`, at least one if there is one.
    /// `None` if `from` is not a position of this history.
    pub(crate) fn entries_after(&self, from: Zxid, to: Zxid, bytes_max: u64) -> Option<Vec<Entry>> {
        let first = self.index_after(from)?;
        let base = self.end_of(from);
        let fits = |slot: &&Slot| slot.entry.zxid <= to && slot.end - base <= bytes_max;
        let mut entries: Vec<Entry> =
            self.slots.range(first..).take_while(fits).map(|slot| slot.entry.clone()).collect();
        if entries.is_empty() {
            entries
                .extend(self.slots.get(first).filter(|slot| slot.entry.zxid <= to).map(|s| s.entry.clone()));
        }
        Some(entries)
    }

    /// The entry directly after `zxid`, if `zxid` is contained and not the last.
    pub(crate) fn entry_after(&self, zxid: Zxid) -> Option<&Entry> {
        self.slots.get(self.index_after(zxid)?).map(|slot| &slot.entry)
    }

    /// How many entries are after `from` up to `to`.
    pub(crate) fn count_between(&self, from: Zxid, to: Zxid) -> usize {
        self.upper_bound(to).saturating_sub(self.upper_bound(from))
    }

    /// The position furthest back from `upto` such that at most `bytes` lie between them.
    pub(crate) fn back_from(&self, upto: Zxid, bytes: u64) -> Zxid {
        let floor = self.end_of(upto).saturating_sub(bytes);
        if floor <= self.start_end {
            return self.start;
        }
        let index = self.slots.partition_point(|slot| slot.end < floor);
        self.slots.get(index).map_or(upto, |slot| slot.entry.zxid.min(upto))
    }

    /// The last position of each epoch, newest first, ending with `start`. At most `max` positions.
    pub(crate) fn tails(&self, max: usize) -> Vec<Zxid> {
        let mut tails = Vec::new();
        let mut end = self.slots.len();
        while end > 0 && tails.len() + 1 < max {
            let tail = self.slots[end - 1].entry.zxid;
            tails.push(tail);
            end = self.slots.partition_point(|slot| slot.entry.zxid.epoch < tail.epoch);
        }
        tails.push(self.start);
        tails
    }

    /// The last position that this history shares with one whose `tails` are given, if that is not before `start`.
    pub(crate) fn common_with(&self, tails: &[Zxid]) -> Option<Zxid> {
        tails
            .iter()
            .find_map(|theirs| self.tail_of(theirs.epoch).map(|ours| ours.min(*theirs)))
            .filter(|common| *common >= self.start)
    }

    /// The last position within `epoch`.
    fn tail_of(&self, epoch: u64) -> Option<Zxid> {
        let end = self.slots.partition_point(|slot| slot.entry.zxid.epoch <= epoch);
        let tail = if end == 0 { self.start } else { self.slots[end - 1].entry.zxid };
        (tail.epoch == epoch).then_some(tail)
    }

    fn upper_bound(&self, zxid: Zxid) -> usize {
        // Counters of one epoch are dense, so most positions are where their distance from the end says.
        if let Some(last) = self.slots.back().map(|slot| slot.entry.zxid)
            && last.epoch == zxid.epoch
        {
            let back = usize::try_from(last.counter.saturating_sub(zxid.counter)).unwrap_or(usize::MAX);
            let index = self.slots.len().checked_sub(back);
            let is_there = |index: &usize| *index > 0 && self.slots[index - 1].entry.zxid <= zxid;
            if let Some(index) = index.filter(is_there) {
                return index;
            }
        }
        self.slots.partition_point(|slot| slot.entry.zxid <= zxid)
    }

    fn index_after(&self, zxid: Zxid) -> Option<usize> {
        let index = self.upper_bound(zxid);
        let at = if index == 0 { self.start } else { self.slots[index - 1].entry.zxid };
        (at == zxid).then_some(index)
    }

    fn end_of(&self, zxid: Zxid) -> u64 {
        match self.upper_bound(zxid) {
            0 => self.start_end,
            index => self.slots[index - 1].end,
        }
    }
}

/// What an entry counts in byte bounds.
pub(crate) fn size(entry: &Entry) -> u64 {
    match &entry.payload {
        Payload::Txn(txn) => txn.len() as u64 + ENTRY_OVERHEAD_BYTES,
        Payload::Membership(membership) => {
            ENTRY_OVERHEAD_BYTES * (1 + membership.members().count() + membership.removed.len()) as u64
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn log(start: Zxid, zxids: &[(u64, u64)]) -> Log {
        let mut log = Log::new(start);
        for (epoch, counter) in zxids {
            let entry = Entry::txn(Zxid::new(*epoch, *counter), Bytes::from_static(b"0123456789"));
            log.push(entry).expect("neighbours");
        }
        log
    }

    #[test]
    fn a_hole_is_refused() {
        let mut log = log(Zxid::ZERO, &[(1, 1), (1, 2)]);
        let entry = |epoch, counter| Entry::txn(Zxid::new(epoch, counter), Bytes::new());
        assert_eq!(log.push(entry(1, 4)), Err(NotContiguous));
        assert_eq!(log.push(entry(1, 2)), Err(NotContiguous));
        assert_eq!(log.push(entry(2, 2)), Err(NotContiguous));
        assert_eq!(log.push(entry(3, 1)), Ok(()));
    }

    #[test]
    fn tails_name_the_end_of_each_epoch() {
        let log = log(Zxid::new(1, 4), &[(1, 5), (1, 6), (3, 1), (4, 1), (4, 2)]);
        let z = Zxid::new;
        assert_eq!(log.tails(64), vec![z(4, 2), z(3, 1), z(1, 6), z(1, 4)]);
        assert_eq!(log.tails(2), vec![z(4, 2), z(1, 4)]);
    }

    #[test]
    fn the_common_prefix_is_the_smaller_end_of_the_newest_shared_epoch() {
        let ours = log(Zxid::ZERO, &[(1, 1), (1, 2), (1, 3), (3, 1)]);
        let z = Zxid::new;
        assert_eq!(ours.common_with(&[z(1, 9), z(0, 0)]), Some(z(1, 3)));
        assert_eq!(ours.common_with(&[z(2, 4), z(1, 2), z(0, 0)]), Some(z(1, 2)));
        assert_eq!(ours.common_with(&[z(3, 1), z(1, 3), z(0, 0)]), Some(z(3, 1)));
        assert_eq!(ours.common_with(&[z(2, 4), z(0, 0)]), Some(z(0, 0)));
    }

    #[test]
    fn a_common_prefix_before_the_start_needs_a_snapshot() {
        let mut ours = log(Zxid::ZERO, &[(1, 1), (1, 2), (1, 3), (3, 1)]);
        ours.purge_to(Zxid::new(1, 2));
        assert_eq!(ours.common_with(&[Zxid::new(1, 1), Zxid::ZERO]), None);
        assert_eq!(ours.common_with(&[Zxid::ZERO]), None);
        assert_eq!(ours.common_with(&[Zxid::new(1, 2), Zxid::ZERO]), Some(Zxid::new(1, 2)));
    }

    #[test]
    fn batches_respect_the_byte_bound_but_always_move() {
        let log = log(Zxid::ZERO, &[(1, 1), (1, 2), (1, 3)]);
        let last = log.last();
        assert_eq!(log.entries_after(Zxid::ZERO, last, 150).expect("known").len(), 2);
        assert_eq!(log.entries_after(Zxid::ZERO, last, 1).expect("known").len(), 1);
        assert_eq!(log.entries_after(last, last, 1).expect("known").len(), 0);
        assert!(log.entries_after(Zxid::new(1, 7), last, 1).is_none());
        assert_eq!(log.bytes_between(Zxid::ZERO, last), log.bytes());
    }

    #[test]
    fn the_retained_window_is_bounded_in_bytes() {
        let log = log(Zxid::ZERO, &[(1, 1), (1, 2), (1, 3), (1, 4)]);
        assert_eq!(log.back_from(Zxid::new(1, 3), 74), Zxid::new(1, 2));
        assert_eq!(log.back_from(Zxid::new(1, 3), 0), Zxid::new(1, 3));
        assert_eq!(log.back_from(Zxid::new(1, 3), 10_000), Zxid::ZERO);
    }

    #[test]
    fn memberships_come_and_go_with_their_entries() {
        let mut log = log(Zxid::ZERO, &[(1, 1)]);
        for (counter, version) in [(2, 2), (3, 3)] {
            let membership = Membership { version, ..Membership::default() };
            log.push(Entry::membership(Zxid::new(1, counter), membership)).expect("neighbours");
        }
        let versions = |log: &Log| log.memberships().map(|(_, one)| one.version).collect::<Vec<u64>>();
        assert_eq!(versions(&log), vec![3, 2]);
        log.truncate_after(Zxid::new(1, 2));
        assert_eq!(versions(&log), vec![2]);
        log.purge_to(Zxid::new(1, 2));
        assert!(versions(&log).is_empty());
    }

    #[test]
    fn truncation_and_purge_move_the_ends() {
        let mut log = log(Zxid::ZERO, &[(1, 1), (1, 2), (1, 3), (2, 1)]);
        log.purge_to(Zxid::new(1, 1));
        log.truncate_after(Zxid::new(1, 3));
        assert_eq!((log.start(), log.last(), log.slots.len()), (Zxid::new(1, 1), Zxid::new(1, 3), 2));
        log.reset(Zxid::new(5, 5));
        assert_eq!((log.start(), log.last(), log.bytes()), (Zxid::new(5, 5), Zxid::new(5, 5), 0));
    }
}
