//! Opening: creates a store, or brings one back to the last transaction that its disk holds.
//!
//! What survives is a prefix of the order of transactions: at least everything that was durable, and after a mere
//! `kill -9` everything that was written. The prefix is replayed on top of the last checkpoint and made a new
//! checkpoint before anything is served.

use std::{collections::BTreeMap, io, sync::Arc};

use protocol::mutant;

use super::{
    alloc::Allocator,
    config::StoreConfig,
    core::{Core, Start, write_blocks},
    disk::{Disk, DiskFile},
    extents::ExtentFiles,
    index::{self, CheckpointRecord, Index},
    journal::{self, Journal, Scan, ScanFrom},
    layer::Layer,
    object::Run,
    record::{self, Change},
    stage::{Below, Stage},
    superblock::{Superblock, SuperblockFile},
    types::{BLOCK_BYTES, StoreError},
};

/// An opened store, before its threads start.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) core: Core,
    pub(super) superblock: SuperblockFile,
    pub(super) was_clean: bool,
}

pub(super) fn open(disk: &Arc<dyn Disk>, config: StoreConfig) -> Result<Opened, StoreError> {
    config.validate()?;
    if !disk.lock().map_err(|e| StoreError::io("lock the directory", &e))? {
        return Err(StoreError::Refused("another process uses the directory: stop it first".to_string()));
    }
    let mut superblock = load_or_create(&**disk, &config)?;
    let was_clean = superblock.current.clean;
    let mut files = open_files(disk, &superblock.current, &config)?;
    let recovered = files.replay(&superblock.current)?;
    superblock.update(|s| {
        s.incarnation += 1;
        s.clean &= mutant!("unclean-stop-forgotten");
    })?;
    let current = &superblock.current;
    let start = files.settle(current, recovered, &**disk, &config)?;
    let Files { index, extents, journal_file, .. } = files;
    let core = Core::new((config, current.uuid, current.incarnation), (index, extents, journal_file), start)?;
    Ok(Opened { core, superblock, was_clean })
}

fn load_or_create(disk: &dyn Disk, config: &StoreConfig) -> Result<SuperblockFile, StoreError> {
    let mut superblock = match SuperblockFile::load(disk)? {
        Some(found) if !found.current.creating => return Ok(found),
        Some(interrupted) => interrupted,
        None => {
            let other =
                disk.open(index::FILE_NAME, false).map_err(|e| StoreError::io("look for an index", &e))?;
            if other.is_some() {
                return Err(StoreError::Refused(
                    "it has an index but no readable superblock: restore the superblock, or use an empty directory"
                        .to_string(),
                ));
            }
            SuperblockFile::create(disk, config)?
        }
    };
    let failed = |error: io::Error| StoreError::io("create the store's files", &error);
    let Superblock { uuid, journal_segment_bytes, journal_segments, .. } = superblock.current.clone();
    journal::preallocate(
        &*required(disk, journal::FILE_NAME)?,
        journal_segment_bytes * u64::from(journal_segments),
    )?;
    required(disk, index::FILE_NAME)?.set_len(0).map_err(failed)?;
    let record = CheckpointRecord { uuid, seq: 0, incarnation: 0, segment: 0 };
    Index::open(disk, config.index_cache_bytes)?.initialize(&record)?;
    disk.sync_directory().map_err(failed)?;
    superblock.update(|s| s.creating = false)?;
    Ok(superblock)
}

fn required(disk: &dyn Disk, name: &str) -> Result<Arc<dyn DiskFile>, StoreError> {
    disk.open(name, true)
        .map_err(|e| StoreError::io(&format!("open {name}"), &e))?
        .ok_or_else(|| StoreError::Failed(format!("{name} vanished while it was opened")))
}

struct Files {
    index: Index,
    record: CheckpointRecord,
    extents: ExtentFiles,
    journal_file: Arc<dyn DiskFile>,
    alloc: Allocator,
}

/// What the journal held after the last checkpoint.
struct Recovered {
    layer: Layer,
    last_seq: u64,
    last_segment: u64,
}

fn open_files(
    disk: &Arc<dyn Disk>,
    superblock: &Superblock,
    config: &StoreConfig,
) -> Result<Files, StoreError> {
    let missing =
        |name: &str| StoreError::Damaged(format!("the file {name} is missing: rebuild this server"));
    let open = |name: &str| disk.open(name, false).map_err(|e| StoreError::io(&format!("open {name}"), &e));
    let journal_file = open(journal::FILE_NAME)?.ok_or_else(|| missing(journal::FILE_NAME))?;
    open(index::FILE_NAME)?.ok_or_else(|| missing(index::FILE_NAME))?;
    let index = Index::open(&**disk, config.index_cache_bytes)?;
    let record = index.record()?;
    if record.uuid != superblock.uuid {
        return Err(StoreError::Refused(
            "its index belongs to another store: put the files back together".into(),
        ));
    }
    let extents = ExtentFiles::open(Arc::clone(disk), superblock.extent_file_bytes)?;
    let mut alloc = Allocator::new((superblock.extent_file_bytes / BLOCK_BYTES as u64) as u32);
    (0..extents.count()).for_each(|_| alloc.add_file());
    index.load_bitmap(|run| {
        if run.end() > alloc.total_blocks() {
            return Err(missing("of an extent that the index uses"));
        }
        alloc.mark(run);
        Ok(())
    })?;
    Ok(Files { index, record, extents, journal_file, alloc })
}

impl Files {
    /// Puts the journal's transactions into a layer.
    fn replay(&mut self, superblock: &Superblock) -> Result<Recovered, StoreError> {
        let CheckpointRecord { uuid, seq, incarnation, segment } = self.record;
        let from = ScanFrom { uuid, incarnation, segment, seq };
        let segments = u64::from(superblock.journal_segments);
        let Scan { frames, durable, last_segment } =
            journal::scan(&*self.journal_file, superblock.journal_segment_bytes, segments, from)?;
        let mut records = Vec::with_capacity(frames.len());
        for frame in frames {
            records.push((frame.seq, record::decode(frame.seq, &frame.body)?));
        }
        if !mutant!("record-without-its-contents") {
            records.truncate(self.trustworthy(&records, durable));
        }
        let last_seq = records.last().map_or(seq, |(seq, _)| *seq);
        let base = self.index.base()?;
        let mut layer = Layer::default();
        for (_, changes) in &records {
            let mut stage = Stage::new(Below { active: &layer, frozen: None, base: &base });
            for change in changes {
                stage.apply(change)?;
            }
            let stage = stage.layer;
            for run in &stage.allocated {
                claim(&mut self.alloc, &self.extents, *run)?;
            }
            layer.absorb(stage);
        }
        Ok(Recovered { layer, last_seq, last_segment })
    }

    /// Length of the prefix whose large contents reached the disk. A record and the contents it speaks of were synced
    /// together, so after a power failure an unsynced record may have arrived without them.
    ///
    /// Only the last writer of a block within the prefix can be judged: a checkpoint that was under way may have put
    /// newer contents (which the journal has too) over older ones.
    fn trustworthy(&self, records: &[(u64, Vec<Change>)], durable: u64) -> usize {
        let mut len = records.len();
        loop {
            let mut last: BTreeMap<u64, (usize, Option<u32>)> = BTreeMap::new();
            for (index, (_, changes)) in records[..len].iter().enumerate() {
                for change in changes {
                    let Change::Blocks(blocks) = change else { continue };
                    for (physical, crc) in blocks.physical().zip(&blocks.crcs) {
                        last.insert(physical, (index, blocks.external.then_some(*crc)));
                    }
                }
            }
            let torn = last
                .iter()
                .filter_map(|(physical, (index, crc))| Some((*physical, *index, (*crc)?)))
                .filter(|(_, index, _)| records[*index].0 > durable)
                .filter(|(physical, _, crc)| !self.holds(*physical, *crc))
                .map(|(_, index, _)| index)
                .min();
            match torn {
                Some(index) => len = index,
                None => return len,
            }
        }
    }

    fn holds(&self, physical: u64, crc: u32) -> bool {
        let mut bytes = [0; BLOCK_BYTES];
        self.extents.read(physical, &mut bytes).is_ok() && crc32c::crc32c(&bytes) == crc
    }

    /// Makes what was recovered a checkpoint of its own, from which the new incarnation's journal continues.
    fn settle(
        &mut self,
        superblock: &Superblock,
        recovered: Recovered,
        disk: &dyn Disk,
        config: &StoreConfig,
    ) -> Result<Start, StoreError> {
        let Recovered { layer, last_seq, last_segment } = recovered;
        // The journal first: blocks may be overwritten in place only by contents that cannot get lost any more.
        self.journal_file.sync().map_err(|e| StoreError::io("sync the journal", &e))?;
        write_blocks(&self.extents, &layer)?;
        self.extents.sync().map_err(|e| StoreError::io("sync the extents", &e))?;
        let segment = last_segment + 1;
        let record = CheckpointRecord {
            uuid: superblock.uuid,
            seq: last_seq,
            incarnation: superblock.incarnation,
            segment,
        };
        let freed = self.index.commit(&layer, &record)?;
        freed.into_iter().for_each(|run| self.alloc.release(run));
        let sizes = (superblock.journal_segment_bytes, u64::from(superblock.journal_segments));
        let (journal, first_header) =
            Journal::start(superblock.uuid, superblock.incarnation, sizes, segment, (last_seq + 1, last_seq));
        let blocks_per_file = superblock.extent_file_bytes / BLOCK_BYTES as u64;
        let alloc = std::mem::replace(&mut self.alloc, Allocator::new(blocks_per_file as u32));
        Ok(Start {
            active: Layer::default(),
            base: self.index.base()?,
            alloc,
            journal,
            first_header,
            last_seq,
            capacity_blocks: self.capacity_bytes(disk, config)? / BLOCK_BYTES as u64,
        })
    }

    /// Without a setting: all that is free, less a fiftieth for the index.
    fn capacity_bytes(&self, disk: &dyn Disk, config: &StoreConfig) -> Result<u64, StoreError> {
        match config.capacity_bytes {
            Some(bytes) => Ok(bytes),
            None => {
                let free = disk.free_bytes().map_err(|e| StoreError::io("ask for free space", &e))?;
                Ok(free / 50 * 49 + self.extents.bytes())
            }
        }
    }
}

/// Marks a run of a replayed record. Its file may be missing if nothing in it was ever synced: then its contents are in
/// the journal and it is made again.
fn claim(alloc: &mut Allocator, extents: &ExtentFiles, run: Run) -> Result<(), StoreError> {
    while run.end() > alloc.total_blocks() {
        extents.grow().map_err(|e| StoreError::io("preallocate an extent file", &e))?;
        alloc.add_file();
    }
    alloc.mark(run);
    Ok(())
}
