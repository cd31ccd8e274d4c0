//! The safety properties, named as in ZooKeeper's TLA+ specification of Zab. One file each, with a test that the
//! checker catches a violation.
//!
//! | file | paper (DSN 2011) | TLA+ |
//! |---|---|---|
//! | `leadership` | §IV, one primary per epoch | `Leadership1`, `Leadership2` |
//! | `prefix_consistency` | follows from the next three | `PrefixConsistency` |
//! | `integrity` | §III-B Integrity | `Integrity` |
//! | `agreement` | §III-B Agreement | `Agreement` |
//! | `total_order` | §III-B Total order | `TotalOrder` |
//! | `local_primary_order` | §III-B Local primary order | `LocalPrimaryOrder` |
//! | `global_primary_order` | §III-B Global primary order | `GlobalPrimaryOrder` |
//! | `primary_integrity` | §III-B Primary integrity | `PrimaryIntegrity` |

mod agreement;
mod global_primary_order;
mod integrity;
mod leadership;
mod local_primary_order;
mod prefix_consistency;
mod primary_integrity;
mod total_order;

use zab::PeerId;

use super::history::{Event, Histories, Txn};

/// A property that is checked with every event.
pub(crate) trait Invariant {
    fn name(&self) -> &'static str;

    /// Takes an event that has just been added to `histories`.
    fn check(&mut self, event: &Event, histories: &Histories) -> Result<(), String>;
}

/// All of them, and the histories they look at.
pub(crate) struct Checker {
    pub(crate) histories: Histories,
    invariants: Vec<Box<dyn Invariant>>,
}

impl Checker {
    pub(crate) fn new() -> Checker {
        Checker {
            histories: Histories::default(),
            invariants: vec![
                Box::new(leadership::Leadership::default()),
                Box::new(prefix_consistency::PrefixConsistency::default()),
                Box::new(integrity::Integrity::default()),
                Box::new(agreement::Agreement::default()),
                Box::new(total_order::TotalOrder::default()),
                Box::new(local_primary_order::LocalPrimaryOrder::default()),
                Box::new(global_primary_order::GlobalPrimaryOrder),
                Box::new(primary_integrity::PrimaryIntegrity::default()),
            ],
        }
    }

    pub(crate) fn delivered(&mut self, node: PeerId, txn: Txn) -> Result<(), String> {
        self.histories.deliver(node, txn);
        self.observe(&Event::Delivered { node, txn })
    }

    pub(crate) fn restored(&mut self, node: PeerId, history: Vec<Txn>) -> Result<(), String> {
        self.histories.restore(node, history);
        self.observe(&Event::Restored { node })
    }

    pub(crate) fn observe(&mut self, event: &Event) -> Result<(), String> {
        for invariant in &mut self.invariants {
            let result = invariant.check(event, &self.histories);
            result.map_err(|what| format!("invariant {} is violated: {what}", invariant.name()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use zab::{PeerId, Zxid};

    use super::*;

    pub(crate) const A: PeerId = PeerId(1);
    pub(crate) const B: PeerId = PeerId(2);

    pub(crate) fn txn(epoch: u64, counter: u64) -> Txn {
        Txn { zxid: Zxid::new(epoch, counter), value: epoch * 1000 + counter }
    }

    /// Feeds one invariant.
    pub(crate) struct Play<I> {
        pub(crate) invariant: I,
        histories: Histories,
    }

    impl<I: Invariant + Default> Play<I> {
        pub(crate) fn new() -> Play<I> {
            Play { invariant: I::default(), histories: Histories::default() }
        }

        pub(crate) fn deliver(&mut self, node: PeerId, txn: Txn) -> Result<(), String> {
            self.histories.deliver(node, txn);
            self.invariant.check(&Event::Delivered { node, txn }, &self.histories)
        }

        pub(crate) fn broadcast(&mut self, node: PeerId, txn: Txn) -> Result<(), String> {
            self.invariant.check(&Event::Broadcast { node, txn }, &self.histories)
        }

        pub(crate) fn restore(&mut self, node: PeerId, history: Vec<Txn>) -> Result<(), String> {
            self.histories.restore(node, history);
            self.invariant.check(&Event::Restored { node }, &self.histories)
        }

        pub(crate) fn establish(&mut self, node: PeerId, incarnation: u64, epoch: u64) -> Result<(), String> {
            self.invariant.check(&Event::Established { node, incarnation, epoch }, &self.histories)
        }
    }
}
