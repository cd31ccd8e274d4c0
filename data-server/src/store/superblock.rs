//! The superblock: who this store is, in two checksummed slots that are written in turn.
//!
//! The first version is written with `creating` set, before any other file exists; only when all are durable it is
//! cleared. A directory whose creation was interrupted is thus made again, and a directory that lost its superblock is
//! refused instead of being overwritten.

use std::{io, sync::Arc};

use super::{
    config::StoreConfig,
    disk::{Disk, DiskFile},
    types::StoreError,
};

const FILE_NAME: &str = "superblock";
const MAGIC: [u8; 8] = *b"zabstore";
/// Version of everything the store writes; a newer one is refused.
pub(super) const FORMAT: u32 = 1;
const SLOT_BYTES: usize = 4096;
const RECORD_BYTES: usize = 76;
const FLAG_CLEAN: u32 = 1;
const FLAG_CREATING: u32 = 2;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Superblock {
    pub(super) uuid: [u8; 16],
    /// Number of this version; its parity chooses the slot.
    pub(super) generation: u64,
    /// Number of times the store was opened.
    pub(super) incarnation: u64,
    /// The last stop wrote everything back.
    pub(super) clean: bool,
    pub(super) creating: bool,
    pub(super) journal_segment_bytes: u64,
    pub(super) journal_segments: u32,
    pub(super) extent_file_bytes: u64,
}

/// The file and its newest contents.
#[derive(Debug)]
pub(super) struct SuperblockFile {
    file: Arc<dyn DiskFile>,
    pub(super) current: Superblock,
}

impl SuperblockFile {
    /// Reads the newest valid slot; `None` when the file is missing or nothing was ever completed in it.
    pub(super) fn load(disk: &dyn Disk) -> Result<Option<Self>, StoreError> {
        let failed = |error: io::Error| StoreError::io("read the superblock", &error);
        let Some(file) = disk.open(FILE_NAME, false).map_err(failed)? else { return Ok(None) };
        let len = file.len().map_err(failed)?;
        let mut newest: Option<Superblock> = None;
        for slot in 0..2 {
            let mut bytes = [0; RECORD_BYTES];
            let at = slot * SLOT_BYTES as u64;
            if at + RECORD_BYTES as u64 > len {
                continue;
            }
            file.read_at(at, &mut bytes).map_err(failed)?;
            if let Some(found) = decode(&bytes)?
                && newest.as_ref().is_none_or(|n| n.generation < found.generation)
            {
                newest = Some(found);
            }
        }
        Ok(newest.map(|current| Self { file, current }))
    }

    /// Starts a new store; durable when this returns.
    pub(super) fn create(disk: &dyn Disk, config: &StoreConfig) -> Result<Self, StoreError> {
        let failed = |error: io::Error| StoreError::io("create the superblock", &error);
        let current = Superblock {
            uuid: disk.random().map_err(failed)?,
            generation: 0,
            incarnation: 0,
            clean: true,
            creating: true,
            journal_segment_bytes: config.journal_segment_bytes,
            journal_segments: config.journal_segments,
            extent_file_bytes: config.extent_file_bytes,
        };
        let file = disk
            .open(FILE_NAME, true)
            .map_err(failed)?
            .ok_or_else(|| StoreError::Failed("the superblock vanished while it was created".to_string()))?;
        file.set_len(2 * SLOT_BYTES as u64).map_err(failed)?;
        let mut this = Self { file, current };
        this.update(|_| {})?;
        disk.sync_directory().map_err(failed)?;
        Ok(this)
    }

    /// Changes the superblock; durable when this returns. The previous version stays readable until then.
    pub(super) fn update(&mut self, change: impl FnOnce(&mut Superblock)) -> Result<(), StoreError> {
        let failed = |error: io::Error| StoreError::io("write the superblock", &error);
        let mut next = self.current.clone();
        next.generation += 1;
        change(&mut next);
        let at = (next.generation % 2) * SLOT_BYTES as u64;
        self.file.write_at(at, &encode(&next)).map_err(failed)?;
        self.file.sync().map_err(failed)?;
        self.current = next;
        Ok(())
    }
}

fn encode(superblock: &Superblock) -> [u8; RECORD_BYTES] {
    let mut flags = 0;
    if superblock.clean {
        flags |= FLAG_CLEAN;
    }
    if superblock.creating {
        flags |= FLAG_CREATING;
    }
    let mut bytes = [0; RECORD_BYTES];
    bytes[0..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    bytes[12..16].copy_from_slice(&flags.to_le_bytes());
    bytes[16..32].copy_from_slice(&superblock.uuid);
    bytes[32..40].copy_from_slice(&superblock.generation.to_le_bytes());
    bytes[40..48].copy_from_slice(&superblock.incarnation.to_le_bytes());
    bytes[48..56].copy_from_slice(&superblock.journal_segment_bytes.to_le_bytes());
    bytes[56..64].copy_from_slice(&superblock.extent_file_bytes.to_le_bytes());
    bytes[64..68].copy_from_slice(&superblock.journal_segments.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..72]);
    bytes[72..76].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// `None` for a slot that was never completed.
fn decode(bytes: &[u8; RECORD_BYTES]) -> Result<Option<Superblock>, StoreError> {
    if bytes[..8] != MAGIC {
        return Ok(None);
    }
    let format = le_u32(bytes, 8);
    if format > FORMAT {
        return Err(StoreError::Refused(format!(
            "its format is version {format}, this program knows up to {FORMAT}: start the newer program"
        )));
    }
    if le_u32(bytes, 72) != crc32c::crc32c(&bytes[..72]) {
        return Ok(None);
    }
    let flags = le_u32(bytes, 12);
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&bytes[16..32]);
    Ok(Some(Superblock {
        uuid,
        generation: le_u64(bytes, 32),
        incarnation: le_u64(bytes, 40),
        clean: flags & FLAG_CLEAN != 0,
        creating: flags & FLAG_CREATING != 0,
        journal_segment_bytes: le_u64(bytes, 48),
        extent_file_bytes: le_u64(bytes, 56),
        journal_segments: le_u32(bytes, 64),
    }))
}

/// Reads a little-endian u32; the caller checked the length.
pub(super) fn le_u32(bytes: &[u8], at: usize) -> u32 {
    let mut raw = [0; 4];
    raw.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(raw)
}

/// Reads a little-endian u64; the caller checked the length.
pub(super) fn le_u64(bytes: &[u8], at: usize) -> u64 {
    let mut raw = [0; 8];
    raw.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(raw)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::SimDisk;

    #[test]
    fn a_torn_update_leaves_the_previous_version() {
        let disk = SimDisk::new(1);
        let mut file = SuperblockFile::create(&disk, &StoreConfig::default()).unwrap();
        file.update(|s| s.incarnation = 7).unwrap();
        let slot = (file.current.generation + 1) % 2;
        file.file.write_at(slot * SLOT_BYTES as u64 + 20, &[0xff; 40]).unwrap();
        let loaded = SuperblockFile::load(&disk).unwrap().unwrap();
        assert_eq!(loaded.current, file.current);
    }

    #[test]
    fn a_newer_format_is_refused_with_a_sentence() {
        let disk = SimDisk::new(1);
        let file = SuperblockFile::create(&disk, &StoreConfig::default()).unwrap();
        let slot = file.current.generation % 2;
        file.file.write_at(slot * SLOT_BYTES as u64 + 8, &99u32.to_le_bytes()).unwrap();
        let error = SuperblockFile::load(&disk).unwrap_err();
        assert!(error.to_string().contains("version 99"), "{error}");
    }
}
