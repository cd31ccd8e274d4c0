//! Clients' requests: judged, ordered, executed here, and sent to the members.

use std::collections::BTreeSet;

use bytes::Bytes;
use protocol::data::{DataError, DataReply, DataRequest, IO_MAX, ObjectContext};
use protocol::replication::{GroupObject, LogEntry, LogOp, Position, StreamBody, Unit};
use protocol::{InodeId, RequestId, Truncation, mutant};

use super::commit::{HeldRead, Pending};
use super::peer::Stage;
use super::{Primary, Request};
use crate::pg::copy::OpBytes;
use crate::pg::group::{Group, touches};
use crate::pg::table::Seen;
use crate::pg::truncation;
use crate::pg::types::{Context, Output, RequestToken};
use crate::store::{ObjectInfo, StoreError};

/// What became of a request.
enum Attempt {
    /// It is answered or ordered.
    Done,
    /// Its place in the window, the store or the map is not there yet.
    Later(Request),
}

/// Either an answer or a reason to wait.
type Judged<T> = Result<T, Verdict>;

enum Verdict {
    Refuse(DataError),
    Wait,
    Damaged { object: GroupObject, offset: u32, length: u32 },
}

impl From<DataError> for Verdict {
    fn from(error: DataError) -> Self {
        Verdict::Refuse(error)
    }
}

impl Primary {
    pub(in crate::pg) fn handle_request(&mut self, g: &mut Group, cx: &mut Context<'_>, request: Request) {
        let waits_in_line = !self.queue.is_empty() && !matches!(request.body, DataRequest::Read { .. });
        let token = request.token;
        let attempt = if waits_in_line { Attempt::Later(request) } else { self.attempt(g, cx, request) };
        if let Attempt::Later(request) = attempt {
            if self.queue.len() >= g.settings.queue_max {
                return refuse(g, token, DataError::Overloaded);
            }
            self.queue.push_back(request);
        }
        self.advance(g, cx);
    }

    /// Orders what waited for its place.
    pub(in crate::pg) fn drain_queue(&mut self, g: &mut Group, cx: &mut Context<'_>) {
        while let Some(request) = self.queue.pop_front() {
            if let Attempt::Later(request) = self.attempt(g, cx, request) {
                self.queue.push_front(request);
                return;
            }
        }
    }

    fn attempt(&mut self, g: &mut Group, cx: &mut Context<'_>, request: Request) -> Attempt {
        match self.judge(g, cx, &request) {
            Ok(()) => Attempt::Done,
            Err(Verdict::Wait) => Attempt::Later(request),
            Err(Verdict::Refuse(error)) => {
                refuse(g, request.token, error);
                Attempt::Done
            }
            Err(Verdict::Damaged { object, offset, length }) => {
                self.begin_repair(g, object, offset, length, Some(request));
                Attempt::Done
            }
        }
    }

    fn judge(&mut self, g: &mut Group, cx: &mut Context<'_>, request: &Request) -> Judged<()> {
        if !self.serves(g, cx) {
            return Err(self.why_not_serving(g, cx).into());
        }
        if self.waits_for_split(g, &request.body) {
            return Err(Verdict::Wait);
        }
        if names_other_extent(g, &request.body) {
            return Err(DataError::NotPrimary { version: g.version() }.into());
        }
        if touched(&request.body).is_some_and(|unit| self.is_pulling(unit)) {
            return Err(Verdict::Wait);
        }
        let token = request.token;
        match &request.body {
            DataRequest::Read { context, offset, length } => {
                self.read(g, cx, token, context, (*offset, *length))
            }
            DataRequest::Write { request: id, context, offset, crc } => {
                let length = request.payload.len() as u32;
                if length == 0 || length > IO_MAX {
                    let why = format!("a write of {length} bytes; 1 to {IO_MAX} are possible");
                    return Err(DataError::Malformed(why).into());
                }
                let bytes = OpBytes { bytes: request.payload.clone(), crc: *crc };
                self.modify(g, cx, token, *id, context, (*offset, length), Some(bytes))
            }
            DataRequest::Zero { request: id, context, offset, length } => {
                self.modify(g, cx, token, *id, context, (*offset, *length), None)
            }
            DataRequest::Sync { .. } => {
                self.begin_sync(g, token);
                Ok(())
            }
            DataRequest::Scrub { .. } | DataRequest::List { .. } => {
                Err(DataError::Malformed("neither a scrub nor a list is an operation on objects".to_owned())
                    .into())
            }
            DataRequest::TrimInode { inode, chunk_size, truncations, floor, .. } => {
                self.trim(g, cx, token, *inode, *chunk_size, truncations, *floor)
            }
        }
    }

    fn why_not_serving(&self, g: &Group, cx: &Context<'_>) -> DataError {
        DataError::Unavailable(if !cx.leased() {
            "this server has lost contact with the metadata cluster".to_owned()
        } else {
            format!("a new primary is taking over in configuration {}", g.version())
        })
    }

    /// Executes a read now; the answer waits if it shows something that may still be lost.
    fn read(
        &mut self,
        g: &mut Group,
        cx: &mut Context<'_>,
        token: RequestToken,
        context: &ObjectContext,
        (offset, length): (u32, u32),
    ) -> Judged<()> {
        self.catch_up(g, context)?;
        if length > IO_MAX || offset.checked_add(length).is_none() {
            return Err(DataError::Malformed(format!("a read of {length} bytes at {offset}")).into());
        }
        let object = group_object(context);
        let info = g.copy.info(cx, object).map_err(|error| trouble(g, object, (offset, length), error))?;
        let newest = check_fresh(g, &context.truncations, object, info)?;
        let mut end = info.map_or(0, |info| info.size);
        if let Some(info) = info.filter(|info| info.truncate_seq < newest) {
            let cut =
                truncation::cut(&context.truncations, info.truncate_seq, object.chunk, g.view.chunk_size);
            end = end.min(cut.map_or(u64::MAX, u64::from));
        }
        let length = u64::from(length).min(end.saturating_sub(u64::from(offset)));
        let piece = if length == 0 {
            None
        } else {
            let key = g.copy.key(object);
            let read = cx.store.read(key, u64::from(offset), length as usize);
            read.map_err(|error| trouble(g, object, (offset, length as u32), error))?
        };
        let (payload, crc) =
            piece.map_or((Bytes::new(), crc32c::crc32c(b"")), |piece| (piece.data, piece.crc));
        let unit = Unit::Object(object);
        let until = self.pending.iter().rev().find(|p| touches(p.unit, unit)).map_or(0, |p| p.sequence);
        let until = if mutant!("read-sees-what-may-be-lost") { 0 } else { until };
        let reply = DataReply::Data { crc };
        if until <= self.committed {
            g.outputs.push_back(Output::reply(token, reply, payload));
        } else if self.reads.len() >= g.settings.queue_max {
            return Err(DataError::Overloaded.into());
        } else {
            self.reads.push(HeldRead { until, token, reply, payload });
        }
        Ok(())
    }

    /// A write (with bytes) or the making of zeros.
    #[allow(clippy::too_many_arguments, reason = "the parts of two messages that are treated alike")]
    fn modify(
        &mut self,
        g: &mut Group,
        cx: &mut Context<'_>,
        token: RequestToken,
        request: RequestId,
        context: &ObjectContext,
        (offset, length): (u32, u32),
        bytes: Option<OpBytes>,
    ) -> Judged<()> {
        self.catch_up(g, context)?;
        if offset.checked_add(length).is_none_or(|end| end > g.view.chunk_size) {
            let why = format!("{length} bytes at {offset} do not fit into a chunk of {}", g.view.chunk_size);
            return Err(DataError::Malformed(why).into());
        }
        let blocked = request.session < g.view.sessions_from || g.view.blocked.contains_key(&request.session);
        if blocked && !mutant!("fence-not-judged") {
            return Err(DataError::Fenced.into());
        }
        match g.copy.table.seen(request) {
            Seen::New => {}
            Seen::Ordered { .. } if mutant!("repetition-is-executed-again") => {}
            Seen::Superseded => return Err(DataError::Superseded.into()),
            Seen::Ordered { allocated, at } => {
                self.answer_again(g, token, allocated, at);
                return Ok(());
            }
        }
        let object = group_object(context);
        let info = g.copy.info(cx, object).map_err(|error| trouble(g, object, (offset, length), error))?;
        let grows = bytes.is_some() && needs_space(info, offset + length);
        self.check_writable(g, grows && (cx.store.is_full() || self.peers.values().any(|p| p.full)))?;
        let newest = check_fresh(g, &context.truncations, object, info)?;
        let cut = info.filter(|info| info.truncate_seq < newest).map(|info| {
            let cut =
                truncation::cut(&context.truncations, info.truncate_seq, object.chunk, g.view.chunk_size);
            info.size.min(cut.map_or(u64::MAX, u64::from)) as u32
        });
        self.check_window(g, bytes.as_ref().map_or(0, |data| data.bytes.len()))?;
        let op = match &bytes {
            Some(_) => LogOp::Write { object, cut, truncate_seq: newest, offset, length },
            None => LogOp::Zero { object, cut, truncate_seq: newest, offset, length },
        };
        let creates_nothing = bytes.is_none() && info.is_none();
        let asked = Asked { request: Some(request), grows, token };
        let allocated = self.order(g, cx, asked, op, bytes.unwrap_or_default())?;
        if !creates_nothing {
            g.stats.changed(object, info, allocated);
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments, reason = "the parts of one message")]
    fn trim(
        &mut self,
        g: &mut Group,
        cx: &mut Context<'_>,
        token: RequestToken,
        inode: InodeId,
        chunk_size: u32,
        truncations: &[Truncation],
        floor: u64,
    ) -> Judged<()> {
        self.check_writable(g, false)?;
        self.check_window(g, 0)?;
        let op = LogOp::Trim { inode, chunk_size, truncations: truncations.to_vec(), floor };
        let first = GroupObject { inode, chunk: 0 };
        let count = |g: &mut Group, cx: &mut Context<'_>| match g.copy.objects_of(cx, inode.0) {
            Ok(objects) => Ok(objects.len() as u64),
            Err(error) => Err(trouble(g, first, (0, 0), error)),
        };
        let before = count(g, cx)?;
        let asked = Asked { request: None, grows: false, token };
        let allocated = self.order(g, cx, asked, op, OpBytes::default())?;
        // It is ordered: counting wrongly would be no reason to refuse it.
        let removed = before - count(g, cx).unwrap_or(before).min(before);
        g.stats.trimmed(inode, removed, allocated);
        Ok(())
    }

    /// Gives the operation its place, executes it here and sends it to the members.
    fn order(
        &mut self,
        g: &mut Group,
        cx: &mut Context<'_>,
        Asked { request, grows, token }: Asked,
        op: LogOp,
        data: OpBytes,
    ) -> Judged<i64> {
        let sequence = g.copy.head().sequence + 1;
        let position = Position { version: g.version(), sequence };
        let mut entry = LogEntry { position, request, op, allocated: 0 };
        let unit = entry.op.unit();
        let span = match &entry.op {
            LogOp::Write { offset, length, .. } | LogOp::Zero { offset, length, .. } => (*offset, *length),
            LogOp::Trim { .. } | LogOp::Split { .. } => (0, 0),
        };
        let entries = vec![(entry.clone(), Some(data.clone()))];
        // What is acknowledged elsewhere may use the reserve, and what frees as much as it takes; this is neither yet.
        let skip = BTreeSet::new();
        let mut how = g.ordered(&skip);
        how.use_reserve = !grows;
        let submitted = match g.copy.execute(cx, entries, &how) {
            Ok(submitted) => submitted,
            Err(error) => {
                let object = match (&error, unit) {
                    (StoreError::Corrupt { key, .. }, _) => {
                        GroupObject { inode: InodeId(key.inode), chunk: key.chunk }
                    }
                    (_, Unit::Object(object)) => object,
                    (_, Unit::Inode(inode)) => GroupObject { inode, chunk: 0 },
                    (_, Unit::Group) => GroupObject { inode: InodeId(0), chunk: 0 },
                };
                return Err(trouble(g, object, span, error));
            }
        };
        entry.allocated = submitted.allocated_delta;
        g.copy.settle_allocated(entry.allocated);
        let reply = match unit {
            Unit::Object(_) => DataReply::Written { allocated: entry.allocated },
            Unit::Inode(_) | Unit::Group => DataReply::Trimmed { allocated: entry.allocated },
        };
        let bytes = data.bytes.len();
        self.pending.push_back(Pending { sequence, unit, bytes, reply, tokens: vec![token] });
        self.pending_bytes += bytes;
        let allocated = entry.allocated;
        self.send_to_members(g, &entry, &data);
        Ok(allocated)
    }

    pub(super) fn send_to_members(&mut self, g: &mut Group, entry: &LogEntry, data: &OpBytes) {
        for peer in self.peers.values_mut().filter(|peer| peer.stage == Stage::Streaming) {
            let apply = match (&peer.fill, entry.op.unit()) {
                (Some(fill), Unit::Object(object)) => fill.covers(object),
                // A trim only removes; what it finds it may cut, and the rest is copied later anyway.
                (Some(_), Unit::Inode(_) | Unit::Group) | (None, _) => true,
            };
            let OpBytes { bytes: payload, crc } = if apply { data.clone() } else { OpBytes::default() };
            peer.stream(g, StreamBody::Append { entry: entry.clone(), apply, crc }, payload);
        }
    }

    /// A repetition of a request that was ordered before.
    fn answer_again(&mut self, g: &mut Group, token: RequestToken, allocated: i64, at: u64) {
        let reply = DataReply::Written { allocated };
        if at <= self.committed {
            g.outputs.push_back(Output::reply(token, reply, Bytes::new()));
        } else if let Some(pending) = self.pending.iter_mut().find(|pending| pending.sequence == at) {
            pending.tokens.push(token);
        } else {
            // Ordered by this server in an earlier tenure and not yet known to be everywhere.
            self.reads.push(HeldRead { until: at, token, reply, payload: Bytes::new() });
        }
    }

    /// The client knows of a fenced session: so must this server, before it orders anything for it.
    fn catch_up(&self, g: &mut Group, context: &ObjectContext) -> Judged<()> {
        if context.fence > g.view.epoch && !mutant!("fence-not-learnt") {
            g.outputs.push_back(Output::FetchMap);
            return Err(Verdict::Wait);
        }
        Ok(())
    }

    fn check_writable(&self, g: &Group, full: bool) -> Judged<()> {
        if !self.has_quorum(g) {
            let (certain, least) = (g.config().certain().count(), g.view.min_size);
            let why = format!("{certain} replicas are up to date, {least} are needed for writing");
            return Err(DataError::Unavailable(why).into());
        }
        if full { Err(DataError::Full.into()) } else { Ok(()) }
    }

    fn check_window(&self, g: &Group, bytes: usize) -> Judged<()> {
        let bytes_fit = self.pending.is_empty() || self.pending_bytes + bytes <= g.settings.window_bytes;
        if g.stalled || self.pending.len() >= g.settings.window_ops || !bytes_fit {
            return Err(Verdict::Wait);
        }
        Ok(())
    }
}

/// Who asked for an operation, and whether it needs space.
struct Asked {
    request: Option<RequestId>,
    grows: bool,
    token: RequestToken,
}

/// Whether a write up to `end` may need space: not in an object without holes that has all of it already.
fn needs_space(info: Option<ObjectInfo>, end: u32) -> bool {
    let block = crate::store::BLOCK_BYTES as u64;
    info.is_none_or(|info| {
        let whole = info.size.next_multiple_of(block);
        info.allocated_bytes < whole || u64::from(end) > whole
    })
}

/// Refuses operations that know less than the object or its inode: their bytes belong to a file that was cut
/// since. Returns the newest truncation that the operation knows.
fn check_fresh(
    g: &Group,
    truncations: &[Truncation],
    object: GroupObject,
    info: Option<ObjectInfo>,
) -> Judged<u64> {
    let newest = truncation::newest(truncations);
    let known = info.map_or(0, |info| info.truncate_seq).max(g.copy.table.floor(object.inode));
    let known =
        if mutant!("late-write-below-the-floor") { info.map_or(0, |i| i.truncate_seq) } else { known };
    if newest < known { Err(DataError::StaleTruncation { known }.into()) } else { Ok(newest) }
}

/// What an error of the store means for the request.
fn trouble(g: &mut Group, object: GroupObject, (offset, length): (u32, u32), error: StoreError) -> Verdict {
    match error {
        StoreError::Busy => {
            g.stall();
            Verdict::Wait
        }
        StoreError::Full { .. } => Verdict::Refuse(DataError::Full),
        StoreError::BadChecksum { .. } | StoreError::Invalid(_) => {
            Verdict::Refuse(DataError::Malformed(error.to_string()))
        }
        StoreError::Corrupt { block, .. } => {
            g.note("serving a request", error);
            let block_start = block * crate::store::BLOCK_BYTES as u32;
            let start = offset.min(block_start);
            let end = (offset + length).max(block_start + crate::store::BLOCK_BYTES as u32);
            Verdict::Damaged { object, offset: start, length: end - start }
        }
        StoreError::Failed(_) | StoreError::Damaged(_) | StoreError::Refused(_) => {
            let why = error.to_string();
            g.note("serving a request", error);
            Verdict::Refuse(DataError::Unavailable(why))
        }
    }
}

pub(super) fn refuse(g: &mut Group, token: RequestToken, error: DataError) {
    g.outputs.push_back(Output::Reply { token, response: Err(error), payload: Bytes::new() });
}

/// What a request looks at or changes.
fn touched(body: &DataRequest) -> Option<Unit> {
    match body {
        DataRequest::Read { context, .. }
        | DataRequest::Write { context, .. }
        | DataRequest::Zero { context, .. } => Some(Unit::Object(group_object(context))),
        DataRequest::TrimInode { inode, .. } => Some(Unit::Inode(*inode)),
        DataRequest::Sync { .. } | DataRequest::Scrub { .. } | DataRequest::List { .. } => None,
    }
}

/// The sender found the group under another number of groups: it would look for what it does here in the wrong groups
/// later, and has to fetch the map.
fn names_other_extent(g: &Group, body: &DataRequest) -> bool {
    let mine = g.config().pg_num;
    match body {
        DataRequest::Read { context, .. }
        | DataRequest::Write { context, .. }
        | DataRequest::Zero { context, .. } => context.pg_num != mine || context.object.pg(mine) != g.copy.pg,
        DataRequest::TrimInode { pg_num, .. } => *pg_num != mine,
        DataRequest::List { pg_num, .. } => *pg_num != mine,
        DataRequest::Sync { pgs } => pgs.iter().any(|extent| extent.pg_num != mine),
        DataRequest::Scrub { .. } => false,
    }
}

fn group_object(context: &ObjectContext) -> GroupObject {
    GroupObject { inode: context.object.inode, chunk: context.object.chunk }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_writes_into_what_is_there_need_no_space() {
        let info =
            |size, allocated_bytes| Some(ObjectInfo { size, allocated_bytes, ..ObjectInfo::default() });
        assert!(needs_space(None, 10));
        assert!(!needs_space(info(5000, 8192), 5000));
        assert!(!needs_space(info(5000, 8192), 8192), "the last block has room");
        assert!(needs_space(info(5000, 8192), 8193));
        assert!(needs_space(info(5000, 4096), 10), "it has a hole");
    }
}
