//! From operations to changes: validates, merges partial blocks, allocates. May fail, and then leaves no trace.

use bytes::Bytes;
use protocol::mutant;

use super::{
    alloc::Allocator,
    contents::Contents,
    extents::ExtentFiles,
    layer::Layer,
    object::{Object, Run},
    record::{Blocks, Change, raw},
    stage::{Below, Stage},
    types::{
        BLOCK_BYTES, META_KEY_BYTES_MAX, META_VALUE_BYTES_MAX, OBJECT_BYTES_MAX, ObjectKey, Op, StoreError,
        Transaction,
    },
};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// Bounds of space, in blocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) large_write_bytes: usize,
    pub(super) capacity_blocks: u64,
    pub(super) full_blocks: u64,
    /// Freed blocks that the next checkpoints will release.
    pub(super) releasing_blocks: u64,
    /// Range deletions are waiting for a checkpoint: how much they free is not known yet.
    pub(super) releasing_unknown: bool,
}

/// A prepared transaction.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) layer: Layer,
    pub(super) changes: Vec<Change>,
    /// Large contents, to be written to the extents before the journal record.
    pub(super) writes: Vec<(u64, Bytes)>,
}

/// Prepares a transaction; after an error the allocator is as before.
pub(super) fn prepare(
    transaction: &Transaction,
    below: Below<'_>,
    contents: Contents<'_>,
    alloc: &mut Allocator,
    extents: &ExtentFiles,
    limits: Limits,
) -> Result<Prepared, StoreError> {
    let limit = if transaction.use_reserve || mutant!("reserve-for-everybody") {
        limits.capacity_blocks
    } else {
        limits.full_blocks
    };
    let mut preparer = Preparer {
        stage: Stage::new(below),
        contents,
        alloc,
        extents,
        limits,
        limit,
        taken: Vec::new(),
        changes: Vec::new(),
        writes: Vec::new(),
    };
    for op in &transaction.ops {
        if let Err(error) = preparer.op(op) {
            let Preparer { alloc, taken, .. } = preparer;
            taken
                .into_iter()
                .filter(|_| !mutant!("refused-write-keeps-its-space"))
                .for_each(|run| alloc.release(run));
            return Err(error);
        }
    }
    let Preparer { stage, changes, writes, .. } = preparer;
    Ok(Prepared { layer: stage.layer, changes, writes })
}

struct Preparer<'a> {
    stage: Stage<'a>,
    contents: Contents<'a>,
    alloc: &'a mut Allocator,
    extents: &'a ExtentFiles,
    limits: Limits,
    limit: u64,
    taken: Vec<Run>,
    changes: Vec<Change>,
    writes: Vec<(u64, Bytes)>,
}

impl Preparer<'_> {
    fn op(&mut self, op: &Op) -> Result<(), StoreError> {
        match op {
            Op::Write { key, offset, data, crc, truncate_seq, version } => {
                check_write(*key, *offset, data, *crc)?;
                self.write(*key, *offset, data, (*truncate_seq, *version))
            }
            Op::Truncate { key, size, truncate_seq, version } => {
                self.truncate(*key, *size, (*truncate_seq, *version))
            }
            Op::Zero { key, offset, len, version } => self.zero(*key, *offset, *len, *version),
            Op::Delete { key } => match self.stage.object(*key)? {
                Some(_) => self.push(Change::Delete { key: raw(*key) }),
                None => Ok(()),
            },
            Op::DeleteRange { pg, inode, from_chunk } => {
                let from = ObjectKey { pg: *pg, inode: *inode, chunk: *from_chunk };
                let to = match inode.checked_add(1) {
                    Some(inode) => ObjectKey { pg: *pg, inode, chunk: 0 },
                    None => group_end(*pg)?,
                };
                self.push(Change::Clear { from: raw(from), to: raw(to) })
            }
            Op::Move { key, pg } => match self.stage.object(*key)? {
                Some(_) if *pg != key.pg => self.push(Change::Move { key: raw(*key), pg: *pg }),
                _ => Ok(()),
            },
            Op::DeletePg { pg } => {
                let from = ObjectKey { pg: *pg, inode: 0, chunk: 0 };
                self.push(Change::Clear { from: raw(from), to: raw(group_end(*pg)?) })
            }
            Op::PutMeta { key, value } => {
                check_meta(key, value)?;
                self.push(Change::PutMeta { key: key.clone(), value: value.clone() })
            }
            Op::DeleteMeta { key } => self.push(Change::DeleteMeta { key: key.clone() }),
            Op::DeleteMetaRange { from, to } => {
                self.push(Change::ClearMeta { from: from.clone(), to: to.clone() })
            }
        }
    }

    fn push(&mut self, change: Change) -> Result<(), StoreError> {
        self.stage.apply(&change)?;
        self.changes.push(change);
        Ok(())
    }

    fn write(
        &mut self,
        key: ObjectKey,
        offset: u64,
        data: &Bytes,
        (truncate_seq, version): (u64, u64),
    ) -> Result<(), StoreError> {
        let old = self.stage.object(key)?.map(|o| (*o).clone()).unwrap_or_default();
        let end = offset + data.len() as u64;
        let size = if data.is_empty() { old.size } else { old.size.max(end) };
        let truncate_seq = old.truncate_seq.max(truncate_seq);
        self.push(Change::Attributes { key: raw(key), size, truncate_seq, version })?;
        if data.is_empty() {
            return Ok(());
        }
        if data.len() >= self.limits.large_write_bytes {
            self.write_large(key, &old, offset, data)
        } else {
            self.write_small(key, &old, offset, data, size)
        }
    }

    /// To fresh blocks, contents outside the journal.
    fn write_large(
        &mut self,
        key: ObjectKey,
        old: &Object,
        offset: u64,
        data: &Bytes,
    ) -> Result<(), StoreError> {
        let pieces = self.pieces(key, old, offset, data)?;
        let block = (offset / BLOCK) as u32;
        let crcs: Vec<u32> =
            pieces.iter().flat_map(|p| p.chunks_exact(BLOCK_BYTES)).map(crc32c::crc32c).collect();
        let hint = old.hint(block).filter(|_| old.physical(block).is_none());
        let runs = self.allocate(crcs.len() as u32, hint)?;
        self.writes.extend(place(&runs, &pieces));
        self.push(Change::Blocks(Blocks {
            key: raw(key),
            block,
            fresh: true,
            runs: runs.iter().map(|r| (r.start, r.len)).collect(),
            crcs,
            data: Bytes::new(),
            external: true,
        }))
    }

    /// In place where blocks exist, else to new ones; contents in the journal.
    fn write_small(
        &mut self,
        key: ObjectKey,
        old: &Object,
        offset: u64,
        data: &Bytes,
        size: u64,
    ) -> Result<(), StoreError> {
        let buffer = Bytes::from(self.pieces(key, old, offset, data)?.concat());
        let first = (offset / BLOCK) as u32;
        let count = (buffer.len() / BLOCK_BYTES) as u32;
        let mut block = first;
        while block < first + count {
            let mapped = old.mapped(block, first + count).next();
            let (runs, len, fresh) = match mapped {
                Some(extent) if extent.block == block => (vec![extent.run], extent.run.len, false),
                next => {
                    let len = next.map_or(first + count, |extent| extent.block) - block;
                    (self.allocate(len, old.hint(block))?, len, true)
                }
            };
            let from = (block - first) as usize * BLOCK_BYTES;
            let contents = buffer.slice(from..from + len as usize * BLOCK_BYTES);
            self.put_inline(key, (block, &runs, fresh), contents, size)?;
            block += len;
        }
        Ok(())
    }

    /// A change with its contents (whole blocks) in the journal, without what lies beyond the object's end.
    fn put_inline(
        &mut self,
        key: ObjectKey,
        (block, runs, fresh): (u32, &[Run], bool),
        contents: Bytes,
        size: u64,
    ) -> Result<(), StoreError> {
        let crcs = contents.chunks_exact(BLOCK_BYTES).map(crc32c::crc32c).collect();
        let inside = (size.saturating_sub(u64::from(block) * BLOCK)).min(contents.len() as u64) as usize;
        self.push(Change::Blocks(Blocks {
            key: raw(key),
            block,
            fresh,
            runs: runs.iter().map(|r| (r.start, r.len)).collect(),
            crcs,
            data: contents.slice(..inside),
            external: false,
        }))
    }

    /// The contents of all blocks that a write touches: its data, with the old bytes around it in the first and last.
    fn pieces(
        &mut self,
        key: ObjectKey,
        old: &Object,
        offset: u64,
        data: &Bytes,
    ) -> Result<Vec<Bytes>, StoreError> {
        let mut pieces = Vec::with_capacity(3);
        let mut at = 0;
        let within = (offset % BLOCK) as usize;
        if within != 0 || data.len() < BLOCK_BYTES {
            at = data.len().min(BLOCK_BYTES - within);
            pieces.push(self.merge(key, old, offset, &data[..at])?);
        }
        let middle = (data.len() - at) / BLOCK_BYTES * BLOCK_BYTES;
        if middle > 0 {
            pieces.push(data.slice(at..at + middle));
        }
        at += middle;
        if at < data.len() {
            pieces.push(self.merge(key, old, offset + at as u64, &data[at..])?);
        }
        Ok(pieces)
    }

    /// One block with `bytes` at `offset` over its old contents. Reads them only if some survive.
    fn merge(
        &mut self,
        key: ObjectKey,
        old: &Object,
        offset: u64,
        bytes: &[u8],
    ) -> Result<Bytes, StoreError> {
        let block = (offset / BLOCK) as u32;
        let within = (offset % BLOCK) as usize;
        let valid = old.size.saturating_sub(u64::from(block) * BLOCK).min(BLOCK) as usize;
        let covered = (within == 0 && bytes.len() >= valid) || mutant!("partial-block-forgets-the-rest");
        let mut merged = if covered { vec![0; BLOCK_BYTES] } else { self.old_block(key, old, block)? };
        merged[within..within + bytes.len()].copy_from_slice(bytes);
        Ok(Bytes::from(merged))
    }

    fn old_block(&mut self, key: ObjectKey, old: &Object, block: u32) -> Result<Vec<u8>, StoreError> {
        let Some(physical) = old.physical(block) else { return Ok(vec![0; BLOCK_BYTES]) };
        if let Some(bytes) = self.stage.layer.blocks.get(&physical)
            && !mutant!("merge-from-a-stale-base")
        {
            return Ok(bytes.to_vec());
        }
        // Contents that an earlier operation of this transaction sends to the extents.
        let staged = self.writes.iter().find_map(|(start, bytes)| {
            let index = usize::try_from(physical.checked_sub(*start)?).ok()?;
            bytes.get(index * BLOCK_BYTES..(index + 1) * BLOCK_BYTES)
        });
        match staged {
            Some(bytes) => Ok(bytes.to_vec()),
            None => self.contents.block(physical, old.crc(block)).map_err(|e| e.at(key, block)),
        }
    }

    fn truncate(
        &mut self,
        key: ObjectKey,
        size: u64,
        (truncate_seq, version): (u64, u64),
    ) -> Result<(), StoreError> {
        if size > OBJECT_BYTES_MAX {
            return Err(StoreError::Invalid(format!(
                "{key} cannot have {size} bytes, at most {OBJECT_BYTES_MAX}"
            )));
        }
        let Some(old) = self.stage.object(key)? else { return Ok(()) };
        let truncate_seq = old.truncate_seq.max(truncate_seq);
        if size < old.size {
            self.zero_within(key, &old, size, size.next_multiple_of(BLOCK).min(old.size))?;
            let from = size.div_ceil(BLOCK) as u32;
            self.unmap(key, from, u32::MAX - from)?;
        }
        self.push(Change::Attributes { key: raw(key), size, truncate_seq, version })
    }

    fn zero(&mut self, key: ObjectKey, offset: u64, len: u64, version: u64) -> Result<(), StoreError> {
        let Some(old) = self.stage.object(key)? else { return Ok(()) };
        let (size, truncate_seq) = (old.size, old.truncate_seq);
        let end = offset.saturating_add(len).min(size);
        if offset < end {
            // The end of the object frees its last block whole: what follows in it is zeros already.
            let blocks_end = if end == size { end.div_ceil(BLOCK) } else { end / BLOCK };
            let blocks_start = offset.div_ceil(BLOCK);
            if blocks_start < blocks_end {
                self.zero_within(key, &old, offset, blocks_start * BLOCK)?;
                self.unmap(key, blocks_start as u32, (blocks_end - blocks_start) as u32)?;
                self.zero_within(key, &old, (blocks_end * BLOCK).min(end), end)?;
            } else {
                let boundary = (offset + 1).next_multiple_of(BLOCK).min(end);
                self.zero_within(key, &old, offset, boundary)?;
                self.zero_within(key, &old, boundary, end)?;
            }
        }
        self.push(Change::Attributes { key: raw(key), size, truncate_seq, version })
    }

    /// Zeros `from..to`, which lies in one block, in place; a hole needs nothing.
    fn zero_within(&mut self, key: ObjectKey, old: &Object, from: u64, to: u64) -> Result<(), StoreError> {
        let block = (from / BLOCK) as u32;
        let Some(physical) = old.physical(block).filter(|_| from < to) else { return Ok(()) };
        let within = (from % BLOCK) as usize;
        let mut bytes = self.old_block(key, old, block)?;
        bytes[within..within + (to - from) as usize].fill(0);
        let run = Run { start: physical, len: 1 };
        self.put_inline(key, (block, &[run], false), Bytes::from(bytes), old.size)
    }

    fn unmap(&mut self, key: ObjectKey, block: u32, count: u32) -> Result<(), StoreError> {
        self.push(Change::Unmap { key: raw(key), block, count })
    }

    /// Takes blocks, growing the files as needed. `Busy` when a checkpoint will make room, else `Full`.
    fn allocate(&mut self, count: u32, hint: Option<u64>) -> Result<Vec<Run>, StoreError> {
        let needed = self.alloc.allocated_blocks() + u64::from(count);
        if needed > self.limit {
            return Err(self.no_room(count));
        }
        loop {
            if let Some(runs) = self.alloc.allocate(count, hint) {
                self.taken.extend(&runs);
                return Ok(runs);
            }
            if self.should_wait() {
                return Err(StoreError::Busy);
            }
            if let Err(error) = self.extents.grow() {
                tracing::warn!(
                    "no further extent file could be preallocated: {error}; free space on its filesystem"
                );
                return Err(self.no_room(count));
            }
            self.alloc.add_file();
        }
    }

    /// So much was freed that the next checkpoint makes room: overwriting must not spread over the disk while it runs.
    fn should_wait(&self) -> bool {
        let releasing = self.limits.releasing_blocks;
        let used = self.alloc.allocated_blocks().saturating_sub(releasing);
        releasing > (used / 10).max(u64::from(self.alloc.blocks_per_file()))
    }

    fn no_room(&self, count: u32) -> StoreError {
        let used = self.alloc.allocated_blocks().saturating_sub(self.limits.releasing_blocks);
        if self.limits.releasing_unknown
            || (self.limits.releasing_blocks > 0 && used + u64::from(count) <= self.limit)
        {
            return StoreError::Busy;
        }
        let capacity = self.limits.capacity_blocks * BLOCK;
        StoreError::Full { needed: u64::from(count) * BLOCK, used: used * BLOCK, capacity }
    }
}

/// Cuts contents at the boundaries of the runs they go to.
fn place(runs: &[Run], pieces: &[Bytes]) -> Vec<(u64, Bytes)> {
    let mut writes = Vec::with_capacity(runs.len() + pieces.len());
    let mut pieces = pieces.iter().cloned();
    let mut piece = Bytes::new();
    for run in runs {
        let mut start = run.start;
        while start < run.end() {
            if piece.is_empty() {
                piece = pieces.next().expect("there is one block of contents per allocated block");
            }
            let blocks = (run.end() - start).min((piece.len() / BLOCK_BYTES) as u64);
            writes.push((start, piece.split_to(blocks as usize * BLOCK_BYTES)));
            start += blocks;
        }
    }
    writes
}

fn check_write(key: ObjectKey, offset: u64, data: &Bytes, expected: u32) -> Result<(), StoreError> {
    let end = offset.checked_add(data.len() as u64).filter(|end| *end <= OBJECT_BYTES_MAX);
    if end.is_none() {
        return Err(StoreError::Invalid(format!(
            "{} bytes at {offset} of {key} end beyond {OBJECT_BYTES_MAX}",
            data.len()
        )));
    }
    let actual = crc32c::crc32c(data);
    if actual == expected || mutant!("ingest-not-verified") {
        Ok(())
    } else {
        Err(StoreError::BadChecksum { key, expected, actual })
    }
}

fn check_meta(key: &[u8], value: &Bytes) -> Result<(), StoreError> {
    if key.is_empty() || key.len() > META_KEY_BYTES_MAX {
        return Err(StoreError::Invalid(format!("a meta key has {} bytes, allowed are 1..=64", key.len())));
    }
    if value.len() > META_VALUE_BYTES_MAX {
        return Err(StoreError::Invalid(format!(
            "a meta value has {} bytes, at most 1 MiB is allowed",
            value.len()
        )));
    }
    Ok(())
}

/// First key after those of a group.
pub(super) fn group_end(pg: u64) -> Result<ObjectKey, StoreError> {
    let pg = pg
        .checked_add(1)
        .ok_or_else(|| StoreError::Invalid("placement group 2^64 - 1 cannot exist".into()))?;
    Ok(ObjectKey { pg, inode: 0, chunk: 0 })
}
