//! How the groups of a pool multiply: which group an object belongs to while some groups are split and others are not
//! yet. Pure arithmetic over [`crush::pg_of`], Ceph's stable modulo.
//!
//! A group's configuration says under which number of groups it holds its objects ([`crate::map::PgConfig::pg_num`]):
//! those whose hash modulo that number is the group's own. So the groups of a pool share its objects out at any time,
//! whatever numbers they are at.

use crate::id::PgId;
use serde::{Deserialize, Serialize};

/// A group and what it holds: the objects of its pool whose hash modulo `pg_num` is the group's number. Whoever asks a
/// group for something names it this way, and a group that holds more or less by now refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Extent {
    /// The group.
    pub pg: PgId,
    /// The number of groups.
    pub pg_num: u32,
}

/// The next number of groups on the way from `from` to `to`: the next power of two. In such a step no group gets more
/// than one child.
pub fn step(from: u32, to: u32) -> u32 {
    from.saturating_add(1).checked_next_power_of_two().unwrap_or(to).min(to)
}

/// The group that takes objects out of group `seed` when the number of groups rises from `from` to `to`, one [`step`].
pub fn child(seed: u32, from: u32, to: u32) -> Option<u32> {
    let half = if from.is_power_of_two() { from } else { from.checked_next_power_of_two()? / 2 };
    let child = seed.checked_add(half)?;
    (seed < half && (from..to).contains(&child)).then_some(child)
}

/// The group that `seed` would be split from if the number of groups were doubled until it exists: its number without
/// the highest bit.
pub fn parent(seed: u32) -> Option<u32> {
    (seed > 0).then(|| seed & !(1 << (31 - seed.leading_zeros())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_gives_each_group_at_most_one_child_and_no_object_to_another() {
        for from in 1..150_u32 {
            for to in from + 1..=step(from, u32::MAX) {
                for hash in (0..4000_u32).map(|n| n.wrapping_mul(0x9e37_79b9)) {
                    let (before, after) = (crush::pg_of(hash, from), crush::pg_of(hash, to));
                    let expected = child(before, from, to);
                    assert!(after == before || Some(after) == expected, "{hash:x}: {from} to {to}");
                    if let Some(child) = expected {
                        assert_eq!(parent(child), Some(before));
                    }
                }
            }
        }
    }

    #[test]
    fn steps_lead_to_any_number() {
        let mut at = 3;
        let mut seen = vec![at];
        while at < 100 {
            at = step(at, 100);
            seen.push(at);
        }
        assert_eq!(seen, [3, 4, 8, 16, 32, 64, 100]);
    }
}
