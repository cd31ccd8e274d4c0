//! Operations on one inode: attributes and extended attributes.

use super::{Prep, Result};
use crate::state::key;
use crate::state::layers::View;
use crate::state::record::Inode;
use protocol::meta::{MetaReply, POOL_XATTR, SetAttr, SetTime, XATTR_VALUE_MAX, XattrMode};
use protocol::{Errno, FileKind, InodeId, SessionId, Timestamp};

/// Most bytes of all names of one inode's extended attributes: what listxattr(2) can return.
const XATTR_NAMES_MAX: usize = 65_536;
/// Longest name of an extended attribute, as in the kernel.
const XATTR_NAME_MAX: usize = 255;

impl Prep<'_> {
    pub(super) fn setattr(&mut self, session: SessionId, id: InodeId, change: &SetAttr) -> Result<MetaReply> {
        let mut inode = self.inode(id)?;
        check_times(change)?;
        self.check_deferral(session, &inode)?;
        if let Some(size) = change.size {
            self.resize(session, &mut inode, size)?;
        }
        if change.kill_privileges {
            kill_privileges(&mut inode);
        }
        let attr = &mut inode.attr;
        if let Some(mode) = change.mode {
            attr.mode = mode & 0o7777;
        }
        attr.uid = change.uid.unwrap_or(attr.uid);
        attr.gid = change.gid.unwrap_or(attr.gid);
        attr.atime = change.atime.map_or(attr.atime, |t| self.at(t));
        attr.mtime = change.mtime.map_or(attr.mtime, |t| self.at(t));
        attr.ctime = change.ctime.map_or(self.time, |t| self.at(t));
        self.put_inode(&inode);
        Ok(MetaReply::Attr(inode.attr))
    }

    fn at(&self, time: SetTime) -> Timestamp {
        match time {
            SetTime::Now => self.time,
            SetTime::At(time) => time,
        }
    }

    pub(super) fn setxattr(
        &mut self,
        inode: InodeId,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
    ) -> Result<MetaReply> {
        if name == POOL_XATTR {
            return match mode {
                XattrMode::Create => Err(Errno::EEXIST.into()),
                XattrMode::Either | XattrMode::Replace => self.choose_pool(inode, Some(value)),
            };
        }
        check_xattr_name(name)?;
        if value.len() > XATTR_VALUE_MAX {
            return Err(Errno::E2BIG.into());
        }
        let mut inode = self.inode(inode)?;
        let key = key::xattr(inode.attr.inode, name);
        let exists = self.draft.get(&key)?.is_some();
        match mode {
            XattrMode::Create if exists => return Err(Errno::EEXIST.into()),
            XattrMode::Replace if !exists => return Err(Errno::ENODATA.into()),
            _ => {}
        }
        if !exists {
            let prefix = key::prefix1(key::XATTR, inode.attr.inode.0);
            let names = self.draft.scan(&prefix, &key::prefix_end(&prefix), usize::MAX)?;
            let bytes: usize = names.iter().map(|(k, _)| k.len() - prefix.len() + 1).sum();
            if bytes + name.len() + 1 > XATTR_NAMES_MAX {
                return Err(Errno::ENOSPC.into());
            }
        }
        self.draft.put(key, value.to_vec().into());
        inode.attr.ctime = self.time;
        self.put_inode(&inode);
        Ok(MetaReply::Done)
    }

    pub(super) fn removexattr(&mut self, inode: InodeId, name: &[u8]) -> Result<MetaReply> {
        if name == POOL_XATTR {
            return self.choose_pool(inode, None);
        }
        check_xattr_name(name)?;
        let mut inode = self.inode(inode)?;
        let key = key::xattr(inode.attr.inode, name);
        if self.draft.get(&key)?.is_none() {
            return Err(Errno::ENODATA.into());
        }
        self.draft.delete(key);
        inode.attr.ctime = self.time;
        self.put_inode(&inode);
        Ok(MetaReply::Done)
    }
}

/// utimensat(2): nanoseconds are below a second.
fn check_times(change: &SetAttr) -> Result<()> {
    let is_legal = |time: &Option<SetTime>| match time {
        Some(SetTime::At(time)) => time.nanoseconds < 1_000_000_000,
        Some(SetTime::Now) | None => true,
    };
    match [change.atime, change.mtime, change.ctime].iter().all(is_legal) {
        true => Ok(()),
        false => Err(Errno::EINVAL.into()),
    }
}

/// A write or a change of owner takes setuid, and setgid where it means "run as group".
pub(super) fn kill_privileges(inode: &mut Inode) {
    if inode.attr.kind == FileKind::Directory {
        return;
    }
    inode.attr.mode &= !libc::S_ISUID;
    if inode.attr.mode & libc::S_IXGRP != 0 {
        inode.attr.mode &= !libc::S_ISGID;
    }
}

/// The namespaces of xattr(7) without ACLs, which have their own semantics.
fn check_xattr_name(name: &[u8]) -> Result<()> {
    let mut known = [&b"user."[..], b"trusted.", b"security."].into_iter();
    let Some(prefix) = known.find(|prefix| name.starts_with(prefix)) else {
        return Err(Errno::EOPNOTSUPP.into());
    };
    if name.len() == prefix.len() {
        return Err(Errno::EINVAL.into());
    }
    if name.len() > XATTR_NAME_MAX || name.contains(&0) {
        return Err(Errno::ERANGE.into());
    }
    Ok(())
}
