//! What the namespace promises, written down a second time as plainly as possible: a tree of nodes in memory.
//!
//! Link counts are counted, not kept. Errors come in the order in which Linux finds them.

use super::runs::Runs;
use protocol::meta::{MetaError, NewNode, RenameMode, SetAttr, SetTime, WriteOp, XattrMode};
use protocol::{EntryName, Errno, FileKind, InodeId, SessionId, Timestamp};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) const INLINE_LIMIT: u64 = 16 << 10;
const FILE_SIZE_MAX: u64 = 1 << 53;

#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) kind: FileKind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) rdev: u32,
    pub(crate) target: Vec<u8>,
    pub(crate) size: u64,
    pub(crate) content: Runs,
    pub(crate) chunked: bool,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) entries: BTreeMap<EntryName, InodeId>,
    pub(crate) mtime: Timestamp,
    pub(crate) ctime: Timestamp,
    /// Every cut of the bytes in objects: revision, size.
    pub(crate) cuts: Vec<(u64, u64)>,
    /// May get its first name by link(2).
    nameless: bool,
}

/// What the model cannot know by itself.
pub(crate) struct Context {
    /// Of the transaction, if there is one.
    pub(crate) time: Timestamp,
    pub(crate) revision: u64,
    /// Sessions that have an inode open, as far as a leader has to assume.
    pub(crate) open: BTreeSet<(SessionId, InodeId)>,
    /// Sessions that a new leader knows nothing of.
    pub(crate) unknown: BTreeSet<SessionId>,
    /// Truncations that the inode of a resize or hold remembers.
    pub(crate) remembered: Vec<u64>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    pub(crate) nodes: BTreeMap<InodeId, Node>,
    pub(crate) sessions: BTreeSet<SessionId>,
    pub(crate) pins: BTreeSet<(InodeId, SessionId)>,
    pub(crate) holds: BTreeMap<InodeId, SessionId>,
    /// Who may owe times of a file.
    pub(crate) deferred: BTreeMap<InodeId, SessionId>,
    pub(crate) next_inode: u64,
    pub(crate) next_session: u64,
}

/// What an operation says, as far as the model knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Done,
    /// Attributes of this inode.
    Node(InodeId),
    /// The view of this inode.
    View(InodeId),
    /// Attributes of this inode, and where the bytes went.
    Written(InodeId, u64),
}

type Outcome = Result<Said, MetaError>;

fn errno<T>(errno: Errno) -> Result<T, MetaError> {
    Err(MetaError::Errno(errno))
}

impl Model {
    pub(crate) fn new(time: Timestamp) -> Self {
        let mut model = Self { next_inode: 2, next_session: 1, ..Self::default() };
        let node =
            NewNode { kind: FileKind::Directory, mode: 0o755, uid: 0, gid: 0, rdev: 0, target: vec![] };
        model.nodes.insert(InodeId::ROOT, fresh(&node, time));
        model
    }

    pub(crate) fn is_directory(&self, id: InodeId) -> bool {
        self.nodes.get(&id).is_some_and(|n| n.kind == FileKind::Directory)
    }

    /// Names of an inode: (directory, name).
    pub(crate) fn names(&self, id: InodeId) -> Vec<(InodeId, EntryName)> {
        let of = |(parent, node): (&InodeId, &Node)| {
            let names = node.entries.iter().filter(|(_, to)| **to == id).map(|(name, _)| name.clone());
            names.map(|name| (*parent, name)).collect::<Vec<_>>()
        };
        self.nodes.iter().flat_map(of).collect()
    }

    pub(crate) fn nlink(&self, id: InodeId) -> u32 {
        let names = self.names(id).len() as u32;
        if !self.is_directory(id) {
            return names;
        }
        if names == 0 && id != InodeId::ROOT {
            return 0;
        }
        2 + self.nodes[&id].entries.values().filter(|child| self.is_directory(**child)).count() as u32
    }

    pub(crate) fn size(&self, id: InodeId) -> u64 {
        let node = &self.nodes[&id];
        match node.kind {
            FileKind::Directory => node.entries.len() as u64,
            FileKind::Symlink => node.target.len() as u64,
            _ => node.size,
        }
    }

    /// Executes a change; on an error nothing has changed.
    pub(crate) fn write(&mut self, session: SessionId, op: &WriteOp, with: &Context) -> Outcome {
        let mut next = self.clone();
        let said = next.change(session, op, with)?;
        *self = next;
        Ok(said)
    }

    fn change(&mut self, session: SessionId, op: &WriteOp, with: &Context) -> Outcome {
        if !self.sessions.contains(&session) {
            return Err(MetaError::SessionExpired);
        }
        match op {
            WriteOp::Create { parent, name, node, handle } => {
                let id = self.create(*parent, name, node, with)?;
                Ok(if handle.is_some() { Said::View(id) } else { Said::Node(id) })
            }
            WriteOp::Tmpfile { parent, node, .. } => {
                let id = self.add(*parent, node, with)?;
                self.nodes.get_mut(&id).expect("made just now").nameless = true;
                self.pins.insert((id, session));
                Ok(Said::View(id))
            }
            WriteOp::Link { inode, parent, name } => self.link(*inode, *parent, name, with),
            WriteOp::Unlink { parent, name } => {
                let id = self.victim(*parent, name)?;
                if self.is_directory(id) {
                    return errno(Errno::EISDIR);
                }
                self.remove(*parent, name, with);
                Ok(Said::Done)
            }
            WriteOp::Rmdir { parent, name } => {
                let id = self.victim(*parent, name)?;
                if !self.is_directory(id) {
                    return errno(Errno::ENOTDIR);
                }
                self.check_empty(id)?;
                self.remove(*parent, name, with);
                Ok(Said::Done)
            }
            WriteOp::Rename { parent, name, new_parent, new_name, mode } => {
                self.rename((*parent, name), (*new_parent, new_name), *mode, with)
            }
            WriteOp::Setattr { inode, change } => self.setattr(session, *inode, change, with),
            WriteOp::Setxattr { inode, name, value, mode } => {
                let node = self.node(*inode)?;
                match (mode, node.xattrs.contains_key(name)) {
                    (XattrMode::Create, true) => return errno(Errno::EEXIST),
                    (XattrMode::Replace, false) => return errno(Errno::ENODATA),
                    _ => node.xattrs.insert(name.clone(), value.clone()),
                };
                node.ctime = with.time;
                Ok(Said::Done)
            }
            WriteOp::Removexattr { inode, name } => {
                let node = self.node(*inode)?;
                if node.xattrs.remove(name).is_none() {
                    return errno(Errno::ENODATA);
                }
                node.ctime = with.time;
                Ok(Said::Done)
            }
            WriteOp::WriteInline { inode, offset, data, kill_privileges } => {
                self.write_inline(session, *inode, *offset, data, *kill_privileges, with)
            }
            WriteOp::Hold(inode) => self.hold(session, *inode, with),
            WriteOp::ReleaseHold { inode, dirty } => {
                if self.holds.get(inode) == Some(&session) {
                    self.drop_hold(*inode, *dirty, with);
                }
                Ok(Said::Done)
            }
            WriteOp::Defer(inode) => {
                self.file(*inode)?;
                self.check_hold(session, *inode)?;
                if !self.file(*inode)?.chunked {
                    return Err(MetaError::Respill);
                }
                let said = self.hold(session, *inode, with)?;
                self.deferred.insert(*inode, session);
                Ok(said)
            }
            WriteOp::Settle { inode, changed, done } => {
                if self.deferred.get(inode) == Some(&session) {
                    if *changed {
                        self.touch(*inode, with);
                    }
                    if *done {
                        self.deferred.remove(inode);
                    }
                }
                Ok(Said::Done)
            }
            other => panic!("the model does not know {other:?}"),
        }
    }

    fn node(&mut self, id: InodeId) -> Result<&mut Node, MetaError> {
        self.nodes.get_mut(&id).ok_or(MetaError::Errno(Errno::ENOENT))
    }

    fn file(&mut self, id: InodeId) -> Result<&mut Node, MetaError> {
        let node = self.node(id)?;
        match node.kind {
            FileKind::File => Ok(node),
            FileKind::Directory => errno(Errno::EISDIR),
            _ => errno(Errno::EINVAL),
        }
    }

    fn directory(&self, id: InodeId) -> Result<(), MetaError> {
        match self.nodes.get(&id) {
            None => errno(Errno::ENOENT),
            Some(node) if node.kind != FileKind::Directory => errno(Errno::ENOTDIR),
            Some(_) if self.nlink(id) == 0 => errno(Errno::ENOENT),
            Some(_) => Ok(()),
        }
    }

    fn check_name(&self, parent: InodeId, name: &EntryName) -> Result<(), MetaError> {
        let is_reserved = parent == InodeId::ROOT && name.as_bytes() == b".zabfs";
        if is_reserved { errno(Errno::EPERM) } else { Ok(()) }
    }

    fn entry(&self, parent: InodeId, name: &EntryName) -> Option<InodeId> {
        self.nodes[&parent].entries.get(name).copied()
    }

    fn victim(&self, parent: InodeId, name: &EntryName) -> Result<InodeId, MetaError> {
        self.check_name(parent, name)?;
        self.directory(parent)?;
        self.entry(parent, name).ok_or(MetaError::Errno(Errno::ENOENT))
    }

    fn check_empty(&self, id: InodeId) -> Result<(), MetaError> {
        if self.nodes[&id].entries.is_empty() { Ok(()) } else { errno(Errno::ENOTEMPTY) }
    }

    fn create(
        &mut self,
        parent: InodeId,
        name: &EntryName,
        node: &NewNode,
        with: &Context,
    ) -> Result<InodeId, MetaError> {
        self.check_name(parent, name)?;
        self.directory(parent)?;
        if self.entry(parent, name).is_some() {
            return errno(Errno::EEXIST);
        }
        let id = self.add(parent, node, with)?;
        self.enter(parent, name, id, with);
        Ok(id)
    }

    fn add(&mut self, parent: InodeId, node: &NewNode, with: &Context) -> Result<InodeId, MetaError> {
        self.directory(parent)?;
        let mut made = fresh(node, with.time);
        if self.nodes[&parent].mode & 0o2000 != 0 {
            made.gid = self.nodes[&parent].gid;
            if made.kind == FileKind::Directory {
                made.mode |= 0o2000;
            }
        }
        let id = InodeId(self.next_inode);
        self.next_inode += 1;
        self.nodes.insert(id, made);
        Ok(id)
    }

    fn enter(&mut self, parent: InodeId, name: &EntryName, id: InodeId, with: &Context) {
        let directory = self.nodes.get_mut(&parent).expect("checked by the caller");
        directory.entries.insert(name.clone(), id);
        (directory.mtime, directory.ctime) = (with.time, with.time);
    }

    fn link(&mut self, id: InodeId, parent: InodeId, name: &EntryName, with: &Context) -> Outcome {
        self.check_name(parent, name)?;
        self.directory(parent)?;
        if self.node(id)?.kind == FileKind::Directory {
            return errno(Errno::EPERM);
        }
        if self.entry(parent, name).is_some() {
            return errno(Errno::EEXIST);
        }
        if self.nlink(id) == 0 && !self.nodes[&id].nameless {
            return errno(Errno::ENOENT);
        }
        let node = self.node(id)?;
        node.ctime = with.time;
        node.nameless = false;
        self.enter(parent, name, id, with);
        Ok(Said::Node(id))
    }

    /// Takes an entry away, and with the last one the node, unless somebody has it open.
    fn remove(&mut self, parent: InodeId, name: &EntryName, with: &Context) {
        let directory = self.nodes.get_mut(&parent).expect("checked by the caller");
        let id = directory.entries.remove(name).expect("checked by the caller");
        (directory.mtime, directory.ctime) = (with.time, with.time);
        self.nodes.get_mut(&id).expect("an entry names a node").ctime = with.time;
        if self.names(id).is_empty() {
            let alive = |session: &SessionId| self.sessions.contains(session);
            let open = with.open.iter().filter(|(_, inode)| *inode == id).map(|(session, _)| *session);
            let holders: Vec<_> = open.chain(with.unknown.iter().copied()).filter(alive).collect();
            self.pins.extend(holders.into_iter().map(|session| (id, session)));
            self.collect(id);
        }
    }

    /// Destroys a node that has neither name nor pin.
    fn collect(&mut self, id: InodeId) {
        let is_pinned = self.pins.range((id, SessionId(0))..=(id, SessionId(u64::MAX))).next().is_some();
        if !is_pinned && self.names(id).is_empty() && id != InodeId::ROOT {
            self.nodes.remove(&id);
            self.holds.remove(&id);
            self.deferred.remove(&id);
        }
    }

    pub(crate) fn unpin(&mut self, session: SessionId, id: InodeId) {
        self.pins.remove(&(id, session));
        self.collect(id);
    }

    fn is_below(&self, mut id: InodeId, ancestor: InodeId) -> bool {
        while id != ancestor {
            match self.names(id).first() {
                Some((parent, _)) => id = *parent,
                None => return false,
            }
        }
        true
    }

    fn rename(
        &mut self,
        (parent, name): (InodeId, &EntryName),
        (new_parent, new_name): (InodeId, &EntryName),
        mode: RenameMode,
        with: &Context,
    ) -> Outcome {
        self.check_name(parent, name)?;
        self.check_name(new_parent, new_name)?;
        self.directory(parent)?;
        self.directory(new_parent)?;
        let source = self.victim(parent, name)?;
        let target = self.entry(new_parent, new_name);
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return errno(Errno::EEXIST),
            (RenameMode::Exchange, None) => return errno(Errno::ENOENT),
            _ => {}
        }
        if Some(source) == target {
            return Ok(Said::Done);
        }
        if self.is_directory(source) && self.is_below(new_parent, source) {
            return errno(Errno::EINVAL);
        }
        if mode == RenameMode::Exchange {
            let target = target.expect("checked above");
            if self.is_directory(target) && self.is_below(parent, target) {
                return errno(Errno::EINVAL);
            }
            self.enter(new_parent, new_name, source, with);
            self.enter(parent, name, target, with);
            self.node(target)?.ctime = with.time;
        } else {
            if let Some(target) = target {
                match (self.is_directory(source), self.is_directory(target)) {
                    (true, false) => return errno(Errno::ENOTDIR),
                    (false, true) => return errno(Errno::EISDIR),
                    (true, true) => self.check_empty(target)?,
                    (false, false) => {}
                }
                self.remove(new_parent, new_name, with);
            }
            self.node(parent)?.entries.remove(name);
            self.enter(new_parent, new_name, source, with);
            let from = self.node(parent)?;
            (from.mtime, from.ctime) = (with.time, with.time);
        }
        self.node(source)?.ctime = with.time;
        Ok(Said::Done)
    }

    fn check_hold(&self, session: SessionId, id: InodeId) -> Result<(), MetaError> {
        match self.holds.get(&id) {
            Some(holder) if *holder != session => Err(MetaError::Busy),
            _ => Ok(()),
        }
    }

    fn setattr(&mut self, session: SessionId, id: InodeId, change: &SetAttr, with: &Context) -> Outcome {
        self.node(id)?;
        if self.deferred.get(&id).is_some_and(|other| *other != session) {
            return Err(MetaError::Busy);
        }
        if let Some(size) = change.size {
            self.resize(session, id, size, with)?;
        }
        let node = self.node(id)?;
        if change.kill_privileges {
            kill(node);
        }
        node.mode = change.mode.map_or(node.mode, |mode| mode & 0o7777);
        node.uid = change.uid.unwrap_or(node.uid);
        node.gid = change.gid.unwrap_or(node.gid);
        match change.mtime {
            Some(SetTime::At(time)) => node.mtime = time,
            Some(SetTime::Now) => node.mtime = with.time,
            None => {}
        }
        node.ctime = with.time;
        Ok(Said::Node(id))
    }

    fn resize(
        &mut self,
        session: SessionId,
        id: InodeId,
        size: u64,
        with: &Context,
    ) -> Result<(), MetaError> {
        self.file(id)?;
        if size > FILE_SIZE_MAX {
            return errno(Errno::EFBIG);
        }
        self.check_hold(session, id)?;
        let is_held = self.holds.contains_key(&id);
        let node = self.file(id)?;
        if node.chunked && size < node.size {
            if with.remembered.iter().filter(|other| **other < size).count() >= 8 {
                return Err(MetaError::Busy);
            }
            node.cuts.push((with.revision, size));
        }
        if !node.chunked && is_held {
            node.cuts.push((with.revision, 0));
        }
        node.content.cut(size);
        node.size = size;
        node.chunked &= size > 0;
        (node.mtime, node.ctime) = (with.time, with.time);
        Ok(())
    }

    fn write_inline(
        &mut self,
        session: SessionId,
        id: InodeId,
        offset: Option<u64>,
        data: &[u8],
        kill_privileges: bool,
        with: &Context,
    ) -> Outcome {
        let node = self.file(id)?;
        let offset = offset.unwrap_or(node.size);
        let Some(end) = offset.checked_add(data.len() as u64) else { return errno(Errno::EFBIG) };
        if node.chunked || end > INLINE_LIMIT {
            return Err(MetaError::Respill);
        }
        self.check_hold(session, id)?;
        let is_held = self.holds.contains_key(&id);
        let node = self.file(id)?;
        if is_held {
            node.cuts.push((with.revision, 0));
        }
        for (at, byte) in data.iter().enumerate() {
            node.content.write(offset + at as u64, offset + at as u64 + 1, *byte);
        }
        self.written(id, end, kill_privileges, with);
        Ok(Said::Written(id, offset))
    }

    /// A write became part of the file.
    pub(crate) fn written(&mut self, id: InodeId, end: u64, kill_privileges: bool, with: &Context) {
        let node = self.nodes.get_mut(&id).expect("the caller has it");
        node.size = node.size.max(end);
        if kill_privileges {
            kill(node);
        }
        (node.mtime, node.ctime) = (with.time, with.time);
    }

    fn hold(&mut self, session: SessionId, id: InodeId, with: &Context) -> Outcome {
        self.file(id)?;
        self.check_hold(session, id)?;
        if with.remembered.len() > 8 {
            return Err(MetaError::Busy);
        }
        self.holds.insert(id, session);
        let node = self.file(id)?;
        if !node.chunked {
            node.cuts.push((with.revision, 0));
        }
        Ok(Said::View(id))
    }

    fn touch(&mut self, id: InodeId, with: &Context) {
        let node = self.nodes.get_mut(&id).expect("the caller has it");
        (node.mtime, node.ctime) = (with.time, with.time);
    }

    fn drop_hold(&mut self, id: InodeId, dirty: bool, with: &Context) {
        self.holds.remove(&id);
        if self.deferred.remove(&id).is_some() {
            self.touch(id, with);
        }
        if dirty && let Some(node) = self.nodes.get_mut(&id).filter(|node| node.chunked) {
            node.cuts.push((with.revision, node.size));
        }
    }

    pub(crate) fn open_session(&mut self) -> SessionId {
        let id = SessionId(self.next_session);
        self.next_session += 1;
        self.sessions.insert(id);
        id
    }

    pub(crate) fn end_session(&mut self, session: SessionId, with: &Context) -> Outcome {
        if !self.sessions.remove(&session) {
            return Err(MetaError::SessionExpired);
        }
        let held: Vec<_> = self.holds.iter().filter(|(_, by)| **by == session).map(|(id, _)| *id).collect();
        for id in held {
            self.drop_hold(id, true, with);
        }
        let pinned: Vec<_> = self.pins.iter().filter(|(_, by)| *by == session).map(|(id, _)| *id).collect();
        for id in pinned {
            self.unpin(session, id);
        }
        Ok(Said::Done)
    }
}

fn fresh(node: &NewNode, time: Timestamp) -> Node {
    let is_device = matches!(node.kind, FileKind::CharDevice | FileKind::BlockDevice);
    Node {
        kind: node.kind,
        mode: node.mode & 0o7777,
        uid: node.uid,
        gid: node.gid,
        rdev: if is_device { node.rdev } else { 0 },
        target: node.target.clone(),
        size: 0,
        content: Runs::default(),
        chunked: false,
        xattrs: BTreeMap::new(),
        entries: BTreeMap::new(),
        mtime: time,
        ctime: time,
        cuts: Vec::new(),
        nameless: false,
    }
}

/// What a write does to setuid and setgid (inode(7)).
fn kill(node: &mut Node) {
    if node.kind != FileKind::Directory {
        node.mode &= !0o4000;
        if node.mode & 0o010 != 0 {
            node.mode &= !0o2000;
        }
    }
}
