//! Of any two histories one is a prefix of the other, values included.

use super::Invariant;
use crate::simulation::history::{Event, Histories, Txn};

#[derive(Default)]
pub(crate) struct PrefixConsistency {
    /// The longest history seen so far.
    longest: Vec<Txn>,
}

impl PrefixConsistency {
    fn check_at(&mut self, index: usize, txn: Txn) -> Result<(), String> {
        match self.longest.get(index) {
            Some(known) if *known == txn => Ok(()),
            Some(known) => {
                Err(format!("transaction {index} is {known:?} in one history and {txn:?} in another"))
            }
            None => {
                self.longest.push(txn);
                Ok(())
            }
        }
    }
}

impl Invariant for PrefixConsistency {
    fn name(&self) -> &'static str {
        "prefix_consistency"
    }

    fn check(&mut self, event: &Event, histories: &Histories) -> Result<(), String> {
        match event {
            Event::Delivered { node, txn } => self.check_at(histories.of(*node).len() - 1, *txn),
            Event::Restored { node } => {
                let restored = histories.of(*node).iter().copied().enumerate();
                restored.into_iter().try_for_each(|(index, txn)| self.check_at(index, txn))
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
    fn catches_histories_that_diverge() {
        let mut play = Play::<PrefixConsistency>::new();
        assert_eq!(play.deliver(A, txn(1, 1)), Ok(()));
        assert_eq!(play.deliver(B, txn(1, 1)), Ok(()));
        assert_eq!(play.deliver(A, txn(1, 2)), Ok(()));
        assert!(play.deliver(B, txn(2, 1)).is_err());
    }

    #[test]
    fn catches_a_snapshot_of_another_history() {
        let mut play = Play::<PrefixConsistency>::new();
        assert_eq!(play.deliver(A, txn(1, 1)), Ok(()));
        assert!(play.restore(B, vec![txn(1, 2)]).is_err());
    }

    #[test]
    fn catches_one_position_with_two_values() {
        let mut play = Play::<PrefixConsistency>::new();
        assert_eq!(play.deliver(A, txn(1, 1)), Ok(()));
        assert!(play.deliver(B, Txn { value: 7, ..txn(1, 1) }).is_err());
    }
}
