//! Client (and metadata leader) → data server. Data servers talk among themselves in `replication`.
//!
//! Every request goes to the primary of the object's placement group. Bytes travel as the frame's payload,
//! with a crc32c in the header that is computed where the bytes are born and checked where they end.

use crate::attr::Truncation;
use crate::id::{InodeId, MapEpoch, ObjectId, PgId, RequestId};
use crate::split::Extent;
use serde::{Deserialize, Serialize};

/// Largest payload of one read or write in bytes: one FUSE request.
pub const IO_MAX: u32 = 1 << 20;

/// What every data operation on an object carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectContext {
    /// The object.
    pub object: ObjectId,
    /// The number of groups under which the sender found the object's group: a group that is at another one refuses, as
    /// what the sender does next (a sync) would miss the group that has the object by now.
    pub pg_num: u32,
    /// The inode's truncations, oldest first: an object with a `truncate_seq` below an entry's is cut to the
    /// least such size before use. Sizes are file offsets.
    pub truncations: Vec<Truncation>,
    /// The newest map epoch at which the client knows of a fenced session (0 for none): the primary catches
    /// up with the map to at least here before it orders the operation.
    pub fence: MapEpoch,
}

/// A request to a data server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DataRequest {
    /// Reads up to `length` bytes at `offset` of the object. The reply's payload ends where the object ends;
    /// what is missing reads as zeros.
    Read {
        /// Which object.
        context: ObjectContext,
        /// Byte offset in the object.
        offset: u32,
        /// Bytes wanted, at most [`IO_MAX`].
        length: u32,
    },
    /// Writes the payload at `offset` of the object. Returns when every in-sync replica has written it to its
    /// files (not fsynced).
    Write {
        /// For exactly-once execution.
        request: RequestId,
        /// Which object.
        context: ObjectContext,
        /// Byte offset in the object.
        offset: u32,
        /// crc32c of the payload.
        crc: u32,
    },
    /// Makes `length` bytes at `offset` zero and frees their space where it can.
    Zero {
        /// For exactly-once execution.
        request: RequestId,
        /// Which object.
        context: ObjectContext,
        /// Byte offset in the object.
        offset: u32,
        /// Bytes.
        length: u32,
    },
    /// Returns when everything that was ever acknowledged in these groups, all with this primary, is on
    /// stable storage of all in-sync replicas.
    Sync {
        /// The groups, each once.
        pgs: Vec<Extent>,
    },
    /// Cuts every object of the inode in this group as `truncations` say and deletes what is empty then. From
    /// its completion on, operations whose newest truncation is older than `floor` are refused as
    /// [`DataError::StaleTruncation`]. Metadata servers only. Idempotent.
    TrimInode {
        /// The group.
        pg: PgId,
        /// What it is taken to hold, as in [`Extent`].
        pg_num: u32,
        /// The inode.
        inode: InodeId,
        /// Bytes per chunk, to turn sizes into chunk indices.
        chunk_size: u32,
        /// As in [`ObjectContext`].
        truncations: Vec<Truncation>,
        /// Least truncation sequence that operations must know from now on.
        floor: u64,
    },
    /// Begins a scrub of these groups, all with this primary; returns at once. Administrators only.
    Scrub {
        /// The groups.
        pgs: Vec<PgId>,
        /// Read every block of every copy.
        deep: bool,
    },
    /// Objects of a group in order of inode and chunk → [`DataReply::Objects`]. Administrators only.
    List {
        /// The group.
        pg: PgId,
        /// Under which number of groups it is to hold them.
        pg_num: u32,
        /// Only those behind this inode and chunk.
        after: Option<(InodeId, u32)>,
        /// At most so many, and at most [`LIST_MAX`].
        limit: u32,
    },
}

/// Objects that one answer to [`DataRequest::List`] names at most.
pub const LIST_MAX: u32 = 8192;

/// An object of a group as [`DataRequest::List`] shows it; the answer's payload is a postcard list of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedObject {
    /// The inode.
    pub inode: InodeId,
    /// Which of its chunks.
    pub chunk: u32,
    /// Length in bytes.
    pub size: u64,
    /// Space that it occupies in one replica.
    pub allocated: u64,
    /// The newest truncation that it was cut by.
    pub truncate_seq: u64,
}

/// A successful answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DataReply {
    /// The payload is what was read.
    Data {
        /// crc32c of the payload.
        crc: u32,
    },
    /// Written.
    Written {
        /// Change of allocated bytes by this operation (counted once, not per replica).
        allocated: i64,
    },
    /// On stable storage.
    Synced,
    /// Cut and deleted.
    Trimmed {
        /// Change of allocated bytes.
        allocated: i64,
    },
    /// The scrubs have begun, or wait for others of this server to end.
    Scrubbing,
    /// The payload is a postcard list of [`ListedObject`].
    Objects {
        /// crc32c of the payload.
        crc: u32,
        /// Nothing follows.
        end: bool,
    },
}

/// Why a data server did not do it. The first three ask the client to try again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum DataError {
    /// Not the primary; the client should have a map with the group's configuration at least this new.
    #[error("this server is not the primary; the group's configuration {version} or newer says who is")]
    NotPrimary {
        /// Configuration version that this server knows.
        version: u64,
    },
    /// The group does not serve now (too few replicas, taking over, or the server lost the metadata cluster).
    #[error("the placement group is not serving: {0}")]
    Unavailable(String),
    /// Too many requests in service; wait a little.
    #[error("the data server has too many requests in service")]
    Overloaded,
    /// The operation is based on a state before a truncation: fetch the file's view again.
    #[error("the operation knows no truncation as new as {known}")]
    StaleTruncation {
        /// The newest truncation that this object or inode knows.
        known: u64,
    },
    /// The session was fenced: nothing that it sends takes effect any more.
    #[error("the session was fenced")]
    Fenced,
    /// No space, and nothing was written.
    #[error("the data servers are full")]
    Full,
    /// No replica has valid bytes.
    #[error("no replica of the object has valid bytes at this place: {0}")]
    Corrupt(String),
    /// The certificate does not allow it.
    #[error("the certificate does not allow this operation: {0}")]
    Refused(String),
    /// The request makes no sense: wrong crc, offset beyond the chunk, unknown pool.
    #[error("malformed request: {0}")]
    Malformed(String),
    /// The request's number is below the session's low-water mark.
    #[error("the request is older than what the client said was finished")]
    Superseded,
}

/// What travels back.
pub type DataResponse = Result<DataReply, DataError>;
