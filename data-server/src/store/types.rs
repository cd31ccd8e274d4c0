//! What callers of the store say and hear: keys, operations, answers and errors.

use std::{fmt, io};

use bytes::Bytes;
use thiserror::Error;

/// Checksums, allocation and torn-write detection all work in blocks of this many bytes.
pub const BLOCK_BYTES: usize = 4096;

/// The largest object any pool may configure, in bytes.
pub const OBJECT_BYTES_MAX: u64 = 64 << 20;

/// The longest meta key, in bytes.
pub const META_KEY_BYTES_MAX: usize = 64;

/// The longest meta value, in bytes.
pub const META_VALUE_BYTES_MAX: usize = 1 << 20;

/// Names one object. Field order is the index order: `Ord` compares group, inode, chunk, so that the objects
/// of one inode are neighbours and a purge is a range delete within one placement group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// The placement group, with its pool in the upper 32 bits: `pool << 32 | pg`.
    pub pg: u64,
    pub inode: u64,
    pub chunk: u32,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (pool, pg) = (self.pg >> 32, self.pg & 0xffff_ffff);
        write!(f, "object {}.{} of placement group {pool}.{pg}", self.inode, self.chunk)
    }
}

/// What the index knows about an object without touching its contents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Length in bytes; bytes never written below it read as zeros.
    pub size: u64,
    /// Highest truncation sequence any operation brought.
    pub truncate_seq: u64,
    /// Placement-group log sequence of the last change, as the operation said it.
    pub version: u64,
    /// Space its blocks occupy, a multiple of [`BLOCK_BYTES`].
    pub allocated_bytes: u64,
}

/// One change. The operations of a [`Transaction`] apply in order and each sees the earlier ones.
#[derive(Clone, Debug)]
pub enum Op {
    /// Writes `data` at `offset`, creating the object and extending it as needed. `crc` is the crc32c the sender
    /// computed over `data`; a mismatch refuses the transaction. Empty `data` creates the object or updates
    /// its sequences, and leaves its size.
    Write { key: ObjectKey, offset: u64, data: Bytes, crc: u32, truncate_seq: u64, version: u64 },
    /// Cuts or extends (with a hole) to `size`. Does nothing to a missing object: nothing is there to cut.
    Truncate { key: ObjectKey, size: u64, truncate_seq: u64, version: u64 },
    /// Makes `len` bytes from `offset` read as zeros and frees whole blocks; clipped at the object's size.
    Zero { key: ObjectKey, offset: u64, len: u64, version: u64 },
    /// Removes an object; a missing one is fine.
    Delete { key: ObjectKey },
    /// Removes the chunks `from_chunk..` of an inode in a group.
    DeleteRange { pg: u64, inode: u64, from_chunk: u32 },
    /// Gives an object to another group of the store, with its blocks: nothing is copied or freed. A missing one is fine; one
    /// that has that name already is removed.
    Move { key: ObjectKey, pg: u64 },
    /// Removes every object of a group. Its meta records stay: the caller chose their keys.
    DeletePg { pg: u64 },
    /// Stores a small record beside the data ([`META_KEY_BYTES_MAX`], [`META_VALUE_BYTES_MAX`]).
    PutMeta { key: Vec<u8>, value: Bytes },
    /// Removes a record; a missing one is fine.
    DeleteMeta { key: Vec<u8> },
    /// Removes the records with `from <= key < to`, in byte order.
    DeleteMetaRange { from: Vec<u8>, to: Vec<u8> },
}

/// Operations that take effect together or not at all, also across power loss.
#[derive(Clone, Debug, Default)]
pub struct Transaction {
    pub ops: Vec<Op>,
    /// May use the space above `full_ratio`: for work that is already acknowledged elsewhere (completing an ordered
    /// operation, recovery). Even then capacity itself is never exceeded.
    pub use_reserve: bool,
}

impl Transaction {
    /// A transaction of `ops` that respects `full_ratio`.
    pub fn new(ops: Vec<Op>) -> Self {
        Self { ops, use_reserve: false }
    }
}

/// The position of a transaction in the order of this store. Dense, never reused, also across restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// What [`submit`](super::Store::submit) answers: the transaction is ordered and visible to reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Submitted {
    pub ticket: Ticket,
    /// Change of allocated bytes over all objects the transaction wrote, truncated or deleted one by one (range
    /// deletions are counted when a checkpoint removes them). Feeds `du`.
    pub allocated_delta: i64,
}

/// How far the store has come. Both numbers only grow; everything up to them is included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Transactions handed to the kernel: they survive a `kill -9` of this process.
    pub written: u64,
    /// Transactions on stable storage: they survive a power failure.
    pub durable: u64,
    /// Why the store stopped for good, if it did.
    pub failed: Option<String>,
}

/// A piece of an object, verified block by block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The bytes; fewer than asked for when the object ends earlier.
    pub data: Bytes,
    /// crc32c of `data`.
    pub crc: u32,
    pub info: ObjectInfo,
}

/// A fingerprint of an object for comparison between replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest {
    pub info: ObjectInfo,
    /// Equal for equal sizes and contents, wherever blocks lie and whether zeros are stored or a hole.
    pub content: u64,
}

/// Space in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// What the store may use for contents.
    pub capacity: u64,
    /// Contents, without what is deleted but not yet reusable.
    pub used: u64,
    /// Deleted or overwritten, reusable after the next checkpoint.
    pub releasing: u64,
    /// `used` may grow to this before ordinary transactions get [`StoreError::Full`].
    pub full_at: u64,
    /// Bytes of extent files on disk.
    pub preallocated: u64,
}

/// What can go wrong. Only `Failed` and errors of `open` are about the store as a whole; after any other the store
/// goes on and the refused transaction left no trace.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum StoreError {
    /// Stored bytes do not match their checksum. Overwriting the whole block, or deleting the object, repairs it.
    #[error("block {block} of {key} does not match its checksum: copy the object from another replica")]
    Corrupt { key: ObjectKey, block: u32 },
    /// The data of a write does not match the checksum that came with it.
    #[error(
        "the data for {key} does not match its checksum (expected {expected:08x}, got {actual:08x}): send it again"
    )]
    BadChecksum { key: ObjectKey, expected: u32, actual: u32 },
    /// No room for the transaction, not even after pending deletions are done.
    #[error(
        "the store is full ({used} of {capacity} bytes used, {needed} more needed): delete files or add data servers"
    )]
    Full { needed: u64, used: u64, capacity: u64 },
    /// A bound of unfinished work is reached; wait for [`room`](super::Store::room) and submit again.
    #[error("the store is busy with a checkpoint: wait for room and submit again")]
    Busy,
    /// The request itself is impossible.
    #[error("invalid request: {0}")]
    Invalid(String),
    /// A write, fsync or index commit failed, or the directory cannot be used. What was durable stays so; a running
    /// store accepts nothing more until it is opened again.
    #[error("the store has failed: {0}")]
    Failed(String),
    /// What is on disk cannot be what this store wrote, in a place where a power failure does not explain it.
    #[error("the store is damaged: {0}")]
    Damaged(String),
    /// Another program, another store or a newer version owns what is in the directory.
    #[error("the store cannot be opened: {0}")]
    Refused(String),
}

impl StoreError {
    /// A failure of `doing`, for instance "write the journal".
    pub(super) fn io(doing: &str, error: &io::Error) -> Self {
        Self::Failed(format!("could not {doing}: {error}"))
    }

    /// A failure of the index while `doing`.
    pub(super) fn index(doing: &str, error: impl fmt::Display) -> Self {
        Self::Failed(format!("could not {doing} in the index: {error}"))
    }
}
