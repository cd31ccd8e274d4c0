//! Administrators who change the membership while everything goes wrong, and the oracle of what they may rely on.

use std::collections::{BTreeMap, BTreeSet};

use zab::{DataUuid, Membership, MembershipChange, PeerId, Role, Zxid};

use super::describe::members;
use super::history::{Event, Txn};
use super::node::Node;
use super::world::{Happening, World};

/// Machines in a world at most.
const NODES_MAX: usize = 9;
/// The first number of a machine that was not there at the beginning.
const FIRST_NEW: u32 = 11;

/// What is known of the changes so far.
#[derive(Default)]
pub(crate) struct Administration {
    /// Committed memberships, by version. Each has one.
    committed: BTreeMap<u64, Membership>,
    /// Directories on which a change became durable.
    held: Vec<(Membership, BTreeSet<(PeerId, DataUuid)>)>,
}

impl Administration {
    /// How many changes were committed.
    pub(crate) fn changes(&self) -> u64 {
        self.committed.keys().filter(|version| **version > 1).count() as u64
    }

    fn hold(&mut self, id: PeerId, uuid: DataUuid, change: Membership) {
        match self.held.iter_mut().find(|(known, _)| *known == change) {
            Some((_, holders)) => drop(holders.insert((id, uuid))),
            None => self.held.push((change, BTreeSet::from([(id, uuid)]))),
        }
    }

    /// There is one membership per version, and a majority of it *and* of the one before had it on disk when anybody
    /// first took it for committed: quorums of neighbours share a member.
    fn commit(&mut self, committed: &Membership) -> Result<(), String> {
        let version = committed.version;
        match self.committed.get(&version) {
            Some(known) if known == committed => return Ok(()),
            Some(known) => {
                return Err(format!("two memberships {version} are committed: {known:?} and {committed:?}"));
            }
            None => {}
        }
        self.committed.insert(version, committed.clone());
        if version < 2 {
            return Ok(());
        }
        let before = self.committed.get(&(version - 1));
        let before = before.ok_or(format!("membership {version} was committed before {}", version - 1))?;
        let holders = self.held.iter().find(|(change, _)| change == committed).map(|(_, holders)| holders);
        let holders = holders.ok_or(format!("membership {version} was committed and is on no disk"))?;
        for membership in [before, committed] {
            let voters = membership.voters.iter();
            let count =
                voters.filter(|(id, uuid)| uuid.is_some_and(|u| holders.contains(&(**id, u)))).count();
            if count <= membership.voters.len() / 2 {
                return Err(format!(
                    "membership {} was committed with {holders:?}, no quorum of {}",
                    members(committed),
                    members(membership)
                ));
            }
        }
        Ok(())
    }
}

/// What the oracles take for the value of an entry that changes the membership.
pub(crate) fn membership_value(zxid: Zxid) -> u64 {
    1 << 63 | zxid.epoch << 32 | zxid.counter
}

impl World {
    pub(crate) fn membership_changed(
        &mut self,
        id: PeerId,
        committed: &Membership,
        pending: Option<&Membership>,
    ) -> Result<(), String> {
        self.note_durable_changes();
        if committed.version > 1 || pending.is_some() {
            let pending = pending.map_or(String::new(), |next| format!(", perhaps {}", members(next)));
            self.log(|| format!("{id} counts {}{pending}", members(committed)));
        }
        if committed.is_bound() { self.administration.commit(committed) } else { Ok(()) }
    }

    pub(crate) fn note_durable_changes(&mut self) {
        for node in self.nodes.values_mut() {
            let uuid = node.uuid();
            for change in node.disk.changes.drain(..) {
                self.administration.hold(node.id, uuid, change);
            }
        }
    }

    /// One attempt, and the appointment for the next.
    pub(crate) fn administer(&mut self) -> Result<(), String> {
        if !self.chaos {
            return Ok(());
        }
        let wait = self.rng.between(1, 2 * self.shape.fault_every_ms);
        self.schedule_in(wait, Happening::Administer);
        let Some(leader) = self.leader() else { return Ok(()) };
        let Some(membership) = self.nodes[&leader].peer.as_ref().map(|peer| peer.membership().clone()) else {
            return Ok(());
        };
        if self.rng.chance(200) {
            self.give_away_removed(leader, &membership);
        }
        let observers: Vec<PeerId> = membership.observers.iter().copied().collect();
        let all: Vec<PeerId> = membership.members().collect();
        let change = match self.rng.below(10) {
            0..2 => self.pick_new(leader, &membership),
            2..6 if !observers.is_empty() => MembershipChange::Promote { id: self.rng.pick(&observers) },
            6..8 => MembershipChange::Remove { id: self.rng.pick(&all) },
            _ => {
                let address = self.rng.chance(100).then(|| format!("host:{}", self.rng.next()));
                MembershipChange::Replace { id: self.rng.pick(&all), address }
            }
        };
        let is_sensible = match &change {
            MembershipChange::Remove { id } => self.may_shrink(&membership, *id),
            MembershipChange::Promote { id } | MembershipChange::Replace { id, address: None } => {
                matches!(self.nodes[id].role(), Some(Role::Observing { .. }))
            }
            _ => true,
        };
        if !is_sensible {
            return Ok(());
        }
        self.change_membership(leader, &change).map(drop)
    }

    /// Whether the others are enough. The leader sees to that as far as it can; but a directory that is lost while the
    /// change is under way is one loss too many, before the change or after it.
    fn may_shrink(&self, membership: &Membership, leaver: PeerId) -> bool {
        let rest = membership.voters.iter().filter(|(id, _)| **id != leaver);
        let is_whole = |(id, uuid): &(&PeerId, &Option<DataUuid>)| {
            self.nodes.get(id).is_some_and(|node| Some(node.uuid()) == **uuid && node.is_whole())
        };
        rest.clone().filter(is_whole).count() > rest.count() / 2
    }

    /// A new machine, or one that was removed for good, emptied or not.
    fn pick_new(&mut self, leader: PeerId, membership: &Membership) -> MembershipChange {
        let is_settled = self.nodes[&leader].peer.as_ref().is_some_and(zab::Peer::is_membership_settled);
        let is_free = |node: &&Node| is_settled && !node.gone && !membership.contains(node.id);
        let free: Vec<PeerId> = self.nodes.values().filter(is_free).map(|node| node.id).collect();
        let living = self.nodes.values().filter(|node| !node.gone).count();
        let id = if !free.is_empty() && (self.rng.chance(500) || living >= NODES_MAX) {
            let id = self.rng.pick(&free);
            if self.rng.chance(700) {
                self.crash(id);
                self.wipe(id);
                self.schedule_in(1, Happening::Restart { node: id });
            }
            id
        } else if living < NODES_MAX {
            let id = PeerId(FIRST_NEW + self.nodes.len() as u32);
            self.add_node(id);
            self.schedule_in(1, Happening::Restart { node: id });
            id
        } else {
            self.rng.pick(&self.ids())
        };
        MembershipChange::Add { id, address: format!("host:{}", self.rng.next()) }
    }

    /// A change that is settled needs nobody of the membership before it, for ever.
    fn give_away_removed(&mut self, leader: PeerId, membership: &Membership) {
        if !self.nodes[&leader].peer.as_ref().is_some_and(zab::Peer::is_membership_settled) {
            return;
        }
        let removed: Vec<PeerId> = self
            .nodes
            .values()
            .filter(|node| !node.gone && !membership.is_member(node.id, node.uuid()))
            .filter(|node| !membership.contains(node.id))
            .map(|node| node.id)
            .collect();
        for id in removed {
            if self.node(id).peer.is_some() {
                self.crash(id);
            }
            self.node(id).gone = true;
            self.log(|| format!("{id} is given away"));
        }
    }

    /// Asks `leader` for a change. Returns whether it was proposed.
    pub(crate) fn change_membership(
        &mut self,
        leader: PeerId,
        change: &MembershipChange,
    ) -> Result<bool, String> {
        let mut outcome = None;
        self.call(leader, |peer, now| outcome = Some(peer.change_membership(change, now)));
        match outcome {
            Some(Ok(zxid)) => {
                self.log(|| format!("{leader} proposes {zxid}: {change:?}"));
                let txn = Txn { zxid, value: membership_value(zxid) };
                self.checker.observe(&Event::Broadcast { node: leader, txn })?;
            }
            Some(Err(refusal)) => self.log(|| format!("{leader} refuses {change:?}: {refusal}")),
            None => {}
        }
        self.step(leader, |_, _| ())?;
        Ok(matches!(outcome, Some(Ok(_))))
    }

    /// Binds voters to the directories that they have now. Returns whether there is nothing left to bind.
    pub(crate) fn replace_lost_directories(&mut self, leader: PeerId) -> Result<bool, String> {
        let Some(peer) = &self.nodes[&leader].peer else { return Ok(false) };
        let membership = peer.membership();
        let lost = membership.voters.iter().find_map(|(id, bound)| {
            let node = self.nodes.get(id).filter(|node| !node.gone)?;
            (Some(node.uuid()) != *bound && membership.is_member(*id, node.uuid())).then_some(*id)
        });
        let Some(id) = lost else { return Ok(peer.is_membership_settled()) };
        self.change_membership(leader, &MembershipChange::Replace { id, address: None })?;
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three(version: u64) -> Membership {
        let voters = [1, 2, 3].map(|id| (PeerId(id), DataUuid(u128::from(id))));
        Membership { version, ..Membership::bound(voters) }
    }

    #[test]
    fn catches_two_memberships_of_one_version() {
        let mut administration = Administration::default();
        assert_eq!(administration.commit(&three(1)), Ok(()));
        assert_eq!(administration.commit(&three(1)), Ok(()));
        let mut other = three(1);
        other.voters.remove(&PeerId(3));
        assert!(administration.commit(&other).is_err());
    }

    #[test]
    fn catches_a_change_without_a_quorum_of_what_it_replaces() {
        let mut administration = Administration::default();
        assert_eq!(administration.commit(&three(1)), Ok(()));
        let mut next = three(2);
        next.voters.retain(|id, _| *id == PeerId(1));
        administration.hold(PeerId(1), DataUuid(1), next.clone());
        assert!(administration.commit(&next).is_err(), "one of three");
    }
}
