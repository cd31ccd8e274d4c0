//! Operations on names: create, link, unlink, rmdir, rename.

use super::{DEFAULT_POOL, Prep, PrepError, Result};
use crate::state::key;
use crate::state::layers::View;
use crate::state::record::{Dentry, Inode, Purge, encode};
use protocol::meta::{MetaReply, NewNode, RenameMode, SYMLINK_MAX};
use protocol::{Attr, EntryName, Errno, FileKind, InodeId, SessionId, Truncation};

/// Most names of one file, as on ext4.
const LINKS_MAX: u32 = 65_000;

impl Prep<'_> {
    pub(super) fn create(
        &mut self,
        parent: InodeId,
        name: &EntryName,
        node: &NewNode,
        opened: bool,
    ) -> Result<MetaReply> {
        self.check_name(parent, name)?;
        let mut directory = self.directory(parent)?;
        if self.dentry(parent, name)?.is_some() {
            return Err(Errno::EEXIST.into());
        }
        let inode = self.new_inode(&directory, node)?;
        if inode.is_directory() {
            add_link(&mut directory)?;
        }
        let cookie = self.next_cookie();
        self.add_entry(&mut directory, name, &inode, cookie);
        self.put_inode(&directory);
        self.put_inode(&inode);
        if opened { Ok(MetaReply::Opened(self.view(&inode)?)) } else { Ok(MetaReply::Entry(inode.attr)) }
    }

    pub(super) fn tmpfile(
        &mut self,
        session: SessionId,
        parent: InodeId,
        node: &NewNode,
    ) -> Result<MetaReply> {
        let directory = self.directory(parent)?;
        if node.kind != FileKind::File {
            return Err(Errno::EINVAL.into());
        }
        let mut inode = self.new_inode(&directory, node)?;
        inode.attr.nlink = 0;
        inode.linkable = true;
        self.pin(session, inode.attr.inode);
        self.put_inode(&inode);
        Ok(MetaReply::Opened(self.view(&inode)?))
    }

    pub(super) fn link(&mut self, inode: InodeId, parent: InodeId, name: &EntryName) -> Result<MetaReply> {
        self.check_name(parent, name)?;
        let mut directory = self.directory(parent)?;
        let mut inode = self.inode(inode)?;
        if inode.is_directory() {
            return Err(Errno::EPERM.into());
        }
        if self.dentry(parent, name)?.is_some() {
            return Err(Errno::EEXIST.into());
        }
        // linkat(2): a file that lost its last name gets no other; O_TMPFILE may get its first.
        if inode.attr.nlink == 0 && !inode.linkable {
            return Err(Errno::ENOENT.into());
        }
        if inode.attr.nlink >= LINKS_MAX {
            return Err(Errno::EMLINK.into());
        }
        inode.attr.nlink += 1;
        inode.attr.ctime = self.time;
        inode.linkable = false;
        let cookie = self.next_cookie();
        self.add_entry(&mut directory, name, &inode, cookie);
        self.put_inode(&directory);
        self.put_inode(&inode);
        Ok(MetaReply::Entry(inode.attr))
    }

    pub(super) fn unlink(&mut self, parent: InodeId, name: &EntryName) -> Result<MetaReply> {
        self.check_name(parent, name)?;
        let mut directory = self.directory(parent)?;
        let dentry = self.dentry(parent, name)?.ok_or(Errno::ENOENT)?;
        if dentry.kind == FileKind::Directory {
            return Err(Errno::EISDIR.into());
        }
        self.remove_entry(&mut directory, name, dentry);
        self.put_inode(&directory);
        self.drop_link(dentry.inode)?;
        Ok(MetaReply::Done)
    }

    pub(super) fn rmdir(&mut self, parent: InodeId, name: &EntryName) -> Result<MetaReply> {
        self.check_name(parent, name)?;
        let mut directory = self.directory(parent)?;
        let dentry = self.dentry(parent, name)?.ok_or(Errno::ENOENT)?;
        if dentry.kind != FileKind::Directory {
            return Err(Errno::ENOTDIR.into());
        }
        self.check_empty(dentry.inode)?;
        self.remove_entry(&mut directory, name, dentry);
        directory.attr.nlink -= 1;
        self.put_inode(&directory);
        self.drop_directory(dentry.inode)?;
        Ok(MetaReply::Done)
    }

    pub(super) fn rename(
        &mut self,
        (parent, name): (InodeId, &EntryName),
        (new_parent, new_name): (InodeId, &EntryName),
        mode: RenameMode,
    ) -> Result<MetaReply> {
        self.check_name(parent, name)?;
        self.check_name(new_parent, new_name)?;
        self.directory(parent)?;
        self.directory(new_parent)?;
        let source = self.dentry(parent, name)?.ok_or(Errno::ENOENT)?;
        let target = self.dentry(new_parent, new_name)?;
        if mode == RenameMode::Exchange {
            let target = target.ok_or(Errno::ENOENT)?;
            return self.exchange((parent, name, source), (new_parent, new_name, target));
        }
        if target.is_some() && mode == RenameMode::NoReplace {
            return Err(Errno::EEXIST.into());
        }
        if source.kind == FileKind::Directory {
            self.check_not_below(new_parent, source.inode)?;
        }
        if let Some(target) = target {
            // Two names of one file: POSIX says that nothing happens.
            if target.inode == source.inode {
                return Ok(MetaReply::Done);
            }
            self.replace_target(new_parent, new_name, source, target)?;
        }
        // A name that is replaced keeps its place, or a listing under way would show it twice.
        let cookie = target.map_or_else(|| self.next_cookie(), |target| target.cookie);
        self.move_entry((parent, name, source), (new_parent, new_name, cookie))?;
        Ok(MetaReply::Done)
    }

    fn replace_target(
        &mut self,
        parent: InodeId,
        name: &EntryName,
        source: Dentry,
        target: Dentry,
    ) -> Result<()> {
        let mut directory = self.directory(parent)?;
        match (source.kind == FileKind::Directory, target.kind == FileKind::Directory) {
            (true, false) => Err(Errno::ENOTDIR.into()),
            (false, true) => Err(Errno::EISDIR.into()),
            (true, true) => {
                self.check_empty(target.inode)?;
                self.remove_entry(&mut directory, name, target);
                directory.attr.nlink -= 1;
                self.put_inode(&directory);
                self.drop_directory(target.inode)
            }
            (false, false) => {
                self.remove_entry(&mut directory, name, target);
                self.put_inode(&directory);
                self.drop_link(target.inode)
            }
        }
    }

    /// Moves one entry; the target name is free.
    fn move_entry(
        &mut self,
        (parent, name, dentry): (InodeId, &EntryName, Dentry),
        (new_parent, new_name, cookie): (InodeId, &EntryName, u64),
    ) -> Result<()> {
        let mut inode = self.inode(dentry.inode)?;
        let mut from = self.directory(parent)?;
        self.remove_entry(&mut from, name, dentry);
        if inode.is_directory() && parent != new_parent {
            from.attr.nlink -= 1;
        }
        self.put_inode(&from);
        let mut to = self.directory(new_parent)?;
        if inode.is_directory() && parent != new_parent {
            add_link(&mut to)?;
        }
        inode.attr.ctime = self.time;
        if inode.is_directory() {
            inode.parent = new_parent;
        }
        self.add_entry(&mut to, new_name, &inode, cookie);
        self.put_inode(&to);
        self.put_inode(&inode);
        Ok(())
    }

    fn exchange(
        &mut self,
        (parent, name, source): (InodeId, &EntryName, Dentry),
        (new_parent, new_name, target): (InodeId, &EntryName, Dentry),
    ) -> Result<MetaReply> {
        if source.inode == target.inode {
            return Ok(MetaReply::Done);
        }
        if source.kind == FileKind::Directory {
            self.check_not_below(new_parent, source.inode)?;
        }
        if target.kind == FileKind::Directory {
            self.check_not_below(parent, target.inode)?;
        }
        // Take the target out of the way without dropping its link, move the source, put the target back.
        let mut to = self.directory(new_parent)?;
        self.remove_entry(&mut to, new_name, target);
        self.put_inode(&to);
        self.move_entry((parent, name, source), (new_parent, new_name, target.cookie))?;
        let mut moved = self.inode(target.inode)?;
        moved.attr.ctime = self.time;
        let is_directory = moved.is_directory();
        if is_directory && parent != new_parent {
            let mut to = self.directory(new_parent)?;
            to.attr.nlink -= 1;
            self.put_inode(&to);
        }
        let mut from = self.directory(parent)?;
        if is_directory {
            moved.parent = parent;
            if parent != new_parent {
                add_link(&mut from)?;
            }
        }
        self.add_entry(&mut from, name, &moved, source.cookie);
        self.put_inode(&from);
        self.put_inode(&moved);
        Ok(MetaReply::Done)
    }

    fn dentry(&self, parent: InodeId, name: &EntryName) -> Result<Option<Dentry>> {
        self.load(&key::dentry(parent, name))
    }

    fn new_inode(&mut self, directory: &Inode, node: &NewNode) -> Result<Inode> {
        check_target(node)?;
        let is_device = matches!(node.kind, FileKind::CharDevice | FileKind::BlockDevice);
        let mut counters = self.counters()?;
        let number = InodeId(counters.next_inode);
        counters.next_inode += 1;
        counters.inodes += 1;
        self.put_counters(&counters);
        let (mut mode, mut gid) = (node.mode & 0o7777, node.gid);
        // mkdir(2): below a setgid directory the group is inherited, and by directories the bit too.
        if directory.attr.mode & libc::S_ISGID != 0 {
            gid = directory.attr.gid;
            if node.kind == FileKind::Directory {
                mode |= libc::S_ISGID;
            }
        }
        if !node.target.is_empty() {
            self.draft.put(key::inline(number), node.target.clone().into());
        }
        let attr = Attr {
            inode: number,
            kind: node.kind,
            mode,
            nlink: if node.kind == FileKind::Directory { 2 } else { 1 },
            uid: node.uid,
            gid,
            rdev: if is_device { node.rdev } else { 0 },
            size: node.target.len() as u64,
            blocks: 0,
            atime: self.time,
            mtime: self.time,
            ctime: self.time,
            btime: self.time,
        };
        let mut inode = self.inode_record(attr, directory.attr.inode);
        if matches!(node.kind, FileKind::File | FileKind::Directory) {
            inode.pool = directory.pool;
        }
        if node.kind == FileKind::File {
            if attr.size > u64::from(self.inline_limit(&inode)?) {
                return Err(Errno::EFBIG.into());
            }
            inode.set_allocated(attr.size);
        }
        self.count_in_pool(&inode, true)?;
        Ok(inode)
    }

    pub(super) fn inode_record(&self, attr: Attr, parent: InodeId) -> Inode {
        Inode {
            attr,
            parent,
            allocated: 0,
            chunked: false,
            pool: DEFAULT_POOL,
            chunks_high: 0,
            strays: false,
            linkable: false,
            truncations: Vec::new(),
            data_revision: self.revision,
            created: self.revision,
            modified: self.revision,
            children: self.revision,
            data_version: 0,
            children_version: 0,
            acl_version: 0,
            ephemeral_owner: None,
            deferred_by: None,
        }
    }

    pub(super) fn add_entry(&mut self, directory: &mut Inode, name: &EntryName, inode: &Inode, cookie: u64) {
        let parent = directory.attr.inode;
        let dentry = Dentry { inode: inode.attr.inode, kind: inode.attr.kind, cookie };
        self.draft.put(key::dentry(parent, name), encode(&dentry));
        self.draft.put(key::order(parent, cookie), name.as_bytes().to_vec().into());
        self.draft.put(key::link(inode.attr.inode, parent, name), bytes::Bytes::new());
        directory.attr.size += 1;
        self.touch_directory(directory);
    }

    fn remove_entry(&mut self, directory: &mut Inode, name: &EntryName, dentry: Dentry) {
        let parent = directory.attr.inode;
        self.draft.delete(key::dentry(parent, name));
        self.draft.delete(key::order(parent, dentry.cookie));
        self.draft.delete(key::link(dentry.inode, parent, name));
        directory.attr.size = directory.attr.size.saturating_sub(1);
        self.touch_directory(directory);
    }

    fn touch_directory(&self, directory: &mut Inode) {
        directory.attr.mtime = self.time;
        directory.attr.ctime = self.time;
        directory.children = self.revision;
        directory.children_version += 1;
    }

    fn check_empty(&self, directory: InodeId) -> Result<()> {
        let prefix = key::prefix1(key::ORDER, directory.0);
        match self.draft.scan(&prefix, &key::prefix_end(&prefix), 1)?.is_empty() {
            true => Ok(()),
            false => Err(Errno::ENOTEMPTY.into()),
        }
    }

    /// A directory cannot move into itself or below (rename(2), EINVAL).
    fn check_not_below(&self, mut directory: InodeId, ancestor: InodeId) -> Result<()> {
        // A tree deeper than its number of inodes would be a cycle, which this very check excludes.
        loop {
            if directory == ancestor {
                return Err(Errno::EINVAL.into());
            }
            if directory == InodeId::ROOT {
                return Ok(());
            }
            directory = self.inode(directory)?.parent;
        }
    }

    /// A file lost a name; with the last one it is destroyed unless somebody has it open.
    fn drop_link(&mut self, inode: InodeId) -> Result<()> {
        let mut inode = self.inode(inode)?;
        inode.attr.nlink = inode.attr.nlink.saturating_sub(1);
        inode.attr.ctime = self.time;
        if inode.attr.nlink > 0 {
            self.put_inode(&inode);
            return Ok(());
        }
        self.orphan(inode)
    }

    fn drop_directory(&mut self, inode: InodeId) -> Result<()> {
        let mut inode = self.inode(inode)?;
        inode.attr.nlink = 0;
        inode.attr.ctime = self.time;
        self.orphan(inode)
    }

    /// An inode without a name: pinned by those who have it open, or destroyed. One that never had a name before may
    /// be pinned already.
    fn orphan(&mut self, inode: Inode) -> Result<()> {
        let mut is_pinned = self.is_pinned(inode.attr.inode)?;
        for session in self.open.holders(inode.attr.inode) {
            // The end of a session may be proposed and not yet known to the table.
            if self.is_open(session)? {
                self.pin(session, inode.attr.inode);
                is_pinned = true;
            }
        }
        if !is_pinned {
            return self.destroy(inode);
        }
        self.put_inode(&inode);
        Ok(())
    }

    pub(super) fn pin(&mut self, session: SessionId, inode: InodeId) {
        self.draft.put(key::pin(inode, session), bytes::Bytes::new());
        self.draft.put(key::owned_pin(session, inode), bytes::Bytes::new());
    }

    /// A session let go of an inode; with the last pin of a nameless one it is destroyed.
    pub(super) fn unpin(&mut self, session: SessionId, inode: InodeId) -> Result<()> {
        self.draft.delete(key::pin(inode, session));
        self.draft.delete(key::owned_pin(session, inode));
        match self.find_inode(inode)? {
            Some(found) if found.attr.nlink == 0 && !self.is_pinned(inode)? => self.destroy(found),
            _ => Ok(()),
        }
    }

    fn is_pinned(&self, inode: InodeId) -> Result<bool> {
        let prefix = key::prefix1(key::PIN, inode.0);
        Ok(!self.draft.scan(&prefix, &key::prefix_end(&prefix), 1)?.is_empty())
    }

    pub(super) fn destroy(&mut self, inode: Inode) -> Result<()> {
        let id = inode.attr.inode;
        let prefix = key::prefix1(key::XATTR, id.0);
        for (name, _) in self.draft.scan(&prefix, &key::prefix_end(&prefix), usize::MAX)? {
            self.draft.delete(name);
        }
        let held = self.load::<SessionId>(&key::hold(id))?;
        if let Some(session) = held {
            self.draft.delete(key::hold(id));
            self.draft.delete(key::owned_hold(session, id));
        }
        let strays = inode.strays || held.is_some();
        if inode.chunked || strays || !inode.truncations.is_empty() {
            let purge = Purge {
                pool: inode.pool,
                chunks_high: inode.chunks_high,
                strays,
                truncations: vec![Truncation { seq: self.revision, size: 0 }],
                deleted: true,
            };
            self.draft.put(key::purge(id), encode(&purge));
        }
        self.draft.delete(key::inline(id));
        self.draft.delete(key::inode(id));
        self.count_in_pool(&inode, false)?;
        let mut counters = self.counters()?;
        counters.inodes = counters.inodes.saturating_sub(1);
        self.put_counters(&counters);
        Ok(())
    }
}

/// A symbolic link points somewhere; a file may begin with contents; nothing else has either.
fn check_target(node: &NewNode) -> Result<()> {
    match node.kind {
        FileKind::Symlink if node.target.is_empty() => Err(Errno::EINVAL.into()),
        FileKind::Symlink if node.target.len() > SYMLINK_MAX => Err(Errno::ENAMETOOLONG.into()),
        FileKind::Symlink | FileKind::File => Ok(()),
        _ if node.target.is_empty() => Ok(()),
        _ => Err(Errno::EINVAL.into()),
    }
}

fn add_link(directory: &mut Inode) -> Result<()> {
    // Sub-directories count as links of their parent; the kernel shows 32 bits.
    directory.attr.nlink = directory.attr.nlink.checked_add(1).ok_or(PrepError::from(Errno::EMLINK))?;
    Ok(())
}
