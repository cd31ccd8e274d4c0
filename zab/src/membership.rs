//! Who votes, who only listens, where they are, and how that changes.
//!
//! A change is an entry of the log like any other, and holds the whole membership that it leads to. From the moment
//! at which it is in a peer's log, whatever needs a quorum there needs one of the new membership *and* one of the
//! last committed: any two quorums that may decide anything therefore share a member, also across the change. Once
//! the change is committed the old membership is forgotten, and the new one is in the record.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::mutant;
use crate::quorum::majority;
use crate::{DataUuid, PeerId};

/// Voters at most: every one of them is a message and a sync more per write.
pub const VOTERS_MAX: usize = 7;
/// Voters and observers at most.
pub const MEMBERS_MAX: usize = 64;
/// Directories remembered as removed at most; the oldest are forgotten first.
const REMOVED_MAX: usize = 64;

/// Who votes and who only listens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// Grows by one with every change; 0 before the cluster is formed.
    pub version: u64,
    /// Voters and the data directories that they are bound to; `None` until the cluster is formed (see
    /// [`Membership::is_bound`]).
    pub voters: BTreeMap<PeerId, Option<DataUuid>>,
    /// Peers that receive everything and count for nothing.
    pub observers: BTreeSet<PeerId>,
    /// Where peers are reached, `HOST:PORT`. May lack some: the driver then uses what it was told at its start.
    pub addresses: BTreeMap<PeerId, String>,
    /// Directories that were voters and are none any more, newest last. They never become members again.
    pub removed: Vec<DataUuid>,
}

impl Membership {
    /// A membership whose voters are not yet bound to directories: the cluster is formed at the first moment at
    /// which all of them can talk to the one with the smallest id.
    pub fn unbound(voters: impl IntoIterator<Item = PeerId>) -> Membership {
        let voters = voters.into_iter().map(|id| (id, None)).collect();
        Membership { voters, ..Membership::default() }
    }

    /// A membership with every voter's directory known, as a set-up tool that created all of them writes it.
    pub fn bound(voters: impl IntoIterator<Item = (PeerId, DataUuid)>) -> Membership {
        let voters = voters.into_iter().map(|(id, uuid)| (id, Some(uuid))).collect();
        Membership { version: 1, voters, ..Membership::default() }
    }

    /// Whether every voter is bound to a directory. Only then are there elections.
    pub fn is_bound(&self) -> bool {
        self.voters.values().all(Option::is_some)
    }

    /// Whether the directory `uuid` of peer `id` may vote and acknowledge.
    pub fn is_voter(&self, id: PeerId, uuid: DataUuid) -> bool {
        self.voters.get(&id) == Some(&Some(uuid))
            || (mutant!("wiped-voter-votes") && self.voters.contains_key(&id))
    }

    /// Whether the directory `uuid` of peer `id` belongs to the cluster: as a voter, an observer, or the new
    /// directory of a voter that lost its own.
    pub fn is_member(&self, id: PeerId, uuid: DataUuid) -> bool {
        self.contains(id) && !self.removed.contains(&uuid)
    }

    /// Whether `id` is the number of a voter or an observer.
    pub fn contains(&self, id: PeerId) -> bool {
        self.voters.contains_key(&id) || self.observers.contains(&id)
    }

    /// Every peer of the cluster.
    pub fn members(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.voters.keys().chain(self.observers.iter()).copied()
    }

    /// Whether the voters for which `agrees` holds are a majority. Never before the cluster is formed.
    pub(crate) fn is_quorum(&self, agrees: impl Fn(PeerId, DataUuid) -> bool) -> bool {
        self.count(agrees) >= majority(self.voters.len())
    }

    /// How many voters there are for which `agrees` holds.
    pub(crate) fn count(&self, agrees: impl Fn(PeerId, DataUuid) -> bool) -> usize {
        self.voters.iter().filter(|(id, uuid)| uuid.is_some_and(|uuid| agrees(**id, uuid))).count()
    }
}

/// One change of the membership, as an administrator asks for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MembershipChange {
    /// A new peer, as an observer.
    Add {
        /// Its number, unused so far.
        id: PeerId,
        /// Where it is reached.
        address: String,
    },
    /// An observer that is up to date becomes a voter, with the directory that it has.
    Promote {
        /// The observer.
        id: PeerId,
    },
    /// A peer goes for good, or until it is added with another directory.
    Remove {
        /// A voter or an observer.
        id: PeerId,
    },
    /// A peer moves to another address; or, without one or with the known one, a voter whose directory is lost is
    /// bound to the new directory that it is up to date with.
    Replace {
        /// A voter, or with an address also an observer.
        id: PeerId,
        /// Where it is reached from now on.
        address: Option<String>,
    },
}

/// Why the membership was not changed. Nothing was proposed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// Ask `leader()`.
    #[error("this server does not lead the quorum; ask the leader")]
    NotLeading,
    /// A bound of the configuration is reached.
    #[error("too many proposals are waiting for the quorum; try again")]
    Overloaded,
    /// The change before it is not committed, or not on the disks of a quorum.
    #[error("another change of the membership is under way; try again when it is done")]
    InProgress,
    /// Add: the number is taken.
    #[error("metadata server {0} is a member already; choose another number, or replace it")]
    AlreadyMember(PeerId),
    /// The number is unknown.
    #[error("metadata server {0} is no member of this cluster; list the members to see their numbers")]
    NotMember(PeerId),
    /// Promote: it votes already.
    #[error("metadata server {0} votes already")]
    AlreadyVoter(PeerId),
    /// Replace: it is an observer.
    #[error(
        "metadata server {0} is an observer, whose directory need not be replaced; promote it if it is to vote"
    )]
    NotVoter(PeerId),
    /// Another member has it.
    #[error("metadata server {0} has that address; every server needs its own")]
    AddressInUse(PeerId),
    /// The address is empty.
    #[error("metadata server {0} needs an address, HOST:PORT, at which the others reach it")]
    NoAddress(PeerId),
    /// Promote, replace: it does not follow this leader.
    #[error("metadata server {0} does not follow the leader; start it, and try again when it is up to date")]
    Absent(PeerId),
    /// Promote, replace: it follows, but lacks too much.
    #[error("metadata server {id} is {entries} transactions behind; try again when it is up to date")]
    Behind {
        /// The server.
        id: PeerId,
        /// What it lacks.
        entries: usize,
    },
    /// Promote, replace: its log was damaged, or it promised a later epoch.
    #[error(
        "metadata server {0} cannot vote at the moment; try again after the next election or its restart"
    )]
    CannotVote(PeerId),
    /// Replace: the directory that follows is the bound one.
    #[error("metadata server {0} votes with the directory that it has; there is nothing to replace")]
    NotReplaced(PeerId),
    /// Promote, replace: the directory was removed before.
    #[error("metadata server {0} runs with a directory that was removed from this cluster; empty it first")]
    RemovedDirectory(PeerId),
    /// Remove: nobody would be left.
    #[error("metadata server {0} is the last voter; a cluster needs one")]
    LastVoter(PeerId),
    /// Fewer voters than a majority would be up to date and within reach.
    #[error(
        "only {live} of {voters} voters would be within reach and up to date, which is no majority: bring back or replace those that are away first"
    )]
    NoQuorum {
        /// Voters within reach after the change.
        live: usize,
        /// Voters after the change.
        voters: usize,
    },
    /// No further voter.
    #[error("{VOTERS_MAX} voters are enough; remove one first, or let this one observe")]
    TooManyVoters,
    /// No further member.
    #[error("{MEMBERS_MAX} metadata servers are enough; remove one first")]
    TooManyMembers,
}

impl Membership {
    /// The membership after a change that needs no knowledge beyond the membership itself. `directory` is what the
    /// member to be bound has, for `Promote` and for `Replace` without a new address.
    ///
    /// # Errors
    /// The change makes no sense for this membership.
    pub(crate) fn changed(
        &self,
        change: &MembershipChange,
        directory: Option<DataUuid>,
    ) -> Result<Membership, ChangeError> {
        let mut next = Membership { version: self.version + 1, ..self.clone() };
        match change {
            MembershipChange::Add { id, address } => {
                if self.contains(*id) {
                    return Err(ChangeError::AlreadyMember(*id));
                }
                if self.members().count() >= MEMBERS_MAX {
                    return Err(ChangeError::TooManyMembers);
                }
                next.observers.insert(*id);
                next.set_address(*id, address)?;
            }
            MembershipChange::Promote { id } => {
                if self.voters.contains_key(id) {
                    return Err(ChangeError::AlreadyVoter(*id));
                }
                if !next.observers.remove(id) {
                    return Err(ChangeError::NotMember(*id));
                }
                if self.voters.len() >= VOTERS_MAX {
                    return Err(ChangeError::TooManyVoters);
                }
                next.bind(*id, directory)?;
            }
            MembershipChange::Remove { id } => next.remove(*id)?,
            MembershipChange::Replace { id, .. } if !self.contains(*id) => {
                return Err(ChangeError::NotMember(*id));
            }
            MembershipChange::Replace { id, address: Some(address) } if self.is_elsewhere(*id, address) => {
                next.set_address(*id, address)?;
            }
            MembershipChange::Replace { id, .. } => {
                let Some(bound) = self.voters.get(id) else { return Err(ChangeError::NotVoter(*id)) };
                if directory.is_some() && directory == *bound {
                    return Err(ChangeError::NotReplaced(*id));
                }
                next.retire(*bound);
                next.bind(*id, directory)?;
            }
        }
        Ok(next)
    }

    /// Whether an address for `id` is not the one that is known.
    pub(crate) fn is_elsewhere(&self, id: PeerId, address: &str) -> bool {
        self.addresses.get(&id).is_none_or(|known| known != address)
    }

    fn set_address(&mut self, id: PeerId, address: &str) -> Result<(), ChangeError> {
        if address.is_empty() {
            return Err(ChangeError::NoAddress(id));
        }
        if let Some((other, _)) =
            self.addresses.iter().find(|(other, known)| **other != id && *known == address)
        {
            return Err(ChangeError::AddressInUse(*other));
        }
        self.addresses.insert(id, address.to_owned());
        Ok(())
    }

    fn bind(&mut self, id: PeerId, directory: Option<DataUuid>) -> Result<(), ChangeError> {
        let directory = directory.ok_or(ChangeError::Absent(id))?;
        if self.removed.contains(&directory) {
            return Err(ChangeError::RemovedDirectory(id));
        }
        self.voters.insert(id, Some(directory));
        Ok(())
    }

    fn remove(&mut self, id: PeerId) -> Result<(), ChangeError> {
        if let Some(directory) = self.voters.remove(&id) {
            if self.voters.is_empty() {
                return Err(ChangeError::LastVoter(id));
            }
            self.retire(directory);
        } else if !self.observers.remove(&id) {
            return Err(ChangeError::NotMember(id));
        }
        self.addresses.remove(&id);
        Ok(())
    }

    fn retire(&mut self, directory: Option<DataUuid>) {
        self.removed.extend(directory);
        let surplus = self.removed.len().saturating_sub(REMOVED_MAX);
        self.removed.drain(..surplus);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> Membership {
        Membership::bound([1, 2, 3].map(|id| (PeerId(id), DataUuid(u128::from(id) * 10))))
    }

    #[test]
    fn only_the_bound_directory_votes() {
        let membership = Membership::bound([(PeerId(1), DataUuid(10)), (PeerId(2), DataUuid(20))]);
        assert!(membership.is_bound());
        assert!(membership.is_voter(PeerId(1), DataUuid(10)));
        assert!(!membership.is_voter(PeerId(1), DataUuid(11)), "a wiped directory");
        assert!(!membership.is_voter(PeerId(3), DataUuid(10)), "a foreign id");
    }

    #[test]
    fn nobody_votes_before_the_cluster_is_formed() {
        let membership = Membership::unbound([PeerId(1), PeerId(2)]);
        assert!(!membership.is_bound());
        assert!(!membership.is_voter(PeerId(1), DataUuid(10)));
        assert!(!membership.is_quorum(|_, _| true));
    }

    #[test]
    fn a_removed_directory_never_comes_back() {
        let id = PeerId(3);
        let without = three().changed(&MembershipChange::Remove { id }, None).expect("two are left");
        assert_eq!(without.removed, vec![DataUuid(30)]);
        let add = MembershipChange::Add { id, address: "host:1".to_owned() };
        let again = without.changed(&add, None).expect("the number is free");
        assert!(!again.is_member(id, DataUuid(30)) && again.is_member(id, DataUuid(31)));
        let promote = MembershipChange::Promote { id };
        assert_eq!(
            again.changed(&promote, Some(DataUuid(30))),
            Err(ChangeError::RemovedDirectory(id)),
            "the old directory"
        );
        let whole = again.changed(&promote, Some(DataUuid(31))).expect("another one");
        assert_eq!((whole.version, whole.voters.len(), whole.observers.len()), (4, 3, 0));
    }

    #[test]
    fn senseless_changes_are_refused() {
        let id = PeerId(2);
        let address = |text: &str| Some(text.to_owned());
        let mut known = three();
        known.addresses.insert(PeerId(1), "host:1".to_owned());
        let refused =
            |change: MembershipChange, directory| known.changed(&change, directory).expect_err("senseless");
        let add = |id, text: &str| MembershipChange::Add { id: PeerId(id), address: text.to_owned() };
        assert_eq!(refused(add(2, "host:9"), None), ChangeError::AlreadyMember(id));
        assert_eq!(refused(add(4, "host:1"), None), ChangeError::AddressInUse(PeerId(1)));
        assert_eq!(refused(add(4, ""), None), ChangeError::NoAddress(PeerId(4)));
        assert_eq!(refused(MembershipChange::Promote { id }, None), ChangeError::AlreadyVoter(id));
        assert_eq!(
            refused(MembershipChange::Remove { id: PeerId(9) }, None),
            ChangeError::NotMember(PeerId(9))
        );
        let replace = |address| MembershipChange::Replace { id, address };
        assert_eq!(refused(replace(None), Some(DataUuid(20))), ChangeError::NotReplaced(id));
        assert_eq!(refused(replace(None), None), ChangeError::Absent(id));
        assert_eq!(refused(replace(address("host:1")), None), ChangeError::AddressInUse(PeerId(1)));
        let one = Membership::bound([(id, DataUuid(20))]);
        assert_eq!(one.changed(&MembershipChange::Remove { id }, None), Err(ChangeError::LastVoter(id)));
    }

    #[test]
    fn the_list_of_removed_directories_is_bounded() {
        let mut membership = three();
        for directory in 0..1_000 {
            membership.retire(Some(DataUuid(directory)));
        }
        assert_eq!(membership.removed.len(), REMOVED_MAX);
        assert_eq!(membership.removed.last(), Some(&DataUuid(999)));
    }
}
