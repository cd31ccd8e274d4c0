//! A model of the metadata service for one placement group: sessions, compare-and-set on the configuration,
//! and the leader's own rules. Infallible and in one place, as the real one is to its clients.

use std::collections::BTreeMap;

use protocol::map::{Member, PgChange, PgConfig};
use protocol::replication::Position;
use protocol::{DataServerId, MapEpoch, SessionId, StoreUuid};

/// Session timeout in milliseconds.
pub(super) const TIMEOUT_MS: u64 = 2000;

#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) up: bool,
    pub(super) heard: u64,
    pub(super) store: StoreUuid,
    pub(super) incarnation: u64,
    pub(super) position: Position,
}

#[derive(Debug)]
pub(super) struct Metadata {
    pub(super) epoch: u64,
    /// Wanted replicas.
    pub(super) size: usize,
    pub(super) min_size: usize,
    pub(super) config: PgConfig,
    pub(super) servers: BTreeMap<DataServerId, Server>,
    pub(super) blocked: BTreeMap<SessionId, MapEpoch>,
}

impl Default for Metadata {
    fn default() -> Self {
        Metadata {
            epoch: 0,
            size: 3,
            min_size: 2,
            config: PgConfig::default(),
            servers: BTreeMap::new(),
            blocked: BTreeMap::new(),
        }
    }
}

impl Metadata {
    /// An administrator changes the pool.
    pub(super) fn set_pool(&mut self, size: usize, min_size: usize) {
        (self.size, self.min_size) = (size, min_size);
        self.epoch += 1;
        self.place();
    }

    /// Something changed: a new epoch, which is also the configuration's version.
    fn bump(&mut self) {
        self.epoch += 1;
        self.config.version = self.epoch;
    }

    pub(super) fn register(
        &mut self,
        now: u64,
        server: DataServerId,
        store: StoreUuid,
        incarnation: u64,
        clean: bool,
        position: Position,
    ) {
        self.servers.insert(server, Server { up: true, heard: now, store, incarnation, position });
        let config = &mut self.config;
        let mut renewed = false;
        for member in &mut config.in_sync {
            if member.server == server && member.store == store {
                member.incarnation = incarnation;
                member.uncertain |= !clean;
                renewed = true;
            }
        }
        config.in_sync.retain(|m| m.server != server || m.store == store);
        config.learners.retain(|m| m.server != server);
        if renewed && config.primary == Some(server) {
            config.primary = None;
            config.activated = false;
        }
        self.bump();
        self.appoint();
        self.place();
    }

    pub(super) fn heartbeat(&mut self, now: u64, server: DataServerId, incarnation: u64) -> bool {
        match self.servers.get_mut(&server) {
            Some(known) if known.up && known.incarnation == incarnation => {
                known.heard = now;
                true
            }
            _ => false,
        }
    }

    pub(super) fn tick(&mut self, now: u64) {
        let silent = |s: &Server| s.up && now - s.heard > TIMEOUT_MS;
        let expired: Vec<DataServerId> =
            self.servers.iter().filter(|(_, s)| silent(s)).map(|(id, _)| *id).collect();
        for server in expired {
            self.expire(server);
        }
        if self.drop_dead() {
            self.bump();
        }
        self.place();
    }

    fn expire(&mut self, server: DataServerId) {
        if let Some(known) = self.servers.get_mut(&server) {
            known.up = false;
        }
        self.config.learners.retain(|m| m.server != server);
        if self.config.primary == Some(server) {
            self.config.primary = None;
            self.config.activated = false;
        }
        self.drop_dead();
        self.bump();
        self.appoint();
    }

    /// Members that are gone leave the list, if enough remain that know everything.
    fn drop_dead(&mut self) -> bool {
        let servers = &self.servers;
        let up = |m: &Member| servers.get(&m.server).is_some_and(|s| s.up);
        let before = self.config.in_sync.len();
        if self.config.certain().filter(|m| up(m)).count() >= self.min_size {
            self.config.in_sync.retain(up);
        }
        before != self.config.in_sync.len()
    }

    /// An administrator says that a server will not come back.
    pub(super) fn forget(&mut self, server: DataServerId) {
        if self.config.member(server).is_some() {
            self.expire(server);
            self.config.in_sync.retain(|m| m.server != server);
            self.bump();
            self.appoint();
        }
    }

    /// Appoints a primary among the certain members that are up.
    fn appoint(&mut self) {
        if self.config.primary.is_some() {
            return;
        }
        let up = |member: &Member| self.servers.get(&member.server).is_some_and(|s| s.up);
        if self.config.certain().next().is_none() && !self.config.in_sync.is_empty() {
            // All are uncertain: wait for every one, and take the largest position.
            if !self.config.in_sync.iter().all(up) {
                return;
            }
            let position = |m: &Member| self.servers.get(&m.server).map(|s| s.position);
            let best = self.config.in_sync.iter().max_by_key(|m| position(m)).map(|m| m.server);
            for member in &mut self.config.in_sync {
                member.uncertain &= Some(member.server) != best;
            }
        }
        let up = |member: &Member| self.servers.get(&member.server).is_some_and(|s| s.up);
        let chosen = self.config.certain().find(|member| up(member)).map(|member| member.server);
        if chosen.is_some() {
            self.config.primary = chosen;
            self.config.activated = false;
            self.bump();
        }
    }

    /// Adds learners, or at the very beginning members, until there are enough. One that is too many goes when all
    /// are complete.
    fn place(&mut self) {
        let up = |member: &Member| self.servers.get(&member.server).is_some_and(|s| s.up);
        let settled = self.config.activated && self.config.learners.is_empty();
        if settled
            && self.config.in_sync.len() > self.size
            && self.config.certain().filter(|m| up(m)).count() > self.size
        {
            let primary = self.config.primary;
            let spare = self.config.in_sync.iter().rposition(|member| Some(member.server) != primary);
            spare.map(|at| self.config.in_sync.remove(at));
            return self.bump();
        }
        let living = self.config.in_sync.iter().filter(|m| up(m)).count();
        let missing = self.size.saturating_sub(living + self.config.learners.len());
        let free: Vec<Member> = self
            .servers
            .iter()
            .filter(|(id, s)| s.up && self.config.member(**id).is_none())
            .map(|(id, s)| Member {
                server: *id,
                store: s.store,
                incarnation: s.incarnation,
                uncertain: false,
            })
            .collect();
        if missing == 0 || free.is_empty() {
            return;
        }
        if self.config.in_sync.is_empty() && self.config.primary.is_none() && self.config.learners.is_empty()
        {
            if free.len() < self.size {
                return;
            }
            self.config.in_sync = free.into_iter().take(self.size).collect();
            self.bump();
            return self.appoint();
        }
        self.config.learners.extend(free.into_iter().take(missing));
        self.bump();
    }

    pub(super) fn propose(&mut self, from: DataServerId, version: u64, change: &PgChange) {
        if version != self.config.version {
            return;
        }
        match change {
            PgChange::Activate if self.config.primary == Some(from) => self.config.activated = true,
            PgChange::Activate => return,
            PgChange::Resign => {
                let up = |m: &&Member| self.servers.get(&m.server).is_some_and(|s| s.up);
                let other = self.config.certain().filter(|m| m.server != from).find(up).map(|m| m.server);
                let Some(other) = other.filter(|_| self.config.primary == Some(from)) else { return };
                self.config.primary = Some(other);
                self.config.activated = false;
            }
            PgChange::Drop(server) if *server == from => return,
            PgChange::Drop(server) => {
                if self.config.learners.iter().any(|m| m.server == *server) {
                    self.config.learners.retain(|m| m.server != *server);
                } else {
                    let others = self.config.certain().filter(|m| m.server != *server).count();
                    if others < self.min_size {
                        return;
                    }
                    self.config.in_sync.retain(|m| m.server != *server);
                    if self.config.primary == Some(*server) {
                        self.config.primary = None;
                        self.config.activated = false;
                    }
                }
            }
            PgChange::Promote(member) => {
                let Some(at) = self.config.learners.iter().position(|m| m == member) else { return };
                let member = self.config.learners.remove(at);
                self.config.in_sync.push(member);
            }
            PgChange::MakeCertain(member) => {
                let same = |m: &&mut Member| {
                    (m.server, m.store, m.incarnation) == (member.server, member.store, member.incarnation)
                };
                let Some(known) = self.config.in_sync.iter_mut().find(same) else { return };
                known.uncertain = false;
            }
        }
        self.bump();
        self.appoint();
    }

    /// The leader prefers another primary.
    pub(super) fn move_primary(&mut self, to: DataServerId) {
        let up = self.servers.get(&to).is_some_and(|s| s.up);
        let fit = self.config.in_sync_member(to).is_some_and(|m| !m.uncertain);
        if up && fit && self.config.activated && self.config.primary != Some(to) {
            self.config.primary = Some(to);
            self.config.activated = false;
            self.bump();
        }
    }

    pub(super) fn fence(&mut self, session: SessionId) -> MapEpoch {
        self.epoch += 1;
        let epoch = MapEpoch(self.epoch);
        self.blocked.insert(session, epoch);
        epoch
    }

    /// Every server is in sync and certain.
    pub(super) fn is_healthy(&self) -> bool {
        self.config.activated
            && self.config.learners.is_empty()
            && self.config.certain().count() == self.size
            && self.config.in_sync.len() == self.size
    }
}
