//! The file system: what each operation of the kernel means. Tested without a mount.
//!
//! | module | operations |
//! |---|---|
//! | [`names`] | LOOKUP, MKNOD, MKDIR, SYMLINK, LINK, UNLINK, RMDIR, RENAME, READLINK |
//! | [`attributes`] | GETATTR, STATX, SETATTR, STATFS |
//! | [`xattrs`] | SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR |
//! | [`open`] | OPEN, CREATE, TMPFILE, RELEASE, FLUSH, OPENDIR, RELEASEDIR |
//! | [`read`], [`write`], [`allocate`], [`sync`] | READ, WRITE, FALLOCATE, FSYNC |
//! | [`directory`] | READDIR, READDIRPLUS |
//! | [`locking`] | GETLK, SETLK, SETLKW |
//! | [`session`] | recalled holds, lost sessions |
//! | [`special`](crate::special) | everything below `.zabfs` |
//!
//! Coherence. Until there are leases nothing is cached that another mount could find stale: names and attributes
//! are valid for no time, files are FOPEN_DIRECT_IO, nothing but times is deferred ([`deferral`]). A [`node::Node`] keeps a file's *view*
//! (size, layout, truncations, inline bytes); each READ has the metadata leader confirm it while the data is on
//! its way. The exception is the *hold*: while this session has it, no other session changes size or layout.
//!
//! While no metadata server answers, the attributes of the mount's root (alone) are those seen last.
//!
//! Bounds: the dispatcher's on requests, [`meta`](crate::meta)'s and [`data`](crate::data)'s on what is in flight.

mod allocate;
mod attributes;
mod commits;
mod deferral;
mod directory;
mod handles;
mod locking;
mod names;
mod node;
mod open;
mod ranges;
mod read;
mod session;
mod sync;
#[cfg(test)]
pub(crate) mod testing;
mod write;
mod write_plan;
mod xattrs;

pub(crate) use handles::{FileHandle, Handle};

use crate::data::DataClient;
use crate::fuse::{Entry, Filesystem, Interrupt, Operation, Reply, RequestHeader, Waiting};
use crate::meta::{MetaClient, MetaFailure};
use crate::special::Special;
use handles::Handles;
use node::Nodes;
use protocol::meta::{MetaReply, Space};
use protocol::{Attr, Errno, InodeId};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Notify;

/// Node id of the root of a mount.
pub(crate) const ROOT_NODE: u64 = crate::fuse::abi::ROOT_NODE;

/// Names and attributes are asked for each time.
pub(crate) const UNCACHED: Duration = Duration::ZERO;

/// How often the last known state of the cluster is fetched for times without servers, and how long that may take.
const REFRESH_EVERY: Duration = Duration::from_secs(30);
const REFRESH_PATIENCE: Duration = Duration::from_secs(5);

/// What an operation gives.
pub(crate) type Answer = Result<Reply, Errno>;

/// How this mount differs from others.
#[derive(Clone, Debug)]
pub struct FsConfig {
    /// The cluster's directory that is the root of the mount.
    pub root: InodeId,
    /// Refuse changes.
    pub read_only: bool,
    /// This machine's name, for people.
    pub host: String,
    /// Where it is mounted, for people.
    pub mountpoint: String,
}

/// One mount's file system.
pub struct ZabFs {
    pub(crate) meta: Rc<MetaClient>,
    pub(crate) data: Rc<DataClient>,
    pub(crate) config: FsConfig,
    pub(crate) handles: Handles,
    pub(crate) waiting: Waiting,
    pub(crate) special: Special,
    nodes: Nodes,
    space: RefCell<BTreeMap<InodeId, Space>>,
    /// The root's attributes as they were seen last.
    root_seen: Cell<Option<Attr>>,
    /// Closings of handles that the metadata cluster has not acknowledged.
    closings: Cell<usize>,
    closed: Notify,
    destroyed: Notify,
}

impl ZabFs {
    /// A file system over these clients. `waiting` is the dispatcher's table of unanswered requests.
    pub fn new(meta: Rc<MetaClient>, data: Rc<DataClient>, config: FsConfig, waiting: Waiting) -> Rc<Self> {
        let fs = Rc::new(Self {
            meta,
            data,
            config,
            handles: Handles::default(),
            waiting,
            special: Special::default(),
            nodes: Nodes::default(),
            space: RefCell::default(),
            root_seen: Cell::new(None),
            closings: Cell::new(0),
            closed: Notify::new(),
            destroyed: Notify::new(),
        });
        let listener = Rc::downgrade(&fs);
        fs.meta.on_event(move |event| {
            if let Some(fs) = listener.upgrade() {
                fs.handle_event(event);
            }
        });
        fs
    }

    /// Keeps what is shown when servers are gone: never ends.
    pub async fn keep_last_known(self: Rc<Self>) {
        loop {
            let _ = tokio::time::timeout(REFRESH_PATIENCE, self.getattr(ROOT_NODE)).await;
            self.meta.cluster_status(REFRESH_PATIENCE).await;
            tokio::time::sleep(REFRESH_EVERY).await;
        }
    }

    /// Resolves when the kernel is done with the mount.
    pub async fn destroyed(&self) {
        self.destroyed.notified().await;
    }

    /// Waits until every closed handle is closed in the metadata cluster too.
    pub async fn settle(&self) {
        while self.closings.get() > 0 {
            self.closed.notified().await;
        }
    }

    /// The inode that a node id of the kernel means.
    pub(crate) fn inode(&self, node: u64) -> InodeId {
        if node == ROOT_NODE { self.config.root } else { InodeId(node) }
    }

    /// The node id under which the kernel knows an inode.
    pub(crate) fn node_id(&self, inode: InodeId) -> u64 {
        if inode == self.config.root { ROOT_NODE } else { inode.0 }
    }

    pub(crate) fn entry(&self, attr: Attr) -> Entry {
        Entry {
            node: self.node_id(attr.inode),
            generation: 0,
            attr,
            entry_valid: UNCACHED,
            attr_valid: UNCACHED,
        }
    }

    fn check_writable(&self) -> Result<(), Errno> {
        if self.config.read_only { Err(Errno::EROFS) } else { Ok(()) }
    }

    async fn answer(
        self: Rc<Self>,
        request: RequestHeader,
        operation: Operation,
        interrupt: Interrupt,
    ) -> Answer {
        if InodeId::LOCAL_BASE <= request.node {
            return self.special_operation(request, operation, interrupt).await;
        }
        let node = request.node;
        match operation {
            Operation::Lookup { name } => self.lookup(node, name).await,
            Operation::GetAttr { .. } => self.getattr(node).await,
            Operation::Statx { .. } => self.statx(node).await,
            Operation::SetAttr(change) => self.setattr(node, change).await,
            Operation::ReadLink => self.readlink(node).await,
            Operation::Symlink { name, target } => self.symlink(request, name, target).await,
            Operation::MkNod { name, mode, rdev, umask } => {
                self.mknod(request, name, mode & !umask, rdev).await
            }
            Operation::MkDir { name, mode, umask } => self.mkdir(request, name, mode & !umask).await,
            Operation::Unlink { name } => self.unlink(node, name).await,
            Operation::RmDir { name } => self.rmdir(node, name).await,
            Operation::Rename { name, new_parent, new_name, flags } => {
                self.rename(node, name, new_parent, new_name, flags).await
            }
            Operation::Link { source, name } => self.link(source, node, name).await,
            Operation::Open { flags, kill_suid_gid } => self.open(node, flags, kill_suid_gid).await,
            Operation::Create { name, flags, mode, umask, kill_suid_gid } => {
                self.create(request, name, flags, mode & !umask, kill_suid_gid).await
            }
            Operation::TmpFile { flags, mode, umask } => self.tmpfile(request, flags, mode & !umask).await,
            Operation::Read { handle, offset, size, .. } => self.read(node, handle, offset, size).await,
            Operation::Write(write) => self.write(node, write).await,
            Operation::StatFs => self.statfs(self.inode(node)).await,
            Operation::Release { handle, lock_owner, flock_unlock, .. } => {
                self.release(handle, flock_unlock.then_some(lock_owner))
            }
            Operation::Flush { handle, lock_owner } => self.flush(node, handle, lock_owner).await,
            Operation::Fsync { handle, data_only } => self.fsync(node, handle, data_only).await,
            Operation::SetXattr { name, value, flags, .. } => self.setxattr(node, name, &value, flags).await,
            Operation::GetXattr { name, size } => self.getxattr(node, name, size).await,
            Operation::ListXattr { size } => self.listxattr(node, size).await,
            Operation::RemoveXattr { name } => self.removexattr(node, name).await,
            Operation::OpenDir { .. } => self.opendir(),
            Operation::ReadDir { handle, offset, size, plus } => {
                self.readdir(node, handle, offset, size, plus).await
            }
            Operation::ReleaseDir { handle, .. } => {
                self.handles.remove(handle);
                Ok(Reply::Done)
            }
            // Names are durable on a majority when they are answered.
            Operation::FsyncDir { .. } => Ok(Reply::Done),
            Operation::GetLock(lock) => self.getlk(node, lock).await,
            Operation::SetLock { lock, wait } => self.setlk(request, lock, wait, interrupt).await,
            Operation::Fallocate { handle, offset, length, mode } => {
                self.fallocate(node, handle, offset, length, mode).await
            }
            Operation::SyncFs => self.syncfs().await,
            Operation::Ioctl { .. } => Err(Errno::ENOTTY),
            // The kernel then does these by itself: it checks permissions, polls as always ready, finds no holes,
            // and copies by reading and writing.
            Operation::Access { .. }
            | Operation::Poll { .. }
            | Operation::Seek { .. }
            | Operation::CopyFileRange { .. } => Err(Errno::ENOSYS),
        }
    }
}

impl Filesystem for ZabFs {
    async fn handle(
        self: Rc<Self>,
        request: RequestHeader,
        operation: Operation,
        interrupt: Interrupt,
    ) -> Reply {
        self.answer(request, operation, interrupt).await.unwrap_or_else(Reply::Error)
    }

    fn forget(&self, node: u64, lookups: u64) {
        // The cluster's inodes keep no state here that the kernel could hold on to.
        if InodeId::LOCAL_BASE <= node {
            self.special.forget(node, lookups);
        }
    }

    fn destroy(&self) {
        self.destroyed.notify_one();
    }
}

/// An answer that must be attributes.
pub(crate) fn expect_attr(reply: MetaReply, of: &'static str) -> Result<Attr, Errno> {
    match reply {
        MetaReply::Attr(attr) | MetaReply::Entry(attr) => Ok(attr),
        _ => Err(MetaFailure::Unexpected(of).into()),
    }
}
