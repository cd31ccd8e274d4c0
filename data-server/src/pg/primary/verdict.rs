//! Which copies of an object are right. Pure.
//!
//! The copies are compared at one place of the group's order, so that they have to be equal. What most of them say
//! is right. Without a majority nothing is decided as long as a replica is missing that could decide; if there is
//! none, the newest copy counts, and an object counts for more than its absence: a scrub never deletes on a tie.

use protocol::replication::ObjectSummary;
use protocol::{DataServerId, mutant};
use std::collections::BTreeMap;

/// What one replica has: `None` for no such object.
pub(super) type Held = Option<ObjectSummary>;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// All are equal.
    Equal,
    /// These are right, those are wrong.
    Repair { right: Held, holders: Vec<DataServerId>, wrong: Vec<DataServerId> },
    /// Nobody can tell.
    Undecided,
}

/// Judges the copies of one object in a group that wants `size` replicas.
pub(super) fn judge(copies: &BTreeMap<DataServerId, Held>, size: usize) -> Verdict {
    let mut votes: BTreeMap<Held, usize> = BTreeMap::new();
    copies.values().for_each(|copy| *votes.entry(*copy).or_default() += 1);
    if votes.len() <= 1 {
        return Verdict::Equal;
    }
    let most = votes.values().copied().max().unwrap_or(0);
    let majority = votes.iter().find(|(_, count)| **count * 2 > copies.len().max(size));
    let least =
        votes.iter().min_by_key(|(_, count)| **count).filter(|_| mutant!("scrub-trusts-the-bad-copy"));
    let best = match least.or(majority) {
        Some((copy, _)) => *copy,
        None if copies.len() < size && !mutant!("scrub-decides-without-a-majority") => {
            return Verdict::Undecided;
        }
        None => {
            let mut leading = votes.iter().filter(|(_, count)| **count == most).map(|(copy, _)| *copy);
            let newest = leading.clone().max_by_key(|copy| copy.map(|summary| summary.version));
            let version = newest.flatten().map(|summary| summary.version);
            // Two different contents of one version: both cannot be right, and nothing says which is.
            if leading.by_ref().filter(|copy| copy.map(|summary| summary.version) == version).count() > 1 {
                return Verdict::Undecided;
            }
            newest.flatten()
        }
    };
    let has = |right: bool| {
        copies.iter().filter(move |(_, copy)| (**copy == best) == right).map(|(server, _)| *server).collect()
    };
    Verdict::Repair { right: best, holders: has(true), wrong: has(false) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(version: u64, content: u64) -> Held {
        Some(ObjectSummary { size: 8, truncate_seq: 0, version, content })
    }

    fn verdict(copies: &[Held], size: usize) -> Verdict {
        judge(&copies.iter().enumerate().map(|(i, c)| (DataServerId(i as u32), *c)).collect(), size)
    }

    fn repair(right: Held, holders: &[u32], wrong: &[u32]) -> Verdict {
        let ids = |ids: &[u32]| ids.iter().map(|id| DataServerId(*id)).collect();
        Verdict::Repair { right, holders: ids(holders), wrong: ids(wrong) }
    }

    #[test]
    fn the_majority_is_right() {
        let (a, b) = (copy(7, 1), copy(7, 2));
        assert_eq!(verdict(&[a, a, a], 3), Verdict::Equal);
        assert_eq!(verdict(&[a, b, a], 3), repair(a, &[0, 2], &[1]));
        assert_eq!(verdict(&[None, b, b], 3), repair(b, &[1, 2], &[0]));
        assert_eq!(verdict(&[None, b, None], 3), repair(None, &[0, 2], &[1]));
        assert_eq!(verdict(&[a, a, b, b, a], 5), repair(a, &[0, 1, 4], &[2, 3]));
    }

    #[test]
    fn a_tie_waits_for_who_can_decide_it() {
        let (a, b) = (copy(7, 1), copy(9, 2));
        assert_eq!(verdict(&[a, b], 3), Verdict::Undecided, "a third replica will come");
        assert_eq!(verdict(&[a, b], 2), repair(b, &[1], &[0]), "the newer one");
        assert_eq!(verdict(&[a, None], 2), repair(a, &[0], &[1]), "nothing is deleted");
        assert_eq!(verdict(&[a, copy(7, 3)], 2), Verdict::Undecided, "nothing tells them apart");
        assert_eq!(verdict(&[a, b, None], 3), repair(b, &[1], &[0, 2]));
    }
}
