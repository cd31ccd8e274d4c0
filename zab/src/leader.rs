//! Leading: discovery, synchronization of the quorum, broadcast.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::core::{Core, Next};
use crate::mutant;
use crate::rounds::Rounds;
use crate::session::{Session, Stage};
use crate::{
    Body, ChangeError, DataUuid, Entry, Membership, MembershipChange, Output, PeerId, Progress, ProposeError,
    ReadError, Role, SnapshotDescriptor, Tick, Zxid,
};

/// Promises beyond are nonsense: at one election per nanosecond nobody gets there.
const EPOCH_MAX: u64 = 1 << 62;
/// What a peer may lack of the committed history when it becomes a voter: so much is made up for in an instant.
const PROMOTION_LAG_MAX: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Waiting for a quorum that wants to follow (CEPOCH).
    Discovering,
    /// The leader's own promise is being written; only then is the epoch told to anybody, so that an incarnation
    /// that forgot it cannot choose it again.
    Choosing { epoch: u64, token: u64 },
    /// Waiting for a quorum of promises (ACK-E).
    Collecting { epoch: u64 },
    /// Waiting for a quorum that adopted the history (ACK-LD), the leader's own record among them.
    Synchronizing { epoch: u64, token: u64 },
    /// Broadcast.
    Established { epoch: u64 },
}

/// A candidate, or the established leader.
pub(crate) struct Leader {
    phase: Phase,
    sessions: BTreeMap<PeerId, Session>,
    started_at: Tick,
    /// When the synchronization of the quorum last moved.
    progress_at: Tick,
    heartbeat_at: Tick,
    /// When members that are away are told the membership again.
    hello_at: Tick,
    /// Since when this leader is no voter any more.
    removed_at: Option<Tick>,
    rounds: Rounds,
    /// Counter of the last proposal of this epoch.
    counter: u64,
}

impl Leader {
    pub(crate) fn new(core: &Core) -> Leader {
        Leader {
            phase: Phase::Discovering,
            sessions: BTreeMap::new(),
            started_at: core.now,
            progress_at: core.now,
            heartbeat_at: core.now,
            hello_at: core.now,
            removed_at: None,
            rounds: Rounds::default(),
            counter: 0,
        }
    }

    /// The epoch, once chosen and promised.
    pub(crate) fn epoch(&self) -> Option<u64> {
        match self.phase {
            Phase::Discovering | Phase::Choosing { .. } => None,
            Phase::Collecting { epoch }
            | Phase::Synchronizing { epoch, .. }
            | Phase::Established { epoch } => Some(epoch),
        }
    }

    /// Peers that are in sync, each with whether its acks count.
    pub(crate) fn followers(&self, core: &Core) -> Vec<(PeerId, bool)> {
        let synced = self.sessions.iter().filter(|(_, session)| session.synced);
        synced.map(|(id, session)| (*id, self.counts(core, *id, session))).collect()
    }

    pub(crate) fn established(&self) -> Option<u64> {
        match self.phase {
            Phase::Established { epoch } => Some(epoch),
            _ => None,
        }
    }

    /// Established, and a quorum said so within the last election timeout.
    pub(crate) fn confirmed(&self, core: &Core) -> Option<u64> {
        self.established().filter(|_| self.has_live_quorum(core))
    }

    pub(crate) fn phase_name(&self) -> &'static str {
        match self.phase {
            Phase::Discovering | Phase::Choosing { .. } | Phase::Collecting { .. } => "DISCOVERY",
            Phase::Synchronizing { .. } => "SYNCHRONIZATION",
            Phase::Established { .. } => "BROADCAST",
        }
    }

    // ---- who counts ---------------------------------------------------------------------------------------------

    /// Whether the promises and acks of this session count: its directory is a voter's, whole, and has promised no
    /// epoch later than ours.
    fn counts(&self, core: &Core, peer: PeerId, session: &Session) -> bool {
        core.is_voter(peer, session.uuid) && self.can_count(session)
    }

    fn can_count(&self, session: &Session) -> bool {
        (session.may_vote || mutant!("damaged-log-votes"))
            && self.epoch().is_none_or(|epoch| session.accepted_epoch <= epoch)
    }

    /// The session of a directory, if it can count.
    fn session_of(&self, peer: PeerId, uuid: DataUuid) -> Option<&Session> {
        let is_bound = |session: &Session| session.uuid == uuid || mutant!("wiped-voter-votes");
        self.sessions.get(&peer).filter(|session| is_bound(session) && self.can_count(session))
    }

    fn is_me(core: &Core, peer: PeerId, uuid: DataUuid) -> bool {
        peer == core.id() && (uuid == core.record.data_uuid || mutant!("wiped-voter-votes"))
    }

    /// Whether we, where we vote, and the sessions for which `agrees` holds are a quorum.
    fn is_quorum(&self, core: &Core, agrees: impl Fn(&Session) -> bool) -> bool {
        core.is_quorum(|peer, uuid| {
            Leader::is_me(core, peer, uuid) || self.session_of(peer, uuid).is_some_and(&agrees)
        })
    }

    // ---- time, disk and quorums ---------------------------------------------------------------------------------

    /// Acts on whatever time, disk and messages made due.
    pub(crate) fn advance(&mut self, core: &mut Core) -> Next {
        self.drop_silent(core);
        self.keep_waiting_for_snapshots(core);
        if self.established().is_some() && !core.is_bound_voter() {
            self.removed_at.get_or_insert(core.now);
        }
        if self.must_step_down(core) {
            return Next::Look;
        }
        match self.phase {
            Phase::Discovering => self.choose_epoch(core),
            Phase::Choosing { epoch, token }
                if core.storage.is_durable(token) || mutant!("epoch-told-before-disk") =>
            {
                self.announce_epoch(core, epoch)
            }
            Phase::Collecting { epoch } => {
                if self.is_behind_quorum(core) {
                    return Next::Look;
                }
                self.fix_history(core, epoch);
            }
            Phase::Synchronizing { epoch, token } if core.storage.is_durable(token) => {
                self.establish(core, epoch);
            }
            _ => {}
        }
        if core.now >= self.heartbeat_at {
            self.begin_round(core);
            self.heartbeat_at = core.now.saturating_add(core.config.heartbeat_ms);
        }
        if self.established().is_some() && core.now >= self.hello_at {
            self.tell_absent_members(core);
            self.hello_at = core.now.saturating_add(core.config.election_timeout_ms);
        }
        self.count_acks(core);
        Next::Stay
    }

    pub(crate) fn next_deadline(&self, core: &Core) -> Tick {
        let timeout = core.config.election_timeout_ms;
        let silent_at = self.sessions.values().map(|session| session.heard_at.saturating_add(timeout)).min();
        let phase_at = match self.phase {
            Phase::Established { .. } => Tick::MAX,
            Phase::Synchronizing { .. } => self.progress_at.saturating_add(core.config.sync_timeout_ms),
            _ => self.started_at.saturating_add(timeout.saturating_mul(2)),
        };
        self.heartbeat_at.min(phase_at).min(silent_at.unwrap_or(Tick::MAX))
    }

    fn must_step_down(&self, core: &Core) -> bool {
        let since = |at: Tick| core.now.saturating_sub(at);
        match self.phase {
            // Joining includes waiting for a guard, which lasts up to one election timeout.
            Phase::Discovering | Phase::Choosing { .. } | Phase::Collecting { .. } => {
                since(self.started_at) >= core.config.election_timeout_ms.saturating_mul(2)
            }
            Phase::Synchronizing { .. } => {
                !self.has_live_quorum(core) || since(self.progress_at) >= core.config.sync_timeout_ms
            }
            Phase::Established { .. } => {
                !self.has_live_quorum(core)
                    || self.is_disk_worse_than_quorums(core)
                    || self.has_handed_over(core)
            }
        }
    }

    /// A removed leader commits its removal and leaves when a quorum of the others has that on disk, or had the time.
    fn has_handed_over(&self, core: &Core) -> bool {
        let waited = |at: Tick| core.now.saturating_sub(at) >= core.config.election_timeout_ms;
        self.removed_at.is_some_and(|at| self.is_membership_settled(core) || waited(at))
    }

    /// The last change is committed, and a quorum of what it led to has that in its records: then no quorum of the
    /// membership before it is needed ever again, whoever else is lost.
    pub(crate) fn is_membership_settled(&self, core: &Core) -> bool {
        let version = core.record.membership.version;
        let is_recorded = core.is_quorum(|peer, uuid| {
            let by_us = Leader::is_me(core, peer, uuid) && core.recorded >= version;
            by_us || self.session_of(peer, uuid).is_some_and(|session| session.recorded >= version)
        });
        self.established().is_some() && core.pending_membership().is_none() && is_recorded
    }

    /// Who is away may have been so when the membership changed, and look for its leader among those who left.
    fn tell_absent_members(&self, core: &mut Core) {
        for peer in core.others().into_iter().filter(|peer| !self.sessions.contains_key(peer)) {
            core.tell_membership(peer);
        }
    }

    fn has_live_quorum(&self, core: &Core) -> bool {
        self.is_quorum(core, |session| !is_silent(session, core))
    }

    /// A stalled disk gives up leadership, unless its quorum stalls too: a change of leader would help nobody.
    fn is_disk_worse_than_quorums(&self, core: &Core) -> bool {
        let healthy = |session: &Session| session.synced && session.disk_ok;
        !mutant!("hung-disk-leads")
            && !core.disk_ok()
            && core.is_quorum(|peer, uuid| self.session_of(peer, uuid).is_some_and(healthy))
    }

    fn drop_silent(&mut self, core: &mut Core) {
        let silent: Vec<PeerId> =
            self.sessions.iter().filter(|(_, session)| is_silent(session, core)).map(|(id, _)| *id).collect();
        for peer in silent {
            self.end_session(core, peer);
        }
    }

    fn keep_waiting_for_snapshots(&mut self, core: &Core) {
        let waits = |(peer, session): (&PeerId, &Session)| {
            session.needs_driver() && self.counts(core, *peer, session)
        };
        if self.sessions.iter().any(waits) {
            self.progress_at = core.now;
        }
    }

    fn end_session(&mut self, core: &mut Core, peer: PeerId) {
        if let Some(session) = self.sessions.remove(&peer) {
            stop_snapshot(core, peer, &session);
            core.send(peer, Body::Leave { session: session.id, resigned: false });
        }
    }

    /// Gives everything back: the sessions, and with them the lease.
    pub(crate) fn resign(self, core: &mut Core) {
        core.counters.depositions += u64::from(self.established().is_some());
        for (peer, session) in self.sessions {
            stop_snapshot(core, peer, &session);
            core.send(peer, Body::Leave { session: session.id, resigned: true });
        }
    }

    fn choose_epoch(&mut self, core: &mut Core) {
        if !self.is_quorum(core, |_| true) {
            return;
        }
        let voters = self.sessions.iter().filter(|(peer, session)| core.is_voter(**peer, session.uuid));
        let promised = voters.map(|(_, session)| session.accepted_epoch).max().unwrap_or(0);
        let epoch = promised.max(core.record.accepted_epoch).max(core.epoch_floor) + 1;
        core.record.accepted_epoch = epoch;
        core.record.accepted_leader = Some(core.id());
        core.epoch_floor = epoch;
        self.phase = Phase::Choosing { epoch, token: core.save_record() };
    }

    fn announce_epoch(&mut self, core: &mut Core, epoch: u64) {
        self.phase = Phase::Collecting { epoch };
        for (peer, session) in &mut self.sessions {
            session.ask_for_promise(core, *peer, epoch, false);
        }
    }

    /// Whether a promise came from a voter whose history is newer than ours: elections only choose, this proves.
    fn is_behind_quorum(&self, core: &Core) -> bool {
        let ours = (core.record.current_epoch, core.log.last());
        self.sessions.iter().any(|(peer, session)| match &session.stage {
            Stage::Promised { current_epoch, last, .. } => {
                self.counts(core, *peer, session)
                    && (*current_epoch, *last) > ours
                    && !mutant!("newer-history-ignored")
            }
            _ => false,
        })
    }

    fn fix_history(&mut self, core: &mut Core, epoch: u64) {
        if !self.is_quorum(core, Session::is_promised) {
            return;
        }
        core.record.current_epoch = epoch;
        self.progress_at = core.now;
        self.phase = Phase::Synchronizing { epoch, token: core.save_record() };
        let ready: Vec<PeerId> =
            self.sessions.iter().filter(|(_, session)| session.is_promised()).map(|(id, _)| *id).collect();
        for peer in ready {
            self.start_sync(core, peer, epoch);
        }
    }

    fn start_sync(&mut self, core: &mut Core, peer: PeerId, epoch: u64) {
        let Some(session) = self.sessions.get_mut(&peer) else { return };
        if session.start_sync(core, peer, epoch) {
            let at_least = core.log.start();
            core.emit(Output::NeedSnapshot { to: peer, session: session.id, at_least });
        }
    }

    fn establish(&mut self, core: &mut Core, epoch: u64) {
        if !self.is_quorum(core, |session| session.synced) {
            return;
        }
        self.phase = Phase::Established { epoch };
        core.forget_hint();
        self.hello_at = core.now.saturating_add(core.config.election_timeout_ms);
        // Zab, phase 2: a quorum adopted this history, so all of it is committed. It is on our disk: the election
        // waited for that.
        core.advance_commit(core.log.last());
        core.report(Role::Leading { epoch });
    }

    // ---- followers ----------------------------------------------------------------------------------------------

    pub(crate) fn handle_follower_info(
        &mut self,
        core: &mut Core,
        from: PeerId,
        uuid: DataUuid,
        session: u64,
        accepted_epoch: u64,
        may_vote: bool,
    ) -> Next {
        if accepted_epoch > EPOCH_MAX {
            core.counters.malformed += 1;
            return Next::Stay;
        }
        if !core.is_member(from, uuid) {
            core.counters.foreign += 1;
            core.tell_membership(from);
            core.send(from, Body::Leave { session, resigned: false });
            return Next::Stay;
        }
        let bound = core.is_voter(from, uuid);
        if bound && self.epoch().is_some_and(|epoch| accepted_epoch > epoch) {
            // It promised a later epoch to a candidate that failed, and can never follow this one. Without a later
            // one it would stay outside for as long as we lead.
            core.epoch_floor = core.epoch_floor.max(accepted_epoch);
            return Next::Look;
        }
        let answer = self.epoch().map(|epoch| (epoch, self.established().is_some()));
        if let Some(known) = self.sessions.get_mut(&from) {
            if known.id == session {
                known.heard_at = core.now;
                if let Some((epoch, established)) = answer {
                    known.ask_for_promise(core, from, epoch, established);
                }
                return Next::Stay;
            }
            if !bound && core.is_voter(from, known.uuid) {
                core.counters.foreign += 1;
                return Next::Stay;
            }
            stop_snapshot(core, from, known);
        }
        let mut joined = Session::new(session, uuid, accepted_epoch, may_vote, core.now);
        if let Some((epoch, established)) = answer {
            joined.ask_for_promise(core, from, epoch, established);
        }
        self.sessions.insert(from, joined);
        Next::Stay
    }

    pub(crate) fn handle_ack_epoch(
        &mut self,
        core: &mut Core,
        from: PeerId,
        session_id: u64,
        epoch: u64,
        promise: Stage,
    ) {
        let Some(session) = self.session(core, from, session_id, epoch) else { return };
        if session.stage != (Stage::Discovering { asked: true }) {
            return;
        }
        session.stage = promise;
        session.heard_at = core.now;
        if matches!(self.phase, Phase::Synchronizing { .. } | Phase::Established { .. }) {
            self.start_sync(core, from, epoch);
        }
    }

    pub(crate) fn handle_ack(
        &mut self,
        core: &mut Core,
        from: PeerId,
        session_id: u64,
        epoch: u64,
        round: u64,
        progress: Progress,
    ) {
        let rounds = self.rounds.last();
        let Some(session) = self.session(core, from, session_id, epoch) else { return };
        let before = (session.acked, session.synced);
        if round > rounds || session.handle_ack(core, round, progress).is_err() {
            core.counters.malformed += 1;
            return self.end_session(core, from);
        }
        if (session.acked, session.synced) != before {
            self.progress_at = core.now;
        }
    }

    pub(crate) fn handle_leave(&mut self, core: &mut Core, from: PeerId, session_id: u64) {
        if let Some(session) = self.sessions.get(&from).filter(|session| session.id == session_id) {
            stop_snapshot(core, from, session);
            self.sessions.remove(&from);
        }
    }

    /// The session that a message belongs to; answers strangers, so that they join again soon.
    fn session(&mut self, core: &mut Core, from: PeerId, id: u64, epoch: u64) -> Option<&mut Session> {
        let ours = self.epoch();
        let known = self.sessions.get_mut(&from).filter(|session| session.id == id && ours == Some(epoch));
        if known.is_none() {
            core.counters.stale += 1;
            core.send(from, Body::Leave { session: id, resigned: false });
        }
        known
    }

    // ---- snapshots ----------------------------------------------------------------------------------------------

    pub(crate) fn snapshot_started(&mut self, to: PeerId, session: u64, zxid: Zxid) {
        if let Some(session) = self.snapshotting(to, session)
            && let Stage::Snapshotting { pin } = &mut session.stage
        {
            *pin = zxid.max(*pin);
        }
    }

    pub(crate) fn snapshot_sent(
        &mut self,
        core: &mut Core,
        to: PeerId,
        id: u64,
        snapshot: SnapshotDescriptor,
    ) {
        let Some(epoch) = self.epoch() else { return };
        let Some(session) = self.snapshotting(to, id) else { return };
        if core.log.contains(snapshot.zxid) && snapshot.zxid <= core.delivered {
            session.send_snapshot(core, to, epoch, snapshot);
        } else {
            self.end_session(core, to);
        }
    }

    pub(crate) fn snapshot_failed(&mut self, core: &mut Core, to: PeerId, session: u64) {
        if self.snapshotting(to, session).is_some() {
            self.end_session(core, to);
        }
    }

    fn snapshotting(&mut self, to: PeerId, id: u64) -> Option<&mut Session> {
        let is_it =
            |session: &&mut Session| session.id == id && matches!(session.stage, Stage::Snapshotting { .. });
        self.sessions.get_mut(&to).filter(is_it)
    }

    /// What followers in synchronization need of the log.
    pub(crate) fn pinned(&self) -> Option<Zxid> {
        self.sessions.values().filter_map(Session::pin).min()
    }

    // ---- broadcast ----------------------------------------------------------------------------------------------

    pub(crate) fn propose(&mut self, core: &mut Core, txn: Bytes) -> Result<Zxid, ProposeError> {
        let Some(epoch) = self.established() else { return Err(ProposeError::NotLeading) };
        if txn.len() > core.config.txn_bytes_max {
            return Err(ProposeError::TooLarge { bytes: txn.len(), bytes_max: core.config.txn_bytes_max });
        }
        if is_overloaded(core, txn.len()) {
            return Err(ProposeError::Overloaded);
        }
        Ok(self.append(core, |zxid| Entry::txn(zxid, txn), epoch))
    }

    fn append(&mut self, core: &mut Core, entry: impl FnOnce(Zxid) -> Entry, epoch: u64) -> Zxid {
        let zxid = Zxid::new(epoch, self.counter + 1);
        core.append(entry(zxid)).expect("this epoch's next counter follows the end of the leader's own log");
        self.counter += 1;
        zxid
    }

    /// Proposes a change of the membership: one at a time, and none that leaves less than a quorum at work.
    pub(crate) fn change_membership(
        &mut self,
        core: &mut Core,
        change: &MembershipChange,
    ) -> Result<Zxid, ChangeError> {
        let Some(epoch) = self.established() else { return Err(ChangeError::NotLeading) };
        if is_overloaded(core, 0) {
            return Err(ChangeError::Overloaded);
        }
        if !self.is_membership_settled(core) {
            return Err(ChangeError::InProgress);
        }
        let directory = self.directory_to_bind(core, change)?;
        let next = core.record.membership.changed(change, directory)?;
        self.check_quorum_of(core, &next)?;
        Ok(self.append(core, |zxid| Entry::membership(zxid, next), epoch))
    }

    /// The directory that a change makes a voter: one that follows, is up to date and can vote.
    fn directory_to_bind(
        &self,
        core: &Core,
        change: &MembershipChange,
    ) -> Result<Option<DataUuid>, ChangeError> {
        let known = &core.record.membership;
        let id = match change {
            MembershipChange::Promote { id } if known.observers.contains(id) => *id,
            MembershipChange::Replace { id, address }
                if known.voters.contains_key(id)
                    && address.as_ref().is_none_or(|address| !known.is_elsewhere(*id, address)) =>
            {
                *id
            }
            _ => return Ok(None),
        };
        if id == core.id() {
            return Ok(Some(core.record.data_uuid));
        }
        let session = self.sessions.get(&id).filter(|session| !is_silent(session, core));
        let session = session.ok_or(ChangeError::Absent(id))?;
        let entries = session.lag(core).unwrap_or(usize::MAX);
        if entries > PROMOTION_LAG_MAX {
            let missing = core.log.count_between(session.acked, core.commit);
            return Err(ChangeError::Behind { id, entries: entries.min(missing) });
        }
        if !self.can_count(session) {
            return Err(ChangeError::CannotVote(id));
        }
        Ok(Some(session.uuid))
    }

    fn check_quorum_of(&self, core: &Core, next: &Membership) -> Result<(), ChangeError> {
        let is_live = |session: &Session| session.synced && !is_silent(session, core);
        let agrees = |peer: PeerId, uuid: DataUuid| {
            Leader::is_me(core, peer, uuid) || self.session_of(peer, uuid).is_some_and(is_live)
        };
        if next.is_quorum(agrees) {
            return Ok(());
        }
        Err(ChangeError::NoQuorum { live: next.count(agrees), voters: next.voters.len() })
    }

    pub(crate) fn read_index(&mut self, core: &Core, request: u64) -> Result<(), ReadError> {
        if self.established().is_none() {
            return Err(ReadError::NotLeading);
        }
        if self.rounds.waiting_reads() >= core.config.reads_max {
            return Err(ReadError::Overloaded);
        }
        self.rounds.read(request, core.commit);
        Ok(())
    }

    pub(crate) fn lease_valid(&self, core: &Core, now: Tick) -> bool {
        let length = core.config.election_timeout_ms - core.config.lease_margin_ms;
        let length = if mutant!("lease-outlives-guard") { 3 * length } else { length };
        let confirmed_at = self.established().and(self.rounds.confirmed_at());
        core.config.lease_reads && confirmed_at.is_some_and(|at| now < at.saturating_add(length))
    }

    fn begin_round(&mut self, core: &mut Core) {
        let Some(epoch) = self.epoch() else { return };
        // With too many rounds outstanding the last one is repeated: followers still hear us.
        let round = self.rounds.begin(core.now).unwrap_or(self.rounds.last());
        for (peer, session) in &self.sessions {
            session.send_heartbeat(core, *peer, epoch, round);
        }
    }

    /// Commits and confirms what a quorum acknowledged.
    fn count_acks(&mut self, core: &mut Core) {
        if self.established().is_none() {
            return;
        }
        let synced = |peer, uuid| self.session_of(peer, uuid).filter(|session| session.synced);
        let round = core.reached_by_quorum(|peer, uuid| {
            if Leader::is_me(core, peer, uuid) {
                return Some(self.rounds.last());
            }
            synced(peer, uuid).map(|session| session.round)
        });
        if let Some(round) = round {
            self.rounds.confirm(round);
        }
        // A change that commits ends the say of the membership before it: what follows may now be committed too.
        loop {
            let before = core.commit;
            let commit = core.reached_by_quorum(|peer, uuid| {
                if Leader::is_me(core, peer, uuid) {
                    return Some(core.durable);
                }
                let counted = |session: &&Session| session.synced || mutant!("unsynced-acks-commit");
                self.session_of(peer, uuid).filter(counted).map(|session| session.acked)
            });
            if let Some(commit) = commit {
                core.advance_commit(commit);
            }
            if core.commit == before {
                break;
            }
        }
        while let Some(read) = self.rounds.pop_ready(core.delivered) {
            core.emit(Output::ReadReady { request: read.request, zxid: read.zxid });
        }
    }

    /// Sends everything that became sendable since the last time. Gathering here, when the driver has nothing else
    /// to do, turns a burst of proposals into one message per follower and a burst of reads into one round.
    pub(crate) fn flush(&mut self, core: &mut Core) {
        let Some(epoch) = self.epoch() else { return };
        if self.rounds.is_round_wanted() {
            self.begin_round(core);
            self.count_acks(core);
        }
        let is_established = self.established().is_some();
        let mut lost = Vec::new();
        for (peer, session) in &mut self.sessions {
            if session.pump(core, *peer, epoch).is_err() {
                lost.push(*peer);
            } else if is_established {
                session.tell_commit(core, *peer, epoch);
            }
        }
        for peer in lost {
            self.end_session(core, peer);
        }
    }
}

/// Whether what waits for the quorum, with `bytes` more, is beyond the bounds.
fn is_overloaded(core: &Core, bytes: usize) -> bool {
    let last = core.log.last();
    let in_flight = core.log.bytes_between(core.delivered, last).saturating_add(bytes as u64);
    core.log.count_between(core.delivered, last) >= core.config.inflight_entries_max
        || in_flight > core.config.inflight_bytes_max
        || core.log.bytes() > core.config.log_bytes_max
}

fn is_silent(session: &Session, core: &Core) -> bool {
    core.now.saturating_sub(session.heard_at) >= core.config.election_timeout_ms
}

fn stop_snapshot(core: &mut Core, to: PeerId, session: &Session) {
    if matches!(session.stage, Stage::Snapshotting { .. }) {
        core.emit(Output::StopSnapshot { to, session: session.id });
    }
}
