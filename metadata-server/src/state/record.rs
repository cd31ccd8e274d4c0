//! Values of the replicated state. Encoded with postcard behind the format version in the system table.

use protocol::attr::TRUNCATIONS_MAX;
use protocol::meta::{ClientInfo, LockEntry};
use protocol::{Attr, DataServerId, FileKind, InodeId, PoolId, SessionId, Timestamp, Truncation};
use serde::{Deserialize, Serialize};
use zab::mutant;

/// Version of everything in this file and in [`super::key`]. A server refuses a newer one. 2: the system table may have a
/// generation, which one that knows version 1 would not heed.
pub const FORMAT_VERSION: u32 = 2;

/// An inode (= znode).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inode {
    /// POSIX attributes; `attr.blocks` follows from `allocated`.
    pub attr: Attr,
    /// Directory that holds it; of files the one they were created in (their other names are in the links).
    pub parent: InodeId,
    /// Allocated bytes of file data.
    pub allocated: u64,
    /// Whether the bytes are in chunk objects.
    pub chunked: bool,
    /// The pool of its chunks.
    pub pool: PoolId,
    /// One more than the highest chunk index that committed data may be in.
    pub chunks_high: u32,
    /// Chunks above `chunks_high` may exist: a writer died while it extended the file.
    pub strays: bool,
    /// Made by O_TMPFILE and never named so far: link(2) may give it a name.
    pub linkable: bool,
    /// Truncations that objects may not have seen, oldest first, sizes rising.
    pub truncations: Vec<Truncation>,
    /// Revision of the last change of size, layout, truncations or inline bytes.
    pub data_revision: u64,
    /// Revision of the creation (ZooKeeper's czxid).
    pub created: u64,
    /// Revision of the last change of data (mzxid).
    pub modified: u64,
    /// Revision of the last change of the set of children (pzxid).
    pub children: u64,
    /// Number of data changes (version).
    pub data_version: u64,
    /// Number of children changes (cversion).
    pub children_version: u64,
    /// Number of ACL changes (aversion).
    pub acl_version: u64,
    /// The session that this znode lives as long as.
    pub ephemeral_owner: Option<SessionId>,
    /// The session that has the hold and may have overwritten bytes without having committed the times.
    pub deferred_by: Option<SessionId>,
}

impl Inode {
    /// Sets the size of a chunked file, remembering what to cut from objects. `false`: the list is full and the
    /// truncation must wait for the sweep.
    pub fn truncate(&mut self, seq: u64, size: u64) -> bool {
        if size < self.attr.size {
            self.truncations.retain(|t| t.size < size && !mutant!("only-the-last-truncation"));
            if self.truncations.len() >= TRUNCATIONS_MAX {
                return false;
            }
            self.truncations.push(Truncation { seq, size });
            self.set_allocated(self.allocated.min(size.next_multiple_of(4096)));
        }
        self.attr.size = size;
        self.data_revision = seq;
        true
    }

    /// Sets the allocated bytes and the blocks that `stat` shows.
    pub fn set_allocated(&mut self, bytes: u64) {
        self.allocated = bytes;
        self.attr.blocks = bytes.div_ceil(512);
    }

    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        self.attr.kind == FileKind::Directory
    }

    /// Newest truncation that data operations must know.
    pub fn truncate_seq(&self) -> u64 {
        self.truncations.last().map_or(0, |t| t.seq)
    }
}

/// A directory entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dentry {
    /// What it names.
    pub inode: InodeId,
    /// Kind of that.
    pub kind: FileKind,
    /// Position in the directory's order.
    pub cookie: u64,
}

/// Whose session it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SessionKind {
    /// A mount or another client.
    Client,
    /// A data server.
    Data(DataServerId),
}

/// A session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Proof of ownership.
    pub nonce: u128,
    /// Milliseconds of silence after which it expires.
    pub timeout_ms: u32,
    /// Name in the certificate that opened it.
    pub certificate: String,
    /// Who, for people.
    pub info: ClientInfo,
    /// Mount or data server.
    pub kind: SessionKind,
    /// When it was opened.
    pub opened: Timestamp,
}

/// Objects of an inode that must go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purge {
    /// The inode's pool.
    pub pool: PoolId,
    /// Groups of the chunks below this may hold objects.
    pub chunks_high: u32,
    /// Every group of the pool may hold objects.
    pub strays: bool,
    /// What to cut; a single entry of size 0 deletes everything.
    pub truncations: Vec<Truncation>,
    /// The inode itself is gone.
    pub deleted: bool,
}

/// Holders and waiters of one lock.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockTable {
    /// Who has it.
    pub holders: Vec<LockEntry>,
    /// Who waits, first in line first.
    pub waiters: Vec<LockEntry>,
}

/// Numbers that are handed out or counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// The next inode's number.
    pub next_inode: u64,
    /// Inodes in use.
    pub inodes: u64,
    /// The next session's number.
    pub next_session: u64,
}

impl Default for Counters {
    fn default() -> Self {
        Self { next_inode: InodeId::ROOT.0 + 1, inodes: 1, next_session: 1 }
    }
}

/// Bookkeeping that every transaction updates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Zab's epoch of the last applied transaction.
    pub zab_epoch: u64,
    /// Zab's counter of the last applied transaction.
    pub counter: u64,
    /// Number of applied transactions.
    pub revision: u64,
    /// Time of the last transaction.
    pub time: Timestamp,
    /// Chained checksum over all transactions: equal on all servers at equal revisions.
    pub digest: u64,
}

/// Most values fit into this many bytes, so that one allocation of the right size does.
const USUAL_BYTES: usize = 1024;

/// Encodes a value.
pub fn encode<T: Serialize>(value: &T) -> bytes::Bytes {
    match postcard::to_slice(value, &mut [0; USUAL_BYTES]) {
        Ok(encoded) => bytes::Bytes::copy_from_slice(encoded),
        Err(_) => postcard::to_stdvec(value).expect("encoding into memory does not fail").into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(size: u64) -> Inode {
        let zero = Timestamp::default();
        Inode {
            attr: Attr {
                inode: InodeId(2),
                kind: FileKind::File,
                mode: 0,
                nlink: 1,
                uid: 0,
                gid: 0,
                rdev: 0,
                size,
                blocks: 0,
                atime: zero,
                mtime: zero,
                ctime: zero,
                btime: zero,
            },
            parent: InodeId::ROOT,
            allocated: 0,
            chunked: true,
            pool: PoolId(1),
            chunks_high: 0,
            strays: false,
            linkable: false,
            truncations: vec![],
            data_revision: 0,
            created: 0,
            modified: 0,
            children: 0,
            data_version: 0,
            children_version: 0,
            acl_version: 0,
            ephemeral_owner: None,
            deferred_by: None,
        }
    }

    #[test]
    fn a_shorter_truncation_replaces_longer_ones_and_sizes_rise() {
        let mut inode = file(100);
        assert!(inode.truncate(1, 50));
        assert!(inode.truncate(2, 80), "growing cuts nothing");
        assert!(inode.truncate(3, 60));
        assert_eq!(inode.truncations, [Truncation { seq: 1, size: 50 }, Truncation { seq: 3, size: 60 }]);
        assert!(inode.truncate(4, 10));
        assert_eq!(inode.truncations, [Truncation { seq: 4, size: 10 }]);
    }

    #[test]
    fn the_list_is_bounded() {
        let mut inode = file(0);
        for i in 0..TRUNCATIONS_MAX as u64 {
            inode.attr.size = 1000;
            assert!(inode.truncate(i + 1, 10 + i));
        }
        inode.attr.size = 1000;
        assert!(!inode.truncate(100, 500), "a ninth entry has to wait");
        assert!(inode.truncate(100, 5), "a shorter one needs no room");
    }
}
