//! A transaction: what the leader decided, ready for every replica to apply blindly.

use super::layers::Writes;
use protocol::meta::Push;
use protocol::{SessionId, Timestamp};
use serde::{Deserialize, Serialize};

/// A decided change. Applying it reads no clock, draws no random number and cannot fail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Txn {
    /// Number of this transaction: one more than the one before it.
    pub revision: u64,
    /// Its time: later than the one before it.
    pub time: Timestamp,
    /// Keys to set or (`None`) delete, in key order.
    pub writes: Writes,
    /// What the leader tells other sessions once this is committed.
    pub pushes: Vec<(SessionId, Push)>,
}

impl Txn {
    /// Wire and log form.
    pub fn encode(&self) -> bytes::Bytes {
        super::record::encode(self)
    }

    /// Inverse of [`Self::encode`].
    pub fn decode(bytes: &[u8]) -> Result<Self, postcard::Error> {
        postcard::from_bytes(bytes)
    }
}
