//! What can be observed of a run, for the invariants.

use std::collections::BTreeMap;

use zab::{PeerId, Zxid};

/// A transaction as clients know it: its position and a value that no other proposal has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Txn {
    pub(crate) zxid: Zxid,
    pub(crate) value: u64,
}

#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// `node` (in its `incarnation`) says that it leads `epoch`.
    Established { node: PeerId, incarnation: u64, epoch: u64 },
    /// The primary `node` broadcast `txn`.
    Broadcast { node: PeerId, txn: Txn },
    /// `node` delivered `txn`; it is the last of its history.
    Delivered { node: PeerId, txn: Txn },
    /// `node` restarted, or installed a snapshot: its history was replaced.
    Restored { node: PeerId },
}

/// Per node, everything delivered, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Histories(BTreeMap<PeerId, Vec<Txn>>);

impl Histories {
    pub(crate) fn of(&self, node: PeerId) -> &[Txn] {
        self.0.get(&node).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (PeerId, &[Txn])> {
        self.0.iter().map(|(node, history)| (*node, history.as_slice()))
    }

    pub(crate) fn deliver(&mut self, node: PeerId, txn: Txn) {
        self.0.entry(node).or_default().push(txn);
    }

    pub(crate) fn restore(&mut self, node: PeerId, history: Vec<Txn>) {
        self.0.insert(node, history);
    }
}
