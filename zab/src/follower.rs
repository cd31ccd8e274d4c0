//! Joining a leader and following it, as a voter or as a learner.
//!
//! One pass through the phases is a *session*. Whatever does not fit ends the session; the next one starts from
//! what is on disk. There is no repair within a session.

use crate::core::{Core, Next};
use crate::mutant;
use crate::{Body, DataUuid, Entry, Membership, PeerId, Progress, Role, SnapshotDescriptor, Tick, Zxid};

/// Positions in one `AckEpoch`: more epochs than any log keeps, and a bound on the message.
const TAILS_MAX: usize = 4_096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// FollowerInfo is repeated until the leader answers.
    Joining,
    /// NEWEPOCH arrived, but an earlier leader may still count on our guard.
    Guarded { epoch: u64 },
    /// The promise is being written.
    Promising { epoch: u64, token: u64 },
    /// ACK-E sent (and repeated until synchronization begins).
    Promised { epoch: u64 },
    /// SNAP announced: waiting for its bytes.
    Fetching { epoch: u64, snapshot: SnapshotDescriptor },
    /// SNAP complete: switching to it.
    Installing { epoch: u64, token: u64 },
    /// Receiving history.
    Syncing { epoch: u64 },
    /// NEWLEADER arrived: history, then the epoch, are being written.
    Adopting { epoch: u64, token: u64 },
    /// ACK-LD sent.
    Synced { epoch: u64 },
    /// The leader is established: commits are delivered.
    Broadcast { epoch: u64 },
}

impl Phase {
    fn epoch(self) -> Option<u64> {
        match self {
            Phase::Joining => None,
            Phase::Guarded { epoch }
            | Phase::Promising { epoch, .. }
            | Phase::Promised { epoch }
            | Phase::Fetching { epoch, .. }
            | Phase::Installing { epoch, .. }
            | Phase::Syncing { epoch }
            | Phase::Adopting { epoch, .. }
            | Phase::Synced { epoch }
            | Phase::Broadcast { epoch } => Some(epoch),
        }
    }

    /// Whether entries may come.
    fn is_streaming(self) -> bool {
        matches!(
            self,
            Phase::Syncing { .. } | Phase::Adopting { .. } | Phase::Synced { .. } | Phase::Broadcast { .. }
        )
    }

    fn is_synced(self) -> bool {
        matches!(self, Phase::Synced { .. } | Phase::Broadcast { .. })
    }
}

/// One session with a leader.
pub(crate) struct Follower {
    leader: PeerId,
    /// Its directory, from its first answer on.
    leader_uuid: Option<DataUuid>,
    session: u64,
    phase: Phase,
    started_at: Tick,
    heard_at: Tick,
    /// When the synchronization last moved.
    progress_at: Tick,
    resend_at: Tick,
    /// Ordered messages received.
    seq: u64,
    /// The newest heartbeat round heard.
    round: u64,
    /// The largest commit position heard of; may be ahead of the log, or of UPTODATE.
    leader_commit: Zxid,
    /// What the driver reported complete.
    received: Option<SnapshotDescriptor>,
    /// The membership that came with the announced snapshot.
    snapshot_membership: Membership,
    acked: Option<Progress>,
}

impl Follower {
    pub(crate) fn new(core: &mut Core, leader: PeerId) -> Follower {
        Follower {
            leader,
            leader_uuid: None,
            session: core.random(),
            phase: Phase::Joining,
            started_at: core.now,
            heard_at: core.now,
            progress_at: core.now,
            resend_at: core.now,
            seq: 0,
            round: 0,
            leader_commit: Zxid::ZERO,
            received: None,
            snapshot_membership: Membership::default(),
            acked: None,
        }
    }

    pub(crate) fn leader(&self) -> PeerId {
        self.leader
    }

    /// Whether a message with these marks belongs to this session.
    pub(crate) fn is_from_leader(&self, from: PeerId, uuid: DataUuid, session: u64) -> bool {
        let is_it = self.leader_uuid.is_none_or(|known| known == uuid);
        from == self.leader && session == self.session && is_it
    }

    pub(crate) fn epoch(&self) -> Option<u64> {
        self.phase.epoch()
    }

    /// Whether a leader may be named to those who ask (it answered us).
    pub(crate) fn is_joined(&self) -> bool {
        self.phase.is_synced()
    }

    pub(crate) fn leader_commit(&self) -> Zxid {
        self.leader_commit
    }

    pub(crate) fn phase_name(&self) -> &'static str {
        match self.phase {
            Phase::Joining | Phase::Guarded { .. } | Phase::Promising { .. } | Phase::Promised { .. } => {
                "DISCOVERY"
            }
            Phase::Fetching { .. }
            | Phase::Installing { .. }
            | Phase::Syncing { .. }
            | Phase::Adopting { .. }
            | Phase::Synced { .. } => "SYNCHRONIZATION",
            Phase::Broadcast { .. } => "BROADCAST",
        }
    }

    // ---- time and disk ------------------------------------------------------------------------------------------

    /// Acts on whatever time and disk made due.
    pub(crate) fn advance(&mut self, core: &mut Core) -> Next {
        if self.is_overdue(core) || !core.belongs() {
            return self.abandon(core);
        }
        match self.phase {
            Phase::Joining if core.now >= self.resend_at => self.send_follower_info(core),
            Phase::Guarded { epoch } if core.now >= core.guard_until => self.promise(core, epoch),
            Phase::Promising { epoch, token }
                if core.storage.is_durable(token) || mutant!("promise-in-memory") =>
            {
                self.phase = Phase::Promised { epoch };
                self.progress_at = core.now;
                self.send_ack_epoch(core, epoch);
            }
            Phase::Promised { epoch } if core.now >= self.resend_at => self.send_ack_epoch(core, epoch),
            Phase::Fetching { epoch, snapshot } if self.received == Some(snapshot) => {
                self.progress_at = core.now;
                self.phase = Phase::Installing {
                    epoch,
                    token: core.install(snapshot, std::mem::take(&mut self.snapshot_membership)),
                };
            }
            Phase::Installing { epoch, token } if core.storage.is_durable(token) => {
                self.progress_at = core.now;
                self.phase = Phase::Syncing { epoch };
            }
            // Everything before the record in the storage stream is durable with it: history, then the epoch, and
            // only now the acknowledgement. (An epoch on disk before its history made a short log look newest.)
            Phase::Adopting { epoch, token }
                if core.storage.is_durable(token) || mutant!("newleader-acked-before-disk") =>
            {
                self.progress_at = core.now;
                self.phase = Phase::Synced { epoch };
            }
            _ => {}
        }
        self.ack_progress(core);
        self.report_role(core);
        Next::Stay
    }

    pub(crate) fn next_deadline(&self, core: &Core) -> Tick {
        let timeout = core.config.election_timeout_ms;
        match self.phase {
            Phase::Joining => self.resend_at.min(self.started_at.saturating_add(timeout)),
            Phase::Guarded { .. } => core.guard_until.min(self.heard_at.saturating_add(timeout)),
            Phase::Promised { .. } => self.resend_at.min(self.heard_at.saturating_add(timeout)),
            Phase::Broadcast { .. } => self.heard_at.saturating_add(timeout),
            _ => self
                .heard_at
                .saturating_add(timeout)
                .min(self.progress_at.saturating_add(core.config.sync_timeout_ms)),
        }
    }

    fn is_overdue(&self, core: &Core) -> bool {
        let since = |at: Tick| core.now.saturating_sub(at);
        match self.phase {
            Phase::Joining => since(self.started_at) >= core.config.election_timeout_ms,
            Phase::Broadcast { .. } => since(self.heard_at) >= core.config.election_timeout_ms,
            _ => {
                since(self.heard_at) >= core.config.election_timeout_ms
                    || since(self.progress_at) >= core.config.sync_timeout_ms
            }
        }
    }

    /// Ends the session.
    fn abandon(&self, core: &mut Core) -> Next {
        core.send(self.leader, Body::Leave { session: self.session, resigned: false });
        Next::Look
    }

    fn lost_something(&self, core: &mut Core) -> Next {
        core.counters.gaps += 1;
        self.abandon(core)
    }

    fn malformed(&self, core: &mut Core) -> Next {
        core.counters.malformed += 1;
        self.abandon(core)
    }

    // ---- discovery ----------------------------------------------------------------------------------------------

    fn send_follower_info(&mut self, core: &mut Core) {
        let body = Body::FollowerInfo {
            session: self.session,
            accepted_epoch: core.record.accepted_epoch,
            may_vote: !core.record.needs_sync,
        };
        core.send(self.leader, body);
        // The candidate may decide a moment after us; four tries per heartbeat keep elections short.
        self.resend_at = core.now.saturating_add(core.config.heartbeat_ms.div_ceil(4));
    }

    pub(crate) fn handle_new_epoch(
        &mut self,
        core: &mut Core,
        uuid: DataUuid,
        epoch: u64,
        established: bool,
        counts: bool,
    ) -> Next {
        if self.phase != Phase::Joining {
            core.counters.duplicates += 1;
            return Next::Stay;
        }
        self.heard_at = core.now;
        self.progress_at = core.now;
        self.leader_uuid = Some(uuid);
        let promised = core.record.accepted_epoch;
        if !counts {
            // A learner's promise is worth nothing and is not made; it only refuses to go back. Whether we are one
            // is the leader's to say: it may have a membership in its log that we have not.
            if epoch < core.record.current_epoch {
                return self.abandon(core);
            }
            self.phase = Phase::Promised { epoch };
            self.send_ack_epoch(core, epoch);
        } else if epoch == promised && core.record.accepted_leader == Some(self.leader) {
            self.phase = Phase::Promised { epoch };
            self.send_ack_epoch(core, epoch);
        } else if epoch > promised || (epoch == promised && established) || mutant!("promise-goes-back") {
            // An established leader's quorum has outwaited every lease before it, so that we need not; and whoever
            // else we promised the same epoch to cannot gather a quorum in it any more.
            self.phase = Phase::Guarded { epoch };
            if established || core.now >= core.guard_until {
                self.promise(core, epoch);
            }
        } else {
            // Zab, phase 1: we promised a later epoch, or this one to another candidate.
            core.counters.stale += 1;
            return self.abandon(core);
        }
        Next::Stay
    }

    fn promise(&mut self, core: &mut Core, epoch: u64) {
        core.record.accepted_epoch = epoch;
        core.record.accepted_leader = Some(self.leader);
        core.epoch_floor = core.epoch_floor.max(epoch);
        self.phase = Phase::Promising { epoch, token: core.save_record() };
    }

    fn send_ack_epoch(&mut self, core: &mut Core, epoch: u64) {
        // Rounds that we acknowledged while waiting to promise count for the lease once we are in sync.
        self.extend_guard(core);
        let body = Body::AckEpoch {
            session: self.session,
            epoch,
            current_epoch: core.record.current_epoch,
            last: core.log.last(),
            tails: core.log.tails(TAILS_MAX),
        };
        core.send(self.leader, body);
        self.resend_at = core.now.saturating_add(core.config.heartbeat_ms);
    }

    // ---- the leader's stream ------------------------------------------------------------------------------------

    /// Checks that `seq` is the next of the leader's ordered messages. `Err` says what to do instead.
    fn take_seq(&mut self, core: &mut Core, epoch: u64, seq: u64) -> Result<(), Next> {
        if self.phase.epoch() != Some(epoch) {
            core.counters.stale += 1;
            return Err(Next::Stay);
        }
        if seq <= self.seq {
            core.counters.duplicates += 1;
            return Err(if mutant!("repetition-is-a-fault") { self.abandon(core) } else { Next::Stay });
        }
        if seq != self.seq + 1 && !mutant!("log-with-holes") {
            return Err(self.lost_something(core));
        }
        self.seq = seq;
        self.heard_at = core.now;
        self.progress_at = core.now;
        Ok(())
    }

    pub(crate) fn handle_sync_from(&mut self, core: &mut Core, epoch: u64, seq: u64, common: Zxid) -> Next {
        if let Err(next) = self.take_seq(core, epoch, seq) {
            return next;
        }
        if !matches!(self.phase, Phase::Promised { .. }) || !core.log.contains(common) {
            return self.malformed(core);
        }
        if common < core.commit {
            core.counters.refused_truncations += 1;
            return self.abandon(core);
        }
        if common < core.log.last() && !mutant!("no-truncation") {
            core.truncate(common);
        }
        if mutant!("epoch-before-history") {
            core.record.current_epoch = epoch;
            core.record.accepted_epoch = core.record.accepted_epoch.max(epoch);
            core.save_record();
        }
        self.phase = Phase::Syncing { epoch };
        Next::Stay
    }

    pub(crate) fn handle_snapshot(
        &mut self,
        core: &mut Core,
        epoch: u64,
        seq: u64,
        snapshot: SnapshotDescriptor,
        membership: Membership,
    ) -> Next {
        if let Err(next) = self.take_seq(core, epoch, seq) {
            return next;
        }
        if !matches!(self.phase, Phase::Promised { .. }) {
            return self.malformed(core);
        }
        if snapshot.zxid < core.commit {
            core.counters.refused_truncations += 1;
            return self.abandon(core);
        }
        self.snapshot_membership = membership;
        self.phase = Phase::Fetching { epoch, snapshot };
        Next::Stay
    }

    pub(crate) fn handle_snapshot_received(&mut self, core: &Core, snapshot: SnapshotDescriptor) {
        self.received = Some(snapshot);
        self.progress_at = core.now;
    }

    pub(crate) fn handle_snapshot_progress(&mut self, core: &Core) {
        self.progress_at = core.now;
    }

    pub(crate) fn handle_entries(
        &mut self,
        core: &mut Core,
        epoch: u64,
        seq: u64,
        prev: Zxid,
        entries: Vec<Entry>,
        commit: Zxid,
    ) -> Next {
        if let Err(next) = self.take_seq(core, epoch, seq) {
            return next;
        }
        if !self.phase.is_streaming() {
            return self.malformed(core);
        }
        // The leader says what stands before the first entry. A history with an epoch missing in between would
        // otherwise look contiguous.
        if prev != core.log.last() && !mutant!("log-with-holes") {
            return self.lost_something(core);
        }
        for entry in entries {
            if entry.zxid.epoch > epoch || core.append(entry).is_err() {
                return self.malformed(core);
            }
        }
        self.learn_commit(core, commit);
        Next::Stay
    }

    pub(crate) fn handle_new_leader(
        &mut self,
        core: &mut Core,
        epoch: u64,
        seq: u64,
        last: Zxid,
        membership: Membership,
    ) -> Next {
        if let Err(next) = self.take_seq(core, epoch, seq) {
            return next;
        }
        // Zab, phase 2: adopt the leader's history, all of it, for the epoch promised in discovery.
        let has_all = core.log.last() == last || mutant!("no-truncation");
        if !matches!(self.phase, Phase::Syncing { .. }) || !has_all {
            return self.malformed(core);
        }
        core.record.current_epoch = epoch;
        if core.record.accepted_epoch < epoch {
            core.record.accepted_epoch = epoch;
            core.record.accepted_leader = Some(self.leader);
        }
        core.learn_membership(membership);
        self.phase = Phase::Adopting { epoch, token: core.save_record() };
        Next::Stay
    }

    pub(crate) fn handle_up_to_date(&mut self, core: &mut Core, epoch: u64, seq: u64, commit: Zxid) -> Next {
        if let Err(next) = self.take_seq(core, epoch, seq) {
            return next;
        }
        if !matches!(self.phase, Phase::Synced { .. }) {
            return self.malformed(core);
        }
        if core.record.needs_sync {
            // Everything that the damage took is back. The next session may count.
            core.record.needs_sync = false;
            core.save_record();
            return self.abandon(core);
        }
        self.phase = Phase::Broadcast { epoch };
        core.forget_hint();
        self.learn_commit(core, commit);
        self.report_role(core);
        Next::Stay
    }

    /// A change of the membership makes a voter of a learner.
    fn report_role(&self, core: &mut Core) {
        let leader = self.leader;
        if matches!(self.phase, Phase::Broadcast { .. }) {
            core.report(if core.may_vote() {
                Role::Following { leader }
            } else {
                Role::Observing { leader }
            });
        }
    }

    pub(crate) fn handle_commit(&mut self, core: &mut Core, epoch: u64, commit: Zxid) {
        if self.phase.epoch() == Some(epoch) {
            self.learn_commit(core, commit);
        } else {
            core.counters.stale += 1;
        }
    }

    pub(crate) fn handle_heartbeat(
        &mut self,
        core: &mut Core,
        epoch: u64,
        round: u64,
        commit: Zxid,
        sent: u64,
    ) -> Next {
        if self.phase.epoch() != Some(epoch) {
            core.counters.stale += 1;
            return Next::Stay;
        }
        if sent > self.seq && !mutant!("log-with-holes") {
            return self.lost_something(core);
        }
        self.heard_at = core.now;
        // From the promise on we help this leader's lease; before it, an earlier one's.
        if self.has_promised() {
            self.extend_guard(core);
        }
        self.round = self.round.max(round);
        self.learn_commit(core, commit);
        self.send_ack(core);
        Next::Stay
    }

    fn has_promised(&self) -> bool {
        !matches!(self.phase, Phase::Joining | Phase::Guarded { .. })
    }

    fn extend_guard(&self, core: &mut Core) {
        if mutant!("followers-guard-nothing") {
            return;
        }
        core.guard_until = core.guard_until.max(core.now.saturating_add(core.config.election_timeout_ms));
    }

    /// The leader ended the session. One that resigned does not count on us any more.
    pub(crate) fn handle_leave(&self, core: &mut Core, resigned: bool) -> Next {
        if resigned && self.has_promised() {
            core.guard_until = core.now;
        }
        Next::Look
    }

    pub(crate) fn handle_disconnected(&self) -> Next {
        if self.phase == Phase::Joining { Next::Look } else { Next::Stay }
    }

    /// Commits are remembered in every phase and acted on once the leader is established.
    fn learn_commit(&mut self, core: &mut Core, commit: Zxid) {
        self.leader_commit = self.leader_commit.max(commit);
        let may_deliver = matches!(self.phase, Phase::Broadcast { .. })
            || (self.phase.is_streaming() && mutant!("commit-before-uptodate"));
        if may_deliver {
            core.advance_commit(self.leader_commit);
        }
    }

    // ---- acks ---------------------------------------------------------------------------------------------------

    /// What may be claimed now: only what is on disk, and only of the leader's history.
    fn progress(&self, core: &Core) -> Progress {
        let end = if mutant!("ack-before-disk") { core.log.last() } else { core.durable };
        let durable = if self.phase.is_streaming() { end } else { Zxid::ZERO };
        let membership = core.recorded;
        Progress { durable, synced: self.phase.is_synced(), disk_ok: core.disk_ok(), membership }
    }

    fn ack_progress(&mut self, core: &mut Core) {
        if self.phase.is_streaming() && self.acked != Some(self.progress(core)) {
            if self.acked.is_none_or(|acked| acked.durable != core.durable) {
                self.progress_at = core.now;
            }
            self.send_ack(core);
        }
    }

    fn send_ack(&mut self, core: &mut Core) {
        let Some(epoch) = self.phase.epoch() else { return };
        let progress = self.progress(core);
        self.acked = Some(progress);
        core.send(self.leader, Body::Ack { session: self.session, epoch, round: self.round, progress });
    }
}
