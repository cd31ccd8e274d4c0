//! Which requests are unanswered, which operations go on although their request was answered, and whom to look
//! at for a fatal signal. No I/O and no clock: `now` is an argument.

use super::interrupt::Interrupt;
use super::operation::{Operation, RequestHeader};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Most INTERRUPTs that are kept for requests that are not registered yet; the oldest goes first. Almost all of
/// them are for requests that were answered meanwhile.
pub const EARLY_MAX: usize = 1024;
/// Most operations that go on for callers that are gone. At the bound new requests get EAGAIN, except those that
/// give something back (RELEASE, RELEASEDIR, FLUSH).
pub const ABANDONED_MAX: usize = 4096;
/// From this age on, the caller of a READ or WRITE is looked at even without an INTERRUPT: in asynchronous direct
/// I/O the kernel waits uninterruptibly and sends none.
pub const WATCH_AFTER: Duration = Duration::from_millis(500);

/// The table, shared with whoever shows it (`.zabfs/waiting`). One thread only.
#[derive(Clone, Debug, Default)]
pub struct Waiting(Rc<RefCell<Table>>);

#[derive(Debug, Default)]
struct Table {
    in_flight: BTreeMap<u64, Pending>,
    abandoned: BTreeMap<u64, Pending>,
    early: Early,
    /// Where the last look at callers ended.
    cursor: u64,
}

/// One request, as shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InFlight {
    /// The kernel's name of the operation.
    pub operation: &'static str,
    /// Its inode.
    pub node: u64,
    /// Thread id of its caller.
    pub pid: u32,
    /// Since it came.
    pub age: Duration,
    /// Its caller was sent away with EINTR or ETIMEDOUT; the operation goes on.
    pub abandoned: bool,
}

/// One request, as kept.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub(super) name: &'static str,
    pub(super) opcode: u32,
    pub(super) header: RequestHeader,
    started: Instant,
    interrupt: Interrupt,
    signalled: Option<Instant>,
    patience: Patience,
    /// Process of the caller, once it was seen.
    process: Option<u32>,
}

/// When a caller is let go before its operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Patience {
    /// Nobody waits for the answer (RELEASE), or an early one would report the loss of data that is not lost
    /// (writeback of mapped pages): only the request timeout applies.
    Endless,
    /// When a fatal signal is pending after an INTERRUPT.
    UntilKilled,
    /// The same, and without an INTERRUPT too once it is old.
    Watched,
}

/// A caller to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Suspect {
    pub(super) unique: u64,
    pub(super) pid: u32,
    /// Process of the caller, once it was seen.
    pub(super) process: Option<u32>,
    /// How long ago an INTERRUPT came; `None`: none did.
    pub(super) signalled_for: Option<Duration>,
}

/// What an INTERRUPT met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signalled {
    /// Look at the caller now.
    Look(Suspect),
    /// Nothing to do, or the operation answers signals itself and has until the next patrol.
    Later,
}

/// What became of the request when its operation ended.
#[derive(Debug)]
pub(super) enum Finished {
    /// It is still unanswered.
    Unanswered(Pending),
    /// It was answered before; the reply must be undone.
    Abandoned(Pending),
}

impl Waiting {
    /// Every unanswered request and every abandoned operation, oldest first.
    pub fn list(&self, now: Instant) -> Vec<InFlight> {
        let table = self.0.borrow();
        let show = |pending: &Pending, abandoned| InFlight {
            operation: pending.name,
            node: pending.header.node,
            pid: pending.header.pid,
            age: now.saturating_duration_since(pending.started),
            abandoned,
        };
        let mut all: Vec<InFlight> = table.in_flight.values().map(|pending| show(pending, false)).collect();
        all.extend(table.abandoned.values().map(|pending| show(pending, true)));
        all.sort_by_key(|entry| std::cmp::Reverse(entry.age));
        all
    }

    /// Requests without an answer.
    pub fn in_flight(&self) -> usize {
        self.0.borrow().in_flight.len()
    }

    /// Operations that go on although their request was answered.
    pub fn abandoned(&self) -> usize {
        self.0.borrow().abandoned.len()
    }

    /// Whether `operation` must be refused because too many abandoned ones go on.
    pub(super) fn is_full_for(&self, operation: &Operation) -> bool {
        self.abandoned() >= ABANDONED_MAX
            && !matches!(
                operation,
                Operation::Release { .. } | Operation::ReleaseDir { .. } | Operation::Flush { .. }
            )
    }

    /// Registers a request; its INTERRUPT may have come already.
    pub(super) fn register(
        &self,
        header: RequestHeader,
        operation: &Operation,
        opcode: u32,
        now: Instant,
    ) -> Interrupt {
        let mut table = self.0.borrow_mut();
        let interrupt = Interrupt::new();
        let early = table.early.take(header.unique);
        if early {
            interrupt.signal();
        }
        let pending = Pending {
            name: operation.name(),
            opcode,
            header,
            started: now,
            interrupt: interrupt.clone(),
            signalled: early.then_some(now),
            patience: patience(operation),
            process: None,
        };
        table.in_flight.insert(header.unique, pending);
        interrupt
    }

    /// An INTERRUPT for `unique` came.
    pub(super) fn signal(&self, unique: u64, now: Instant) -> Signalled {
        let mut table = self.0.borrow_mut();
        let Some(pending) = table.in_flight.get_mut(&unique) else {
            table.early.keep(unique);
            return Signalled::Later;
        };
        pending.signalled.get_or_insert(now);
        let heard = pending.interrupt.is_heard();
        pending.interrupt.signal();
        if heard || pending.patience == Patience::Endless {
            return Signalled::Later;
        }
        Signalled::Look(pending.suspect(now))
    }

    /// The operation of `unique` ended. `None`: the mount ended before.
    pub(super) fn finish(&self, unique: u64) -> Option<Finished> {
        let mut table = self.0.borrow_mut();
        if let Some(pending) = table.in_flight.remove(&unique) {
            return Some(Finished::Unanswered(pending));
        }
        table.abandoned.remove(&unique).map(Finished::Abandoned)
    }

    /// The request is about to be answered without its operation, which goes on.
    pub(super) fn abandon(&self, unique: u64) -> Option<Pending> {
        let mut table = self.0.borrow_mut();
        let pending = table.in_flight.remove(&unique)?;
        table.abandoned.insert(unique, pending.clone());
        drop(table);
        pending.interrupt.abandon();
        Some(pending)
    }

    /// Abandons everything: the mount is gone.
    pub(super) fn abandon_all(&self) {
        let all: Vec<u64> = self.0.borrow().in_flight.keys().copied().collect();
        all.into_iter().for_each(|unique| drop(self.abandon(unique)));
    }

    /// Requests that are as old as `timeout`.
    pub(super) fn overdue(&self, timeout: Duration, now: Instant) -> Vec<u64> {
        let table = self.0.borrow();
        let is_overdue = |pending: &Pending| now.saturating_duration_since(pending.started) >= timeout;
        table.in_flight.iter().filter(|(_, pending)| is_overdue(pending)).map(|(unique, _)| *unique).collect()
    }

    /// At most `most` callers to look at; those that did not fit come first the next time.
    pub(super) fn suspects(&self, most: usize, now: Instant) -> Vec<Suspect> {
        let mut table = self.0.borrow_mut();
        let after = table.in_flight.range(table.cursor.saturating_add(1)..);
        let before = table.in_flight.range(..=table.cursor);
        let is_suspect = |pending: &Pending| match pending.patience {
            Patience::Endless => false,
            _ if pending.signalled.is_some() => true,
            Patience::UntilKilled => false,
            Patience::Watched => now.saturating_duration_since(pending.started) >= WATCH_AFTER,
        };
        let suspects: Vec<Suspect> = after
            .chain(before)
            .map(|(_, pending)| pending)
            .filter(|pending| is_suspect(pending))
            .take(most)
            .map(|pending| pending.suspect(now))
            .collect();
        table.cursor = suspects.last().map_or(0, |last| last.unique);
        suspects
    }

    /// The caller of `unique` belongs to `process`.
    pub(super) fn note_process(&self, unique: u64, process: u32) {
        if let Some(pending) = self.0.borrow_mut().in_flight.get_mut(&unique) {
            pending.process = Some(process);
        }
    }
}

impl Pending {
    fn suspect(&self, now: Instant) -> Suspect {
        Suspect {
            unique: self.header.unique,
            pid: self.header.pid,
            process: self.process,
            signalled_for: self.signalled.map(|at| now.saturating_duration_since(at)),
        }
    }
}

fn patience(operation: &Operation) -> Patience {
    match operation {
        Operation::Release { .. } | Operation::ReleaseDir { .. } => Patience::Endless,
        Operation::Write(write) if write.from_cache => Patience::Endless,
        Operation::Read { .. } | Operation::Write(_) => Patience::Watched,
        _ => Patience::UntilKilled,
    }
}

/// INTERRUPTs that found no request, the newest [`EARLY_MAX`].
#[derive(Debug, Default)]
struct Early {
    order: VecDeque<u64>,
    set: BTreeSet<u64>,
}

impl Early {
    fn keep(&mut self, unique: u64) {
        if !self.set.insert(unique) {
            return;
        }
        self.order.push_back(unique);
        if self.order.len() > EARLY_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.set.remove(&oldest);
        }
    }

    /// Whether one was kept for `unique`; it stays in the order until it is the oldest, which is harmless since
    /// uniques are not reused.
    fn take(&mut self, unique: u64) -> bool {
        self.set.remove(&unique)
    }
}

#[cfg(test)]
#[path = "waiting_tests.rs"]
mod tests;
