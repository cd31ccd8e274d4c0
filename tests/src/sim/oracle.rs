//! What clients did and were told, judged: registers and locks as histories of calls, mutual exclusion as it is lived,
//! leases of sessions, digests of states.

use std::collections::BTreeMap;

use protocol::{InodeId, SessionId, Timestamp};

use super::linear::{self, Call, Lock, LockOp, Register, RegisterOp, Verdict};

/// Steps of one search for an order.
const STEPS_MAX: usize = 2_000_000;

/// What a client believes about a lock that it holds.
#[derive(Clone, Copy, Debug)]
struct Belief {
    client: u32,
    session: SessionId,
}

/// What is known about the times of a file.
#[derive(Debug, Default)]
struct Times {
    /// The newest mtime of each look that was newer than those before.
    seen: Vec<Timestamp>,
    /// When overwrites had returned, and how many of `seen` their mtimes must be newer than; both rising.
    overwritten: Vec<(u64, u64)>,
}

/// How many histories were decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Decided {
    /// Histories of registers and locks for which an order was found.
    pub linearizable: u64,
    /// Histories whose search reached its bound.
    pub undecided: u64,
    /// Calls in them.
    pub calls: u64,
}

#[derive(Default)]
pub(crate) struct Oracle {
    registers: BTreeMap<u32, Vec<Call<RegisterOp>>>,
    register_start: BTreeMap<u32, u64>,
    locks: BTreeMap<u32, Vec<Call<LockOp>>>,
    beliefs: BTreeMap<u32, Vec<Belief>>,
    /// Per lock, the largest fencing token told by a time.
    tokens: BTreeMap<u32, Vec<(u64, u64)>>,
    /// Until when a session's owner counts on it, in simulated time.
    leases: BTreeMap<SessionId, u64>,
    /// When the end of a session was first applied anywhere.
    ended: BTreeMap<SessionId, u64>,
    /// Sessions whose owners asked for their end.
    closing: std::collections::BTreeSet<SessionId>,
    digests: BTreeMap<u64, u64>,
    /// What reads at a revision were answered, by revision and question; of the last revisions only.
    answers_at: BTreeMap<(u64, u64), String>,
    /// The largest revision told to anybody by a time.
    revisions: Vec<(u64, u64)>,
    times: BTreeMap<InodeId, Times>,
    pub(crate) decided: Decided,
    pub(crate) deferred: u64,
    pub(crate) answers: u64,
    pub(crate) grants: u64,
    pub(crate) expired: u64,
    last_value: u64,
}

impl Oracle {
    /// A value that was never written before.
    pub(crate) fn fresh_value(&mut self) -> u64 {
        self.last_value += 1;
        self.last_value
    }

    pub(crate) fn register_call(
        &mut self,
        register: u32,
        op: RegisterOp,
        invoked: u64,
        returned: Option<u64>,
    ) {
        self.registers.entry(register).or_default().push(Call { op, invoked, returned });
    }

    pub(crate) fn lock_call(&mut self, lock: u32, op: LockOp, invoked: u64, returned: Option<u64>) {
        self.locks.entry(lock).or_default().push(Call { op, invoked, returned });
    }

    // ---- times --------------------------------------------------------------------------------------------------

    /// How many mtimes of a file were seen so far: what is overwritten from now on shows as a newer one.
    pub(crate) fn times_seen(&self, inode: InodeId) -> u64 {
        self.times.get(&inode).map_or(0, |times| times.seen.len() as u64)
    }

    /// An overwrite returned that began when so many mtimes had been seen.
    pub(crate) fn overwritten(&mut self, inode: InodeId, seen: u64, now: u64) {
        let times = self.times.entry(inode).or_default();
        if times.overwritten.last().is_none_or(|(_, before)| *before < seen) {
            times.overwritten.push((now, seen));
        }
    }

    /// Somebody who asked at `invoked` was told this mtime.
    pub(crate) fn looked(&mut self, inode: InodeId, mtime: Timestamp, invoked: u64) -> Result<(), String> {
        let times = self.times.entry(inode).or_default();
        let before = times.overwritten.partition_point(|(returned, _)| *returned < invoked);
        let seen = before.checked_sub(1).map_or(0, |last| times.overwritten[last].1 as usize);
        if let Some(old) = seen.checked_sub(1).map(|last| times.seen[last])
            && mtime <= old
        {
            return Err(format!(
                "{inode} was overwritten before {invoked}, and who asked then was told the mtime {mtime:?}, although \
                 {old:?} had been told before the overwrite began"
            ));
        }
        if times.seen.last().is_none_or(|newest| *newest < mtime) {
            times.seen.push(mtime);
        }
        Ok(())
    }

    // ---- reads from any server ----------------------------------------------------------------------------------

    /// A read of this revision was answered: with the same as every other one.
    pub(crate) fn read_at(&mut self, revision: u64, question: u64, answer: String) -> Result<(), String> {
        const KEPT: usize = 4096;
        let known = self.answers_at.entry((revision, question)).or_insert_with(|| answer.clone());
        if *known != answer {
            return Err(format!(
                "question {question} at revision {revision} has two answers: {known} and {answer}"
            ));
        }
        if self.answers_at.len() > KEPT {
            self.answers_at.pop_first();
        }
        Ok(())
    }

    /// Somebody was told that this revision is committed.
    pub(crate) fn told(&mut self, revision: u64, now: u64) {
        let largest = self.revisions.last().map_or(revision, |(_, largest)| revision.max(*largest));
        self.revisions.push((now, largest));
    }

    /// The largest revision that anybody was told before this moment.
    pub(crate) fn told_before(&self, time: u64) -> u64 {
        let before = self.revisions.partition_point(|(told, _)| *told < time);
        before.checked_sub(1).map_or(0, |last| self.revisions[last].1)
    }

    // ---- locks as they are lived --------------------------------------------------------------------------------

    /// A client learns that it holds a lock.
    pub(crate) fn granted(
        &mut self,
        lock: u32,
        client: u32,
        session: SessionId,
        token: u64,
        invoked: u64,
        now: u64,
    ) -> Result<(), String> {
        self.grants += 1;
        self.told(token, now);
        let tokens = self.tokens.entry(lock).or_default();
        let before = tokens.partition_point(|(told, _)| *told < invoked);
        if before > 0 && tokens[before - 1].1 >= token {
            return Err(format!(
                "lock {lock} was granted to client {client} with token {token}, and an earlier grant had {}",
                tokens[before - 1].1
            ));
        }
        let largest = tokens.last().map_or(token, |(_, largest)| token.max(*largest));
        tokens.push((now, largest));
        let lease = |session: &SessionId| self.leases.get(session).copied().unwrap_or(0);
        let held = self.beliefs.entry(lock).or_default();
        // The one that learns of its grant late may have lost the session meanwhile: then it does not hold it.
        if lease(&session) >= now
            && let Some(other) = held.iter().find(|b| b.client != client && lease(&b.session) >= now)
        {
            return Err(format!(
                "lock {lock} is held by client {client} (session {session}) and by client {} (session {}), whose \
                 lease lasts until {}",
                other.client,
                other.session,
                lease(&other.session)
            ));
        }
        held.retain(|b| b.client != client);
        held.push(Belief { client, session });
        Ok(())
    }

    /// A client does not count on a lock any more.
    pub(crate) fn given_up(&mut self, lock: u32, client: u32) {
        self.beliefs.entry(lock).or_default().retain(|b| b.client != client);
    }

    // ---- sessions -----------------------------------------------------------------------------------------------

    /// An owner learns that its session lasts at least until `until`.
    pub(crate) fn confirmed(&mut self, session: SessionId, until: u64) -> Result<(), String> {
        if let Some(ended) = self.ended.get(&session).filter(|ended| **ended < until) {
            return Err(format!(
                "session {session} was confirmed until {until}, and its end was applied at {ended}"
            ));
        }
        let lease = self.leases.entry(session).or_insert(0);
        *lease = until.max(*lease);
        Ok(())
    }

    pub(crate) fn closing(&mut self, session: SessionId) {
        self.closing.insert(session);
        self.leases.remove(&session);
    }

    /// A session's end was applied somewhere.
    pub(crate) fn session_ended(&mut self, session: SessionId, now: u64) -> Result<(), String> {
        if self.ended.contains_key(&session) {
            return Ok(());
        }
        self.ended.insert(session, now);
        self.expired += 1;
        match self.leases.get(&session) {
            Some(until) if *until > now && !self.closing.contains(&session) => {
                Err(format!("session {session} was ended, and its owner was promised {until}"))
            }
            _ => Ok(()),
        }
    }

    /// The proposal to end a session was made: from now on its locks may go.
    pub(crate) fn session_ending(&mut self, session: SessionId, now: u64) {
        for calls in self.locks.values_mut() {
            let owns = |op: &LockOp| matches!(op, LockOp::Acquire(s) if *s == session.0);
            if calls.iter().any(|call| owns(&call.op)) {
                calls.push(Call { op: LockOp::Release(session.0), invoked: now, returned: None });
            }
        }
    }

    // ---- states -------------------------------------------------------------------------------------------------

    /// A server's state is at `revision` with this digest.
    pub(crate) fn state(&mut self, who: zab::PeerId, revision: u64, digest: u64) -> Result<(), String> {
        match self.digests.insert(revision, digest) {
            Some(other) if other != digest => Err(format!(
                "the state of {who} at revision {revision} has digest {digest:016x}, and another server's {other:016x}"
            )),
            _ => Ok(()),
        }
    }

    // ---- histories ----------------------------------------------------------------------------------------------

    /// Looks for an order of every history, and starts new ones: nobody waits for an answer now. `values` are what
    /// the registers hold, `holders` who holds the locks.
    pub(crate) fn judge(&mut self) -> Result<(), String> {
        for (register, mut calls) in std::mem::take(&mut self.registers) {
            let is_read = |value: u64| move |call: &Call<RegisterOp>| call.op == RegisterOp::Read(value);
            let reads = calls.clone();
            // A write of unknown outcome that nobody saw need not have happened.
            calls.retain(|call| match call.op {
                RegisterOp::Write(value) => call.returned.is_some() || reads.iter().any(is_read(value)),
                RegisterOp::Read(_) => call.returned.is_some(),
            });
            let start = self.register_start.get(&register).copied().unwrap_or(0);
            let verdict = linear::check::<Register>(&calls, &start, STEPS_MAX);
            self.note(verdict, calls.len(), || describe("register", register, start, &calls, verdict))?;
            if let Some(last) = calls.iter().rfind(|c| matches!(c.op, RegisterOp::Read(_)))
                && let RegisterOp::Read(value) = last.op
            {
                self.register_start.insert(register, value);
            }
        }
        for (lock, calls) in std::mem::take(&mut self.locks) {
            let verdict = linear::check::<Lock>(&calls, &0, STEPS_MAX);
            self.note(verdict, calls.len(), || describe("lock", lock, 0, &calls, verdict))?;
        }
        self.tokens.clear();
        Ok(())
    }

    fn note(
        &mut self,
        verdict: Verdict,
        calls: usize,
        describe: impl FnOnce() -> String,
    ) -> Result<(), String> {
        self.decided.calls += calls as u64;
        match verdict {
            Verdict::Linearizable => self.decided.linearizable += 1,
            Verdict::Undecided => self.decided.undecided += 1,
            Verdict::Violated(_) => return Err(describe()),
        }
        Ok(())
    }
}

fn describe<O: std::fmt::Debug>(
    what: &str,
    number: u32,
    start: u64,
    calls: &[Call<O>],
    verdict: Verdict,
) -> String {
    let Verdict::Violated(index) = verdict else { return String::new() };
    let about = calls[index].invoked;
    let mut near: Vec<&Call<O>> = calls.iter().collect();
    near.sort_by_key(|call| call.invoked);
    let place = near.partition_point(|call| call.invoked < about);
    let shown = near[place.saturating_sub(12)..].iter().take(24);
    let lines: Vec<String> = shown
        .map(|call| match call.returned {
            Some(returned) => format!("  {:>8}..{returned:<8} {:?}", call.invoked, call.op),
            None => format!("  {:>8}..unknown  {:?}", call.invoked, call.op),
        })
        .collect();
    format!(
        "the history of {what} {number} (which began with {start}) is not linearizable; no order explains {:?} at \
         {about}:\n{}",
        calls[index].op,
        lines.join("\n")
    )
}
