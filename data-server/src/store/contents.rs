//! Where the bytes of a physical block are right now: in memory until they are on their way, then in the extents.

use std::collections::BTreeMap;

use bytes::Bytes;
use protocol::mutant;

use super::{
    extents::ExtentFiles,
    layer::Layer,
    types::{BLOCK_BYTES, ObjectKey, StoreError},
};

/// Large contents on their way to the extents, by first physical block.
pub(super) type InFlight = BTreeMap<u64, Bytes>;

/// Newest first: `active`, `frozen`, in flight, extents.
#[derive(Clone, Copy, Debug)]
pub(super) struct Contents<'a> {
    pub(super) active: &'a Layer,
    pub(super) frozen: Option<&'a Layer>,
    pub(super) in_flight: &'a InFlight,
    pub(super) extents: &'a ExtentFiles,
}

/// Why a block could not be had.
#[derive(Debug)]
pub(super) enum BlockError {
    Mismatch,
    Io(std::io::Error),
}

impl BlockError {
    pub(super) fn at(self, key: ObjectKey, block: u32) -> StoreError {
        match self {
            Self::Mismatch => StoreError::Corrupt { key, block },
            // A sector that the disk cannot read is a lost block, not a lost store.
            Self::Io(error) => {
                tracing::warn!(
                    "block {block} of {key} cannot be read: {error}; it will be copied from a replica"
                );
                StoreError::Corrupt { key, block }
            }
        }
    }
}

impl Contents<'_> {
    /// A block's bytes if they are in memory.
    pub(super) fn in_memory(&self, physical: u64) -> Option<Bytes> {
        if let Some(bytes) = self.active.blocks.get(&physical) {
            return Some(bytes.clone());
        }
        if let Some(bytes) = self.frozen.and_then(|frozen| frozen.blocks.get(&physical)) {
            return Some(bytes.clone());
        }
        let (start, bytes) = self.in_flight.range(..=physical).next_back()?;
        let from = usize::try_from(physical - start).ok()? * BLOCK_BYTES;
        (from < bytes.len()).then(|| bytes.slice(from..from + BLOCK_BYTES))
    }

    /// All blocks of `start..end` whose bytes are in memory.
    pub(super) fn in_memory_range(&self, start: u64, end: u64, found: &mut BTreeMap<u64, Bytes>) {
        let before = self.in_flight.range(..start).next_back().into_iter();
        for (first, bytes) in before.chain(self.in_flight.range(start..end)) {
            for (index, physical) in (*first..end).enumerate().take(bytes.len() / BLOCK_BYTES) {
                if physical >= start {
                    found.insert(physical, bytes.slice(index * BLOCK_BYTES..(index + 1) * BLOCK_BYTES));
                }
            }
        }
        for layer in [self.frozen, Some(self.active)].into_iter().flatten() {
            found.extend(layer.blocks.range(start..end).map(|(block, bytes)| (*block, bytes.clone())));
        }
    }

    /// A block, verified against its checksum.
    pub(super) fn block(&self, physical: u64, crc: u32) -> Result<Vec<u8>, BlockError> {
        if let Some(bytes) = self.in_memory(physical) {
            return Ok(bytes.to_vec());
        }
        let mut bytes = vec![0; BLOCK_BYTES];
        self.extents.read(physical, &mut bytes).map_err(BlockError::Io)?;
        if crc32c::crc32c(&bytes) == crc || mutant!("merge-not-verified") {
            Ok(bytes)
        } else {
            Err(BlockError::Mismatch)
        }
    }
}
