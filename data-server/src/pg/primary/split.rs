//! Splitting the group: when the pool wants more groups, half of the objects (or fewer) go to a child.
//!
//! ```text
//!            nothing is in flight, all members          all certain members have it
//!            are certain, whole and reached             on stable storage
//! Active ─────────────────────────────────▶ Undivided ────────────────────────────▶ PgChange::Split ─▶ two groups
//!            orders LogOp::Split                        nothing is ordered or learnt meanwhile
//! ```
//!
//! The operation moves objects in each member's store, so each has the child as it has the group. Between it and the
//! configuration that names the child (*undivided*) nobody may become certain who did not execute it: the child would
//! begin empty there. What lies before it in the log cannot be sent to others any more, hence nothing may be in flight.

use std::collections::BTreeSet;

use protocol::DataServerId;
use protocol::data::DataRequest;
use protocol::map::PgChange;
use protocol::replication::{LogEntry, LogOp, Position};
use protocol::split;

use super::peer::{Peer, PeerRole, Stage};
use super::{Phase, Primary};
use crate::pg::copy::OpBytes;
use crate::pg::group::Group;
use crate::pg::types::{Context, Tick};
use crate::store::StoreError;

/// A split that the store refused is tried again after this, in milliseconds.
const AGAIN_MS: u64 = 10_000;

/// What a split needs in one tenure.
#[derive(Debug, Default)]
pub(super) struct Split {
    /// Requests wait until those in flight are done.
    draining: bool,
    /// Not before, since the store refused.
    not_before: Tick,
}

impl Primary {
    /// Whether a request has to wait for a split. Reads go on until the objects move.
    pub(super) fn waits_for_split(&self, g: &Group, body: &DataRequest) -> bool {
        g.is_undivided() || (self.split.draining && !matches!(body, DataRequest::Read { .. }))
    }

    /// Begins a split if the pool wants it and nothing stands in the way, and sees to its end.
    pub(super) fn pump_split(&mut self, g: &mut Group, cx: &mut Context<'_>) {
        if self.phase != Phase::Active || g.stalled {
            return;
        }
        if g.is_undivided() {
            return self.settle_split(g, cx);
        }
        self.split.draining = self.may_split(g, cx);
        let head = g.copy.head().sequence;
        let is_quiet = self.pending.is_empty() && self.committed >= head && g.copy.reached().written >= head;
        if self.split.draining && is_quiet {
            self.order_split(g, cx);
        }
    }

    /// Nobody is being filled, caught up or repaired, and everybody is there.
    fn may_split(&mut self, g: &Group, cx: &Context<'_>) -> bool {
        let config = g.config();
        if g.view.pg_num <= config.pg_num || cx.now < self.split.not_before || !self.has_quorum(g) {
            return false;
        }
        let all_certain = config.learners.is_empty() && config.in_sync.iter().all(|m| !m.uncertain);
        let ready = |peer: &Peer| peer.is_whole() && peer.counting.is_none();
        all_certain && self.peers.values().all(ready) && self.repairs.is_empty() && self.pause_scrub()
    }

    fn order_split(&mut self, g: &mut Group, cx: &mut Context<'_>) {
        self.split.draining = false;
        let pg_num = split::step(g.config().pg_num, g.view.pg_num);
        let position = Position { version: g.version(), sequence: g.copy.head().sequence + 1 };
        let entry = LogEntry { position, request: None, op: LogOp::Split { pg_num }, allocated: 0 };
        let entries = vec![(entry.clone(), Some(OpBytes::default()))];
        if let Err(error) = g.copy.execute(cx, entries, &g.ordered(&BTreeSet::new())) {
            if error != StoreError::Busy {
                self.split.not_before = Tick(cx.now.0 + AGAIN_MS);
            }
            return g.note("splitting", error);
        }
        tracing::info!("placement group {} is split at {position:?} for {pg_num} groups", g.copy.pg);
        g.stats.recount();
        for peer in self.peers.values_mut().filter(|peer| peer.stage == Stage::Streaming) {
            peer.split_at = position;
        }
        self.send_to_members(g, &entry, &OpBytes::default());
        self.settle_split(g, cx);
    }

    /// All certain members are to have the split on stable storage; then it is proposed.
    fn settle_split(&mut self, g: &mut Group, cx: &mut Context<'_>) {
        let head = g.copy.head();
        if g.copy.split_at != head && !is_forgotten(g) {
            tracing::error!(
                "placement group {}: this copy lacks the group split off and cannot lead",
                g.copy.pg
            );
            self.phase = Phase::Broken;
            return self.resign(g);
        }
        if g.copy.reached().durable < head.sequence {
            g.request_durable();
        }
        self.peers.values_mut().filter(|peer| peer.needed()).for_each(|peer| peer.sync(g, head.sequence));
        self.propose(g, cx);
    }

    /// The proposal, once all certain members hold the child durably.
    pub(super) fn wanted_split(&self, g: &Group) -> Option<PgChange> {
        let pg_num = split::step(g.config().pg_num, g.copy.pg_num);
        let head = g.copy.head();
        if is_forgotten(g) {
            // Where the child went since, its servers say when they register.
            return Some(PgChange::Split { pg_num, holders: Vec::new() });
        }
        let durable = |peer: &&Peer| {
            peer.is_whole() && peer.split_at == g.copy.split_at && peer.durable >= head.sequence
        };
        let mut certain = self.peers.values().filter(|peer| peer.role == PeerRole::Certain);
        if g.copy.reached().durable < head.sequence || !certain.clone().all(|peer| durable(&peer)) {
            return None;
        }
        let me = std::iter::once(g.me.server);
        let holders: Vec<DataServerId> = me.chain(certain.by_ref().map(|peer| peer.member.server)).collect();
        Some(PgChange::Split { pg_num, holders })
    }
}

/// The metadata was restored from a backup that is older than the split: who has the child now is not known here.
fn is_forgotten(g: &Group) -> bool {
    g.copy.head().version < g.view.restored_at
}
