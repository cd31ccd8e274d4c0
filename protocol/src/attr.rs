//! What an inode is, as clients and servers exchange it.

use crate::id::{InodeId, PoolId};
use serde::{Deserialize, Serialize};

/// Seconds and nanoseconds since 1970, before it too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Timestamp {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanoseconds: u32,
}

impl Timestamp {
    /// This moment plus one nanosecond: the least time after it.
    pub fn next(self) -> Self {
        if self.nanoseconds >= 999_999_999 {
            Self { seconds: self.seconds + 1, nanoseconds: 0 }
        } else {
            Self { nanoseconds: self.nanoseconds + 1, ..self }
        }
    }
}

/// Kind of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum FileKind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Named pipe.
    Fifo,
    /// Unix socket.
    Socket,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
}

impl FileKind {
    /// The `S_IFMT` bits of `st_mode`.
    pub const fn mode_bits(self) -> u32 {
        match self {
            Self::File => libc::S_IFREG,
            Self::Directory => libc::S_IFDIR,
            Self::Symlink => libc::S_IFLNK,
            Self::Fifo => libc::S_IFIFO,
            Self::Socket => libc::S_IFSOCK,
            Self::CharDevice => libc::S_IFCHR,
            Self::BlockDevice => libc::S_IFBLK,
        }
    }

    /// The kind that `st_mode` names, if any.
    pub const fn from_mode(mode: u32) -> Option<Self> {
        Some(match mode & libc::S_IFMT {
            libc::S_IFREG => Self::File,
            libc::S_IFDIR => Self::Directory,
            libc::S_IFLNK => Self::Symlink,
            libc::S_IFIFO => Self::Fifo,
            libc::S_IFSOCK => Self::Socket,
            libc::S_IFCHR => Self::CharDevice,
            libc::S_IFBLK => Self::BlockDevice,
            _ => return None,
        })
    }
}

/// POSIX attributes of one inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attr {
    /// The inode.
    pub inode: InodeId,
    /// Its kind, which never changes.
    pub kind: FileKind,
    /// Permission bits, at most `0o7777`.
    pub mode: u32,
    /// Hard links; of a directory 2 + its sub-directories.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number in the kernel's 32-bit encoding (devices only).
    pub rdev: u32,
    /// Bytes: of a file its length, of a symlink its target's, of a directory its entries'.
    pub size: u64,
    /// Allocated space in units of 512 bytes.
    pub blocks: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of contents.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// Creation.
    pub btime: Timestamp,
}

/// One truncation that data operations must respect: an object whose `truncate_seq` is below `seq` is cut
/// to `size` (in file offsets) before use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Truncation {
    /// Revision of the truncating transaction.
    pub seq: u64,
    /// File size it cut to, in bytes.
    pub size: u64,
}

/// Most truncations that an inode remembers; one more waits for the background sweep.
pub const TRUNCATIONS_MAX: usize = 8;

/// Where a file's bytes are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Layout {
    /// In the znode itself. Bytes between the end of this and the size are zero.
    Inline(#[serde(with = "crate::name::bytes_form")] Vec<u8>),
    /// In chunk objects of the pool.
    Chunks,
}

/// Everything a mount needs to read or write a file's bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileView {
    /// Current attributes; `attr.size` bounds what may be read.
    pub attr: Attr,
    /// Changes whenever size, layout, truncations or inline bytes change (but not with a plain overwrite of
    /// chunk data): an equal number means an equal view.
    pub data_revision: u64,
    /// The pool that the file's chunks are in.
    pub pool: PoolId,
    /// Where the bytes are.
    pub layout: Layout,
    /// The truncations to carry in data operations, oldest first, sizes rising.
    pub truncations: Vec<Truncation>,
}

impl FileView {
    /// Sequence of the newest truncation, 0 if there was none: the state that a data write is based on.
    pub fn truncate_seq(&self) -> u64 {
        self.truncations.last().map_or(0, |t| t.seq)
    }
}
