//! Requests of the kernel, typed and owned.

use bytes::Bytes;
use protocol::Timestamp;

/// Who asks for what object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    /// Names the request; never repeated within a mount.
    pub unique: u64,
    /// The inode that the operation is about; 1 is the root of the mount.
    pub node: u64,
    /// Effective file-system user of the caller; `u32::MAX` in requests that the kernel makes for itself.
    pub uid: u32,
    /// Effective file-system group of the caller.
    pub gid: u32,
    /// Thread id of the caller as seen from the mounter's pid namespace; 0 if it is not visible there or the
    /// kernel acts for itself.
    pub pid: u32,
}

/// What is asked. Names are as the kernel gave them: not empty, without NUL or `/`, possibly longer than 255
/// bytes, possibly `.` or `..` (LOOKUP only).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Resolve a name in the directory. Answer: [`Entry`](super::Reply::Entry).
    Lookup { name: Vec<u8> },
    /// Attributes; `handle` if an open file is at hand. Answer: [`Attributes`](super::Reply::Attributes).
    GetAttr { handle: Option<u64> },
    /// Attributes with birth time; `mask` is `STATX_*`. Answer: [`Statx`](super::Reply::Statx).
    Statx { handle: Option<u64>, flags: u32, mask: u32 },
    /// Change attributes. Answer: [`Attributes`](super::Reply::Attributes).
    SetAttr(SetAttr),
    /// Target of a symbolic link. Answer: [`Data`](super::Reply::Data).
    ReadLink,
    /// Create a symbolic link. Answer: [`Entry`](super::Reply::Entry).
    Symlink { name: Vec<u8>, target: Vec<u8> },
    /// Create a file, device, fifo or socket; the umask is not applied yet. Answer: `Entry`.
    MkNod { name: Vec<u8>, mode: u32, rdev: u32, umask: u32 },
    /// Create a directory; the umask is not applied yet. Answer: `Entry`.
    MkDir { name: Vec<u8>, mode: u32, umask: u32 },
    /// Remove a name that is no directory. Answer: `Done`.
    Unlink { name: Vec<u8> },
    /// Remove an empty directory. Answer: `Done`.
    RmDir { name: Vec<u8> },
    /// Rename; `flags` are `RENAME_NOREPLACE`, `RENAME_EXCHANGE`, `RENAME_WHITEOUT`. Answer: `Done`.
    Rename { name: Vec<u8>, new_parent: u64, new_name: Vec<u8>, flags: u32 },
    /// Give inode `source` another name in this directory. Answer: `Entry`.
    Link { source: u64, name: Vec<u8> },
    /// Open a file. `flags` are the `O_*` of open(2) without O_CREAT, O_EXCL; O_TRUNC is ours to do.
    /// `kill_suid_gid`: with O_TRUNC, clear set-id bits. Answer: [`Opened`](super::Reply::Opened).
    Open { flags: u32, kill_suid_gid: bool },
    /// Create (unless it exists, O_EXCL aside) and open. Answer: [`Created`](super::Reply::Created).
    Create { name: Vec<u8>, flags: u32, mode: u32, umask: u32, kill_suid_gid: bool },
    /// Open a new file that has no name. Answer: `Created`.
    TmpFile { flags: u32, mode: u32, umask: u32 },
    /// Read at most `size` bytes; fewer means end of file. Answer: `Data`.
    Read { handle: u64, offset: u64, size: u32, flags: u32, lock_owner: Option<u64> },
    /// Write. Answer: [`Written`](super::Reply::Written).
    Write(Write),
    /// Figures of the file system. Answer: [`Statfs`](super::Reply::Statfs).
    StatFs,
    /// The last descriptor of an open file is gone. `flock_unlock`: drop the flock of `lock_owner`.
    /// Nobody waits for the answer (`Done`).
    Release { handle: u64, flags: u32, lock_owner: u64, flush: bool, flock_unlock: bool },
    /// One descriptor was closed: POSIX locks of the owner go. Answer: `Done`.
    Flush { handle: u64, lock_owner: u64 },
    /// fsync(2) or fdatasync(2). Answer: `Done`.
    Fsync { handle: u64, data_only: bool },
    /// Set an extended attribute; `flags` are `XATTR_CREATE`, `XATTR_REPLACE`. Answer: `Done`.
    SetXattr { name: Vec<u8>, value: Bytes, flags: u32, kill_sgid: bool },
    /// Read an extended attribute. `size` 0 asks for its length: answer [`XattrSize`](super::Reply::XattrSize),
    /// otherwise `Data`, or ERANGE if it is longer than `size`.
    GetXattr { name: Vec<u8>, size: u32 },
    /// The names of all extended attributes, each ended by NUL; `size` as in `GetXattr`.
    ListXattr { size: u32 },
    /// Remove an extended attribute. Answer: `Done`.
    RemoveXattr { name: Vec<u8> },
    /// Open a directory. Answer: `Opened`.
    OpenDir { flags: u32 },
    /// Entries after cookie `offset`, in a buffer of `size` bytes; with attributes and one lookup each if
    /// `plus`. Answer: [`Directory`](super::Reply::Directory).
    ReadDir { handle: u64, offset: u64, size: u32, plus: bool },
    /// The last descriptor of a directory is gone. Answer: `Done`.
    ReleaseDir { handle: u64, flags: u32 },
    /// fsync(2) of a directory. Answer: `Done`.
    FsyncDir { handle: u64, data_only: bool },
    /// Would this lock conflict? Answer: [`Lock`](super::Reply::Lock).
    GetLock(LockRequest),
    /// Take or drop a lock. `wait`: until it is free or any signal comes. Answer: `Done`.
    SetLock { lock: LockRequest, wait: bool },
    /// access(2), only without `default_permissions`. Answer: `Done`.
    Access { mask: u32 },
    /// ioctl(2) on a file or directory. Answer: [`Ioctl`](super::Reply::Ioctl) or ENOTTY.
    Ioctl { handle: u64, flags: u32, command: u32, argument: u64, input: Bytes, output_size: u32 },
    /// poll(2). Answer: [`Poll`](super::Reply::Poll).
    Poll { handle: u64, poll_handle: u64, events: u32, notify: bool },
    /// fallocate(2); `mode` is `FALLOC_FL_*`. Answer: `Done`.
    Fallocate { handle: u64, offset: u64, length: u64, mode: u32 },
    /// SEEK_HOLE or SEEK_DATA. Answer: [`Seek`](super::Reply::Seek).
    Seek { handle: u64, offset: u64, whence: u32 },
    /// Copy between two open files of this mount. Answer: [`Copied`](super::Reply::Copied), at most `length`.
    CopyFileRange {
        handle: u64,
        offset: u64,
        target_node: u64,
        target_handle: u64,
        target_offset: u64,
        length: u64,
        flags: u64,
    },
    /// syncfs(2); plain FUSE mounts never get it. Answer: `Done`.
    SyncFs,
}

/// Which attributes change to what; `None` stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// The open file of ftruncate(2).
    pub handle: Option<u64>,
    /// Permission bits (and kind) of chmod(2).
    pub mode: Option<u32>,
    /// New owner.
    pub uid: Option<u32>,
    /// New group.
    pub gid: Option<u32>,
    /// New length in bytes.
    pub size: Option<u64>,
    /// New access time.
    pub atime: Option<TimeOrNow>,
    /// New modification time.
    pub mtime: Option<TimeOrNow>,
    /// New change time (kernel writeback cache only).
    pub ctime: Option<Timestamp>,
    /// Whose POSIX locks count for a truncation.
    pub lock_owner: Option<u64>,
    /// Clear set-user-id, and set-group-id if group-executable, of a file.
    pub kill_suid_gid: bool,
}

/// A given time, or that of the transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeOrNow {
    /// As given.
    At(Timestamp),
    /// The time of the transaction.
    Now,
}

/// A WRITE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The open file; one that the kernel guessed if `from_cache`.
    pub handle: u64,
    /// Position in bytes.
    pub offset: u64,
    /// What to write. May share a large receive buffer: copy it if it is to be kept for long.
    pub data: Bytes,
    /// The `O_*` flags of the open file.
    pub flags: u32,
    /// Whose lock this is done under.
    pub lock_owner: Option<u64>,
    /// Writeback of dirty (mapped) pages: the caller of record did not write this.
    pub from_cache: bool,
    /// Clear set-user-id, and set-group-id if group-executable.
    pub kill_suid_gid: bool,
}

/// Kind of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockKind {
    /// Shared.
    Read,
    /// Exclusive.
    Write,
    /// None: in a request, drop it; in a reply to GETLK, no conflict.
    Unlock,
}

/// A range of bytes and how it is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileLock {
    /// First byte.
    pub start: u64,
    /// Last byte, inclusive; `i64::MAX` is "to the end, wherever".
    pub end: u64,
    /// How.
    pub kind: LockKind,
    /// Process (not thread) id of the holder.
    pub pid: u32,
}

/// A lock operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockRequest {
    /// The open file.
    pub handle: u64,
    /// Identity of the owner within this mount: of the process's files (POSIX) or of the open file (OFD, flock).
    pub owner: u64,
    /// What is locked how; for flock always the whole file.
    pub lock: FileLock,
    /// flock(2) rather than fcntl(2).
    pub flock: bool,
}

impl Operation {
    /// The kernel's name of the operation, for logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Lookup { .. } => "LOOKUP",
            Self::GetAttr { .. } => "GETATTR",
            Self::Statx { .. } => "STATX",
            Self::SetAttr(_) => "SETATTR",
            Self::ReadLink => "READLINK",
            Self::Symlink { .. } => "SYMLINK",
            Self::MkNod { .. } => "MKNOD",
            Self::MkDir { .. } => "MKDIR",
            Self::Unlink { .. } => "UNLINK",
            Self::RmDir { .. } => "RMDIR",
            Self::Rename { .. } => "RENAME",
            Self::Link { .. } => "LINK",
            Self::Open { .. } => "OPEN",
            Self::Create { .. } => "CREATE",
            Self::TmpFile { .. } => "TMPFILE",
            Self::Read { .. } => "READ",
            Self::Write(_) => "WRITE",
            Self::StatFs => "STATFS",
            Self::Release { .. } => "RELEASE",
            Self::Flush { .. } => "FLUSH",
            Self::Fsync { .. } => "FSYNC",
            Self::SetXattr { .. } => "SETXATTR",
            Self::GetXattr { .. } => "GETXATTR",
            Self::ListXattr { .. } => "LISTXATTR",
            Self::RemoveXattr { .. } => "REMOVEXATTR",
            Self::OpenDir { .. } => "OPENDIR",
            Self::ReadDir { plus: false, .. } => "READDIR",
            Self::ReadDir { plus: true, .. } => "READDIRPLUS",
            Self::ReleaseDir { .. } => "RELEASEDIR",
            Self::FsyncDir { .. } => "FSYNCDIR",
            Self::GetLock(_) => "GETLK",
            Self::SetLock { wait: false, .. } => "SETLK",
            Self::SetLock { wait: true, .. } => "SETLKW",
            Self::Access { .. } => "ACCESS",
            Self::Ioctl { .. } => "IOCTL",
            Self::Poll { .. } => "POLL",
            Self::Fallocate { .. } => "FALLOCATE",
            Self::Seek { .. } => "LSEEK",
            Self::CopyFileRange { .. } => "COPY_FILE_RANGE",
            Self::SyncFs => "SYNCFS",
        }
    }
}
