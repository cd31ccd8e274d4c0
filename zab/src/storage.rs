//! What is on its way to disk: one ordered stream of operations, each with a token.
//!
//! This is where "durability order is data" lives: whoever waits for a write compares its token with what
//! `handle_durable` reported, and nobody else can claim that something is on disk.

use std::collections::VecDeque;

use crate::{SnapshotDescriptor, Tick, Zxid};

/// What becomes true when an operation is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// The log on disk ends here (also for operations that leave it alone).
    LogEndsAt(Zxid),
    /// As before, and the record names a membership of this version.
    Recorded { end: Zxid, version: u64 },
    /// The snapshot replaced history and state.
    Installed { snapshot: SnapshotDescriptor, version: u64 },
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    token: u64,
    issued: Tick,
    effect: Effect,
}

/// The stream. Bounded by what the roles bound: proposals in flight, and one operation per protocol step.
#[derive(Clone, Debug)]
pub(crate) struct Storage {
    last_token: u64,
    pending: VecDeque<Pending>,
    /// When something was last issued or completed.
    active_at: Tick,
    /// When something was last completed.
    completed_at: Tick,
}

impl Storage {
    pub(crate) fn new(now: Tick) -> Storage {
        Storage { last_token: 0, pending: VecDeque::new(), active_at: now, completed_at: now }
    }

    /// A token for an operation that is issued now.
    pub(crate) fn issue(&mut self, effect: Effect, now: Tick) -> u64 {
        self.last_token += 1;
        self.active_at = now;
        self.pending.push_back(Pending { token: self.last_token, issued: now, effect });
        self.last_token
    }

    /// Takes the oldest operation that is complete now that everything up to `token` is durable.
    pub(crate) fn complete(&mut self, token: u64, now: Tick) -> Option<Effect> {
        if self.pending.front()?.token > token {
            return None;
        }
        self.active_at = now;
        self.completed_at = now;
        self.pending.pop_front().map(|pending| pending.effect)
    }

    /// Appends that are on their way will be cut again: nothing beyond `after` will be the durable end.
    pub(crate) fn clamp(&mut self, after: Zxid) {
        for pending in &mut self.pending {
            if let Effect::LogEndsAt(end) | Effect::Recorded { end, .. } = &mut pending.effect {
                *end = (*end).min(after);
            }
        }
    }

    /// Whether everything up to `token` is durable.
    pub(crate) fn is_durable(&self, token: u64) -> bool {
        self.pending.front().is_none_or(|oldest| oldest.token > token)
    }

    /// Whether nothing is on its way.
    pub(crate) fn is_idle(&self) -> bool {
        self.pending.is_empty()
    }

    /// Whether the oldest operation waits for `stall_ms` or more.
    pub(crate) fn is_stalled(&self, stall_ms: u64, now: Tick) -> bool {
        // Measured from the later of its issue and the last completion: a long queue that moves is no stall.
        self.stall_at(stall_ms).is_some_and(|at| now >= at)
    }

    /// When the oldest operation will count as stalled.
    pub(crate) fn stall_at(&self, stall_ms: u64) -> Option<Tick> {
        self.pending.front().map(|oldest| oldest.issued.max(self.completed_at).saturating_add(stall_ms))
    }

    /// When an idle disk is due for a probe.
    pub(crate) fn probe_at(&self, probe_ms: u64) -> Option<Tick> {
        self.is_idle().then(|| self.active_at.saturating_add(probe_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_complete_in_order() {
        let mut storage = Storage::new(0);
        let z = Zxid::new(1, 1);
        let first = storage.issue(Effect::LogEndsAt(Zxid::ZERO), 0);
        let second = storage.issue(Effect::LogEndsAt(z), 0);
        assert!(!storage.is_durable(first));
        assert_eq!(storage.complete(first, 1), Some(Effect::LogEndsAt(Zxid::ZERO)));
        assert_eq!(storage.complete(first, 1), None);
        assert!(storage.is_durable(first) && !storage.is_durable(second));
        assert_eq!(storage.complete(second, 1), Some(Effect::LogEndsAt(z)));
        assert!(storage.is_idle());
    }

    #[test]
    fn a_queue_that_moves_is_no_stall() {
        let mut storage = Storage::new(0);
        for _ in 0..3 {
            storage.issue(Effect::LogEndsAt(Zxid::ZERO), 0);
        }
        assert!(storage.is_stalled(100, 100));
        storage.complete(1, 100);
        assert!(!storage.is_stalled(100, 150));
        assert!(storage.is_stalled(100, 200));
    }

    #[test]
    fn a_cut_append_never_becomes_the_durable_end() {
        let mut storage = Storage::new(0);
        storage.issue(Effect::LogEndsAt(Zxid::new(1, 9)), 0);
        storage.clamp(Zxid::new(1, 4));
        assert_eq!(storage.complete(1, 0), Some(Effect::LogEndsAt(Zxid::new(1, 4))));
    }
}
