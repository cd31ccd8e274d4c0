//! Positions in the total order.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Position of one transaction in the total order.
///
/// Field order matters: `Ord` compares the epoch first, then the counter. Both are 64 bits wide, so that neither
/// ever wraps (a 32-bit counter forces an election after 2³² writes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Zxid {
    /// The Zab epoch of the leader that proposed the transaction; 0 is never led.
    pub epoch: u64,
    /// 1 for the first proposal of an epoch, then one more for each.
    pub counter: u64,
}

impl Zxid {
    /// The position before the first transaction of all.
    pub const ZERO: Zxid = Zxid { epoch: 0, counter: 0 };

    /// The position `(epoch, counter)`.
    pub const fn new(epoch: u64, counter: u64) -> Zxid {
        Zxid { epoch, counter }
    }

    /// Whether a transaction at `self` may stand directly after one at `previous` in a history.
    ///
    /// Within an epoch counters are dense; a later epoch starts at 1. A history in which every neighbour satisfies
    /// this has no hole *within* an epoch; that no epoch's end is missing is what `prev` in
    /// [`Body::Entries`](crate::Body::Entries) proves.
    pub fn follows(self, previous: Zxid) -> bool {
        if self.epoch == previous.epoch {
            previous.counter.checked_add(1) == Some(self.counter)
        } else {
            self.epoch > previous.epoch && self.counter == 1
        }
    }
}

impl fmt::Display for Zxid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({},{})", self.epoch, self.counter)
    }
}

#[cfg(test)]
mod tests {
    use super::Zxid;

    #[test]
    fn epochs_order_before_counters() {
        assert!(Zxid::new(1, 900) < Zxid::new(2, 1));
        assert!(Zxid::new(2, 1) < Zxid::new(2, 2));
    }

    #[test]
    fn neighbours_are_dense_within_an_epoch() {
        assert!(Zxid::new(1, 1).follows(Zxid::ZERO));
        assert!(Zxid::new(2, 7).follows(Zxid::new(2, 6)));
        assert!(Zxid::new(9, 1).follows(Zxid::new(2, 6)));
        assert!(!Zxid::new(2, 8).follows(Zxid::new(2, 6)));
        assert!(!Zxid::new(3, 2).follows(Zxid::new(2, 6)));
        assert!(!Zxid::new(1, 1).follows(Zxid::new(2, 6)));
        assert!(!Zxid::new(2, 0).follows(Zxid::new(2, u64::MAX)));
    }
}
