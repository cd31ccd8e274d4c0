//! One line per peer tells the cluster: `3 L e2 BROADCAST log (2,17) commit (2,15)`.
//!
//! Id, role (`L` leader or candidate, `F` follower, `O` learner, `-` looking, `X` failed), epoch, phase, the end of
//! the log (with what of it is on disk, if that is less), what is committed.

use std::fmt;

use crate::Peer;

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (letter, phase) = self.letter_and_phase();
        write!(f, "{} {letter} e{} {phase} log {}", self.id(), self.epoch(), self.last_zxid())?;
        if self.durable_zxid() != self.last_zxid() {
            write!(f, " durable {}", self.durable_zxid())?;
        }
        write!(f, " commit {}", self.committed())
    }
}
