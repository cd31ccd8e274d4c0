//! Clients that write and read registers (8 bytes of an object), one that truncates its own file, and what
//! they saw.

use std::collections::BTreeMap;

use bytes::Bytes;
use protocol::data::{DataError, DataReply, DataRequest, DataResponse, ObjectContext};
use protocol::map::ClusterMap;
use protocol::split::Extent;
use protocol::{DataServerId, InodeId, MapEpoch, ObjectId, PgId, RequestId, SessionId, Truncation};

use super::check::{NEVER, Operation, violation};
use super::world::{CHUNK, PG, Rng};

const REGISTER: u32 = 8;
const INODES: u64 = 3;
/// The truncating client's file.
const OWN_INODE: u64 = 100;
const OWN_SIZE: usize = 2 * CHUNK as usize;
const RETRY_MS: u64 = 350;

/// A register: inode, chunk, index.
type Register = (u64, u32, u32);

pub(super) enum Outbound {
    Send {
        attempt: u64,
        pg: PgId,
        primary: Option<DataServerId>,
        body: DataRequest,
        payload: Bytes,
    },
    /// The map does not say where.
    NoRoute,
    Nothing,
}

#[derive(Clone, Debug)]
enum Intent {
    Write(Vec<(Register, u64)>),
    Read(Vec<Register>),
    Sync,
    OwnWrite {
        at: usize,
        bytes: Vec<u8>,
    },
    OwnZero {
        at: usize,
        length: usize,
    },
    OwnRead {
        at: usize,
        length: usize,
    },
    OwnTrim,
    /// Knows no truncation although one was swept: must be refused.
    OwnStale,
}

#[derive(Clone, Debug)]
struct Current {
    intent: Intent,
    body: DataRequest,
    payload: Bytes,
    start: u64,
    first_attempt: u64,
    retry_at: u64,
    fence: MapEpoch,
    /// A sync or a sweep goes through all groups: these remain.
    waiting: Vec<Extent>,
}

#[derive(Debug, Default)]
struct Client {
    sequence: u64,
    fence: MapEpoch,
    current: Option<Current>,
    /// It was fenced at this epoch.
    fenced: Option<MapEpoch>,
    gone: bool,
    done: u64,
}

/// The truncating client's file as it should be.
#[derive(Debug)]
struct Own {
    contents: Vec<u8>,
    truncations: Vec<Truncation>,
    next_seq: u64,
    floor: u64,
}

pub(super) struct Clients {
    /// Chunks of each shared file.
    chunks: u64,
    clients: Vec<Client>,
    own: Own,
    next_value: u64,
    next_attempt: u64,
    history: BTreeMap<Register, Vec<(usize, Operation)>>,
    /// When a group first answered somebody who knew of the fencing. What other groups do, nobody learns by that.
    fence_seen: BTreeMap<(MapEpoch, Extent), u64>,
    pub(super) stopping: bool,
    /// Registers' values that must not be lost: written before a sync that was answered.
    synced_at: u64,
    /// Give up after a power loss of everything.
    pub(super) interrupted: u64,
}

impl Clients {
    pub(super) fn new(count: usize, chunks: u64) -> Self {
        Clients {
            chunks,
            clients: (0..count).map(|_| Client::default()).collect(),
            own: Own { contents: vec![0; OWN_SIZE], truncations: Vec::new(), next_seq: 1, floor: 0 },
            next_value: 1,
            next_attempt: 1,
            history: BTreeMap::new(),
            fence_seen: BTreeMap::new(),
            stopping: false,
            synced_at: 0,
            interrupted: 0,
        }
    }

    pub(super) fn session(&self, client: usize) -> SessionId {
        SessionId(1000 + client as u64)
    }

    pub(super) fn idle(&self) -> bool {
        self.clients.iter().all(|client| client.gone || client.current.is_none())
    }

    /// Operations completed by all clients.
    pub(super) fn done(&self) -> u64 {
        self.clients.iter().map(|client| client.done).sum()
    }

    /// A client that may be fenced: never the first, nor the one with its own file.
    pub(super) fn to_fence(&self, rng: &mut Rng) -> Option<usize> {
        let count = self.clients.len() - 1;
        let client = 1 + rng.below(count.saturating_sub(1) as u64) as usize;
        (client < count && self.clients[client].fenced.is_none()).then_some(client)
    }

    pub(super) fn fenced(&mut self, client: usize, epoch: MapEpoch, _now: u64) {
        self.clients[client].fenced = Some(epoch);
        for other in self.clients.iter_mut().filter(|c| c.fenced.is_none()) {
            other.fence = epoch;
        }
    }

    /// With the map that the client knows, and the newest, which the metadata leader's sweeps go by.
    pub(super) fn step(
        &mut self,
        index: usize,
        now: u64,
        rng: &mut Rng,
        maps: (&ClusterMap, &ClusterMap),
    ) -> Outbound {
        let stopping = self.stopping;
        if self.clients[index].gone {
            return Outbound::Nothing;
        }
        if self.clients[index].current.is_none() {
            if stopping {
                return Outbound::Nothing;
            }
            self.begin(index, now, rng);
        }
        let attempt = self.next_attempt;
        let Some(current) = &mut self.clients[index].current else { return Outbound::Nothing };
        if now < current.retry_at {
            return Outbound::Nothing;
        }
        current.retry_at = now + RETRY_MS;
        let Some((pg, primary)) = current.route(maps) else { return Outbound::NoRoute };
        self.next_attempt += 1;
        let (body, payload) = (current.body.clone(), current.payload.clone());
        Outbound::Send { attempt, pg, primary, body, payload }
    }

    fn begin(&mut self, index: usize, now: u64, rng: &mut Rng) {
        let last = self.clients.len() - 1;
        let intent = if index == last { self.own_intent(rng) } else { self.shared_intent(rng) };
        let fence = self.clients[index].fence;
        let (body, payload) = self.request(index, &intent, fence);
        let first_attempt = self.next_attempt;
        let waiting = Vec::new();
        let current =
            Current { intent, body, payload, start: now, first_attempt, retry_at: now, fence, waiting };
        self.clients[index].current = Some(current);
    }

    fn shared_intent(&mut self, rng: &mut Rng) -> Intent {
        if rng.chance(if self.chunks > 2 { 120 } else { 50 }) {
            return Intent::Sync;
        }
        let inode = 1 + rng.below(INODES);
        let chunk = rng.below(self.chunks) as u32;
        let per_chunk = u64::from(CHUNK / REGISTER);
        // Now and then the whole object: what it was does not matter then, not even if it is damaged.
        let whole = rng.chance(120);
        let first = if whole { 0 } else { rng.below(per_chunk) };
        let count = if whole { per_chunk } else { (1 + rng.below(3)).min(per_chunk - first) };
        let registers = (first..first + count).map(|r| (inode, chunk, r as u32));
        if rng.chance(450) {
            return Intent::Read(registers.collect());
        }
        let values = registers.map(|register| {
            self.next_value += 1;
            (register, self.next_value)
        });
        Intent::Write(values.collect())
    }

    fn own_intent(&mut self, rng: &mut Rng) -> Intent {
        let chunk = rng.below(2) as usize;
        let within = rng.below(u64::from(CHUNK)) as usize;
        let length = 1 + rng.below(u64::from(CHUNK) - within as u64) as usize;
        let at = chunk * CHUNK as usize + within;
        match rng.below(10) {
            0..=2 => {
                self.next_value += 1;
                OwnFill(self.next_value).write(at, length)
            }
            3 => Intent::OwnZero { at, length },
            4 | 5 => {
                // The metadata cluster committed a truncation: from now on operations carry it.
                let size = rng.below(OWN_SIZE as u64);
                let seq = self.own.next_seq;
                self.own.next_seq += 1;
                self.own.truncations.retain(|t| t.size < size);
                self.own.truncations.push(Truncation { seq, size });
                self.own.contents[size as usize..].fill(0);
                if self.own.truncations.len() >= 6 { Intent::OwnTrim } else { Intent::OwnRead { at, length } }
            }
            6 if !self.own.truncations.is_empty() => Intent::OwnTrim,
            7 if self.own.floor > 0 => Intent::OwnStale,
            _ => Intent::OwnRead { at, length },
        }
    }

    fn request(&mut self, index: usize, intent: &Intent, fence: MapEpoch) -> (DataRequest, Bytes) {
        let session = self.session(index);
        let client = &mut self.clients[index];
        let mut id = || {
            client.sequence += 1;
            RequestId { session, sequence: client.sequence, low_water: client.sequence }
        };
        let context = |inode, chunk, truncations: &[Truncation]| ObjectContext {
            object: ObjectId { pool: PG.pool, inode: InodeId(inode), chunk },
            // Known when it is sent.
            pg_num: 0,
            truncations: truncations.to_vec(),
            fence,
        };
        let own = |at: usize| context(OWN_INODE, (at / CHUNK as usize) as u32, &self.own.truncations);
        let place = |at: usize| (at % CHUNK as usize) as u32;
        let write = |request, context, offset, bytes: Vec<u8>| {
            let crc = crc32c::crc32c(&bytes);
            (DataRequest::Write { request, context, offset, crc }, Bytes::from(bytes))
        };
        match intent {
            Intent::Write(values) => {
                let ((inode, chunk, first), _) = values[0];
                let bytes = values.iter().flat_map(|(_, value)| value.to_le_bytes()).collect();
                write(id(), context(inode, chunk, &[]), first * REGISTER, bytes)
            }
            Intent::Read(registers) => {
                let (inode, chunk, first) = registers[0];
                let context = context(inode, chunk, &[]);
                let length = registers.len() as u32 * REGISTER;
                (DataRequest::Read { context, offset: first * REGISTER, length }, Bytes::new())
            }
            Intent::Sync => (DataRequest::Sync { pgs: Vec::new() }, Bytes::new()),
            Intent::OwnWrite { at, bytes } => write(id(), own(*at), place(*at), bytes.clone()),
            Intent::OwnZero { at, length } => {
                let (request, context, offset) = (id(), own(*at), place(*at));
                (DataRequest::Zero { request, context, offset, length: *length as u32 }, Bytes::new())
            }
            Intent::OwnRead { at, length } => {
                let (context, offset, length) = (own(*at), place(*at), *length as u32);
                (DataRequest::Read { context, offset, length }, Bytes::new())
            }
            Intent::OwnTrim => {
                let truncations = self.own.truncations.clone();
                let floor = truncations.last().map_or(0, |t| t.seq);
                let inode = InodeId(OWN_INODE);
                (
                    DataRequest::TrimInode {
                        pg: PG,
                        pg_num: 0,
                        inode,
                        chunk_size: CHUNK,
                        truncations,
                        floor,
                    },
                    Bytes::new(),
                )
            }
            Intent::OwnStale => write(id(), context(OWN_INODE, 0, &[]), 0, vec![0xee; 8]),
        }
    }

    /// Takes an answer; returns when the client goes on.
    pub(super) fn answer(
        &mut self,
        index: usize,
        attempt: u64,
        now: u64,
        response: DataResponse,
        payload: &Bytes,
    ) -> Result<u64, String> {
        let client = &mut self.clients[index];
        let Some(current) = client.current.as_mut().filter(|c| attempt >= c.first_attempt) else {
            return Ok(1);
        };
        let reply = match response {
            Ok(reply) => reply,
            Err(DataError::StaleTruncation { .. }) if matches!(current.intent, Intent::OwnStale) => {
                client.current = None;
                client.done += 1;
                return Ok(1);
            }
            Err(DataError::Fenced) if client.fenced.is_some() => {
                client.gone = true;
                self.give_up(index);
                return Ok(1);
            }
            Err(error @ (DataError::Superseded | DataError::Fenced | DataError::StaleTruncation { .. }))
            | Err(error @ (DataError::Malformed(_) | DataError::Refused(_))) => {
                return Err(format!("client {index} got {error:?} for {current:?}"));
            }
            Err(_) => {
                current.retry_at = now + 15;
                return Ok(15);
            }
        };
        if current.waiting.len() > 1 {
            // The next group.
            current.waiting.pop();
            (current.first_attempt, current.retry_at) = (self.next_attempt, now);
            return Ok(1);
        }
        let Some(current) = client.current.take() else { return Ok(1) };
        client.done += 1;
        // A sync or trim tells the primary nothing of fences.
        let carries_fence = client.fenced.is_none() && current.fence > MapEpoch(0);
        if let Some(extent) = current.extent_of_object().filter(|_| carries_fence) {
            self.fence_seen.entry((current.fence, extent)).or_insert(now);
        }
        self.take_reply(index, current, now, &reply, payload)?;
        Ok(1)
    }

    fn take_reply(
        &mut self,
        index: usize,
        current: Current,
        now: u64,
        reply: &DataReply,
        payload: &Bytes,
    ) -> Result<(), String> {
        let start = current.start;
        match (&current.intent, reply) {
            (Intent::Write(values), DataReply::Written { .. }) => {
                for (register, value) in values {
                    self.note(index, *register, *value, true, (start, now), false);
                }
            }
            (Intent::Read(registers), DataReply::Data { .. }) => {
                for (place, register) in registers.iter().enumerate() {
                    let mut bytes = [0; 8];
                    let from = (place * 8).min(payload.len());
                    let to = (place * 8 + 8).min(payload.len());
                    bytes[..to - from].copy_from_slice(&payload[from..to]);
                    self.note(index, *register, u64::from_le_bytes(bytes), false, (start, now), false);
                }
            }
            (Intent::Sync, DataReply::Synced) => self.synced_at = self.synced_at.max(start),
            (Intent::OwnWrite { at, bytes }, DataReply::Written { .. }) => {
                self.own.contents[*at..at + bytes.len()].copy_from_slice(bytes);
            }
            (Intent::OwnZero { at, length }, DataReply::Written { .. }) => {
                self.own.contents[*at..at + length].fill(0);
            }
            (Intent::OwnRead { at, length }, DataReply::Data { .. }) => {
                let mut got = payload.to_vec();
                got.resize(*length, 0);
                let expected = &self.own.contents[*at..at + length];
                if got != expected {
                    return Err(format!("own file at {at} ({now}): read {got:?}, wrote {expected:?}"));
                }
            }
            (Intent::OwnTrim, DataReply::Trimmed { .. }) => {
                self.own.floor = self.own.truncations.last().map_or(0, |t| t.seq);
                let keep = self.own.truncations.len().saturating_sub(1);
                self.own.truncations.drain(..keep);
            }
            (intent, reply) => return Err(format!("{reply:?} answers {intent:?}")),
        }
        Ok(())
    }

    fn note(
        &mut self,
        client: usize,
        register: Register,
        value: u64,
        is_write: bool,
        (start, end): (u64, u64),
        uncertain: bool,
    ) {
        let operation = Operation { value, is_write, start, end, uncertain };
        self.history.entry(register).or_default().push((client, operation));
    }

    /// The operation's outcome stays unknown.
    fn give_up(&mut self, index: usize) {
        let Some(current) = self.clients[index].current.take() else { return };
        if let Intent::Write(values) = current.intent {
            for (register, value) in values {
                self.note(index, register, value, true, (current.start, NEVER), true);
            }
        }
    }

    /// All machines lost power: what was not synced may be gone, and whoever waited gives up.
    pub(super) fn lose_unsynced(&mut self, now: u64) {
        self.interrupted = now;
        for index in 0..self.clients.len() {
            self.give_up(index);
            self.clients[index].gone = true;
        }
        // Nobody's reads of lost values count, and writes that no sync covers may be lost.
        let synced_at = self.synced_at;
        for operations in self.history.values_mut() {
            operations.retain(|(_, op)| op.is_write);
            for (_, op) in operations.iter_mut().filter(|(_, op)| op.end > synced_at) {
                op.uncertain = true;
            }
        }
    }

    /// Lets the first client live again, to read everything.
    pub(super) fn revive_first(&mut self) {
        self.clients[0].gone = false;
        self.stopping = false;
    }

    /// Has the first client read everything once; true while there is more.
    pub(super) fn all_registers(&self) -> Vec<Register> {
        self.history.keys().copied().collect()
    }

    pub(super) fn read_register(&mut self, register: Register, now: u64) {
        let intent = Intent::Read(vec![register]);
        let fence = self.clients[0].fence;
        let (body, payload) = self.request(0, &intent, fence);
        let (first_attempt, waiting) = (self.next_attempt, Vec::new());
        self.clients[0].current =
            Some(Current { intent, body, payload, start: now, first_attempt, retry_at: now, fence, waiting });
    }

    /// What is wrong with what the clients saw, if something is.
    pub(super) fn violation(&mut self) -> Option<String> {
        for index in 0..self.clients.len() {
            self.give_up(index);
        }
        for (register, operations) in &self.history {
            let history: Result<Vec<Operation>, String> = operations
                .iter()
                .map(|(client, op)| self.bounded_by_fence(*client, *register, op, operations))
                .collect();
            let wrong = match history {
                Ok(history) => violation(&history),
                Err(wrong) => Some(wrong),
            };
            if let Some(wrong) = wrong {
                return Some(format!("register {register:?}: {wrong}\n{operations:?}"));
            }
        }
        None
    }

    /// What a fenced session did must have taken effect before the object's group answered somebody who knew of it.
    fn bounded_by_fence(
        &self,
        client: usize,
        (inode, chunk, _): Register,
        op: &Operation,
        all: &[(usize, Operation)],
    ) -> Result<Operation, String> {
        let object = ObjectId { pool: PG.pool, inode: InodeId(inode), chunk };
        let fenced = self.clients[client].fenced;
        let knew = |(fence, extent): &(MapEpoch, Extent)| {
            fenced.is_some_and(|epoch| *fence >= epoch) && object.pg(extent.pg_num) == extent.pg
        };
        let seen = self.fence_seen.iter().filter(|(who, _)| knew(who)).map(|(_, at)| *at).min();
        let Some(seen) = seen.filter(|_| op.is_write) else { return Ok(op.clone()) };
        let was_read = all.iter().any(|(_, other)| !other.is_write && other.value == op.value);
        if op.start > seen && (was_read || !op.uncertain) {
            return Err(format!(
                "client {client} was fenced before {seen} but wrote {} at {}",
                op.value, op.start
            ));
        }
        Ok(Operation { end: op.end.min(seen), ..op.clone() })
    }
}

impl Current {
    /// The group that answers for the object that it is about, if it is about one. When it was sent again, the group of
    /// the last time, which is the same or was split off.
    fn extent_of_object(&self) -> Option<Extent> {
        let (DataRequest::Read { context, .. }
        | DataRequest::Write { context, .. }
        | DataRequest::Zero { context, .. }) = &self.body
        else {
            return None;
        };
        (context.pg_num > 0).then(|| Extent { pg: context.object.pg(context.pg_num), pg_num: context.pg_num })
    }

    /// Where it goes now, by the map that the client knows (a sweep: by the newest).
    fn route(&mut self, (known, newest): (&ClusterMap, &ClusterMap)) -> Option<(PgId, Option<DataServerId>)> {
        match &mut self.body {
            DataRequest::Read { context, .. }
            | DataRequest::Write { context, .. }
            | DataRequest::Zero { context, .. } => {
                let (pg, config) = known.locate(context.object)?;
                context.pg_num = config.pg_num;
                Some((pg, config.primary))
            }
            DataRequest::Sync { pgs } => {
                if self.waiting.is_empty() {
                    self.waiting = known.extents(PG.pool).collect();
                }
                // What was split meanwhile has several places now.
                self.waiting = self.waiting.iter().flat_map(|extent| known.successors(*extent)).collect();
                let extent = *self.waiting.last()?;
                *pgs = vec![extent];
                Some((extent.pg, known.pgs.get(&extent.pg)?.primary))
            }
            DataRequest::TrimInode { pg, pg_num, .. } => {
                let is_now = |extent: &Extent| newest.extents(PG.pool).any(|now| now == *extent);
                if self.waiting.is_empty() || !self.waiting.iter().all(is_now) {
                    // From the beginning, as something may have been missed.
                    self.waiting = newest.extents(PG.pool).collect();
                }
                let extent = *self.waiting.last()?;
                (*pg, *pg_num) = (extent.pg, extent.pg_num);
                Some((extent.pg, newest.pgs.get(&extent.pg)?.primary))
            }
            DataRequest::Scrub { .. } | DataRequest::List { .. } => None,
        }
    }
}

struct OwnFill(u64);

impl OwnFill {
    fn write(&self, at: usize, length: usize) -> Intent {
        let seed = self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Intent::OwnWrite { at, bytes: (0..length).map(|i| 1 + (seed >> (i % 7 * 8)) as u8 % 255).collect() }
    }
}
