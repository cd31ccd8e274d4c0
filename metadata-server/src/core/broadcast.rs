//! The atomic broadcast, as far as the core calls it.

use crate::quorum::PeerStatus;
use bytes::Bytes;
use protocol::meta::Refusals;
use protocol::transport::EndpointStats;
use zab::{ChangeError, Membership, MembershipChange, Peer, ProposeError, ReadError, Tick, Zxid};

/// The calls into the quorum. None of them waits, and none calls back: what they cause comes through the core's
/// `handle_*`.
pub trait Broadcast {
    /// Leader: proposes a transaction. It takes effect when it is applied.
    ///
    /// # Errors
    /// It was not taken and has no effect.
    fn propose(&mut self, txn: Bytes) -> Result<Zxid, ProposeError>;

    /// Leader: asks its quorum whether it still leads, with a round begun after this call.
    ///
    /// # Errors
    /// It was not asked.
    fn read_index(&mut self, number: u64) -> Result<(), ReadError>;

    /// Leader: whether no other leader can exist at this moment.
    fn lease_valid(&self) -> bool;

    /// The other metadata servers, for people.
    fn peers(&self) -> Vec<PeerStatus>;

    /// What was refused, requests of clients not counted. For people.
    fn refusals(&self) -> Refusals;

    /// The newest membership that is known to be committed, and, at the leader, whether it is settled: see
    /// [`Peer::is_membership_settled`].
    fn membership(&self) -> (Membership, bool);

    /// Leader: proposes a change of the membership.
    ///
    /// # Errors
    /// It was not proposed.
    fn change_membership(&mut self, change: &MembershipChange) -> Result<Zxid, ChangeError>;
}

/// The counters of protocol and socket as people see them.
pub(crate) fn refusals(zab: zab::Counters, transport: EndpointStats) -> Refusals {
    Refusals {
        connections: transport.refused,
        malformed: transport.misbehaved,
        requests: 0,
        foreign: zab.malformed + zab.foreign,
        stale: zab.stale,
    }
}

/// A bare peer at one moment.
pub struct AtPeer<'a> {
    /// The peer.
    pub peer: &'a mut Peer,
    /// Its clock.
    pub now: Tick,
}

impl Broadcast for AtPeer<'_> {
    fn propose(&mut self, txn: Bytes) -> Result<Zxid, ProposeError> {
        self.peer.propose(txn, self.now)
    }

    fn read_index(&mut self, number: u64) -> Result<(), ReadError> {
        self.peer.read_index(number, self.now)
    }

    fn lease_valid(&self) -> bool {
        self.peer.lease_valid(self.now)
    }

    fn peers(&self) -> Vec<PeerStatus> {
        let status =
            |(id, counts)| PeerStatus { id, connected: true, acknowledged: None, counts: Some(counts) };
        self.peer.followers().into_iter().map(status).collect()
    }

    fn refusals(&self) -> Refusals {
        refusals(self.peer.counters(), EndpointStats::default())
    }

    fn membership(&self) -> (Membership, bool) {
        (self.peer.membership().clone(), self.peer.is_membership_settled())
    }

    fn change_membership(&mut self, change: &MembershipChange) -> Result<Zxid, ChangeError> {
        self.peer.change_membership(change, self.now)
    }
}
