//! Answers to what changes nothing, from committed state.

use super::key;
use super::layers::{StoreError, View};
use super::prep::data::view_of;
use super::prep::{conflict, load};
use super::record::{Counters, Dentry, Inode, LockTable};
use protocol::map::Pool;
use protocol::meta::{DirEntry, LockEntry, LockHolderInfo, MetaReply, POOL_XATTR, ReadOp, Space};
use protocol::{Attr, EntryName, Errno, FileKind, InodeId, MapEpoch, SessionId, Timestamp};
use zab::mutant;

/// Most entries of one `Readdir`.
const READDIR_MAX: usize = 1024;
/// Most names of one `NamedLocks`.
const NAMED_LOCKS_MAX: usize = 10_000;
/// Deepest path that `Path` follows.
const PATH_DEPTH_MAX: usize = 4096;

/// Why a read has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The client's answer.
    #[error("{0}")]
    Errno(#[from] Errno),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another session may have overwritten the file and not committed the times.
    #[error("{holder} has deferred the times of {inode}")]
    Deferred {
        /// Who.
        holder: SessionId,
        /// Of which file.
        inode: InodeId,
        /// The answer without what was deferred.
        committed: Box<MetaReply>,
    },
}

type Result<T> = std::result::Result<T, ReadError>;

/// Answers `op` for `session`. `space` is what data servers last reported.
pub fn read(state: &dyn View, session: SessionId, op: &ReadOp, space: Space) -> Result<MetaReply> {
    match op {
        ReadOp::Lookup { parent, name } => lookup(state, session, *parent, name),
        ReadOp::Getattr(id) => {
            let inode = inode(state, *id)?;
            settled(&inode, session, MetaReply::Attr(inode.attr))
        }
        ReadOp::View { inode, known } => view(state, *inode, *known),
        ReadOp::Readlink(id) => readlink(state, *id),
        ReadOp::Readdir { inode, cookie, limit } => readdir(state, *inode, *cookie, *limit),
        ReadOp::Parent(id) => Ok(MetaReply::Entry(inode(state, inode(state, *id)?.parent)?.attr)),
        ReadOp::Getxattr { inode: id, name } => {
            let inode = inode(state, *id)?;
            if name == POOL_XATTR {
                return pool_name(state, &inode);
            }
            Ok(MetaReply::Bytes(state.get(&key::xattr(*id, name))?.ok_or(Errno::ENODATA)?.to_vec()))
        }
        ReadOp::Listxattr(id) => {
            inode(state, *id)?;
            let prefix = key::prefix1(key::XATTR, id.0);
            let keys = state.scan(&prefix, &key::prefix_end(&prefix), usize::MAX)?;
            Ok(MetaReply::Names(keys.into_iter().map(|(k, _)| k[prefix.len()..].to_vec()).collect()))
        }
        ReadOp::Statfs | ReadOp::StatfsAt(_) => {
            let counters: Counters = load(state, &key::system("counters"))?.unwrap_or_default();
            Ok(MetaReply::Statfs(Space { inodes: counters.inodes, ..space }))
        }
        ReadOp::TestLock { resource, request } => {
            let table: LockTable = load(state, &key::lock(resource))?.unwrap_or_default();
            let wish = LockEntry {
                session,
                request: *request,
                holder: LockHolderInfo::default(),
                token: 0,
                waiter: 0,
                since: Timestamp::default(),
            };
            Ok(MetaReply::Conflict(conflict(&table, &wish).cloned()))
        }
        ReadOp::LockState(resource) => {
            let table: LockTable = load(state, &key::lock(resource))?.unwrap_or_default();
            Ok(MetaReply::LockState { holders: table.holders, waiters: table.waiters })
        }
        ReadOp::NamedLocks => {
            let prefix = [key::LOCK, key::LOCK_NAMED];
            let keys = state.scan(&prefix, &key::prefix_end(&prefix), NAMED_LOCKS_MAX)?;
            Ok(MetaReply::Names(keys.into_iter().map(|(k, _)| k[prefix.len()..].to_vec()).collect()))
        }
        ReadOp::WaitState { resource, waiter } => {
            let table: LockTable = load(state, &key::lock(resource))?.unwrap_or_default();
            if let Some(held) = table.holders.iter().find(|e| e.session == session && e.waiter == *waiter) {
                let fence: MapEpoch = load(state, &key::system("fence"))?.unwrap_or_default();
                return Ok(MetaReply::Granted { token: held.token, fence });
            }
            let waits = table.waiters.iter().any(|e| e.session == session && e.token == *waiter);
            if waits { Ok(MetaReply::Queued { waiter: *waiter }) } else { Err(Errno::ENOENT.into()) }
        }
        ReadOp::Path(id) => path(state, *id),
    }
}

fn inode(state: &dyn View, id: InodeId) -> Result<Inode> {
    Ok(load(state, &key::inode(id))?.ok_or(Errno::ENOENT)?)
}

/// Files and directories name a pool, nothing else has bytes in one.
fn pool_name(state: &dyn View, inode: &Inode) -> Result<MetaReply> {
    let pool: Option<Pool> = load(state, &key::map_pool(inode.pool))?;
    match (inode.attr.kind, pool) {
        (FileKind::File | FileKind::Directory, Some(pool)) => Ok(MetaReply::Bytes(pool.name.into_bytes())),
        _ => Err(Errno::ENODATA.into()),
    }
}

fn attr(state: &dyn View, id: InodeId) -> Result<Attr> {
    Ok(inode(state, id)?.attr)
}

/// Its own session commits what it deferred before it asks.
fn settled(inode: &Inode, session: SessionId, reply: MetaReply) -> Result<MetaReply> {
    match inode.deferred_by {
        Some(holder) if holder != session && !mutant!("deferred-times-stay-hidden") => {
            Err(ReadError::Deferred { holder, inode: inode.attr.inode, committed: Box::new(reply) })
        }
        _ => Ok(reply),
    }
}

fn lookup(state: &dyn View, session: SessionId, parent: InodeId, name: &EntryName) -> Result<MetaReply> {
    let directory = inode(state, parent)?;
    if !directory.is_directory() {
        return Err(Errno::ENOTDIR.into());
    }
    let dentry: Dentry = load(state, &key::dentry(parent, name))?.ok_or(Errno::ENOENT)?;
    let inode = inode(state, dentry.inode)?;
    settled(&inode, session, MetaReply::Entry(inode.attr))
}

fn view(state: &dyn View, id: InodeId, known: u64) -> Result<MetaReply> {
    let current = inode(state, id)?;
    if known != 0 && current.data_revision == known {
        return Ok(MetaReply::Unchanged);
    }
    Ok(MetaReply::View(view_of(state, id)?.ok_or(Errno::ENOENT)?))
}

fn readlink(state: &dyn View, id: InodeId) -> Result<MetaReply> {
    if inode(state, id)?.attr.kind != FileKind::Symlink {
        return Err(Errno::EINVAL.into());
    }
    Ok(MetaReply::Bytes(state.get(&key::inline(id))?.unwrap_or_default().to_vec()))
}

fn readdir(state: &dyn View, id: InodeId, cookie: u64, limit: u32) -> Result<MetaReply> {
    let directory = inode(state, id)?;
    if !directory.is_directory() {
        return Err(Errno::ENOTDIR.into());
    }
    let limit = (limit as usize).clamp(1, READDIR_MAX);
    let from = key::order(id, cookie.saturating_add(1));
    let end = key::prefix_end(&key::prefix1(key::ORDER, id.0));
    let rows = state.scan(&from, &end, limit)?;
    let complete = rows.len() < limit;
    let mut entries = Vec::with_capacity(rows.len());
    for (row, name) in rows {
        let name = EntryName::new(name.to_vec()).map_err(|_| Errno::EIO)?;
        let dentry: Dentry = load(state, &key::dentry(id, &name))?.ok_or(Errno::EIO)?;
        let cookie = key::number_at(&row, 9).ok_or(Errno::EIO)?;
        entries.push(DirEntry { name, cookie, attr: attr(state, dentry.inode)? });
    }
    Ok(MetaReply::Entries { entries, end: complete })
}

fn path(state: &dyn View, mut id: InodeId) -> Result<MetaReply> {
    let mut names: Vec<Vec<u8>> = Vec::new();
    while id != InodeId::ROOT && names.len() < PATH_DEPTH_MAX {
        let prefix = key::prefix1(key::LINK, id.0);
        let links = state.scan(&prefix, &key::prefix_end(&prefix), 1)?;
        let (parent, name) = links.first().and_then(|(k, _)| key::parse_link(k)).ok_or(Errno::ENOENT)?;
        names.push(name.as_bytes().to_vec());
        id = parent;
    }
    names.reverse();
    Ok(MetaReply::Bytes([b"/".as_slice(), &names.join(&b'/')].concat()))
}
