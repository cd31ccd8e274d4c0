//! The peer: one role at a time, and the four families of methods around it.
//!
//! ```text
//!                 handle_message  handle_tick  handle_durable  propose  read_index  compact …
//!                        │             │             │            │         │         │
//!                        └─────────────┴──────┬──────┴────────────┴─────────┴─────────┘
//!                                             ▼
//!              Looking ──Lead──▶ Leading      one role records the fact,
//!                 ▲  └──Join──▶ Following     then `advance` acts on everything that is due
//!                 └──────Look──────┘          │
//!                                             ▼
//!                                        poll_output
//! ```

use bytes::Bytes;

use crate::core::{Core, Counters, Next};
use crate::election::Looking;
use crate::follower::Follower;
use crate::leader::Leader;
use crate::log::Log;
use crate::session::Stage;
use crate::{
    Body, ChangeError, Config, ConfigError, DataUuid, Membership, MembershipChange, Message, Output, PeerId,
    Recovered, Role, SnapshotDescriptor, Standing, Tick, Vote, Zxid,
};

/// Role changes that one event may cause: Look, then Lead or Join, with one to spare.
const ROLE_CHANGES_MAX: usize = 4;

/// Why a proposal was not taken. It has no effect then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Ask `leader()`.
    #[error("this server does not lead the quorum; ask the leader")]
    NotLeading,
    /// A bound of the configuration is reached; try again when something was delivered or compacted.
    #[error("too many proposals are waiting for the quorum; try again")]
    Overloaded,
    /// Larger than `txn_bytes_max`.
    #[error("a transaction of {bytes} bytes exceeds the limit of {bytes_max}; split it")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
}

/// Why a read index was not asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Ask `leader()`.
    #[error("this server does not lead the quorum; ask the leader")]
    NotLeading,
    /// `reads_max` are waiting.
    #[error("too many reads are waiting for the quorum; try again")]
    Overloaded,
}

/// Why a peer cannot start from what the driver found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The log has a hole. The driver must pass the part before it and set `needs_sync`.
    #[error(
        "the log has a hole after {after}: the next entry is {found}; start with the part before it and mark the record as in need of synchronization"
    )]
    Hole {
        /// The last good position.
        after: Zxid,
        /// What follows.
        found: Zxid,
    },
    /// The state machine's durable state is older than the log.
    #[error(
        "the state on disk ends at {applied}, but the log starts after {log_start}: what lies between is gone; remove the data directory and let this server join again"
    )]
    StateBehindLog {
        /// The end of the state.
        applied: Zxid,
        /// The start of the log.
        log_start: Zxid,
    },
}

enum State {
    Looking(Looking),
    Following(Follower),
    Leading(Leader),
    Failed,
}

/// One member of the quorum, or one learner.
pub struct Peer {
    core: Core,
    state: State,
}

impl Peer {
    /// A peer that starts from what is on disk. `seed` must differ between incarnations.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn new(config: Config, recovered: Recovered, now: Tick, seed: u64) -> Result<Peer, StartError> {
        config.validate()?;
        let Recovered { record, log: entries, applied } = recovered;
        let log_start = record.log_start;
        if applied < log_start {
            return Err(StartError::StateBehindLog { applied, log_start });
        }
        let mut log = Log::new(log_start);
        for entry in entries {
            let (after, found) = (log.last(), entry.zxid);
            log.push(entry).map_err(|_| StartError::Hole { after, found })?;
        }
        let lost = !log.contains(applied);
        let mut core = Core::new(config, record, log, applied, now, seed);
        if lost {
            core.restart_log_at(applied);
        }
        let state = State::Looking(Looking::new(&core));
        let mut peer = Peer { core, state };
        peer.settle();
        Ok(peer)
    }

    // ---- getters ------------------------------------------------------------------------------------------------

    /// This peer.
    pub fn id(&self) -> PeerId {
        self.core.id()
    }

    /// The role last reported by `RoleChanged`.
    pub fn role(&self) -> Role {
        self.core.reported()
    }

    /// The leader that this peer is or follows, once it is in sync with it.
    pub fn leader(&self) -> Option<PeerId> {
        match self.role() {
            Role::Following { leader } | Role::Observing { leader } => Some(leader),
            Role::Leading { .. } => Some(self.id()),
            Role::Looking | Role::NotMember | Role::Failed => None,
        }
    }

    /// Peers in sync with this leader, each with whether its acks count. Empty on every other peer.
    pub fn followers(&self) -> Vec<(PeerId, bool)> {
        match &self.state {
            State::Leading(leader) => leader.followers(&self.core),
            State::Looking(_) | State::Following(_) | State::Failed => Vec::new(),
        }
    }

    /// The epoch of the current role, or the newest one that this peer took part in.
    pub fn epoch(&self) -> u64 {
        let current = match &self.state {
            State::Following(follower) => follower.epoch(),
            State::Leading(leader) => leader.epoch(),
            State::Looking(_) | State::Failed => None,
        };
        current.unwrap_or(self.core.record.current_epoch)
    }

    /// Known to be committed and contained in the log.
    pub fn committed(&self) -> Zxid {
        self.core.commit
    }

    /// The largest commit position that the leader announced: how far behind a follower is.
    pub fn leader_committed(&self) -> Zxid {
        match &self.state {
            State::Following(follower) => follower.leader_commit().max(self.core.commit),
            _ => self.core.commit,
        }
    }

    /// The last transaction handed out by `Deliver`.
    pub fn delivered(&self) -> Zxid {
        self.core.delivered
    }

    /// The last position of the log, durable or not.
    pub fn last_zxid(&self) -> Zxid {
        self.core.log.last()
    }

    /// The last position of the log on disk.
    pub fn durable_zxid(&self) -> Zxid {
        self.core.durable
    }

    /// The record as last written or being written.
    pub fn record(&self) -> &crate::Record {
        &self.core.record
    }

    /// The newest membership that is known to be committed.
    pub fn membership(&self) -> &Membership {
        &self.core.record.membership
    }

    /// A newer membership in the log: not known to be committed, and counted all the same.
    pub fn pending_membership(&self) -> Option<&Membership> {
        self.core.pending_membership()
    }

    /// Leader: whether the last change is done. It is committed, and so many know it that any quorum of the new
    /// membership suffices for all time; what was removed may be switched off.
    pub fn is_membership_settled(&self) -> bool {
        match &self.state {
            State::Leading(leader) => leader.is_membership_settled(&self.core),
            _ => false,
        }
    }

    /// Bytes of log in memory. The driver takes a checkpoint and compacts well before `log_bytes_max`.
    pub fn log_bytes(&self) -> u64 {
        self.core.log.bytes()
    }

    /// What was ignored, lost or refused so far.
    pub fn counters(&self) -> Counters {
        self.core.counters
    }

    /// Whether the leader may answer reads from its state at `now` without asking the quorum: a quorum acknowledged
    /// a heartbeat sent less than one election timeout (minus the margin for drift) ago, and each of its members
    /// refuses to help elect another leader for that long after it heard one.
    pub fn lease_valid(&self, now: Tick) -> bool {
        match &self.state {
            State::Leading(leader) => leader.lease_valid(&self.core, now),
            _ => false,
        }
    }

    /// When `handle_tick` must be called at the latest. A time in the past means now.
    pub fn next_deadline(&self) -> Option<Tick> {
        let role = match &self.state {
            State::Looking(looking) => looking.next_deadline(&self.core),
            State::Following(follower) => Some(follower.next_deadline(&self.core)),
            State::Leading(leader) => Some(leader.next_deadline(&self.core)),
            State::Failed => return None,
        };
        let probe = self.core.storage.probe_at(self.core.config.disk_probe_ms);
        let stall =
            self.core.storage.stall_at(self.core.config.disk_stall_ms).filter(|at| *at > self.core.now);
        [role, probe, stall].into_iter().flatten().min()
    }

    // ---- events -------------------------------------------------------------------------------------------------

    /// A message arrived.
    pub fn handle_message(&mut self, from: PeerId, message: Message, now: Tick) {
        self.observe(now);
        if from == self.id() {
            self.core.counters.malformed += 1;
            return;
        }
        let Message { uuid, body } = message;
        let next = self.dispatch(from, uuid, body);
        self.go(next);
        self.settle();
    }

    /// Time passed.
    pub fn handle_tick(&mut self, now: Tick) {
        self.observe(now);
        self.settle();
        if !matches!(self.state, State::Failed) {
            self.core.probe_disk_when_idle();
        }
    }

    /// Everything with a token up to `token` is on disk.
    pub fn handle_durable(&mut self, token: u64, now: Tick) {
        self.observe(now);
        self.core.handle_durable(token);
        self.settle();
    }

    /// A write or sync failed. Ends the role at once and for good: what is in memory is no longer what is on disk,
    /// and a process that went on would leave a hole in its log.
    pub fn handle_storage_failed(&mut self) {
        if matches!(self.state, State::Failed) {
            return;
        }
        self.core.clear_outputs();
        if let State::Leading(leader) = std::mem::replace(&mut self.state, State::Failed) {
            leader.resign(&mut self.core);
        }
        self.core.report(Role::Failed);
    }

    /// The link to `peer` went down. A hint: it only shortens the wait for a candidate that is not there.
    pub fn handle_peer_disconnected(&mut self, peer: PeerId, now: Tick) {
        self.observe(now);
        let next = match &self.state {
            State::Following(follower) if follower.leader() == peer => follower.handle_disconnected(),
            _ => Next::Stay,
        };
        self.go(next);
        self.settle();
    }

    // ---- commands -----------------------------------------------------------------------------------------------

    /// Proposes a transaction. It is committed when it is delivered; if the role changes before, its outcome is
    /// unknown.
    ///
    /// # Errors
    /// See [`ProposeError`]; nothing was proposed then.
    pub fn propose(&mut self, txn: Bytes, now: Tick) -> Result<Zxid, ProposeError> {
        self.observe(now);
        match &mut self.state {
            State::Leading(leader) => leader.propose(&mut self.core, txn),
            _ => Err(ProposeError::NotLeading),
        }
    }

    /// Proposes a change of the membership. It is in force here at once, together with the one before it, and alone
    /// when it is committed; `is_membership_settled` says when the next may come.
    ///
    /// # Errors
    /// See [`ChangeError`]; nothing was proposed then.
    pub fn change_membership(&mut self, change: &MembershipChange, now: Tick) -> Result<Zxid, ChangeError> {
        self.observe(now);
        match &mut self.state {
            State::Leading(leader) => leader.change_membership(&mut self.core, change),
            _ => Err(ChangeError::NotLeading),
        }
    }

    /// Asks for a position such that a state which contains it is fresh: answered by `ReadReady` with the same
    /// `request` after a quorum confirmed this leader in a round begun after this call.
    ///
    /// # Errors
    /// See [`ReadError`]; no answer will come then.
    pub fn read_index(&mut self, request: u64, now: Tick) -> Result<(), ReadError> {
        self.observe(now);
        match &mut self.state {
            State::Leading(leader) => leader.read_index(&self.core, request),
            _ => Err(ReadError::NotLeading),
        }
    }

    /// A leader that is about to stop lets the others elect at once instead of after a timeout. It stays out of that
    /// election.
    pub fn step_down(&mut self, now: Tick) {
        self.observe(now);
        if matches!(self.state, State::Leading(_)) {
            self.core.guard_until = self.core.now.saturating_add(self.core.config.election_timeout_ms);
            self.go(Next::Look);
            self.settle();
        }
    }

    /// The driver's own checkpoint at `upto` is durable, so that the log up to there is needed only by others.
    pub fn compact(&mut self, upto: Zxid) {
        let pinned = match &self.state {
            State::Leading(leader) => leader.pinned(),
            State::Failed => return,
            _ => None,
        };
        self.core.compact(upto, pinned);
    }

    /// Leader: the checkpoint for `to` is taken at `zxid`; the log from there is kept.
    pub fn snapshot_started(&mut self, to: PeerId, session: u64, zxid: Zxid) {
        if let State::Leading(leader) = &mut self.state {
            leader.snapshot_started(to, session, zxid);
        }
    }

    /// Leader: the last byte of the snapshot was handed to the link.
    pub fn snapshot_sent(&mut self, to: PeerId, session: u64, snapshot: SnapshotDescriptor, now: Tick) {
        self.observe(now);
        if let State::Leading(leader) = &mut self.state {
            leader.snapshot_sent(&mut self.core, to, session, snapshot);
            self.settle();
        }
    }

    /// Leader: the snapshot could not be taken or sent. The follower joins again.
    pub fn snapshot_failed(&mut self, to: PeerId, session: u64, now: Tick) {
        self.observe(now);
        if let State::Leading(leader) = &mut self.state {
            leader.snapshot_failed(&mut self.core, to, session);
            self.settle();
        }
    }

    /// Follower: snapshot bytes from `from` are arriving; the synchronization is alive.
    pub fn snapshot_progress(&mut self, from: PeerId, now: Tick) {
        self.observe(now);
        if let State::Following(follower) = &mut self.state
            && follower.leader() == from
        {
            follower.handle_snapshot_progress(&self.core);
        }
    }

    /// Follower: all bytes of a snapshot from `from` are here, verified and durable, but not in use.
    pub fn snapshot_received(&mut self, from: PeerId, snapshot: SnapshotDescriptor, now: Tick) {
        self.observe(now);
        if let State::Following(follower) = &mut self.state
            && follower.leader() == from
        {
            follower.handle_snapshot_received(&self.core, snapshot);
            self.settle();
        }
    }

    // ---- outputs ------------------------------------------------------------------------------------------------

    /// The next thing to do. Call until `None` after every other call, and do it in this order.
    pub fn poll_output(&mut self) -> Option<Output> {
        loop {
            if let Some(output) = self.core.pop_output() {
                return Some(output);
            }
            let flushed = self.core.flush_appends();
            if let State::Leading(leader) = &mut self.state {
                leader.flush(&mut self.core);
            }
            self.core.report_membership();
            if !flushed && !self.core.has_output() {
                return None;
            }
        }
    }

    // ---- roles --------------------------------------------------------------------------------------------------

    fn observe(&mut self, now: Tick) {
        self.core.now = self.core.now.max(now);
    }

    fn settle(&mut self) {
        for _ in 0..ROLE_CHANGES_MAX {
            let next = match &mut self.state {
                State::Looking(looking) => looking.advance(&mut self.core),
                State::Following(follower) => follower.advance(&mut self.core),
                State::Leading(leader) => leader.advance(&mut self.core),
                State::Failed => Next::Stay,
            };
            if next == Next::Stay {
                return;
            }
            self.go(next);
        }
    }

    fn go(&mut self, next: Next) {
        match next {
            Next::Stay => {}
            Next::Look => {
                let looking = State::Looking(Looking::new(&self.core));
                if let State::Leading(leader) = std::mem::replace(&mut self.state, looking) {
                    leader.resign(&mut self.core);
                }
                self.core.report(Role::Looking);
            }
            Next::Join(leader) => self.state = State::Following(Follower::new(&mut self.core, leader)),
            Next::Lead => self.state = State::Leading(Leader::new(&self.core)),
        }
    }

    // ---- messages -----------------------------------------------------------------------------------------------

    fn dispatch(&mut self, from: PeerId, uuid: DataUuid, body: Body) -> Next {
        match body {
            Body::Hello { membership, pending } => self.handle_hello(from, uuid, membership, pending),
            Body::Notification { round, vote, standing, membership } => {
                self.tell_newer_membership(from, membership);
                self.handle_notification(from, uuid, round, vote, standing);
                Next::Stay
            }
            Body::FollowerInfo { .. } | Body::AckEpoch { .. } | Body::Ack { .. } => {
                self.dispatch_to_leader(from, uuid, body)
            }
            Body::Leave { session, resigned } => self.handle_leave(from, uuid, session, resigned),
            _ => self.dispatch_to_follower(from, uuid, body),
        }
    }

    /// Committed memberships are facts, whoever tells them.
    fn handle_hello(
        &mut self,
        from: PeerId,
        uuid: DataUuid,
        theirs: Membership,
        pending: Option<Membership>,
    ) -> Next {
        let was_formed = self.core.is_formed();
        match &mut self.state {
            State::Failed => return Next::Stay,
            State::Looking(looking) if !was_formed => {
                looking.handle_hello(&mut self.core, from, uuid, theirs);
                return Next::Stay;
            }
            _ => self.tell_newer_membership(from, theirs.version),
        }
        let is_news = self.core.learn_membership(theirs);
        if is_news {
            self.core.save_record();
        }
        if let Some(pending) = pending {
            self.core.learn_hint(pending);
        }
        // A leader that has to be told is one no more.
        if is_news && matches!(self.state, State::Leading(_)) { Next::Look } else { Next::Stay }
    }

    /// Answers those who know an older membership than we, if ours is on disk.
    fn tell_newer_membership(&mut self, to: PeerId, theirs: u64) {
        let is_silent = matches!(self.state, State::Failed) || !self.core.is_formed();
        if theirs < self.core.recorded && !is_silent {
            self.core.tell_membership(to);
        }
    }

    fn handle_notification(
        &mut self,
        from: PeerId,
        uuid: DataUuid,
        round: u64,
        vote: Option<Vote>,
        standing: Standing,
    ) {
        let (answer, vote) = match &mut self.state {
            State::Looking(looking) => {
                return looking.handle_notification(&mut self.core, from, uuid, round, vote, standing);
            }
            State::Following(follower) => {
                let vote = if follower.is_joined() { None } else { self.core.last_vote };
                (Standing::Following { leader: follower.leader() }, vote)
            }
            State::Leading(leader) => match leader.confirmed(&self.core) {
                Some(epoch) => (Standing::Leading { epoch }, None),
                None => (Standing::Following { leader: self.core.id() }, self.core.last_vote),
            },
            State::Failed => return,
        };
        // Only those who look are answered, so that two who are settled do not answer each other for ever.
        if standing == Standing::Looking {
            let round = self.core.election_round;
            let membership = self.core.record.membership.version;
            self.core.send(from, Body::Notification { round, vote, standing: answer, membership });
        }
    }

    fn handle_leave(&mut self, from: PeerId, uuid: DataUuid, session: u64, resigned: bool) -> Next {
        match &mut self.state {
            State::Following(follower) if follower.is_from_leader(from, uuid, session) => {
                follower.handle_leave(&mut self.core, resigned)
            }
            State::Leading(leader) => {
                leader.handle_leave(&mut self.core, from, session);
                Next::Stay
            }
            _ => Next::Stay,
        }
    }

    fn dispatch_to_leader(&mut self, from: PeerId, uuid: DataUuid, body: Body) -> Next {
        let core = &mut self.core;
        let State::Leading(leader) = &mut self.state else {
            return self.answer_misled(from, &body);
        };
        match body {
            Body::FollowerInfo { session, accepted_epoch, may_vote } => {
                return leader.handle_follower_info(core, from, uuid, session, accepted_epoch, may_vote);
            }
            Body::AckEpoch { session, epoch, current_epoch, last, tails } => {
                let promise = Stage::Promised { current_epoch, last, tails };
                leader.handle_ack_epoch(core, from, session, epoch, promise);
            }
            Body::Ack { session, epoch, round, progress } => {
                leader.handle_ack(core, from, session, epoch, round, progress);
            }
            _ => core.counters.malformed += 1,
        }
        Next::Stay
    }

    /// Somebody takes us for its leader.
    fn answer_misled(&mut self, from: PeerId, body: &Body) -> Next {
        let (session, resigned) = match (body, &self.state) {
            // We may be about to lead; it will ask again.
            (Body::FollowerInfo { .. }, State::Looking(_)) | (_, State::Failed) => return Next::Stay,
            (Body::FollowerInfo { session, .. }, _) => (*session, false),
            // We led once, possibly before a restart, and hold no lease now.
            (Body::AckEpoch { session, .. } | Body::Ack { session, .. }, _) => (*session, true),
            _ => return Next::Stay,
        };
        self.core.counters.stale += 1;
        self.core.send(from, Body::Leave { session, resigned });
        Next::Stay
    }

    fn dispatch_to_follower(&mut self, from: PeerId, uuid: DataUuid, body: Body) -> Next {
        let core = &mut self.core;
        let State::Following(follower) = &mut self.state else {
            core.counters.stale += 1;
            return Next::Stay;
        };
        if body.session().is_none_or(|session| !follower.is_from_leader(from, uuid, session)) {
            core.counters.stale += 1;
            return Next::Stay;
        }
        match body {
            Body::NewEpoch { epoch, established, counts, .. } => {
                follower.handle_new_epoch(core, uuid, epoch, established, counts)
            }
            Body::SyncFrom { epoch, seq, common, .. } => follower.handle_sync_from(core, epoch, seq, common),
            Body::Snapshot { epoch, seq, snapshot, membership, .. } => {
                follower.handle_snapshot(core, epoch, seq, snapshot, membership)
            }
            Body::Entries { epoch, seq, prev, entries, commit, .. } => {
                follower.handle_entries(core, epoch, seq, prev, entries, commit)
            }
            Body::NewLeader { epoch, seq, last, membership, .. } => {
                follower.handle_new_leader(core, epoch, seq, last, membership)
            }
            Body::UpToDate { epoch, seq, commit, .. } => follower.handle_up_to_date(core, epoch, seq, commit),
            Body::Commit { epoch, commit, .. } => {
                follower.handle_commit(core, epoch, commit);
                Next::Stay
            }
            Body::Heartbeat { epoch, round, commit, sent, .. } => {
                follower.handle_heartbeat(core, epoch, round, commit, sent)
            }
            _ => Next::Stay,
        }
    }

    // ---- for status.rs and invariant.rs -------------------------------------------------------------------------

    pub(crate) fn core(&self) -> &Core {
        &self.core
    }

    pub(crate) fn letter_and_phase(&self) -> (char, &'static str) {
        match &self.state {
            State::Looking(looking) => ('-', looking.phase(&self.core)),
            State::Following(follower) if self.core.may_vote() => ('F', follower.phase_name()),
            State::Following(follower) => ('O', follower.phase_name()),
            State::Leading(leader) => ('L', leader.phase_name()),
            State::Failed => ('X', "FAILED"),
        }
    }
}
