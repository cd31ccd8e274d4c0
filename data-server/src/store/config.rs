//! The store's settings, checked once at open.

use super::types::{BLOCK_BYTES, META_VALUE_BYTES_MAX, StoreError};

/// Settings of a store. `journal_*` and `extent_file_bytes` are fixed when a store is created: later opens use what
/// its superblock says.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Bytes of contents the store may hold; `None` takes what the filesystem has free at open (plus what the store
    /// already occupies).
    pub capacity_bytes: Option<u64>,
    /// Ordinary transactions are refused with `Full` above this share of the capacity.
    pub full_ratio: f64,
    /// Writes of at least this many bytes go straight to fresh extents; smaller ones ride in the journal.
    pub large_write_bytes: usize,
    /// Bound on changes held in memory: beyond it `submit` answers `Busy`. Checkpoints start at half of it.
    pub dirty_bytes_max: usize,
    /// Cache of the index, in bytes.
    pub index_cache_bytes: usize,
    /// A checkpoint starts when the oldest change in memory is this old, in milliseconds.
    pub checkpoint_interval_ms: u64,
    /// Size of one journal segment, in bytes. A checkpoint starts whenever one is full.
    pub journal_segment_bytes: u64,
    /// Number of journal segments (at least 3): the journal occupies the product, zeroed, from the start.
    pub journal_segments: u32,
    /// Extents are cut from preallocated files of this size, in bytes.
    pub extent_file_bytes: u64,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            capacity_bytes: None,
            full_ratio: 0.95,
            large_write_bytes: 64 << 10,
            dirty_bytes_max: 64 << 20,
            index_cache_bytes: 32 << 20,
            checkpoint_interval_ms: 5000,
            journal_segment_bytes: 16 << 20,
            journal_segments: 4,
            extent_file_bytes: 256 << 20,
        }
    }
}

impl StoreConfig {
    /// What a store takes in memory by default, in bytes.
    pub const MEMORY_BYTES_DEFAULT: usize = 128 << 20;

    /// Divides `bytes` of memory: half for changes that are not in the index yet, a quarter for the cache of the index; the
    /// rest is for what is being written, for the bitmap of free blocks (32 MiB per TiB) and for the allocator.
    pub fn with_memory(self, bytes: usize) -> Self {
        Self { dirty_bytes_max: bytes / 2, index_cache_bytes: bytes / 4, ..self }
    }

    /// Refuses impossible combinations with a sentence.
    pub fn validate(&self) -> Result<(), StoreError> {
        let block = BLOCK_BYTES as u64;
        let refuse = |why: String| Err(StoreError::Refused(why));
        if !(0.01..=1.0).contains(&self.full_ratio) {
            return refuse(format!("full_ratio is {}; it must be between 0.01 and 1", self.full_ratio));
        }
        if self.large_write_bytes < BLOCK_BYTES || self.large_write_bytes > META_VALUE_BYTES_MAX {
            return refuse(format!(
                "large_write_bytes is {}; it must be 4096..=1 MiB",
                self.large_write_bytes
            ));
        }
        if self.journal_segments < 3 {
            return refuse(format!("journal_segments is {}; at least 3 are needed", self.journal_segments));
        }
        if self.journal_segment_bytes < 64 << 10 || !self.journal_segment_bytes.is_multiple_of(block) {
            return refuse("journal_segment_bytes must be a multiple of 4096, at least 64 KiB".to_string());
        }
        if self.extent_file_bytes < 1 << 20 || !self.extent_file_bytes.is_multiple_of(block * 64) {
            return refuse("extent_file_bytes must be a multiple of 256 KiB, at least 1 MiB".to_string());
        }
        Ok(())
    }
}
