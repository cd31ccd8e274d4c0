//! READDIR and READDIRPLUS.
//!
//! The kernel's offset 0 is the start, 1 comes after `.`, 2 after `..`, and the server's cookies follow from there.
//! Entries that did not fit wait in the handle for the next call; a call that continues elsewhere (seekdir, rewind)
//! asks anew.

use super::handles::{Ahead, Handle};
use super::{Answer, ZabFs, expect_attr};
use crate::fuse::{Directory, DirectoryEntry, Reply};
use crate::meta::MetaFailure;
use protocol::meta::{DirEntry, MetaReply, ReadOp};
use protocol::{Errno, FileKind, InodeId};
use std::rc::Rc;

const AFTER_DOT: u64 = 1;
const AFTER_DOTS: u64 = 2;
/// Entries asked for at once, as many as the server gives.
const BATCH: u32 = 1024;
/// Bytes of an entry in the kernel's form, about: to ask for no more than an answer takes, and some.
const ENTRY_BYTES_PLAIN: u32 = 32;
const ENTRY_BYTES_PLUS: u32 = 160;

impl ZabFs {
    pub(super) async fn readdir(
        self: &Rc<Self>,
        node: u64,
        handle: u64,
        offset: u64,
        size: u32,
        plus: bool,
    ) -> Answer {
        let Some(Handle::Directory(open)) = self.handles.get(handle) else { return Err(Errno::EBADF) };
        let inode = self.inode(node);
        let mut listing = Directory::new(size);
        if offset < AFTER_DOTS && !self.list_dots(inode, offset, plus, &mut listing).await {
            return Ok(Reply::Directory(listing));
        }
        let mut position = offset.max(AFTER_DOTS);
        let mut ahead = open.ahead.take().filter(|ahead| ahead.offset == position && offset >= AFTER_DOTS);
        let limit = (size / if plus { ENTRY_BYTES_PLUS } else { ENTRY_BYTES_PLAIN }).clamp(16, BATCH);
        'full: loop {
            let mut batch = match ahead.take() {
                Some(batch) => batch,
                None => self.fetch_entries(inode, position, limit).await?,
            };
            while let Some(entry) = batch.entries.front() {
                if !self.list(entry, plus, &mut listing) {
                    batch.offset = position;
                    open.ahead.replace(Some(batch));
                    break 'full;
                }
                position = offset_after(entry);
                batch.entries.pop_front();
            }
            if batch.end {
                break;
            }
        }
        Ok(Reply::Directory(listing))
    }

    async fn fetch_entries(&self, inode: InodeId, offset: u64, limit: u32) -> Result<Ahead, Errno> {
        let op = ReadOp::Readdir { inode, cookie: offset - AFTER_DOTS, limit };
        match self.meta.read(op).await {
            Ok(MetaReply::Entries { entries, end }) => {
                // Nothing at all is the end, whatever the server says.
                let end = end || entries.is_empty();
                Ok(Ahead { offset, entries: entries.into(), end })
            }
            Ok(_) => Err(MetaFailure::Unexpected("a readdir").into()),
            // Removed while it was open: it is empty.
            Err(MetaFailure::Errno(Errno::ENOENT | Errno::ESTALE)) => {
                Ok(Ahead { offset, entries: [].into(), end: true })
            }
            Err(failure) => Err(failure.into()),
        }
    }

    /// `false`: the answer is full.
    fn list(&self, entry: &DirEntry, plus: bool, listing: &mut Directory) -> bool {
        let shown = DirectoryEntry {
            inode: entry.attr.inode.0,
            offset: offset_after(entry),
            kind: entry.attr.kind,
            name: entry.name.as_bytes(),
        };
        if plus { listing.push_plus(&shown, Some(&self.entry(entry.attr))) } else { listing.push(&shown) }
    }

    async fn list_dots(&self, inode: InodeId, offset: u64, plus: bool, listing: &mut Directory) -> bool {
        let mut dot = |inode: InodeId, offset, name: &[u8]| {
            let entry = DirectoryEntry { inode: inode.0, offset, kind: FileKind::Directory, name };
            if plus { listing.push_plus(&entry, None) } else { listing.push(&entry) }
        };
        if offset < AFTER_DOT && !dot(inode, AFTER_DOT, b".") {
            return false;
        }
        let parent = self.parent_of(inode).await.unwrap_or(inode);
        dot(parent, AFTER_DOTS, b"..")
    }

    async fn parent_of(&self, inode: InodeId) -> Result<InodeId, Errno> {
        if inode == self.config.root {
            return Ok(inode);
        }
        Ok(expect_attr(self.meta.read(ReadOp::Parent(inode)).await?, "a lookup")?.inode)
    }
}

fn offset_after(entry: &DirEntry) -> u64 {
    // Cookies are below 2^63; two of them cannot be told from their neighbours, in no directory that exists.
    entry.cookie.saturating_add(AFTER_DOTS).min(i64::MAX as u64)
}
