//! Prep: a request becomes a transaction, or an error. Runs on the leader only, against the speculative state.
//!
//! One file per family of operations. Each is a method of [`Prep`] that reads through the draft, checks, and
//! leaves its changes in the draft; the first error abandons the draft, so no operation happens by half.

pub(crate) mod data;
mod deferral;
pub(crate) mod lock;
mod map;
pub mod mend;
mod name;
mod node;
pub(crate) mod pool;
mod restore;
mod session;
mod system;

pub use lock::conflict;
pub use map::{PgUpdate, Registration};
pub use session::NewSession;

use super::key;
use super::layers::{Draft, StoreError, View};
use super::open::OpenTable;
use super::record::{Counters, Inode, encode};
use super::txn::Txn;
use protocol::meta::{MetaError, MetaReply, Push, WriteOp};
use protocol::{EntryName, Errno, InodeId, MapEpoch, PoolId, SessionId, Timestamp};
use serde::de::DeserializeOwned;

/// The pool that new files go to.
pub const DEFAULT_POOL: PoolId = PoolId(1);
/// Name at the root that every mount reserves.
pub const RESERVED_NAME: &[u8] = b".zabfs";

/// Why a request did not become a transaction.
#[derive(Debug, thiserror::Error)]
pub enum PrepError {
    /// The client's answer.
    #[error(transparent)]
    Refused(#[from] MetaError),
    /// The store failed: the server has to leave its role.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<Errno> for PrepError {
    fn from(errno: Errno) -> Self {
        Self::Refused(MetaError::Errno(errno))
    }
}

type Result<T> = std::result::Result<T, PrepError>;

/// One request on its way to a transaction.
pub struct Prep<'a> {
    draft: Draft<'a>,
    open: &'a OpenTable,
    /// Number that the transaction will have.
    revision: u64,
    /// Time that it will have.
    time: Timestamp,
    pushes: Vec<(SessionId, Push)>,
    cookies: u64,
}

impl<'a> Prep<'a> {
    /// Starts transaction number `revision` at `time` on top of `base`.
    pub fn new(base: &'a dyn View, open: &'a OpenTable, revision: u64, time: Timestamp) -> Self {
        Self { draft: Draft::new(base), open, revision, time, pushes: Vec::new(), cookies: 0 }
    }

    /// Executes a client's change. Pushes that must go out even though the request is refused (recalls) are
    /// left in `self`: see [`Self::into_pushes`].
    pub fn execute(&mut self, session: SessionId, op: &WriteOp) -> Result<MetaReply> {
        if !self.is_open(session)? {
            return Err(MetaError::SessionExpired.into());
        }
        match op {
            WriteOp::Create { parent, name, node, handle } => {
                self.create(*parent, name, node, handle.is_some())
            }
            WriteOp::Tmpfile { parent, node, .. } => self.tmpfile(session, *parent, node),
            WriteOp::Link { inode, parent, name } => self.link(*inode, *parent, name),
            WriteOp::Unlink { parent, name } => self.unlink(*parent, name),
            WriteOp::Rmdir { parent, name } => self.rmdir(*parent, name),
            WriteOp::Rename { parent, name, new_parent, new_name, mode } => {
                self.rename((*parent, name), (*new_parent, new_name), *mode)
            }
            WriteOp::Setattr { inode, change } => self.setattr(session, *inode, change),
            WriteOp::Setxattr { inode, name, value, mode } => self.setxattr(*inode, name, value, *mode),
            WriteOp::Removexattr { inode, name } => self.removexattr(*inode, name),
            WriteOp::WriteInline { inode, offset, data, kill_privileges } => {
                self.write_inline(session, *inode, *offset, data, *kill_privileges)
            }
            WriteOp::Hold(inode) => self.hold(session, *inode),
            WriteOp::ReleaseHold { inode, dirty: false } => self.release_hold(session, *inode),
            WriteOp::ReleaseHold { inode, dirty: true } => {
                self.abandon_hold(session, *inode)?;
                Ok(MetaReply::Done)
            }
            WriteOp::CommitWrite { inode, truncate_seq, end, allocated, kill_privileges } => {
                self.commit_write(session, *inode, *truncate_seq, *end, *allocated, *kill_privileges)
            }
            WriteOp::Lock { resource, request, wait, holder } => {
                self.lock(session, resource, request, *wait, holder)
            }
            WriteOp::Unlock { resource, owner, start, end } => {
                self.unlock(session, resource, *owner, *start, *end)
            }
            WriteOp::CancelWait { resource, waiter } => self.cancel_wait(session, resource, *waiter),
            WriteOp::BreakLock { name } => self.break_lock(name),
            WriteOp::Defer(inode) => self.defer(session, *inode),
            WriteOp::Settle { inode, changed, done } => self.settle(session, *inode, *changed, *done),
        }
    }

    /// Records the reply for retries, and forgets the replies in `finished`.
    pub fn remember_reply(
        &mut self,
        session: SessionId,
        sequence: u64,
        reply: &MetaReply,
        finished: impl IntoIterator<Item = u64>,
    ) {
        self.forget_replies(session, finished);
        self.draft.put(key::reply(session, sequence), encode(reply));
    }

    /// Forgets replies that the client has seen.
    pub fn forget_replies(&mut self, session: SessionId, finished: impl IntoIterator<Item = u64>) {
        for old in finished {
            self.draft.delete(key::reply(session, old));
        }
    }

    /// The finished transaction. Whatever touched the map raises its epoch.
    pub fn finish(mut self) -> Result<Txn> {
        let touches_map = |k: &key::Key| matches!(k.first(), Some(&key::MAP | &key::PG));
        if self.draft.writes().keys().any(touches_map) {
            let epoch = self.map_epoch()?;
            self.draft.put(key::system("map_epoch"), encode(&MapEpoch(epoch.0 + 1)));
        }
        Ok(Txn {
            revision: self.revision,
            time: self.time,
            writes: self.draft.into_writes(),
            pushes: self.pushes,
        })
    }

    /// What a refused request still has to tell others.
    pub fn into_pushes(self) -> Vec<(SessionId, Push)> {
        self.pushes
    }

    fn load<T: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>> {
        Ok(load(&self.draft, key)?)
    }

    fn find_inode(&self, inode: InodeId) -> Result<Option<Inode>> {
        self.load(&key::inode(inode))
    }

    /// The inode, or ENOENT if it is gone.
    fn inode(&self, inode: InodeId) -> Result<Inode> {
        Ok(self.find_inode(inode)?.ok_or(Errno::ENOENT)?)
    }

    /// The directory, which must still have a name.
    fn directory(&self, inode: InodeId) -> Result<Inode> {
        let directory = self.inode(inode)?;
        if !directory.is_directory() {
            return Err(Errno::ENOTDIR.into());
        }
        if directory.attr.nlink == 0 {
            return Err(Errno::ENOENT.into());
        }
        Ok(directory)
    }

    fn put_inode(&mut self, inode: &Inode) {
        self.draft.put(key::inode(inode.attr.inode), encode(inode));
    }

    fn counters(&self) -> Result<Counters> {
        Ok(self.load(&key::system("counters"))?.unwrap_or_default())
    }

    fn put_counters(&mut self, counters: &Counters) {
        self.draft.put(key::system("counters"), encode(counters));
    }

    fn map_epoch(&self) -> Result<MapEpoch> {
        Ok(self.load(&key::system("map_epoch"))?.unwrap_or_default())
    }

    /// A directory position that no entry ever had.
    fn next_cookie(&mut self) -> u64 {
        self.cookies += 1;
        assert!(self.cookies < 8, "one operation makes at most two entries");
        self.revision << 3 | self.cookies
    }

    /// Names that mounts reserve cannot be made, moved or removed.
    fn check_name(&self, parent: InodeId, name: &EntryName) -> Result<()> {
        if parent == InodeId::ROOT && name.as_bytes() == RESERVED_NAME {
            return Err(Errno::EPERM.into());
        }
        Ok(())
    }
}

/// Reads and decodes a value.
pub fn load<T: DeserializeOwned>(view: &dyn View, key: &[u8]) -> std::result::Result<Option<T>, StoreError> {
    match view.get(key)? {
        None => Ok(None),
        Some(bytes) => postcard::from_bytes(&bytes)
            .map(Some)
            .map_err(|e| StoreError(format!("the record under key {key:02x?} does not decode: {e}"))),
    }
}
