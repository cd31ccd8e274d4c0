//! If one peer delivered `a` and another `b`, then one of them delivered both.

use std::collections::{BTreeMap, BTreeSet};

use zab::{PeerId, Zxid};

use super::Invariant;
use crate::simulation::history::{Event, Histories};

#[derive(Default)]
pub(crate) struct Agreement {
    delivered: BTreeMap<PeerId, BTreeSet<Zxid>>,
    /// `(f, g)`: how many transactions `f` delivered and `g` did not.
    only: BTreeMap<(PeerId, PeerId), usize>,
}

impl Agreement {
    fn deliver(&mut self, node: PeerId, zxid: Zxid) -> Result<(), String> {
        self.delivered.entry(node).or_default().insert(zxid);
        for (other, theirs) in &self.delivered {
            if *other == node {
                continue;
            }
            if theirs.contains(&zxid) {
                *self.only.entry((*other, node)).or_insert(1) -= 1;
            } else {
                *self.only.entry((node, *other)).or_insert(0) += 1;
            }
            let lacking = |a, b| self.only.get(&(a, b)).copied().unwrap_or(0);
            if lacking(node, *other) > 0 && lacking(*other, node) > 0 {
                return Err(format!(
                    "{node} (with {zxid}) and {other} each delivered something the other did not"
                ));
            }
        }
        Ok(())
    }

    fn restore(&mut self, node: PeerId, zxids: BTreeSet<Zxid>) -> Result<(), String> {
        for (other, theirs) in &self.delivered {
            if *other != node {
                self.only.insert((node, *other), zxids.difference(theirs).count());
                self.only.insert((*other, node), theirs.difference(&zxids).count());
                if self.only[&(node, *other)] > 0 && self.only[&(*other, node)] > 0 {
                    return Err(format!("{node} was restored to something that {other} contradicts"));
                }
            }
        }
        self.delivered.insert(node, zxids);
        Ok(())
    }
}

impl Invariant for Agreement {
    fn name(&self) -> &'static str {
        "agreement"
    }

    fn check(&mut self, event: &Event, histories: &Histories) -> Result<(), String> {
        match event {
            Event::Delivered { node, txn } if self.delivered.contains_key(node) => {
                self.deliver(*node, txn.zxid)
            }
            Event::Delivered { node, .. } | Event::Restored { node } => {
                self.restore(*node, histories.of(*node).iter().map(|txn| txn.zxid).collect())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulation::invariants::testing::{A, B, Play, txn};

    #[test]
    fn catches_two_that_each_lack_something() {
        let mut play = Play::<Agreement>::new();
        assert_eq!(play.deliver(A, txn(1, 1)), Ok(()));
        assert_eq!(play.deliver(B, txn(1, 1)), Ok(()));
        assert_eq!(play.deliver(A, txn(1, 2)), Ok(()));
        assert!(play.deliver(B, txn(1, 3)).is_err());
    }

    #[test]
    fn accepts_one_that_is_behind_and_catches_up() {
        let mut play = Play::<Agreement>::new();
        assert_eq!(play.deliver(A, txn(1, 1)), Ok(()));
        assert_eq!(play.restore(B, vec![]), Ok(()));
        assert_eq!(play.deliver(A, txn(1, 2)), Ok(()));
        assert_eq!(play.deliver(B, txn(1, 1)), Ok(()));
        assert_eq!(play.deliver(B, txn(1, 2)), Ok(()));
        assert_eq!(play.deliver(B, txn(1, 3)), Ok(()));
        assert!(play.deliver(A, txn(2, 1)).is_err());
    }
}
