//! A store in memory that can lose what was not synced, refuse for lack of room, and hold damaged objects.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::pg::types::PgStore;
use crate::store::{
    BLOCK_BYTES, Digest, ObjectInfo, ObjectKey, Op, Piece, Progress, StoreError, Submitted, Ticket,
    Transaction,
};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SimObject {
    pub(super) data: Vec<u8>,
    truncate_seq: u64,
    version: u64,
}

/// What happens to an object behind everybody's back.
#[derive(Clone, Copy, Debug)]
pub(super) enum Spoil {
    Lose,
    Alter,
    Invent,
}

#[derive(Clone, Debug, Default)]
struct State {
    objects: BTreeMap<ObjectKey, SimObject>,
    meta: BTreeMap<Vec<u8>, Bytes>,
}

#[derive(Debug, Default)]
pub(super) struct SimStore {
    durable_state: State,
    /// Transactions behind the durable state.
    since: Vec<Transaction>,
    now: State,
    submitted: u64,
    written: u64,
    durable: u64,
    /// Objects whose bytes do not match their checksum.
    pub(super) damaged: BTreeSet<ObjectKey>,
    pub(super) busy: bool,
    /// Ordinary writes are refused.
    pub(super) full: bool,
    /// The disk fails for good with this transaction.
    pub(super) fails_at: Option<u64>,
    /// So many of the next writes get lost or end up in another object's place, chosen by the first number.
    pub(super) lies: Option<(u64, u64)>,
}

impl SimStore {
    /// Transactions submitted so far.
    pub(super) fn submitted(&self) -> u64 {
        self.submitted
    }

    /// Nothing is damaged, nor about to be.
    pub(super) fn is_honest(&self) -> bool {
        self.damaged.is_empty() && self.lies.is_none() && self.fails_at.is_none()
    }

    /// The disk is of no more use.
    pub(super) fn has_failed(&self) -> bool {
        self.fails_at.is_some_and(|at| self.submitted >= at)
    }

    /// A lost or misdirected write: the old bytes are still where the new ones should be, or the new ones are where
    /// another object's should be. Either way a block does not match its checksum.
    fn lie(&mut self, written: ObjectKey) {
        let Some((seed, left)) = self.lies else { return };
        self.lies = Some((seed.rotate_left(7), left - 1)).filter(|(_, left)| *left > 0);
        let place = seed as usize % self.now.objects.len().max(1);
        let victim = self.now.objects.keys().nth(place).filter(|_| seed & 1024 == 0);
        self.damaged.insert(victim.copied().unwrap_or(written));
    }

    pub(super) fn set_written(&mut self, upto: u64) {
        self.written = self.written.max(upto.min(self.submitted));
    }

    pub(super) fn set_durable(&mut self, upto: u64) {
        let upto = upto.min(self.submitted);
        if upto <= self.durable {
            return;
        }
        for transaction in self.since.drain(..(upto - self.durable) as usize) {
            apply(&mut self.durable_state, &transaction);
        }
        self.durable = upto;
        self.written = self.written.max(upto);
    }

    /// The process or the machine stops; `keep` transactions survive.
    pub(super) fn crash(&mut self, keep: u64) {
        let keep = keep.clamp(self.durable, self.submitted);
        self.since.truncate((keep - self.durable) as usize);
        self.now = self.durable_state.clone();
        for transaction in &self.since {
            apply(&mut self.now, transaction);
        }
        (self.submitted, self.written) = (keep, keep);
        self.busy = false;
        let objects = &self.now.objects;
        self.damaged.retain(|key| objects.contains_key(key));
    }

    pub(super) fn least_kept(&self, power_loss: bool) -> u64 {
        if power_loss { self.durable } else { self.written }
    }

    /// Whether the copy of one of these groups lacks something that its log says, also while no process runs.
    pub(super) fn is_incomplete(&self, pgs: impl Iterator<Item = protocol::PgId>) -> bool {
        let mut store = SimStore { now: self.now.clone(), ..SimStore::default() };
        let copy = |pg| crate::pg::copy::LocalCopy::load(pg, &mut store);
        let mut copies = pgs.map(copy);
        copies.any(|copy| copy.is_ok_and(|copy| copy.fill.is_some()))
    }

    /// Up to where everything is there after a power loss.
    pub(super) fn durable_log_end(&self, pg: protocol::PgId) -> u64 {
        complete_to(pg, self.durable_state.clone())
    }

    /// Up to where everything is there after the process was killed.
    pub(super) fn written_log_end(&self, pg: protocol::PgId) -> u64 {
        let mut state = self.durable_state.clone();
        let written = self.since.iter().take((self.written - self.durable) as usize);
        written.for_each(|transaction| apply(&mut state, transaction));
        complete_to(pg, state)
    }

    /// The disk, or a bug, changes an object without anybody noticing.
    pub(super) fn spoil(&mut self, key: ObjectKey, how: Spoil) {
        for state in [&mut self.now, &mut self.durable_state] {
            match how {
                Spoil::Lose => drop(state.objects.remove(&key)),
                Spoil::Alter => {
                    if let Some(byte) = state.objects.get_mut(&key).and_then(|o| o.data.first_mut()) {
                        *byte ^= 0x40;
                    }
                }
                Spoil::Invent => {
                    let data = b"nobody wrote this".to_vec();
                    state.objects.entry(key).or_insert(SimObject { data, truncate_seq: 0, version: 1 });
                }
            }
        }
    }

    pub(super) fn objects(&self) -> &BTreeMap<ObjectKey, SimObject> {
        &self.now.objects
    }

    fn check(&self, op: &Op) -> Result<(), StoreError> {
        if let Op::Write { key, data, crc, .. } = op
            && crc32c::crc32c(data) != *crc
        {
            let (expected, actual) = (*crc, crc32c::crc32c(data));
            return Err(StoreError::BadChecksum { key: *key, expected, actual });
        }
        let (key, from, to) = match op {
            Op::Write { key, offset, data, .. } if !data.is_empty() => {
                (key, *offset, offset + data.len() as u64)
            }
            Op::Truncate { key, size, .. } if *size > 0 => (key, *size, u64::MAX),
            Op::Zero { key, offset, len, .. } => (key, *offset, offset + len),
            _ => return Ok(()),
        };
        let size = self.now.objects.get(key).map_or(0, |object| object.data.len() as u64);
        let survives = from.min(size) > 0 || to < size;
        let cuts = !matches!(op, Op::Truncate { size: to, .. } if *to >= size);
        if self.damaged.contains(key) && survives && cuts {
            return Err(StoreError::Corrupt { key: *key, block: 0 });
        }
        Ok(())
    }
}

/// A copy that is incomplete has what it had before it became so.
fn complete_to(pg: protocol::PgId, state: State) -> u64 {
    let mut store = SimStore { now: state, ..SimStore::default() };
    let copy = crate::pg::copy::LocalCopy::load(pg, &mut store);
    copy.map_or(0, |copy| copy.fill.as_ref().map_or(copy.head(), |fill| fill.base).sequence)
}

fn apply(state: &mut State, transaction: &Transaction) {
    for op in &transaction.ops {
        apply_op(state, op);
    }
}

fn apply_op(state: &mut State, op: &Op) {
    match op {
        Op::Write { key, offset, data, truncate_seq, version, .. } => {
            let object = state.objects.entry(*key).or_default();
            let (from, to) = (*offset as usize, *offset as usize + data.len());
            if !data.is_empty() {
                object.data.resize(object.data.len().max(to), 0);
                object.data[from..to].copy_from_slice(data);
            }
            object.truncate_seq = object.truncate_seq.max(*truncate_seq);
            object.version = *version;
        }
        Op::Truncate { key, size, truncate_seq, version } => {
            if let Some(object) = state.objects.get_mut(key) {
                object.data.resize(*size as usize, 0);
                object.truncate_seq = object.truncate_seq.max(*truncate_seq);
                object.version = *version;
            }
        }
        Op::Zero { key, offset, len, version } => {
            if let Some(object) = state.objects.get_mut(key) {
                let end = ((offset + len) as usize).min(object.data.len());
                let start = (*offset as usize).min(end);
                object.data[start..end].fill(0);
                object.version = *version;
            }
        }
        Op::Delete { key } => drop(state.objects.remove(key)),
        Op::DeleteRange { pg, inode, from_chunk } => {
            state.objects.retain(|key, _| key.pg != *pg || key.inode != *inode || key.chunk < *from_chunk)
        }
        Op::Move { key, pg } => {
            if let Some(object) = state.objects.remove(key) {
                state.objects.insert(ObjectKey { pg: *pg, ..*key }, object);
            }
        }
        Op::DeletePg { pg } => state.objects.retain(|key, _| key.pg != *pg),
        Op::PutMeta { key, value } => drop(state.meta.insert(key.clone(), value.clone())),
        Op::DeleteMeta { key } => drop(state.meta.remove(key)),
        Op::DeleteMetaRange { from, to } => state.meta.retain(|key, _| key < from || key >= to),
    }
}

impl PgStore for SimStore {
    fn submit(&mut self, transaction: Transaction) -> Result<Submitted, StoreError> {
        if self.busy {
            return Err(StoreError::Busy);
        }
        if self.has_failed() {
            return Err(StoreError::Failed("the disk gave up".to_owned()));
        }
        let takes_space = transaction.ops.iter().any(|op| matches!(op, Op::Write { .. }));
        if self.full && takes_space && !transaction.use_reserve {
            return Err(StoreError::Full { needed: 1, used: 1, capacity: 1 });
        }
        let total = |state: &State| state.objects.values().map(|o| o.data.len() as i64).sum::<i64>();
        let before = total(&self.now);
        for op in &transaction.ops {
            // As in the real store each operation sees the earlier ones; damage is only seen before the first.
            let earlier = matches!(transaction.ops.first(), Some(Op::Delete { .. }));
            if !earlier {
                self.check(op)?;
            }
        }
        apply(&mut self.now, &transaction);
        for op in &transaction.ops {
            match op {
                Op::Delete { key } => drop(self.damaged.remove(key)),
                Op::Write { key, data, .. } if !data.is_empty() => drop(self.damaged.remove(key)),
                Op::Truncate { key, size: 0, .. } => drop(self.damaged.remove(key)),
                Op::Move { key, pg } if self.damaged.remove(key) => {
                    self.damaged.insert(ObjectKey { pg: *pg, ..*key });
                }
                _ => {}
            }
        }
        for op in &transaction.ops {
            if let Op::Write { key, data, .. } = op
                && !data.is_empty()
            {
                self.lie(*key);
            }
        }
        let objects = &self.now.objects;
        self.damaged.retain(|key| objects.contains_key(key));
        self.since.push(transaction);
        self.submitted += 1;
        let allocated_delta = total(&self.now) - before;
        Ok(Submitted { ticket: Ticket(self.submitted), allocated_delta })
    }

    fn read(&mut self, key: ObjectKey, offset: u64, len: usize) -> Result<Option<Piece>, StoreError> {
        let Some(object) = self.now.objects.get(&key) else { return Ok(None) };
        if self.damaged.contains(&key) {
            return Err(StoreError::Corrupt { key, block: 0 });
        }
        let end = (offset as usize + len).min(object.data.len());
        let data = Bytes::copy_from_slice(&object.data[(offset as usize).min(end)..end]);
        let crc = crc32c::crc32c(&data);
        Ok(Some(Piece { data, crc, info: info(object) }))
    }

    fn info(&mut self, key: ObjectKey) -> Result<Option<ObjectInfo>, StoreError> {
        Ok(self.now.objects.get(&key).map(info))
    }

    fn list(
        &mut self,
        pg: u64,
        after: Option<(u64, u32)>,
        limit: usize,
    ) -> Result<Vec<(ObjectKey, ObjectInfo)>, StoreError> {
        let of_group = self.now.objects.iter().filter(|(key, _)| key.pg == pg);
        let behind = of_group.filter(|(key, _)| after.is_none_or(|after| (key.inode, key.chunk) > after));
        Ok(behind.take(limit).map(|(key, object)| (*key, info(object))).collect())
    }

    fn get_meta(&mut self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.now.meta.get(key).cloned())
    }

    fn list_meta(
        &mut self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Bytes)>, StoreError> {
        let with_prefix = self.now.meta.iter().filter(|(key, _)| key.starts_with(prefix));
        let behind = with_prefix.filter(|(key, _)| after.is_none_or(|after| key.as_slice() > after));
        Ok(behind.take(limit).map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    fn digest(&mut self, key: ObjectKey) -> Result<Option<Digest>, StoreError> {
        let digest = |object: &SimObject| {
            let content = u64::from(crc32c::crc32c(&object.data)) << 32 | object.data.len() as u64;
            Digest { info: info(object), content }
        };
        Ok(self.now.objects.get(&key).map(digest))
    }

    fn progress(&self) -> Progress {
        Progress { written: self.written, durable: self.durable, failed: None }
    }

    fn is_full(&self) -> bool {
        self.full
    }
}

fn info(object: &SimObject) -> ObjectInfo {
    ObjectInfo {
        size: object.data.len() as u64,
        truncate_seq: object.truncate_seq,
        version: object.version,
        allocated_bytes: object.data.len().next_multiple_of(BLOCK_BYTES) as u64,
    }
}
