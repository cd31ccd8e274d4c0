//! The cluster map: which data servers exist, where CRUSH wants each placement group, and which
//! configuration each group has. Replicated metadata, versioned by the map epoch, pushed to everyone.
//!
//! CRUSH says where data *should* be; a group's [`PgConfig`] says where it *is*.

use crate::id::{DataServerId, MapEpoch, ObjectId, PgId, PoolId, SessionId, StoreUuid};
use crate::split::Extent;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;

/// Default chunk size in bytes.
pub const CHUNK_SIZE_DEFAULT: u32 = 4 << 20;
/// Default limit in bytes up to which a file stays inside its znode.
pub const INLINE_LIMIT_DEFAULT: u32 = 16 << 10;
/// Restoring a backup raises every number that must not repeat by at least this.
pub const RESTORE_RAISES: u64 = 1 << 40;
/// CRUSH weight of 1.0.
pub const WEIGHT_ONE: u32 = 0x1_0000;

/// The whole map.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterMap {
    /// Version of this map; rises by at least one with every change.
    pub epoch: MapEpoch,
    /// Every data server that ever registered and was not removed.
    pub data_servers: BTreeMap<DataServerId, DataServerInfo>,
    /// The pools.
    pub pools: BTreeMap<PoolId, Pool>,
    /// The CRUSH map in crushtool's text format.
    pub crush: String,
    /// Configuration of every placement group.
    pub pgs: BTreeMap<PgId, PgConfig>,
    /// Fenced sessions, each with the map epoch that fenced it. Operations of these are refused.
    pub blocked: BTreeMap<SessionId, MapEpoch>,
    /// Pools that were removed; their numbers are never used again. Whatever a data server holds of them goes.
    pub removed_pools: BTreeSet<PoolId>,
    /// Which life of the cluster this is.
    pub generation: Generation,
}

/// A life of the cluster: it begins when the cluster is made, and anew with every restored backup. Within one it never
/// changes, so no [`MapDelta`] carries it: after a restore nobody's map is one that a change applies to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    /// How many restores led here; 0 for a cluster that never was restored.
    pub number: u64,
    /// The first revision of this life: whatever has a smaller one may have happened in a life that was given up.
    pub revision: u64,
    /// The first session of this life. Sessions before it are fenced, also those that the backup did not know.
    pub sessions_from: SessionId,
}

/// What changed between two epochs. A receiver whose map is not at `from` asks for the whole map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapDelta {
    /// Epoch that this applies to.
    pub from: MapEpoch,
    /// Epoch afterwards.
    pub to: MapEpoch,
    /// All data servers, if any changed.
    pub data_servers: Option<BTreeMap<DataServerId, DataServerInfo>>,
    /// All pools, if any changed.
    pub pools: Option<BTreeMap<PoolId, Pool>>,
    /// The CRUSH map, if it changed.
    pub crush: Option<String>,
    /// Changed configurations.
    pub pgs: Vec<(PgId, PgConfig)>,
    /// All blocked sessions, if any changed.
    pub blocked: Option<BTreeMap<SessionId, MapEpoch>>,
    /// All removed pools, if one was removed. Their groups are gone.
    pub removed_pools: Option<BTreeSet<PoolId>>,
}

/// One data server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataServerInfo {
    /// Where it listens.
    pub address: SocketAddr,
    /// Failure domain; on one machine each data server counts as a host of its own.
    pub host: String,
    /// Whether its session is alive.
    pub up: bool,
    /// Its session, while up.
    pub session: SessionId,
    /// Identity of its store directory.
    pub store: StoreUuid,
    /// Rises with every start of the server on that store.
    pub incarnation: u64,
    /// Capacity as CRUSH weight, 16.16 fixed point, 1.0 = 1 TiB as in Ceph.
    pub crush_weight: u32,
    /// Override between 0 (out) and [`WEIGHT_ONE`] (in).
    pub reweight: u32,
    /// Why it left, as it said itself; `None` while it is up, and if it was only silent.
    pub failure: Option<String>,
}

/// A pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// Wanted replicas.
    pub size: u32,
    /// Least in-sync replicas with which a group serves writes.
    pub min_size: u32,
    /// Number of placement groups; while some have not been split yet, there are fewer.
    pub pg_num: u32,
    /// Rule number in the CRUSH map; says the failure domain and the device class.
    pub rule: u32,
    /// Bytes per chunk.
    pub chunk_size: u32,
    /// Largest file in bytes that stays in its znode.
    pub inline_limit: u32,
}

/// What a copy must not share with another one of the same group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailureDomain {
    /// The machine, as data servers name it.
    #[default]
    Host,
    /// Nothing but the data server.
    Server,
}

impl fmt::Display for FailureDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::Server => "server",
        })
    }
}

/// One member of a group: a server's store at one of its starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Member {
    /// The server.
    pub server: DataServerId,
    /// Its store; a wiped directory is another member.
    pub store: StoreUuid,
    /// The start of the server that is meant; an older one may no longer act.
    pub incarnation: u64,
    /// Registered after an unclean stop and not yet caught up from a member that was not interrupted: keeps
    /// its place, but is no primary, serves no reads and counts for no acknowledgement.
    pub uncertain: bool,
}

/// Who holds a placement group, and in which role.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PgConfig {
    /// Revision of the transaction that set this; rises with every change. A server answers only if it knows
    /// at least the version that the request carries.
    pub version: u64,
    /// Orders the group's operations. `None` while no member may.
    pub primary: Option<DataServerId>,
    /// Members that hold every acknowledged operation (uncertain ones excepted, see [`Member::uncertain`]).
    pub in_sync: Vec<Member>,
    /// Members that are being filled; they receive new operations but count for nothing.
    pub learners: Vec<Member>,
    /// The primary has completed what its predecessor prepared: reads and writes are served.
    pub activated: bool,
    /// What the group holds: the objects whose hash modulo this is its number. It rises to the pool's when the group is
    /// split.
    pub pg_num: u32,
}

impl PgConfig {
    /// The in-sync member on `server`, if it is one.
    pub fn in_sync_member(&self, server: DataServerId) -> Option<&Member> {
        self.in_sync.iter().find(|m| m.server == server)
    }

    /// The member on `server` in either role.
    pub fn member(&self, server: DataServerId) -> Option<&Member> {
        self.in_sync.iter().chain(&self.learners).find(|m| m.server == server)
    }

    /// Carries out [`PgChange::Split`], whose sender's role the caller checks. Returns the child's number and its
    /// configuration (which needs a version) if there is one; nothing if the change does not fit.
    pub fn divide(
        &mut self,
        seed: u32,
        pg_num: u32,
        holders: &[DataServerId],
    ) -> Option<Option<(u32, PgConfig)>> {
        if self.primary.is_none()
            || pg_num <= self.pg_num
            || pg_num != crate::split::step(self.pg_num, pg_num)
        {
            return None;
        }
        let mut child = PgConfig { learners: Vec::new(), activated: false, pg_num, ..self.clone() };
        for member in &mut child.in_sync {
            member.uncertain |= !holders.contains(&member.server);
        }
        let fit = |primary: &DataServerId| child.in_sync_member(*primary).is_some_and(|m| !m.uncertain);
        child.primary = child.primary.filter(fit);
        let seed = crate::split::child(seed, self.pg_num, pg_num);
        self.pg_num = pg_num;
        Some(seed.map(|seed| (seed, child)))
    }

    /// In-sync members that count for acknowledgements.
    pub fn certain(&self) -> impl Iterator<Item = &Member> {
        self.in_sync.iter().filter(|m| !m.uncertain)
    }
}

/// What a primary asks the metadata cluster to change in its group, by compare-and-set on the version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PgChange {
    /// The primary has completed what was prepared: the configuration may serve.
    Activate,
    /// A member does not answer or failed. Refused if fewer than `min_size` certain members would remain.
    Drop(DataServerId),
    /// The learner holds everything, durably, and the primary acknowledges nothing without it any more.
    Promote(Member),
    /// An uncertain member was caught up from a certain one, durably.
    MakeCertain(Member),
    /// The primary's own copy is incomplete (a block of it rotted) and cannot lead: another certain member
    /// that is up becomes primary, if there is one; this one stays a member.
    Resign,
    /// The group's objects are shared out under this number of groups, and durably so: the child, if it gets one, begins
    /// with the same members. Those on `holders` have executed the split, the others are uncertain in the child.
    Split {
        /// One step above the configuration's.
        pg_num: u32,
        /// Servers.
        holders: Vec<DataServerId>,
    },
}

/// Why a map change was refused by the receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the map is at epoch {have}, the change starts at {from}: the whole map is needed")]
pub struct MapGap {
    /// Epoch at hand.
    pub have: MapEpoch,
    /// Epoch that the change starts at.
    pub from: MapEpoch,
}

impl ClusterMap {
    /// Whether nothing that this session sends may take effect any more.
    pub fn is_fenced(&self, session: SessionId) -> bool {
        session < self.generation.sessions_from || self.blocked.contains_key(&session)
    }

    /// The group of `object` and its configuration, if the pool exists.
    pub fn locate(&self, object: ObjectId) -> Option<(PgId, &PgConfig)> {
        self.holder(object.pool, object.hash())
    }

    /// The group that holds the objects with this hash: that of the pool's number of groups or, as long as it does not
    /// exist, the one that it will be split from. `None` for a pool that does not exist or is still being made.
    pub fn holder(&self, pool: PoolId, hash: u32) -> Option<(PgId, &PgConfig)> {
        let mut seed = crush::pg_of(hash, self.pools.get(&pool)?.pg_num);
        loop {
            let pg = PgId { pool, seed };
            if let Some(config) = self.pgs.get(&pg)
                && crush::pg_of(hash, config.pg_num) == seed
            {
                return Some((pg, config));
            }
            seed = crate::split::parent(seed)?;
        }
    }

    /// The groups of a pool that exist, and what each holds.
    pub fn extents(&self, pool: PoolId) -> impl Iterator<Item = Extent> {
        let range = PgId { pool, seed: 0 }..=PgId { pool, seed: u32::MAX };
        self.pgs.range(range).map(|(pg, config)| Extent { pg: *pg, pg_num: config.pg_num })
    }

    /// The groups that hold now what `extent` names: itself, or what it was split into.
    pub fn successors(&self, extent: Extent) -> Vec<Extent> {
        if self.pgs.get(&extent.pg).is_some_and(|config| config.pg_num == extent.pg_num) {
            return vec![extent];
        }
        let within = |now: &Extent| crush::pg_of(now.pg.seed, extent.pg_num) == extent.pg.seed;
        self.extents(extent.pg.pool).filter(within).collect()
    }

    /// Address of the primary of `pg`, if it has one that is registered.
    pub fn primary_address(&self, pg: PgId) -> Option<(DataServerId, SocketAddr)> {
        let primary = self.pgs.get(&pg)?.primary?;
        Some((primary, self.data_servers.get(&primary)?.address))
    }

    /// Applies a change. A change that ends at or before this map's epoch is a repetition and does nothing.
    pub fn apply(&mut self, delta: MapDelta) -> Result<(), MapGap> {
        if delta.to <= self.epoch {
            return Ok(());
        }
        if delta.from != self.epoch {
            return Err(MapGap { have: self.epoch, from: delta.from });
        }
        self.epoch = delta.to;
        if let Some(servers) = delta.data_servers {
            self.data_servers = servers;
        }
        if let Some(pools) = delta.pools {
            self.pools = pools;
        }
        if let Some(crush) = delta.crush {
            self.crush = crush;
        }
        if let Some(blocked) = delta.blocked {
            self.blocked = blocked;
        }
        self.pgs.extend(delta.pgs);
        if let Some(removed) = delta.removed_pools {
            self.pgs.retain(|pg, _| !removed.contains(&pg.pool));
            self.removed_pools = removed;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delta(from: u64, to: u64) -> MapDelta {
        MapDelta {
            from: MapEpoch(from),
            to: MapEpoch(to),
            data_servers: None,
            pools: None,
            crush: Some(format!("# {to}")),
            pgs: vec![],
            blocked: None,
            removed_pools: None,
        }
    }

    #[test]
    fn every_object_has_one_holder_however_far_each_group_is_split() {
        let pool = PoolId(1);
        let mut map = ClusterMap::default();
        let settings = Pool {
            name: "data".to_owned(),
            size: 3,
            min_size: 2,
            pg_num: 3,
            rule: 0,
            chunk_size: 1,
            inline_limit: 0,
        };
        map.pools.insert(pool, settings);
        let config = |pg_num| PgConfig { pg_num, ..PgConfig::default() };
        for seed in 0..3 {
            map.pgs.insert(PgId { pool, seed }, config(3));
        }
        let target = 21;
        map.pools.get_mut(&pool).expect("the pool").pg_num = target;
        let hashes: Vec<u32> = (0..3000_u32).map(|n| n.wrapping_mul(0x9e37_79b9)).collect();
        let before: Vec<Extent> = map.extents(pool).collect();
        for round in 0.. {
            for hash in &hashes {
                let holders = map.extents(pool).filter(|e| crush::pg_of(*hash, e.pg_num) == e.pg.seed);
                let holders: Vec<PgId> = holders.map(|extent| extent.pg).collect();
                assert_eq!(holders, [map.holder(pool, *hash).expect("a holder").0], "round {round}");
            }
            let behind = |(_, config): &(&PgId, &PgConfig)| config.pg_num < target;
            let unsplit: Vec<PgId> = map.pgs.iter().filter(behind).map(|(pg, _)| *pg).collect();
            // One group at a time, not in order.
            let Some(pg) = unsplit.get(round * 7 % unsplit.len().max(1)) else { break };
            let from = map.pgs[pg].pg_num;
            let to = crate::split::step(from, target);
            map.pgs.insert(*pg, config(to));
            if let Some(seed) = crate::split::child(pg.seed, from, to) {
                assert!(map.pgs.insert(PgId { pool, seed }, config(to)).is_none());
            }
        }
        assert_eq!(map.pgs.len(), target as usize);
        let all: BTreeSet<Extent> = map.extents(pool).collect();
        let found: Vec<Extent> = before.iter().flat_map(|extent| map.successors(*extent)).collect();
        assert_eq!((found.len(), found.into_iter().collect::<BTreeSet<_>>()), (target as usize, all));
    }

    #[test]
    fn a_removed_pool_takes_its_groups_along() {
        let mut map = ClusterMap::default();
        let pg = |pool| (PgId { pool: PoolId(pool), seed: 3 }, PgConfig::default());
        map.apply(MapDelta { pgs: vec![pg(1), pg(2)], ..delta(0, 1) }).expect("follows");
        let removed = Some(BTreeSet::from([PoolId(2)]));
        map.apply(MapDelta { removed_pools: removed, ..delta(1, 2) }).expect("follows");
        assert!(map.pgs.contains_key(&pg(1).0) && map.pgs.len() == 1);
        assert!(map.removed_pools.contains(&PoolId(2)));
    }

    #[test]
    fn changes_apply_in_order_and_once() {
        let mut map = ClusterMap::default();
        map.apply(delta(0, 2)).expect("follows");
        map.apply(delta(0, 1)).expect("a repetition is harmless");
        assert_eq!(map.crush, "# 2");
        assert_eq!(map.apply(delta(3, 4)), Err(MapGap { have: MapEpoch(2), from: MapEpoch(3) }));
    }
}
