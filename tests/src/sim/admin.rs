//! Administrators who change who the metadata servers are while everything goes wrong, and who replace what is lost
//! when it heals.

use std::net::SocketAddr;
use std::sync::Arc;

use protocol::MetadataServerId;
use protocol::identity::{PeerIdentity, Role as CertificateRole};
use protocol::meta::{MetaReply, MetaRequest, MetaResponse, MetadataChange};
use zab::{DataUuid, Membership, PeerId, Record, Role};

use super::server::{Running, Server};
use super::world::{Happening, World, identity};

/// The first connection of an administrator; those of actors are below.
pub(crate) const ADMINISTRATORS: u64 = 1 << 62;
/// Machines in a world at most, those that were given away not counted.
const SERVERS_MAX: usize = 7;
/// The first number of a machine that was not there at the beginning.
const FIRST_NEW: u32 = 11;
/// Between two attempts at most, in milliseconds.
const PAUSE_MS: u64 = 6_000;

/// Where a server listens.
pub(crate) fn address(id: PeerId) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7000 + id.0 as u16))
}

impl World {
    /// One attempt, perhaps the end of the leader in the middle of it, and the appointment for the next.
    pub(crate) fn administer(&mut self) -> Result<(), String> {
        if !self.is_chaos {
            return Ok(());
        }
        let wait = self.rng.between(1, PAUSE_MS);
        self.schedule_in(wait, Happening::Administer);
        let Some((leader, membership)) = self.leaders_membership() else { return Ok(()) };
        if self.rng.chance(200) {
            self.give_away_removed();
        }
        let observers: Vec<PeerId> = membership.observers.iter().copied().collect();
        let all: Vec<PeerId> = membership.members().collect();
        let id = |id: PeerId| MetadataServerId(id.0);
        let change = match self.rng.below(10) {
            0..2 => self.pick_new(&membership),
            2..6 if !observers.is_empty() => MetadataChange::Promote { id: id(self.rng.pick(&observers)) },
            6..8 => MetadataChange::Remove { id: id(self.rng.pick(&all)) },
            _ => {
                let moved = SocketAddr::from(([127, 0, 0, 1], 8000 + self.rng.below(1000) as u16));
                let address = self.rng.chance(100).then_some(moved);
                MetadataChange::Replace { id: id(self.rng.pick(&all)), address }
            }
        };
        if !self.is_sensible(&membership, &change) {
            return Ok(());
        }
        if self.rng.chance(350) {
            let (incarnation, after) = (self.server(leader).incarnation, self.rng.between(0, 200));
            self.schedule_in(after, Happening::EndOfLeader { server: leader, incarnation });
        }
        self.ask_for_change(leader, change)
    }

    /// Whether nobody has to be warned of it: what a change makes indispensable must not be lost already.
    fn is_sensible(&self, membership: &Membership, change: &MetadataChange) -> bool {
        match change {
            MetadataChange::Remove { id } => self.may_shrink(membership, PeerId(id.0)),
            MetadataChange::Promote { id } | MetadataChange::Replace { id, address: None } => {
                let running = self.servers.get(&PeerId(id.0)).and_then(|server| server.running.as_ref());
                running.is_some_and(|running| matches!(running.peer.role(), Role::Observing { .. }))
            }
            _ => true,
        }
    }

    fn may_shrink(&self, membership: &Membership, leaver: PeerId) -> bool {
        let rest = membership.voters.iter().filter(|(id, _)| **id != leaver);
        let whole = rest.clone().filter(|(id, uuid)| self.is_whole_directory(**id, **uuid));
        whole.count() > rest.count() / 2
    }

    /// Whether the directory that is bound to `id` is there and remembers everything that it acknowledged.
    pub(crate) fn is_whole_directory(&self, id: PeerId, bound: Option<DataUuid>) -> bool {
        self.servers.get(&id).is_some_and(|server| Some(server.uuid()) == bound && server.is_whole())
    }

    /// The one that leads, and the membership that it knows to be committed.
    pub(crate) fn leaders_membership(&self) -> Option<(PeerId, Membership)> {
        let leader = self.leader()?;
        let running = self.servers[&leader].running.as_ref()?;
        Some((leader, running.peer.membership().clone()))
    }

    /// A new machine, or one that was removed, emptied or not.
    fn pick_new(&mut self, membership: &Membership) -> MetadataChange {
        let ids = self.ids();
        let free: Vec<PeerId> = ids.iter().copied().filter(|id| !membership.contains(*id)).collect();
        let id = if !free.is_empty() && (self.rng.chance(500) || ids.len() >= SERVERS_MAX) {
            let id = self.rng.pick(&free);
            if self.rng.chance(700) && self.can_lose(id) {
                self.empty(id);
                self.schedule_in(1, Happening::Restart { server: id });
            }
            id
        } else if ids.len() < SERVERS_MAX {
            let id = PeerId(FIRST_NEW + self.servers.len() as u32);
            let fresh = Record::fresh(DataUuid(u128::from(self.rng.next())), membership.clone());
            let server = Server::new(id, &self.shape, fresh, Default::default(), &mut self.rng);
            self.servers.insert(id, server);
            self.log(|| format!("{id} is a new machine"));
            self.schedule_in(1, Happening::Restart { server: id });
            id
        } else {
            self.rng.pick(&ids)
        };
        MetadataChange::Add { id: MetadataServerId(id.0), address: address(id) }
    }

    /// Its directory is another, empty one from now on.
    pub(crate) fn empty(&mut self, id: PeerId) {
        self.kill(id);
        let uuid = DataUuid(u128::from(self.rng.next()));
        let told = self.leaders_membership().map(|(_, membership)| membership);
        let server = self.server(id);
        server.fresh = Record::fresh(uuid, told.unwrap_or_else(|| server.fresh.membership.clone()));
        server.disk = Default::default();
        server.images.clear();
        server.left.clear();
        server.is_damaged = false;
        self.log(|| format!("{id} begins with an empty directory"));
    }

    /// Machines that were removed for good never start again.
    fn give_away_removed(&mut self) {
        let Some((leader, membership)) = self.leaders_membership() else { return };
        if !self.is_membership_settled(leader) {
            return;
        }
        for id in self.ids().into_iter().filter(|id| !membership.contains(*id)) {
            self.kill(id);
            self.server(id).is_gone = true;
            self.log(|| format!("{id} is given away"));
        }
    }

    fn is_membership_settled(&self, leader: PeerId) -> bool {
        let running = self.servers[&leader].running.as_ref();
        running.is_some_and(|running| running.peer.is_membership_settled())
    }

    fn ask_for_change(&mut self, leader: PeerId, change: MetadataChange) -> Result<(), String> {
        self.administrators += 1;
        let connection = ADMINISTRATORS + self.administrators;
        self.log(|| format!("an administrator asks {leader} for {change:?}"));
        let admin = Arc::new(PeerIdentity { role: CertificateRole::Admin, ..identity(0) });
        self.step(leader, |running, moment| {
            let (core, mut quorum) = running.split(moment.tick);
            core.handle_connected(connection, admin, SocketAddr::from(([127, 0, 0, 1], 41_000)));
            let request = MetaRequest::ChangeMetadataServers(change);
            core.handle_request(connection, (connection, 0), request, &mut quorum, moment.now);
            core.handle_disconnected(connection);
        })
    }

    /// What an administrator is told.
    pub(crate) fn administrator_answered(&mut self, response: &MetaResponse) {
        self.log(|| format!("the administrator is told {response:?}"));
        if matches!(response, Ok(MetaReply::MetadataServers(servers)) if servers.refused.is_none()) {
            self.counts.changes += 1;
        }
    }

    /// Binds voters to the directories that they have now, and gives away what was removed. Whether nothing is left
    /// to do.
    pub(crate) fn mend_membership(&mut self) -> Result<bool, String> {
        let Some((leader, membership)) = self.leaders_membership() else { return Ok(false) };
        if !self.is_membership_settled(leader) {
            return Ok(false);
        }
        self.give_away_removed();
        let is_lost = |(id, bound): (&PeerId, &Option<DataUuid>)| {
            let server = self.servers.get(id).filter(|server| !server.is_gone)?;
            let is_new = Some(server.uuid()) != *bound && membership.is_member(*id, server.uuid());
            is_new.then_some(*id)
        };
        let Some(id) = membership.voters.iter().find_map(is_lost) else { return Ok(true) };
        let change = MetadataChange::Replace { id: MetadataServerId(id.0), address: None };
        self.ask_for_change(leader, change)?;
        Ok(false)
    }
}

impl Running {
    /// Every membership that counts here, or may after a restart.
    pub(crate) fn memberships(&self) -> Vec<Membership> {
        let known = std::iter::once(self.peer.membership()).chain(self.peer.pending_membership());
        known.chain(std::iter::once(&self.stream.record().membership)).cloned().collect()
    }
}
