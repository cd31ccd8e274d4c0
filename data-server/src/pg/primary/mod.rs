//! The primary of a group: orders operations, sends them to all members in parallel, acknowledges what all
//! certain members have written, and moves the group's configuration on.
//!
//! ```text
//!            every certain member answered, the longest log is ours,     configuration
//!            and all have written all of it                              activated
//! TakingOver ──────────────────────────────────────────────────▶ Ready ──────────────▶ Active
//!     │ this copy is incomplete
//!     ▼
//!   Broken: asks for another primary, who will fill this copy
//! ```
//!
//! Why the longest log is right: only one primary orders under one configuration version, it orders only in
//! an activated configuration, and before that all certain members were equal. So the logs of the certain
//! members are prefixes of one log, and what was acknowledged is in each of them.

mod commit;
mod fill;
mod order;
mod peer;
mod repair;
mod scrub;
mod split;
mod takeover;
mod verdict;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use protocol::data::{DataError, DataRequest};
use protocol::map::{Member, PgChange, PgConfig};
use protocol::meta::PgReport;
use protocol::replication::PeerMessage;
use protocol::{DataServerId, mutant};

use super::group::Group;
use super::types::{Context, Output, RequestToken, Tick};
use commit::{HeldRead, HeldSync, Pending};
use peer::{Peer, PeerRole, Stage};
use repair::Repair;
use scrub::Scrub;
use split::Split;

/// How soon a proposal that had no effect is made again, in milliseconds.
const PROPOSE_AGAIN_MS: u64 = 1000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    TakingOver,
    Ready,
    Active,
    Broken,
}

/// A client's request on its way.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) token: RequestToken,
    pub(super) body: DataRequest,
    pub(super) payload: Bytes,
}

#[derive(Debug)]
pub(super) struct Primary {
    phase: Phase,
    /// When this server learned that it is primary.
    since: Tick,
    peers: BTreeMap<DataServerId, Peer>,
    last_link: u64,
    /// Who was asked for the end of its log, on which link.
    fetching: Option<(DataServerId, u64)>,
    /// Everything up to here is written by all certain members.
    committed: u64,
    pending: VecDeque<Pending>,
    pending_bytes: usize,
    reads: Vec<HeldRead>,
    syncs: Vec<HeldSync>,
    queue: VecDeque<Request>,
    repairs: BTreeMap<u64, Repair>,
    last_repair: u64,
    proposal: Option<(u64, PgChange, Tick)>,
    /// Bytes that may still be pushed.
    credit: i64,
    scrub: Scrub,
    split: Split,
}

impl Primary {
    /// Takes over.
    pub(super) fn new(g: &mut Group, cx: &mut Context<'_>) -> Self {
        let mut primary = Primary {
            phase: Phase::TakingOver,
            since: cx.now,
            peers: BTreeMap::new(),
            last_link: 0,
            fetching: None,
            committed: 0,
            pending: VecDeque::new(),
            pending_bytes: 0,
            reads: Vec::new(),
            syncs: Vec::new(),
            queue: VecDeque::new(),
            repairs: BTreeMap::new(),
            last_repair: 0,
            proposal: None,
            credit: 0,
            scrub: Scrub::default(),
            split: Split::default(),
        };
        g.stats.recount();
        primary.adopt_members(g, cx);
        primary.continue_takeover(g, cx);
        primary
    }

    /// The configuration changed and this server is still primary. False if it has to take over anew.
    pub(super) fn handle_config(&mut self, g: &mut Group, cx: &mut Context<'_>) -> bool {
        let goes_on = match self.phase {
            Phase::Active => g.config().activated,
            Phase::Ready => g.config().activated && self.certain_unchanged(g.config()),
            Phase::TakingOver | Phase::Broken => false,
        };
        if !goes_on {
            return false;
        }
        self.adopt_members(g, cx);
        if self.phase == Phase::Ready {
            self.activate(g, cx);
        }
        self.advance(g, cx);
        true
    }

    /// Everything that clients wait for is refused: somebody else may be primary.
    pub(super) fn resign(&mut self, g: &mut Group) {
        let version = g.version();
        self.refuse_all(g, &DataError::NotPrimary { version });
    }

    /// When it became primary.
    pub(super) fn since(&self) -> Tick {
        self.since
    }

    /// The takeover goes on under a newer configuration; what may be dropped depends on when it began.
    pub(super) fn keep_since(&mut self, since: Tick) {
        self.since = since;
    }

    #[cfg(test)]
    pub(super) fn phase_name(&self) -> &'static str {
        match self.phase {
            Phase::TakingOver => "taking over",
            Phase::Ready => "ready",
            Phase::Broken => "broken",
            Phase::Active if !self.repairs.is_empty() => "repairing",
            Phase::Active if self.wants_credit() => "filling",
            Phase::Active if self.scrub.is_pulling() => "replacing",
            Phase::Active => "active",
        }
    }

    pub(super) fn is_active(&self) -> bool {
        self.phase == Phase::Active
    }

    pub(super) fn handle_tick(&mut self, g: &mut Group, cx: &mut Context<'_>) {
        if self.phase == Phase::Active && !cx.leased() {
            // Who waits may find another primary; what is ordered stays ordered.
            let why = "this server has lost contact with the metadata cluster".to_owned();
            self.refuse_all(g, &DataError::Unavailable(why));
        }
        self.watch_peers(g, cx);
        self.retry_repairs(g);
        self.continue_takeover(g, cx);
        self.advance(g, cx);
        self.pump_fills(g, cx);
        self.pump_scrub(g, cx);
        self.prepare_promotions(g);
        self.propose(g, cx);
        if let Err(error) = g.stats.step(&g.copy, cx) {
            g.note("counting objects", error);
        }
    }

    /// A message from a member.
    pub(super) fn handle_message(
        &mut self,
        g: &mut Group,
        cx: &mut Context<'_>,
        from: DataServerId,
        message: PeerMessage,
        payload: Bytes,
    ) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        let (version, link) = match &message {
            PeerMessage::Refused { version, link } => {
                let (version, link) = (*version, *link);
                return self.handle_refusal(g, from, version, link);
            }
            PeerMessage::Hello { .. } | PeerMessage::Stream { .. } => return,
            PeerMessage::Status { version, link, .. }
            | PeerMessage::Ack { version, link, .. }
            | PeerMessage::Tail { version, link, .. }
            | PeerMessage::Blocks { version, link, .. }
            | PeerMessage::NeedObject { version, link, .. }
            | PeerMessage::Scrubbed { version, link, .. }
            | PeerMessage::Verified { version, link, .. } => (*version, *link),
        };
        if version != g.version() || link != peer.link {
            return;
        }
        match message {
            PeerMessage::Ack { written, durable, processed, full, .. } => {
                peer.full = full;
                if peer.acknowledge(written, durable, processed) {
                    peer.waiting_since = None;
                    peer.quiet_since = None;
                }
                self.continue_takeover(g, cx);
            }
            PeerMessage::Status { common, head, stray, fill, written, durable, full, split_at, .. } => {
                peer.full = full;
                peer.written = written;
                peer.durable = durable;
                let status = peer::PeerStatus { common, head, stray, fill, split_at };
                self.handle_status(g, cx, from, status);
            }
            PeerMessage::Tail { after, entries, .. } => {
                self.handle_tail(g, cx, from, after, entries, payload)
            }
            PeerMessage::Blocks { id, found, .. } => self.handle_blocks(g, cx, from, id, found, payload),
            PeerMessage::NeedObject { object, .. } => self.handle_need(from, object),
            PeerMessage::Scrubbed { id, upto, objects, .. } => self.handle_scrubbed(from, id, upto, objects),
            PeerMessage::Verified { id, damaged, .. } => self.handle_verified(g, from, id, damaged),
            PeerMessage::Refused { .. } | PeerMessage::Hello { .. } | PeerMessage::Stream { .. } => {}
        }
        self.advance(g, cx);
        self.pump_fills(g, cx);
        self.pump_scrub(g, cx);
        self.prepare_promotions(g);
        self.propose(g, cx);
    }

    /// The connection to a server was lost or came back: start over with it.
    pub(super) fn handle_link(
        &mut self,
        g: &mut Group,
        cx: &mut Context<'_>,
        server: DataServerId,
        up: bool,
    ) {
        let link = self.last_link + 1;
        let Some(peer) = self.peers.get_mut(&server) else { return };
        match peer.stage {
            Stage::Idle => {}
            _ if up => {
                self.last_link = link;
                peer.restart(g, link, cx.now);
            }
            _ => peer.stage = Stage::Probing(cx.now),
        }
    }

    /// May push this many bytes more.
    pub(super) fn grant(&mut self, bytes: i64) {
        // What was not used is not saved up beyond one object.
        self.credit = (self.credit + bytes).min(bytes.max(8 << 20));
    }

    pub(super) fn wants_credit(&self) -> bool {
        self.peers.values().any(|peer| peer.fill.is_some() && peer.stage == Stage::Streaming)
    }

    /// Whether it wants credit and has used up what it was given.
    pub(super) fn lacks_credit(&self) -> bool {
        self.credit <= 0 && self.wants_credit()
    }

    pub(super) fn report(&self, g: &Group) -> PgReport {
        let recovering = self.peers.values().filter_map(|peer| {
            let fill = peer.fill.as_ref()?;
            let behind_cursor = match fill.cursor {
                protocol::replication::Cursor::End => 0,
                _ => g.stats.objects.saturating_sub(fill.pushed).max(1),
            };
            Some(fill.missing.len() as u64 + behind_cursor + u64::from(fill.current.is_some()))
        });
        let waiting = self.peers.values().filter(|p| p.role != PeerRole::Certain && p.fill.is_none()).count();
        let known = recovering.sum::<u64>();
        let recovering_bytes = known.saturating_mul(g.stats.bytes / g.stats.objects.max(1));
        let recovering = known + waiting as u64;
        let scrub = g.copy.scrub;
        PgReport { objects: g.stats.objects, bytes: g.stats.bytes, recovering, recovering_bytes, scrub }
    }

    fn handle_refusal(&mut self, g: &mut Group, from: DataServerId, version: u64, link: u64) {
        if version > g.version() {
            g.outputs.push_back(Output::FetchMap);
        }
        let Some(peer) = self.peers.get_mut(&from).filter(|peer| peer.link == link) else { return };
        if let Stage::Streaming | Stage::Parked = peer.stage {
            // Starts over at the next tick.
            peer.stage = Stage::Probing(Tick(0));
        }
    }

    fn certain_unchanged(&self, config: &PgConfig) -> bool {
        let known = self.peers.values().filter(|peer| peer.role == PeerRole::Certain).map(|peer| peer.member);
        let known: Vec<Member> = known.collect();
        config.certain().filter(|member| Some(member.server) != config.primary).all(|m| known.contains(m))
    }

    /// Takes the members from the configuration, and starts a link with each that is needed now.
    fn adopt_members(&mut self, g: &mut Group, cx: &mut Context<'_>) {
        let me = g.me.server;
        let config = g.config().clone();
        let mut old = std::mem::take(&mut self.peers);
        let in_sync = config.in_sync.iter().map(|member| {
            let role = if member.uncertain { PeerRole::Uncertain } else { PeerRole::Certain };
            (*member, role)
        });
        let learners = config.learners.iter().map(|member| (*member, PeerRole::Learner));
        for (member, role) in in_sync.chain(learners).filter(|(member, _)| member.server != me) {
            let same_start = |peer: &Peer| {
                (peer.member.store, peer.member.incarnation) == (member.store, member.incarnation)
            };
            let mut peer = match old.remove(&member.server).filter(same_start) {
                Some(mut peer) => {
                    peer.member = member;
                    peer.role = role;
                    peer.counting = peer.counting.filter(|_| role != PeerRole::Certain);
                    peer
                }
                None => Peer::new(member, role),
            };
            if role == PeerRole::Certain || self.phase == Phase::Active {
                self.last_link += 1;
                peer.restart(g, self.last_link, cx.now);
            }
            self.peers.insert(member.server, peer);
        }
        self.proposal = None;
        self.fetching = None;
    }

    /// Starts silent links over, and notes who keeps the group waiting.
    fn watch_peers(&mut self, g: &mut Group, cx: &mut Context<'_>) {
        let head = g.copy.head().sequence;
        let Self { peers, last_link, phase, fetching, .. } = self;
        for peer in peers.values_mut() {
            let asked = *fetching == Some((peer.member.server, peer.link));
            let filled = *phase == Phase::TakingOver && peer.fill.is_some();
            let awaited = peer.is_awaited(head) || asked || filled;
            if !awaited {
                peer.waiting_since = None;
            } else if peer.waiting_since.is_none() {
                peer.waiting_since = Some(cx.now);
            }
            // One that is to become certain has something to say until it has everything.
            let catches_up = !peer.needed() && peer.is_whole() && peer.written < head;
            if !peer.has_in_flight() && !catches_up {
                peer.quiet_since = None;
            } else if peer.quiet_since.is_none() {
                peer.quiet_since = Some(cx.now);
            }
            let quiet_ms = peer.quiet_since.map_or(0, |since| cx.now.since(since));
            // While it is filled, it has nothing to say before the next piece comes.
            let waiting = peer.waiting_since.filter(|_| peer.fill.is_none());
            let silent_ms = waiting.map_or(0, |since| cx.now.since(since.max(peer.link_since)));
            let lags = !peer.needed() && peer.in_flight_bytes > g.settings.lag_bytes;
            let start_over = match peer.stage {
                Stage::Idle => false,
                Stage::Probing(since) => cx.now.since(since) >= g.settings.retry_ms,
                // A message may have been lost without anybody noticing.
                Stage::Parked | Stage::Streaming => {
                    lags || silent_ms.max(quiet_ms) >= 2 * g.settings.retry_ms
                }
            };
            if start_over {
                *last_link += 1;
                peer.restart(g, *last_link, cx.now);
            }
        }
    }

    /// Proposes the most urgent change of the configuration.
    fn propose(&mut self, g: &mut Group, cx: &mut Context<'_>) {
        let Some(change) = self.wanted_change(g, cx) else { return };
        let version = g.version();
        let repeats = self.proposal.as_ref().is_some_and(|(v, made, at)| {
            *v == version && *made == change && cx.now.since(*at) < PROPOSE_AGAIN_MS
        });
        if !repeats {
            if let PgChange::Drop(server) = change
                && mutant!("removal-counts-before-it-is-committed")
                && let Some(peer) = self.peers.get_mut(&server)
            {
                peer.role = PeerRole::Learner;
            }
            self.proposal = Some((version, change.clone(), cx.now));
            g.outputs.push_back(Output::Propose { version, change });
        }
    }

    fn wanted_change(&self, g: &Group, cx: &Context<'_>) -> Option<PgChange> {
        match self.phase {
            Phase::Broken if mutant!("resignation-forgotten") => return None,
            Phase::Broken => return Some(PgChange::Resign),
            Phase::Ready if !g.config().activated => return Some(PgChange::Activate),
            Phase::Ready | Phase::TakingOver | Phase::Active => {}
        }
        // An unreachable predecessor may serve reads until its own session has ended for certain.
        let patient = self.phase != Phase::Active && cx.now.since(self.since) < g.settings.grace_ms;
        let patient = patient && !mutant!("predecessor-dropped-while-it-may-serve");
        let silent = self.peers.values().find(|peer| {
            peer.waiting_since.is_some_and(|since| cx.now.since(since) >= g.settings.drop_after_ms)
        });
        if let Some(peer) = silent.filter(|_| !patient) {
            return match self.is_cut_off(g, cx) {
                None => Some(PgChange::Drop(peer.member.server)),
                Some(false) => None,
                Some(true) => Some(PgChange::Resign),
            };
        }
        if self.phase != Phase::Active {
            return None;
        }
        if g.is_undivided() {
            // Who is made certain now would not have the child.
            return self.wanted_split(g);
        }
        let caught_up = self.peers.values().find(|peer| {
            peer.is_whole()
                && peer
                    .counting
                    .is_some_and(|from| peer.durable >= from || mutant!("promotion-before-the-disk"))
        })?;
        let member = Member { uncertain: false, ..caught_up.member };
        Some(match caught_up.role {
            PeerRole::Uncertain => PgChange::MakeCertain(member),
            PeerRole::Learner | PeerRole::Certain => PgChange::Promote(member),
        })
    }

    /// Whether this server rather than the members is cut off: several are needed and none answers. Dropping one of
    /// them would not help, and it may be the one that could lead. `Some(true)` once the metadata cluster would have
    /// noticed their death: then another shall lead, who reaches those that this one does not.
    fn is_cut_off(&self, g: &Group, cx: &Context<'_>) -> Option<bool> {
        let waits = |peer: &Peer| peer.waiting_since.map_or(0, |since| cx.now.since(since));
        let needed: Vec<u64> = self.peers.values().filter(|peer| peer.needed()).map(waits).collect();
        let shortest = needed.iter().copied().min()?;
        (needed.len() >= 2 && shortest >= g.settings.drop_after_ms / 2)
            .then_some(shortest >= g.settings.grace_ms)
    }

    /// Members that hold everything: from now on nothing is acknowledged without them, and they make durable
    /// what they have. Both must be true before they are proposed for the in-sync set (DESIGN 7, rule 3).
    fn prepare_promotions(&mut self, g: &mut Group) {
        if self.phase != Phase::Active || g.is_undivided() {
            return;
        }
        let head = g.copy.head().sequence;
        for peer in self.peers.values_mut() {
            if peer.role == PeerRole::Certain || !peer.is_whole() {
                continue;
            }
            if peer.counting.is_none()
                && peer.written >= head.saturating_sub(g.settings.window_ops as u64 / 2)
            {
                peer.counting = Some(head);
            }
            if let Some(from) = peer.counting {
                peer.sync(g, from);
            }
        }
    }
}
