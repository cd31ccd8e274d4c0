//! flock and fcntl locks.

use super::{Answer, FileHandle, ZabFs};
use crate::fuse::operation::{FileLock, LockKind, LockRequest as KernelRequest};
use crate::fuse::{Interrupt, Reply, RequestHeader};
use crate::meta::{LockAsk, MetaFailure};
use crate::os;
use protocol::meta::{LockEntry, LockHolderInfo, LockRequest, LockResource, MetaReply, ReadOp};
use protocol::{Errno, InodeId};
use std::rc::Rc;

/// The kernel's "to the end, wherever".
const KERNEL_END: u64 = i64::MAX as u64;

impl ZabFs {
    pub(super) async fn getlk(&self, node: u64, wanted: KernelRequest) -> Answer {
        let resource = resource(self.inode(node), wanted.flock);
        let request = request(&wanted);
        match self.meta.read(ReadOp::TestLock { resource, request }).await? {
            MetaReply::Conflict(conflict) => Ok(Reply::Lock(shown(conflict, wanted.lock))),
            _ => Err(MetaFailure::Unexpected("a lock test").into()),
        }
    }

    pub(super) async fn setlk(
        self: &Rc<Self>,
        header: RequestHeader,
        wanted: KernelRequest,
        wait: bool,
        interrupt: Interrupt,
    ) -> Answer {
        let file = self.handles.file(wanted.handle)?;
        let resource = resource(self.inode(header.node), wanted.flock);
        let request = request(&wanted);
        if wanted.lock.kind == LockKind::Unlock {
            note_unlocked(&file, &wanted, request);
            self.meta.unlock(resource, request).await?;
            return Ok(Reply::Done);
        }
        file.check_read()?;
        let holder = LockHolderInfo { host: self.config.host.clone(), command: os::command_of(header.pid) };
        let ask = LockAsk { resource, request, holder };
        let generation = self.meta.generation();
        if !wanted.flock {
            // Before it is held: the FLUSH or RELEASE of a process that dies meanwhile must find it.
            file.node.posix_owners.borrow_mut().insert(request.owner);
            file.lock_owners.borrow_mut().insert(request.owner);
        }
        if wait {
            let waiting = self.meta.lock(ask.clone());
            tokio::select! {
                biased;
                taken = waiting => taken?,
                () = interrupt.any_signal() => return Err(Errno::EINTR),
            };
        } else {
            self.meta.try_lock(ask.clone()).await?;
        }
        if interrupt.is_abandoned() {
            self.meta.unlock(ask.resource, ask.request).await?;
            return Err(Errno::EINTR);
        }
        if self.meta.generation() == generation {
            note_locked(&file, &wanted, request);
        }
        Ok(Reply::Done)
    }
}

fn note_locked(file: &FileHandle, wanted: &KernelRequest, request: LockRequest) {
    if wanted.flock {
        file.flocked.set(true);
    } else {
        file.locked.borrow_mut().add(request.start, request.end);
    }
}

fn note_unlocked(file: &FileHandle, wanted: &KernelRequest, request: LockRequest) {
    if wanted.flock {
        file.flocked.set(false);
    } else {
        file.locked.borrow_mut().remove(request.start, request.end);
    }
}

fn resource(inode: InodeId, flock: bool) -> LockResource {
    if flock { LockResource::Flock(inode) } else { LockResource::Posix(inode) }
}

fn request(wanted: &KernelRequest) -> LockRequest {
    let FileLock { start, end, kind, pid } = wanted.lock;
    let (start, end) = if wanted.flock { (0, KERNEL_END) } else { (start, end) };
    let end = if end >= KERNEL_END { u64::MAX } else { end };
    LockRequest { owner: wanted.owner, exclusive: kind == LockKind::Write, start, end, pid }
}

fn shown(conflict: Option<LockEntry>, asked: FileLock) -> FileLock {
    let Some(LockEntry { request, .. }) = conflict else {
        return FileLock { kind: LockKind::Unlock, ..asked };
    };
    let kind = if request.exclusive { LockKind::Write } else { LockKind::Read };
    FileLock { start: request.start, end: request.end.min(KERNEL_END), kind, pid: request.pid }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(start: u64, end: u64, flock: bool) -> KernelRequest {
        let lock = FileLock { start, end, kind: LockKind::Write, pid: 7 };
        KernelRequest { handle: 1, owner: 99, lock, flock }
    }

    #[test]
    fn the_end_of_a_file_has_two_spellings() {
        assert_eq!(request(&kernel(5, KERNEL_END, false)).end, u64::MAX);
        assert_eq!(request(&kernel(5, 9, false)).end, 9);
        let whole = request(&kernel(3, 4, true));
        assert_eq!((whole.start, whole.end, whole.exclusive), (0, u64::MAX, true));
    }

    #[test]
    fn no_conflict_is_shown_as_unlocked() {
        let asked = kernel(0, 9, false).lock;
        assert_eq!(shown(None, asked).kind, LockKind::Unlock);
    }
}
