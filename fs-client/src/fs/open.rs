//! Opening, creating and closing.

use super::handles::{DirectoryHandle, FileHandle, Handle};
use super::names::new_node;
use super::{Answer, ZabFs, expect_attr};
use crate::fuse::abi::fopen;
use crate::fuse::{Opened, Reply, RequestHeader};
use crate::meta::MetaFailure;
use protocol::meta::{self, LockRequest, LockResource, ReadOp, SetTime, WriteOp};
use protocol::{Attr, EntryName, Errno, FileKind, FileView};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

/// Every regular file bypasses the page cache: another mount may change it at any time.
const FILE_FLAGS: u32 = fopen::DIRECT_IO | fopen::PARALLEL_DIRECT_WRITES;
/// close(2) waits this long for its locks to be released; then that goes on by itself.
const FLUSH_PATIENCE: Duration = Duration::from_secs(1);

impl ZabFs {
    pub(super) async fn open(self: &Rc<Self>, node: u64, flags: u32, kill: bool) -> Answer {
        let truncate = flags as i32 & libc::O_TRUNC != 0;
        if truncate || flags as i32 & libc::O_ACCMODE != libc::O_RDONLY {
            self.check_writable()?;
        }
        let number = self.open_inode(node, flags, truncate, kill).await?;
        Ok(Reply::Opened(Opened { handle: number, flags: FILE_FLAGS }))
    }

    /// Opens an existing file; the handle is in the table afterwards.
    async fn open_inode(
        self: &Rc<Self>,
        node: u64,
        flags: u32,
        truncate: bool,
        kill: bool,
    ) -> Result<u64, Errno> {
        let inode = self.inode(node);
        let number = self.handles.number();
        let view = self.meta.open_file(inode, number).await?;
        self.register(number, flags, view);
        if truncate {
            let change = meta::SetAttr {
                size: Some(0),
                mtime: Some(SetTime::Now),
                kill_privileges: kill,
                ..meta::SetAttr::default()
            };
            if let Err(errno) = self.resize(node, change).await {
                self.close_handle(number);
                return Err(errno);
            }
        }
        Ok(number)
    }

    pub(super) async fn create(
        self: &Rc<Self>,
        request: RequestHeader,
        name: Vec<u8>,
        flags: u32,
        mode: u32,
        kill: bool,
    ) -> Answer {
        let name = self.new_name(request.node, name)?;
        let number = self.handles.number();
        let op = WriteOp::Create {
            parent: self.inode(request.node),
            name: name.clone(),
            node: new_node(request, FileKind::File, mode),
            handle: Some(number),
        };
        match self.meta.write_opening(self.meta.generation(), number, op).await {
            Ok(view) => Ok(self.created(number, flags, view)),
            Err(MetaFailure::Errno(Errno::EEXIST)) if flags as i32 & libc::O_EXCL == 0 => {
                self.open_raced(request, name, flags, kill).await
            }
            Err(failure) => Err(failure.into()),
        }
    }

    /// Another mount made the name between the kernel's lookup and this creation.
    async fn open_raced(
        self: &Rc<Self>,
        request: RequestHeader,
        name: EntryName,
        flags: u32,
        kill: bool,
    ) -> Answer {
        let lookup = ReadOp::Lookup { parent: self.inode(request.node), name };
        let attr = expect_attr(self.meta.read(lookup).await?, "a lookup")?;
        // The kernel checked nothing about this file. What is not plainly allowed it is to look at again.
        if attr.kind != FileKind::File || !is_plainly_allowed(&attr, request, flags) {
            return Err(Errno::ESTALE);
        }
        let truncate = flags as i32 & libc::O_TRUNC != 0;
        let number = self.open_inode(self.node_id(attr.inode), flags, truncate, kill).await?;
        let attr = if truncate { Attr { size: 0, ..attr } } else { attr };
        Ok(Reply::Created(self.entry(attr), Opened { handle: number, flags: FILE_FLAGS }))
    }

    pub(super) async fn tmpfile(self: &Rc<Self>, request: RequestHeader, flags: u32, mode: u32) -> Answer {
        self.check_writable()?;
        let number = self.handles.number();
        let node = new_node(request, FileKind::File, mode);
        let op = WriteOp::Tmpfile { parent: self.inode(request.node), node, handle: number };
        let view = self.meta.write_opening(self.meta.generation(), number, op).await?;
        Ok(self.created(number, flags, view))
    }

    fn created(&self, number: u64, flags: u32, view: FileView) -> Reply {
        let entry = self.entry(view.attr);
        self.register(number, flags, view);
        Reply::Created(entry, Opened { handle: number, flags: FILE_FLAGS })
    }

    fn register(&self, number: u64, flags: u32, view: FileView) {
        let node = self.nodes.get(view.attr.inode);
        // The answer to an opening may have been overtaken by a change of this mount; reads check it anyway.
        if !node.hold.get() {
            node.note_view(view);
        }
        self.handles.insert(number, Handle::File(FileHandle::new(number, node, flags)));
    }

    pub(super) fn opendir(&self) -> Answer {
        let number = self.handles.number();
        let directory = DirectoryHandle { ahead: RefCell::new(None) };
        self.handles.insert(number, Handle::Directory(Rc::new(directory)));
        Ok(Reply::Opened(Opened { handle: number, flags: 0 }))
    }

    /// Answers at once; the rest happens behind it and is repeated until it is acknowledged.
    pub(super) fn release(self: &Rc<Self>, number: u64, flock_owner: Option<u64>) -> Answer {
        if let Ok(file) = self.handles.file(number)
            && let Some(owner) = flock_owner.filter(|_| file.flocked.get())
        {
            let resource = LockResource::Flock(file.node.inode);
            self.unlock_behind(resource, whole_file(owner));
        }
        if let Ok(file) = self.handles.file(number) {
            for owner in file.lock_owners.take() {
                file.node.posix_owners.borrow_mut().remove(&owner);
                self.unlock_behind(LockResource::Posix(file.node.inode), whole_file(owner));
            }
        }
        self.close_handle(number);
        Ok(Reply::Done)
    }

    fn unlock_behind(self: &Rc<Self>, resource: LockResource, request: LockRequest) {
        let meta = self.meta.clone();
        tokio::task::spawn_local(async move {
            if let Err(errno) = meta.unlock(resource, request).await {
                tracing::warn!(%errno, "a lock of a closed file was not released");
            }
        });
    }

    pub(super) fn close_handle(self: &Rc<Self>, number: u64) {
        let Some(Handle::File(file)) = self.handles.remove(number) else { return };
        if file.may_write() {
            file.node.writers.set(file.node.writers.get() - 1);
        }
        self.closings.set(self.closings.get() + 1);
        let fs = self.clone();
        tokio::task::spawn_local(async move {
            fs.close_in_cluster(&file).await;
            fs.closings.set(fs.closings.get() - 1);
            fs.closed.notify_waiters();
        });
    }

    async fn close_in_cluster(self: &Rc<Self>, file: &FileHandle) {
        let node = &file.node;
        if !(file.may_write() && node.hold.get() && node.writers.get() == 0) {
            return self.meta.close_file(node.inode, file.number, false).await;
        }
        // Until this is acknowledged nobody of this mount may take the hold again, or a repetition of this message
        // behind a change of leader would give that one back.
        let _gate = node.gate.write().await;
        self.end_deferral(node).await;
        let release_hold = node.hold.get() && node.writers.get() == 0;
        if release_hold {
            node.hold.set(false);
        }
        self.meta.close_file(node.inode, file.number, release_hold).await;
    }

    /// One descriptor was closed: POSIX locks of its owner go.
    pub(super) async fn flush(self: &Rc<Self>, node: u64, handle: u64, owner: u64) -> Answer {
        let node = self.nodes.get(self.inode(node));
        if !node.posix_owners.borrow_mut().remove(&owner) {
            return Ok(Reply::Done);
        }
        if let Ok(file) = self.handles.file(handle) {
            file.locked.borrow_mut().clear();
        }
        for file in self.handles.files().iter().filter(|file| file.node.inode == node.inode) {
            file.lock_owners.borrow_mut().remove(&owner);
        }
        let meta = self.meta.clone();
        let resource = LockResource::Posix(node.inode);
        let unlocking =
            tokio::task::spawn_local(async move { meta.unlock(resource, whole_file(owner)).await });
        // Bounded: when no server is there, the request stays in order before whatever this mount locks next.
        let _ = tokio::time::timeout(FLUSH_PATIENCE, unlocking).await;
        Ok(Reply::Done)
    }
}

/// All of a file, for unlocking.
pub(super) fn whole_file(owner: u64) -> LockRequest {
    LockRequest { owner, exclusive: true, start: 0, end: u64::MAX, pid: 0 }
}

/// Whether the permission bits alone allow it, without supplementary groups.
fn is_plainly_allowed(attr: &Attr, request: RequestHeader, flags: u32) -> bool {
    let wanted = match flags as i32 & libc::O_ACCMODE {
        libc::O_RDONLY => 4,
        libc::O_WRONLY => 2,
        _ => 6,
    };
    let granted = if request.uid == attr.uid {
        attr.mode >> 6
    } else if request.gid == attr.gid {
        attr.mode >> 3
    } else {
        attr.mode
    };
    request.uid == 0 || granted & wanted == wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::testing::attr;

    #[test]
    fn permission_bits_of_the_right_class_count() {
        let owned = Attr { mode: 0o640, uid: 5, gid: 6, ..attr(1, 0) };
        let caller = |uid, gid| RequestHeader { unique: 1, node: 1, uid, gid, pid: 1 };
        assert!(is_plainly_allowed(&owned, caller(5, 1), libc::O_RDWR as u32));
        assert!(is_plainly_allowed(&owned, caller(7, 6), libc::O_RDONLY as u32));
        assert!(!is_plainly_allowed(&owned, caller(7, 6), libc::O_WRONLY as u32));
        assert!(!is_plainly_allowed(&owned, caller(7, 7), libc::O_RDONLY as u32));
        assert!(is_plainly_allowed(&owned, caller(0, 7), libc::O_RDWR as u32));
    }
}
