//! Looking for a leader: drain, form the cluster if it never was, elect.
//!
//! Fast leader election only *chooses*; it proves nothing. Safety rests on discovery (promises on disk, and a leader
//! that gives up when a member of its quorum has a newer history), so that votes may be lost, repeated or stale.

use std::collections::BTreeMap;

use crate::core::{Core, Next};
use crate::mutant;
use crate::{Body, DataUuid, Membership, PeerId, Role, Standing, Tick, Vote};

/// The role without a leader.
pub(crate) struct Looking {
    /// The previous role's writes are still on their way to disk. Nothing is said before they are done: the last
    /// zxid that we report always comes from disk, and no completion of theirs is taken for one of the next role.
    draining: bool,
    /// Whom we would follow; `None` while we may not vote.
    vote: Option<Vote>,
    /// The votes of this round, ours included, and whose directories cast them.
    votes: BTreeMap<PeerId, (DataUuid, Vote)>,
    resend_at: Tick,
    /// When the vote that a quorum shares becomes final.
    decide_at: Option<Tick>,
    /// A leader that says it is established.
    established: Option<PeerId>,
    /// Forming: who said hello without a bound membership, and when.
    hellos: BTreeMap<PeerId, (DataUuid, Tick)>,
}

impl Looking {
    pub(crate) fn new(core: &Core) -> Looking {
        Looking {
            draining: !mutant!("next-role-before-the-disk") && !mutant!("snapshot-in-memory"),
            vote: None,
            votes: BTreeMap::new(),
            resend_at: core.now,
            decide_at: None,
            established: None,
            hellos: BTreeMap::new(),
        }
    }

    pub(crate) fn phase(&self, core: &Core) -> &'static str {
        match (self.draining, core.is_formed()) {
            (true, _) => "DRAIN",
            (false, false) => "FORMATION",
            (false, true) if core.belongs() => "ELECTION",
            (false, true) => "OUTSIDE",
        }
    }

    /// Acts on whatever time, disk and messages made due.
    pub(crate) fn advance(&mut self, core: &mut Core) -> Next {
        if self.draining {
            if !core.is_drained() {
                return Next::Stay;
            }
            self.draining = false;
            self.resend_at = core.now;
        }
        if !core.is_formed() {
            self.form(core);
            return Next::Stay;
        }
        if !core.belongs() {
            self.ask_for_membership(core);
            return Next::Stay;
        }
        core.report(Role::Looking);
        if let Some(leader) = self.established.take() {
            return Next::Join(leader);
        }
        if self.vote.is_some_and(|vote| !core.is_candidate(vote.candidate)) {
            // It was removed, as we learned after we had joined its supporters.
            self.vote = None;
        }
        // A leader that we heard counts on us until the guard ends, so that its lease holds.
        if self.vote.is_none() && core.takes_part() && core.now >= core.guard_until {
            self.start_round(core);
        }
        if core.now >= self.resend_at {
            self.announce(core);
        }
        self.decide(core)
    }

    pub(crate) fn next_deadline(&self, core: &Core) -> Option<Tick> {
        if self.draining {
            return None;
        }
        let vote_at = (self.vote.is_none() && core.takes_part()).then_some(core.guard_until);
        [Some(self.resend_at), self.decide_at, vote_at].into_iter().flatten().min()
    }

    /// A directory that the membership does not name neither votes nor asks to follow. It asks those whom it knows
    /// whether they know a newer membership.
    fn ask_for_membership(&mut self, core: &mut Core) {
        core.report(Role::NotMember);
        (self.vote, self.decide_at, self.established) = (None, None, None);
        self.votes.clear();
        if core.now >= self.resend_at {
            for peer in core.others() {
                core.tell_membership(peer);
            }
            self.resend_at = core.now.saturating_add(core.config.election_timeout_ms);
        }
    }

    // ---- election -----------------------------------------------------------------------------------------------

    pub(crate) fn handle_notification(
        &mut self,
        core: &mut Core,
        from: PeerId,
        uuid: DataUuid,
        round: u64,
        vote: Option<Vote>,
        standing: Standing,
    ) {
        if self.draining || !core.is_formed() || !core.belongs() {
            return;
        }
        if !core.may_elect(from, uuid) {
            // A learner asks only who leads; we do not know.
            core.counters.foreign += u64::from(vote.is_some());
            return;
        }
        match (standing, vote) {
            (Standing::Leading { .. }, _) => self.established = Some(from),
            (Standing::Looking, Some(vote)) => self.count_vote(core, from, uuid, round, vote),
            // It has decided in our round, and its candidate does not lead yet.
            (Standing::Following { .. }, Some(vote)) if round == core.election_round => {
                self.count_vote(core, from, uuid, round, vote);
            }
            (Standing::Looking, None) | (Standing::Following { .. }, _) => {}
        }
    }

    fn count_vote(&mut self, core: &mut Core, from: PeerId, uuid: DataUuid, round: u64, vote: Vote) {
        let Some(mine) = self.vote else { return };
        if !core.is_candidate(vote.candidate) {
            core.counters.malformed += 1;
            return;
        }
        if round < core.election_round {
            // It restarted or came late; our vote tells it the round.
            core.send(from, self.notification(core));
            return;
        }
        let mut changed = false;
        if round > core.election_round {
            core.election_round = round;
            self.votes.clear();
            self.decide_at = None;
            self.vote = Some(own_vote(core));
            changed = true;
        }
        self.votes.insert(from, (uuid, vote));
        let best = self.vote.unwrap_or(mine).max(vote);
        if changed || self.vote != Some(best) {
            self.vote = Some(best);
            self.decide_at = None;
            self.votes.insert(core.id(), (core.record.data_uuid, best));
            self.announce(core);
        }
    }

    fn start_round(&mut self, core: &mut Core) {
        core.election_round = core.election_round.saturating_add(1);
        core.counters.elections += 1;
        let vote = own_vote(core);
        self.vote = Some(vote);
        self.votes = BTreeMap::from([(core.id(), (core.record.data_uuid, vote))]);
        self.decide_at = None;
        self.resend_at = core.now;
    }

    fn announce(&mut self, core: &mut Core) {
        let body = self.notification(core);
        core.broadcast(&body);
        // A voter of the membership in our log may not have it in its own, and we need its vote.
        let unaware: Vec<PeerId> = core
            .pending_membership()
            .into_iter()
            .flat_map(|pending| pending.voters.keys())
            .copied()
            .collect();
        let me = core.id();
        for peer in unaware.into_iter().filter(|peer| *peer != me) {
            core.tell_membership(peer);
        }
        self.resend_at = core.now.saturating_add(core.config.heartbeat_ms);
    }

    fn notification(&self, core: &Core) -> Body {
        let membership = core.record.membership.version;
        Body::Notification {
            round: core.election_round,
            vote: self.vote,
            standing: Standing::Looking,
            membership,
        }
    }

    fn decide(&mut self, core: &mut Core) -> Next {
        let Some(mine) = self.vote else { return Next::Stay };
        let agrees = |id: PeerId, uuid: DataUuid| {
            let is_bound = |known: DataUuid| known == uuid || mutant!("wiped-voter-votes");
            self.votes.get(&id).is_some_and(|(known, vote)| is_bound(*known) && *vote == mine)
        };
        // To follow takes less than to lead: the candidate may count by an older or newer membership than we, waits for
        // us, and has to prove itself to all quorums that it knows of.
        let leads = mine.candidate == core.id();
        let is_chosen = if leads { core.is_quorum(agrees) } else { core.may_be_quorum(agrees) };
        if !is_chosen {
            self.decide_at = None;
            return Next::Stay;
        }
        // A better vote may be on its way from somebody who started later; there is none if all agree.
        let finalize_at = core.now.saturating_add(core.config.election_finalize_ms);
        let decide_at = *self.decide_at.get_or_insert(finalize_at);
        if !core.is_everyone(agrees) && core.now < decide_at {
            return Next::Stay;
        }
        core.last_vote = Some(mine);
        if leads { Next::Lead } else { Next::Join(mine.candidate) }
    }

    // ---- formation ----------------------------------------------------------------------------------------------
    //
    // A voter is (id, directory). Where the set-up tool could not write the directories into every server's
    // membership, the voter with the smallest id does it, once, when it can talk to *all* of them: were a majority
    // enough, a voter wiped right after it could form a second cluster with the one that was absent.

    fn form(&mut self, core: &mut Core) {
        if core.now >= self.resend_at {
            for peer in core.others() {
                core.tell_membership(peer);
            }
            self.resend_at = core.now.saturating_add(core.config.heartbeat_ms);
        }
        let voters = &core.record.membership.voters;
        if voters.keys().next() != Some(&core.id()) {
            return;
        }
        let fresh = |at: Tick| core.now.saturating_sub(at) < core.config.election_timeout_ms;
        let mut membership = Membership { version: 1, ..core.record.membership.clone() };
        for (id, binding) in &mut membership.voters {
            if *id == core.id() {
                *binding = Some(core.record.data_uuid);
            } else {
                *binding = self.hellos.get(id).filter(|(_, at)| fresh(*at)).map(|(uuid, _)| *uuid);
            }
        }
        if membership.is_bound() {
            self.adopt(core, membership);
        }
    }

    /// The cluster is formed; what is decided about it waits for the disk.
    fn adopt(&mut self, core: &mut Core, membership: Membership) {
        if core.learn_membership(membership) {
            core.save_record();
            self.draining = true;
        }
    }

    /// Before the cluster is formed, as far as we know.
    pub(crate) fn handle_hello(&mut self, core: &mut Core, from: PeerId, uuid: DataUuid, theirs: Membership) {
        if self.draining {
            return;
        }
        if theirs.is_bound() {
            self.adopt(core, theirs);
        } else if core.record.membership.voters.contains_key(&from) {
            self.hellos.insert(from, (uuid, core.now));
        } else {
            core.counters.foreign += 1;
        }
    }
}

fn own_vote(core: &Core) -> Vote {
    Vote { current_epoch: core.record.current_epoch, last: core.log.last(), candidate: core.id() }
}
