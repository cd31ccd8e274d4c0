//! The steps of Zab, with their guards.

use std::sync::Arc;

use super::mutation::Mutation;
use super::state::{Candidacy, Id, Role, Server, Standing, State, Txn, common};

/// One step. `c` is an index into [`State::candidacies`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// The oracle made `s` try to lead; it promised itself `epoch` and sends NEWEPOCH (paper: phase 1).
    Candidate { s: Id, epoch: u64 },
    /// `s` takes NEWEPOCH, promises and answers with ACK-E.
    Promise { s: Id, c: usize },
    /// `s` comes back to the candidate that it promised this epoch to (a session ended).
    Rejoin { s: Id, c: usize },
    /// `s` promised this epoch to a candidate that lost, and follows the leader that won. Not in the paper.
    FollowEstablished { s: Id, c: usize },
    /// A learner joins. Not in the paper.
    Learn { s: Id, c: usize },
    /// A quorum sent ACK-E: the history of the candidacy is the one to adopt.
    Fix { c: usize },
    /// DIFF or TRUNC: `s` drops what the leader does not have.
    SyncStart { s: Id },
    /// SNAP: `s` replaces its history by a prefix of what the leader delivered. Not in the paper.
    Snap { s: Id, len: usize },
    /// The next entry of the history, or the next PROPOSE, arrives; it is in memory.
    Receive { s: Id },
    /// The oldest entry that is only in memory becomes durable (and is acknowledged).
    Sync { s: Id },
    /// NEWLEADER: with its history on disk, `s` makes the epoch current, and sends ACK-LD. The leader, too.
    Adopt { s: Id },
    /// A quorum sent ACK-LD: the leader delivers its history and serves (COMMIT-LD, UPTODATE).
    Establish { c: usize },
    /// PROPOSE.
    Propose { c: usize, value: u64 },
    /// A quorum acknowledged the next proposal: COMMIT.
    Commit { c: usize },
    /// `s` delivers its next entry.
    Deliver { s: Id },
    /// `s` gives up its role (a timeout, a lost message, a restart that loses nothing).
    Leave { s: Id },
    /// `s` restarts and loses what was not durable.
    Crash { s: Id },
    /// The disk of `s` loses all but `len` entries. Not in the paper; never explored, only in traces.
    Damage { s: Id, len: usize },
    /// A damaged voter is in sync with an established leader: it counts again, from its next session on.
    Recover { s: Id },
    /// The directory of `s` is replaced by an empty one. Not in the paper; never explored, only in traces.
    Wipe { s: Id },
}

/// Why a step is not possible.
pub(crate) type Refusal = &'static str;

fn require(condition: bool, rule: Refusal) -> Result<(), Refusal> {
    if condition { Ok(()) } else { Err(rule) }
}

/// The parameters of the protocol.
#[derive(Clone, Debug)]
pub(crate) struct Protocol {
    pub(crate) quorum: u32,
    /// Facts that only enable things happen as soon as they may.
    pub(crate) eager: bool,
    pub(crate) mutation: Option<Mutation>,
}

impl Protocol {
    fn has(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    /// Takes a step.
    ///
    /// # Errors
    /// The rule that forbids it; `state` is unchanged then.
    pub(crate) fn apply(&self, state: &mut State, action: &Action) -> Result<(), Refusal> {
        match *action {
            Action::Candidate { s, epoch } => self.candidate(state, s, epoch)?,
            Action::Promise { s, c } => self.promise(state, s, c)?,
            Action::Rejoin { s, c } => self.rejoin(state, s, c)?,
            Action::FollowEstablished { s, c } => self.follow_established(state, s, c)?,
            Action::Learn { s, c } => learn(state, s, c)?,
            Action::Fix { c } => self.fix(state, c)?,
            Action::SyncStart { s } => self.sync_start(state, s)?,
            Action::Snap { s, len } => snap(state, s, len)?,
            Action::Receive { s } => self.receive(state, s)?,
            Action::Sync { s } => self.sync(state, s)?,
            Action::Adopt { s } => self.adopt(state, s)?,
            Action::Establish { c } => self.establish(state, c)?,
            Action::Propose { c, value } => self.propose(state, c, value)?,
            Action::Commit { c } => self.commit(state, c)?,
            Action::Deliver { s } => self.deliver(state, s)?,
            Action::Leave { s } => leave(state, s)?,
            Action::Crash { s } => self.crash(state, s)?,
            Action::Damage { s, len } => damage(state, s, len),
            Action::Recover { s } => recover(state, s)?,
            Action::Wipe { s } => state.servers[s] = Server::new(Standing::Learner),
        }
        if self.eager {
            self.settle(state);
        }
        Ok(())
    }

    /// Takes all steps that are not worth waiting for.
    fn settle(&self, state: &mut State) {
        for c in 0..state.candidacies.len() {
            let _ = self.fix(state, c);
            let _ = self.establish(state, c);
            while self.commit(state, c).is_ok() {}
        }
        for s in 0..state.servers.len() {
            while self.deliver(state, s).is_ok() {}
        }
    }

    fn crash(&self, state: &mut State, s: Id) -> Result<(), Refusal> {
        let server = &mut state.servers[s];
        if self.has(Mutation::PromiseNotDurable) {
            server.accepted = server.current;
            server.addressee = None;
        } else {
            require(!server.is_drained(), "a crash that loses nothing is like leaving")?;
        }
        Arc::make_mut(&mut server.log).truncate(server.durable);
        server.role = Role::Idle;
        state.crashes += 1;
        Ok(())
    }

    // ---- phase 1: discovery -------------------------------------------------------------------------------------

    fn candidate(&self, state: &mut State, s: Id, epoch: u64) -> Result<(), Refusal> {
        let server = &mut state.servers[s];
        require(server.role == Role::Idle, "a candidate gave up its last role")?;
        require(server.standing == Standing::Voter, "candidates are voters")?;
        require(server.is_drained(), "a candidate's history is on its disk")?;
        let again = self.has(Mutation::EpochReuse) && epoch == server.accepted;
        require(epoch > server.accepted || again, "a candidate's epoch is larger than its promise")?;
        server.accepted = epoch;
        server.addressee = Some(s);
        server.role = Role::Leading(state.candidacies.len());
        state.begun += 1;
        state.candidacies.push(Candidacy::begin(state.begun, epoch, s, server));
        Ok(())
    }

    fn promise(&self, state: &mut State, s: Id, c: usize) -> Result<(), Refusal> {
        let Candidacy { epoch, leader, .. } = state.candidacies[c];
        let server = &mut state.servers[s];
        require(server.role == Role::Idle && s != leader, "who promises gave up its last role")?;
        require(server.standing != Standing::Learner, "learners promise nothing")?;
        require(server.is_drained(), "the history in ACK-E is on disk")?;
        let wrong = self.has(Mutation::PromiseBackwards)
            || self.has(Mutation::EpochReuse) && epoch == server.accepted;
        require(epoch > server.accepted || wrong, "a promise is larger than the last one")?;
        server.accepted = epoch;
        server.addressee = Some(leader);
        if state.is_led(c) {
            self.join(state, s, c);
        }
        Ok(())
    }

    fn rejoin(&self, state: &mut State, s: Id, c: usize) -> Result<(), Refusal> {
        let Candidacy { epoch, leader, .. } = state.candidacies[c];
        let server = &state.servers[s];
        require(server.role == Role::Idle && server.is_drained(), "who joins gave up its last role")?;
        require(server.standing != Standing::Learner, "learners promise nothing")?;
        let promised = server.accepted == epoch && server.addressee == Some(leader);
        require(promised, "without a new promise only its addressee is followed")?;
        require(state.is_led(c), "a session needs a leader")?;
        self.join(state, s, c);
        Ok(())
    }

    fn follow_established(&self, state: &mut State, s: Id, c: usize) -> Result<(), Refusal> {
        let Candidacy { epoch, leader, established, .. } = state.candidacies[c];
        let server = &state.servers[s];
        require(server.role == Role::Idle && server.is_drained(), "who joins gave up its last role")?;
        require(server.standing != Standing::Learner, "learners promise nothing")?;
        require(server.accepted == epoch && s != leader, "the same epoch was promised to another")?;
        require(established, "only a leader that a quorum follows takes over promises")?;
        state.servers[s].addressee = Some(leader);
        if state.is_led(c) {
            self.join(state, s, c);
        }
        Ok(())
    }

    /// ACK-E arrives at the candidate, which counts it if the history in it is not newer than its own.
    fn join(&self, state: &mut State, s: Id, c: usize) {
        let server = &mut state.servers[s];
        let it = &mut state.candidacies[c];
        server.role = Role::Joined(c);
        let zxid = |log: &[Txn]| log.last().map(|txn| (txn.epoch, txn.counter));
        let is_newer = (server.current, zxid(&server.log)) > (it.current, zxid(&it.log));
        let counts = server.standing == Standing::Voter && !it.fixed;
        if counts && (!is_newer || self.has(Mutation::FollowOlder)) {
            it.promised |= 1 << s;
        }
    }

    fn fix(&self, state: &mut State, c: usize) -> Result<(), Refusal> {
        require(state.is_led(c), "only a candidate fixes its history")?;
        let it = &mut state.candidacies[c];
        require(!it.fixed, "a history is fixed once")?;
        require(it.promised.count_ones() >= self.quorum, "a quorum sent ACK-E with histories not newer")?;
        it.fixed = true;
        Ok(())
    }

    // ---- phase 2: synchronization -------------------------------------------------------------------------------

    fn sync_start(&self, state: &mut State, s: Id) -> Result<(), Refusal> {
        let server = &mut state.servers[s];
        let Role::Joined(c) = server.role else { return Err("synchronization follows ACK-E") };
        let it = &state.candidacies[c];
        require(it.fixed, "a leader synchronizes others once its history is fixed")?;
        if !self.has(Mutation::SkipTrunc) {
            let common = common(&server.log, &it.log);
            Arc::make_mut(&mut server.log).truncate(common);
            server.durable = server.log.len();
        }
        if self.has(Mutation::EpochBeforeHistory) {
            server.current = it.epoch;
        }
        server.role = Role::Syncing(c);
        Ok(())
    }

    fn receive(&self, state: &mut State, s: Id) -> Result<(), Refusal> {
        let server = &mut state.servers[s];
        let (Role::Syncing(c) | Role::Synced(c)) = server.role else {
            return Err("entries follow the start of the synchronization");
        };
        let it = &state.candidacies[c];
        require(server.log.len() < it.log.len(), "an entry was sent before it arrives")?;
        let mut next = server.log.len();
        if self.has(Mutation::GapInStream) && matches!(server.role, Role::Synced(_)) {
            next = it.log.len() - 1;
            require(server.log.last() != it.log.last(), "an entry is new")?;
        }
        Arc::make_mut(&mut server.log).push(it.log[next]);
        if self.has(Mutation::AckBeforeDurable) {
            self.acknowledge(state, s);
        }
        Ok(())
    }

    fn sync(&self, state: &mut State, s: Id) -> Result<(), Refusal> {
        let server = &mut state.servers[s];
        require(!server.is_drained(), "something is on its way to the disk")?;
        server.durable += 1;
        self.acknowledge(state, s);
        Ok(())
    }

    /// Whoever adopted the leader's history acknowledges what is on its disk.
    fn acknowledge(&self, state: &mut State, s: Id) {
        let server = &state.servers[s];
        let Some(c) = server.role.candidacy() else { return };
        let it = &mut state.candidacies[c];
        let adopted = match server.role {
            Role::Synced(_) => true,
            Role::Leading(_) => server.current == it.epoch,
            _ => false,
        };
        if !adopted || server.standing != Standing::Voter {
            return;
        }
        let mut claim = server.durable;
        if self.has(Mutation::AckBeforeDurable) {
            claim = server.log.len();
        }
        if self.has(Mutation::GapInStream) {
            let last = server.log[..claim].last();
            claim = it.log.iter().position(|txn| Some(txn) == last).map_or(0, |at| at + 1);
        }
        it.acked[s] = it.acked[s].max(Some(claim as u32));
    }

    fn adopt(&self, state: &mut State, s: Id) -> Result<(), Refusal> {
        let server = &mut state.servers[s];
        let Some(c) = server.role.candidacy() else { return Err("there is no leader to adopt") };
        let Candidacy { epoch, base, fixed, .. } = state.candidacies[c];
        match server.role {
            Role::Leading(_) => require(fixed && server.current < epoch, "a leader adopts its epoch once")?,
            Role::Syncing(_) => {
                let history =
                    if self.has(Mutation::AdoptBeforeDurable) { server.log.len() } else { server.durable };
                require(history >= base, "all of the leader's history is on disk before its epoch")?;
                server.role = Role::Synced(c);
            }
            _ => return Err("an epoch is adopted after the history"),
        }
        server.current = epoch;
        if server.standing == Standing::Learner {
            server.accepted = server.accepted.max(epoch);
        }
        self.acknowledge(state, s);
        Ok(())
    }

    fn establish(&self, state: &mut State, c: usize) -> Result<(), Refusal> {
        require(state.is_led(c), "only a leader is established")?;
        let it = &mut state.candidacies[c];
        require(it.fixed && !it.established, "a leader is established once, after its history is fixed")?;
        let adopted = it.acked.iter().flatten().count() as u32;
        let alone = self.has(Mutation::EstablishAlone) && adopted > 0;
        require(adopted >= self.quorum || alone, "a quorum sent ACK-LD")?;
        it.established = true;
        it.commit = it.base;
        let ghost = Arc::make_mut(&mut state.ghost);
        let at = ghost.established.partition_point(|epoch| *epoch <= it.epoch);
        ghost.established.insert(at, it.epoch);
        // COMMIT-LD: the leader delivers all of its history before it broadcasts.
        let leader = it.leader;
        while self.deliver(state, leader).is_ok() {}
        Ok(())
    }

    // ---- phase 3: broadcast -------------------------------------------------------------------------------------

    fn propose(&self, state: &mut State, c: usize, value: u64) -> Result<(), Refusal> {
        require(state.is_led(c), "only a leader proposes")?;
        let it = &mut state.candidacies[c];
        let early = self.has(Mutation::ProposeEarly) && it.fixed;
        require(it.established || early, "only an established leader proposes")?;
        let server = &mut state.servers[it.leader];
        let counter = (it.log.len() - it.base) as u64 + 1;
        let txn = Txn { epoch: it.epoch, counter, value };
        Arc::make_mut(&mut it.log).push(txn);
        Arc::make_mut(&mut server.log).push(txn);
        let ghost = Arc::make_mut(&mut state.ghost);
        let at = ghost.broadcast.partition_point(|earlier| *earlier <= txn);
        Arc::make_mut(&mut ghost.broadcast).insert(at, txn);
        if counter == 1 {
            let at = ghost.primaries.partition_point(|(epoch, _)| *epoch <= it.epoch);
            ghost.primaries.insert(at, (it.epoch, server.delivered.clone()));
        }
        if self.has(Mutation::AckBeforeDurable) {
            let leader = it.leader;
            self.acknowledge(state, leader);
        }
        Ok(())
    }

    fn commit(&self, state: &mut State, c: usize) -> Result<(), Refusal> {
        require(state.is_led(c), "only a leader commits")?;
        let it = &mut state.candidacies[c];
        require(it.established && it.commit < it.log.len(), "there is a proposal to commit")?;
        let next = it.commit as u32 + 1;
        let acks = it.acked.iter().flatten().filter(|acked| **acked >= next).count() as u32;
        let quorum = if self.has(Mutation::CommitAlone) { 1 } else { self.quorum };
        require(acks >= quorum, "a quorum acknowledged the proposal")?;
        it.commit += 1;
        Ok(())
    }

    fn deliver(&self, state: &mut State, s: Id) -> Result<(), Refusal> {
        let server = &mut state.servers[s];
        let Some(c) = server.role.candidacy() else { return Err("there is no leader to hear a commit from") };
        let it = &mut state.candidacies[c];
        let adopted = matches!(server.role, Role::Leading(_) | Role::Synced(_));
        require(
            adopted || self.has(Mutation::DeliverUnsynchronized),
            "commits are delivered after the synchronization",
        )?;
        let next = server.delivered.len();
        require(next < it.commit, "a quorum acknowledged what is delivered")?;
        require(next < server.durable.min(server.log.len()), "what is delivered is on the own disk")?;
        Arc::make_mut(&mut server.delivered).push(server.log[next]);
        if it.leader == s {
            it.delivered = server.delivered.len();
        }
        Ok(())
    }
}

fn learn(state: &mut State, s: Id, c: usize) -> Result<(), Refusal> {
    let server = &state.servers[s];
    require(server.role == Role::Idle && server.is_drained(), "who joins gave up its last role")?;
    require(server.standing == Standing::Learner, "voters promise before they join")?;
    require(state.candidacies[c].epoch >= server.current, "nobody goes back to an earlier epoch")?;
    require(state.is_led(c), "a session needs a leader")?;
    state.servers[s].role = Role::Joined(c);
    Ok(())
}

fn snap(state: &mut State, s: Id, len: usize) -> Result<(), Refusal> {
    let server = &mut state.servers[s];
    let Role::Joined(c) = server.role else { return Err("synchronization follows ACK-E") };
    let it = &state.candidacies[c];
    require(it.fixed, "a leader synchronizes others once its history is fixed")?;
    require(len <= it.delivered, "a snapshot contains what the leader delivered")?;
    require(common(&server.log, &it.log) < len, "a snapshot is used if it contains more than is common")?;
    server.log = Arc::new(it.log[..len].to_vec());
    server.durable = len;
    if server.delivered.len() < len {
        server.delivered = server.log.clone();
    }
    server.role = Role::Syncing(c);
    Ok(())
}

fn leave(state: &mut State, s: Id) -> Result<(), Refusal> {
    require(state.servers[s].role != Role::Idle, "there is a role to leave")?;
    state.servers[s].role = Role::Idle;
    Ok(())
}

fn damage(state: &mut State, s: Id, len: usize) {
    let server = &mut state.servers[s];
    Arc::make_mut(&mut server.log).truncate(len);
    server.durable = server.log.len();
    server.role = Role::Idle;
    if server.standing == Standing::Voter {
        server.standing = Standing::Damaged;
    }
}

fn recover(state: &mut State, s: Id) -> Result<(), Refusal> {
    let server = &mut state.servers[s];
    require(server.standing == Standing::Damaged, "only the damaged recover")?;
    let Role::Synced(c) = server.role else { return Err("who recovers adopted a history") };
    require(state.candidacies[c].established, "who recovers hears from an established leader")?;
    server.standing = Standing::Voter;
    server.role = Role::Idle;
    Ok(())
}
