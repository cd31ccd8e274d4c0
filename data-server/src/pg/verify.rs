//! What a scrub does on each replica: says what it has in a range of objects, and reads their blocks, a little at a
//! time.

use protocol::InodeId;
use protocol::replication::{Cursor, GroupObject, ObjectSummary};
use std::collections::BTreeMap;

use super::copy::LocalCopy;
use super::types::Context;
use crate::store::{BLOCK_BYTES, ObjectInfo, ObjectKey, StoreError};

/// Bytes read at once.
const PIECE_BYTES: u32 = 256 << 10;
/// Bytes of objects in one range of a deep scrub, unless the first object alone is larger.
const RANGE_BYTES: u64 = 8 << 20;
/// What an object costs beside its bytes: it has to be found.
const OBJECT_COST: i64 = 4096;

/// A block that does not match its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Damage {
    pub(super) object: GroupObject,
    /// Byte offset in the object.
    pub(super) offset: u32,
    pub(super) error: (ObjectKey, u32),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Verify {
    /// Everything up to here is read.
    cursor: Cursor,
    upto: Cursor,
    /// The object that is being read, and the next byte of it.
    at: Option<(GroupObject, u32)>,
    /// Damaged blocks found since they were taken away.
    pub(super) found: Vec<Damage>,
}

impl Verify {
    pub(super) fn new(after: Cursor, upto: Cursor) -> Self {
        Verify { cursor: after, upto, at: None, found: Vec::new() }
    }

    /// One object only.
    pub(super) fn of_object(object: GroupObject) -> Self {
        let upto = Cursor::At(object);
        Verify { cursor: upto, upto, at: Some((object, 0)), found: Vec::new() }
    }

    /// Reads on as far as the credit goes. True once everything is read.
    pub(super) fn step(
        &mut self,
        copy: &LocalCopy,
        cx: &mut Context<'_>,
        credit: &mut i64,
    ) -> Result<bool, StoreError> {
        while *credit > 0 {
            let Some((object, offset)) = self.at else {
                *credit -= OBJECT_COST;
                match next(copy, cx, self.cursor)? {
                    Some(object) if Cursor::At(object) <= self.upto => self.at = Some((object, 0)),
                    _ => return Ok(true),
                }
                continue;
            };
            let next_offset = match cx.store.read(copy.key(object), u64::from(offset), PIECE_BYTES as usize) {
                Ok(Some(piece)) => {
                    *credit -= piece.data.len() as i64;
                    (u64::from(offset) + (piece.data.len() as u64) < piece.info.size
                        && !piece.data.is_empty())
                    .then_some(offset + piece.data.len() as u32)
                }
                Ok(None) => None,
                Err(StoreError::Corrupt { key, block }) => {
                    *credit -= i64::from(PIECE_BYTES);
                    let at = block * BLOCK_BYTES as u32;
                    self.found.push(Damage { object, offset: at, error: (key, block) });
                    // Later blocks may be damaged too.
                    let next = at.max(offset).saturating_add(BLOCK_BYTES as u32);
                    let size = cx.store.info(key)?.map_or(0, |info| info.size);
                    (u64::from(next) < size).then_some(next)
                }
                Err(error) => return Err(error),
            };
            self.at = next_offset.map(|offset| (object, offset));
            if next_offset.is_none() {
                self.cursor = Cursor::At(object);
            }
        }
        Ok(false)
    }
}

fn next(copy: &LocalCopy, cx: &mut Context<'_>, cursor: Cursor) -> Result<Option<GroupObject>, StoreError> {
    let after = match cursor {
        Cursor::Start => None,
        Cursor::At(object) => Some((object.inode.0, object.chunk)),
        Cursor::End => return Ok(None),
    };
    let found = cx.store.list(copy.pg.to_u64(), after, 1)?;
    Ok(found.first().map(|(key, _)| GroupObject { inode: InodeId(key.inode), chunk: key.chunk }))
}

/// What this copy has behind `after`, as far as one range goes, and how far that is.
pub(super) fn summaries(
    copy: &LocalCopy,
    cx: &mut Context<'_>,
    (after, upto): (Cursor, Cursor),
    limit: usize,
    by_bytes: bool,
) -> Result<(BTreeMap<GroupObject, ObjectSummary>, Cursor), StoreError> {
    let behind = match after {
        Cursor::Start => None,
        Cursor::At(object) => Some((object.inode.0, object.chunk)),
        Cursor::End => return Ok((BTreeMap::new(), Cursor::End)),
    };
    let batch = cx.store.list(copy.pg.to_u64(), behind, limit)?;
    let (mut found, mut bytes) = (BTreeMap::new(), 0);
    let mut reached = upto;
    let is_full = batch.len() == limit;
    for (key, info) in batch {
        let object = GroupObject { inode: InodeId(key.inode), chunk: key.chunk };
        if Cursor::At(object) > upto {
            return Ok((found, upto));
        }
        bytes += info.size;
        if by_bytes && bytes > RANGE_BYTES && !found.is_empty() {
            return Ok((found, reached));
        }
        reached = Cursor::At(object);
        if let Some(digest) = cx.store.digest(key)? {
            let ObjectInfo { size, truncate_seq, version, .. } = digest.info;
            found.insert(object, ObjectSummary { size, truncate_seq, version, content: digest.content });
        }
    }
    Ok((found, if is_full { reached } else { upto }))
}
