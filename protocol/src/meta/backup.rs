//! The head of a backup, on the wire and in its file.

use crate::attr::Timestamp;
use crate::id::Revision;
use serde::{Deserialize, Serialize};

/// What a backup is of: the head of its file, too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupHead {
    /// The cluster.
    pub cluster: [u8; 16],
    /// Which life of it.
    pub generation: u64,
    /// The one revision that all rows are of.
    pub revision: Revision,
    /// Zab's epoch and counter there.
    pub zxid: (u64, u64),
    /// Format of the rows.
    pub state_format: u32,
    /// When it was begun, by the leader's clock.
    pub taken: Timestamp,
    /// Directories of metadata servers that voted then or earlier. They belong to no restored cluster.
    pub directories: Vec<u128>,
}
