//! What truncations mean for one object. Pure arithmetic (DESIGN 4, "Truncation").

use protocol::{Truncation, mutant};

/// The newest truncation that the operation knows; 0 if there was none.
pub(super) fn newest(truncations: &[Truncation]) -> u64 {
    truncations.iter().map(|t| t.seq).max().unwrap_or(0)
}

/// Size in bytes that an object of sequence `object_seq` must be cut to before use: the least over all newer
/// truncations. (Remembering only the last one would resurrect bytes: cut to 10, then to 20, and what was
/// between is back.) `None` if nothing newer is known.
pub(super) fn cut(truncations: &[Truncation], object_seq: u64, chunk: u32, chunk_size: u32) -> Option<u32> {
    let start = u64::from(chunk) * u64::from(chunk_size);
    let kept = if mutant!("only-the-last-truncation-cuts") { 1 } else { usize::MAX };
    truncations
        .iter()
        .rev()
        .take(kept)
        .filter(|t| t.seq > object_seq)
        .map(|t| t.size.saturating_sub(start).min(u64::from(chunk_size)) as u32)
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: [Truncation; 3] = [
        Truncation { seq: 5, size: 10 },
        Truncation { seq: 9, size: 150 },
        Truncation { seq: 12, size: 260 },
    ];

    #[test]
    fn the_least_size_among_newer_truncations_counts() {
        assert_eq!(cut(&LIST, 0, 0, 100), Some(10));
        assert_eq!(cut(&LIST, 5, 0, 100), Some(100));
        assert_eq!(cut(&LIST, 5, 1, 100), Some(50));
        assert_eq!(cut(&LIST, 9, 2, 100), Some(60));
        assert_eq!(cut(&LIST, 5, 3, 100), Some(0));
        assert_eq!(cut(&LIST, 12, 0, 100), None);
        assert_eq!(newest(&LIST), 12);
        assert_eq!(newest(&[]), 0);
    }
}
