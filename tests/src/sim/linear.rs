//! Whether a history of calls can be put into one order that explains every answer and keeps real time: the search of
//! Wing and Gong with Lowe's memory of configurations, bounded.

use std::collections::BTreeSet;

/// What calls do to a state.
pub(crate) trait Model {
    type State: Clone + Ord;
    type Op: Clone;

    /// The state after `op`, or `None` if `op` cannot have been answered as it was in `state`.
    fn step(state: &Self::State, op: &Self::Op) -> Option<Self::State>;
}

/// One call: what was asked and answered, when it began and when its answer came.
#[derive(Clone, Debug)]
pub(crate) struct Call<O> {
    pub(crate) op: O,
    pub(crate) invoked: u64,
    /// `None`: the outcome is unknown. It took effect at some time after `invoked`, or never.
    pub(crate) returned: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Linearizable,
    /// The index of a call that no order explains, among the earliest.
    Violated(usize),
    /// The bound was reached.
    Undecided,
}

/// A set of calls, as bits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Set(Vec<u64>);

impl Set {
    fn has(&self, index: usize) -> bool {
        self.0[index / 64] >> (index % 64) & 1 == 1
    }

    fn flip(&mut self, index: usize) {
        self.0[index / 64] ^= 1 << (index % 64);
    }
}

/// Looks for an order, taking at most `steps_max` steps.
pub(crate) fn check<M: Model>(calls: &[Call<M::Op>], start: &M::State, steps_max: usize) -> Verdict {
    let mut order: Vec<usize> = (0..calls.len()).collect();
    order.sort_by_key(|index| calls[*index].invoked);
    let mut search = Search::<M> {
        calls,
        order,
        taken: Set(vec![0; calls.len() / 64 + 1]),
        known_left: calls.iter().filter(|call| call.returned.is_some()).count(),
        seen: BTreeSet::new(),
        stack: Vec::new(),
        furthest: (0, 0),
    };
    search.run(start.clone(), steps_max)
}

struct Search<'a, M: Model> {
    calls: &'a [Call<M::Op>],
    /// Indexes by invocation.
    order: Vec<usize>,
    taken: Set,
    known_left: usize,
    seen: BTreeSet<(Set, M::State)>,
    /// Taken calls, with the state before and the place in `order` from which to look for another choice.
    stack: Vec<(usize, M::State, usize)>,
    /// Most calls ever explained, and the first that was not then.
    furthest: (usize, usize),
}

impl<M: Model> Search<'_, M> {
    fn run(&mut self, mut state: M::State, steps_max: usize) -> Verdict {
        let mut from = 0;
        for _ in 0..steps_max {
            if self.known_left == 0 {
                return Verdict::Linearizable;
            }
            if let Some((place, next)) = self.choose(&state, from) {
                self.take(place, std::mem::replace(&mut state, next));
                from = 0;
                continue;
            }
            let Some((place, before, again)) = self.stack.pop() else {
                return Verdict::Violated(self.furthest.1);
            };
            self.put_back(place);
            (state, from) = (before, again);
        }
        Verdict::Undecided
    }

    /// The next call that can come first among those left, at or behind `from` in the order of invocations.
    fn choose(&mut self, state: &M::State, from: usize) -> Option<(usize, M::State)> {
        let deadline = self.deadline();
        for place in from..self.order.len() {
            let index = self.order[place];
            let call = &self.calls[index];
            if call.invoked > deadline {
                break;
            }
            if self.taken.has(index) {
                continue;
            }
            if let Some(next) = M::step(state, &call.op) {
                self.taken.flip(index);
                let is_new = self.seen.insert((self.taken.clone(), next.clone()));
                self.taken.flip(index);
                if is_new {
                    return Some((place, next));
                }
            }
        }
        None
    }

    /// No call may come first that was invoked after another one left had returned.
    fn deadline(&mut self) -> u64 {
        let mut deadline = u64::MAX;
        let mut first = None;
        for index in &self.order {
            if self.calls[*index].invoked > deadline {
                break;
            }
            if !self.taken.has(*index)
                && let Some(returned) = self.calls[*index].returned
                && returned < deadline
            {
                deadline = returned;
                first = Some(*index);
            }
        }
        if let Some(first) = first
            && self.stack.len() >= self.furthest.0
        {
            self.furthest = (self.stack.len(), first);
        }
        deadline
    }

    fn take(&mut self, place: usize, before: M::State) {
        let index = self.order[place];
        self.taken.flip(index);
        self.known_left -= usize::from(self.calls[index].returned.is_some());
        self.stack.push((place, before, place + 1));
    }

    fn put_back(&mut self, place: usize) {
        let index = self.order[place];
        self.taken.flip(index);
        self.known_left += usize::from(self.calls[index].returned.is_some());
    }
}

/// A register of numbers that starts with 0.
pub(crate) struct Register;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RegisterOp {
    Write(u64),
    Read(u64),
}

impl Model for Register {
    type State = u64;
    type Op = RegisterOp;

    fn step(state: &u64, op: &RegisterOp) -> Option<u64> {
        match op {
            RegisterOp::Write(value) => Some(*value),
            RegisterOp::Read(value) => (state == value).then_some(*value),
        }
    }
}

/// An exclusive lock that sessions hold.
pub(crate) struct Lock;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LockOp {
    /// Granted to the session, at once or after a wait.
    Acquire(u64),
    /// Not granted to the session, because another one has it.
    Busy(u64),
    /// Given back by the session, whether it had it or not.
    Release(u64),
}

impl Model for Lock {
    /// The holder, 0 for nobody.
    type State = u64;
    type Op = LockOp;

    fn step(state: &u64, op: &LockOp) -> Option<u64> {
        match op {
            LockOp::Acquire(session) => (*state == 0 || state == session).then_some(*session),
            LockOp::Busy(session) => (*state != 0 && state != session).then_some(*state),
            LockOp::Release(session) => Some(if state == session { 0 } else { *state }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call<O>(op: O, invoked: u64, returned: u64) -> Call<O> {
        Call { op, invoked, returned: (returned > 0).then_some(returned) }
    }

    #[test]
    fn a_read_of_an_old_value_is_caught() {
        use RegisterOp::{Read, Write};
        let calls = [call(Write(1), 1, 2), call(Write(2), 3, 4), call(Read(1), 5, 6)];
        assert_eq!(check::<Register>(&calls, &0, 1000), Verdict::Violated(2));
        let calls = [call(Write(1), 1, 2), call(Write(2), 3, 7), call(Read(1), 5, 6)];
        assert_eq!(check::<Register>(&calls, &0, 1000), Verdict::Linearizable);
    }

    #[test]
    fn an_unknown_write_may_take_effect_late_or_never_but_not_twice() {
        use RegisterOp::{Read, Write};
        let late = [call(Write(1), 1, 0), call(Read(0), 5, 6), call(Read(1), 7, 8)];
        assert_eq!(check::<Register>(&late, &0, 1000), Verdict::Linearizable);
        let never = [call(Write(1), 1, 0), call(Read(0), 5, 6)];
        assert_eq!(check::<Register>(&never, &0, 1000), Verdict::Linearizable);
        let twice = [call(Write(1), 1, 0), call(Read(1), 5, 6), call(Write(2), 7, 8), call(Read(1), 9, 10)];
        assert_eq!(check::<Register>(&twice, &0, 1000), Verdict::Violated(3));
    }

    #[test]
    fn a_lock_with_two_holders_and_a_refusal_of_a_free_lock_are_caught() {
        use LockOp::{Acquire, Busy, Release};
        let two = [call(Acquire(1), 1, 2), call(Acquire(2), 3, 4), call(Release(1), 5, 6)];
        assert!(matches!(check::<Lock>(&two, &0, 1000), Verdict::Violated(_)));
        let free = [call(Acquire(1), 1, 2), call(Release(1), 3, 4), call(Busy(2), 5, 6)];
        assert!(matches!(check::<Lock>(&free, &0, 1000), Verdict::Violated(_)));
        let fair = [call(Acquire(1), 1, 2), call(Release(1), 5, 9), call(Acquire(2), 3, 8)];
        assert_eq!(check::<Lock>(&fair, &0, 1000), Verdict::Linearizable);
    }

    #[test]
    fn many_calls_at_once_are_decided() {
        let mut calls = Vec::new();
        for round in 0..100u64 {
            for client in 0..5 {
                let value = round * 10 + client + 1;
                calls.push(call(RegisterOp::Write(value), round * 10, round * 10 + 9));
            }
            calls.push(call(RegisterOp::Read(round * 10 + 3), round * 10 + 1, round * 10 + 9));
        }
        assert_eq!(check::<Register>(&calls, &0, 100_000), Verdict::Linearizable);
    }
}
