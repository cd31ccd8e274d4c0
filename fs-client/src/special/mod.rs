//! The directory `.zabfs` at the root of every mount: not listed, always reachable by name.
//!
//! | path | what |
//! |---|---|
//! | `.zabfs/locks/NAME` | opening for writing takes the lock ([`locks`]) |
//! | `.zabfs/status` | the cluster, as `zabfs status` prints it; the last known state when servers are gone |
//! | `.zabfs/waiting` | requests of this mount that are not answered yet |
//! | `.zabfs/sync` | reading it returns when everything that this mount wrote is on stable storage |
//!
//! Its node ids are outside the cluster's range ([`InodeId::LOCAL_BASE`] and up). It cannot be renamed or removed,
//! and nobody can create a `.zabfs` at the root of a mount: EPERM.

mod listing;
mod locks;
mod text;

pub(crate) use locks::SpecialHandle;

use crate::fs::{Handle, ROOT_NODE, UNCACHED, ZabFs};
use crate::fuse::abi::fopen;
use crate::fuse::{Entry, Interrupt, Opened, Operation, Reply, RequestHeader};
use crate::os;
use bytes::Bytes;
use locks::{LockNames, Parked, What};
use protocol::meta::ReadOp;
use protocol::{Attr, EntryName, Errno, FileKind, InodeId, Timestamp};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Name of the directory.
pub(crate) const NAME: &[u8] = b".zabfs";

const ROOT: u64 = InodeId::LOCAL_BASE;
const LOCKS: u64 = ROOT + 1;
const STATUS: u64 = ROOT + 2;
const WAITING: u64 = ROOT + 3;
const SYNC: u64 = ROOT + 4;
/// First node id of a lock.
const LOCK_BASE: u64 = ROOT + 1024;

/// The fixed entries of `.zabfs`.
const ENTRIES: [(&[u8], u64); 4] =
    [(b"locks", LOCKS), (b"status", STATUS), (b"sync", SYNC), (b"waiting", WAITING)];

/// Reads that end, whatever the servers do, within this time.
const STATUS_PATIENCE: Duration = Duration::from_millis(900);
/// The same when it is known that no server leads.
const UNREACHED_PATIENCE: Duration = Duration::from_millis(300);

/// What `.zabfs` remembers.
pub(crate) struct Special {
    locks: RefCell<LockNames>,
    /// Interrupted waits that keep their place for a moment.
    parked: RefCell<Vec<Parked>>,
    since: Timestamp,
    owner: (u32, u32),
}

impl Default for Special {
    fn default() -> Self {
        Self { locks: RefCell::default(), parked: RefCell::default(), since: now(), owner: os::own_ids() }
    }
}

/// Whether a node id is one of `.zabfs`.
pub(crate) fn is_local(node: u64) -> bool {
    node >= InodeId::LOCAL_BASE
}

impl Special {
    pub(crate) fn forget(&self, node: u64, lookups: u64) {
        self.locks.borrow_mut().forget(node, lookups);
    }

    fn attr(&self, node: u64) -> Attr {
        let (kind, mode, nlink) = match node {
            ROOT => (FileKind::Directory, 0o755, 3),
            LOCKS => (FileKind::Directory, 0o755, 2),
            STATUS | WAITING | SYNC => (FileKind::File, 0o444, 1),
            _ => (FileKind::File, 0o666, 1),
        };
        Attr {
            inode: InodeId(node),
            kind,
            mode,
            nlink,
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            size: 0,
            blocks: 0,
            atime: self.since,
            mtime: self.since,
            ctime: self.since,
            btime: self.since,
        }
    }

    fn entry(&self, node: u64) -> Entry {
        Entry { node, generation: 0, attr: self.attr(node), entry_valid: UNCACHED, attr_valid: UNCACHED }
    }
}

impl ZabFs {
    /// Whether a name is `.zabfs` itself.
    pub(crate) fn is_special(&self, parent: u64, name: &[u8]) -> bool {
        parent == ROOT_NODE && name == NAME
    }

    pub(crate) fn special_root(&self) -> Entry {
        self.special.entry(ROOT)
    }

    /// An operation on a node of `.zabfs`.
    pub(crate) async fn special_operation(
        self: &Rc<Self>,
        request: RequestHeader,
        operation: Operation,
        interrupt: Interrupt,
    ) -> Result<Reply, Errno> {
        let node = request.node;
        match operation {
            Operation::Lookup { name } => self.special_lookup(node, name).await,
            Operation::GetAttr { .. } => Ok(Reply::Attributes(self.known(node)?, UNCACHED)),
            Operation::Statx { .. } => Ok(Reply::Statx(self.known(node)?, UNCACHED)),
            Operation::SetAttr(change) => {
                // O_TRUNC and `touch` mean nothing here and harm nothing.
                let harmless = change.mode.is_none() && change.uid.is_none() && change.gid.is_none();
                if harmless { Ok(Reply::Attributes(self.known(node)?, UNCACHED)) } else { Err(Errno::EPERM) }
            }
            Operation::Open { flags, .. } => self.special_open(request, flags, interrupt).await,
            Operation::Create { name, flags, .. } if node == LOCKS => {
                if flags as i32 & libc::O_EXCL != 0 {
                    return Err(Errno::EEXIST);
                }
                self.create_lock(request, name, flags, interrupt).await
            }
            Operation::Unlink { name } if node == LOCKS => self.remove_lock(request, name).await,
            Operation::Read { handle, offset, size, .. } => self.special_read(handle, offset, size).await,
            Operation::Write(write) => {
                // The lock is the message; what is written to it is not kept.
                self.special_handle(write.handle)?.check()?;
                Ok(Reply::Written(write.data.len() as u32))
            }
            Operation::Release { handle, .. } => self.special_release(handle).await,
            Operation::OpenDir { .. } => self.special_opendir(node).await,
            Operation::ReadDir { handle, offset, size, plus } => {
                self.special_readdir(handle, offset, size, plus)
            }
            Operation::ReleaseDir { handle, .. } => {
                self.handles.remove(handle);
                Ok(Reply::Done)
            }
            Operation::StatFs => self.statfs(InodeId::ROOT).await,
            Operation::Flush { .. } | Operation::Fsync { .. } | Operation::FsyncDir { .. } => Ok(Reply::Done),
            Operation::GetXattr { .. } | Operation::RemoveXattr { .. } => Err(Errno::ENODATA),
            Operation::ListXattr { size: 0 } => Ok(Reply::XattrSize(0)),
            Operation::ListXattr { .. } => Ok(Reply::Data(Bytes::new())),
            Operation::Ioctl { .. } => Err(Errno::ENOTTY),
            Operation::ReadLink => Err(Errno::EINVAL),
            Operation::GetLock(_)
            | Operation::SetLock { .. }
            | Operation::SetXattr { .. }
            | Operation::Fallocate { .. } => Err(Errno::EOPNOTSUPP),
            // Answering ENOSYS once would switch the operation off for the whole mount, where that is meant too.
            Operation::Access { .. }
            | Operation::Poll { .. }
            | Operation::Seek { .. }
            | Operation::CopyFileRange { .. }
            | Operation::SyncFs => Err(Errno::ENOSYS),
            _ => Err(Errno::EPERM),
        }
    }

    async fn special_lookup(&self, parent: u64, name: Vec<u8>) -> Result<Reply, Errno> {
        let node = match (parent, name.as_slice()) {
            (_, b".") => parent,
            (ROOT, b"..") => {
                let root = self.meta.read(ReadOp::Getattr(self.config.root)).await?;
                return Ok(Reply::Entry(self.entry(crate::fs::expect_attr(root, "a lookup")?)));
            }
            (_, b"..") => ROOT,
            (ROOT, name) => ENTRIES
                .iter()
                .find(|(entry, _)| *entry == name)
                .map(|(_, node)| *node)
                .ok_or(Errno::ENOENT)?,
            (LOCKS, _) => self.special.locks.borrow_mut().lookup(EntryName::new(name)?),
            _ => return Err(Errno::ENOTDIR),
        };
        Ok(Reply::Entry(self.special.entry(node)))
    }

    fn known(&self, node: u64) -> Result<Attr, Errno> {
        if node >= LOCK_BASE && self.special.locks.borrow().name(node).is_none() {
            return Err(Errno::ESTALE);
        }
        Ok(self.special.attr(node))
    }

    async fn special_open(
        self: &Rc<Self>,
        request: RequestHeader,
        flags: u32,
        interrupt: Interrupt,
    ) -> Result<Reply, Errno> {
        let what = match request.node {
            STATUS => What::Status,
            WAITING => What::Waiting,
            SYNC => What::Sync,
            node => {
                let name = self.special.locks.borrow().name(node).ok_or(Errno::ESTALE)?;
                if flags as i32 & libc::O_ACCMODE != libc::O_RDONLY {
                    return self.take_lock(request, name, flags, interrupt).await.map(Reply::Opened);
                }
                What::LockState(name)
            }
        };
        if flags as i32 & libc::O_ACCMODE != libc::O_RDONLY {
            return Err(Errno::EACCES);
        }
        Ok(Reply::Opened(self.special_opened(self.handles.number(), what)))
    }

    fn special_opened(&self, number: u64, what: What) -> Opened {
        self.handles.insert(number, Handle::Special(Rc::new(SpecialHandle::new(what))));
        Opened { handle: number, flags: fopen::DIRECT_IO | fopen::NOFLUSH }
    }

    fn special_handle(&self, number: u64) -> Result<Rc<SpecialHandle>, Errno> {
        match self.handles.get(number) {
            Some(Handle::Special(special)) => Ok(special),
            _ => Err(Errno::EBADF),
        }
    }

    async fn special_read(self: &Rc<Self>, handle: u64, offset: u64, size: u32) -> Result<Reply, Errno> {
        let special = self.special_handle(handle)?;
        special.check()?;
        // What a reader gets in pieces is of one moment: the one of its first piece.
        if offset == 0 {
            let text = match &special.what {
                What::Status => self.status_text().await,
                What::Waiting => self.waiting_text(),
                What::Sync => {
                    self.syncfs().await?;
                    "everything that this mount wrote is on stable storage\n".to_owned()
                }
                What::LockState(name) => self.lock_text(name).await?,
                What::Lock { name, token, .. } => self.token_text(&special, name, *token).await?,
                What::Directory(_) => return Err(Errno::EISDIR),
            };
            special.text.replace(Bytes::from(text));
        }
        let text = special.text.borrow();
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
        let end = start.saturating_add(size as usize).min(text.len());
        Ok(Reply::Data(text.slice(start..end)))
    }

    async fn status_text(&self) -> String {
        let patience = if self.meta.is_reachable() { STATUS_PATIENCE } else { UNREACHED_PATIENCE };
        let status = self.meta.cluster_status(patience).await;
        let reached = status.is_some();
        text::status(reached, status.or_else(|| self.meta.last_status()).as_ref())
    }

    fn waiting_text(&self) -> String {
        let requests = self.waiting.list(std::time::Instant::now());
        text::waiting(&requests, self.meta.unanswered_writes(), self.data.unsynced_groups())
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp { seconds: since.as_secs() as i64, nanoseconds: since.subsec_nanos() }
}
