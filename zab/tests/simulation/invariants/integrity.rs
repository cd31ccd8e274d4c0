//! What is delivered was broadcast by a primary, as it is, and nobody delivers it twice.

use std::collections::BTreeMap;

use zab::Zxid;

use super::Invariant;
use crate::simulation::history::{Event, Histories, Txn};

#[derive(Default)]
pub(crate) struct Integrity {
    broadcast: BTreeMap<Zxid, u64>,
}

impl Integrity {
    fn check_history(&self, history: &[Txn], new: usize) -> Result<(), String> {
        for (index, txn) in history.iter().enumerate().skip(history.len() - new) {
            if self.broadcast.get(&txn.zxid) != Some(&txn.value) {
                return Err(format!("{txn:?} was delivered, but no primary broadcast it"));
            }
            if index > 0 && history[index - 1].zxid >= txn.zxid {
                return Err(format!("{txn:?} was delivered after {:?}", history[index - 1]));
            }
        }
        Ok(())
    }
}

impl Invariant for Integrity {
    fn name(&self) -> &'static str {
        "integrity"
    }

    fn check(&mut self, event: &Event, histories: &Histories) -> Result<(), String> {
        match event {
            Event::Broadcast { txn, .. } => match self.broadcast.insert(txn.zxid, txn.value) {
                Some(other) => Err(format!("{txn:?} was broadcast at a position that holds {other}")),
                None => Ok(()),
            },
            Event::Delivered { node, .. } => self.check_history(histories.of(*node), 1),
            Event::Restored { node } => self.check_history(histories.of(*node), histories.of(*node).len()),
            Event::Established { .. } => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulation::invariants::testing::{A, B, Play, txn};

    #[test]
    fn catches_what_nobody_broadcast() {
        let mut play = Play::<Integrity>::new();
        assert_eq!(play.broadcast(A, txn(1, 1)), Ok(()));
        assert_eq!(play.deliver(B, txn(1, 1)), Ok(()));
        assert!(play.deliver(B, txn(1, 2)).is_err());
    }

    #[test]
    fn catches_a_second_delivery() {
        let mut play = Play::<Integrity>::new();
        assert_eq!(play.broadcast(A, txn(1, 1)), Ok(()));
        assert_eq!(play.deliver(B, txn(1, 1)), Ok(()));
        assert!(play.deliver(B, txn(1, 1)).is_err());
    }

    #[test]
    fn catches_a_position_that_is_used_twice() {
        let mut play = Play::<Integrity>::new();
        assert_eq!(play.broadcast(A, txn(1, 1)), Ok(()));
        assert!(play.broadcast(B, Txn { value: 9, ..txn(1, 1) }).is_err());
    }
}
