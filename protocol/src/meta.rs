//! Client, data server or administrator → metadata cluster, and what the leader pushes back.
//!
//! A connection to the leader is *attached* to one session by [`MetaRequest::Attach`]; a later attachment of
//! the same session (a reconnect) ends the earlier one, so that nothing sent over the old one can take effect
//! behind the new one's back. Requests of one connection are taken in the order they were sent.

use crate::attr::{Attr, FileKind, FileView, Timestamp};
use crate::errno::Errno;
use crate::id::{DataServerId, InodeId, MapEpoch, MetadataServerId, PgId, Revision, SessionId, StoreUuid};
use crate::map::{ClusterMap, MapDelta, PgChange};
use crate::name::{EntryName, bytes_form};
use crate::replication::{Position, ScrubRecord};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

mod answer;
mod backup;
mod fsck;
mod pool;
mod status;

pub use answer::ReadAnswer;
pub use backup::BackupHead;
pub use fsck::{FSCK_NAMES_MAX, FSCK_ROWS_MAX, FsckAnswer, FsckFile, FsckMend, FsckProblem, FsckRequest};
pub use pool::{POOL_XATTR, PoolChange, PoolSettings, PoolStatus};
pub use status::{
    ClusterStatus, DataServerStatus, FullRatios, MetadataServerStatus, RecoveryStatus, Refusals,
    ScrubSummary, SessionStatus,
};

/// Default session timeout in milliseconds.
pub const SESSION_TIMEOUT_MS_DEFAULT: u32 = 10_000;
/// Most replies that a session may leave unacknowledged.
pub const REPLIES_MAX: u64 = 4096;
/// Largest value of an extended attribute in bytes, as the kernel allows.
pub const XATTR_VALUE_MAX: usize = 65_536;
/// Longest sentence in which a data server says why it left, in bytes.
pub const FAILURE_BYTES_MAX: usize = 512;
/// Largest target of a symbolic link in bytes.
pub const SYMLINK_MAX: usize = 4095;

/// A request to a metadata server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MetaRequest {
    /// Opens a session and attaches this connection to it. The same nonce gives the same session.
    OpenSession {
        /// Drawn at random by the client, its proof of ownership later.
        nonce: u128,
        /// Wanted timeout in milliseconds (1,000 to 300,000).
        timeout_ms: u32,
        /// Who this is, for people.
        info: ClientInfo,
    },
    /// Attaches this connection to a session that was opened before.
    Attach {
        /// The session.
        session: SessionId,
        /// As given to `OpenSession`.
        nonce: u128,
        /// Every inode that has an open handle: what the leader must keep alive if it is unlinked.
        open: Vec<(InodeId, u64)>,
    },
    /// Keeps the attached session alive.
    Heartbeat {
        /// Every write below this sequence has been answered.
        low_water: u64,
    },
    /// Ends the attached session in peace: locks, pins and handles are released at once.
    CloseSession,
    /// Something that changes nothing.
    Read(ReadOp),
    /// Something that changes the namespace or locks, executed exactly once per (session, sequence).
    Write {
        /// Rises by one per request of the session; a retry carries the same number.
        sequence: u64,
        /// As in `Heartbeat`.
        low_water: u64,
        /// What to do.
        op: WriteOp,
    },
    /// A handle on `inode` is open from now on: its data stays when the last name goes. Answered with the
    /// current view so that opening costs one round trip.
    OpenFile {
        /// The inode.
        inode: InodeId,
        /// A number that the mount never reuses within the session.
        handle: u64,
    },
    /// That handle is closed, and a hold on the inode's size is given back if `release_hold`.
    CloseFile {
        /// The inode.
        inode: InodeId,
        /// As in `OpenFile`.
        handle: u64,
        /// This mount has nothing more to write past the end.
        release_hold: bool,
    },
    /// A data server starts: opens its session → [`MetaReply::DataSession`]. Certificates of role data only.
    RegisterDataServer(DataServerRegistration),
    /// A data server lives → [`MetaReply::DataSession`]
    DataHeartbeat(DataServerReport),
    /// A primary wants its group's configuration changed.
    ProposePg {
        /// The group.
        pg: PgId,
        /// The version that the change is based on.
        version: u64,
        /// The change.
        change: PgChange,
    },
    /// The map, if newer than this epoch. Afterwards this connection receives every [`Push::Map`].
    SubscribeMap {
        /// Epoch at hand.
        known: MapEpoch,
    },
    /// This server and, from the leader, the whole cluster.
    Status,
    /// Who the metadata servers are and where they listen, as far as the one that is asked knows. Whoever may connect
    /// may ask; clients do so now and then, because servers come and go.
    MetadataServers,
    /// Changes who the metadata servers are. Administrators only.
    ChangeMetadataServers(MetadataChange),
    /// Takes a data server out of CRUSH (`false`) or back in (`true`). Administrators only.
    SetIn {
        /// The server.
        server: DataServerId,
        /// In or out.
        in_cluster: bool,
    },
    /// Forgets a data server for good; refused while a placement group needs it. Its store is not taken back.
    /// Administrators only.
    RemoveDataServer {
        /// The server.
        server: DataServerId,
    },
    /// What scrubs did and found in each group, as the primaries say → [`MetaReply::Scrubs`]
    ScrubStatus,
    /// The data server that this connection speaks for cannot go on, and serves and acknowledges nothing any more:
    /// its session ends at once, so that others take its groups over without waiting for it. Certificates of role
    /// data only.
    LeaveDataServer {
        /// Why, in a sentence for people; what exceeds [`FAILURE_BYTES_MAX`] is cut.
        why: String,
    },
    /// Makes, changes or removes a pool → [`MetaReply::PoolChanged`]. Administrators only.
    ChangePool {
        /// Drawn at random: a repetition with the same nonce takes effect once.
        nonce: u128,
        /// The change.
        change: PoolChange,
    },
    /// Says of which kind a data server's device is, or (`None`) that it is of none. Administrators only.
    SetClass {
        /// The server.
        server: DataServerId,
        /// As in CRUSH maps: `ssd`, `hdd`, …
        class: Option<String>,
    },
    /// Begins a backup of the whole metadata, of everything that was answered before → [`MetaReply::Backup`]. A
    /// connection has one at a time. Administrators only.
    Backup,
    /// The next rows of the backup that this connection began → [`MetaReply::BackupRows`]. Administrators only.
    BackupNext,
    /// What had been answered anywhere before this was asked → [`MetaReply::Revision`]. A quorum is asked, whatever
    /// leases there are.
    Sync,
    /// A read that any metadata server may answer, from a state that contains at least this revision →
    /// [`MetaReply::ReadAt`]. Who passes on the largest revision seen so far never goes back.
    ReadAt {
        /// The largest revision seen, 0 for any state.
        at_least: Revision,
        /// What to read: anything but space and waits of a session, which only the leader knows.
        op: ReadOp,
    },
    /// When data servers count as full from now on. Administrators only.
    SetFullRatios(FullRatios),
    /// A question of a check of the whole filesystem → [`MetaReply::Fsck`]. Administrators only.
    Fsck(FsckRequest),
}

/// Reads; all of them linearizable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadOp {
    /// Entry of a directory → [`MetaReply::Entry`] or ENOENT. `..` and `.` are the mount's business.
    Lookup {
        /// Directory.
        parent: InodeId,
        /// Name in it.
        name: EntryName,
    },
    /// → [`MetaReply::Attr`], or [`MetaError::Busy`] while another session may have times of it to commit, which is
    /// asked to do so; likewise [`ReadOp::Lookup`].
    Getattr(InodeId),
    /// Where the bytes are → [`MetaReply::View`], or [`MetaReply::Unchanged`] if `data_revision` and
    /// attributes' ctime are as given.
    View {
        /// The file.
        inode: InodeId,
        /// `data_revision` of the view at hand, 0 for none.
        known: u64,
    },
    /// → [`MetaReply::Bytes`]
    Readlink(InodeId),
    /// Entries after `cookie` (0 from the start) in stable order → [`MetaReply::Entries`]. Their attributes are committed
    /// ones: times of a file that a session overwrites may be newer ([`WriteOp::Defer`]), and [`ReadOp::Getattr`] tells.
    Readdir {
        /// Directory.
        inode: InodeId,
        /// Cookie of the last entry seen.
        cookie: u64,
        /// Most entries, at most 1,024.
        limit: u32,
    },
    /// Parent of a directory → [`MetaReply::Entry`]
    Parent(InodeId),
    /// → [`MetaReply::Bytes`] or ENODATA
    Getxattr {
        /// Inode.
        inode: InodeId,
        /// Full name with its namespace prefix.
        #[serde(with = "bytes_form")]
        name: Vec<u8>,
    },
    /// → [`MetaReply::Names`]
    Listxattr(InodeId),
    /// → [`MetaReply::Statfs`]
    Statfs,
    /// A lock that would keep this one from being granted → [`MetaReply::Conflict`]
    TestLock {
        /// What is locked.
        resource: LockResource,
        /// As in `Lock`.
        request: LockRequest,
    },
    /// Holders and queue of a lock → [`MetaReply::LockState`]
    LockState(LockResource),
    /// Names of the named locks that are held or waited for → [`MetaReply::Names`]
    NamedLocks,
    /// Whether a queued wait of this session was granted → [`MetaReply::Granted`], [`MetaReply::Queued`] or
    /// ENOENT if there is neither.
    WaitState {
        /// What is locked.
        resource: LockResource,
        /// As in [`MetaReply::Queued`].
        waiter: u64,
    },
    /// Path of an inode by its oldest link, for people → [`MetaReply::Bytes`]
    Path(InodeId),
    /// Space of the pool that the inode's files are in → [`MetaReply::Statfs`]
    StatfsAt(InodeId),
}

/// Changes. Each is one transaction: all of it or nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WriteOp {
    /// mknod, mkdir, symlink, O_CREAT → [`MetaReply::Entry`] (or [`MetaReply::Opened`] with a handle)
    Create {
        /// Directory.
        parent: InodeId,
        /// New name; EEXIST if taken.
        name: EntryName,
        /// What to make.
        node: NewNode,
        /// Open it in the same transaction under this handle (files only).
        handle: Option<u64>,
    },
    /// O_TMPFILE: a file without a name, open under `handle` → [`MetaReply::Opened`]
    Tmpfile {
        /// Directory whose group and pool it takes.
        parent: InodeId,
        /// What to make.
        node: NewNode,
        /// As in `OpenFile`.
        handle: u64,
    },
    /// → [`MetaReply::Entry`]
    Link {
        /// Existing file, not a directory.
        inode: InodeId,
        /// Directory.
        parent: InodeId,
        /// New name.
        name: EntryName,
    },
    /// → [`MetaReply::Done`]
    Unlink {
        /// Directory.
        parent: InodeId,
        /// Name in it; EISDIR if a directory.
        name: EntryName,
    },
    /// → [`MetaReply::Done`]
    Rmdir {
        /// Directory.
        parent: InodeId,
        /// Name in it.
        name: EntryName,
    },
    /// → [`MetaReply::Done`]
    Rename {
        /// Directory of the source.
        parent: InodeId,
        /// Source.
        name: EntryName,
        /// Directory of the target.
        new_parent: InodeId,
        /// Target.
        new_name: EntryName,
        /// What to do about an existing target.
        mode: RenameMode,
    },
    /// → [`MetaReply::Attr`]
    Setattr {
        /// Inode.
        inode: InodeId,
        /// What to change.
        change: SetAttr,
    },
    /// → [`MetaReply::Done`]
    Setxattr {
        /// Inode.
        inode: InodeId,
        /// Full name.
        #[serde(with = "bytes_form")]
        name: Vec<u8>,
        /// New value.
        #[serde(with = "bytes_form")]
        value: Vec<u8>,
        /// Whether it must or must not exist.
        mode: XattrMode,
    },
    /// → [`MetaReply::Done`]
    Removexattr {
        /// Inode.
        inode: InodeId,
        /// Full name.
        #[serde(with = "bytes_form")]
        name: Vec<u8>,
    },
    /// Writes into a file that lives in its znode → [`MetaReply::Written`]. [`MetaError::Respill`] if its
    /// layout is chunks or would exceed the inline limit: take the hold and write chunks.
    WriteInline {
        /// The file.
        inode: InodeId,
        /// Where; `None` appends.
        offset: Option<u64>,
        /// The bytes.
        #[serde(with = "bytes_form")]
        data: Vec<u8>,
        /// Clear setuid and setgid.
        kill_privileges: bool,
    },
    /// Exclusive right to change the file's size and layout, held by the session until it is given back, taken
    /// by expiry, or asked for by [`Push::RecallHold`] → [`MetaReply::View`]. While it lasts, size changes of
    /// other sessions wait. On an inline file this also commits the truncation that cuts leftovers of earlier
    /// spills. Expiry truncates the file at its committed size.
    Hold(InodeId),
    /// Gives the hold back → [`MetaReply::Done`]. Idempotent.
    ReleaseHold {
        /// The file.
        inode: InodeId,
        /// An extension failed half-way: bytes past the committed size may be in objects and must be cut.
        dirty: bool,
    },
    /// Chunk data was written under the view of `truncate_seq`: commits times, space and size →
    /// [`MetaReply::Written`]. [`MetaError::Respill`] if the inode was truncated since, so that the data must be
    /// written again.
    CommitWrite {
        /// The file.
        inode: InodeId,
        /// Newest truncation that the data operations carried.
        truncate_seq: u64,
        /// End of the written range; beyond the size only under the hold.
        end: u64,
        /// Newly allocated bytes.
        allocated: i64,
        /// Clear setuid and setgid.
        kill_privileges: bool,
    },
    /// Takes or queues for a lock → [`MetaReply::Granted`] or, with `wait`, [`MetaReply::Queued`]; EAGAIN
    /// without.
    Lock {
        /// What to lock.
        resource: LockResource,
        /// How.
        request: LockRequest,
        /// Queue if it is not free.
        wait: bool,
        /// Who, for people.
        holder: LockHolderInfo,
    },
    /// Releases what `owner` holds in the range → [`MetaReply::Done`]. Idempotent.
    Unlock {
        /// What.
        resource: LockResource,
        /// Whose.
        owner: u64,
        /// First byte.
        start: u64,
        /// Last byte, inclusive.
        end: u64,
    },
    /// Leaves the queue; a grant that happened meanwhile is given back → [`MetaReply::Done`]
    CancelWait {
        /// What.
        resource: LockResource,
        /// As in [`MetaReply::Queued`].
        waiter: u64,
    },
    /// Breaks a named lock, whoever holds it → [`MetaReply::Done`]
    BreakLock {
        /// Name under `.zabfs/locks`.
        name: EntryName,
    },
    /// The right to overwrite a file in chunks and commit its times later, by [`WriteOp::Settle`], together with the hold
    /// → [`MetaReply::View`]. [`MetaError::Busy`] if another session has the hold, which is not asked for it, or
    /// [`MetaError::Respill`] if the file is in its znode. The right lasts as long as the hold, until it is given back,
    /// or until [`Push::Settle`] asks for it. Expiry sets the times, as nobody knows what the session had written.
    Defer(InodeId),
    /// Commits times that were deferred → [`MetaReply::Done`]. Without the right it does nothing.
    Settle {
        /// The file.
        inode: InodeId,
        /// Something was overwritten since the last time: mtime and ctime become that of this transaction.
        changed: bool,
        /// The right is given back.
        done: bool,
    },
}

/// What `Create` makes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewNode {
    /// Kind.
    pub kind: FileKind,
    /// Permission bits after the umask.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group, unless the directory is setgid.
    pub gid: u32,
    /// Device number.
    pub rdev: u32,
    /// Target of a symbolic link, or the first contents of a file, which must fit into its znode.
    #[serde(with = "bytes_form")]
    pub target: Vec<u8>,
}

/// How `Rename` treats an existing target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RenameMode {
    /// Replaces it (POSIX).
    Replace,
    /// EEXIST (`RENAME_NOREPLACE`).
    NoReplace,
    /// Swaps the two (`RENAME_EXCHANGE`).
    Exchange,
}

/// How `Setxattr` treats an existing value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum XattrMode {
    /// Creates or replaces.
    Either,
    /// EEXIST if it exists.
    Create,
    /// ENODATA if it does not.
    Replace,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SetTime {
    /// The transaction's time.
    Now,
    /// A given time.
    At(Timestamp),
}

/// Attributes to change; `None` leaves one alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
    /// Change time (the kernel sends it for its own reasons).
    pub ctime: Option<SetTime>,
    /// Clear setuid and (for group-executable files) setgid.
    pub kill_privileges: bool,
}

/// Something that can be locked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LockResource {
    /// flock of an inode: whole file, owner = open file.
    Flock(InodeId),
    /// POSIX byte ranges of an inode.
    Posix(InodeId),
    /// `.zabfs/locks/NAME`.
    Named(EntryName),
}

/// A wish to lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockRequest {
    /// Owner within the session: the kernel's lock owner, or the handle for named locks.
    pub owner: u64,
    /// Exclusive or shared.
    pub exclusive: bool,
    /// First byte.
    pub start: u64,
    /// Last byte, inclusive; `u64::MAX` for "to the end".
    pub end: u64,
    /// Process, for F_GETLK.
    pub pid: u32,
}

/// Who holds or waits, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockHolderInfo {
    /// Host name.
    pub host: String,
    /// Command name of the process.
    pub command: String,
}

/// One holder or waiter of a lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockEntry {
    /// Whose.
    pub session: SessionId,
    /// What.
    pub request: LockRequest,
    /// Who.
    pub holder: LockHolderInfo,
    /// Fencing token of a holder (revision of the grant); of a waiter the number in [`MetaReply::Queued`].
    pub token: u64,
    /// Number of the wait that led to this grant; 0 if it was granted at once or still waits.
    pub waiter: u64,
    /// When it was granted, or when it began to wait.
    pub since: Timestamp,
}

/// A directory entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirEntry {
    /// Name.
    pub name: EntryName,
    /// Position: pass it back to continue behind this entry. Stable while the entry exists, below 2⁶³.
    pub cookie: u64,
    /// Attributes.
    pub attr: Attr,
}

/// Cluster-wide space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// Bytes that files can have in all (replicas counted once).
    pub total: u64,
    /// Bytes still free.
    pub free: u64,
    /// Inodes in use.
    pub inodes: u64,
}

/// A successful answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant, reason = "short-lived, and boxing the common answers would cost more")]
pub enum MetaReply {
    /// Nothing to say.
    Done,
    /// A session.
    Session {
        /// Its id.
        session: SessionId,
        /// Granted timeout in milliseconds, counted by the client from when it *sent* the request.
        timeout_ms: u32,
        /// The newest map epoch that fenced a session.
        fence: MapEpoch,
        /// Cluster time.
        now: Timestamp,
    },
    /// A directory entry's inode.
    Entry(Attr),
    /// Attributes.
    Attr(Attr),
    /// Created and opened.
    Opened(FileView),
    /// Where the bytes are.
    View(FileView),
    /// The view at hand is current.
    Unchanged,
    /// Written: attributes and position (for appends).
    Written {
        /// Attributes afterwards.
        attr: Attr,
        /// Offset that the bytes went to.
        offset: u64,
        /// The view's number afterwards.
        data_revision: u64,
    },
    /// Raw bytes.
    Bytes(#[serde(with = "bytes_form")] Vec<u8>),
    /// Names.
    Names(Vec<Vec<u8>>),
    /// Directory entries; `end` when nothing follows.
    Entries {
        /// Entries in order.
        entries: Vec<DirEntry>,
        /// Nothing follows.
        end: bool,
    },
    /// Space.
    Statfs(Space),
    /// The lock is held.
    Granted {
        /// Fencing token: revision of the grant.
        token: u64,
        /// The newest map epoch that fenced a session: carry it in data operations.
        fence: MapEpoch,
    },
    /// The lock is not free; [`Push::LockGranted`] follows.
    Queued {
        /// Number of this wait.
        waiter: u64,
    },
    /// The lock that is in the way, if any.
    Conflict(Option<LockEntry>),
    /// Holders and queue.
    LockState {
        /// Holders.
        holders: Vec<LockEntry>,
        /// Waiters, first in line first.
        waiters: Vec<LockEntry>,
    },
    /// The whole map.
    Map(ClusterMap),
    /// State of the cluster.
    Status(ClusterStatus),
    /// Answer to [`MetaRequest::MetadataServers`] and [`MetaRequest::ChangeMetadataServers`].
    MetadataServers(MetadataServers),
    /// Answer to [`MetaRequest::RegisterDataServer`] and [`MetaRequest::DataHeartbeat`].
    DataSession {
        /// The server's session.
        session: SessionId,
        /// Granted timeout in milliseconds, counted by the server from when it *sent* the request.
        timeout_ms: u32,
        /// Committed map epoch when this was answered: the lease counts only once the server's map is at
        /// least here, so that a primary that does not know of its replacement cannot serve for longer than one timeout.
        map_epoch: MapEpoch,
        /// When the server counts as full.
        full_ratios: FullRatios,
    },
    /// Groups whose primaries have reported, each with the primary.
    Scrubs(Vec<(PgId, DataServerId, PgReport)>),
    /// The pool is as asked for; sentences about what the administrator may not have expected.
    PoolChanged(Vec<String>),
    /// What the backup is of; its rows follow.
    Backup(BackupHead),
    /// The payload is rows in the order of their keys, as in a snapshot stream; empty at the end.
    BackupRows {
        /// crc32c of the payload.
        crc: u32,
    },
    /// A revision that contains everything answered before.
    Revision(Revision),
    /// Answer to [`MetaRequest::ReadAt`].
    ReadAt {
        /// Of the state that was read.
        revision: Revision,
        /// What the read is answered with. Never itself a `ReadAt`.
        answer: ReadAnswer,
    },
    /// Answer to [`MetaRequest::Fsck`].
    Fsck(Box<FsckAnswer>),
}

/// Why a metadata server did not do it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum MetaError {
    /// Ask another server.
    #[error("this server is not the leader")]
    NotLeader {
        /// Who is, if known.
        leader: Option<(MetadataServerId, SocketAddr)>,
    },
    /// The session has expired or never existed; open a new one.
    #[error("the session has expired")]
    SessionExpired,
    /// The connection is not attached to a session.
    #[error("this connection is not attached to a session")]
    NotAttached,
    /// Another session holds the right to change the file's size: try again in a moment.
    #[error("another mount is changing the size of this file")]
    Busy,
    /// The file's layout or truncations changed: fetch its view and write again.
    #[error("the file was truncated or moved to chunks meanwhile")]
    Respill,
    /// Too much in flight; wait a little.
    #[error("the metadata server is overloaded")]
    Overloaded,
    /// What a system call would return.
    #[error("{0}")]
    Errno(Errno),
    /// The certificate does not allow it, or it is not possible: the sentence says which.
    #[error("refused: {0}")]
    Refused(String),
    /// A compare-and-set on a group's configuration failed.
    #[error("the group's configuration is at version {version}")]
    PgChanged {
        /// Version now.
        version: u64,
    },
    /// The server did not reach the revision that was asked for in time: ask another one.
    #[error("this server is at revision {revision}, behind the one that was asked for")]
    Behind {
        /// Where it is.
        revision: Revision,
    },
}

impl From<Errno> for MetaError {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

/// What travels back.
pub type MetaResponse = Result<MetaReply, MetaError>;

/// What the leader sends without being asked, on a channel that it opens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Push {
    /// A queued lock is held now.
    LockGranted {
        /// What.
        resource: LockResource,
        /// As in [`MetaReply::Queued`].
        waiter: u64,
        /// Fencing token.
        token: u64,
        /// As in [`MetaReply::Granted`].
        fence: MapEpoch,
    },
    /// Somebody wants to change the size of this file: finish what is in flight and release the hold.
    RecallHold(InodeId),
    /// The map changed.
    Map(MapDelta),
    /// The session has expired.
    SessionExpired,
    /// Somebody wants to know the times of this file: commit what is deferred, and defer nothing more. This waits for
    /// nothing else.
    Settle(InodeId),
}

/// Who a client is, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientInfo {
    /// Host name.
    pub host: String,
    /// Process.
    pub pid: u32,
    /// Where it is mounted.
    pub mountpoint: String,
}

/// A data server's start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataServerRegistration {
    /// Identity of its store.
    pub store: StoreUuid,
    /// Start number of that store.
    pub incarnation: u64,
    /// The last stop was clean: everything that was ever written is still there.
    pub clean: bool,
    /// Where it listens.
    pub address: SocketAddr,
    /// Failure domain.
    pub host: String,
    /// Bytes it can hold.
    pub capacity: u64,
    /// Session timeout in milliseconds.
    pub timeout_ms: u32,
    /// For every group that the store holds: configuration version and sequence up to which its log is there
    /// (and, as the server opens its store before it registers, durable). When all members of a group are
    /// uncertain, the one with the largest position becomes primary.
    pub positions: Vec<(PgId, Position)>,
}

/// A data server's heartbeat.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataServerReport {
    /// Bytes it can hold.
    pub capacity: u64,
    /// Bytes in use.
    pub used: u64,
    /// Corrupt blocks found since the start.
    pub corrupt_blocks: u64,
    /// State of the groups that it is primary of.
    pub groups: Vec<(PgId, PgReport)>,
    /// Objects that it copied to members of its groups since its start.
    pub copied_objects: u64,
    /// Bytes that it copied to members of its groups since its start.
    pub copied_bytes: u64,
}

/// What a primary knows about its group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PgReport {
    /// Objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Objects still to copy to learners.
    pub recovering: u64,
    /// About as many bytes as these have, by the mean of the group.
    pub recovering_bytes: u64,
    /// What scrubs did and found.
    pub scrub: ScrubRecord,
}

/// A change of who the metadata servers are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MetadataChange {
    /// A new server, as an observer.
    Add {
        /// Its number.
        id: MetadataServerId,
        /// Where it listens.
        address: SocketAddr,
    },
    /// An observer that is up to date becomes a voter.
    Promote {
        /// The observer.
        id: MetadataServerId,
    },
    /// A server goes for good.
    Remove {
        /// The server.
        id: MetadataServerId,
    },
    /// A voter whose directory is lost is bound to the new one, or a server moves to another address.
    Replace {
        /// The server.
        id: MetadataServerId,
        /// Where it listens from now on, if that is to change.
        address: Option<SocketAddr>,
    },
}

/// Who the metadata servers are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetadataServers {
    /// Grows with every change.
    pub version: u64,
    /// All of them, by number.
    pub members: Vec<MetadataMember>,
    /// From the leader: the last change is done for good, and whoever was removed may be switched off.
    pub settled: bool,
    /// From the leader: the change that was asked for was not made.
    pub refused: Option<MetadataChangeRefused>,
}

/// One metadata server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetadataMember {
    /// Which.
    pub id: MetadataServerId,
    /// Where it listens, if known.
    pub address: Option<SocketAddr>,
    /// It votes, rather than observes.
    pub votes: bool,
}

/// Why the metadata servers are as they were.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetadataChangeRefused {
    /// A sentence.
    pub why: String,
    /// It may pass: the same is worth trying again in a moment.
    pub passing: bool,
}

/// Identity of a store for messages that a person reads.
impl std::fmt::LowerHex for StoreUuid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::LowerHex::fmt(&self.0, f)
    }
}
