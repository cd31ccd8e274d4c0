//! What the servers hold, and what is on its way between them.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// Servers are numbered from 0.
pub(crate) type Id = usize;

/// Bound of every table by server.
pub(crate) const SERVERS_MAX: usize = 6;

/// A transaction: its zxid, and a value that tells apart two that a broken protocol gave the same zxid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Txn {
    pub(crate) epoch: u64,
    pub(crate) counter: u64,
    pub(crate) value: u64,
}

impl Hash for Txn {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.epoch << 48 ^ self.counter << 24 ^ self.value);
    }
}

/// Transactions in order. States share what did not change between them.
pub(crate) type History = Arc<Vec<Txn>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Role {
    /// Without a leader; also everybody who just restarted.
    Idle,
    /// Trying to lead, or leading.
    Leading(usize),
    /// Promised that candidacy's epoch, sent ACK-E.
    Joined(usize),
    /// Its history is on the way.
    Syncing(usize),
    /// Adopted its history and epoch, sent ACK-LD.
    Synced(usize),
}

impl Role {
    /// The candidacy that it leads or follows.
    pub(crate) fn candidacy(self) -> Option<usize> {
        match self {
            Role::Idle => None,
            Role::Leading(c) | Role::Joined(c) | Role::Syncing(c) | Role::Synced(c) => Some(c),
        }
    }

    pub(crate) fn renumbered(self, new: impl Fn(usize) -> usize) -> Role {
        match self {
            Role::Idle => Role::Idle,
            Role::Leading(c) => Role::Leading(new(c)),
            Role::Joined(c) => Role::Joined(new(c)),
            Role::Syncing(c) => Role::Syncing(new(c)),
            Role::Synced(c) => Role::Synced(new(c)),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Standing {
    Voter,
    /// A voter that lost part of its log: nothing of it counts until a leader brought it up to date.
    Damaged,
    /// Counts for nothing.
    Learner,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Server {
    pub(crate) standing: Standing,
    /// Paper: `f.p`. Durable.
    pub(crate) accepted: u64,
    /// Whom that was promised to. Durable.
    pub(crate) addressee: Option<Id>,
    /// Paper: `f.a`. Durable.
    pub(crate) current: u64,
    /// The history in memory.
    pub(crate) log: History,
    /// How much of it is on disk.
    pub(crate) durable: usize,
    /// Everything delivered, in order. A restart may deliver again from a checkpoint; that is not a step here.
    pub(crate) delivered: History,
    pub(crate) role: Role,
}

impl Server {
    pub(crate) fn new(standing: Standing) -> Server {
        Server {
            standing,
            accepted: 0,
            addressee: None,
            current: 0,
            log: History::default(),
            durable: 0,
            delivered: History::default(),
            role: Role::Idle,
        }
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.durable == self.log.len()
    }
}

/// One attempt to lead, with everything that its leader sent and was told.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Candidacy {
    /// Candidacies are counted from 1; also the value of its transactions.
    pub(crate) serial: u64,
    pub(crate) epoch: u64,
    pub(crate) leader: Id,
    /// The leader's current epoch when it became a candidate.
    pub(crate) current: u64,
    /// The leader's history, then its proposals.
    pub(crate) log: History,
    /// Length of the history that it began with: where NEWLEADER stands.
    pub(crate) base: usize,
    /// Voters that sent ACK-E with a history that is not newer.
    pub(crate) promised: u32,
    /// A quorum did: its history is the one to adopt.
    pub(crate) fixed: bool,
    /// Who sent ACK-LD, and how much of `log` each of them acknowledged.
    pub(crate) acked: [Option<u32>; SERVERS_MAX],
    /// A quorum did.
    pub(crate) established: bool,
    /// The largest commit position sent.
    pub(crate) commit: usize,
    /// How much its leader had delivered: what a snapshot of it contains.
    pub(crate) delivered: usize,
}

/// What only invariants look at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Ghost {
    /// The epoch of each leader ever established.
    pub(crate) established: Vec<u64>,
    /// Everything ever broadcast, sorted.
    pub(crate) broadcast: History,
    /// For each primary that broadcast: its epoch, and what it had delivered before.
    pub(crate) primaries: Vec<(u64, History)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) servers: Vec<Server>,
    pub(crate) candidacies: Vec<Candidacy>,
    pub(crate) ghost: Arc<Ghost>,
    /// Candidacies ever begun.
    pub(crate) begun: u64,
    /// Crashes that lost something.
    pub(crate) crashes: u32,
}

impl State {
    pub(crate) fn new(servers: impl IntoIterator<Item = Standing>) -> State {
        let servers: Vec<Server> = servers.into_iter().map(Server::new).collect();
        assert!(servers.len() <= SERVERS_MAX, "tables by server have {SERVERS_MAX} places");
        State { servers, candidacies: Vec::new(), ghost: Arc::default(), begun: 0, crashes: 0 }
    }

    /// Whether the leader of that candidacy still is.
    pub(crate) fn is_led(&self, c: usize) -> bool {
        self.servers[self.candidacies[c].leader].role == Role::Leading(c)
    }

    /// Ends what ended candidacies left open, and forgets what nobody can act upon any more.
    pub(crate) fn normalize(&mut self) {
        self.end_candidacies();
        for it in &mut self.candidacies {
            it.forget(self.servers.len());
        }
        for server in &mut self.servers {
            // Only a candidate that lives is joined again.
            let lives = |it: &Candidacy| it.epoch == server.accepted && Some(it.leader) == server.addressee;
            server.addressee = server.addressee.filter(|_| self.candidacies.iter().any(lives));
        }
        self.forget_epochs();
    }

    fn end_candidacies(&mut self) {
        let led: Vec<bool> = (0..self.candidacies.len()).map(|c| self.is_led(c)).collect();
        if led.iter().all(|led| *led) {
            return;
        }
        let new = |c: usize| led[..c].iter().filter(|led| **led).count();
        for server in &mut self.servers {
            let is_over = server.role.candidacy().is_some_and(|c| !led[c]);
            server.role = if is_over { Role::Idle } else { server.role.renumbered(new) };
        }
        let mut led = led.iter();
        self.candidacies.retain(|_| *led.next().expect("one for each candidacy"));
    }

    /// Nobody can lead an epoch again that all have promised and nobody leads.
    fn forget_epochs(&mut self) {
        let established = &self.ghost.established;
        let promised = self.servers.iter().map(|server| server.accepted).min().unwrap_or(0);
        let is_over =
            |epoch: &u64| *epoch <= promised && self.candidacies.iter().all(|it| it.epoch != *epoch);
        let is_violated = established.windows(2).any(|pair| pair[0] == pair[1]);
        if !is_violated && established.iter().any(is_over) {
            let kept = established.iter().copied().filter(|epoch| !is_over(epoch)).collect();
            self.ghost = Arc::new(Ghost { established: kept, ..Ghost::clone(&self.ghost) });
        }
    }

    /// The same state with the servers in an order that does not depend on their numbers (as far as this order can
    /// tell them apart).
    pub(crate) fn representative(&self) -> State {
        let mut order: Vec<Id> = (0..self.servers.len()).collect();
        let view = |s: Id| {
            let Server { standing, accepted, current, durable, role, .. } = self.servers[s];
            (standing, accepted, current, durable, role, &self.servers[s].log, &self.servers[s].delivered)
        };
        let seen = |s: Id| {
            let it = self.candidacies.iter();
            it.map(move |it| (it.leader == s, it.promised >> s & 1, it.acked[s]))
        };
        order.sort_by(|a, b| view(*a).cmp(&view(*b)).then_with(|| seen(*a).cmp(seen(*b))));
        let mut new = [0; SERVERS_MAX];
        order.iter().enumerate().for_each(|(to, from)| new[*from] = to);
        let mut state = self.clone();
        for (to, from) in order.into_iter().enumerate() {
            state.servers[to].clone_from(&self.servers[from]);
            state.servers[to].addressee = self.servers[from].addressee.map(|id| new[id]);
            for (it, was) in state.candidacies.iter_mut().zip(&self.candidacies) {
                it.acked[to] = was.acked[from];
                it.promised = it.promised & !(1 << to) | (was.promised >> from & 1) << to;
            }
        }
        state.candidacies.iter_mut().for_each(|it| it.leader = new[it.leader]);
        state
    }
}

impl Candidacy {
    fn forget(&mut self, servers: usize) {
        if self.fixed {
            self.promised = 0;
            self.current = 0;
        }
        if self.established {
            // An ack of what is committed is worth as much as none.
            let commit = self.commit as u32;
            self.acked[..servers].iter_mut().for_each(|acked| *acked = (*acked).max(Some(commit)));
        }
    }

    /// What `leader` starts with.
    pub(crate) fn begin(serial: u64, epoch: u64, leader: Id, server: &Server) -> Candidacy {
        Candidacy {
            serial,
            epoch,
            leader,
            current: server.current,
            log: server.log.clone(),
            base: server.log.len(),
            promised: 1 << leader,
            fixed: false,
            acked: [None; SERVERS_MAX],
            established: false,
            commit: 0,
            delivered: server.delivered.len(),
        }
    }
}

/// Length of the longest common prefix.
pub(crate) fn common(a: &[Txn], b: &[Txn]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
