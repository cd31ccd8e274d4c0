//! Scrubbing, as the primary does it: range after range of objects is compared among the members and, if deep, read
//! by each of them; wrong copies are replaced.
//!
//! A link to a member is first in, first out, and a member executes what comes over it in order. So what a member
//! answers to a question is what it had at the very place of the group's order at which the primary noted what it
//! has itself: all copies have to be equal there, and clients go on meanwhile.
//!
//! | a wrong copy of | is replaced by |
//! |---|---|
//! | a member | telling it to give the object up, and pushing it as in a fill: one object at a time, so that never more than one member is incomplete because of a scrub |
//! | the primary | reading it from a member whose copy is right; requests for the object wait meanwhile |
//! | the primary, single blocks that rotted | `repair` |
//!
//! Bounds: [`RANGE_OBJECTS`] per range (and 8 MiB of them if they are read), one range at a time, and the credit that the driver gives.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use protocol::DataServerId;
use protocol::replication::{Cursor, GroupObject, ObjectSummary, ScrubRecord, ScrubRun, StreamBody, Unit};

use super::peer::{FillProgress, PeerRole};
use super::verdict::{Held, Verdict, judge};
use super::{Phase, Primary};
use crate::pg::group::{Group, touches};
use crate::pg::types::{Context, Tick};
use crate::pg::verify::{Damage, Verify, summaries};
use crate::store::{BLOCK_BYTES, Op, StoreError};

/// Objects compared at once.
const RANGE_OBJECTS: usize = 64;
/// What comparing an object costs, in bytes of credit.
const COMPARE_COST: i64 = 2048;
/// Bytes asked of a member at once.
const PULL_BYTES: u32 = 1 << 20;
/// A primary's object that does not come from a member in this time is tried again with the next scrub.
const PULL_LIMIT_MS: u64 = 3000;
/// A range whose answers do not come in this time is begun again.
const RANGE_LIMIT_MS: u64 = 60_000;
/// The place is kept at least this often, in milliseconds.
const KEEP_EVERY_MS: u64 = 10_000;

/// What goes on in this tenure; where the scrub is, is in [`ScrubRecord`].
#[derive(Debug, Default)]
pub(super) struct Scrub {
    range: Option<Range>,
    /// Wrong copies of members.
    replace: BTreeSet<(DataServerId, GroupObject)>,
    /// The one that is being replaced, and the link.
    replacing: Option<(DataServerId, u64, GroupObject)>,
    pull: Option<Pull>,
    last_id: u64,
    credit: i64,
    kept_at: Tick,
    /// The record differs from what is kept.
    dirty: bool,
}

#[derive(Debug)]
struct Range {
    id: u64,
    after: Cursor,
    upto: Cursor,
    deep: bool,
    since: Tick,
    mine: BTreeMap<GroupObject, ObjectSummary>,
    /// Members that were asked, and the link.
    asked: BTreeMap<DataServerId, u64>,
    answers: BTreeMap<DataServerId, (Cursor, BTreeMap<GroupObject, ObjectSummary>)>,
    /// Members that have read everything.
    verified: BTreeSet<DataServerId>,
    is_compared: bool,
    verify: Verify,
    is_verified: bool,
}

#[cfg(test)]
impl Scrub {
    pub(super) fn is_pulling(&self) -> bool {
        self.pull.is_some()
    }
}

/// The primary's copy of an object is replaced by that of a member.
#[derive(Debug)]
struct Pull {
    id: u64,
    object: GroupObject,
    right: Held,
    /// Version of the wrong copy.
    mine: Option<u64>,
    from: DataServerId,
    link: u64,
    since: Tick,
    bytes: Vec<Bytes>,
    offset: u32,
    /// Members whose copies are wrong too.
    others: Vec<DataServerId>,
}

impl Primary {
    /// Begins a scrub of the whole group; a light one that is under way becomes deep.
    pub(in crate::pg) fn start_scrub(&mut self, g: &mut Group, deep: bool) {
        let goes_on = g.copy.scrub.run.is_some_and(|run| run.deep || !deep);
        if !goes_on {
            g.copy.scrub.run = Some(ScrubRun { deep, cursor: Cursor::Start, objects: 0, undecided: 0 });
            self.scrub.range = None;
            self.scrub.dirty = true;
        }
    }

    /// What is being compared or replaced has to end before objects move; a range is begun again afterwards.
    pub(super) fn pause_scrub(&mut self) -> bool {
        self.scrub.range = None;
        self.scrub.replacing.is_none() && self.scrub.pull.is_none()
    }

    pub(in crate::pg) fn is_scrubbing(&self, g: &Group) -> bool {
        self.phase == Phase::Active && g.copy.scrub.run.is_some()
    }

    pub(in crate::pg) fn grant_scrub(&mut self, bytes: i64) {
        self.scrub.credit = (self.scrub.credit + bytes).min(bytes);
    }

    pub(in crate::pg) fn lacks_scrub_credit(&self, g: &Group) -> bool {
        self.is_scrubbing(g) && self.scrub.credit <= 0
    }

    /// Requests for what is being replaced here wait.
    pub(super) fn is_pulling(&self, unit: Unit) -> bool {
        self.scrub.pull.as_ref().is_some_and(|pull| touches(unit, Unit::Object(pull.object)))
    }

    /// Goes on as far as answers and credit allow.
    pub(in crate::pg) fn pump_scrub(&mut self, g: &mut Group, cx: &mut Context<'_>) {
        if self.phase != Phase::Active || g.stalled || !cx.leased() {
            return;
        }
        self.watch_pull(g, cx);
        self.replace_next(g, cx);
        if let Err(error) = self.advance_scrub(g, cx) {
            g.note("scrubbing", error);
        }
        self.keep_scrub(g, cx);
    }

    fn advance_scrub(&mut self, g: &mut Group, cx: &mut Context<'_>) -> Result<(), StoreError> {
        let Some(run) = g.copy.scrub.run else { return Ok(()) };
        let links = self.certain_links();
        if let Some(range) = &self.scrub.range
            && (range.asked.iter().any(|(server, link)| links.get(server) != Some(&Some(*link)))
                || cx.now.since(range.since) > RANGE_LIMIT_MS)
        {
            self.scrub.range = None;
        }
        if self.scrub.range.is_none() {
            let ready = links.values().all(Option::is_some);
            if self.scrub.credit <= 0 || !ready || !self.nothing_to_repair() {
                return Ok(());
            }
            self.begin_range(g, cx, run)?;
        }
        self.verify_own(g, cx)?;
        self.compare(g, cx)?;
        self.finish_range(g, cx);
        Ok(())
    }

    /// The members whose copies count, each with its link if it holds everything.
    fn certain_links(&self) -> BTreeMap<DataServerId, Option<u64>> {
        let certain = self.peers.values().filter(|peer| peer.role == PeerRole::Certain);
        // While an object of it is being replaced a member's answers are on their way all the same.
        certain
            .map(|peer| {
                let replaced = self.scrub.replacing.is_some_and(|(server, ..)| server == peer.member.server);
                let whole = peer.is_whole() || (replaced && peer.stage == super::Stage::Streaming);
                (peer.member.server, whole.then_some(peer.link))
            })
            .collect()
    }

    fn nothing_to_repair(&self) -> bool {
        let scrub = &self.scrub;
        scrub.replace.is_empty()
            && scrub.replacing.is_none()
            && scrub.pull.is_none()
            && self.repairs.is_empty()
    }

    fn begin_range(&mut self, g: &mut Group, cx: &mut Context<'_>, run: ScrubRun) -> Result<(), StoreError> {
        let after = run.cursor;
        let (mine, upto) = summaries(&g.copy, cx, (after, Cursor::End), RANGE_OBJECTS, run.deep)?;
        self.scrub.credit -= COMPARE_COST * (1 + mine.len() as i64);
        self.scrub.last_id += 1;
        let (id, deep) = (self.scrub.last_id, run.deep);
        let mut asked = BTreeMap::new();
        for peer in self.peers.values_mut().filter(|peer| peer.role == PeerRole::Certain) {
            peer.stream(g, StreamBody::Scrub { id, after, upto, deep }, Bytes::new());
            asked.insert(peer.member.server, peer.link);
        }
        self.scrub.range = Some(Range {
            id,
            after,
            upto,
            deep,
            since: cx.now,
            mine,
            asked,
            answers: BTreeMap::new(),
            verified: BTreeSet::new(),
            is_compared: false,
            verify: Verify::new(after, upto),
            is_verified: !deep,
        });
        Ok(())
    }

    /// A member says what it has.
    pub(super) fn handle_scrubbed(
        &mut self,
        from: DataServerId,
        id: u64,
        upto: Cursor,
        objects: Vec<(GroupObject, ObjectSummary)>,
    ) {
        if let Some(range) = self.scrub.range.as_mut().filter(|range| range.id == id) {
            range.answers.insert(from, (upto, objects.into_iter().collect()));
        }
    }

    /// A member has read everything, and found these objects damaged.
    pub(super) fn handle_verified(
        &mut self,
        g: &mut Group,
        from: DataServerId,
        id: u64,
        damaged: Vec<GroupObject>,
    ) {
        let Some(range) = self.scrub.range.as_mut().filter(|range| range.id == id) else { return };
        range.verified.insert(from);
        g.copy.scrub.found += damaged.len() as u64;
        self.scrub.replace.extend(damaged.into_iter().map(|object| (from, object)));
    }

    fn verify_own(&mut self, g: &mut Group, cx: &mut Context<'_>) -> Result<(), StoreError> {
        let Scrub { range: Some(range), credit, .. } = &mut self.scrub else { return Ok(()) };
        if range.is_verified {
            return Ok(());
        }
        range.is_verified = range.verify.step(&g.copy, cx, credit)?;
        for Damage { object, offset, error: (key, block) } in std::mem::take(&mut range.verify.found) {
            g.note("scrubbing", StoreError::Corrupt { key, block });
            g.copy.scrub.found += 1;
            self.begin_repair(g, object, offset, BLOCK_BYTES as u32, None);
        }
        Ok(())
    }

    /// Compares, once everybody has answered.
    fn compare(&mut self, g: &mut Group, cx: &mut Context<'_>) -> Result<(), StoreError> {
        let Some(range) = &mut self.scrub.range else { return Ok(()) };
        if range.is_compared || range.asked.keys().any(|server| !range.answers.contains_key(server)) {
            return Ok(());
        }
        // A member with many objects more may not have listed all of them.
        range.upto = range.answers.values().map(|(upto, _)| *upto).fold(range.upto, Cursor::min);
        range.is_compared = true;
        let mut objects: BTreeSet<GroupObject> = range.mine.keys().copied().collect();
        objects.extend(range.answers.values().flat_map(|(_, objects)| objects.keys().copied()));
        objects.retain(|object| Cursor::At(*object) <= range.upto);
        let me = g.me.server;
        let mut wrong_here = Vec::new();
        for object in objects {
            let theirs = range.answers.iter().map(|(id, (_, objects))| (*id, objects.get(&object).copied()));
            let copies: BTreeMap<DataServerId, Held> =
                theirs.chain([(me, range.mine.get(&object).copied())]).collect();
            let name = format!("{:x}.{:08x}", object.inode.0, object.chunk);
            match judge(&copies, g.view.size) {
                Verdict::Equal => {}
                Verdict::Undecided => {
                    if let Some(run) = &mut g.copy.scrub.run {
                        run.undecided += 1;
                    }
                    tracing::error!(
                        "placement group {}: the copies of {name} differ and nothing tells which is right: {copies:?}",
                        g.copy.pg
                    );
                }
                Verdict::Repair { right, holders, wrong } => {
                    tracing::warn!(
                        "placement group {}: the copies of {name} on servers {wrong:?} differ from those on {holders:?} \
                         and are replaced",
                        g.copy.pg
                    );
                    g.copy.scrub.found += wrong.len() as u64;
                    if wrong.contains(&me) {
                        wrong_here.push((object, right, holders, wrong));
                    } else {
                        self.scrub.replace.extend(wrong.into_iter().map(|server| (server, object)));
                    }
                }
            }
        }
        // One at a time; the range is looked at again for the others.
        let mut wrong_here = wrong_here.into_iter();
        if let Some((object, right, holders, wrong)) = wrong_here.next() {
            let again = wrong_here.next().is_some();
            self.begin_pull(g, cx, object, right, &holders, wrong)?;
            if again && let Some(range) = &mut self.scrub.range {
                range.upto = Cursor::At(object);
            }
        }
        Ok(())
    }

    fn finish_range(&mut self, g: &mut Group, cx: &Context<'_>) {
        let Some(range) = &self.scrub.range else { return };
        let read =
            !range.deep || (range.is_verified && range.asked.keys().all(|s| range.verified.contains(s)));
        if !range.is_compared || !read || !self.nothing_to_repair() {
            return;
        }
        let Some(range) = self.scrub.range.take() else { return };
        let record = &mut g.copy.scrub;
        let Some(run) = &mut record.run else { return };
        run.objects += range.mine.keys().filter(|object| Cursor::At(**object) <= range.upto).count() as u64;
        run.cursor = range.upto;
        self.scrub.dirty |= cx.now.since(self.scrub.kept_at) >= KEEP_EVERY_MS;
        debug_assert!(range.upto > range.after, "every range brings a scrub forward");
        if range.upto == Cursor::End {
            let run = *run;
            record.last_light = cx.unix_s;
            if run.deep {
                record.last_deep = cx.unix_s;
            }
            record.undecided = run.undecided;
            record.run = None;
            self.scrub.dirty = true;
            tracing::info!(
                "placement group {}: a {} scrub compared {} objects; {} wrong copies were found so far, {} replaced",
                g.copy.pg,
                if run.deep { "deep" } else { "light" },
                run.objects,
                g.copy.scrub.found,
                g.copy.scrub.repaired
            );
        }
    }

    /// Keeps the place here and on the members, so that whoever is primary next goes on from there.
    fn keep_scrub(&mut self, g: &mut Group, cx: &mut Context<'_>) {
        if !self.scrub.dirty {
            return;
        }
        match g.copy.keep_scrub(cx) {
            Ok(()) => {}
            Err(error) => return g.note("keeping the place of a scrub", error),
        }
        self.scrub.dirty = false;
        self.scrub.kept_at = cx.now;
        let record: ScrubRecord = g.copy.scrub;
        for peer in self.peers.values_mut().filter(|peer| peer.role == PeerRole::Certain && peer.is_whole()) {
            peer.stream(g, StreamBody::ScrubNote(record), Bytes::new());
        }
    }

    /// Replaces wrong copies of members, one after the other.
    fn replace_next(&mut self, g: &mut Group, cx: &mut Context<'_>) {
        if let Some((server, link, object)) = self.scrub.replacing {
            match self.peers.get(&server) {
                // Sent is not replaced: the link may break before the member was told.
                Some(peer) if peer.link == link && !(peer.is_whole() && peer.has_passed_barrier()) => return,
                Some(peer) if peer.link == link => g.copy.scrub.repaired += 1,
                // Whether it was told before the link broke is unknown: again.
                Some(peer) if peer.role == PeerRole::Certain => {
                    self.scrub.replace.insert((server, object));
                }
                _ => {}
            }
            self.scrub.replacing = None;
        }
        if self.scrub.pull.is_some() || !self.repairs.is_empty() {
            return;
        }
        let Some((server, object)) = self.scrub.replace.first().copied() else { return };
        let Some(peer) = self.peers.get(&server).filter(|peer| peer.role == PeerRole::Certain) else {
            self.scrub.replace.remove(&(server, object));
            return;
        };
        // One incomplete member is enough.
        let incomplete = |peer: &super::Peer| peer.role == PeerRole::Certain && !peer.is_whole();
        if !peer.is_whole() || self.peers.values().any(incomplete) {
            return;
        }
        match first_damage(g, cx, object) {
            // What the member has may be needed to repair this copy.
            Ok(Some((offset, length))) => return self.begin_repair(g, object, offset, length, None),
            Ok(None) => {}
            Err(error) => return g.note("replacing a wrong copy", error),
        }
        self.scrub.replace.remove(&(server, object));
        let Some(peer) = self.peers.get_mut(&server) else { return };
        tracing::warn!(
            "placement group {}: server {server} gets {:x}.{:08x} anew",
            g.copy.pg,
            object.inode.0,
            object.chunk
        );
        self.scrub.replacing = Some((server, peer.link, object));
        peer.stream(g, StreamBody::GiveUp(object), Bytes::new());
        let fill = peer.fill.get_or_insert_with(|| FillProgress::new(Cursor::End, BTreeSet::new()));
        fill.missing.insert(Unit::Object(object));
        self.pump_fills(g, cx);
    }

    fn begin_pull(
        &mut self,
        g: &mut Group,
        cx: &mut Context<'_>,
        object: GroupObject,
        right: Held,
        holders: &[DataServerId],
        wrong: Vec<DataServerId>,
    ) -> Result<(), StoreError> {
        let Some(range) = &self.scrub.range else { return Ok(()) };
        let mine = range.mine.get(&object).map(|summary| summary.version);
        let holder = holders.iter().find_map(|id| self.peers.get(id).filter(|peer| peer.is_whole()));
        let Some(holder) = holder else { return Ok(()) };
        let (from, link) = (holder.member.server, holder.link);
        self.last_repair += 1;
        let me = g.me.server;
        self.scrub.pull = Some(Pull {
            id: self.last_repair,
            object,
            right,
            mine,
            from,
            link,
            since: cx.now,
            bytes: Vec::new(),
            offset: 0,
            others: wrong.into_iter().filter(|server| *server != me).collect(),
        });
        self.go_on_pulling(g, cx);
        Ok(())
    }

    /// Asks for the next piece, or puts the object in its place.
    fn go_on_pulling(&mut self, g: &mut Group, cx: &mut Context<'_>) {
        let Some(pull) = &self.scrub.pull else { return };
        let size = pull.right.map_or(0, |summary| summary.size);
        let unchanged = match g.copy.info(cx, pull.object) {
            Ok(info) => info.map(|info| info.version) == pull.mine,
            Err(error) => return g.note("replacing a wrong copy", error),
        };
        if !unchanged {
            // Operations came between: what is right now shows the next time.
            return self.give_up_pull(g);
        }
        if u64::from(pull.offset) < size {
            let (id, object, offset) = (pull.id, pull.object, pull.offset);
            let length = (size - u64::from(offset)).min(u64::from(PULL_BYTES)) as u32;
            if let Some(peer) = self.peers.get_mut(&pull.from) {
                peer.stream(g, StreamBody::ReadBlocks { id, object, offset, length }, Bytes::new());
            }
            return;
        }
        self.end_pull(g, cx);
    }

    /// A piece of the object. False if it was none that a pull waits for.
    pub(super) fn handle_pulled(
        &mut self,
        g: &mut Group,
        cx: &mut Context<'_>,
        id: u64,
        found: Option<(u64, u32)>,
        payload: &Bytes,
    ) -> bool {
        let Some(pull) = self.scrub.pull.as_mut().filter(|pull| pull.id == id) else { return false };
        let version = pull.right.map(|summary| summary.version);
        match found {
            Some((changed, crc))
                if Some(changed) == version && !payload.is_empty() && crc32c::crc32c(payload) == crc =>
            {
                pull.offset += payload.len() as u32;
                pull.bytes.push(payload.clone());
                self.go_on_pulling(g, cx);
            }
            _ => self.give_up_pull(g),
        }
        true
    }

    fn end_pull(&mut self, g: &mut Group, cx: &mut Context<'_>) {
        let Some(pull) = &self.scrub.pull else { return };
        let key = g.copy.key(pull.object);
        let mut ops = vec![Op::Delete { key }];
        if let Some(ObjectSummary { size, truncate_seq, version, .. }) = pull.right {
            let empty = (Bytes::new(), crc32c::crc32c(b""));
            ops.push(Op::Write { key, offset: 0, data: empty.0, crc: empty.1, truncate_seq, version });
            let mut offset = 0;
            for data in &pull.bytes {
                let (data, crc) = (data.clone(), crc32c::crc32c(data));
                let length = data.len() as u64;
                ops.push(Op::Write { key, offset, data, crc, truncate_seq, version });
                offset += length;
            }
            ops.push(Op::Truncate { key, size, truncate_seq, version });
        }
        match g.copy.submit(cx, ops, true) {
            Ok(_) => {
                g.stats.recount();
                g.copy.scrub.repaired += 1;
                tracing::warn!(
                    "placement group {}: replaced this server's copy of {:x}.{:08x} by that of server {}",
                    g.copy.pg,
                    pull.object.inode.0,
                    pull.object.chunk,
                    pull.from
                );
                let object = pull.object;
                let others = self.scrub.pull.take().map_or(Vec::new(), |pull| pull.others);
                self.scrub.replace.extend(others.into_iter().map(|server| (server, object)));
            }
            Err(StoreError::Busy) => g.stall(),
            Err(error) => {
                g.note("replacing a wrong copy", error);
                self.give_up_pull(g);
            }
        }
    }

    /// It is looked at again, from the beginning of the range.
    fn give_up_pull(&mut self, g: &mut Group) {
        if let Some(pull) = self.scrub.pull.take() {
            g.copy.scrub.found = g.copy.scrub.found.saturating_sub(1 + pull.others.len() as u64);
            tracing::debug!("placement group {}: {:?} is compared again", g.copy.pg, pull.object);
            self.scrub.range = None;
        }
    }

    fn watch_pull(&mut self, g: &mut Group, cx: &mut Context<'_>) {
        let Some(pull) = &self.scrub.pull else { return };
        let alive = self.peers.get(&pull.from).is_some_and(|p| p.link == pull.link && p.is_whole());
        if !alive || cx.now.since(pull.since) > PULL_LIMIT_MS {
            return self.give_up_pull(g);
        }
        // The store may have been busy at the end.
        if u64::from(pull.offset) >= pull.right.map_or(0, |summary| summary.size) {
            self.go_on_pulling(g, cx);
        }
    }
}

/// The first damaged place of this server's copy.
fn first_damage(
    g: &mut Group,
    cx: &mut Context<'_>,
    object: GroupObject,
) -> Result<Option<(u32, u32)>, StoreError> {
    let mut verify = Verify::of_object(object);
    let mut credit = i64::MAX;
    verify.step(&g.copy, cx, &mut credit)?;
    let damage = verify.found.first().copied();
    if let Some(Damage { error: (key, block), .. }) = damage {
        g.note("replacing a wrong copy", StoreError::Corrupt { key, block });
    }
    Ok(damage.map(|damage| (damage.offset, BLOCK_BYTES as u32)))
}
