//! What the core and its driver say to each other.

use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use protocol::data::{DataReply, DataResponse};
use protocol::map::{Member, PgChange, PgConfig};
use protocol::replication::PeerMessage;
use protocol::{DataServerId, MapEpoch, PgId, SessionId, StoreUuid};

use crate::store::{
    Digest, ObjectInfo, ObjectKey, Piece, Progress, StoreError, Submitted, Ticket, Transaction,
};

/// Milliseconds of a clock that never stops, not even in suspend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tick(pub u64);

impl Tick {
    /// Milliseconds from `earlier` to here; 0 if it is later.
    pub fn since(self, earlier: Tick) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Bounds and intervals of a replica.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// A link that does not answer is started anew after this, in milliseconds.
    pub retry_ms: u64,
    /// A member without whose progress nothing can be acknowledged is proposed to be dropped after this.
    pub drop_after_ms: u64,
    /// How long a predecessor that cannot be reached may believe to be primary: the session timeout and a
    /// margin. A new primary drops nobody before.
    pub grace_ms: u64,
    /// Operations that are ordered and not yet written everywhere.
    pub window_ops: usize,
    /// Their bytes. Whatever a member can lack after a lost link fits into one message.
    pub window_bytes: usize,
    /// Requests that wait to be ordered, and reads that wait for operations in flight; beyond it clients are
    /// told to wait.
    pub queue_max: usize,
    /// Entries kept for members that return.
    pub log_max: usize,
    /// Entries dropped at once beyond that.
    pub log_trim: usize,
    /// Bytes of one piece of a fill.
    pub fill_piece_bytes: u32,
    /// Bytes of a fill on their way to one member.
    pub fill_window_bytes: usize,
    /// Messages and bytes on their way to a member that counts for nothing yet; beyond it starts over later.
    pub lag_bytes: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            retry_ms: 1000,
            drop_after_ms: 5000,
            grace_ms: 11_000,
            window_ops: 128,
            window_bytes: 6 << 20,
            queue_max: 512,
            log_max: 2048,
            log_trim: 512,
            fill_piece_bytes: 1 << 20,
            fill_window_bytes: 2 << 20,
            lag_bytes: 16 << 20,
        }
    }
}

/// Who this server is: a store at one of its starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Me {
    /// The server.
    pub server: DataServerId,
    /// Its store.
    pub store: StoreUuid,
    /// This start.
    pub incarnation: u64,
}

impl Me {
    /// Whether a configuration's entry means this very start.
    pub fn is(&self, member: &Member) -> bool {
        member.server == self.server && member.store == self.store && member.incarnation == self.incarnation
    }
}

/// What the cluster map says about one group.
#[derive(Clone, Debug)]
pub struct GroupView {
    /// The group's configuration.
    pub config: PgConfig,
    /// Epoch of the map.
    pub epoch: MapEpoch,
    /// Fenced sessions.
    pub blocked: Rc<BTreeMap<SessionId, MapEpoch>>,
    /// Sessions before this one are fenced, too: a restored backup ended them.
    pub sessions_from: SessionId,
    /// Wanted replicas.
    pub size: usize,
    /// Least replicas with which the group serves writes.
    pub min_size: usize,
    /// Bytes per chunk.
    pub chunk_size: u32,
    /// Wanted number of groups: the group is split when its configuration is at fewer.
    pub pg_num: u32,
    /// Operations that were ordered under older configurations are from before a restored backup.
    pub restored_at: u64,
}

impl Default for GroupView {
    fn default() -> Self {
        Self {
            config: PgConfig::default(),
            epoch: MapEpoch(0),
            blocked: Rc::default(),
            sessions_from: SessionId(0),
            size: usize::MAX,
            min_size: usize::MAX,
            chunk_size: 0,
            pg_num: 0,
            restored_at: 0,
        }
    }
}

/// The chunk store as the core sees it. `submit` takes effect for reads at once; how far transactions are
/// written and durable comes in through [`super::Replica::handle_progress`].
pub trait PgStore {
    /// Applies a transaction whole or not at all.
    fn submit(&mut self, transaction: Transaction) -> Result<Submitted, StoreError>;
    /// Reads up to `len` bytes; `None` if there is no such object.
    fn read(&mut self, key: ObjectKey, offset: u64, len: usize) -> Result<Option<Piece>, StoreError>;
    /// What is known about an object.
    fn info(&mut self, key: ObjectKey) -> Result<Option<ObjectInfo>, StoreError>;
    /// Objects of a group in order, behind `after` (inode and chunk).
    fn list(
        &mut self,
        pg: u64,
        after: Option<(u64, u32)>,
        limit: usize,
    ) -> Result<Vec<(ObjectKey, ObjectInfo)>, StoreError>;
    /// A record beside the data.
    fn get_meta(&mut self, key: &[u8]) -> Result<Option<Bytes>, StoreError>;
    /// Records with a prefix in order, behind `after`.
    fn list_meta(
        &mut self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Bytes)>, StoreError>;
    /// The fingerprint of an object, from its blocks' checksums.
    fn digest(&mut self, key: ObjectKey) -> Result<Option<Digest>, StoreError>;
    /// How far the store has come.
    fn progress(&self) -> Progress;
    /// Whether ordinary writes are refused for lack of space.
    fn is_full(&self) -> bool;
}

/// What a step of the core needs from outside.
pub struct Context<'a> {
    /// Now.
    pub now: Tick,
    /// Seconds since 1970, for what has to outlive restarts; decides nothing but when a scrub is due.
    pub unix_s: u64,
    /// Until when this server's session with the metadata cluster is certainly alive.
    pub lease_until: Tick,
    /// The store.
    pub store: &'a mut dyn PgStore,
}

impl Context<'_> {
    /// Whether this server may act as a primary.
    pub fn leased(&self) -> bool {
        self.now < self.lease_until
    }
}

/// Names a client's request until it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestToken(pub u64);

/// What the core wants done.
#[derive(Clone, Debug)]
pub enum Output {
    /// Send to another data server; may be lost with the connection.
    Send {
        /// To whom.
        to: DataServerId,
        /// What.
        message: PeerMessage,
        /// Its bytes.
        payload: Bytes,
    },
    /// Answer a client.
    Reply {
        /// Which request.
        token: RequestToken,
        /// The answer.
        response: DataResponse,
        /// Its bytes.
        payload: Bytes,
    },
    /// Ask the metadata cluster for a change of the configuration at `version`.
    Propose {
        /// Version it is based on.
        version: u64,
        /// The change.
        change: PgChange,
    },
    /// Make everything up to the ticket durable and report progress.
    RequestDurable(Ticket),
    /// The store is busy: call [`super::Replica::handle_room`] when it has room.
    WaitRoom,
    /// A newer map is needed.
    FetchMap,
    /// A corrupt block was found; count it.
    CorruptBlock,
    /// A piece of an object was sent to a member that is being filled; count it.
    Copied {
        /// It was the object's last one.
        whole: bool,
        /// Its bytes.
        bytes: usize,
    },
    /// A group began in the store with this transaction: load its replica, in the place of one that there may be, with
    /// [`super::Replica::load_newborn`], and show it the map.
    Born {
        /// The group.
        pg: PgId,
        /// The transaction.
        ticket: Ticket,
    },
    /// This server does not hold the group any more: forget the replica.
    Removed,
    /// The store failed for good: stop the server.
    Fatal(StoreError),
}

impl Output {
    pub(super) fn reply(token: RequestToken, reply: DataReply, payload: Bytes) -> Self {
        Self::Reply { token, response: Ok(reply), payload }
    }
}
