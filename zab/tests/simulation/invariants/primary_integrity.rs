//! A primary broadcasts only after it delivered everything of earlier epochs that anybody ever delivers.

use std::collections::{BTreeMap, BTreeSet};

use zab::{PeerId, Zxid};

use super::Invariant;
use crate::simulation::history::{Event, Histories};

#[derive(Default)]
pub(crate) struct PrimaryIntegrity {
    /// Per epoch, what its primary had delivered when it first broadcast.
    known: BTreeMap<u64, (PeerId, BTreeSet<Zxid>)>,
    delivered: BTreeSet<Zxid>,
}

impl PrimaryIntegrity {
    fn deliver(&mut self, zxid: Zxid) -> Result<(), String> {
        self.delivered.insert(zxid);
        let lacking = self.known.range(zxid.epoch + 1..).find(|(_, (_, known))| !known.contains(&zxid));
        match lacking {
            Some((epoch, (primary, _))) => {
                Err(format!("{primary} broadcast in epoch {epoch} without having delivered {zxid}"))
            }
            None => Ok(()),
        }
    }
}

impl Invariant for PrimaryIntegrity {
    fn name(&self) -> &'static str {
        "primary_integrity"
    }

    fn check(&mut self, event: &Event, histories: &Histories) -> Result<(), String> {
        match event {
            Event::Broadcast { node, txn } if !self.known.contains_key(&txn.zxid.epoch) => {
                let known: BTreeSet<Zxid> = histories.of(*node).iter().map(|txn| txn.zxid).collect();
                let earlier = self.delivered.range(..Zxid::new(txn.zxid.epoch, 0));
                let lacking = earlier.into_iter().find(|zxid| !known.contains(zxid)).copied();
                self.known.insert(txn.zxid.epoch, (*node, known));
                match lacking {
                    Some(zxid) => Err(format!("{node} broadcast {} before it delivered {zxid}", txn.zxid)),
                    None => Ok(()),
                }
            }
            Event::Delivered { txn, .. } => self.deliver(txn.zxid),
            Event::Restored { node } => histories.of(*node).iter().try_for_each(|txn| self.deliver(txn.zxid)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulation::invariants::testing::{A, B, Play, txn};

    #[test]
    fn catches_a_primary_that_starts_too_early() {
        let mut play = Play::<PrimaryIntegrity>::new();
        assert_eq!(play.broadcast(A, txn(1, 1)), Ok(()));
        assert_eq!(play.deliver(A, txn(1, 1)), Ok(()));
        assert!(play.broadcast(B, txn(2, 1)).is_err());
    }

    #[test]
    fn catches_a_delivery_that_the_later_primary_missed() {
        let mut play = Play::<PrimaryIntegrity>::new();
        assert_eq!(play.broadcast(A, txn(1, 1)), Ok(()));
        assert_eq!(play.broadcast(B, txn(2, 1)), Ok(()));
        assert!(play.deliver(A, txn(1, 1)).is_err());
    }
}
