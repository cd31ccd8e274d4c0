//! Heartbeat rounds: what proves that a leader still leads, for its lease and for read indexes.

use std::collections::VecDeque;

use crate::{Tick, Zxid, mutant};

/// Rounds that wait for a quorum. With more outstanding, reads share the next one.
const ROUNDS_MAX: usize = 256;

/// A read that waits for the confirmation of a round begun after it was asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PendingRead {
    pub(crate) request: u64,
    pub(crate) zxid: Zxid,
    round: u64,
}

/// The rounds of one leadership.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rounds {
    last: u64,
    /// Begun and not confirmed: (round, when it was begun).
    outstanding: VecDeque<(u64, Tick)>,
    confirmed: u64,
    /// When the newest confirmed round was begun. Counting from then, not from the acks' arrival, is what makes the
    /// lease end before the followers' guards do.
    confirmed_at: Option<Tick>,
    reads: VecDeque<PendingRead>,
}

impl Rounds {
    /// Begins a round unless too many wait already.
    pub(crate) fn begin(&mut self, now: Tick) -> Option<u64> {
        if self.outstanding.len() >= ROUNDS_MAX {
            return None;
        }
        self.last += 1;
        self.outstanding.push_back((self.last, now));
        Some(self.last)
    }

    /// A quorum acknowledged everything up to `round`.
    pub(crate) fn confirm(&mut self, round: u64) {
        while let Some((begun, at)) = self.outstanding.front().copied()
            && begun <= round
        {
            self.outstanding.pop_front();
            self.confirmed = begun;
            self.confirmed_at = Some(at);
        }
    }

    /// When the newest confirmed round was begun.
    pub(crate) fn confirmed_at(&self) -> Option<Tick> {
        self.confirmed_at
    }

    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    /// Registers a read of the state up to `zxid`.
    pub(crate) fn read(&mut self, request: u64, zxid: Zxid) {
        let round = if mutant!("read-joins-an-older-round") { self.last } else { self.last + 1 };
        self.reads.push_back(PendingRead { request, zxid, round });
    }

    pub(crate) fn waiting_reads(&self) -> usize {
        self.reads.len()
    }

    /// Whether a read waits for a round that has not begun.
    pub(crate) fn is_round_wanted(&self) -> bool {
        self.reads.back().is_some_and(|read| read.round > self.last)
    }

    /// Takes the oldest read that may be answered when everything up to `delivered` is in the state.
    pub(crate) fn pop_ready(&mut self, delivered: Zxid) -> Option<PendingRead> {
        let ready =
            self.reads.front().is_some_and(|read| read.round <= self.confirmed && read.zxid <= delivered);
        if ready { self.reads.pop_front() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_waits_for_a_round_begun_after_it() {
        let mut rounds = Rounds::default();
        let first = rounds.begin(10).expect("room");
        rounds.read(7, Zxid::ZERO);
        rounds.confirm(first);
        assert!(rounds.pop_ready(Zxid::ZERO).is_none(), "that round was begun before the read");
        assert!(rounds.is_round_wanted());
        let second = rounds.begin(20).expect("room");
        assert!(!rounds.is_round_wanted());
        rounds.confirm(second);
        assert_eq!(rounds.pop_ready(Zxid::ZERO).map(|read| read.request), Some(7));
    }

    #[test]
    fn the_lease_counts_from_the_beginning_of_the_round() {
        let mut rounds = Rounds::default();
        rounds.begin(10);
        rounds.begin(60);
        rounds.confirm(1);
        assert_eq!(rounds.confirmed_at(), Some(10));
        rounds.confirm(2);
        assert_eq!(rounds.confirmed_at(), Some(60));
    }

    #[test]
    fn outstanding_rounds_are_bounded() {
        let mut rounds = Rounds::default();
        assert_eq!((0..1000).filter(|now| rounds.begin(*now).is_some()).count(), ROUNDS_MAX);
    }
}
