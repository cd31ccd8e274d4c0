//! From an object's name to the input of a rule.
//!
//! object name → hash → placement group (`pg_of`) → input of the rule (`pps`) → [`crate::CrushMap::do_rule`].

use crate::hash::{hash2, string_hash};

/// The byte between namespace and name; it cannot be confused with printable names.
const NAMESPACE_SEPARATOR: u8 = 0x1f;

/// The hash of an object's name.
pub fn object_hash(name: &[u8]) -> u32 {
    string_hash(name)
}

/// The hash of an object's name within a namespace; the empty namespace is that of [`object_hash`].
pub fn object_hash_in_namespace(namespace: &[u8], name: &[u8]) -> u32 {
    if namespace.is_empty() {
        return object_hash(name);
    }
    let mut bytes = Vec::with_capacity(namespace.len() + 1 + name.len());
    bytes.extend_from_slice(namespace);
    bytes.push(NAMESPACE_SEPARATOR);
    bytes.extend_from_slice(name);
    string_hash(&bytes)
}

/// `x` modulo `b`, such that growing `b` moves only the values that land in the new part.
///
/// `bmask` is one less than the smallest power of two not below `b`. While `b` is not itself a power of two,
/// the values beyond it fold back onto the lower half.
pub fn stable_mod(x: u32, b: u32, bmask: u32) -> u32 {
    if x & bmask < b { x & bmask } else { x & (bmask >> 1) }
}

/// The placement group of a hash in a pool of `pg_num` groups; 0 when there are none.
pub fn pg_of(hash: u32, pg_num: u32) -> u32 {
    stable_mod(hash, pg_num, mask_of(pg_num))
}

/// The input of the pool's rule for a placement group ("placement seed").
///
/// Pools hash their groups apart by the pool's number, so that equal groups of two pools do not share devices.
/// `pgp_num` equals `pg_num` except while a pool's groups have been split but not yet moved.
pub fn pps(pool: u32, pg: u32, pgp_num: u32) -> u32 {
    hash2(stable_mod(pg, pgp_num, mask_of(pgp_num)), pool)
}

/// One less than the smallest power of two that is at least `n`.
fn mask_of(n: u32) -> u32 {
    if n <= 1 { 0 } else { u32::MAX >> (n - 1).leading_zeros() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_reach_the_next_power_of_two() {
        let masks = [0, 1, 2, 3, 4, 5, 96, 128, 129, u32::MAX].map(mask_of);
        assert_eq!(masks, [0, 0, 1, 3, 3, 7, 127, 127, 255, u32::MAX]);
    }

    #[test]
    fn growing_a_pool_only_moves_hashes_into_the_new_groups() {
        for pg_num in 1..200 {
            for hash in (0..5000u32).map(|i| i.wrapping_mul(0x9e37_79b9)) {
                let (before, after) = (pg_of(hash, pg_num), pg_of(hash, pg_num + 1));
                assert!(after == before || after == pg_num, "hash {hash}: group {before} to {after}");
            }
        }
    }

    #[test]
    fn no_groups_is_group_zero() {
        assert_eq!(pg_of(12345, 0), 0);
    }
}
