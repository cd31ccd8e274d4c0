//! Attributes of inodes and of the whole file system.

use super::{Answer, ROOT_NODE, UNCACHED, ZabFs, expect_attr};
use crate::fuse::Reply;
use crate::fuse::operation::{SetAttr, TimeOrNow};
use crate::fuse::reply::Statfs;
use crate::meta::MetaFailure;
use protocol::meta::{self, MetaReply, ReadOp, SetTime, Space, WriteOp};
use protocol::name::NAME_MAX;
use protocol::{Attr, Errno, InodeId};
use std::rc::Rc;
use std::time::Duration;

/// Places whose space is remembered for when no server answers.
const SPACES_MAX: usize = 1024;
/// STATFS is answered from memory if no server answers in this time.
const STATFS_PATIENCE: Duration = Duration::from_secs(1);
/// Without a metadata server, the root's attributes are answered from memory after this time: a little more than
/// it takes to find out, or a quarter of it once that is known.
const ROOT_PATIENCE: Duration = Duration::from_millis(420);
/// Unit in which space is shown.
const BLOCK_SIZE: u32 = 4096;

impl ZabFs {
    pub(super) async fn getattr(self: &Rc<Self>, node: u64) -> Answer {
        Ok(Reply::Attributes(self.attr(node).await?, UNCACHED))
    }

    pub(super) async fn statx(self: &Rc<Self>, node: u64) -> Answer {
        Ok(Reply::Statx(self.attr(node).await?, UNCACHED))
    }

    async fn attr(self: &Rc<Self>, node: u64) -> Result<Attr, Errno> {
        if node == ROOT_NODE {
            return self.root_attr().await;
        }
        self.settle_inode(self.inode(node)).await;
        expect_attr(self.meta.read(ReadOp::Getattr(self.inode(node))).await?, "a getattr")
    }

    /// The kernel asks for the root's attributes before anything below `.zabfs`, which must be readable when
    /// servers are gone: then, and for this one directory only, they are those that were seen last.
    async fn root_attr(&self) -> Result<Attr, Errno> {
        let asking = self.meta.read(ReadOp::Getattr(self.config.root));
        tokio::pin!(asking);
        loop {
            let patience = if self.meta.is_reachable() { ROOT_PATIENCE } else { ROOT_PATIENCE / 4 };
            match tokio::time::timeout(patience, &mut asking).await {
                Ok(answer) => {
                    let attr = expect_attr(answer?, "a getattr")?;
                    self.root_seen.set(Some(attr));
                    return Ok(attr);
                }
                Err(_) if self.meta.is_reachable() => {}
                Err(_) => {
                    if let Some(attr) = self.root_seen.get() {
                        return Ok(attr);
                    }
                }
            }
        }
    }

    pub(super) async fn setattr(self: &Rc<Self>, node: u64, change: SetAttr) -> Answer {
        self.check_writable()?;
        let handle = change.handle.and_then(|number| self.handles.file(number).ok());
        if let Some(handle) = &handle {
            handle.check_change()?;
        }
        let size = change.size;
        let change = wanted(change);
        // What was overwritten before must not get a later time than what is set now.
        self.settle_inode(self.inode(node)).await;
        let attr = match size {
            Some(_) => self.resize(node, change).await?,
            None => {
                let op = WriteOp::Setattr { inode: self.inode(node), change };
                expect_attr(self.meta.write(op).await?, "a setattr")?
            }
        };
        Ok(Reply::Attributes(attr, UNCACHED))
    }

    /// Changes the size, and whatever else, when no write of this mount is on its way.
    pub(super) async fn resize(self: &Rc<Self>, node: u64, change: meta::SetAttr) -> Result<Attr, Errno> {
        if change.size.is_some_and(|size| size > i64::MAX as u64) {
            return Err(Errno::EFBIG);
        }
        let node = self.nodes.get(self.inode(node));
        let generation = self.meta.generation();
        let _gate = node.gate.write().await;
        let op = WriteOp::Setattr { inode: node.inode, change };
        let answer = self.meta.write_in(Some(generation), op).await;
        node.forget_view();
        expect_attr(answer?, "a setattr")
    }

    /// What is known is told at once when no server answers. A leader that no data server has reported to yet says 0:
    /// then too. Only a mount that never knew waits.
    pub(crate) async fn statfs(&self, at: InodeId) -> Answer {
        let known = self.space.borrow().get(&at).copied();
        let asking = self.meta.read(ReadOp::StatfsAt(at));
        let asked = match known {
            Some(_) => tokio::time::timeout(STATFS_PATIENCE, asking).await.ok(),
            None => Some(asking.await),
        };
        let space = match (asked, known) {
            (Some(Ok(MetaReply::Statfs(space))), Some(known)) if space.total == 0 => known,
            (Some(Ok(MetaReply::Statfs(space))), _) => space,
            (_, Some(known)) => known,
            (Some(Err(failure)), None) => return Err(failure.into()),
            (_, None) => return Err(MetaFailure::Unexpected("a statfs").into()),
        };
        let mut spaces = self.space.borrow_mut();
        if spaces.len() >= SPACES_MAX {
            spaces.clear();
        }
        spaces.insert(at, space);
        Ok(Reply::Statfs(figures(space)))
    }

    /// Whether `bytes` more would surely not fit.
    pub(super) async fn check_space(&self, inode: InodeId, bytes: u64) -> Result<(), Errno> {
        let asked = tokio::time::timeout(STATFS_PATIENCE, self.meta.read(ReadOp::StatfsAt(inode))).await;
        match asked {
            Ok(Ok(MetaReply::Statfs(space))) if space.total > 0 && bytes > space.free => Err(Errno::ENOSPC),
            _ => Ok(()),
        }
    }
}

fn wanted(change: SetAttr) -> meta::SetAttr {
    let time = |time: TimeOrNow| match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::At(at) => SetTime::At(at),
    };
    meta::SetAttr {
        mode: change.mode.map(|mode| mode & 0o7777),
        uid: change.uid,
        gid: change.gid,
        size: change.size,
        atime: change.atime.map(time),
        mtime: change.mtime.map(time),
        ctime: change.ctime.map(SetTime::At),
        kill_privileges: change.kill_suid_gid,
    }
}

fn figures(space: Space) -> Statfs {
    let block = u64::from(BLOCK_SIZE);
    // Inodes are not limited by themselves; a round large number keeps tools that compute percentages happy.
    let files = space.inodes.saturating_add(space.free / block).max(1);
    Statfs {
        blocks: space.total / block,
        blocks_free: space.free / block,
        blocks_available: space.free / block,
        files,
        files_free: files - space.inodes.min(files),
        block_size: BLOCK_SIZE,
        name_max: NAME_MAX as u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_in_blocks() {
        let shown = figures(Space { total: 1 << 20, free: 1 << 19, inodes: 10 });
        assert_eq!((shown.blocks, shown.blocks_free, shown.files, shown.files_free), (256, 128, 138, 128));
        assert_eq!(figures(Space::default()).files, 1);
    }
}
