//! Numbers of the kernel's FUSE protocol, version 7.45 (Linux 6.18).
//! Source: `include/uapi/linux/fuse.h`. All integers are in the machine's byte order.

/// Node id of the root of a mount.
pub const ROOT_NODE: u64 = 1;

/// Largest READ or WRITE in bytes.
pub const IO_SIZE_MAX: usize = 1 << 20;

/// Pages that the largest READ or WRITE touches in a program's memory, if it does not begin on a page boundary.
pub const IO_PAGES_MAX: u16 = (IO_SIZE_MAX / 4096) as u16 + 1;

/// Opcodes of requests.
#[allow(missing_docs, reason = "the kernel's names")]
pub mod opcode {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const GETLK: u32 = 31;
    pub const SETLK: u32 = 32;
    pub const SETLKW: u32 = 33;
    pub const ACCESS: u32 = 34;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const BMAP: u32 = 37;
    pub const DESTROY: u32 = 38;
    pub const IOCTL: u32 = 39;
    pub const POLL: u32 = 40;
    pub const NOTIFY_REPLY: u32 = 41;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const SYNCFS: u32 = 50;
    pub const TMPFILE: u32 = 51;
    pub const STATX: u32 = 52;
    pub const COPY_FILE_RANGE_64: u32 = 53;
}

/// Codes of notifications.
#[allow(missing_docs, reason = "the kernel's names")]
pub mod notify {
    pub const POLL: i32 = 1;
    pub const INVAL_INODE: i32 = 2;
    pub const INVAL_ENTRY: i32 = 3;
    pub const STORE: i32 = 4;
    pub const DELETE: i32 = 6;
    pub const INC_EPOCH: i32 = 8;
    /// Flag of INVAL_ENTRY: look the name up again at its next use; do not drop it.
    pub const EXPIRE_ONLY: u32 = 1;
}

/// Flags of [`Opened`](super::Opened).
pub mod fopen {
    /// READ and WRITE bypass the page cache.
    pub const DIRECT_IO: u32 = 1;
    /// Keep what the page cache holds.
    pub const KEEP_CACHE: u32 = 1 << 1;
    /// lseek(2) fails.
    pub const NONSEEKABLE: u32 = 1 << 2;
    /// The kernel may cache the entries of this directory.
    pub const CACHE_DIR: u32 = 1 << 3;
    /// No file position at all.
    pub const STREAM: u32 = 1 << 4;
    /// No FLUSH at close. Also suppresses the release of fcntl locks: special files only.
    pub const NOFLUSH: u32 = 1 << 5;
    /// Several direct writes to one inode at a time.
    pub const PARALLEL_DIRECT_WRITES: u32 = 1 << 6;
}

/// Bits of SETATTR's `valid`.
#[allow(missing_docs, reason = "the kernel's names")]
pub mod fattr {
    pub const MODE: u32 = 1;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const LOCKOWNER: u32 = 1 << 9;
    pub const CTIME: u32 = 1 << 10;
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// Small flags of single requests.
#[allow(missing_docs, reason = "the kernel's names")]
pub mod flag {
    pub const GETATTR_FH: u32 = 1;
    pub const OPEN_KILL_SUIDGID: u32 = 1;
    pub const WRITE_CACHE: u32 = 1;
    pub const WRITE_LOCKOWNER: u32 = 1 << 1;
    pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
    pub const READ_LOCKOWNER: u32 = 1 << 1;
    pub const RELEASE_FLUSH: u32 = 1;
    pub const RELEASE_FLOCK_UNLOCK: u32 = 1 << 1;
    pub const FSYNC_FDATASYNC: u32 = 1;
    pub const LK_FLOCK: u32 = 1;
    pub const SETXATTR_ACL_KILL_SGID: u32 = 1;
    pub const POLL_SCHEDULE_NOTIFY: u32 = 1;
}
