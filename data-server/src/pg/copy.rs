//! This store's copy of the group: its log, table and fill marker, and how operations are executed on it.
//!
//! Everything that an operation changes (bytes, log record, trimmed log and table) is one transaction of the
//! store. Records beside the data, `PG` being [`PgId::to_u64`] in big endian:
//!
//! ```text
//! key               value (postcard)
//! p PG              1: this store holds something of the group
//! g PG l SEQUENCE   LogRecord
//! g PG t            TableImage: written whenever the log is trimmed; younger entries are added at load
//! g PG f            Fill, while the copy is incomplete
//! g PG s            ScrubRecord
//! g PG n            ExtentRecord
//! ```

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use protocol::replication::{
    Cursor, Fill, GroupObject, LogEntry, LogOp, Position, ScrubRecord, TableImage, Unit,
};
use protocol::{InodeId, ObjectId, PgId, mutant, split};
use serde::{Deserialize, Serialize};

use super::log::OpLog;
use super::table::Table;
use super::truncation;
use super::types::{Context, PgStore};
use crate::store::{ObjectInfo, ObjectKey, Op, StoreError, Submitted, Ticket, Transaction};

/// Objects or records listed at once.
const LIST_BATCH: usize = 1024;

/// A log entry on disk. The change of allocated bytes is known only once the entry's own transaction is
/// submitted, so each record brings its predecessor's.
#[derive(Serialize, Deserialize)]
struct LogRecord {
    entry: LogEntry,
    previous_allocated: i64,
}

/// What the copy holds.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct ExtentRecord {
    pg_num: u32,
    split_at: Position,
}

/// A group that began in this store with a split.
#[derive(Clone, Copy, Debug)]
pub(super) struct Newborn {
    pub(super) pg: PgId,
    pub(super) ticket: Ticket,
}

/// A place in the store's order and what was executed by then.
#[derive(Clone, Copy, Debug)]
struct Mark {
    ticket: Ticket,
    sequence: u64,
    /// Index of the last message of the link that was executed.
    index: u64,
}

/// How far the copy is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reached {
    pub(super) written: u64,
    pub(super) durable: u64,
    pub(super) processed: u64,
}

/// The bytes of an operation with the checksum that came with them; the store compares the two.
#[derive(Clone, Debug, Default)]
pub(super) struct OpBytes {
    pub(super) bytes: Bytes,
    pub(super) crc: u32,
}

/// How operations are executed.
#[derive(Debug)]
pub(super) struct How<'a> {
    /// Objects that are left alone, because they are damaged and come as a whole.
    pub(super) skip: &'a BTreeSet<GroupObject>,
    /// Fill marker to be kept from now on.
    pub(super) fill: Option<Fill>,
    /// May use the space that is kept for what is acknowledged elsewhere.
    pub(super) use_reserve: bool,
    /// Bound of the log, and how many entries are dropped beyond it.
    pub(super) trim: Option<(usize, usize)>,
}

#[derive(Debug)]
pub(super) struct LocalCopy {
    pub(super) pg: PgId,
    pub(super) log: OpLog,
    pub(super) table: Table,
    /// Present while the copy does not hold everything that its log says.
    pub(super) fill: Option<Fill>,
    /// Where the group's scrub is.
    pub(super) scrub: ScrubRecord,
    /// The copy holds the objects whose hash modulo this is the group's number. More than the configuration says between
    /// the execution of a split and the configuration that follows from it.
    pub(super) pg_num: u32,
    /// The last split that was executed here, so that the child is here too; a fill across a split does not count.
    pub(super) split_at: Position,
    /// To be told outside.
    pub(super) newborn: Option<Newborn>,
    reached: Reached,
    /// Not yet written, oldest first.
    marks: VecDeque<Mark>,
    /// To be made durable on request, oldest first.
    syncs: VecDeque<Mark>,
    /// The copy was whole when this was submitted; it counts as such once this is written.
    whole_at: Option<(Ticket, u64)>,
    last_ticket: Ticket,
    /// What the store last reported.
    seen: (u64, u64),
    exists: bool,
}

impl LocalCopy {
    /// What the store holds of the group.
    pub(super) fn load(pg: PgId, store: &mut dyn PgStore) -> Result<Self, StoreError> {
        let progress = store.progress();
        let exists = store.get_meta(&presence_key(pg))?.is_some();
        let mut copy = LocalCopy {
            pg,
            log: OpLog::default(),
            table: Table::default(),
            fill: None,
            scrub: ScrubRecord::default(),
            pg_num: 0,
            split_at: Position::default(),
            newborn: None,
            reached: Reached::default(),
            marks: VecDeque::new(),
            syncs: VecDeque::new(),
            whole_at: None,
            last_ticket: Ticket(progress.written),
            seen: (progress.written, progress.durable),
            exists,
        };
        if exists {
            copy.load_records(store)?;
        }
        // What the store holds when it is opened is written; whether it is durable, the store knows.
        copy.reached.written = copy.log.head().sequence;
        if progress.durable >= progress.written {
            copy.reached.durable = copy.reached.written;
        }
        Ok(copy)
    }

    /// What a split left in the store with this ticket, which need not be written yet.
    pub(super) fn load_newborn(newborn: Newborn, store: &mut dyn PgStore) -> Result<Self, StoreError> {
        let mut copy = Self::load(newborn.pg, store)?;
        let mark = Mark { ticket: newborn.ticket, sequence: copy.head().sequence, index: 0 };
        copy.reached = Reached::default();
        copy.last_ticket = newborn.ticket;
        copy.marks.push_back(mark);
        copy.advance(copy.seen.0, copy.seen.1);
        Ok(copy)
    }

    fn load_records(&mut self, store: &mut dyn PgStore) -> Result<(), StoreError> {
        let mut at = Position::default();
        if let Some(value) = store.get_meta(&table_key(self.pg))? {
            let image: TableImage = decode(self.pg, "table", &value)?;
            self.table = Table::from_image(&image);
            at = image.at;
        }
        if let Some(value) = store.get_meta(&fill_key(self.pg))? {
            self.fill = Some(decode(self.pg, "fill marker", &value)?);
        }
        if let Some(value) = store.get_meta(&scrub_key(self.pg))? {
            self.scrub = decode(self.pg, "scrub record", &value)?;
        }
        if let Some(value) = store.get_meta(&extent_key(self.pg))? {
            ExtentRecord { pg_num: self.pg_num, split_at: self.split_at } =
                decode(self.pg, "extent record", &value)?;
        }
        let prefix = log_prefix(self.pg);
        let mut entries: Vec<LogEntry> = Vec::new();
        let mut after: Option<Vec<u8>> = None;
        loop {
            let batch = store.list_meta(&prefix, after.as_deref(), LIST_BATCH)?;
            for (_, value) in &batch {
                let record: LogRecord = decode(self.pg, "log record", value)?;
                if let Some(previous) = entries.last_mut() {
                    previous.allocated = record.previous_allocated;
                }
                entries.push(record.entry);
            }
            match batch.into_iter().last() {
                Some((key, _)) => after = Some(key),
                None => break,
            }
        }
        let skip = match entries.first() {
            // The version before the first entry is gone with its record: the first one becomes the floor.
            Some(first) if first.position.sequence != at.sequence + 1 => {
                self.log = OpLog::new(first.position);
                1
            }
            _ => {
                self.log = OpLog::new(at);
                0
            }
        };
        for entry in entries.into_iter().skip(skip) {
            if entry.position.sequence != self.log.head().sequence + 1 {
                let head = self.log.head().sequence;
                let why = format!("the log of placement group {} has a gap after {head}", self.pg);
                return Err(StoreError::Damaged(why));
            }
            if entry.position.sequence > at.sequence {
                self.table.record(&entry);
            }
            self.log.append(entry);
        }
        Ok(())
    }

    pub(super) fn head(&self) -> Position {
        self.log.head()
    }

    /// What may be acknowledged: an incomplete copy has nothing beyond what it had when it became so.
    pub(super) fn reached(&self) -> Reached {
        let cap = self.fill.as_ref().map(|fill| fill.base.sequence).or(self.whole_at.map(|(_, base)| base));
        let cap = cap.filter(|_| !mutant!("incomplete-copy-acknowledges")).unwrap_or(u64::MAX);
        let Reached { written, durable, processed } = self.reached;
        Reached { written: written.min(cap), durable: durable.min(cap), processed }
    }

    /// The store came further.
    pub(super) fn advance(&mut self, written: u64, durable: u64) {
        self.seen = (written, durable);
        self.whole_at = self.whole_at.filter(|(ticket, _)| ticket.0 > written);
        while let Some(mark) = self.marks.front().filter(|mark| mark.ticket.0 <= written) {
            self.reached.written = self.reached.written.max(mark.sequence);
            self.reached.processed = self.reached.processed.max(mark.index);
            self.marks.pop_front();
        }
        while let Some(mark) = self.syncs.front().filter(|mark| mark.ticket.0 <= durable) {
            self.reached.durable = self.reached.durable.max(mark.sequence);
            self.syncs.pop_front();
        }
    }

    /// A new link counts its messages from 1.
    pub(super) fn restart_indices(&mut self) {
        self.reached.processed = 0;
        self.marks.iter_mut().for_each(|mark| mark.index = 0);
    }

    /// Notes that message `index` of the link is executed once everything submitted so far is written.
    pub(super) fn mark_processed(&mut self, index: u64) {
        self.marks.push_back(Mark { ticket: self.last_ticket, sequence: self.head().sequence, index });
        self.advance(self.seen.0, self.seen.1);
    }

    /// Wants everything so far durable; the caller requests it of the store up to the returned ticket.
    pub(super) fn want_durable(&mut self) -> Ticket {
        let mark = Mark { ticket: self.last_ticket, sequence: self.head().sequence, index: 0 };
        if self.syncs.back().is_none_or(|last| last.ticket < mark.ticket || last.sequence < mark.sequence) {
            self.syncs.push_back(mark);
        }
        self.advance(self.seen.0, self.seen.1);
        self.last_ticket
    }

    pub(super) fn key(&self, object: GroupObject) -> ObjectKey {
        ObjectKey { pg: self.pg.to_u64(), inode: object.inode.0, chunk: object.chunk }
    }

    pub(super) fn info(
        &self,
        cx: &mut Context<'_>,
        object: GroupObject,
    ) -> Result<Option<ObjectInfo>, StoreError> {
        cx.store.info(self.key(object))
    }

    /// Submits plain changes.
    pub(super) fn submit(
        &mut self,
        cx: &mut Context<'_>,
        mut ops: Vec<Op>,
        use_reserve: bool,
    ) -> Result<Submitted, StoreError> {
        if !self.exists {
            ops.insert(0, keep_presence(self.pg));
            ops.insert(0, keep_extent(self.pg, self.pg_num, self.split_at));
        }
        let submitted = cx.store.submit(Transaction { ops, use_reserve })?;
        self.exists = true;
        self.last_ticket = submitted.ticket;
        Ok(submitted)
    }

    /// Executes operations in one transaction and appends them to the log. On error nothing happened.
    pub(super) fn execute(
        &mut self,
        cx: &mut Context<'_>,
        entries: Vec<(LogEntry, Option<OpBytes>)>,
        how: &How<'_>,
    ) -> Result<Submitted, StoreError> {
        let mut ops: Vec<Op> = how.fill.iter().map(|fill| self.keep_fill(fill)).collect();
        let mut previous_allocated = self.log.last_mut().map_or(0, |entry| entry.allocated);
        let mut split = None;
        for (entry, bytes) in &entries {
            if let LogOp::Split { pg_num } = entry.op {
                let child = self.split_ops(cx, entry.position, pg_num, how.fill.as_ref(), &mut ops)?;
                split = Some((pg_num, entry.position, child));
            }
            if let Some(bytes) = bytes {
                self.entry_ops(cx, entry, bytes, how.skip, &mut ops)?;
            }
            let record = LogRecord { entry: entry.clone(), previous_allocated };
            ops.push(Op::PutMeta { key: log_key(self.pg, entry.position.sequence), value: encode(&record) });
            previous_allocated = entry.allocated;
        }
        let trimmed = self.trim_ops(how.trim, &mut ops);
        let submitted = self.submit(cx, ops, how.use_reserve)?;
        self.log.trim(trimmed);
        for (entry, _) in entries {
            self.table.record(&entry);
            self.log.append(entry);
        }
        if how.fill.is_some() {
            self.fill = how.fill.clone();
        }
        if let Some((pg_num, position, child)) = split {
            (self.pg_num, self.split_at) = (pg_num, position);
            self.newborn = child.map(|pg| Newborn { pg, ticket: submitted.ticket });
        }
        let sequence = self.head().sequence;
        self.marks.push_back(Mark { ticket: submitted.ticket, sequence, index: 0 });
        Ok(submitted)
    }

    /// Executes operations that another member had, those already executed excepted. All of them become one
    /// transaction, as their bytes are exact only together; a trim or a split needs to see what came before it and begins
    /// another one.
    pub(super) fn execute_tail(
        &mut self,
        cx: &mut Context<'_>,
        entries: Vec<(LogEntry, Option<OpBytes>)>,
        how: &How<'_>,
    ) -> Result<(), StoreError> {
        let head = self.head().sequence;
        let mut batch = Vec::new();
        for (entry, bytes) in entries.into_iter().filter(|(entry, _)| entry.position.sequence > head) {
            if matches!(entry.op, LogOp::Trim { .. } | LogOp::Split { .. }) && !batch.is_empty() {
                self.execute(cx, std::mem::take(&mut batch), how)?;
            }
            batch.push((entry, bytes));
        }
        if !batch.is_empty() {
            self.execute(cx, batch, how)?;
        }
        Ok(())
    }

    /// The primary learns the change of allocated bytes when it has submitted its own entry.
    pub(super) fn settle_allocated(&mut self, allocated: i64) {
        if let Some(entry) = self.log.last_mut() {
            entry.allocated = allocated;
            let entry = entry.clone();
            self.table.record(&entry);
        }
    }

    /// With (`log_max`, `log_trim`): drops the oldest entries, and keeps in their stead the table of what was
    /// executed so far.
    fn trim_ops(&self, bounds: Option<(usize, usize)>, ops: &mut Vec<Op>) -> usize {
        let Some((_, count)) = bounds.filter(|(max, _)| self.log.len() >= *max) else { return 0 };
        let first = self.log.floor().sequence + 1;
        ops.push(Op::DeleteMetaRange {
            // From the beginning: the record of the floor itself may be there too.
            from: log_key(self.pg, 0),
            to: log_key(self.pg, first + count as u64),
        });
        let mut image = self.table.image(self.head());
        if mutant!("requests-forgotten-with-the-log") {
            image.sessions.clear();
        }
        if mutant!("floors-forgotten-with-the-log") {
            image.floors.clear();
        }
        ops.push(Op::PutMeta { key: table_key(self.pg), value: encode(&image) });
        count
    }

    fn entry_ops(
        &self,
        cx: &mut Context<'_>,
        entry: &LogEntry,
        data: &OpBytes,
        skip: &BTreeSet<GroupObject>,
        ops: &mut Vec<Op>,
    ) -> Result<(), StoreError> {
        let version = entry.position.sequence;
        if let Unit::Object(object) = entry.op.unit()
            && skip.contains(&object)
        {
            return Ok(());
        }
        match &entry.op {
            LogOp::Write { object, cut, truncate_seq, offset, .. } => {
                let (key, truncate_seq) = (self.key(*object), *truncate_seq);
                if let Some(cut) = cut {
                    ops.push(Op::Truncate { key, size: u64::from(*cut), truncate_seq, version });
                }
                let (data, crc) = (data.bytes.clone(), data.crc);
                ops.push(Op::Write { key, offset: u64::from(*offset), data, crc, truncate_seq, version });
            }
            LogOp::Zero { object, cut, truncate_seq, offset, length } => {
                let (key, truncate_seq) = (self.key(*object), *truncate_seq);
                if let Some(cut) = cut {
                    ops.push(Op::Truncate { key, size: u64::from(*cut), truncate_seq, version });
                }
                ops.push(Op::Zero { key, offset: u64::from(*offset), len: u64::from(*length), version });
            }
            LogOp::Trim { inode, chunk_size, truncations, .. } => {
                let newest = truncation::newest(truncations);
                for (key, info) in self.objects_of(cx, inode.0)? {
                    if skip.contains(&GroupObject { inode: *inode, chunk: key.chunk }) {
                        continue;
                    }
                    match truncation::cut(truncations, info.truncate_seq, key.chunk, *chunk_size) {
                        None => {}
                        Some(0) => ops.push(Op::Delete { key }),
                        Some(cut) => {
                            let size = info.size.min(u64::from(cut));
                            ops.push(Op::Truncate { key, size, truncate_seq: newest, version });
                        }
                    }
                }
            }
            // `split_ops` does it, also where objects are not executed on.
            LogOp::Split { .. } => {}
        }
        Ok(())
    }

    /// The objects that the group does not hold under `pg_num` move to the child, which begins with this group's table
    /// and fill marker and an empty log. What the store holds of the child from a split that was undone gives way; what
    /// is newer than this split stays. Returns the child if it begins here.
    fn split_ops(
        &self,
        cx: &mut Context<'_>,
        position: Position,
        pg_num: u32,
        fill: Option<&Fill>,
        ops: &mut Vec<Op>,
    ) -> Result<Option<PgId>, StoreError> {
        ops.push(keep_extent(self.pg, pg_num, position));
        let Some(seed) = split::child(self.pg.seed, self.pg_num, pg_num) else { return Ok(None) };
        let child = PgId { pool: self.pg.pool, seed };
        let moves = |object: GroupObject| {
            let object = ObjectId { pool: child.pool, inode: object.inode, chunk: object.chunk };
            object.pg(pg_num) == child
        };
        let known = LocalCopy::load(child, cx.store)?;
        let begins = !known.exists || known.head() < position;
        if begins {
            ops.push(Op::DeletePg { pg: child.to_u64() });
            ops.push(Op::DeleteMetaRange { from: group_key(child, b'a'), to: group_key(child, b'z') });
            ops.push(keep_presence(child));
            ops.push(keep_extent(child, pg_num, Position::default()));
            ops.push(Op::PutMeta { key: table_key(child), value: encode(&self.table.image(position)) });
            let scrub = ScrubRecord { run: None, found: 0, repaired: 0, undecided: 0, ..self.scrub };
            ops.push(Op::PutMeta { key: scrub_key(child), value: encode(&scrub) });
            if let Some(fill) = fill.or(self.fill.as_ref()) {
                let concerns = |unit: &Unit| match unit {
                    Unit::Object(object) => moves(*object),
                    Unit::Inode(_) | Unit::Group => true,
                };
                let missing = fill.missing.iter().copied().filter(concerns).collect();
                let fill = Fill { missing, ..fill.clone() };
                ops.push(Op::PutMeta { key: fill_key(child), value: encode(&fill) });
            }
        }
        let mut after = None;
        loop {
            let batch = cx.store.list(self.pg.to_u64(), after, LIST_BATCH)?;
            let Some((last, _)) = batch.last() else { break };
            after = Some((last.inode, last.chunk));
            for (key, _) in batch {
                if moves(GroupObject { inode: InodeId(key.inode), chunk: key.chunk }) {
                    ops.push(if begins { Op::Move { key, pg: child.to_u64() } } else { Op::Delete { key } });
                }
            }
        }
        Ok(begins.then_some(child))
    }

    /// All objects of an inode.
    pub(super) fn objects_of(
        &self,
        cx: &mut Context<'_>,
        inode: u64,
    ) -> Result<Vec<(ObjectKey, ObjectInfo)>, StoreError> {
        let mut after = inode.checked_sub(1).map(|before| (before, u32::MAX));
        let mut found: Vec<(ObjectKey, ObjectInfo)> = Vec::new();
        // Most inodes have few objects in a group.
        let mut limit = 8;
        loop {
            let batch = cx.store.list(self.pg.to_u64(), after, limit)?;
            let complete = batch.len() < limit || batch.last().is_some_and(|(key, _)| key.inode != inode);
            found.extend(batch.into_iter().filter(|(key, _)| key.inode == inode));
            match found.last() {
                Some((key, _)) if !complete => after = Some((key.inode, key.chunk)),
                _ => return Ok(found),
            }
            limit = LIST_BATCH;
        }
    }

    /// Deletions of all objects between two places of a backfill, both excluded.
    pub(super) fn clear_between(
        &self,
        cx: &mut Context<'_>,
        after: Cursor,
        before: Option<GroupObject>,
        ops: &mut Vec<Op>,
    ) -> Result<(), StoreError> {
        let mut after = match after {
            Cursor::Start => None,
            Cursor::At(object) => Some((object.inode.0, object.chunk)),
            Cursor::End => return Ok(()),
        };
        let end = before.map(|object| (object.inode.0, object.chunk));
        loop {
            let batch = cx.store.list(self.pg.to_u64(), after, LIST_BATCH)?;
            for (key, _) in &batch {
                if end.is_some_and(|end| (key.inode, key.chunk) >= end) {
                    return Ok(());
                }
                ops.push(Op::Delete { key: *key });
            }
            match batch.last() {
                Some((key, _)) => after = Some((key.inode, key.chunk)),
                None => return Ok(()),
            }
        }
    }

    /// Starts anew from a primary's log and table, incomplete until [`Self::end_fill`].
    pub(super) fn start_fill(
        &mut self,
        cx: &mut Context<'_>,
        floor: Position,
        log: Vec<LogEntry>,
        table: &TableImage,
        fill: Fill,
        pg_num: u32,
    ) -> Result<(), StoreError> {
        let from_start = fill.cursor == Cursor::Start;
        let split_at = if from_start { Position::default() } else { self.split_at };
        let mut ops = vec![
            keep_extent(self.pg, pg_num, split_at),
            Op::DeleteMetaRange { from: log_key(self.pg, 0), to: log_key(self.pg, u64::MAX) },
            Op::PutMeta { key: table_key(self.pg), value: encode(table) },
            Op::PutMeta { key: fill_key(self.pg), value: encode(&fill) },
        ];
        if mutant!("fill-marker-in-memory") {
            ops.pop();
        }
        let mut previous_allocated = 0;
        for entry in &log {
            let record = LogRecord { entry: entry.clone(), previous_allocated };
            ops.push(Op::PutMeta { key: log_key(self.pg, entry.position.sequence), value: encode(&record) });
            previous_allocated = entry.allocated;
        }
        self.submit(cx, ops, true)?;
        (self.pg_num, self.split_at) = (pg_num, split_at);
        self.table = Table::from_image(table);
        self.log = OpLog::new(floor);
        log.into_iter().for_each(|entry| self.log.append(entry));
        self.fill = Some(fill);
        self.reached.written = 0;
        self.reached.durable = 0;
        self.whole_at = None;
        // Sequences of the log that was given up mean nothing any more.
        self.marks.clear();
        self.syncs.clear();
        Ok(())
    }

    /// The change that keeps the fill marker durably.
    pub(super) fn keep_fill(&self, fill: &Fill) -> Op {
        Op::PutMeta { key: fill_key(self.pg), value: encode(fill) }
    }

    /// Keeps where the scrub is.
    pub(super) fn keep_scrub(&mut self, cx: &mut Context<'_>) -> Result<(), StoreError> {
        let record = Op::PutMeta { key: scrub_key(self.pg), value: encode(&self.scrub) };
        self.submit(cx, vec![record], true).map(drop)
    }

    /// The copy holds everything that its log says.
    pub(super) fn end_fill(&mut self, cx: &mut Context<'_>) -> Result<(), StoreError> {
        let Some(fill) = &self.fill else { return Ok(()) };
        let base = fill.base.sequence;
        let submitted = self.submit(cx, vec![Op::DeleteMeta { key: fill_key(self.pg) }], true)?;
        self.fill = None;
        self.whole_at = Some((submitted.ticket, base)).filter(|_| !mutant!("filled-copy-is-written-at-once"));
        // What was copied is younger than the operations before it: only a later sync covers it.
        if !mutant!("filled-copy-is-durable-at-once") {
            self.reached.durable = self.reached.durable.min(base);
            self.syncs.clear();
        }
        Ok(())
    }

    /// Operations behind a sequence with their bytes as they are now, to be executed elsewhere as one
    /// transaction. (Later operations may show in the bytes of earlier ones; together they are exact.) Stops
    /// before `bytes_max` unless the first one alone is larger, and before bytes that are damaged here.
    pub(super) fn tail(
        &self,
        cx: &mut Context<'_>,
        after: u64,
        bytes_max: usize,
    ) -> Result<Tail, StoreError> {
        if self.log.after(after).skip(1).any(|entry| matches!(entry.op, LogOp::Split { .. })) {
            let why = "operations before a split cannot be read any more: their objects moved".to_owned();
            return Err(StoreError::Invalid(why));
        }
        let mut tail = Tail { entries: Vec::new(), payload: Bytes::new(), damage: None };
        let mut payload = Vec::new();
        for entry in self.log.after(after) {
            if !tail.entries.is_empty() && payload.len() + entry.op.payload_len() > bytes_max {
                break;
            }
            let mut crc = 0;
            if let LogOp::Write { object, offset, length, .. } = &entry.op {
                let mut bytes = match cx.store.read(self.key(*object), u64::from(*offset), *length as usize) {
                    Ok(piece) => piece.map_or(Vec::new(), |piece| piece.data.to_vec()),
                    Err(error @ StoreError::Corrupt { .. }) => {
                        tail.damage = Some(error);
                        break;
                    }
                    Err(error) => return Err(error),
                };
                bytes.resize(*length as usize, 0);
                crc = crc32c::crc32c(&bytes);
                payload.append(&mut bytes);
            }
            tail.entries.push((entry.clone(), crc));
        }
        tail.payload = Bytes::from(payload);
        Ok(tail)
    }

    /// Removes everything of the group from the store.
    pub(super) fn remove(&mut self, cx: &mut Context<'_>) -> Result<(), StoreError> {
        let ops = vec![
            Op::DeletePg { pg: self.pg.to_u64() },
            Op::DeleteMetaRange { from: group_key(self.pg, b'a'), to: group_key(self.pg, b'z') },
            Op::DeleteMeta { key: presence_key(self.pg) },
        ];
        cx.store.submit(Transaction { ops, use_reserve: true })?;
        Ok(())
    }

    pub(super) fn exists(&self) -> bool {
        self.exists
    }

    /// Objects that still have to be copied to this store, as far as it knows itself.
    pub(super) fn missing(&self) -> impl Iterator<Item = &Unit> {
        self.fill.iter().flat_map(|fill| &fill.missing)
    }
}

/// The end of a log with its bytes.
#[derive(Debug)]
pub(super) struct Tail {
    /// Operations, each with the crc32c of its bytes.
    pub(super) entries: Vec<(LogEntry, u32)>,
    pub(super) payload: Bytes,
    /// What it ends before.
    pub(super) damage: Option<StoreError>,
}

/// Cuts a tail's payload into the bytes of its entries.
///
/// # Errors
/// The payload has another length than the entries say.
pub(super) fn split_tail(
    entries: Vec<(LogEntry, u32)>,
    mut payload: Bytes,
) -> Result<Vec<(LogEntry, Option<OpBytes>)>, &'static str> {
    let mut split = Vec::with_capacity(entries.len());
    for (entry, crc) in entries {
        let length = entry.op.payload_len();
        if payload.len() < length {
            return Err("its payload is too short");
        }
        let bytes = payload.split_to(length);
        split.push((entry, Some(OpBytes { bytes, crc })));
    }
    if payload.is_empty() { Ok(split) } else { Err("its payload is too long") }
}

/// Groups of which the store holds something.
///
/// # Errors
/// What the store says.
pub fn stored_groups(store: &mut dyn PgStore) -> Result<Vec<PgId>, StoreError> {
    let mut groups = Vec::new();
    let mut after: Option<Vec<u8>> = None;
    loop {
        let batch = store.list_meta(b"p", after.as_deref(), LIST_BATCH)?;
        for (key, _) in &batch {
            let raw = key.get(1..).and_then(|raw| <[u8; 8]>::try_from(raw).ok());
            let raw =
                raw.ok_or_else(|| StoreError::Damaged("a group record has a foreign key".to_owned()))?;
            groups.push(PgId::from_u64(u64::from_be_bytes(raw)));
        }
        match batch.into_iter().last() {
            Some((key, _)) => after = Some(key),
            None => return Ok(groups),
        }
    }
}

fn presence_key(pg: PgId) -> Vec<u8> {
    [b"p".as_slice(), &pg.to_u64().to_be_bytes()].concat()
}

fn group_key(pg: PgId, kind: u8) -> Vec<u8> {
    [b"g".as_slice(), &pg.to_u64().to_be_bytes(), &[kind]].concat()
}

fn table_key(pg: PgId) -> Vec<u8> {
    group_key(pg, b't')
}

fn fill_key(pg: PgId) -> Vec<u8> {
    group_key(pg, b'f')
}

fn scrub_key(pg: PgId) -> Vec<u8> {
    group_key(pg, b's')
}

fn extent_key(pg: PgId) -> Vec<u8> {
    group_key(pg, b'n')
}

/// The store holds something of the group.
fn keep_presence(pg: PgId) -> Op {
    Op::PutMeta { key: presence_key(pg), value: Bytes::from_static(&[1]) }
}

fn keep_extent(pg: PgId, pg_num: u32, split_at: Position) -> Op {
    Op::PutMeta { key: extent_key(pg), value: encode(&ExtentRecord { pg_num, split_at }) }
}

fn log_prefix(pg: PgId) -> Vec<u8> {
    group_key(pg, b'l')
}

fn log_key(pg: PgId, sequence: u64) -> Vec<u8> {
    [log_prefix(pg).as_slice(), &sequence.to_be_bytes()].concat()
}

fn encode<T: Serialize>(value: &T) -> Bytes {
    Bytes::from(
        postcard::to_stdvec(value).expect("these types have no maps or unsized parts that postcard refuses"),
    )
}

fn decode<T: for<'de> Deserialize<'de>>(pg: PgId, what: &str, value: &[u8]) -> Result<T, StoreError> {
    postcard::from_bytes(value).map_err(|error| {
        StoreError::Damaged(format!("the {what} of placement group {pg} does not decode: {error}"))
    })
}
