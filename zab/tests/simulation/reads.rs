//! The oracle of reads: what was acknowledged to a client, or read by one, is in every later linearizable read.

use std::collections::BTreeMap;

use zab::PeerId;

#[derive(Default)]
pub(crate) struct Reads {
    /// Transactions that any read begun from now on must contain.
    floor: usize,
    /// Read indexes on their way: who, in which incarnation, which request → the floor when it was asked.
    pending: BTreeMap<(PeerId, u64, u64), usize>,
    pub(crate) lease_reads: u64,
    pub(crate) index_reads: u64,
}

impl Reads {
    /// A client was told that its write, the last of `length` transactions, is done.
    pub(crate) fn acknowledged(&mut self, length: usize) {
        self.floor = self.floor.max(length);
    }

    pub(crate) fn lease_read(&mut self, node: PeerId, length: usize) -> Result<(), String> {
        self.lease_reads += 1;
        self.returned(node, "a lease read", self.floor, length)
    }

    pub(crate) fn ask_index(&mut self, node: PeerId, incarnation: u64, request: u64) {
        self.pending.insert((node, incarnation, request), self.floor);
    }

    pub(crate) fn index_ready(
        &mut self,
        node: PeerId,
        incarnation: u64,
        request: u64,
        length: usize,
    ) -> Result<(), String> {
        self.index_reads += 1;
        match self.pending.remove(&(node, incarnation, request)) {
            Some(floor) => self.returned(node, "a read index", floor, length),
            None => Err(format!("{node} answered read {request}, which nobody waits for")),
        }
    }

    fn returned(&mut self, node: PeerId, what: &str, floor: usize, length: usize) -> Result<(), String> {
        if length < floor {
            return Err(format!(
                "{what} at {node} saw {length} transactions, but {floor} were acknowledged before"
            ));
        }
        self.floor = self.floor.max(length);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn catches_stale_reads() {
        let mut reads = Reads::default();
        reads.ask_index(PeerId(1), 1, 1);
        reads.acknowledged(5);
        assert_eq!(reads.index_ready(PeerId(1), 1, 1, 4), Ok(()), "asked before");
        assert_eq!(reads.lease_read(PeerId(1), 5), Ok(()));
        assert!(reads.lease_read(PeerId(2), 4).is_err());
        reads.ask_index(PeerId(2), 1, 2);
        assert!(reads.index_ready(PeerId(2), 1, 2, 4).is_err());
    }
}
