//! What a peer keeps on disk beside its log: one record, replaced by one atomic checksummed write.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{Membership, Zxid};

/// A server's number within the cluster, given by the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PeerId(pub u32);

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Identity of a data directory: drawn at random when the directory is created, never reused.
///
/// A voter is (id, uuid): the same id with another directory has forgotten what it promised and acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DataUuid(pub u128);

impl fmt::Display for DataUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// A snapshot that is part of the durable state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRef {
    /// The driver's name for it (a file or database name contains it).
    pub id: u64,
    /// It holds exactly the transactions up to and including this one.
    pub zxid: Zxid,
}

/// What identifies snapshot bytes that travel outside of [`Message`](crate::Message).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotDescriptor {
    /// Name, unique per cluster for practical purposes (the leader's driver draws it).
    pub id: u64,
    /// It holds exactly the transactions up to and including this one.
    pub zxid: Zxid,
    /// Length in bytes.
    pub length: u64,
    /// crc32c of all bytes.
    pub crc: u32,
}

/// What an entry does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Payload {
    /// The state machine applies it; opaque here.
    Txn(Bytes),
    /// The membership becomes this one. Not less than a transaction in any other respect: the state machine sees
    /// an empty one at its position.
    Membership(Box<Membership>),
}

/// One entry of the history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its position.
    pub zxid: Zxid,
    /// What it does.
    pub payload: Payload,
}

impl Entry {
    /// An entry with a transaction.
    pub fn txn(zxid: Zxid, txn: impl Into<Bytes>) -> Entry {
        Entry { zxid, payload: Payload::Txn(txn.into()) }
    }

    /// An entry that changes the membership.
    pub fn membership(zxid: Zxid, membership: Membership) -> Entry {
        Entry { zxid, payload: Payload::Membership(Box::new(membership)) }
    }

    /// About how many bytes it takes on disk and on the wire.
    pub fn bytes(&self) -> u64 {
        crate::log::size(self)
    }

    /// What the state machine gets to see.
    pub(crate) fn delivery(&self) -> Bytes {
        match &self.payload {
            Payload::Txn(txn) => txn.clone(),
            Payload::Membership(_) => Bytes::new(),
        }
    }
}

/// The one durable record. The driver replaces it atomically (write, checksum, rename, sync the directory), so that
/// no crash leaves the two epochs, the snapshot and the start of the log in disagreement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Which data directory this is.
    pub data_uuid: DataUuid,
    /// The newest epoch that this peer promised to take part in (paper: `f.p`).
    pub accepted_epoch: u64,
    /// Whom that promise was given to. Two candidates may choose the same epoch; a quorum follows one of them.
    pub accepted_leader: Option<PeerId>,
    /// The newest epoch whose leader's history this peer adopted (paper: `f.a`). At most `accepted_epoch`.
    pub current_epoch: u64,
    /// The newest membership known to be committed (at first: the one that the cluster begins with). A newer one may
    /// stand in the log.
    pub membership: Membership,
    /// The snapshot that the state machine starts from, if one was ever installed.
    pub snapshot: Option<SnapshotRef>,
    /// The log holds what comes after this position.
    pub log_start: Zxid,
    /// Which log is valid. Installing a snapshot starts a new, empty one in the same write that switches to the
    /// snapshot; what is left of an older generation on disk is garbage, whatever its zxids say.
    pub log_generation: u64,
    /// The log was found damaged: this peer neither votes nor counts for acks until a leader brought it up to date.
    pub needs_sync: bool,
}

impl Record {
    /// The record of a directory that has just been created.
    pub fn fresh(data_uuid: DataUuid, membership: Membership) -> Record {
        Record {
            data_uuid,
            accepted_epoch: 0,
            accepted_leader: None,
            current_epoch: 0,
            membership,
            snapshot: None,
            log_start: Zxid::ZERO,
            log_generation: 0,
            needs_sync: false,
        }
    }

    /// Whether this directory has never taken part in anything.
    pub fn is_fresh(&self) -> bool {
        self.accepted_epoch == 0 && self.log_start == Zxid::ZERO && self.snapshot.is_none()
    }
}

/// Everything that the driver read from its disk at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The record. If the log is damaged below its known durable end, the driver sets `needs_sync` in it.
    pub record: Record,
    /// All entries of generation `record.log_generation` after `record.log_start`, in order and without holes
    /// (a damaged log: those before the damage).
    pub log: Vec<Entry>,
    /// The last transaction that the state machine's own durable state contains; at least the snapshot's.
    /// Deliveries start after it.
    pub applied: Zxid,
}
