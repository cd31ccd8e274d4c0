//! What must hold between any two calls.

use crate::{Peer, Role};

impl Peer {
    /// Checks the state against itself. For tests and simulation; cheap enough after every step.
    ///
    /// # Errors
    /// The sentence that does not hold.
    pub fn validate(&self) -> Result<(), &'static str> {
        let core = self.core();
        let rules = [
            (core.record.current_epoch <= core.record.accepted_epoch, "the current epoch was accepted"),
            (core.log.start() <= core.delivered, "everything before the log's start was delivered"),
            (core.delivered <= core.commit, "only committed transactions are delivered"),
            (core.commit <= core.log.last(), "the commit position is within the log"),
            (core.durable <= core.log.last(), "the durable end is within the log"),
            (core.delivered <= core.durable, "only durable transactions are delivered"),
            (core.log.contains(core.delivered), "the delivered position is in the log"),
            (
                !core.is_bound_voter() || core.log.last().epoch <= core.record.accepted_epoch,
                "the log of a voter holds no epoch beyond its promise",
            ),
            (
                !matches!(self.role(), Role::Leading { .. }) || core.record.current_epoch == self.epoch(),
                "an established leader adopted its own epoch",
            ),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, sentence)) => Err(sentence),
            None => Ok(()),
        }
    }
}
