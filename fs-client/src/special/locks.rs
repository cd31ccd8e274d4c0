//! `.zabfs/locks/NAME`.
//!
//! Opening for writing takes the lock, in the order of arrival over all mounts; closing the last descriptor
//! (RELEASE) gives it back. `O_NONBLOCK` answers EAGAIN, a signal ends the wait with EINTR, and a retry within
//! [`PARKED_FOR`] keeps its place. The holder reads its fencing token; whoever opens it read-only reads who holds it
//! and who waits.

use super::listing::Item;
use super::{LOCK_BASE, now, text};
use crate::fs::{Handle, ZabFs};
use crate::fuse::{Interrupt, Opened, Reply, RequestHeader};
use crate::meta::{LockAsk, LockWait, MetaFailure};
use crate::os;
use bytes::Bytes;
use protocol::meta::{LockHolderInfo, LockRequest, LockResource, MetaReply, ReadOp, WriteOp};
use protocol::{EntryName, Errno};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// An interrupted wait keeps its place in the queue for this long, if its process lives on.
const PARKED_FOR: Duration = Duration::from_secs(5);
/// How often the process of an interrupted wait is looked at.
const PARKED_LOOK: Duration = Duration::from_millis(50);
/// Most waits that keep their place; further ones give it up at once.
const PARKED_MAX: usize = 1024;
/// With `O_NONBLOCK`, a lock that this mount itself is about to release (the kernel reports the close just after it
/// returned) is tried again this often, this far apart.
const OWN_RELEASE_TRIES: u32 = 4;
const OWN_RELEASE_PAUSE: Duration = Duration::from_millis(5);

/// An open special file.
pub(crate) struct SpecialHandle {
    pub(super) what: What,
    /// What its reader gets.
    pub(super) text: RefCell<Bytes>,
    /// It was a lock, and is one no more.
    lost: Cell<bool>,
}

/// What is open.
pub(super) enum What {
    Status,
    Waiting,
    Sync,
    LockState(EntryName),
    /// A lock that is held.
    Lock {
        name: EntryName,
        owner: u64,
        token: u64,
        process: u32,
    },
    Directory(Vec<Item>),
}

impl SpecialHandle {
    pub(super) fn new(what: What) -> Self {
        Self { what, text: RefCell::default(), lost: Cell::new(false) }
    }

    pub(super) fn check(&self) -> Result<(), Errno> {
        if self.lost.get() { Err(Errno::ESTALE) } else { Ok(()) }
    }

    pub(crate) fn lose_session(&self) {
        if matches!(self.what, What::Lock { .. }) {
            self.lost.set(true);
        }
    }

    fn holds(&self, wanted: &EntryName) -> bool {
        matches!(&self.what, What::Lock { name, .. } if name == wanted) && !self.lost.get()
    }
}

/// A wait that was interrupted.
pub(super) struct Parked {
    id: u64,
    name: EntryName,
    process: u32,
    owner: u64,
    wait: LockWait,
}

/// Names that the kernel knows, with their node ids and its references.
pub(super) struct LockNames {
    nodes: BTreeMap<EntryName, u64>,
    names: BTreeMap<u64, (EntryName, u64)>,
    next: u64,
}

impl Default for LockNames {
    fn default() -> Self {
        // The first id is what plain listings show for all.
        Self { nodes: BTreeMap::new(), names: BTreeMap::new(), next: LOCK_BASE + 1 }
    }
}

impl LockNames {
    /// The node of a name, with one more reference of the kernel.
    pub(super) fn lookup(&mut self, name: EntryName) -> u64 {
        let node = *self.nodes.entry(name.clone()).or_insert_with(|| {
            self.next += 1;
            self.next - 1
        });
        self.names.entry(node).or_insert((name, 0)).1 += 1;
        node
    }

    pub(super) fn forget(&mut self, node: u64, lookups: u64) {
        let Some((name, references)) = self.names.get_mut(&node) else { return };
        *references = references.saturating_sub(lookups);
        if *references == 0 {
            self.nodes.remove(name);
            self.names.remove(&node);
        }
    }

    pub(super) fn name(&self, node: u64) -> Option<EntryName> {
        self.names.get(&node).map(|(name, _)| name.clone())
    }
}

impl ZabFs {
    pub(super) async fn create_lock(
        self: &Rc<Self>,
        request: RequestHeader,
        name: Vec<u8>,
        flags: u32,
        interrupt: Interrupt,
    ) -> Result<Reply, Errno> {
        let name = EntryName::new(name)?;
        let opened = if flags as i32 & libc::O_ACCMODE == libc::O_RDONLY {
            self.special_opened(self.handles.number(), What::LockState(name.clone()))
        } else {
            self.take_lock(request, name.clone(), flags, interrupt).await?
        };
        let node = self.special.locks.borrow_mut().lookup(name);
        Ok(Reply::Created(self.special.entry(node), opened))
    }

    /// Takes the lock for an opening. If its caller is gone by then, the dispatcher closes the handle again.
    pub(super) async fn take_lock(
        self: &Rc<Self>,
        request: RequestHeader,
        name: EntryName,
        flags: u32,
        interrupt: Interrupt,
    ) -> Result<Opened, Errno> {
        let number = self.handles.number();
        let process = os::process_of(request.pid);
        let (owner, token) = if flags as i32 & libc::O_NONBLOCK != 0 {
            (number, self.try_named(self.lock_ask(&name, number, process)).await?)
        } else {
            let (owner, mut wait) = self.unpark(&name, process).unwrap_or_else(|| {
                let ask = self.lock_ask(&name, number, process);
                (number, self.meta.lock(ask))
            });
            tokio::select! {
                biased;
                taken = &mut wait => (owner, taken?),
                () = interrupt.any_signal() => {
                    self.park(name, process, owner, wait);
                    return Err(Errno::EINTR);
                }
            }
        };
        Ok(self.special_opened(number, What::Lock { name, owner, token, process }))
    }

    async fn try_named(self: &Rc<Self>, ask: LockAsk) -> Result<u64, Errno> {
        let LockResource::Named(name) = &ask.resource else { return Err(Errno::EINVAL) };
        let mut tries = 0;
        loop {
            match self.meta.try_lock(ask.clone()).await {
                Err(Errno::EAGAIN) if tries < OWN_RELEASE_TRIES && self.holds_lock(name) => {
                    tries += 1;
                    tokio::time::sleep(OWN_RELEASE_PAUSE).await;
                }
                other => return other,
            }
        }
    }

    fn holds_lock(&self, name: &EntryName) -> bool {
        self.handles.specials().iter().any(|special| special.holds(name))
    }

    fn lock_ask(&self, name: &EntryName, owner: u64, process: u32) -> LockAsk {
        LockAsk {
            resource: LockResource::Named(name.clone()),
            request: whole(owner, process),
            holder: LockHolderInfo { host: self.config.host.clone(), command: os::command_of(process) },
        }
    }

    /// Keeps the place of an interrupted wait, until its process comes back, ends, or takes too long.
    fn park(self: &Rc<Self>, name: EntryName, process: u32, owner: u64, wait: LockWait) {
        if self.special.parked.borrow().len() >= PARKED_MAX {
            return;
        }
        let id = self.handles.number();
        self.special.parked.borrow_mut().push(Parked { id, name, process, owner, wait });
        let fs = self.clone();
        tokio::task::spawn_local(async move {
            let deadline = tokio::time::Instant::now() + PARKED_FOR;
            while os::is_running(process) && tokio::time::Instant::now() < deadline {
                tokio::time::sleep(PARKED_LOOK).await;
            }
            // Dropping the wait cancels it, or gives back what was granted.
            fs.special.parked.borrow_mut().retain(|parked| parked.id != id);
        });
    }

    fn unpark(&self, name: &EntryName, process: u32) -> Option<(u64, LockWait)> {
        let mut parked = self.special.parked.borrow_mut();
        let index = parked.iter().position(|one| one.process == process && one.name == *name)?;
        let Parked { owner, wait, .. } = parked.remove(index);
        Some((owner, wait))
    }

    /// Answered when the lock is released: nobody waits for the answer, and what this mount asks for later is
    /// ordered behind it.
    pub(super) async fn special_release(self: &Rc<Self>, handle: u64) -> Result<Reply, Errno> {
        let Some(Handle::Special(special)) = self.handles.remove(handle) else { return Ok(Reply::Done) };
        if let What::Lock { name, owner, process, .. } = &special.what
            && !special.lost.get()
        {
            self.meta.unlock(LockResource::Named(name.clone()), whole(*owner, *process)).await?;
        }
        Ok(Reply::Done)
    }

    /// Removing a lock: the holder releases it, anybody else who may remove it breaks it.
    pub(super) async fn remove_lock(
        self: &Rc<Self>,
        request: RequestHeader,
        name: Vec<u8>,
    ) -> Result<Reply, Errno> {
        let name = EntryName::new(name)?;
        let caller = os::process_of(request.pid);
        let held = self.handles.specials().into_iter().find(|special| {
            special.holds(&name) && matches!(special.what, What::Lock { process, .. } if process == caller)
        });
        match held.as_ref().map(|special| (special, &special.what)) {
            Some((special, What::Lock { owner, process, .. })) => {
                self.meta.unlock(LockResource::Named(name), whole(*owner, *process)).await?;
                special.lost.set(true);
            }
            _ => {
                self.meta.write(WriteOp::BreakLock { name: name.clone() }).await?;
                let broken = self.handles.specials().into_iter().filter(|special| special.holds(&name));
                broken.for_each(|special| special.lost.set(true));
            }
        }
        Ok(Reply::Done)
    }

    pub(super) async fn lock_text(&self, name: &EntryName) -> Result<String, Errno> {
        match self.meta.read(ReadOp::LockState(LockResource::Named(name.clone()))).await? {
            MetaReply::LockState { holders, waiters } => Ok(text::lock(&holders, &waiters, now())),
            _ => Err(MetaFailure::Unexpected("a lock's state").into()),
        }
    }

    /// The token, if the lock is still held: another mount may have broken it.
    pub(super) async fn token_text(
        &self,
        special: &SpecialHandle,
        name: &EntryName,
        token: u64,
    ) -> Result<String, Errno> {
        match self.meta.read(ReadOp::LockState(LockResource::Named(name.clone()))).await? {
            MetaReply::LockState { holders, .. } if holders.iter().any(|holder| holder.token == token) => {
                Ok(format!("{token}\n"))
            }
            MetaReply::LockState { .. } => {
                special.lost.set(true);
                Err(Errno::ESTALE)
            }
            _ => Err(MetaFailure::Unexpected("a lock's state").into()),
        }
    }
}

fn whole(owner: u64, pid: u32) -> LockRequest {
    LockRequest { owner, exclusive: true, start: 0, end: u64::MAX, pid }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_node_while_the_kernel_refers_to_it() {
        let mut names = LockNames::default();
        let name = EntryName::new("a").expect("legal");
        let node = names.lookup(name.clone());
        assert_eq!(names.lookup(name.clone()), node);
        names.forget(node, 1);
        assert_eq!(names.name(node), Some(name.clone()));
        names.forget(node, 1);
        assert_eq!(names.name(node), None);
        assert_ne!(names.lookup(name), node, "ids are not used again");
    }
}
