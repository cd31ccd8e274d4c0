//! What real peers did, as steps of the model.
//!
//! Every [`Fact`] of the simulator is mapped to zero or more steps whose guards must hold, and what it shows of a peer
//! (record, history, what it claims in its acks, what it delivers) must be what the model's server then has. Facts are
//! placed where they bind: a write when it is on disk, a proposal and a commit before anybody can hear of them.
//!
//! Three freedoms of the model are used. A server leaves its role when a later fact needs that, which may be after the
//! peer did: to leave changes nothing for others. Synchronization without a truncation leaves no trace, and begins with
//! the first entry. A peer that restarts delivers again from its last checkpoint; the model's server does not, and the
//! transactions must be the same.

use std::collections::BTreeMap;

use zab::{PeerId, Record, Zxid};

use super::properties::INVARIANTS;
use super::protocol::{Action, Protocol};
use super::state::{Id, Role, Server, Standing, State, Txn};
use crate::simulation::facts::{Fact, Written};
use crate::simulation::history::Txn as RealTxn;

pub(crate) struct Follower {
    protocol: Protocol,
    state: State,
    ids: BTreeMap<PeerId, Id>,
    /// Candidacies by epoch and leader.
    candidacies: BTreeMap<(u64, Id), usize>,
    /// How much each peer delivered since it restarted, its checkpoint included.
    delivered: Vec<usize>,
    /// Steps taken, by name.
    pub(crate) steps: BTreeMap<String, u64>,
}

/// The steps that a trace of a cluster with these voters and observers stands for.
///
/// # Errors
/// The first fact that no step of the model explains.
pub(crate) fn follow(
    voters: u32,
    observers: &[PeerId],
    facts: &[(PeerId, Fact)],
) -> Result<BTreeMap<String, u64>, String> {
    let ids: Vec<PeerId> = (1..=voters).map(PeerId).chain(observers.iter().copied()).collect();
    let standing = |at| if at < voters as usize { Standing::Voter } else { Standing::Learner };
    let mut follower = Follower {
        protocol: Protocol { quorum: voters / 2 + 1, eager: false, mutation: None },
        state: State::new((0..ids.len()).map(standing)),
        delivered: vec![0; ids.len()],
        ids: ids.into_iter().enumerate().map(|(at, id)| (id, at)).collect(),
        candidacies: BTreeMap::new(),
        steps: BTreeMap::new(),
    };
    for (number, (peer, fact)) in facts.iter().enumerate() {
        follower.take(*peer, fact).map_err(|why| {
            let server = &follower.state.servers[follower.ids[peer]];
            let server = Server { log: Default::default(), delivered: Default::default(), ..server.clone() };
            format!("fact {number}, {peer}: {fact:?}: {why} ({server:?})")
        })?;
    }
    let broken = INVARIANTS[..8].iter().find(|(_, holds)| !holds(&follower.state));
    broken.map_or(Ok(follower.steps), |(name, _)| Err(format!("in the end, {name} is violated")))
}

fn txn(real: &RealTxn) -> Txn {
    Txn { epoch: real.zxid.epoch, counter: real.zxid.counter, value: real.value }
}

fn zxid(txn: &Txn) -> Zxid {
    Zxid::new(txn.epoch, txn.counter)
}

fn last(log: &[Txn]) -> Zxid {
    log.last().map_or(Zxid::ZERO, zxid)
}

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, real: &T, model: &T) -> Result<(), String> {
    if real == model { Ok(()) } else { Err(format!("{what} is {real:?}, and {model:?} in the model")) }
}

impl Follower {
    fn step(&mut self, action: Action) -> Result<(), String> {
        self.protocol.apply(&mut self.state, &action).map_err(|rule| format!("{action:?}: {rule}"))?;
        let name = format!("{action:?}");
        let name = name.split(' ').next().unwrap_or_default().to_owned();
        *self.steps.entry(name).or_insert(0) += 1;
        Ok(())
    }

    fn server(&self, s: Id) -> &Server {
        &self.state.servers[s]
    }

    fn leave(&mut self, s: Id) -> Result<(), String> {
        if self.server(s).role == Role::Idle { Ok(()) } else { self.step(Action::Leave { s }) }
    }

    fn candidacy(&self, epoch: u64, leader: Id) -> Result<usize, String> {
        let known = self.candidacies.get(&(epoch, leader)).copied();
        known.ok_or_else(|| format!("nobody with number {leader} is a candidate of epoch {epoch}"))
    }

    /// The candidacy that `s` leads.
    fn led(&self, s: Id, epoch: u64) -> Result<usize, String> {
        let c = self.candidacy(epoch, s)?;
        if self.server(s).role == Role::Leading(c) {
            Ok(c)
        } else {
            Err("it does not lead that epoch".to_owned())
        }
    }

    fn take(&mut self, peer: PeerId, fact: &Fact) -> Result<(), String> {
        let s = *self.ids.get(&peer).ok_or("it is not a member")?;
        match fact {
            Fact::Started { record, history, state } => self.started(s, record, history, state),
            Fact::Wrote(Written::Append(entries)) => {
                entries.iter().try_for_each(|entry| self.appended(s, &txn(entry)))
            }
            Fact::Wrote(Written::Truncate(after)) => {
                self.step(Action::SyncStart { s })?;
                expect("the end of its log", after, &last(&self.server(s).log))
            }
            Fact::Wrote(Written::Record(record)) => self.recorded(s, record),
            Fact::Wrote(Written::Install(history, record)) => self.installed(s, history, record),
            Fact::SentAckEpoch { to, epoch, current_epoch, last } => {
                let leader = *self.ids.get(to).ok_or("its leader is not a member")?;
                self.joined(s, leader, *epoch)?;
                expect("its current epoch", current_epoch, &self.server(s).current)?;
                expect("its last durable zxid", last, &self::last(self.durable(s)))
            }
            Fact::SentAck { epoch, durable, synced } => self.acknowledged(s, *epoch, *durable, *synced),
            Fact::FixedHistory { epoch } => {
                let c = self.candidacy(*epoch, s)?;
                if self.state.candidacies[c].fixed { Ok(()) } else { self.step(Action::Fix { c }) }
            }
            Fact::Established { epoch } => {
                let c = self.led(s, *epoch)?;
                self.established(c)
            }
            Fact::Proposed(real) => self.proposed(s, &txn(real)),
            Fact::Committed { epoch, zxid } => self.committed(s, *epoch, *zxid),
            Fact::Delivered(real) => self.delivered(s, &txn(real)),
            Fact::Crashed if !self.server(s).is_drained() => self.step(Action::Crash { s }),
            Fact::Crashed => self.leave(s),
            Fact::Damaged(history) => self.step(Action::Damage { s, len: history.len() }),
            Fact::Wiped => {
                self.delivered[s] = 0;
                self.step(Action::Wipe { s })
            }
        }
    }

    fn durable(&self, s: Id) -> &[Txn] {
        let server = self.server(s);
        &server.log[..server.durable]
    }

    // ---- restarts -----------------------------------------------------------------------------------------------

    fn started(
        &mut self,
        s: Id,
        record: &Record,
        history: &[RealTxn],
        state: &[RealTxn],
    ) -> Result<(), String> {
        let history: Vec<Txn> = history.iter().map(txn).collect();
        expect("its history", &history, &self.server(s).log)?;
        if !self.server(s).delivered.starts_with(&state.iter().map(txn).collect::<Vec<_>>()) {
            return Err("its state has what it never delivered".to_owned());
        }
        self.delivered[s] = state.len();
        self.compare_record(s, record)
    }

    fn compare_record(&self, s: Id, record: &Record) -> Result<(), String> {
        let server = self.server(s);
        let addressee = record.accepted_leader.and_then(|leader| self.ids.get(&leader).copied());
        expect("its promise", &record.accepted_epoch, &server.accepted)?;
        if server.standing != Standing::Learner {
            expect("the addressee of its promise", &addressee, &server.addressee)?;
        }
        expect("its current epoch", &record.current_epoch, &server.current)
    }

    // ---- writes -------------------------------------------------------------------------------------------------

    fn recorded(&mut self, s: Id, record: &Record) -> Result<(), String> {
        let server = self.server(s).clone();
        let addressee = record.accepted_leader.and_then(|leader| self.ids.get(&leader).copied());
        let promised = (record.accepted_epoch, addressee);
        if server.standing != Standing::Learner && promised != (server.accepted, server.addressee) {
            self.leave(s)?;
            let epoch = record.accepted_epoch;
            let leader = addressee.ok_or("a promise has no addressee")?;
            if leader == s {
                self.step(Action::Candidate { s, epoch })?;
                self.candidacies.insert((epoch, s), self.state.candidacies.len() - 1);
            } else {
                let c = self.candidacy(epoch, leader)?;
                let again = epoch == server.accepted;
                self.step(if again { Action::FollowEstablished { s, c } } else { Action::Promise { s, c } })?;
            }
        }
        if record.current_epoch != server.current {
            self.start_sync(s)?;
            self.step(Action::Adopt { s })?;
        }
        if self.server(s).standing == Standing::Damaged && !record.needs_sync {
            self.step(Action::Recover { s })?;
        }
        self.compare_record(s, record)
    }

    /// DIFF leaves no trace of its own.
    fn start_sync(&mut self, s: Id) -> Result<(), String> {
        let Role::Joined(_) = self.server(s).role else { return Ok(()) };
        let before = self.server(s).log.len();
        self.step(Action::SyncStart { s })?;
        expect("the length of its history", &before, &self.server(s).log.len())
    }

    fn appended(&mut self, s: Id, entry: &Txn) -> Result<(), String> {
        if self.server(s).is_drained() {
            self.start_sync(s)?;
            self.step(Action::Receive { s })?;
        }
        self.step(Action::Sync { s })?;
        expect("its next entry", &Some(entry), &self.durable(s).last())
    }

    fn installed(&mut self, s: Id, history: &[RealTxn], record: &Record) -> Result<(), String> {
        self.step(Action::Snap { s, len: history.len() })?;
        let history: Vec<Txn> = history.iter().map(txn).collect();
        expect("the content of the snapshot", &history, &self.server(s).log)?;
        self.delivered[s] = history.len();
        self.compare_record(s, record)
    }

    // ---- messages -----------------------------------------------------------------------------------------------

    fn joined(&mut self, s: Id, leader: Id, epoch: u64) -> Result<(), String> {
        let c = self.candidacy(epoch, leader)?;
        if self.server(s).role == Role::Joined(c) {
            return Ok(());
        }
        self.leave(s)?;
        if !self.state.is_led(c) {
            // Nobody will hear it.
            return Ok(());
        }
        let learns = self.server(s).standing == Standing::Learner;
        self.step(if learns { Action::Learn { s, c } } else { Action::Rejoin { s, c } })
    }

    /// Only what is on disk is acknowledged.
    fn acknowledged(&mut self, s: Id, epoch: u64, durable: Zxid, synced: bool) -> Result<(), String> {
        let is_there = durable == Zxid::ZERO || self.durable(s).binary_search_by_key(&durable, zxid).is_ok();
        if !is_there {
            return Err(format!("it acknowledges {durable}, which is not on its disk"));
        }
        if !synced {
            return Ok(());
        }
        expect("the epoch it adopted", &epoch, &self.server(s).current)?;
        if let Role::Joined(_) | Role::Syncing(_) = self.server(s).role {
            // Back in the same epoch: what it adopts is what its record says already.
            self.start_sync(s)?;
            self.step(Action::Adopt { s })?;
        }
        Ok(())
    }

    // ---- leaders ------------------------------------------------------------------------------------------------

    fn established(&mut self, c: usize) -> Result<(), String> {
        if self.state.candidacies[c].established { Ok(()) } else { self.step(Action::Establish { c }) }
    }

    fn proposed(&mut self, s: Id, txn: &Txn) -> Result<(), String> {
        let c = self.led(s, txn.epoch)?;
        self.step(Action::Propose { c, value: txn.value })?;
        expect("its proposal", &Some(txn), &self.server(s).log.last())
    }

    fn committed(&mut self, s: Id, epoch: u64, zxid: Zxid) -> Result<(), String> {
        let c = self.led(s, epoch)?;
        self.established(c)?;
        loop {
            let it = &self.state.candidacies[c];
            if last(&it.log[..it.commit]) >= zxid {
                return Ok(());
            }
            self.step(Action::Commit { c })?;
        }
    }

    fn delivered(&mut self, s: Id, txn: &Txn) -> Result<(), String> {
        if self.server(s).delivered.len() == self.delivered[s] {
            self.step(Action::Deliver { s })?;
        }
        expect("what it delivers", &Some(txn), &self.server(s).delivered.get(self.delivered[s]))?;
        self.delivered[s] += 1;
        Ok(())
    }
}
