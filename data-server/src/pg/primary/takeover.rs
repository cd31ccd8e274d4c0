//! A new primary: finds the longest log, brings every certain member to its end, activates.

use bytes::Bytes;
use protocol::replication::{Fill, LogEntry, LogOp, Position, StreamBody, Unit};
use protocol::{DataServerId, mutant};
use std::collections::BTreeSet;

use super::peer::{FillProgress, Peer, PeerRole, PeerStatus, Stage};
use super::{Phase, Primary};
use crate::pg::copy::{Tail, split_tail};
use crate::pg::group::Group;
use crate::pg::types::Context;
use crate::store::StoreError;
use protocol::replication::Cursor;

impl Primary {
    pub(super) fn handle_status(
        &mut self,
        g: &mut Group,
        cx: &mut Context<'_>,
        from: DataServerId,
        status: PeerStatus,
    ) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        if !matches!(peer.stage, Stage::Probing(_)) {
            return;
        }
        peer.status = Some(status);
        peer.split_at = peer.status.as_ref().map_or(Position::default(), |status| status.split_at);
        peer.stage = Stage::Parked;
        match self.phase {
            Phase::TakingOver => return self.continue_takeover(g, cx),
            // An incomplete or damaged copy is no model for others.
            Phase::Broken if !mutant!("incomplete-copy-fills-others") => return,
            Phase::Broken | Phase::Ready | Phase::Active => {}
        }
        let role = peer.role;
        let brought = bring_up(g, cx, peer);
        self.judge_damage(g, from, role, brought);
    }

    /// What this copy cannot read any more can only be repaired from a member that is whole. Without one the
    /// member that is behind leads better: what it lacks was never acknowledged, and is undone here.
    fn judge_damage(&mut self, g: &mut Group, of: DataServerId, role: PeerRole, brought: BroughtUp) {
        let helper = |peer: &Peer| peer.member.server != of && peer.is_whole();
        let hopeless = brought == BroughtUp::Damaged && role == PeerRole::Certain;
        if hopeless && !self.certain().any(helper) {
            self.phase = Phase::Broken;
            self.resign(g);
        } else if brought == BroughtUp::Damaged
            && let Some(peer) = self.peers.get_mut(&of)
            && let Some(status) = peer.status.clone()
        {
            // The object that cannot be read here is copied once it is repaired.
            start_fill(g, peer, status);
        }
    }

    /// Goes as far as the answers of the members allow.
    pub(in crate::pg) fn continue_takeover(&mut self, g: &mut Group, cx: &mut Context<'_>) {
        if self.phase != Phase::TakingOver || g.stalled {
            return;
        }
        if g.copy.fill.is_some() && !mutant!("incomplete-copy-leads") {
            tracing::error!(
                "placement group {}: this copy is incomplete and cannot lead; another member has to",
                g.copy.pg
            );
            self.phase = Phase::Broken;
            return;
        }
        if g.copy.pg_num < g.config().pg_num {
            tracing::error!(
                "placement group {}: this copy was never split and cannot lead; another member has to",
                g.copy.pg
            );
            self.phase = Phase::Broken;
            return;
        }
        let answered = |peer: &Peer| matches!(peer.stage, Stage::Parked | Stage::Streaming);
        if !self.certain().all(answered) {
            return;
        }
        if self.fetch_longer_log(g) {
            return;
        }
        let parked = |p: &&mut Peer| p.role == PeerRole::Certain && p.stage == Stage::Parked;
        let brought = self.peers.values_mut().filter(parked).map(|p| (p.member.server, bring_up(g, cx, p)));
        for (server, brought) in brought.collect::<Vec<_>>() {
            self.judge_damage(g, server, PeerRole::Certain, brought);
        }
        if self.phase == Phase::Broken {
            return;
        }
        let head = g.copy.head().sequence;
        let complete = |peer: &Peer| {
            (peer.is_whole() && peer.written >= head) || mutant!("activated-before-members-caught-up")
        };
        let ready = g.copy.reached().written >= head || mutant!("activated-before-members-caught-up");
        if ready && self.certain().all(complete) {
            self.phase = Phase::Ready;
            if g.config().activated {
                self.activate(g, cx);
            }
        }
    }

    fn certain(&self) -> impl Iterator<Item = &Peer> {
        self.peers.values().filter(|peer| peer.role == PeerRole::Certain)
    }

    /// Asks the most advanced member for what is missing here, if one is ahead. True while that is going on.
    fn fetch_longer_log(&mut self, g: &mut Group) -> bool {
        let head = g.copy.head();
        let parked = |p: &&mut Peer| p.role == PeerRole::Certain && p.stage == Stage::Parked && !p.unreadable;
        let ahead = self.peers.values_mut().filter(parked);
        let longest = ahead.max_by_key(|p| p.status.as_ref().map_or(0, |s| s.whole_to().sequence));
        let Some(peer) = longest else { return false };
        let Some(status) = peer.status.as_ref().filter(|s| s.whole_to().sequence > head.sequence) else {
            return false;
        };
        // Its log must contain all of this one as it was when the member was asked.
        if status.common.is_none_or(|common| common.sequence < peer.greeted_head) {
            tracing::error!(
                "placement group {}: server {} is ahead, but its log and this one part before {head:?}",
                g.copy.pg,
                peer.member.server
            );
            self.phase = Phase::Broken;
            return true;
        }
        let asked = (peer.member.server, peer.link);
        if self.fetching != Some(asked) {
            self.fetching = Some(asked);
            peer.stream(g, StreamBody::FetchTail { after: head }, Bytes::new());
        }
        true
    }

    /// Operations that this server lacked.
    pub(super) fn handle_tail(
        &mut self,
        g: &mut Group,
        cx: &mut Context<'_>,
        from: DataServerId,
        after: Position,
        entries: Vec<(LogEntry, u32)>,
        payload: Bytes,
    ) {
        let asked = self.peers.get(&from).map(|peer| (from, peer.link));
        if self.phase != Phase::TakingOver || self.fetching != asked || after != g.copy.head() {
            return;
        }
        self.fetching = None;
        if entries.is_empty() {
            // Bit rot took operations that were never acknowledged, as this member lacks them: they are undone.
            if let Some(peer) = self.peers.get_mut(&from) {
                tracing::warn!(
                    "placement group {}: server {from} cannot read what it alone has; that is undone",
                    g.copy.pg
                );
                peer.unreadable = true;
            }
            return self.continue_takeover(g, cx);
        }
        let follows = entries.iter().zip(after.sequence + 1..).all(|((e, _), s)| e.position.sequence == s);
        let refused = match split_tail(entries, payload) {
            Ok(split) if follows => match g.copy.execute_tail(cx, split, &g.ordered(&BTreeSet::new())) {
                Ok(()) => None,
                Err(error @ StoreError::Corrupt { .. }) => {
                    g.note("taking over operations", error);
                    self.phase = Phase::Broken;
                    return;
                }
                Err(error) => {
                    let why = error.to_string();
                    g.note("taking over operations", error);
                    Some(why)
                }
            },
            Ok(_) => Some("it does not follow".to_owned()),
            Err(why) => Some(why.to_owned()),
        };
        match refused {
            None => self.continue_takeover(g, cx),
            Some(why) => {
                tracing::warn!(
                    "placement group {}: what server {from} sent is not usable ({why}); asking again",
                    g.copy.pg
                );
                if let Some(peer) = self.peers.get_mut(&from) {
                    peer.stage = Stage::Probing(cx.now);
                }
            }
        }
    }

    /// The configuration says that the group serves.
    pub(super) fn activate(&mut self, g: &mut Group, cx: &mut Context<'_>) {
        self.phase = Phase::Active;
        self.committed = g.copy.head().sequence;
        tracing::info!("placement group {} serves under configuration {}", g.copy.pg, g.version());
        for peer in self.peers.values_mut().filter(|peer| peer.stage == Stage::Idle) {
            self.last_link += 1;
            peer.restart(g, self.last_link, cx.now);
        }
    }
}

/// What came of [`bring_up`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BroughtUp {
    /// The member is on its way.
    OnItsWay,
    /// What it lacks cannot be read here.
    Damaged,
}

/// Brings a member that answered to the end of the log, by operations if few are missing, else by objects.
fn bring_up(g: &mut Group, cx: &mut Context<'_>, peer: &mut Peer) -> BroughtUp {
    let Some(status) = peer.status.clone() else { return BroughtUp::OnItsWay };
    let log = &g.copy.log;
    let whole = status.fill.is_none() || mutant!("half-filled-member-is-whole");
    let prefix = whole && log.contains(status.head);
    if prefix && status.head == log.head() {
        peer.stage = Stage::Streaming;
        return BroughtUp::OnItsWay;
    }
    if log.contains(status.head) && bring_to_split(g, cx, peer, &status) {
        return BroughtUp::OnItsWay;
    }
    let log = &g.copy.log;
    let missing = log.after(status.head.sequence);
    let splits = missing.clone().any(|entry| matches!(entry.op, LogOp::Split { .. }));
    let (count, bytes) = missing.fold((0, 0), |(n, bytes), entry| (n + 1, bytes + entry.op.payload_len()));
    let fits = count == 1 || (count <= g.settings.window_ops && bytes <= g.settings.window_bytes);
    if !prefix || !fits || splits {
        start_fill(g, peer, status);
        return BroughtUp::OnItsWay;
    }
    match g.copy.tail(cx, status.head.sequence, usize::MAX) {
        Ok(Tail { entries, payload, damage: None }) => {
            peer.stage = Stage::Streaming;
            peer.stream(g, StreamBody::Tail { after: status.head, entries }, payload);
            BroughtUp::OnItsWay
        }
        Ok(Tail { damage: Some(error), .. }) | Err(error) => {
            g.note("reading operations for a member", error);
            BroughtUp::Damaged
        }
    }
}

/// A member that lacks nothing but a split that is not divided yet executes it itself, so that it has the child too; also
/// one whose copy is incomplete, which is filled afterwards. True if that is so.
fn bring_to_split(g: &mut Group, cx: &Context<'_>, peer: &mut Peer, status: &PeerStatus) -> bool {
    let missing: Vec<LogEntry> = g.copy.log.after(status.head.sequence).take(2).cloned().collect();
    let [entry] = &missing[..] else { return false };
    if !matches!(entry.op, LogOp::Split { .. }) || !g.is_undivided() {
        return false;
    }
    peer.split_at = entry.position;
    peer.stage = Stage::Streaming;
    let body = StreamBody::Tail { after: status.head, entries: vec![(entry.clone(), 0)] };
    peer.stream(g, body, Bytes::new());
    if status.fill.is_some() {
        // From its next answer on.
        peer.stage = Stage::Probing(cx.now);
    }
    true
}

fn start_fill(g: &mut Group, peer: &mut Peer, status: PeerStatus) {
    let log = &g.copy.log;
    let common = if log.contains(status.head) { Some(status.head) } else { status.common };
    let common = common.filter(|common| log.contains(*common));
    // Across a split everything is copied: what moved away says nothing any more.
    let splits = |common: &Position| {
        let stray = status.stray.iter().copied();
        log.units_after(common.sequence).chain(stray).any(|unit| unit == Unit::Group)
    };
    let common = common.filter(|common| !splits(common));
    let had = status.fill.as_ref().map(|fill| fill.base);
    let (cursor, missing, base) = match common {
        Some(common) => {
            let cursor = status.fill.as_ref().map_or(Cursor::End, |fill| fill.cursor);
            let ours = common == status.head || mutant!("members-ahead-keep-what-differs");
            let stray = if ours { Vec::new() } else { status.stray };
            let mut missing: BTreeSet<Unit> =
                stray.into_iter().chain(log.units_after(common.sequence)).collect();
            let unfinished = status.fill.into_iter().flat_map(|fill| fill.missing);
            missing.extend(unfinished.filter(|_| !mutant!("resumed-fill-forgets-what-is-missing")));
            (cursor, missing, had.unwrap_or(common))
        }
        None => (Cursor::Start, BTreeSet::new(), Position::default()),
    };
    let inodes: BTreeSet<Unit> = missing.iter().filter(|u| matches!(u, Unit::Inode(_))).copied().collect();
    let missing: BTreeSet<Unit> = missing.into_iter().filter(|unit| wanted(*unit, cursor, &inodes)).collect();
    let fill = Fill { base, cursor, missing: missing.iter().copied().collect() };
    tracing::info!(
        "placement group {}: filling server {} ({} objects changed, backfill {})",
        g.copy.pg,
        peer.member.server,
        missing.len(),
        if cursor == Cursor::End { "not needed" } else { "needed" }
    );
    peer.stage = Stage::Streaming;
    let mut table = g.copy.table.image(g.copy.head());
    if mutant!("fill-without-requests") {
        table.sessions.clear();
    }
    if mutant!("fill-without-floors") {
        table.floors.clear();
    }
    // When this member leads one day, another one may lack the operations that are in flight now.
    let (floor, log) = g.copy.log.end(4 * g.settings.window_ops);
    let pg_num = g.copy.pg_num;
    if cursor == Cursor::Start {
        peer.split_at = Position::default();
    }
    peer.stream(g, StreamBody::FillStart { floor, log, table, fill, pg_num }, Bytes::new());
    peer.set_barrier(base.sequence);
    peer.fill = Some(FillProgress::new(cursor, missing));
}

/// Leaves out what the backfill brings anyway, and objects of inodes that are copied whole.
fn wanted(unit: Unit, cursor: Cursor, inodes: &BTreeSet<Unit>) -> bool {
    match unit {
        Unit::Inode(_) | Unit::Group => true,
        Unit::Object(object) => Cursor::At(object) <= cursor && !inodes.contains(&Unit::Inode(object.inode)),
    }
}
