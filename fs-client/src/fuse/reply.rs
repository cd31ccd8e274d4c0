//! Replies, typed. Encoding is [`encode`](super::encode)'s part.

use super::operation::FileLock;
use bytes::Bytes;
use protocol::{Attr, Errno, FileKind};
use std::time::Duration;

/// The answer to one request. Which operation takes which is said at [`Operation`](super::Operation).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It failed.
    Error(Errno),
    /// It is done; nothing to say.
    Done,
    /// An entry; the kernel now holds one lookup of its node.
    Entry(Entry),
    /// Attributes, and for how long the kernel may use them.
    Attributes(Attr, Duration),
    /// Attributes with birth time, and for how long the kernel may use them.
    Statx(Attr, Duration),
    /// An open file or directory.
    Opened(Opened),
    /// A new file and its handle.
    Created(Entry, Opened),
    /// Bytes: of READ, READLINK, GETXATTR, LISTXATTR.
    Data(Bytes),
    /// Bytes in pieces, written in order without joining them (at most [`DATA_PARTS_MAX`]; more are joined).
    DataParts(Vec<Bytes>),
    /// Bytes written.
    Written(u32),
    /// Figures of the file system.
    Statfs(Statfs),
    /// Length of an extended attribute, or of the list of names.
    XattrSize(u32),
    /// Entries of a directory; empty at its end.
    Directory(Directory),
    /// The first conflicting lock, or `LockKind::Unlock`.
    Lock(FileLock),
    /// Position found by LSEEK.
    Seek(u64),
    /// Bytes copied.
    Copied(u64),
    /// Return value and output of an ioctl.
    Ioctl(i32, Bytes),
    /// `POLL*` events that are ready.
    Poll(u32),
}

/// Most pieces of [`Reply::DataParts`] that go out as they are.
pub const DATA_PARTS_MAX: usize = 256;

impl From<Errno> for Reply {
    fn from(errno: Errno) -> Self {
        Self::Error(errno)
    }
}

/// A name's inode. `node` 0 says "no such name", to be remembered for `entry_valid`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Node id that further requests use.
    pub node: u64,
    /// With `node` unique for the life of the file system.
    pub generation: u64,
    /// Its attributes; `attr.inode` is what users see as `st_ino`.
    pub attr: Attr,
    /// How long the kernel may use the name.
    pub entry_valid: Duration,
    /// How long the kernel may use the attributes.
    pub attr_valid: Duration,
}

/// An open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Comes back in every request on this open file.
    pub handle: u64,
    /// Bits of [`fopen`](super::abi::fopen).
    pub flags: u32,
}

/// Figures of the file system, as statfs(2) shows them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statfs {
    /// Blocks of `block_size` bytes.
    pub blocks: u64,
    /// Free blocks.
    pub blocks_free: u64,
    /// Free blocks for ordinary users.
    pub blocks_available: u64,
    /// Inodes.
    pub files: u64,
    /// Free inodes.
    pub files_free: u64,
    /// Bytes per block.
    pub block_size: u32,
    /// Longest name in bytes.
    pub name_max: u32,
}

/// One entry of a directory listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectoryEntry<'a> {
    /// `st_ino`.
    pub inode: u64,
    /// Cookie of the position *after* this entry.
    pub offset: u64,
    /// Kind.
    pub kind: FileKind,
    /// Name.
    pub name: &'a [u8],
}

/// A listing in the kernel's form, bounded by the size that the request named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    pub(super) bytes: Vec<u8>,
    pub(super) size_max: usize,
    /// Nodes that the kernel holds one more lookup of when it gets this.
    pub(super) lookups: Vec<u64>,
}
