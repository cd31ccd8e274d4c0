//! What a peer asks its driver to do.

use bytes::Bytes;

use crate::{Entry, Membership, Message, PeerId, Record, SnapshotDescriptor, Zxid};

/// What a peer is to the outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// No leader: electing, discovering, synchronizing, or cut off.
    Looking,
    /// Follows an established leader, in sync, as a voter.
    Following {
        /// That leader.
        leader: PeerId,
    },
    /// Leads, established.
    Leading {
        /// The epoch.
        epoch: u64,
    },
    /// Follows an established leader without a vote.
    Observing {
        /// That leader.
        leader: PeerId,
    },
    /// The membership does not name this directory: it was removed, or not added so far. It neither votes nor follows,
    /// and disturbs nobody.
    NotMember,
    /// Its storage failed. Nothing more will come from this peer; the process must end.
    Failed,
}

/// One thing to do. Outputs are executed in the order in which they are polled.
///
/// Those with a `token` form one ordered stream to the disk: **each must be durable before any later one becomes
/// durable**, and `handle_durable(token)` says that everything up to `token` is. Group commit is welcome: several
/// may be made durable by one sync, as long as a crash leaves a prefix of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Append to the log.
    Append {
        /// Directly after what is there.
        entries: Vec<Entry>,
        /// Durability token.
        token: u64,
    },
    /// Cut the log: entries after `after` go.
    Truncate {
        /// The new end.
        after: Zxid,
        /// Durability token.
        token: u64,
    },
    /// Replace the record.
    SaveRecord {
        /// All of it.
        record: Record,
        /// Durability token.
        token: u64,
    },
    /// Write and sync something small: shows that the disk is alive when nothing else does.
    ProbeDisk {
        /// Durability token.
        token: u64,
    },
    /// Switch to a snapshot whose bytes are complete, verified and durable: write `record`, which names it and
    /// starts a new log generation; the state machine continues from the snapshot; the old log and snapshot may
    /// be deleted once the record is durable. Deliveries continue after the snapshot's zxid.
    InstallSnapshot {
        /// The one reported by `snapshot_received`.
        snapshot: SnapshotDescriptor,
        /// The record to write.
        record: Record,
        /// Durability token.
        token: u64,
    },
    /// Log up to and including `upto` is no longer needed. In the storage stream's order (the record that says so
    /// precedes it); may be done late or in part.
    PurgeLog {
        /// The record's `log_start`.
        upto: Zxid,
    },
    /// Send to a peer. May be dropped if the link is down or its queue full.
    Send {
        /// To whom.
        to: PeerId,
        /// What.
        message: Message,
    },
    /// Apply a committed transaction. In order, once each per incarnation, starting after `Recovered::applied`.
    /// It is on this peer's disk.
    Deliver {
        /// Position.
        zxid: Zxid,
        /// What to apply; empty, and to be taken as no change, where the entry is one of the membership.
        txn: Bytes,
    },
    /// The membership that counts here is another one: connect to its members.
    MembershipChanged {
        /// The newest known to be committed.
        committed: Membership,
        /// A newer one in the log, which joins it until it is committed or cut.
        pending: Option<Membership>,
    },
    /// The role changed. `Leading` comes after the delivery of everything in the log; on any other change,
    /// unanswered proposals have an unknown outcome and unanswered reads must be asked again.
    RoleChanged {
        /// The new role.
        role: Role,
    },
    /// Answer to `read_index`: a state that contains everything up to `zxid`, which has been delivered, is fresh.
    ReadReady {
        /// The request's number.
        request: u64,
        /// What the state must contain.
        zxid: Zxid,
    },
    /// A follower needs a snapshot: take a checkpoint at one exact zxid of at least `at_least` (any applied state
    /// is), call `snapshot_started`, send its bytes to that peer, then call `snapshot_sent` (or
    /// `snapshot_failed`). At most one per peer is outstanding.
    NeedSnapshot {
        /// The follower.
        to: PeerId,
        /// Its session, to be handed back.
        session: u64,
        /// The log goes back to here.
        at_least: Zxid,
    },
    /// The session that needed a snapshot is gone: stop sending it.
    StopSnapshot {
        /// The follower.
        to: PeerId,
        /// Its session.
        session: u64,
    },
}
