//! Reading: on the caller's thread, straight from memory and the page cache, every block verified.

use std::{collections::BTreeMap, ops::Bound, sync::Arc};

use bytes::Bytes;
use protocol::mutant;

use super::{
    contents::BlockError,
    core::Core,
    extents::ExtentFiles,
    layer::{Found, Layered},
    object::{Extent, Object},
    prep::group_end,
    types::{BLOCK_BYTES, Digest, ObjectInfo, ObjectKey, Piece, StoreError},
};

const BLOCK: u64 = BLOCK_BYTES as u64;
/// Entries of one listing, at most.
const LIST_MAX: usize = 65_536;
/// Bytes that a verification holds in memory.
const VERIFY_BLOCKS: u32 = 256;
/// A block that another thread overwrites while it is read fails its first verification, the second look finds it
/// elsewhere; three looks with the same result are no accident.
const LOOKS: usize = 3;
/// Reads of at least this many bytes are taken for parts of a sequence …
const SEQUENCE_BYTES_MIN: u64 = 256 << 10;
/// … and the disk is told to read this many bytes behind them.
const AHEAD_BYTES: u64 = 2 << 20;

/// An object as it was at one moment, with those of its blocks that were in memory.
struct Snapshot {
    object: Arc<Object>,
    in_memory: BTreeMap<u64, Bytes>,
}

impl Core {
    pub(super) fn read(&self, key: ObjectKey, offset: u64, len: usize) -> Result<Option<Piece>, StoreError> {
        let mut look = 0;
        loop {
            look += 1;
            let Some(snapshot) = self.snapshot(key, offset, len as u64)? else { return Ok(None) };
            match snapshot.read(&self.extents, key, offset, len as u64) {
                Err(StoreError::Corrupt { .. }) if look < LOOKS => {}
                Ok(piece) => {
                    snapshot.read_ahead(&self.extents, offset, len as u64);
                    return Ok(Some(piece));
                }
                Err(error) => return Err(error),
            }
        }
    }

    pub(super) fn info(&self, key: ObjectKey) -> Result<Option<ObjectInfo>, StoreError> {
        Ok(self.snapshot(key, 0, 0)?.map(|snapshot| snapshot.object.info()))
    }

    pub(super) fn digest(&self, key: ObjectKey) -> Result<Option<Digest>, StoreError> {
        let snapshot = self.snapshot(key, 0, 0)?;
        Ok(snapshot.map(|s| Digest { info: s.object.info(), content: s.object.digest() }))
    }

    /// Reads every stored block.
    pub(super) fn verify(&self, key: ObjectKey) -> Result<Option<Digest>, StoreError> {
        let Some(Snapshot { object, .. }) = self.snapshot(key, 0, 0)? else { return Ok(None) };
        for extent in object.extents() {
            let mut block = extent.block;
            let end = extent.block + extent.run.len;
            while block < end {
                let count = (end - block).min(VERIFY_BLOCKS);
                self.read(key, u64::from(block) * BLOCK, count as usize * BLOCK_BYTES)?;
                block += count;
            }
        }
        Ok(Some(Digest { info: object.info(), content: object.digest() }))
    }

    pub(super) fn list(
        &self,
        pg: u64,
        after: Option<(u64, u32)>,
        limit: usize,
    ) -> Result<Vec<(ObjectKey, ObjectInfo)>, StoreError> {
        let from = match after {
            Some((inode, chunk)) => Bound::Excluded(ObjectKey { pg, inode, chunk }),
            None => Bound::Included(ObjectKey { pg, inode: 0, chunk: 0 }),
        };
        let to = group_end(pg)?;
        let state = self.state();
        state.check()?;
        let base = Arc::clone(&state.base);
        let layers = [Some(&state.active.objects), state.frozen.as_ref().map(|f| &f.objects)];
        merge(layers, base.objects(from, to)?, (from, &to), limit, |object| object.info())
    }

    pub(super) fn get_meta(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let state = self.state();
        state.check()?;
        state.below().meta(&key.to_vec())
    }

    pub(super) fn list_meta(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Bytes)>, StoreError> {
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after.to_vec()),
            _ => Bound::Included(prefix.to_vec()),
        };
        let to = prefix_end(prefix);
        if let Bound::Excluded(after) = &from
            && *after >= to
        {
            return Ok(Vec::new());
        }
        let state = self.state();
        state.check()?;
        let base = Arc::clone(&state.base);
        let layers = [Some(&state.active.meta), state.frozen.as_ref().map(|f| &f.meta)];
        merge(layers, base.metas(from.clone(), &to)?, (from, &to), limit, Bytes::clone)
    }

    fn snapshot(&self, key: ObjectKey, offset: u64, len: u64) -> Result<Option<Snapshot>, StoreError> {
        let state = self.state();
        state.check()?;
        let mut found = state.active.objects.get(&key);
        if let (Found::Unknown, Some(frozen)) = (&found, &state.frozen) {
            found = frozen.objects.get(&key);
        }
        let object = match found {
            Found::Value(object) => object,
            Found::Deleted => return Ok(None),
            Found::Unknown => {
                // An object without recent changes has no block in memory: no need for the lock any more.
                let base = Arc::clone(&state.base);
                drop(state);
                let object = base.object(key)?;
                return Ok(object.map(|object| Snapshot { object, in_memory: BTreeMap::new() }));
            }
        };
        let mut in_memory = BTreeMap::new();
        let contents = state.contents(&self.extents);
        let (first, last) = block_range(offset, offset.saturating_add(len).min(object.size));
        for extent in object.mapped(first, last) {
            contents.in_memory_range(extent.run.start, extent.run.end(), &mut in_memory);
        }
        Ok(Some(Snapshot { object, in_memory }))
    }
}

impl Snapshot {
    fn read(
        &self,
        extents: &ExtentFiles,
        key: ObjectKey,
        offset: u64,
        len: u64,
    ) -> Result<Piece, StoreError> {
        let info = self.object.info();
        let end = offset.saturating_add(len).min(info.size);
        if offset >= end {
            return Ok(Piece { data: Bytes::new(), crc: 0, info });
        }
        let (first, last) = block_range(offset, end);
        let mut buffer = vec![0; (last - first) as usize * BLOCK_BYTES];
        for extent in self.object.mapped(first, last) {
            let from = (extent.block - first) as usize * BLOCK_BYTES;
            let out = &mut buffer[from..from + extent.run.len as usize * BLOCK_BYTES];
            self.read_extent(extents, extent, out).map_err(|(block, error)| error.at(key, block))?;
        }
        let from = (offset % BLOCK) as usize;
        let data = Bytes::from(buffer).slice(from..from + (end - offset) as usize);
        Ok(Piece { crc: crc32c::crc32c(&data), data, info })
    }

    /// Has the disk read what a sequence of large reads will want next, while the answer to this one travels. Only
    /// hints: nothing is kept here, and what is in the page cache costs no more than a look.
    fn read_ahead(&self, extents: &ExtentFiles, offset: u64, len: u64) {
        if len < SEQUENCE_BYTES_MIN {
            return;
        }
        let end = offset.saturating_add(len);
        // At the beginning all of it, then what came into reach with this read.
        let from = if offset == 0 { end } else { end.saturating_add(AHEAD_BYTES - len.min(AHEAD_BYTES)) };
        let (first, last) = block_range(from, end.saturating_add(AHEAD_BYTES).min(self.object.size));
        for extent in self.object.mapped(first, last) {
            extents.will_need(extent.run.start, extent.run.len);
        }
    }

    /// Fills `out` with an extent: memory where there is something newer, else the disk in pieces as long as possible.
    fn read_extent(
        &self,
        extents: &ExtentFiles,
        extent: Extent,
        out: &mut [u8],
    ) -> Result<(), (u32, BlockError)> {
        let mut done = 0;
        while done < extent.run.len {
            let start = extent.run.start + u64::from(done);
            let at = done as usize * BLOCK_BYTES;
            let next = self.in_memory.range(start..extent.run.end()).next();
            match next {
                Some((block, bytes)) if *block == start => {
                    out[at..at + BLOCK_BYTES].copy_from_slice(bytes);
                    done += 1;
                }
                next => {
                    let end = next.map_or(extent.run.end(), |(block, _)| *block);
                    let count = (end - start) as u32;
                    let piece = &mut out[at..at + count as usize * BLOCK_BYTES];
                    self.read_disk(extents, extent.block + done, start, piece)?;
                    done += count;
                }
            }
        }
        Ok(())
    }

    fn read_disk(
        &self,
        extents: &ExtentFiles,
        block: u32,
        start: u64,
        out: &mut [u8],
    ) -> Result<(), (u32, BlockError)> {
        let whole = extents.read(start, out);
        for (index, bytes) in out.chunks_exact_mut(BLOCK_BYTES).enumerate() {
            let block = block + index as u32;
            if whole.is_err() {
                // Find the sector that cannot be read.
                extents.read(start + index as u64, bytes).map_err(|e| (block, BlockError::Io(e)))?;
            }
            if crc32c::crc32c(bytes) != self.object.crc(block) && !mutant!("read-not-verified") {
                return Err((block, BlockError::Mismatch));
            }
        }
        Ok(())
    }
}

/// Blocks that `from..to` touches.
fn block_range(from: u64, to: u64) -> (u32, u32) {
    if from >= to {
        return (0, 0);
    }
    ((from / BLOCK) as u32, to.div_ceil(BLOCK) as u32)
}

/// First key after those with `prefix`; 65 bytes of 0xff are after every legal key.
fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![u8::MAX; super::types::META_KEY_BYTES_MAX + 1]
}

/// Entries of the layers (newest first) over those of the index, in key order.
fn merge<K: Ord + Clone, V: Clone, T>(
    layers: [Option<&Layered<K, V>>; 2],
    base: impl Iterator<Item = Result<(K, T), StoreError>>,
    (from, to): (Bound<K>, &K),
    limit: usize,
    view: impl Fn(&V) -> T,
) -> Result<Vec<(K, T)>, StoreError> {
    let mut base = base.peekable();
    let mut cursor = from;
    let mut out = Vec::new();
    while out.len() < limit.min(LIST_MAX) {
        let stored = match base.peek() {
            Some(Ok((key, _))) => Some(key.clone()),
            Some(Err(error)) => return Err(error.clone()),
            None => None,
        };
        let recent =
            layers.iter().flatten().filter_map(|l| l.next_entry(&cursor, to)).map(|(k, _)| k.clone());
        let Some(key) = recent.chain(stored.clone()).min() else { break };
        let from_base = if stored.as_ref() == Some(&key) { base.next().transpose()? } else { None };
        let found =
            layers.iter().flatten().map(|l| l.get(&key)).find(|found| !matches!(found, Found::Unknown));
        match (found, from_base) {
            (Some(Found::Value(value)), _) => out.push((key.clone(), view(&value))),
            (None, Some((_, value))) => out.push((key.clone(), value)),
            _ => {}
        }
        cursor = Bound::Excluded(key);
    }
    Ok(out)
}
