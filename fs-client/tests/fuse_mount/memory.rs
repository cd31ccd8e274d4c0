//! A small file system in memory that the tests mount for real. Files have names that say how they behave:
//!
//! | name | behaviour |
//! |---|---|
//! | `hang*` | READ never ends; opened for direct I/O unless the name is `hang-cached` |
//! | `slow*` | READ, MKDIR and CREATE take [`SLOW`] |
//! | `panic*` | READ panics |
//! | `.waiting` | text: one line for each unanswered request |
//! | `.handles` | text: number of open handles |
//! | `.control` | takes commands, see [`Memory::control`] |

use bytes::Bytes;
use fs_client::fuse::abi::fopen;
use fs_client::fuse::notify::Known;
use fs_client::fuse::operation::{FileLock, LockKind, LockRequest, SetAttr, TimeOrNow, Write};
use fs_client::fuse::reply::Statfs;
use fs_client::fuse::{
    Directory, DirectoryEntry, Entry, Filesystem, Interrupt, Notifier, Opened, Operation, Reply,
    RequestHeader, Waiting,
};
use protocol::{Attr, Errno, FileKind, InodeId, Timestamp};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How long slow operations take.
pub(crate) const SLOW: Duration = Duration::from_millis(1500);
/// Everything is cached for longer than any test takes.
const VALID: Duration = Duration::from_secs(3600);
const ROOT: u64 = 1;
/// `FALLOC_FL_*`, `RENAME_NOREPLACE`: what is not asked for here is refused.
const RENAME_NOREPLACE: u32 = 1;

type Answer = Result<Reply, Errno>;

/// The file system.
pub(crate) struct Memory {
    state: RefCell<State>,
    waiting: Waiting,
    notifier: Notifier,
    unlocked: Notify,
    destroyed: Cell<bool>,
}

struct State {
    nodes: BTreeMap<u64, Node>,
    handles: BTreeMap<u64, u64>,
    locks: BTreeMap<(u64, bool), Vec<(u64, FileLock)>>,
    next: u64,
}

#[derive(Clone)]
struct Node {
    attr: Attr,
    name: Vec<u8>,
    data: Vec<u8>,
    children: BTreeMap<Vec<u8>, u64>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Memory {
    /// With the special files in its root.
    pub(crate) fn new(waiting: Waiting, notifier: Notifier) -> Self {
        let mut nodes = BTreeMap::new();
        nodes.insert(ROOT, Node::new(ROOT, FileKind::Directory, 0o755, b""));
        let state = State { nodes, handles: BTreeMap::new(), locks: BTreeMap::new(), next: ROOT };
        let memory = Self {
            state: RefCell::new(state),
            waiting,
            notifier,
            unlocked: Notify::new(),
            destroyed: Cell::new(false),
        };
        for name in [&b".waiting"[..], b".handles", b".control"] {
            memory
                .make(
                    ROOT,
                    name,
                    FileKind::File,
                    0o666,
                    RequestHeader { unique: 0, node: 1, uid: 0, gid: 0, pid: 0 },
                )
                .expect("the root is empty");
        }
        memory
    }

    /// Whether the dispatcher said that the mount is gone.
    pub(crate) fn is_destroyed(&self) -> bool {
        self.destroyed.get()
    }

    async fn answer(&self, header: RequestHeader, operation: Operation, interrupt: &Interrupt) -> Answer {
        match operation {
            Operation::Lookup { name } => self.lookup(header.node, &name),
            Operation::GetAttr { .. } => self.with(header.node, |node| Reply::Attributes(node.attr, VALID)),
            Operation::Statx { .. } => self.with(header.node, |node| Reply::Statx(node.attr, VALID)),
            Operation::SetAttr(change) => self.set_attr(header.node, &change),
            Operation::ReadLink => self.with(header.node, |node| Reply::Data(Bytes::from(node.data.clone()))),
            Operation::Symlink { name, target } => {
                let entry = self.make(header.node, &name, FileKind::Symlink, 0o777, header)?;
                self.change(entry.node, |node| {
                    node.attr.size = target.len() as u64;
                    node.data = target;
                    Reply::Entry(node.entry())
                })
            }
            Operation::MkNod { name, mode, rdev, umask } => {
                let kind = FileKind::from_mode(mode).ok_or(Errno::EINVAL)?;
                let entry = self.make(header.node, &name, kind, mode & !umask, header)?;
                self.change(entry.node, |node| {
                    node.attr.rdev = rdev;
                    Reply::Entry(node.entry())
                })
            }
            Operation::MkDir { name, mode, umask } => {
                slow_if(&name).await;
                Ok(Reply::Entry(self.make(header.node, &name, FileKind::Directory, mode & !umask, header)?))
            }
            Operation::Unlink { name } => self.unlink(header.node, &name, false),
            Operation::RmDir { name } => self.unlink(header.node, &name, true),
            Operation::Rename { name, new_parent, new_name, flags } => {
                self.rename(header.node, &name, new_parent, &new_name, flags)
            }
            Operation::Link { source, name } => self.link(source, header.node, name),
            Operation::Create { name, mode, umask, .. } => {
                slow_if(&name).await;
                let entry = self.make(header.node, &name, FileKind::File, mode & !umask, header)?;
                Ok(Reply::Created(entry, self.open(entry.node, &name, 0)))
            }
            Operation::TmpFile { mode, umask, .. } => {
                let node = self.fresh(FileKind::File, mode & !umask, b"", header);
                let entry = self.get(node)?.entry();
                Ok(Reply::Created(entry, self.open(node, b"", 0)))
            }
            operation => self.answer_open_file(header, operation, interrupt).await,
        }
    }

    async fn answer_open_file(
        &self,
        header: RequestHeader,
        operation: Operation,
        interrupt: &Interrupt,
    ) -> Answer {
        match operation {
            Operation::Open { flags, .. } => {
                let node = self.get(header.node)?;
                if flags & libc::O_TRUNC as u32 != 0 {
                    self.set_attr(header.node, &SetAttr { size: Some(0), ..SetAttr::default() })?;
                }
                Ok(Reply::Opened(self.open(header.node, &node.name, flags)))
            }
            Operation::OpenDir { .. } => Ok(Reply::Opened(self.open(header.node, b"", 0))),
            Operation::Read { offset, size, .. } => self.read(header.node, offset, size).await,
            Operation::Write(write) => self.write(header.node, &write),
            Operation::ReadDir { offset, size, plus, .. } => self.list(header.node, offset, size, plus),
            Operation::Release { handle, .. } | Operation::ReleaseDir { handle, .. } => {
                self.state.borrow_mut().handles.remove(&handle).ok_or(Errno::EBADF)?;
                if let Operation::Release { lock_owner, flock_unlock: true, .. } = operation {
                    self.unlock_all(header.node, true, lock_owner);
                }
                Ok(Reply::Done)
            }
            Operation::Flush { lock_owner, .. } => {
                self.unlock_all(header.node, false, lock_owner);
                Ok(Reply::Done)
            }
            Operation::Fsync { .. } | Operation::FsyncDir { .. } | Operation::SyncFs => Ok(Reply::Done),
            Operation::StatFs => Ok(Reply::Statfs(Statfs {
                blocks: 1000,
                blocks_free: 500,
                blocks_available: 400,
                files: 100,
                files_free: 50,
                block_size: 4096,
                name_max: 255,
            })),
            Operation::GetLock(request) => {
                let free = FileLock { kind: LockKind::Unlock, ..request.lock };
                Ok(Reply::Lock(self.conflict(header.node, &request).unwrap_or(free)))
            }
            Operation::SetLock { lock, wait } => self.lock(header.node, lock, wait, interrupt).await,
            Operation::CopyFileRange { offset, target_node, target_offset, length, .. } => {
                let data = self.get(header.node)?.data;
                let data = Bytes::from(data).slice_clamped(offset, length);
                let copied = data.len() as u64;
                self.put(target_node, target_offset, &data)?;
                Ok(Reply::Copied(copied))
            }
            Operation::Seek { offset, whence, .. } => {
                let size = self.get(header.node)?.attr.size;
                match whence as i32 {
                    _ if offset >= size => Err(Errno::ENXIO),
                    libc::SEEK_HOLE => Ok(Reply::Seek(size)),
                    _ => Ok(Reply::Seek(offset)),
                }
            }
            operation => self.answer_xattr(header.node, operation),
        }
    }

    fn answer_xattr(&self, node: u64, operation: Operation) -> Answer {
        let sized = |value: Vec<u8>, size: u32| match size as usize {
            0 => Ok(Reply::XattrSize(value.len() as u32)),
            size if size < value.len() => Err(Errno::ERANGE),
            _ => Ok(Reply::Data(Bytes::from(value))),
        };
        match operation {
            Operation::SetXattr { name, value, .. } => self.change(node, |node| {
                node.xattrs.insert(name, value.to_vec());
                Reply::Done
            }),
            Operation::GetXattr { name, size } => {
                sized(self.get(node)?.xattrs.get(&name).ok_or(Errno::ENODATA)?.clone(), size)
            }
            Operation::ListXattr { size } => {
                let names = self.get(node)?.xattrs.into_keys();
                sized(names.flat_map(|name| [name, vec![0]].concat()).collect(), size)
            }
            Operation::RemoveXattr { name } => {
                let removed = self.state.borrow_mut().node(node)?.xattrs.remove(&name);
                removed.map(|_| Reply::Done).ok_or(Errno::ENODATA)
            }
            _ => Err(Errno::ENOSYS),
        }
    }

    fn lookup(&self, parent: u64, name: &[u8]) -> Answer {
        let child = self.get(parent)?.children.get(name).copied().ok_or(Errno::ENOENT)?;
        Ok(Reply::Entry(self.get(child)?.entry()))
    }

    fn set_attr(&self, node: u64, change: &SetAttr) -> Answer {
        let time = |time: TimeOrNow| match time {
            TimeOrNow::At(time) => time,
            TimeOrNow::Now => Timestamp { seconds: 1_000_000_000, nanoseconds: 0 },
        };
        self.change(node, |node| {
            node.attr.mode = change.mode.map_or(node.attr.mode, |mode| mode & 0o7777);
            node.attr.uid = change.uid.unwrap_or(node.attr.uid);
            node.attr.gid = change.gid.unwrap_or(node.attr.gid);
            node.attr.atime = change.atime.map_or(node.attr.atime, time);
            node.attr.mtime = change.mtime.map_or(node.attr.mtime, time);
            if let Some(size) = change.size {
                node.data.resize(size as usize, 0);
                node.attr.size = size;
            }
            Reply::Attributes(node.attr, VALID)
        })
    }

    fn unlink(&self, parent: u64, name: &[u8], directory: bool) -> Answer {
        let child = self.get(parent)?.children.get(name).copied().ok_or(Errno::ENOENT)?;
        if directory && !self.get(child)?.children.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        self.change(parent, |node| node.children.remove(name))?;
        self.change(child, |node| {
            node.attr.nlink -= 1;
            Reply::Done
        })
    }

    fn rename(&self, parent: u64, name: &[u8], new_parent: u64, new_name: &[u8], flags: u32) -> Answer {
        let child = self.get(parent)?.children.get(name).copied().ok_or(Errno::ENOENT)?;
        if flags & RENAME_NOREPLACE != 0 && self.get(new_parent)?.children.contains_key(new_name) {
            return Err(Errno::EEXIST);
        }
        self.change(parent, |node| node.children.remove(name))?;
        self.change(new_parent, |node| node.children.insert(new_name.to_vec(), child))?;
        Ok(Reply::Done)
    }

    fn link(&self, source: u64, parent: u64, name: Vec<u8>) -> Answer {
        self.change(parent, |node| node.children.insert(name, source))?;
        self.change(source, |node| {
            node.attr.nlink += 1;
            Reply::Entry(node.entry())
        })
    }

    async fn read(&self, node: u64, offset: u64, size: u32) -> Answer {
        let file = self.get(node)?;
        let data = match file.name.as_slice() {
            b".waiting" => self.waiting_text().into_bytes(),
            b".handles" => self.state.borrow().handles.len().to_string().into_bytes(),
            name if name.starts_with(b"hang") => std::future::pending().await,
            name if name.starts_with(b"panic") => panic!("as the test asked for"),
            name => {
                slow_if(name).await;
                file.data
            }
        };
        let data = Bytes::from(data).slice_clamped(offset, u64::from(size));
        // In two pieces, so that both forms of an answer are exercised.
        let half = data.len() / 2;
        Ok(Reply::DataParts(vec![data.slice(..half), data.slice(half..)]))
    }

    fn waiting_text(&self) -> String {
        let list = self.waiting.list(Instant::now());
        list.iter()
            .map(|one| format!("{} {} {} {}\n", one.operation, one.node, one.pid, one.abandoned))
            .collect()
    }

    fn write(&self, node: u64, write: &Write) -> Answer {
        if self.get(node)?.name == b".control" {
            self.control(&String::from_utf8_lossy(&write.data));
            return Ok(Reply::Written(write.data.len() as u32));
        }
        self.put(node, write.offset, &write.data)?;
        Ok(Reply::Written(write.data.len() as u32))
    }

    fn put(&self, node: u64, offset: u64, data: &[u8]) -> Answer {
        let start = offset as usize;
        self.change(node, |node| {
            let end = (start + data.len()).max(node.data.len());
            node.data.resize(end, 0);
            node.data[start..start + data.len()].copy_from_slice(data);
            node.attr.size = end as u64;
            node.attr.mtime = node.attr.mtime.next();
            Reply::Done
        })
    }

    fn list(&self, node: u64, offset: u64, size: u32, plus: bool) -> Answer {
        let mut listing = Directory::new(size);
        let children = self.get(node)?.children;
        for (index, (name, child)) in children.iter().enumerate().skip(offset as usize) {
            let child = self.get(*child)?;
            let inode = child.attr.inode.0;
            let entry = DirectoryEntry { inode, offset: index as u64 + 1, kind: child.attr.kind, name };
            let fits =
                if plus { listing.push_plus(&entry, Some(&child.entry())) } else { listing.push(&entry) };
            if !fits {
                break;
            }
        }
        Ok(Reply::Directory(listing))
    }

    async fn lock(&self, node: u64, request: LockRequest, wait: bool, interrupt: &Interrupt) -> Answer {
        loop {
            if self.conflict(node, &request).is_none() {
                let mut state = self.state.borrow_mut();
                let held = state.locks.entry((node, request.flock)).or_default();
                held.retain(|(owner, _)| *owner != request.owner);
                if request.lock.kind != LockKind::Unlock {
                    held.push((request.owner, request.lock));
                }
                self.unlocked.notify_waiters();
                return Ok(Reply::Done);
            }
            if !wait {
                return Err(Errno::EAGAIN);
            }
            tokio::select! {
                () = self.unlocked.notified() => {}
                () = interrupt.any_signal() => return Err(Errno::EINTR),
            }
        }
    }

    fn conflict(&self, node: u64, request: &LockRequest) -> Option<FileLock> {
        let state = self.state.borrow();
        let held = state.locks.get(&(node, request.flock))?;
        let wanted = request.lock;
        held.iter().find_map(|(owner, lock)| {
            let overlaps = lock.start <= wanted.end && wanted.start <= lock.end;
            let exclusive = lock.kind == LockKind::Write || wanted.kind == LockKind::Write;
            (*owner != request.owner && overlaps && exclusive && wanted.kind != LockKind::Unlock)
                .then_some(*lock)
        })
    }

    fn unlock_all(&self, node: u64, flock: bool, owner: u64) {
        if let Some(held) = self.state.borrow_mut().locks.get_mut(&(node, flock)) {
            held.retain(|(holder, _)| *holder != owner);
        }
        self.unlocked.notify_waiters();
    }

    /// `mode NAME OCTAL`: changes the mode of a file in the root behind the kernel's back.
    /// `inval NAME`, `expire NAME`, `drop NAME`, `epoch`: sends a notification, from a thread of its own.
    fn control(&self, command: &str) {
        let words: Vec<&str> = command.split_whitespace().collect();
        let notifier = self.notifier.clone();
        let child = |name: &str| {
            self.get(ROOT).expect("the root exists").children.get(name.as_bytes()).copied().unwrap_or(0)
        };
        let send: Box<dyn FnOnce() + Send> = match words.as_slice() {
            ["mode", name, mode] => {
                let mode = u32::from_str_radix(mode, 8).expect("an octal number");
                self.change(child(name), |node| node.attr.mode = mode).expect("the file exists");
                return;
            }
            ["inval", name] => {
                let node = child(name);
                Box::new(move || assert_eq!(notifier.inval_attributes(node).expect("sent"), Known::Yes))
            }
            ["expire", name] => {
                let name = name.to_string();
                Box::new(move || {
                    assert_eq!(notifier.expire_entry(ROOT, name.as_bytes()).expect("sent"), Known::Yes)
                })
            }
            ["drop", name] => {
                let name = name.to_string();
                Box::new(move || {
                    assert_eq!(notifier.inval_entry(ROOT, name.as_bytes()).expect("sent"), Known::Yes)
                })
            }
            ["epoch"] => Box::new(move || notifier.inc_epoch().expect("sent")),
            _ => panic!("unknown command {command:?}"),
        };
        std::thread::spawn(send);
    }

    fn open(&self, node: u64, name: &[u8], _flags: u32) -> Opened {
        let mut state = self.state.borrow_mut();
        state.next += 1;
        let handle = state.next;
        state.handles.insert(handle, node);
        let direct = (name.starts_with(b"hang") && name != b"hang-cached") || name.starts_with(b".");
        Opened { handle, flags: if direct { fopen::DIRECT_IO } else { 0 } }
    }

    fn make(
        &self,
        parent: u64,
        name: &[u8],
        kind: FileKind,
        mode: u32,
        by: RequestHeader,
    ) -> Result<Entry, Errno> {
        if self.get(parent)?.children.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        let node = self.fresh(kind, mode, name, by);
        self.change(parent, |parent| parent.children.insert(name.to_vec(), node))?;
        Ok(self.get(node)?.entry())
    }

    fn fresh(&self, kind: FileKind, mode: u32, name: &[u8], by: RequestHeader) -> u64 {
        let mut state = self.state.borrow_mut();
        state.next += 1;
        let number = state.next;
        let mut node = Node::new(number, kind, mode, name);
        (node.attr.uid, node.attr.gid) = (by.uid, by.gid);
        state.nodes.insert(number, node);
        number
    }

    fn get(&self, node: u64) -> Result<Node, Errno> {
        self.state.borrow().nodes.get(&node).cloned().ok_or(Errno::ESTALE)
    }

    fn with(&self, node: u64, answer: impl FnOnce(&Node) -> Reply) -> Answer {
        self.get(node).map(|node| answer(&node))
    }

    fn change<T>(&self, node: u64, change: impl FnOnce(&mut Node) -> T) -> Result<T, Errno> {
        self.state.borrow_mut().node(node).map(change)
    }
}

impl State {
    fn node(&mut self, node: u64) -> Result<&mut Node, Errno> {
        self.nodes.get_mut(&node).ok_or(Errno::ESTALE)
    }
}

impl Node {
    fn new(number: u64, kind: FileKind, mode: u32, name: &[u8]) -> Self {
        let time = Timestamp { seconds: 1_000_000_000, nanoseconds: 0 };
        let attr = Attr {
            inode: InodeId(number),
            kind,
            mode: mode & 0o7777,
            nlink: if kind == FileKind::Directory { 2 } else { 1 },
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            blocks: 0,
            atime: time,
            mtime: time,
            ctime: time,
            btime: Timestamp { seconds: 900_000_000, nanoseconds: 5 },
        };
        let (name, data) = (name.to_vec(), Vec::new());
        Self { attr, name, data, children: BTreeMap::new(), xattrs: BTreeMap::new() }
    }

    fn entry(&self) -> Entry {
        let node = self.attr.inode.0;
        Entry { node, generation: 0, attr: self.attr, entry_valid: VALID, attr_valid: VALID }
    }
}

impl Filesystem for Memory {
    async fn handle(
        self: Rc<Self>,
        request: RequestHeader,
        operation: Operation,
        interrupt: Interrupt,
    ) -> Reply {
        self.answer(request, operation, &interrupt).await.unwrap_or_else(Reply::Error)
    }

    fn forget(&self, _node: u64, _lookups: u64) {}

    fn destroy(&self) {
        self.destroyed.set(true);
    }
}

async fn slow_if(name: &[u8]) {
    if name.starts_with(b"slow") {
        tokio::time::sleep(SLOW).await;
    }
}

trait SliceClamped {
    fn slice_clamped(&self, offset: u64, length: u64) -> Bytes;
}

impl SliceClamped for Bytes {
    fn slice_clamped(&self, offset: u64, length: u64) -> Bytes {
        let start = offset.min(self.len() as u64);
        let end = start.saturating_add(length).min(self.len() as u64);
        self.slice(start as usize..end as usize)
    }
}
