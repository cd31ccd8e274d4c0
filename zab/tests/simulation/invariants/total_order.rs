//! If somebody delivers `a` before `b`, everybody who delivers `b` delivers `a` before it.
//!
//! Checked through immediate predecessors: if every transaction has the same one wherever it is delivered, the
//! histories before it are equal, by induction.

use std::collections::BTreeMap;

use zab::Zxid;

use super::Invariant;
use crate::simulation::history::{Event, Histories, Txn};

#[derive(Default)]
pub(crate) struct TotalOrder {
    before: BTreeMap<Zxid, Option<Zxid>>,
}

impl TotalOrder {
    fn check_last(&mut self, history: &[Txn]) -> Result<(), String> {
        let [earlier @ .., last] = history else { return Ok(()) };
        let before = earlier.last().map(|txn| txn.zxid);
        let known = *self.before.entry(last.zxid).or_insert(before);
        if known == before {
            return Ok(());
        }
        Err(format!(
            "{} was delivered after {known:?} by one peer and after {before:?} by another",
            last.zxid
        ))
    }
}

impl Invariant for TotalOrder {
    fn name(&self) -> &'static str {
        "total_order"
    }

    fn check(&mut self, event: &Event, histories: &Histories) -> Result<(), String> {
        match event {
            Event::Delivered { node, .. } => self.check_last(histories.of(*node)),
            Event::Restored { node } => {
                let history = histories.of(*node);
                (1..=history.len()).try_for_each(|end| self.check_last(&history[..end]))
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
    fn catches_another_order() {
        let mut play = Play::<TotalOrder>::new();
        assert_eq!(play.deliver(A, txn(1, 1)), Ok(()));
        assert_eq!(play.deliver(A, txn(1, 2)), Ok(()));
        assert!(play.deliver(B, txn(1, 2)).is_err());
    }

    #[test]
    fn catches_an_omission() {
        let mut play = Play::<TotalOrder>::new();
        for counter in 1..=3 {
            assert_eq!(play.deliver(A, txn(1, counter)), Ok(()));
        }
        assert_eq!(play.deliver(B, txn(1, 1)), Ok(()));
        assert!(play.deliver(B, txn(1, 3)).is_err());
    }
}
