//! Names: looking up, making, removing, moving.

use super::{Answer, ZabFs, expect_attr};
use crate::fuse::{Reply, RequestHeader};
use crate::meta::MetaFailure;
use crate::special;
use bytes::Bytes;
use protocol::meta::{MetaReply, NewNode, ReadOp, RenameMode, SYMLINK_MAX, WriteOp};
use protocol::{EntryName, Errno, FileKind};
use std::rc::Rc;

impl ZabFs {
    pub(super) async fn lookup(self: &Rc<Self>, parent: u64, name: Vec<u8>) -> Answer {
        let op = match name.as_slice() {
            b"." => ReadOp::Getattr(self.inode(parent)),
            // Nobody leaves the mount upwards.
            b".." if parent == super::ROOT_NODE => ReadOp::Getattr(self.config.root),
            b".." => ReadOp::Parent(self.inode(parent)),
            _ if self.is_special(parent, &name) => return Ok(Reply::Entry(self.special_root())),
            _ => ReadOp::Lookup { parent: self.inode(parent), name: EntryName::new(name)? },
        };
        let mut attr = expect_attr(self.meta.read(op).await?, "a lookup")?;
        if self.settle_inode(attr.inode).await {
            attr = expect_attr(self.meta.read(ReadOp::Getattr(attr.inode)).await?, "a getattr")?;
        }
        Ok(Reply::Entry(self.entry(attr)))
    }

    pub(super) async fn readlink(&self, node: u64) -> Answer {
        match self.meta.read(ReadOp::Readlink(self.inode(node))).await? {
            MetaReply::Bytes(target) => Ok(Reply::Data(Bytes::from(target))),
            _ => Err(MetaFailure::Unexpected("a readlink").into()),
        }
    }

    pub(super) async fn symlink(
        self: &Rc<Self>,
        request: RequestHeader,
        name: Vec<u8>,
        target: Vec<u8>,
    ) -> Answer {
        if target.len() > SYMLINK_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        let node = NewNode { target, ..new_node(request, FileKind::Symlink, 0o777) };
        self.make(request.node, name, node).await
    }

    pub(super) async fn mknod(
        self: &Rc<Self>,
        request: RequestHeader,
        name: Vec<u8>,
        mode: u32,
        rdev: u32,
    ) -> Answer {
        let kind = match FileKind::from_mode(mode) {
            None if mode & libc::S_IFMT == 0 => FileKind::File,
            None | Some(FileKind::Directory | FileKind::Symlink) => return Err(Errno::EINVAL),
            Some(kind) => kind,
        };
        let node = NewNode { rdev, ..new_node(request, kind, mode) };
        self.make(request.node, name, node).await
    }

    pub(super) async fn mkdir(self: &Rc<Self>, request: RequestHeader, name: Vec<u8>, mode: u32) -> Answer {
        self.make(request.node, name, new_node(request, FileKind::Directory, mode)).await
    }

    async fn make(self: &Rc<Self>, parent: u64, name: Vec<u8>, node: NewNode) -> Answer {
        let name = self.new_name(parent, name)?;
        let op = WriteOp::Create { parent: self.inode(parent), name, node, handle: None };
        let attr = expect_attr(self.meta.write(op).await?, "a creation")?;
        Ok(Reply::Entry(self.entry(attr)))
    }

    pub(super) async fn link(self: &Rc<Self>, source: u64, parent: u64, name: Vec<u8>) -> Answer {
        if special::is_local(source) {
            return Err(Errno::EPERM);
        }
        let name = self.new_name(parent, name)?;
        let op = WriteOp::Link { inode: self.inode(source), parent: self.inode(parent), name };
        let attr = expect_attr(self.meta.write(op).await?, "a link")?;
        Ok(Reply::Entry(self.entry(attr)))
    }

    pub(super) async fn unlink(self: &Rc<Self>, parent: u64, name: Vec<u8>) -> Answer {
        let name = self.new_name(parent, name)?;
        self.meta.write(WriteOp::Unlink { parent: self.inode(parent), name }).await?;
        Ok(Reply::Done)
    }

    pub(super) async fn rmdir(self: &Rc<Self>, parent: u64, name: Vec<u8>) -> Answer {
        let name = self.new_name(parent, name)?;
        self.meta.write(WriteOp::Rmdir { parent: self.inode(parent), name }).await?;
        Ok(Reply::Done)
    }

    pub(super) async fn rename(
        self: &Rc<Self>,
        parent: u64,
        name: Vec<u8>,
        new_parent: u64,
        new_name: Vec<u8>,
        flags: u32,
    ) -> Answer {
        let mode = match flags {
            0 => RenameMode::Replace,
            libc::RENAME_NOREPLACE => RenameMode::NoReplace,
            libc::RENAME_EXCHANGE => RenameMode::Exchange,
            _ => return Err(Errno::EINVAL),
        };
        if special::is_local(new_parent) {
            return Err(Errno::EPERM);
        }
        let op = WriteOp::Rename {
            name: self.new_name(parent, name)?,
            new_name: self.new_name(new_parent, new_name)?,
            parent: self.inode(parent),
            new_parent: self.inode(new_parent),
            mode,
        };
        self.meta.write(op).await?;
        Ok(Reply::Done)
    }

    /// A name that is to be made, removed or moved.
    pub(super) fn new_name(&self, parent: u64, name: Vec<u8>) -> Result<EntryName, Errno> {
        self.check_writable()?;
        if self.is_special(parent, &name) {
            return Err(Errno::EPERM);
        }
        Ok(EntryName::new(name)?)
    }
}

/// A new inode that belongs to the caller.
pub(super) fn new_node(request: RequestHeader, kind: FileKind, mode: u32) -> NewNode {
    NewNode { kind, mode: mode & 0o7777, uid: request.uid, gid: request.gid, rdev: 0, target: vec![] }
}
