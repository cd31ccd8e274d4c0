//! Directories of `.zabfs`.

use super::locks::What;
use super::{ENTRIES, LOCK_BASE, LOCKS, ROOT, ROOT_NODE};
use crate::fs::ZabFs;
use crate::fuse::{Directory, DirectoryEntry, Opened, Reply};
use crate::meta::MetaFailure;
use protocol::meta::{MetaReply, ReadOp};
use protocol::{EntryName, Errno, FileKind};

/// One entry of an open special directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    name: Vec<u8>,
    /// `None`: a lock, whose node is made when the kernel wants one.
    node: Option<u64>,
    kind: FileKind,
}

impl ZabFs {
    pub(super) async fn special_opendir(&self, node: u64) -> Result<Reply, Errno> {
        let parent = if node == ROOT { ROOT_NODE } else { ROOT };
        let directory =
            |name: &[u8], node| Item { name: name.to_vec(), node: Some(node), kind: FileKind::Directory };
        let mut items = vec![directory(b".", node), directory(b"..", parent)];
        match node {
            ROOT => items.extend(ENTRIES.iter().map(|(name, node)| {
                let kind = if *node == LOCKS { FileKind::Directory } else { FileKind::File };
                Item { name: name.to_vec(), node: Some(*node), kind }
            })),
            LOCKS => {
                let MetaReply::Names(names) = self.meta.read(ReadOp::NamedLocks).await? else {
                    return Err(MetaFailure::Unexpected("a list of locks").into());
                };
                let lock = |name| Item { name, node: None, kind: FileKind::File };
                items.extend(names.into_iter().map(lock));
            }
            _ => return Err(Errno::ENOTDIR),
        }
        let number = self.handles.number();
        self.special_opened(number, What::Directory(items));
        Ok(Reply::Opened(Opened { handle: number, flags: 0 }))
    }

    pub(super) fn special_readdir(
        &self,
        handle: u64,
        offset: u64,
        size: u32,
        plus: bool,
    ) -> Result<Reply, Errno> {
        let special = self.special_handle(handle)?;
        let What::Directory(items) = &special.what else { return Err(Errno::ENOTDIR) };
        let mut listing = Directory::new(size);
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        for (index, item) in items.iter().enumerate().skip(skip) {
            if !self.list_item(item, index as u64 + 1, plus, &mut listing) {
                break;
            }
        }
        Ok(Reply::Directory(listing))
    }

    fn list_item(&self, item: &Item, offset: u64, plus: bool, listing: &mut Directory) -> bool {
        let is_dots = matches!(item.name.as_slice(), b"." | b"..");
        let (node, lock) = match item.node {
            Some(node) => (node, None),
            // Shown without attributes unless the kernel takes a reference.
            None if !plus => (LOCK_BASE, None),
            None => match EntryName::new(item.name.clone()) {
                Ok(name) => (self.special.locks.borrow_mut().lookup(name), Some(())),
                Err(_) => return true,
            },
        };
        let shown = DirectoryEntry { inode: node, offset, kind: item.kind, name: &item.name };
        let fits = if plus {
            let entry = self.special.entry(node);
            listing.push_plus(&shown, (!is_dots).then_some(&entry))
        } else {
            listing.push(&shown)
        };
        if !fits && lock.is_some() {
            self.special.forget(node, 1);
        }
        fits
    }
}
