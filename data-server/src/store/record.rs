//! What a transaction became: the changes that the journal keeps.
//!
//! Changes are physical: they name the blocks and carry whole blocks' contents, so that replaying them reads nothing,
//! decides nothing and may be done twice.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{object::Run, types::ObjectKey, types::StoreError};

/// `(pg, inode, chunk)`, as the journal writes it.
pub(super) type RawKey = (u64, u64, u32);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Change {
    /// Creates the object if it is missing and sets what is not about blocks.
    Attributes {
        key: RawKey,
        size: u64,
        truncate_seq: u64,
        version: u64,
    },
    /// New contents for the blocks from `block` on.
    Blocks(Blocks),
    /// Turns blocks into a hole.
    Unmap {
        key: RawKey,
        block: u32,
        count: u32,
    },
    Delete {
        key: RawKey,
    },
    /// Deletes the objects in `from..to`.
    Clear {
        from: RawKey,
        to: RawKey,
    },
    PutMeta {
        key: Vec<u8>,
        value: Bytes,
    },
    DeleteMeta {
        key: Vec<u8>,
    },
    ClearMeta {
        from: Vec<u8>,
        to: Vec<u8>,
    },
    /// The object and its blocks belong to another group from now on.
    Move {
        key: RawKey,
        pg: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Blocks {
    pub(super) key: RawKey,
    pub(super) block: u32,
    /// Newly allocated: maps the blocks here and frees what they had. Otherwise the blocks are there already.
    pub(super) fresh: bool,
    /// `(first physical block, count)`.
    pub(super) runs: Vec<(u64, u32)>,
    /// Checksum of each block.
    pub(super) crcs: Vec<u32>,
    /// The contents, without zeros at the end; empty when they were written to the extents directly.
    pub(super) data: Bytes,
    /// The contents are in the extents, not in `data`.
    pub(super) external: bool,
}

impl Blocks {
    pub(super) fn runs(&self) -> Vec<Run> {
        self.runs.iter().map(|(start, len)| Run { start: *start, len: *len }).collect()
    }

    /// Physical block numbers in the order of the contents.
    pub(super) fn physical(&self) -> impl Iterator<Item = u64> + '_ {
        self.runs.iter().flat_map(|(start, len)| *start..*start + u64::from(*len))
    }
}

pub(super) fn raw(key: ObjectKey) -> RawKey {
    (key.pg, key.inode, key.chunk)
}

pub(super) fn cooked((pg, inode, chunk): RawKey) -> ObjectKey {
    ObjectKey { pg, inode, chunk }
}

pub(super) fn encode(changes: &[Change]) -> Result<Vec<u8>, StoreError> {
    postcard::to_stdvec(changes)
        .map_err(|e| StoreError::Invalid(format!("the transaction cannot be encoded: {e}")))
}

pub(super) fn decode(seq: u64, body: &[u8]) -> Result<Vec<Change>, StoreError> {
    let damaged = |why: String| {
        StoreError::Damaged(format!(
            "journal record {seq} has a valid checksum but {why}: report this as a bug"
        ))
    };
    let changes: Vec<Change> = postcard::from_bytes(body).map_err(|e| damaged(e.to_string()))?;
    for change in &changes {
        if let Change::Blocks(blocks) = change {
            let count: u64 = blocks.runs.iter().map(|(_, len)| u64::from(*len)).sum();
            if count != blocks.crcs.len() as u64 {
                return Err(damaged("names other blocks than it has checksums for".to_string()));
            }
        }
    }
    Ok(changes)
}
