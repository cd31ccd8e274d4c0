//! If a primary broadcasts `a` before `b`, whoever delivers `b` delivers `a` before it.

use std::collections::BTreeMap;

use zab::{PeerId, Zxid};

use super::Invariant;
use crate::simulation::history::{Event, Histories, Txn};

#[derive(Default)]
pub(crate) struct LocalPrimaryOrder {
    /// How many transactions the same primary broadcast before this one.
    rank: BTreeMap<Zxid, usize>,
    broadcast: BTreeMap<u64, usize>,
    delivered: BTreeMap<(PeerId, u64), usize>,
}

impl LocalPrimaryOrder {
    fn deliver(&mut self, node: PeerId, txn: Txn) -> Result<(), String> {
        let delivered = self.delivered.entry((node, txn.zxid.epoch)).or_insert(0);
        let rank = self.rank.get(&txn.zxid).copied();
        if rank != Some(*delivered) {
            return Err(format!(
                "{node} delivered {} after {delivered} of its epoch; its primary had broadcast {rank:?} before",
                txn.zxid
            ));
        }
        *delivered += 1;
        Ok(())
    }
}

impl Invariant for LocalPrimaryOrder {
    fn name(&self) -> &'static str {
        "local_primary_order"
    }

    fn check(&mut self, event: &Event, histories: &Histories) -> Result<(), String> {
        match event {
            Event::Broadcast { txn, .. } => {
                let rank = self.broadcast.entry(txn.zxid.epoch).or_insert(0);
                self.rank.insert(txn.zxid, *rank);
                *rank += 1;
                Ok(())
            }
            Event::Delivered { node, txn } => self.deliver(*node, *txn),
            Event::Restored { node } => {
                self.delivered.retain(|(of, _), _| of != node);
                histories.of(*node).iter().try_for_each(|txn| self.deliver(*node, *txn))
            }
            Event::Established { .. } => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulation::invariants::testing::{A, B, Play, txn};

    #[test]
    fn catches_a_gap_in_a_primarys_order() {
        let mut play = Play::<LocalPrimaryOrder>::new();
        for counter in 1..=3 {
            assert_eq!(play.broadcast(A, txn(1, counter)), Ok(()));
        }
        assert_eq!(play.deliver(B, txn(1, 1)), Ok(()));
        assert!(play.deliver(B, txn(1, 3)).is_err());
    }

    #[test]
    fn catches_a_swap() {
        let mut play = Play::<LocalPrimaryOrder>::new();
        assert_eq!(play.broadcast(A, txn(1, 1)), Ok(()));
        assert_eq!(play.broadcast(A, txn(1, 2)), Ok(()));
        assert!(play.deliver(B, txn(1, 2)).is_err());
    }
}
