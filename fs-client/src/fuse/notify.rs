//! Notifications to the kernel: drop or expire what it caches.
//!
//! Each call is one write to the device and may block: INVAL_ENTRY, expiring and DELETE take the parent's inode
//! lock, a range invalidation waits for I/O in flight and launders dirty pages through WRITEs that another
//! thread must serve. So call them from threads that serve no requests. [`Notifier::inval_attributes`] takes a
//! spinlock only and [`Notifier::inc_epoch`] nothing, but the latter also unmounts what is mounted below.

use super::abi::notify;
use super::encode::{Encoded, Writer};
use bytes::Bytes;
use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::sync::Arc;

/// Sends notifications of one mount. Cheap to clone, usable from any thread.
#[derive(Clone, Debug)]
pub struct Notifier(Arc<File>);

impl Notifier {
    /// Sends on a descriptor of the mount's device (a dup, never a clone of it).
    pub fn new(device: File) -> Self {
        Self(Arc::new(device))
    }

    /// Drops the node's attributes and, from `offset` on, `length` bytes of its pages (0: all that follow).
    /// Blocks on READs and WRITEs in flight there. Always succeeds if the node is known.
    pub fn inval_inode(&self, node: u64, offset: u64, length: u64) -> io::Result<Known> {
        self.send(&inval_inode(node, offset.min(i64::MAX as u64) as i64, length.min(i64::MAX as u64) as i64))
    }

    /// Drops the node's attributes and no page; never blocks.
    pub fn inval_attributes(&self, node: u64) -> io::Result<Known> {
        self.send(&inval_inode(node, -1, 0))
    }

    /// Drops a name (and what is mounted on it). Blocks on the directory's lock.
    pub fn inval_entry(&self, parent: u64, name: &[u8]) -> io::Result<Known> {
        self.send(&inval_entry(parent, name, 0))
    }

    /// Has a name looked up again at its next use. Blocks on the directory's lock.
    pub fn expire_entry(&self, parent: u64, name: &[u8]) -> io::Result<Known> {
        self.send(&inval_entry(parent, name, notify::EXPIRE_ONLY))
    }

    /// Says that `child` was removed from `parent`: inotify watchers hear of it. Blocks on the directory's lock.
    pub fn delete(&self, parent: u64, child: u64, name: &[u8]) -> io::Result<Known> {
        self.send(&delete(parent, child, name))
    }

    /// Has every cached name of the mount looked up again at its next use.
    pub fn inc_epoch(&self) -> io::Result<()> {
        self.send(&Writer::notification(notify::INC_EPOCH).finish(Vec::new())).map(|_| ())
    }

    /// Puts bytes into the page cache.
    pub fn store(&self, node: u64, offset: u64, data: Bytes) -> io::Result<Known> {
        self.send(&store(node, offset, data))
    }

    /// Says that a polled file may have become ready.
    pub fn poll_wakeup(&self, poll_handle: u64) -> io::Result<()> {
        let mut writer = Writer::notification(notify::POLL);
        writer.u64(poll_handle);
        self.send(&writer.finish(Vec::new())).map(|_| ())
    }

    fn send(&self, message: &Encoded) -> io::Result<Known> {
        loop {
            match write_all(&self.0, message) {
                Ok(()) => return Ok(Known::Yes),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(Known::No),
                // The directory is not cached, or not as a directory: there is no name in it to drop.
                Err(error) if error.raw_os_error() == Some(libc::ENOTDIR) => return Ok(Known::No),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether the kernel had what the notification is about. Both are success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It had it, and no longer does.
    Yes,
    /// Nothing of it was cached.
    No,
}

/// Writes one reply or notification in one call; the device takes all of it or fails.
pub(super) fn write_all(mut device: &File, message: &Encoded) -> io::Result<()> {
    if message.parts.is_empty() {
        return device.write(&message.head).map(|_| ());
    }
    let mut slices = Vec::with_capacity(1 + message.parts.len());
    slices.push(IoSlice::new(&message.head));
    slices.extend(message.parts.iter().map(|part| IoSlice::new(part)));
    device.write_vectored(&slices).map(|_| ())
}

fn inval_inode(node: u64, offset: i64, length: i64) -> Encoded {
    let mut writer = Writer::notification(notify::INVAL_INODE);
    writer.u64(node);
    writer.u64(offset as u64);
    writer.u64(length as u64);
    writer.finish(Vec::new())
}

fn inval_entry(parent: u64, name: &[u8], flags: u32) -> Encoded {
    let mut writer = Writer::notification(notify::INVAL_ENTRY);
    writer.u64(parent);
    writer.u32(name.len() as u32);
    writer.u32(flags);
    writer.finish(vec![ended_by_nul(name)])
}

fn delete(parent: u64, child: u64, name: &[u8]) -> Encoded {
    let mut writer = Writer::notification(notify::DELETE);
    writer.u64(parent);
    writer.u64(child);
    writer.u32(name.len() as u32);
    writer.u32(0);
    writer.finish(vec![ended_by_nul(name)])
}

fn store(node: u64, offset: u64, data: Bytes) -> Encoded {
    let mut writer = Writer::notification(notify::STORE);
    writer.u64(node);
    writer.u64(offset);
    writer.u32(data.len() as u32);
    writer.u32(0);
    writer.finish(vec![data])
}

fn ended_by_nul(name: &[u8]) -> Bytes {
    let mut bytes = Vec::with_capacity(name.len() + 1);
    bytes.extend_from_slice(name);
    bytes.push(0);
    Bytes::from(bytes)
}

#[cfg(test)]
#[path = "notify_tests.rs"]
mod tests;
