//! Which objects a range of a file lies in. Pure.

use protocol::{InodeId, ObjectId, PoolId};

/// Where a file's chunks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkedFile {
    /// Its pool.
    pub pool: PoolId,
    /// The file.
    pub inode: InodeId,
    /// Bytes per chunk, not 0.
    pub chunk_size: u32,
}

/// A part of a range that lies in one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The object.
    pub object: ObjectId,
    /// Where in it.
    pub offset: u32,
    /// Bytes.
    pub length: u32,
    /// Where in the range.
    pub at: u64,
}

/// The range needs a chunk beyond the last that can be named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a file has at most 2^32 chunks")]
pub struct TooFar;

impl ChunkedFile {
    /// Largest file size.
    pub fn size_max(&self) -> u64 {
        let chunks = u64::from(u32::MAX) + 1;
        chunks.saturating_mul(u64::from(self.chunk_size)).min(i64::MAX as u64)
    }

    /// The pieces of `length` bytes at `offset`, in order. None is longer than `piece_max`.
    pub fn pieces(&self, offset: u64, length: u64, piece_max: u32) -> Result<Vec<Piece>, TooFar> {
        let end = offset.checked_add(length).filter(|end| *end <= self.size_max()).ok_or(TooFar)?;
        let chunk_size = u64::from(self.chunk_size);
        let mut pieces = Vec::new();
        let mut position = offset;
        while position < end {
            let within = position % chunk_size;
            let length = (chunk_size - within).min(end - position).min(u64::from(piece_max));
            pieces.push(Piece {
                object: self.object(position / chunk_size),
                offset: within as u32,
                length: length as u32,
                at: position - offset,
            });
            position += length;
        }
        Ok(pieces)
    }

    /// Number of chunks that a file of `size` bytes can have.
    pub fn chunks(&self, size: u64) -> u64 {
        size.div_ceil(u64::from(self.chunk_size))
    }

    /// Chunk number `index`, below 2³².
    pub fn object(&self, index: u64) -> ObjectId {
        ObjectId { pool: self.pool, inode: self.inode, chunk: index as u32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FILE: ChunkedFile = ChunkedFile { pool: PoolId(1), inode: InodeId(7), chunk_size: 4096 };

    #[test]
    fn a_range_is_cut_at_chunk_boundaries() {
        let pieces = FILE.pieces(4000, 5000, 1 << 20).expect("in reach");
        let shape: Vec<_> = pieces.iter().map(|p| (p.object.chunk, p.offset, p.length, p.at)).collect();
        assert_eq!(shape, [(0, 4000, 96, 0), (1, 0, 4096, 96), (2, 0, 808, 4192)]);
        assert_eq!(FILE.pieces(77, 0, 1 << 20), Ok(vec![]));
    }

    #[test]
    fn the_last_chunk_is_the_largest_that_has_a_number() {
        let last = FILE.size_max();
        assert!(FILE.pieces(last - 1, 1, 1 << 20).is_ok());
        assert_eq!(FILE.pieces(last, 1, 1 << 20), Err(TooFar));
        assert_eq!(FILE.pieces(u64::MAX, 2, 1 << 20), Err(TooFar));
    }

    proptest! {
        #[test]
        fn pieces_cover_the_range_once(offset in 0_u64..1 << 30, length in 0_u64..1 << 17, most in 1_u32..9000) {
            let pieces = FILE.pieces(offset, length, most).expect("in reach");
            let mut position = offset;
            for piece in pieces {
                prop_assert_eq!(piece.at, position - offset);
                prop_assert_eq!(u64::from(piece.object.chunk) * 4096 + u64::from(piece.offset), position);
                prop_assert!(piece.length > 0 && piece.length <= most);
                prop_assert!(piece.offset + piece.length <= 4096);
                position += u64::from(piece.length);
            }
            prop_assert_eq!(position, offset + length);
        }
    }
}
