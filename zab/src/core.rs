//! What every role shares: the durable state and its picture in memory, the outputs, and the rules that hold in
//! all roles (delivery, the guard of leases, who counts).

use std::collections::{BTreeSet, VecDeque};

use crate::log::Log;
use crate::mutant;
use crate::quorum::reached_by_majority;
use crate::storage::{Effect, Storage};
use crate::{
    Body, Config, DataUuid, Entry, Membership, Message, Output, Payload, PeerId, Record, Role,
    SnapshotDescriptor, SnapshotRef, Tick, Vote, Zxid,
};

/// Things that are counted and otherwise ignored. They never change what the protocol does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Messages of an earlier session, epoch or role.
    pub stale: u64,
    /// Messages that the sender's phase does not allow, or that contradict themselves.
    pub malformed: u64,
    /// Votes and promises of directories that the membership does not name.
    pub foreign: u64,
    /// Entries received twice.
    pub duplicates: u64,
    /// Sessions given up because something was lost on the way.
    pub gaps: u64,
    /// A leader asked to cut or replace committed transactions. Nothing was cut; a human must look.
    pub refused_truncations: u64,
    /// Elections started.
    pub elections: u64,
    /// Times an established leadership ended.
    pub depositions: u64,
}

/// What a role wants to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing to change.
    Stay,
    /// Give up the role.
    Look,
    /// Join this leader.
    Join(PeerId),
    /// Try to lead.
    Lead,
}

/// The shared part of a peer.
pub(crate) struct Core {
    pub(crate) config: Config,
    /// As last written or being written.
    pub(crate) record: Record,
    pub(crate) log: Log,
    /// The end of the log on disk.
    pub(crate) durable: Zxid,
    /// The end of the log on disk once everything in the storage stream is done.
    stream_end: Zxid,
    pub(crate) storage: Storage,
    /// Known to be committed, and contained in the log.
    pub(crate) commit: Zxid,
    pub(crate) delivered: Zxid,
    /// Until then no new epoch is promised: a leader that we heard may count on it for its lease.
    pub(crate) guard_until: Tick,
    /// The election round, over all elections of this incarnation.
    pub(crate) election_round: u64,
    /// The vote that the last election ended with.
    pub(crate) last_vote: Option<Vote>,
    /// The largest promise heard of: the next epoch is larger.
    pub(crate) epoch_floor: u64,
    pub(crate) counters: Counters,
    pub(crate) now: Tick,
    /// The version of the membership in the record on disk.
    pub(crate) recorded: u64,
    /// A membership that somebody has in its log and we have not. It may name us: then we vote and promise, and
    /// whoever counts us decides by its own log whether that is right.
    hint: Option<Membership>,
    /// Since the last report.
    membership_changed: bool,
    reported: Role,
    appending: Vec<Entry>,
    outputs: VecDeque<Output>,
    random: u64,
}

impl Core {
    pub(crate) fn new(config: Config, record: Record, log: Log, applied: Zxid, now: Tick, seed: u64) -> Core {
        // A lease that this directory's earlier incarnation took part in may still be running.
        let needs_no_guard = record.is_fresh() || mutant!("no-guard-after-restart");
        let guard_until = if needs_no_guard { now } else { now.saturating_add(config.election_timeout_ms) };
        let mut core = Core {
            durable: log.last(),
            stream_end: log.last(),
            commit: applied,
            delivered: applied,
            epoch_floor: record.accepted_epoch,
            storage: Storage::new(now),
            recorded: record.membership.version,
            hint: None,
            membership_changed: true,
            guard_until,
            config,
            record,
            log,
            election_round: 0,
            last_vote: None,
            counters: Counters::default(),
            now,
            reported: Role::Looking,
            appending: Vec::new(),
            outputs: VecDeque::new(),
            random: seed,
        };
        if core.note_committed_membership() {
            core.save_record();
        }
        core
    }

    pub(crate) fn id(&self) -> PeerId {
        self.config.id
    }

    // ---- who counts ---------------------------------------------------------------------------------------------

    /// The change of the membership in our log that is not known to be committed. There is one at most: a leader
    /// proposes a change only when the one before it is committed.
    pub(crate) fn pending_membership(&self) -> Option<&Membership> {
        let committed = self.record.membership.version;
        self.log.memberships().map(|(_, membership)| membership).find(|newest| newest.version > committed)
    }

    /// What has to agree: the committed membership, and the one that may replace it.
    fn memberships(&self) -> impl Iterator<Item = &Membership> {
        let pending = self.pending_membership().filter(|_| !mutant!("old-membership-decides"));
        let committed =
            Some(&self.record.membership).filter(|_| pending.is_none() || !mutant!("new-membership-decides"));
        committed.into_iter().chain(pending)
    }

    /// Whether the cluster was formed, as far as we know. Nobody votes or leads before.
    pub(crate) fn is_formed(&self) -> bool {
        self.record.membership.is_bound()
    }

    /// Whether the votes, promises and acks of this directory may count.
    pub(crate) fn is_voter(&self, id: PeerId, uuid: DataUuid) -> bool {
        self.is_formed() && self.memberships().any(|membership| membership.is_voter(id, uuid))
    }

    /// Whether this directory may be one of those who elect and lead: a voter, or an observer, which another may have
    /// as a voter in its log. Hearing and following it risks nothing: it proves itself to a quorum by its own log.
    pub(crate) fn may_elect(&self, id: PeerId, uuid: DataUuid) -> bool {
        let may = |membership: &Membership| {
            let observes = membership.observers.contains(&id) && membership.is_member(id, uuid);
            observes || membership.is_voter(id, uuid)
        };
        self.is_formed() && self.memberships().chain(&self.hint).any(may)
    }

    /// Whether this directory belongs to the cluster. A removed one does not, although its number may again.
    pub(crate) fn is_member(&self, id: PeerId, uuid: DataUuid) -> bool {
        self.memberships().any(|membership| membership.is_member(id, uuid))
    }

    /// Whether a member has this number. A voter that we know of none may be one in another's log.
    pub(crate) fn is_candidate(&self, id: PeerId) -> bool {
        self.memberships().chain(&self.hint).any(|membership| membership.contains(id))
    }

    /// Whether our own acks count, if our log is whole.
    pub(crate) fn is_bound_voter(&self) -> bool {
        self.is_voter(self.id(), self.record.data_uuid)
    }

    /// Whether we follow as a voter: our acks count now.
    pub(crate) fn may_vote(&self) -> bool {
        self.is_bound_voter() && (!self.record.needs_sync || mutant!("damaged-log-votes"))
    }

    /// Whether we take part in elections: somebody may count us.
    pub(crate) fn takes_part(&self) -> bool {
        let (id, uuid) = (self.id(), self.record.data_uuid);
        let is_hinted = self.hint.as_ref().is_some_and(|hint| hint.is_voter(id, uuid));
        let is_whole = !self.record.needs_sync || mutant!("damaged-log-votes");
        self.is_formed() && is_whole && (is_hinted || self.is_bound_voter())
    }

    /// Whether the cluster, as far as we know it, has a place for this directory.
    pub(crate) fn belongs(&self) -> bool {
        let (id, uuid) = (self.id(), self.record.data_uuid);
        self.is_member(id, uuid) || self.hint.as_ref().is_some_and(|hint| hint.is_member(id, uuid))
    }

    /// Whether the voters for which `agrees` holds are a quorum: a majority of the committed membership and, while
    /// another one is in the log, a majority of that one too.
    pub(crate) fn is_quorum(&self, agrees: impl Fn(PeerId, DataUuid) -> bool) -> bool {
        self.memberships().all(|membership| membership.is_quorum(&agrees))
    }

    /// Whether somebody who has another log than ours may take those for which `agrees` holds for a quorum.
    pub(crate) fn may_be_quorum(&self, agrees: impl Fn(PeerId, DataUuid) -> bool) -> bool {
        self.memberships().chain(&self.hint).any(|membership| membership.is_quorum(&agrees))
    }

    /// Whether `agrees` holds for every voter.
    pub(crate) fn is_everyone(&self, agrees: impl Fn(PeerId, DataUuid) -> bool) -> bool {
        self.memberships().all(|membership| membership.count(&agrees) == membership.voters.len())
    }

    /// The greatest value that a quorum reached.
    pub(crate) fn reached_by_quorum<T: Ord + Copy>(
        &self,
        value: impl Fn(PeerId, DataUuid) -> Option<T>,
    ) -> Option<T> {
        let reached = |membership: &Membership| {
            let values = membership.voters.iter().filter_map(|(id, uuid)| value(*id, (*uuid)?)).collect();
            reached_by_majority(values, membership.voters.len())
        };
        // `None`, which is less than anything, if one of the memberships reached nothing.
        self.memberships().map(reached).min().flatten()
    }

    /// Takes what the log and its commit position say about the membership into the record in memory. Returns
    /// whether that changed.
    fn note_committed_membership(&mut self) -> bool {
        let known = self.record.membership.version;
        // A change that another one follows is committed, or the other would not have been proposed.
        let mut changes = self.log.memberships().enumerate();
        let committed = changes.find(|(followers, (at, _))| *followers > 0 || *at <= self.commit);
        let newer =
            committed.map(|(_, (_, membership))| membership).filter(|one| one.version > known).cloned();
        drop(changes);
        newer.is_some_and(|committed| self.set_committed_membership(committed))
    }

    fn set_committed_membership(&mut self, committed: Membership) -> bool {
        self.membership_changed = true;
        self.hint.take_if(|hint| hint.version <= committed.version);
        self.record.membership = committed;
        true
    }

    /// Learns a membership that was committed, from whoever knew. Returns whether it was news; the record is not
    /// written yet.
    pub(crate) fn learn_membership(&mut self, committed: Membership) -> bool {
        let is_news = committed.version > self.record.membership.version
            && committed.is_bound()
            && !committed.voters.is_empty();
        is_news && self.set_committed_membership(committed)
    }

    /// Learns of a membership that may be committed one day.
    pub(crate) fn learn_hint(&mut self, hint: Membership) {
        let (id, uuid) = (self.id(), self.record.data_uuid);
        // Of several that may be committed one day, the one that needs us.
        let is_needed = self.hint.as_ref().is_some_and(|known| known.is_voter(id, uuid));
        let is_better = hint.is_voter(id, uuid) || !is_needed;
        if is_better && hint.version > self.record.membership.version && hint.is_bound() {
            self.membership_changed |= self.hint.as_ref() != Some(&hint);
            self.hint = Some(hint);
        }
    }

    /// An established leader's log is the truth: what others had in theirs is in it or was cut.
    pub(crate) fn forget_hint(&mut self) {
        self.membership_changed |= self.hint.take().is_some();
    }

    /// Tells the driver whom to connect to, if that changed.
    pub(crate) fn report_membership(&mut self) {
        if std::mem::take(&mut self.membership_changed) {
            let pending = self.pending_membership().or(self.hint.as_ref()).cloned();
            let committed = self.record.membership.clone();
            self.outputs.push_back(Output::MembershipChanged { committed, pending });
        }
    }

    /// Everybody else who may count or listen.
    pub(crate) fn others(&self) -> BTreeSet<PeerId> {
        let mut others: BTreeSet<PeerId> =
            self.memberships().chain(&self.hint).flat_map(Membership::members).collect();
        others.remove(&self.id());
        others
    }

    /// Tells a peer who the members are.
    pub(crate) fn tell_membership(&mut self, to: PeerId) {
        let (membership, pending) = (self.record.membership.clone(), self.pending_membership().cloned());
        self.send(to, Body::Hello { membership, pending });
    }

    pub(crate) fn reported(&self) -> Role {
        self.reported
    }

    /// The next number of a splitmix64 sequence.
    pub(crate) fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    // ---- outputs ------------------------------------------------------------------------------------------------

    pub(crate) fn pop_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub(crate) fn has_output(&self) -> bool {
        !self.outputs.is_empty()
    }

    pub(crate) fn clear_outputs(&mut self) {
        self.outputs.clear();
        self.appending.clear();
    }

    pub(crate) fn emit(&mut self, output: Output) {
        self.outputs.push_back(output);
    }

    pub(crate) fn send(&mut self, to: PeerId, body: Body) {
        let message = Message { uuid: self.record.data_uuid, body };
        self.outputs.push_back(Output::Send { to, message });
    }

    pub(crate) fn broadcast(&mut self, body: &Body) {
        for to in self.others() {
            self.send(to, body.clone());
        }
    }

    pub(crate) fn report(&mut self, role: Role) {
        if self.reported != role {
            self.reported = role;
            self.outputs.push_back(Output::RoleChanged { role });
        }
    }

    // ---- storage ------------------------------------------------------------------------------------------------

    /// Adds a neighbour to the log; it is written with the next flush.
    pub(crate) fn append(&mut self, entry: Entry) -> Result<(), crate::log::NotContiguous> {
        let changes = matches!(entry.payload, Payload::Membership(_));
        self.log.push(entry.clone())?;
        self.appending.push(entry);
        if changes {
            self.membership_changed = true;
            if self.note_committed_membership() {
                self.save_record();
            }
        }
        Ok(())
    }

    /// Turns gathered entries into one append. Returns whether there were any.
    pub(crate) fn flush_appends(&mut self) -> bool {
        if self.appending.is_empty() {
            return false;
        }
        let entries = std::mem::take(&mut self.appending);
        self.stream_end = self.log.last();
        let token = self.storage.issue(Effect::LogEndsAt(self.stream_end), self.now);
        self.outputs.push_back(Output::Append { entries, token });
        true
    }

    pub(crate) fn truncate(&mut self, after: Zxid) {
        self.flush_appends();
        self.log.truncate_after(after);
        self.membership_changed = true;
        self.durable = self.durable.min(after);
        self.storage.clamp(after);
        self.stream_end = after;
        let token = self.storage.issue(Effect::LogEndsAt(after), self.now);
        self.outputs.push_back(Output::Truncate { after, token });
    }

    pub(crate) fn save_record(&mut self) -> u64 {
        self.flush_appends();
        let version = self.record.membership.version;
        let token = self.storage.issue(Effect::Recorded { end: self.stream_end, version }, self.now);
        self.outputs.push_back(Output::SaveRecord { record: self.record.clone(), token });
        token
    }

    /// Switches to a snapshot, and to the membership that came with it: a record that names a snapshot never names
    /// an older membership than the snapshot's.
    pub(crate) fn install(&mut self, snapshot: SnapshotDescriptor, membership: Membership) -> u64 {
        self.flush_appends();
        self.learn_membership(membership);
        self.record.snapshot = Some(SnapshotRef { id: snapshot.id, zxid: snapshot.zxid });
        self.record.log_start = snapshot.zxid;
        if !mutant!("snapshot-keeps-the-log") {
            self.record.log_generation += 1;
        }
        self.stream_end = snapshot.zxid;
        let version = self.record.membership.version;
        let token = self.storage.issue(Effect::Installed { snapshot, version }, self.now);
        self.outputs.push_back(Output::InstallSnapshot { snapshot, record: self.record.clone(), token });
        if mutant!("snapshot-in-memory") {
            self.switch_to(snapshot.zxid);
        }
        token
    }

    /// The state machine is ahead of what is left of the log: a damaged tail. The state is a prefix of the history
    /// and stays; the log begins anew behind it, and what this peer acknowledged counts as forgotten.
    pub(crate) fn restart_log_at(&mut self, applied: Zxid) {
        self.log.reset(applied);
        self.durable = applied;
        self.stream_end = applied;
        self.record.needs_sync = true;
        self.record.log_start = applied;
        self.record.log_generation += 1;
        self.save_record();
    }

    pub(crate) fn probe_disk_when_idle(&mut self) {
        let due = self.storage.probe_at(self.config.disk_probe_ms).is_some_and(|at| self.now >= at);
        if due && self.appending.is_empty() {
            let token = self.storage.issue(Effect::LogEndsAt(self.stream_end), self.now);
            self.outputs.push_back(Output::ProbeDisk { token });
        }
    }

    pub(crate) fn disk_ok(&self) -> bool {
        !self.storage.is_stalled(self.config.disk_stall_ms, self.now)
    }

    /// Whether disk and memory agree.
    pub(crate) fn is_drained(&self) -> bool {
        self.storage.is_idle() && self.appending.is_empty()
    }

    pub(crate) fn handle_durable(&mut self, token: u64) {
        while let Some(effect) = self.storage.complete(token, self.now) {
            match effect {
                Effect::LogEndsAt(end) => self.durable = end,
                Effect::Recorded { end, version } => {
                    self.durable = end;
                    self.recorded = version;
                }
                // Only now does the last zxid move: had memory moved first, an interrupted synchronization would
                // leave a peer that claims a history it loses at the next crash.
                Effect::Installed { snapshot, version } => {
                    self.recorded = version;
                    if !mutant!("snapshot-in-memory") {
                        self.switch_to(snapshot.zxid);
                    }
                }
            }
        }
        self.deliver();
    }

    /// The history is what a snapshot at `zxid` holds.
    fn switch_to(&mut self, zxid: Zxid) {
        self.log.reset(zxid);
        self.membership_changed = true;
        self.durable = zxid;
        self.commit = zxid;
        self.delivered = zxid;
    }

    /// Keeps what a checkpoint at `upto` does not replace, a window behind it and what lies after `pinned`.
    pub(crate) fn compact(&mut self, upto: Zxid, pinned: Option<Zxid>) {
        let upto =
            if mutant!("log-purged-ahead-of-checkpoint") { self.delivered } else { upto.min(self.delivered) };
        if upto <= self.record.log_start || !self.log.contains(upto) {
            return;
        }
        let mut start = self.log.back_from(upto, self.config.log_window_bytes);
        if self.log.bytes() <= self.config.log_bytes_max {
            start = pinned.map_or(start, |pin| start.min(pin));
        }
        if start > self.record.log_start && self.log.contains(start) {
            self.log.purge_to(start);
            self.record.log_start = start;
            self.save_record();
            self.outputs.push_back(Output::PurgeLog { upto: start });
        }
    }

    // ---- commitment ---------------------------------------------------------------------------------------------

    /// Learns that everything up to `commit` is committed, as far as the log has it, and delivers.
    pub(crate) fn advance_commit(&mut self, commit: Zxid) {
        self.commit = self.commit.max(commit.min(self.log.last()));
        if self.note_committed_membership() {
            self.save_record();
        }
        self.deliver();
    }

    /// The one way to the state machine: committed *and* on this disk, so that no state is ahead of its own log.
    fn deliver(&mut self) {
        let upto = if mutant!("delivery-before-disk") { self.commit } else { self.commit.min(self.durable) };
        while self.delivered < upto {
            let Some(entry) = self.log.entry_after(self.delivered) else { return };
            let output = Output::Deliver { zxid: entry.zxid, txn: entry.delivery() };
            self.delivered = entry.zxid;
            self.outputs.push_back(output);
        }
    }
}
