//! A member that is not primary: executes what the primary says, in the primary's order, and tells how far
//! it is. It judges nothing but the configuration version and the link, so that all logs are equal.

use std::collections::BTreeSet;

use bytes::Bytes;
use protocol::replication::{
    Cursor, Fill, GroupObject, LogEntry, LogOp, PeerMessage, Position, Push, Run, StreamBody, Unit,
};
use protocol::{DataServerId, mutant};

use super::copy::{OpBytes, Reached, Tail, split_tail};
use super::group::Group;
use super::log::LogOutline;
use super::types::Context;
use super::verify::{Damage, Verify, summaries};
use crate::store::{Op, StoreError};

/// Pushed objects after which the list of missing ones is kept again.
const KEEP_MISSING_EVERY: u32 = 64;
/// Bytes of operations sent to a new primary at once.
const TAIL_BYTES_MAX: usize = 6 << 20;
/// Objects listed for a scrub at once: more than the primary has in its range, so that extra ones show.
const SCRUB_LIST_MAX: usize = 256;

/// The link to the primary.
#[derive(Debug)]
struct Link {
    primary: DataServerId,
    number: u64,
    /// Index of the next message.
    next: u64,
}

#[derive(Debug, Default)]
pub(super) struct MemberRole {
    link: Option<Link>,
    reported: Option<(Reached, bool)>,
    /// Objects that are damaged here and were asked for.
    needs: BTreeSet<GroupObject>,
    pushed: u32,
    /// What a deep scrub wants read.
    reading: Option<Reading>,
    /// Bytes that may still be read for it.
    scrub_credit: i64,
}

/// Blocks that the primary wants read.
#[derive(Debug)]
struct Reading {
    id: u64,
    verify: Verify,
    damaged: BTreeSet<GroupObject>,
}

/// What became of a message.
#[allow(clippy::large_enum_variant, reason = "it lives for the time of one call")]
pub(super) enum Taken {
    /// It took effect, or never will.
    Done,
    /// The store is busy: it is to be handed in again.
    Busy(StreamBody, Bytes),
}

impl MemberRole {
    /// A link begins. The configuration was checked and adopted by the caller.
    pub(super) fn handle_hello(
        &mut self,
        g: &mut Group,
        cx: &Context<'_>,
        from: DataServerId,
        number: u64,
        outline: &LogOutline<'_>,
    ) {
        if self.link.as_ref().is_some_and(|link| link.primary == from && link.number >= number) {
            return;
        }
        self.link = Some(Link { primary: from, number, next: 1 });
        self.needs.clear();
        self.reading = None;
        g.copy.restart_indices();
        let common = g.copy.log.common(outline);
        let stray = common.map_or(Vec::new(), |common| {
            g.copy.log.units_after(common.sequence).collect::<BTreeSet<Unit>>().into_iter().collect()
        });
        let reached = g.copy.reached();
        let full = cx.store.is_full();
        self.reported = Some((reached, full));
        let status = PeerMessage::Status {
            version: g.version(),
            link: number,
            common,
            head: g.copy.head(),
            stray,
            fill: g.copy.fill.clone(),
            written: reached.written,
            durable: reached.durable,
            full,
            split_at: g.copy.split_at,
        };
        g.send(from, status, Bytes::new());
    }

    /// The next message of a link, whose version was checked by the caller.
    pub(super) fn handle_stream(
        &mut self,
        g: &mut Group,
        cx: &mut Context<'_>,
        from: DataServerId,
        (number, index): (u64, u64),
        body: StreamBody,
        payload: Bytes,
    ) -> Taken {
        let current = self
            .link
            .as_ref()
            .is_some_and(|link| link.primary == from && link.number == number && link.next == index);
        let in_order = self.link.as_ref().is_some_and(|link| link.number == number && link.next <= index);
        let current = current || (in_order && mutant!("gaps-in-the-stream"));
        if !current {
            self.refuse(g, from, number);
            return Taken::Done;
        }
        match self.execute(g, cx, body.clone(), payload.clone()) {
            Ok(()) => {
                if let Some(link) = &mut self.link {
                    link.next = index + 1;
                    g.copy.mark_processed(index);
                }
                self.report(g, cx);
                Taken::Done
            }
            Err(Problem::Store(StoreError::Busy)) => {
                g.stall();
                Taken::Busy(body, payload)
            }
            Err(Problem::Store(error)) => {
                let pg = g.copy.pg;
                tracing::warn!("placement group {pg}: could not execute what the primary sent: {error}");
                g.note("executing an operation", error);
                self.refuse(g, from, number);
                Taken::Done
            }
            Err(Problem::Peer(why)) => {
                let pg = g.copy.pg;
                tracing::warn!("placement group {pg}: server {from} sent what does not fit ({why})");
                self.refuse(g, from, number);
                Taken::Done
            }
        }
    }

    /// Tells the primary how far this copy is, if that changed.
    pub(super) fn report(&mut self, g: &mut Group, cx: &Context<'_>) {
        let Some(link) = &self.link else { return };
        let now = (g.copy.reached(), cx.store.is_full());
        if self.reported == Some(now) {
            return;
        }
        self.reported = Some(now);
        let (Reached { written, durable, processed }, full) = now;
        let (version, number) = (g.version(), link.number);
        let ack = PeerMessage::Ack { version, link: number, written, durable, processed, full };
        g.send(link.primary, ack, Bytes::new());
    }

    fn refuse(&mut self, g: &mut Group, from: DataServerId, number: u64) {
        if self.link.as_ref().is_some_and(|link| link.primary == from && link.number == number) {
            self.link = None;
        }
        let version = g.version();
        g.send(from, PeerMessage::Refused { version, link: number }, Bytes::new());
    }

    fn execute(
        &mut self,
        g: &mut Group,
        cx: &mut Context<'_>,
        body: StreamBody,
        payload: Bytes,
    ) -> Result<(), Problem> {
        match body {
            StreamBody::Append { entry, apply, crc } => self.append(g, cx, entry, apply, crc, payload),
            StreamBody::Tail { after, entries } => {
                // Part of it may be executed already, if the store was busy in between.
                let follows = g.copy.head().sequence >= after.sequence && g.copy.log.contains(after);
                if !follows {
                    return Err(Problem::Peer("operations that do not follow"));
                }
                let split = split_tail(entries, payload).map_err(Problem::Peer)?;
                self.execute_ordered(g, cx, split)
            }
            StreamBody::Sync => {
                g.request_durable();
                Ok(())
            }
            StreamBody::FillStart { floor, log, table, fill, pg_num } => {
                let positions = log.iter().map(|entry| entry.position.sequence);
                if !positions.chain([table.at.sequence + 1]).eq(floor.sequence + 1..=table.at.sequence + 1) {
                    return Err(Problem::Peer("a log with gaps"));
                }
                self.needs.clear();
                Ok(g.copy.start_fill(cx, floor, log, &table, fill, pg_num)?)
            }
            StreamBody::Push(push) => self.take_push(g, cx, push, payload),
            StreamBody::FillInode { inode, chunks } => {
                let ops = vec![Op::DeleteRange { pg: g.copy.pg.to_u64(), inode: inode.0, from_chunk: 0 }];
                let chunks = chunks.into_iter().map(|chunk| Unit::Object(GroupObject { inode, chunk }));
                self.change_fill(g, cx, ops, |fill| {
                    fill.missing.retain(|unit| *unit != Unit::Inode(inode));
                    fill.missing.extend(chunks);
                })?;
                self.needs.retain(|object| object.inode != inode);
                Ok(())
            }
            StreamBody::FillTail(cursor) => {
                let mut ops = Vec::new();
                g.copy.clear_between(cx, cursor, None, &mut ops)?;
                self.change_fill(g, cx, ops, |fill| fill.cursor = Cursor::End)?;
                self.needs.retain(|object| Cursor::At(*object) <= cursor);
                Ok(())
            }
            StreamBody::FillEnd if self.needs.is_empty() => Ok(g.copy.end_fill(cx)?),
            // Damage was found after the primary sent this; it will say so again.
            StreamBody::FillEnd => Ok(()),
            StreamBody::FetchTail { after } => self.send_tail(g, cx, after),
            StreamBody::ReadBlocks { id, object, offset, length } => {
                self.send_blocks(g, cx, id, object, (offset, length));
                Ok(())
            }
            StreamBody::Scrub { id, after, upto, deep } => self.scrub(g, cx, id, (after, upto), deep),
            StreamBody::GiveUp(object) => self.give_up(g, cx, object),
            StreamBody::ScrubNote(record) => {
                let before = std::mem::replace(&mut g.copy.scrub, record);
                g.copy.keep_scrub(cx).inspect_err(|_| g.copy.scrub = before)?;
                Ok(())
            }
        }
    }

    fn append(
        &mut self,
        g: &mut Group,
        cx: &mut Context<'_>,
        entry: LogEntry,
        apply: bool,
        crc: u32,
        payload: Bytes,
    ) -> Result<(), Problem> {
        if entry.position.sequence != g.copy.head().sequence + 1 {
            return Err(Problem::Peer("an operation that does not follow"));
        }
        if apply && payload.len() != entry.op.payload_len() {
            return Err(Problem::Peer("an operation whose bytes are not as long as it says"));
        }
        if matches!(entry.op, LogOp::Split { .. }) {
            // What was to be read may be elsewhere now.
            self.reading = None;
        }
        let blocked = entry.request.is_some_and(|request| g.view.blocked.contains_key(&request.session));
        let apply = apply && !(blocked && mutant!("members-judge-fencing"));
        let bytes = apply.then_some(OpBytes { bytes: payload, crc });
        self.execute_ordered(g, cx, vec![(entry, bytes)])
    }

    /// Executes operations. Where an object turns out to be damaged here, its operations are only logged and
    /// the whole object is asked for; nothing from there on is acknowledged before it came.
    fn execute_ordered(
        &mut self,
        g: &mut Group,
        cx: &mut Context<'_>,
        entries: Vec<(LogEntry, Option<OpBytes>)>,
    ) -> Result<(), Problem> {
        loop {
            let mut how = g.ordered(&self.needs);
            let unmarked = |object: &&GroupObject| {
                g.copy.fill.as_ref().is_none_or(|fill| !fill.missing.contains(&Unit::Object(**object)))
            };
            let found: Vec<Unit> = self.needs.iter().filter(unmarked).map(|o| Unit::Object(*o)).collect();
            if !found.is_empty() {
                let whole = Fill { base: g.copy.head(), cursor: Cursor::End, missing: Vec::new() };
                let mut fill = g.copy.fill.clone().unwrap_or(whole);
                fill.missing.extend(found);
                how.fill = Some(fill);
            }
            match g.copy.execute_tail(cx, entries.clone(), &how) {
                Err(StoreError::Corrupt { key, block }) => {
                    let object = GroupObject { inode: protocol::InodeId(key.inode), chunk: key.chunk };
                    g.note("executing an operation", StoreError::Corrupt { key, block });
                    if !self.needs.insert(object) {
                        return Err(Problem::Peer("an operation on an object that was already given up"));
                    }
                    self.ask_for_object(g, object);
                }
                other => return Ok(other?),
            }
        }
    }

    fn ask_for_object(&mut self, g: &mut Group, object: GroupObject) {
        if let Some(link) = &self.link {
            let (to, version, number) = (link.primary, g.version(), link.number);
            g.send(to, PeerMessage::NeedObject { version, link: number, object }, Bytes::new());
        }
    }

    /// A piece of an object.
    fn take_push(
        &mut self,
        g: &mut Group,
        cx: &mut Context<'_>,
        push: Push,
        mut payload: Bytes,
    ) -> Result<(), Problem> {
        if crc32c::crc32c(&payload) != push.crc && !mutant!("push-not-verified") {
            return Err(Problem::Peer("a piece whose bytes do not match their checksum"));
        }
        let (key, truncate_seq, version) = (g.copy.key(push.object), push.truncate_seq, push.changed);
        let mut ops = Vec::new();
        if let Some(after) = push.clear_after {
            g.copy.clear_between(cx, after, Some(push.object), &mut ops)?;
        }
        if push.first {
            ops.push(Op::Delete { key });
        }
        let begun = |object: &GroupObject| {
            let cleared = push.clear_after.is_some_and(|after| Cursor::At(*object) > after);
            (push.first && *object == push.object) || (cleared && *object < push.object)
        };
        if push.last != Some(None) {
            let (data, crc) = (Bytes::new(), crc32c::crc32c(b""));
            ops.push(Op::Write { key, offset: 0, data, crc, truncate_seq, version });
        }
        for (offset, length) in &push.segments {
            if payload.len() < *length as usize {
                return Err(Problem::Peer("a piece that is shorter than it says"));
            }
            let data = payload.split_to(*length as usize);
            let crc = crc32c::crc32c(&data);
            ops.push(Op::Write { key, offset: u64::from(*offset), data, crc, truncate_seq, version });
        }
        if push.first && push.advances_cursor && mutant!("fill-cursor-runs-ahead") {
            self.change_fill(g, cx, Vec::new(), |fill| fill.cursor = Cursor::At(push.object))?;
        }
        let Some(last) = push.last else {
            g.copy.submit(cx, ops, true)?;
            // From the first piece on operations are executed on the object again.
            self.needs.retain(|object| !begun(object));
            return Ok(());
        };
        ops.push(match last {
            Some(size) => Op::Truncate { key, size: u64::from(size), truncate_seq, version },
            None => Op::Delete { key },
        });
        let needs_after: BTreeSet<GroupObject> = self.needs.iter().filter(|o| !begun(o)).copied().collect();
        self.pushed += 1;
        let keep = push.advances_cursor || self.pushed.is_multiple_of(KEEP_MISSING_EVERY);
        let change = |fill: &mut Fill| {
            fill.missing.retain(|unit| *unit != Unit::Object(push.object));
            if push.advances_cursor {
                fill.cursor = Cursor::At(push.object);
            }
        };
        if keep {
            self.change_fill(g, cx, ops, change)?;
        } else {
            g.copy.submit(cx, ops, true)?;
            g.copy.fill.as_mut().map(change);
        }
        self.needs = needs_after;
        Ok(())
    }

    /// Changes the store and the fill marker together.
    fn change_fill(
        &mut self,
        g: &mut Group,
        cx: &mut Context<'_>,
        mut ops: Vec<Op>,
        change: impl FnOnce(&mut Fill),
    ) -> Result<(), Problem> {
        let Some(mut fill) = g.copy.fill.clone() else {
            return Err(Problem::Peer("part of a fill that did not begin"));
        };
        change(&mut fill);
        ops.push(g.copy.keep_fill(&fill));
        g.copy.submit(cx, ops, true)?;
        g.copy.fill = Some(fill);
        Ok(())
    }

    fn send_tail(&mut self, g: &mut Group, cx: &mut Context<'_>, after: Position) -> Result<(), Problem> {
        if !g.copy.log.contains(after) {
            return Err(Problem::Peer("a question about a position that is not in the log"));
        }
        let Tail { mut entries, mut payload, damage } = g.copy.tail(cx, after.sequence, TAIL_BYTES_MAX)?;
        damage.into_iter().for_each(|damage| g.note("reading operations for a new primary", damage));
        if let Some(fill) = &g.copy.fill {
            entries.retain(|(entry, _)| entry.position.sequence <= fill.base.sequence);
            payload.truncate(entries.iter().map(|(entry, _)| entry.op.payload_len()).sum());
        }
        if let Some(link) = &self.link {
            let (to, version, number) = (link.primary, g.version(), link.number);
            g.send(to, PeerMessage::Tail { version, link: number, after, entries }, payload);
        }
        Ok(())
    }

    /// Tells what there is in a range, and notes it to be read.
    fn scrub(
        &mut self,
        g: &mut Group,
        cx: &mut Context<'_>,
        id: u64,
        range: (Cursor, Cursor),
        deep: bool,
    ) -> Result<(), Problem> {
        let (objects, upto) = summaries(&g.copy, cx, range, SCRUB_LIST_MAX, false)?;
        self.reading = deep.then(|| {
            let verify = Verify::new(range.0, upto);
            Reading { id, verify, damaged: BTreeSet::new() }
        });
        if let Some(link) = &self.link {
            let (to, version, number) = (link.primary, g.version(), link.number);
            let objects = objects.into_iter().collect();
            g.send(to, PeerMessage::Scrubbed { version, link: number, id, upto, objects }, Bytes::new());
        }
        Ok(())
    }

    pub(super) fn is_verifying(&self) -> bool {
        self.reading.is_some()
    }

    /// Reads on for a deep scrub.
    pub(super) fn verify(&mut self, g: &mut Group, cx: &mut Context<'_>, credit: i64) {
        self.scrub_credit = (self.scrub_credit + credit).min(credit);
        let Some(reading) = &mut self.reading else { return };
        let done = match reading.verify.step(&g.copy, cx, &mut self.scrub_credit) {
            Ok(done) => done,
            Err(error) => {
                // The primary asks again.
                self.reading = None;
                return g.note("scrubbing", error);
            }
        };
        for Damage { object, error: (key, block), .. } in std::mem::take(&mut reading.verify.found) {
            g.note("scrubbing", StoreError::Corrupt { key, block });
            reading.damaged.insert(object);
        }
        if !done {
            return;
        }
        let (id, damaged) = (reading.id, std::mem::take(&mut reading.damaged).into_iter().collect());
        self.reading = None;
        if let Some(link) = &self.link {
            let (to, version, number) = (link.primary, g.version(), link.number);
            g.send(to, PeerMessage::Verified { version, link: number, id, damaged }, Bytes::new());
        }
    }

    /// The copy of this object is wrong: incomplete until it was pushed.
    fn give_up(&mut self, g: &mut Group, cx: &mut Context<'_>, object: GroupObject) -> Result<(), Problem> {
        let whole = Fill { base: g.copy.head(), cursor: Cursor::End, missing: Vec::new() };
        let mut fill = g.copy.fill.clone().unwrap_or(whole);
        fill.missing.push(Unit::Object(object));
        let ops = vec![g.copy.keep_fill(&fill)];
        g.copy.submit(cx, ops, true)?;
        g.copy.fill = Some(fill);
        Ok(())
    }

    /// Bytes for the primary to repair its copy with.
    fn send_blocks(
        &mut self,
        g: &mut Group,
        cx: &mut Context<'_>,
        id: u64,
        object: GroupObject,
        (offset, length): (u32, u32),
    ) {
        let Some(link) = &self.link else { return };
        let (to, version, number) = (link.primary, g.version(), link.number);
        let key = g.copy.key(object);
        let missing = g.copy.missing().any(|unit| super::group::touches(*unit, Unit::Object(object)));
        let (found, payload) = match cx.store.read(key, u64::from(offset), length as usize) {
            Ok(Some(piece)) if !missing => (Some((piece.info.version, piece.crc)), piece.data),
            Ok(_) => (None, Bytes::new()),
            Err(error) => {
                g.note("reading for another server's repair", error);
                (None, Bytes::new())
            }
        };
        g.send(to, PeerMessage::Blocks { version, link: number, id, found }, payload);
    }
}

/// Why a message was not executed.
enum Problem {
    Store(StoreError),
    Peer(&'static str),
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        Problem::Store(error)
    }
}

/// A `Hello` without its configuration.
pub(super) fn outline<'a>(floor: Position, head: Position, runs: &'a [Run]) -> LogOutline<'a> {
    LogOutline { floor, head, runs }
}
