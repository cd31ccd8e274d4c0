//! What peers say to each other.
//!
//! Links are expected to keep order and may lose any suffix when a connection ends. Nothing here relies on more:
//! acks are cumulative and repeated with every heartbeat, entries name their predecessor, and everything between a
//! leader and one follower carries the follower's *session*, a number drawn for each attempt to join, so that what
//! an earlier attempt or incarnation said is recognised and ignored.

use serde::{Deserialize, Serialize};

use crate::{DataUuid, Entry, Membership, PeerId, SnapshotDescriptor, Zxid};

/// One message with its sender's directory, which decides whether a vote or an ack counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// The sender's data directory.
    pub uuid: DataUuid,
    /// What it says.
    pub body: Body,
}

/// A preference in an election. Field order matters: the history that is newest by (current epoch, last zxid) wins,
/// the larger id breaks the tie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Vote {
    /// The candidate's current epoch.
    pub current_epoch: u64,
    /// The candidate's last durable zxid.
    pub last: Zxid,
    /// The candidate.
    pub candidate: PeerId,
}

/// What the sender of a notification is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// No leader known.
    Looking,
    /// In synchronization with or following `leader`.
    Following {
        /// That leader.
        leader: PeerId,
    },
    /// Established as the leader of `epoch` and confirmed by a quorum within the last election timeout.
    Leading {
        /// The epoch it leads.
        epoch: u64,
    },
}

/// How far the sender of an ack got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The last zxid that is on the follower's disk.
    pub durable: Zxid,
    /// The leader's history and its epoch are on the follower's disk (paper: ACK-LD was sent).
    pub synced: bool,
    /// The follower's disk completed something recently, or had nothing to do.
    pub disk_ok: bool,
    /// The version of the committed membership in the record on the follower's disk.
    pub membership: u64,
}

/// The bodies, in the order in which a follower meets them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// "This is the membership I know." Sent by peers whose membership is unbound (formation) or does not name them,
    /// by leaders to members that are away, and as the answer to whoever knows an older one.
    Hello {
        /// The newest that the sender knows to be committed; unbound before the formation.
        membership: Membership,
        /// A newer one in the sender's log.
        pending: Option<Membership>,
    },
    /// Fast leader election: one vote, or the answer of a peer that does not take part.
    Notification {
        /// The sender's election round.
        round: u64,
        /// Whom it would follow; `None` from peers that may not vote (now).
        vote: Option<Vote>,
        /// What it is doing.
        standing: Standing,
        /// The version of the newest membership that it knows to be committed: who knows a newer one tells it.
        membership: u64,
    },
    /// Follower → leader, discovery (CEPOCH, ZooKeeper's FOLLOWERINFO). Starts a session.
    FollowerInfo {
        /// Drawn by the follower for this attempt.
        session: u64,
        /// Its promise.
        accepted_epoch: u64,
        /// False if its log is damaged.
        may_vote: bool,
    },
    /// Leader → follower, discovery (NEWEPOCH, ZooKeeper's LEADERINFO).
    NewEpoch {
        /// The follower's session.
        session: u64,
        /// Larger than any that the leader's quorum had accepted.
        epoch: u64,
        /// The leader was established before, so that following it cannot break another's lease.
        established: bool,
        /// The follower is one of the leader's voters: its promise counts, and must be on its disk.
        counts: bool,
    },
    /// Follower → leader, discovery (ACK-E, ZooKeeper's ACKEPOCH). The promise is on disk.
    AckEpoch {
        /// The follower's session.
        session: u64,
        /// The epoch promised.
        epoch: u64,
        /// The follower's current epoch.
        current_epoch: u64,
        /// Its last durable zxid.
        last: Zxid,
        /// The last zxid of each epoch in its log, newest first, ending with the position its log starts at. The
        /// leader finds the common prefix from them.
        tails: Vec<Zxid>,
    },
    /// Leader → follower, synchronization (DIFF and TRUNC): "we agree up to `common`; drop what you have beyond".
    SyncFrom {
        /// The follower's session.
        session: u64,
        /// The leader's epoch.
        epoch: u64,
        /// Numbers the ordered messages of the session, from 1.
        seq: u64,
        /// The last zxid that both histories contain.
        common: Zxid,
    },
    /// Leader → follower, synchronization (SNAP): the bytes of this snapshot were sent beside this stream.
    Snapshot {
        /// The follower's session.
        session: u64,
        /// The leader's epoch.
        epoch: u64,
        /// Numbers the ordered messages of the session, from 1.
        seq: u64,
        /// What to install once its bytes are complete.
        snapshot: SnapshotDescriptor,
        /// The committed membership, at least as new as the one at the snapshot's zxid.
        membership: Membership,
    },
    /// Leader → follower: history during synchronization, proposals (PROPOSE) afterwards. One kind of message for
    /// both, so that there is one way into the log.
    Entries {
        /// The follower's session.
        session: u64,
        /// The leader's epoch.
        epoch: u64,
        /// Numbers the ordered messages of the session, from 1.
        seq: u64,
        /// The zxid directly before the first entry.
        prev: Zxid,
        /// Neighbours.
        entries: Vec<Entry>,
        /// The leader's commit position.
        commit: Zxid,
    },
    /// Leader → follower, synchronization (NEWLEADER): everything up to `last` was sent.
    NewLeader {
        /// The follower's session.
        session: u64,
        /// The leader's epoch.
        epoch: u64,
        /// Numbers the ordered messages of the session, from 1.
        seq: u64,
        /// The follower's history must end here at this moment.
        last: Zxid,
        /// The committed membership.
        membership: Membership,
    },
    /// Leader → follower, end of synchronization (COMMIT-LD, UPTODATE): the leader is established.
    UpToDate {
        /// The follower's session.
        session: u64,
        /// The leader's epoch.
        epoch: u64,
        /// Numbers the ordered messages of the session, from 1.
        seq: u64,
        /// The leader's commit position *now*.
        commit: Zxid,
    },
    /// Leader → follower, broadcast (COMMIT), cumulative.
    Commit {
        /// The follower's session.
        session: u64,
        /// The leader's epoch.
        epoch: u64,
        /// The leader's commit position.
        commit: Zxid,
    },
    /// Leader → follower: "I am still here".
    Heartbeat {
        /// The follower's session.
        session: u64,
        /// The leader's epoch.
        epoch: u64,
        /// Numbers the rounds of one leadership; an ack of it confirms the leader at a time after the round began.
        round: u64,
        /// The leader's commit position.
        commit: Zxid,
        /// How many ordered messages were sent in this session: a follower that has fewer lost something.
        sent: u64,
    },
    /// Follower → leader: ACK-LD, ACK and heartbeat answer in one, cumulative.
    Ack {
        /// The follower's session.
        session: u64,
        /// The leader's epoch.
        epoch: u64,
        /// The newest heartbeat round heard.
        round: u64,
        /// How far the follower got.
        progress: Progress,
    },
    /// Either side ends the session. From a leader that stepped down it also gives back its lease.
    Leave {
        /// The follower's session.
        session: u64,
        /// The leader will not use its lease again, nor the epoch.
        resigned: bool,
    },
}

impl Body {
    /// The session that a body between a leader and a follower belongs to.
    pub(crate) fn session(&self) -> Option<u64> {
        match self {
            Body::Hello { .. } | Body::Notification { .. } => None,
            Body::FollowerInfo { session, .. }
            | Body::NewEpoch { session, .. }
            | Body::AckEpoch { session, .. }
            | Body::SyncFrom { session, .. }
            | Body::Snapshot { session, .. }
            | Body::Entries { session, .. }
            | Body::NewLeader { session, .. }
            | Body::UpToDate { session, .. }
            | Body::Commit { session, .. }
            | Body::Heartbeat { session, .. }
            | Body::Ack { session, .. }
            | Body::Leave { session, .. } => Some(*session),
        }
    }
}

impl Message {
    /// The name of the kind, for logs, counters and traces.
    pub fn kind(&self) -> &'static str {
        match self.body {
            Body::Hello { .. } => "Hello",
            Body::Notification { .. } => "Notification",
            Body::FollowerInfo { .. } => "FollowerInfo",
            Body::NewEpoch { .. } => "NewEpoch",
            Body::AckEpoch { .. } => "AckEpoch",
            Body::SyncFrom { .. } => "SyncFrom",
            Body::Snapshot { .. } => "Snapshot",
            Body::Entries { .. } => "Entries",
            Body::NewLeader { .. } => "NewLeader",
            Body::UpToDate { .. } => "UpToDate",
            Body::Commit { .. } => "Commit",
            Body::Heartbeat { .. } => "Heartbeat",
            Body::Ack { .. } => "Ack",
            Body::Leave { .. } => "Leave",
        }
    }
}
