//! Majorities of voters.

use crate::mutant;

/// How many of `voters` are a majority. Two majorities of the same voters share a member.
pub(crate) fn majority(voters: usize) -> usize {
    if mutant!("minority-is-quorum") { voters.div_ceil(2).max(2) - 1 } else { voters / 2 + 1 }
}

/// The greatest value that a majority of `voters` reached, if each value of `reached` stands for one voter that
/// reached it and everything below.
pub(crate) fn reached_by_majority<T: Ord + Copy>(mut reached: Vec<T>, voters: usize) -> Option<T> {
    reached.sort_unstable_by(|a, b| b.cmp(a));
    reached.get(majority(voters) - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_majority_is_more_than_half() {
        assert_eq!([1, 2, 3, 4, 5].map(majority), [1, 2, 2, 3, 3]);
    }

    #[test]
    fn the_median_is_what_a_majority_reached() {
        assert_eq!(reached_by_majority(vec![7, 3, 5], 3), Some(5));
        assert_eq!(reached_by_majority(vec![7, 3], 3), Some(3), "the absent one counts as not reached");
        assert_eq!(reached_by_majority(vec![7], 3), None);
        assert_eq!(reached_by_majority(vec![9, 8, 1, 1, 1], 5), Some(1));
        assert_eq!(reached_by_majority(vec![4], 1), Some(4));
    }
}
