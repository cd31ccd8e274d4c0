//! An object's index record: its size, where its blocks are, and the checksum of each.

use super::{
    superblock::{le_u32, le_u64},
    types::{BLOCK_BYTES, ObjectInfo, ObjectKey, StoreError},
};

/// Consecutive physical blocks. Block numbers run through all extent files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Run {
    pub(super) start: u64,
    pub(super) len: u32,
}

impl Run {
    pub(super) fn end(&self) -> u64 {
        self.start + u64::from(self.len)
    }
}

/// Appends `run`, joining it to the last one where they touch.
pub(super) fn push_run(runs: &mut Vec<Run>, run: Run) {
    match runs.last_mut() {
        Some(last) if last.end() == run.start && last.len.checked_add(run.len).is_some() => {
            last.len += run.len
        }
        _ => runs.push(run),
    }
}

/// Blocks `block..block + run.len` of an object lie at `run`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) block: u32,
    pub(super) run: Run,
}

impl Extent {
    fn end(&self) -> u32 {
        self.block + self.run.len
    }

    /// The part inside `from..to`, if any.
    fn clip(&self, from: u32, to: u32) -> Option<Self> {
        let (start, end) = (self.block.max(from), self.end().min(to));
        (start < end).then(|| Self {
            block: start,
            run: Run { start: self.run.start + u64::from(start - self.block), len: end - start },
        })
    }
}

/// Invariants: extents are sorted, disjoint, not empty; `crcs` reaches to the last mapped block; bytes of the last
/// block beyond `size` are zeros; no block at or beyond `size` is mapped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Object {
    pub(super) size: u64,
    pub(super) truncate_seq: u64,
    pub(super) version: u64,
    extents: Vec<Extent>,
    /// crc32c per block; 0 where nothing is mapped.
    crcs: Vec<u32>,
}

impl Object {
    pub(super) fn info(&self) -> ObjectInfo {
        ObjectInfo {
            size: self.size,
            truncate_seq: self.truncate_seq,
            version: self.version,
            allocated_bytes: self.allocated_blocks() * BLOCK_BYTES as u64,
        }
    }

    pub(super) fn allocated_blocks(&self) -> u64 {
        self.extents.iter().map(|e| u64::from(e.run.len)).sum()
    }

    pub(super) fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// The mapped parts of `from..to`, in order.
    pub(super) fn mapped(&self, from: u32, to: u32) -> impl Iterator<Item = Extent> + '_ {
        let first = self.extents.partition_point(|e| e.end() <= from);
        self.extents[first..].iter().take_while(move |e| e.block < to).filter_map(move |e| e.clip(from, to))
    }

    pub(super) fn physical(&self, block: u32) -> Option<u64> {
        self.mapped(block, block + 1).next().map(|e| e.run.start)
    }

    /// The checksum of a mapped block.
    pub(super) fn crc(&self, block: u32) -> u32 {
        self.crcs.get(block as usize).copied().unwrap_or(0)
    }

    pub(super) fn set_crcs(&mut self, block: u32, crcs: &[u32]) {
        let end = block as usize + crcs.len();
        if self.crcs.len() < end {
            self.crcs.resize(end, 0);
        }
        self.crcs[block as usize..end].copy_from_slice(crcs);
    }

    /// Where the blocks just before `block` end on disk: the place that keeps the object contiguous.
    pub(super) fn hint(&self, block: u32) -> Option<u64> {
        let before = self.extents.partition_point(|e| e.block < block);
        self.extents[..before].last().map(|e| e.run.end())
    }

    /// Maps the blocks from `block` on to `runs`; what was mapped there before is returned.
    pub(super) fn map(&mut self, block: u32, runs: &[Run]) -> Vec<Run> {
        let count: u32 = runs.iter().map(|r| r.len).sum();
        let freed = self.unmap(block, count);
        let at = self.extents.partition_point(|e| e.block < block);
        let mut next = block;
        let mapped = runs.iter().map(|run| {
            let extent = Extent { block: next, run: *run };
            next += run.len;
            extent
        });
        self.extents.splice(at..at, mapped);
        self.coalesce();
        let end = (block + count) as usize;
        if self.crcs.len() < end {
            self.crcs.resize(end, 0);
        }
        freed
    }

    /// Turns `count` blocks from `block` on into a hole; what was mapped there is returned.
    pub(super) fn unmap(&mut self, block: u32, count: u32) -> Vec<Run> {
        let end = block.saturating_add(count);
        let freed: Vec<Run> = self.mapped(block, end).map(|e| e.run).collect();
        if freed.is_empty() {
            return freed;
        }
        let mut kept = Vec::with_capacity(self.extents.len() + 1);
        for extent in &self.extents {
            kept.extend(extent.clip(0, block));
            kept.extend(extent.clip(end, u32::MAX));
        }
        self.extents = kept;
        let mapped_end = self.extents.last().map_or(0, |e| e.end()) as usize;
        self.crcs.truncate(mapped_end);
        let hole_end = (end as usize).min(self.crcs.len());
        if (block as usize) < hole_end {
            self.crcs[block as usize..hole_end].fill(0);
        }
        freed
    }

    fn coalesce(&mut self) {
        self.extents.dedup_by(|next, previous| {
            let joined = previous.end() == next.block && previous.run.end() == next.run.start;
            if joined {
                previous.run.len += next.run.len;
            }
            joined
        });
    }

    /// A fingerprint of contents and size that does not depend on where blocks lie, nor on whether zeros are stored or
    /// a hole: FNV-1a over the size and the checksum of each block.
    pub(super) fn digest(&self) -> u64 {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let mut feed = |bytes: &[u8]| {
            for byte in bytes {
                hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
        };
        feed(&self.size.to_le_bytes());
        let blocks = self.size.div_ceil(BLOCK_BYTES as u64) as u32;
        let zero = zero_block_crc();
        let mut next = 0;
        for extent in self.mapped(0, blocks) {
            (next..extent.block).for_each(|_| feed(&zero.to_le_bytes()));
            (extent.block..extent.end()).for_each(|b| feed(&self.crc(b).to_le_bytes()));
            next = extent.end();
        }
        (next..blocks).for_each(|_| feed(&zero.to_le_bytes()));
        hash
    }

    /// Bytes this record takes in memory, roughly.
    pub(super) fn weight(&self) -> usize {
        160 + self.extents.len() * size_of::<Extent>() + self.crcs.len() * 4
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let blocks = self.allocated_blocks() as usize;
        let mut out = Vec::with_capacity(36 + self.extents.len() * 16 + blocks * 4);
        out.extend_from_slice(&self.size.to_le_bytes());
        out.extend_from_slice(&self.truncate_seq.to_le_bytes());
        out.extend_from_slice(&self.version.to_le_bytes());
        out.extend_from_slice(&(blocks as u32).to_le_bytes());
        out.extend_from_slice(&(self.extents.len() as u32).to_le_bytes());
        for extent in &self.extents {
            out.extend_from_slice(&extent.block.to_le_bytes());
            out.extend_from_slice(&extent.run.len.to_le_bytes());
            out.extend_from_slice(&extent.run.start.to_le_bytes());
        }
        for extent in &self.extents {
            for crc in &self.crcs[extent.block as usize..extent.end() as usize] {
                out.extend_from_slice(&crc.to_le_bytes());
            }
        }
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    pub(super) fn decode(key: ObjectKey, bytes: &[u8]) -> Result<Self, StoreError> {
        let damaged = || {
            StoreError::Damaged(format!(
                "the index record of {key} does not match its checksum: rebuild this server"
            ))
        };
        let body = bytes.len().checked_sub(4).filter(|len| *len >= HEADER_BYTES).ok_or_else(damaged)?;
        if crc32c::crc32c(&bytes[..body]) != le_u32(bytes, body) {
            return Err(damaged());
        }
        let (blocks, count) = (le_u32(bytes, 24) as usize, le_u32(bytes, 28) as usize);
        if body != HEADER_BYTES + count * 16 + blocks * 4 {
            return Err(damaged());
        }
        let mut object = Self {
            size: le_u64(bytes, 0),
            truncate_seq: le_u64(bytes, 8),
            version: le_u64(bytes, 16),
            extents: Vec::with_capacity(count),
            crcs: Vec::new(),
        };
        let mut crc_at = HEADER_BYTES + count * 16;
        for index in 0..count {
            let at = HEADER_BYTES + index * 16;
            let run = Run { start: le_u64(bytes, at + 8), len: le_u32(bytes, at + 4) };
            let extent = Extent { block: le_u32(bytes, at), run };
            object.crcs.resize(extent.block as usize, 0);
            let crc_end = crc_at + run.len as usize * 4;
            object.crcs.extend(bytes[crc_at..crc_end].chunks_exact(4).map(|raw| le_u32(raw, 0)));
            crc_at = crc_end;
            object.extents.push(extent);
        }
        Ok(object)
    }

    /// Reads only what [`ObjectInfo`] needs, for listings.
    pub(super) fn decode_info(key: ObjectKey, bytes: &[u8]) -> Result<ObjectInfo, StoreError> {
        if bytes.len() < HEADER_BYTES {
            return Err(StoreError::Damaged(format!(
                "the index record of {key} is too short: rebuild this server"
            )));
        }
        Ok(ObjectInfo {
            size: le_u64(bytes, 0),
            truncate_seq: le_u64(bytes, 8),
            version: le_u64(bytes, 16),
            allocated_bytes: u64::from(le_u32(bytes, 24)) * BLOCK_BYTES as u64,
        })
    }
}

const HEADER_BYTES: usize = 32;

/// The checksum of a block of zeros: what a hole contributes to digests.
pub(super) fn zero_block_crc() -> u32 {
    static ZERO: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    *ZERO.get_or_init(|| crc32c::crc32c(&[0; BLOCK_BYTES]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: ObjectKey = ObjectKey { pg: 1, inode: 2, chunk: 3 };

    fn run(start: u64, len: u32) -> Run {
        Run { start, len }
    }

    #[test]
    fn mapping_over_a_part_returns_what_it_replaced() {
        let mut object = Object { size: 10 * 4096, ..Object::default() };
        assert!(object.map(0, &[run(100, 10)]).is_empty());
        assert_eq!(object.map(3, &[run(500, 2), run(900, 1)]), vec![run(103, 3)]);
        assert_eq!(object.physical(2), Some(102));
        assert_eq!(object.physical(4), Some(501));
        assert_eq!(object.physical(5), Some(900));
        assert_eq!(object.physical(6), Some(106));
        assert_eq!(object.allocated_blocks(), 10);
    }

    #[test]
    fn neighbours_on_disk_join() {
        let mut object = Object { size: 3 * 4096, ..Object::default() };
        object.map(1, &[run(11, 1)]);
        object.map(0, &[run(10, 1)]);
        object.map(2, &[run(12, 1)]);
        assert_eq!(object.extents(), &[Extent { block: 0, run: run(10, 3) }]);
    }

    #[test]
    fn a_record_survives_its_encoding_and_a_flipped_bit_does_not() {
        let mut object = Object { size: 9 * 4096 - 5, truncate_seq: 4, version: 77, ..Object::default() };
        object.map(2, &[run(40, 3)]);
        object.set_crcs(2, &[1, 2, 3]);
        object.map(8, &[run(7, 1)]);
        object.set_crcs(8, &[9]);
        let mut bytes = object.encode();
        assert_eq!(Object::decode(KEY, &bytes).unwrap(), object);
        assert_eq!(Object::decode_info(KEY, &bytes).unwrap(), object.info());
        bytes[33] ^= 1;
        assert!(matches!(Object::decode(KEY, &bytes), Err(StoreError::Damaged(_))));
    }

    #[test]
    fn holes_and_stored_zeros_have_one_digest() {
        let mut stored = Object { size: 3 * 4096, ..Object::default() };
        stored.map(0, &[run(0, 3)]);
        stored.set_crcs(0, &[7, zero_block_crc(), 9]);
        let mut hole = stored.clone();
        hole.unmap(1, 1);
        assert_eq!(stored.digest(), hole.digest());
        hole.size += 1;
        assert_ne!(stored.digest(), hole.digest());
    }
}
