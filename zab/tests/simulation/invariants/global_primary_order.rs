//! What an earlier primary broadcast is delivered before what a later one broadcast.

use super::Invariant;
use crate::simulation::history::{Event, Histories, Txn};

#[derive(Default)]
pub(crate) struct GlobalPrimaryOrder;

fn check_last(history: &[Txn]) -> Result<(), String> {
    let [.., before, last] = history else { return Ok(()) };
    if before.zxid.epoch > last.zxid.epoch {
        return Err(format!("{} of an earlier primary was delivered after {}", last.zxid, before.zxid));
    }
    Ok(())
}

impl Invariant for GlobalPrimaryOrder {
    fn name(&self) -> &'static str {
        "global_primary_order"
    }

    fn check(&mut self, event: &Event, histories: &Histories) -> Result<(), String> {
        match event {
            Event::Delivered { node, .. } => check_last(histories.of(*node)),
            Event::Restored { node } => {
                let history = histories.of(*node);
                (1..=history.len()).try_for_each(|end| check_last(&history[..end]))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulation::invariants::testing::{A, Play, txn};

    #[test]
    fn catches_an_earlier_primary_delivered_late() {
        let mut play = Play::<GlobalPrimaryOrder>::new();
        assert_eq!(play.deliver(A, txn(1, 1)), Ok(()));
        assert_eq!(play.deliver(A, txn(3, 1)), Ok(()));
        assert!(play.deliver(A, txn(2, 1)).is_err());
    }
}
