//! A model of the metadata service for the placement groups of one pool: sessions, compare-and-set on the
//! configurations, and the leader's own rules. Infallible and in one place, as the real one is to its clients.

use std::collections::BTreeMap;

use protocol::map::{ClusterMap, Member, PgChange, PgConfig, Pool};
use protocol::replication::Position;
use protocol::{DataServerId, MapEpoch, PgId, SessionId, StoreUuid};

use super::world::{CHUNK, PG};

/// Session timeout in milliseconds.
pub(super) const TIMEOUT_MS: u64 = 2000;

#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) up: bool,
    pub(super) heard: u64,
    pub(super) store: StoreUuid,
    pub(super) incarnation: u64,
    pub(super) positions: BTreeMap<PgId, Position>,
}

#[derive(Debug)]
pub(super) struct Metadata {
    pub(super) epoch: u64,
    /// Wanted replicas.
    pub(super) size: usize,
    pub(super) min_size: usize,
    /// Wanted groups.
    pub(super) pg_num: u32,
    pub(super) groups: BTreeMap<PgId, PgConfig>,
    /// Epoch at which a backup was restored last.
    pub(super) restored_at: u64,
    pub(super) servers: BTreeMap<DataServerId, Server>,
    pub(super) blocked: BTreeMap<SessionId, MapEpoch>,
}

impl Metadata {
    pub(super) fn new(pg_num: u32) -> Self {
        let pg = |seed| PgId { pool: PG.pool, seed };
        let config = || PgConfig { pg_num, ..PgConfig::default() };
        Metadata {
            epoch: 0,
            size: 3,
            min_size: 2,
            pg_num,
            restored_at: 0,
            groups: (0..pg_num).map(|seed| (pg(seed), config())).collect(),
            servers: BTreeMap::new(),
            blocked: BTreeMap::new(),
        }
    }

    /// The first group.
    pub(super) fn config(&self) -> &PgConfig {
        &self.groups[&PG]
    }

    /// The map as clients get it.
    pub(super) fn map(&self) -> ClusterMap {
        let pool = Pool {
            name: "data".to_owned(),
            size: self.size as u32,
            min_size: self.min_size as u32,
            pg_num: self.pg_num,
            rule: 0,
            chunk_size: CHUNK,
            inline_limit: 0,
        };
        let pools = BTreeMap::from([(PG.pool, pool)]);
        ClusterMap { epoch: MapEpoch(self.epoch), pools, pgs: self.groups.clone(), ..ClusterMap::default() }
    }

    /// An administrator changes the pool.
    pub(super) fn set_pool(&mut self, size: usize, min_size: usize) {
        (self.size, self.min_size) = (size, min_size);
        self.epoch += 1;
        self.place();
    }

    /// An administrator wants more groups.
    pub(super) fn set_pg_num(&mut self, pg_num: u32) {
        self.pg_num = self.pg_num.max(pg_num);
        self.epoch += 1;
    }

    /// An administrator restores a backup: nobody is certain of anything.
    pub(super) fn restore(&mut self, pg_num: u32, groups: BTreeMap<PgId, PgConfig>) {
        (self.pg_num, self.groups) = (pg_num, groups);
        self.restored_at = self.epoch + 1;
        for pg in self.pgs() {
            let config = self.groups.get_mut(&pg).expect("groups do not go");
            (config.primary, config.activated) = (None, false);
            config.learners.clear();
            config.in_sync.iter_mut().for_each(|member| member.uncertain = true);
            self.bump(pg);
        }
    }

    /// The planner wants a copy of a group elsewhere.
    pub(super) fn migrate(&mut self, pg: PgId, to: DataServerId) {
        let Some(server) = self.servers.get(&to).filter(|server| server.up).cloned() else { return };
        let config = self.groups.get_mut(&pg).expect("groups do not go");
        if config.activated && config.learners.is_empty() && config.member(to).is_none() {
            let Server { store, incarnation, .. } = server;
            config.learners.push(Member { server: to, store, incarnation, uncertain: false });
            self.bump(pg);
        }
    }

    /// Something changed: a new epoch, which is also the configuration's version.
    fn bump(&mut self, pg: PgId) {
        self.epoch += 1;
        self.groups.get_mut(&pg).expect("groups do not go").version = self.epoch;
    }

    fn pgs(&self) -> Vec<PgId> {
        self.groups.keys().copied().collect()
    }

    pub(super) fn register(
        &mut self,
        now: u64,
        server: DataServerId,
        (store, incarnation): (StoreUuid, u64),
        clean: bool,
        positions: BTreeMap<PgId, Position>,
    ) {
        self.servers.insert(server, Server { up: true, heard: now, store, incarnation, positions });
        for pg in self.pgs() {
            let config = self.groups.get_mut(&pg).expect("groups do not go");
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
            self.bump(pg);
            self.appoint(pg);
        }
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
        for pg in self.pgs() {
            if self.drop_dead(pg) {
                self.bump(pg);
            }
        }
        self.place();
    }

    fn expire(&mut self, server: DataServerId) {
        if let Some(known) = self.servers.get_mut(&server) {
            known.up = false;
        }
        for pg in self.pgs() {
            let config = self.groups.get_mut(&pg).expect("groups do not go");
            config.learners.retain(|m| m.server != server);
            if config.primary == Some(server) {
                config.primary = None;
                config.activated = false;
            }
            self.drop_dead(pg);
            self.bump(pg);
            self.appoint(pg);
        }
    }

    /// Members that are gone leave the list, if enough remain that know everything.
    fn drop_dead(&mut self, pg: PgId) -> bool {
        let servers = &self.servers;
        let up = |m: &Member| servers.get(&m.server).is_some_and(|s| s.up);
        let config = self.groups.get_mut(&pg).expect("groups do not go");
        let before = config.in_sync.len();
        if config.certain().filter(|m| up(m)).count() >= self.min_size {
            config.in_sync.retain(up);
        }
        before != config.in_sync.len()
    }

    /// An administrator says that a server will not come back.
    pub(super) fn forget(&mut self, server: DataServerId) {
        if self.groups.values().all(|config| config.member(server).is_none()) {
            return;
        }
        self.expire(server);
        for pg in self.pgs() {
            self.groups.get_mut(&pg).expect("groups do not go").in_sync.retain(|m| m.server != server);
            self.bump(pg);
            self.appoint(pg);
        }
    }

    /// Appoints a primary among the certain members that are up.
    fn appoint(&mut self, pg: PgId) {
        let config = self.groups.get_mut(&pg).expect("groups do not go");
        if config.primary.is_some() {
            return;
        }
        let up = |member: &Member| self.servers.get(&member.server).is_some_and(|s| s.up);
        if config.certain().next().is_none() && !config.in_sync.is_empty() {
            // All are uncertain: wait for every one, and take the largest position.
            if !config.in_sync.iter().all(up) {
                return;
            }
            let position =
                |m: &Member| self.servers[&m.server].positions.get(&pg).copied().unwrap_or_default();
            let best = config.in_sync.iter().max_by_key(|m| position(m)).map(|m| m.server);
            for member in &mut config.in_sync {
                member.uncertain &= Some(member.server) != best;
            }
        }
        let chosen = config.certain().find(|member| up(member)).map(|member| member.server);
        if chosen.is_some() {
            config.primary = chosen;
            config.activated = false;
            self.bump(pg);
        }
    }

    fn place(&mut self) {
        for pg in self.pgs() {
            self.place_group(pg);
        }
    }

    /// Adds learners, or at the very beginning members, until there are enough. One that is too many goes when all
    /// are complete.
    fn place_group(&mut self, pg: PgId) {
        let config = self.groups.get_mut(&pg).expect("groups do not go");
        let up = |member: &Member| self.servers.get(&member.server).is_some_and(|s| s.up);
        let settled = config.activated && config.learners.is_empty();
        if settled
            && config.in_sync.len() > self.size
            && config.certain().filter(|m| up(m)).count() > self.size
        {
            let primary = config.primary;
            let is_spare = |member: &Member| Some(member.server) != primary;
            let spare = match self.pg_num {
                1 => config.in_sync.iter().rposition(is_spare),
                // The newest came for good.
                _ => config.in_sync.iter().position(is_spare),
            };
            spare.map(|at| config.in_sync.remove(at));
            return self.bump(pg);
        }
        let living = config.in_sync.iter().filter(|m| up(m)).count();
        let missing = self.size.saturating_sub(living + config.learners.len());
        let free: Vec<Member> = self
            .servers
            .iter()
            .filter(|(id, s)| s.up && config.member(**id).is_none())
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
        if config.in_sync.is_empty() && config.primary.is_none() && config.learners.is_empty() {
            if free.len() < self.size {
                return;
            }
            config.in_sync = free.into_iter().take(self.size).collect();
            self.bump(pg);
            return self.appoint(pg);
        }
        config.learners.extend(free.into_iter().take(missing));
        self.bump(pg);
    }

    pub(super) fn propose(&mut self, from: DataServerId, pg: PgId, version: u64, change: &PgChange) {
        let servers = &self.servers;
        let config = self.groups.get_mut(&pg).expect("groups do not go");
        if version != config.version {
            return;
        }
        match change {
            PgChange::Activate if config.primary == Some(from) => config.activated = true,
            PgChange::Activate => return,
            PgChange::Resign => {
                let up = |m: &&Member| servers.get(&m.server).is_some_and(|s| s.up);
                let other = config.certain().filter(|m| m.server != from).find(up).map(|m| m.server);
                let Some(other) = other.filter(|_| config.primary == Some(from)) else { return };
                config.primary = Some(other);
                config.activated = false;
            }
            PgChange::Drop(server) if *server == from => return,
            PgChange::Drop(server) => {
                if config.learners.iter().any(|m| m.server == *server) {
                    config.learners.retain(|m| m.server != *server);
                } else {
                    let others = config.certain().filter(|m| m.server != *server).count();
                    if others < self.min_size {
                        return;
                    }
                    config.in_sync.retain(|m| m.server != *server);
                    if config.primary == Some(*server) {
                        config.primary = None;
                        config.activated = false;
                    }
                }
            }
            PgChange::Promote(member) => {
                let Some(at) = config.learners.iter().position(|m| m == member) else { return };
                let member = config.learners.remove(at);
                config.in_sync.push(member);
            }
            PgChange::MakeCertain(member) => {
                let same = |m: &&mut Member| {
                    (m.server, m.store, m.incarnation) == (member.server, member.store, member.incarnation)
                };
                let Some(known) = config.in_sync.iter_mut().find(same) else { return };
                known.uncertain = false;
            }
            PgChange::Split { pg_num, holders } => {
                if config.primary != Some(from) {
                    return;
                }
                let Some(child) = config.divide(pg.seed, *pg_num, holders) else { return };
                self.pg_num = self.pg_num.max(*pg_num);
                if let Some((seed, child)) = child {
                    let child_pg = PgId { pool: pg.pool, seed };
                    assert!(self.groups.insert(child_pg, child).is_none(), "a group came into being twice");
                    self.bump(child_pg);
                    self.appoint(child_pg);
                }
            }
        }
        self.bump(pg);
        self.appoint(pg);
    }

    /// The leader prefers another primary.
    pub(super) fn move_primary(&mut self, pg: PgId, to: DataServerId) {
        let up = self.servers.get(&to).is_some_and(|s| s.up);
        let config = self.groups.get_mut(&pg).expect("groups do not go");
        let fit = config.in_sync_member(to).is_some_and(|m| !m.uncertain);
        if up && fit && config.activated && config.primary != Some(to) {
            config.primary = Some(to);
            config.activated = false;
            self.bump(pg);
        }
    }

    pub(super) fn fence(&mut self, session: SessionId) -> MapEpoch {
        self.epoch += 1;
        let epoch = MapEpoch(self.epoch);
        self.blocked.insert(session, epoch);
        epoch
    }

    /// All groups exist, and every server is in sync and certain.
    pub(super) fn is_healthy(&self) -> bool {
        let healthy = |config: &PgConfig| {
            config.activated
                && config.learners.is_empty()
                && config.certain().count() == self.size
                && config.in_sync.len() == self.size
                && config.pg_num == self.pg_num
        };
        self.groups.len() == self.pg_num as usize && self.groups.values().all(healthy)
    }
}
