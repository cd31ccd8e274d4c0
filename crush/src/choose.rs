//! Choosing one item of a bucket, by its position.
//!
//! Each function is a deterministic draw from the input `x` and the attempt `r`. None is asked about an empty
//! bucket.

use crate::bucket::{Algorithm, Bucket};
use crate::hash::{hash3, hash4};
use crate::straw2;

/// The position of one item of `bucket`, by its algorithm; straw2's draws are in `straw2`.
pub(crate) fn choose(bucket: &Bucket, x: u32, r: u32, permutation: &mut Vec<u32>) -> usize {
    match &bucket.algorithm {
        Algorithm::Straw2 => straw2::draw_one_by_one(bucket.hash, &bucket.weights, &bucket.items, x, r),
        Algorithm::Uniform => permuted(bucket, x, r, permutation),
        Algorithm::List { sums } => list(bucket, sums, x, r),
        Algorithm::Tree { nodes } => tree(bucket, nodes, x, r),
        Algorithm::Straw { lengths } => straw(bucket, lengths, x, r),
    }
}

/// Entry `r` of a pseudorandom permutation of the items, whatever their weights.
///
/// The shuffle is run only as far as that entry. `permutation` is scratch space.
pub(crate) fn permuted(bucket: &Bucket, x: u32, r: u32, permutation: &mut Vec<u32>) -> usize {
    let size = bucket.items.len() as u32;
    let wanted = r % size;
    permutation.clear();
    permutation.extend(0..size);
    for p in 0..=wanted.min(size.saturating_sub(2)) {
        let offset = bucket.hash3(x, bucket.id as u32, p) % (size - p);
        permutation.swap(p as usize, (p + offset) as usize);
    }
    permutation[wanted as usize] as usize
}

/// The item whose straw, of a fixed length scaled by a random factor, is the longest.
fn straw(bucket: &Bucket, lengths: &[u32], x: u32, r: u32) -> usize {
    let (mut winner, mut best) = (0, 0);
    for (index, (&id, &length)) in bucket.items.iter().zip(lengths).enumerate() {
        let draw = u64::from(bucket.hash3(x, id as u32, r) & 0xffff) * u64::from(length);
        if draw > best {
            (winner, best) = (index, draw);
        }
    }
    winner
}

/// From the newest item back: this one, or one of those before it, in proportion to their weights.
fn list(bucket: &Bucket, sums: &[u32], x: u32, r: u32) -> usize {
    for index in (0..bucket.items.len()).rev() {
        let id = bucket.items[index];
        let random = u64::from(bucket.hash4(x, id as u32, r, bucket.id as u32) & 0xffff);
        if (random * u64::from(sums[index])) >> 16 < u64::from(bucket.weights[index]) {
            return index;
        }
    }
    0
}

/// Down a binary tree, left or right in proportion to the weights of the two halves.
fn tree(bucket: &Bucket, nodes: &[u32], x: u32, r: u32) -> usize {
    let mut node = nodes.len() / 2;
    while node & 1 == 0 {
        let random = u64::from(bucket.hash4(x, node as u32, r, bucket.id as u32));
        let point = (random * u64::from(nodes[node])) >> 32;
        let half = 1 << (node.trailing_zeros() - 1);
        node = if point < u64::from(nodes[node - half]) { node - half } else { node + half };
    }
    // A tree without any weight leads past its last item.
    let position = node >> 1;
    if position < bucket.items.len() { position } else { 0 }
}

impl Bucket {
    /// Hash number 0 is the only one defined; any other hashes everything to 0.
    #[inline]
    fn hash3(&self, a: u32, b: u32, c: u32) -> u32 {
        if self.hash == 0 { hash3(a, b, c) } else { 0 }
    }

    #[inline]
    fn hash4(&self, a: u32, b: u32, c: u32, d: u32) -> u32 {
        if self.hash == 0 { hash4(a, b, c, d) } else { 0 }
    }
}
