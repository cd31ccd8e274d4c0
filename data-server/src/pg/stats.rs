//! Objects and bytes of a group: counted once in small steps, then kept up to date.

use protocol::InodeId;
use protocol::replication::{Cursor, GroupObject};

use super::copy::LocalCopy;
use super::types::Context;
use crate::store::{ObjectInfo, StoreError};

/// Objects counted per step.
const STEP: usize = 512;

#[derive(Clone, Copy, Debug)]
pub(super) struct Stats {
    counted: Cursor,
    pub(super) objects: u64,
    pub(super) bytes: u64,
}

impl Default for Stats {
    fn default() -> Self {
        Stats { counted: Cursor::Start, objects: 0, bytes: 0 }
    }
}

impl Stats {
    /// Counts a few more objects.
    pub(super) fn step(&mut self, copy: &LocalCopy, cx: &mut Context<'_>) -> Result<(), StoreError> {
        let after = match self.counted {
            Cursor::Start => None,
            Cursor::At(object) => Some((object.inode.0, object.chunk)),
            Cursor::End => return Ok(()),
        };
        let batch = cx.store.list(copy.pg.to_u64(), after, STEP)?;
        for (key, info) in &batch {
            self.objects += 1;
            self.bytes += info.allocated_bytes;
            self.counted = Cursor::At(GroupObject { inode: InodeId(key.inode), chunk: key.chunk });
        }
        if batch.len() < STEP {
            self.counted = Cursor::End;
        }
        Ok(())
    }

    /// An operation changed one object.
    pub(super) fn changed(&mut self, object: GroupObject, before: Option<ObjectInfo>, allocated: i64) {
        if Cursor::At(object) <= self.counted {
            self.objects += u64::from(before.is_none());
            self.bytes = self.bytes.saturating_add_signed(allocated);
        }
    }

    /// Objects of an inode were cut, and some removed.
    pub(super) fn trimmed(&mut self, inode: InodeId, removed: u64, allocated: i64) {
        let (first, last) = (GroupObject { inode, chunk: 0 }, GroupObject { inode, chunk: u32::MAX });
        if Cursor::At(last) <= self.counted {
            self.objects = self.objects.saturating_sub(removed);
            self.bytes = self.bytes.saturating_add_signed(allocated);
        } else if Cursor::At(first) <= self.counted {
            // Only part of them was counted.
            self.recount();
        }
    }

    /// Counts again from the beginning.
    pub(super) fn recount(&mut self) {
        *self = Stats::default();
    }
}
