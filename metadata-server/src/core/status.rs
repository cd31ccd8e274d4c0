//! The cluster as one server sees it.

use super::Turn;
use crate::state::layers::Disk;
use crate::state::prep::pool::{class_names, parse_rule};
use crate::state::prep::{DEFAULT_POOL, load};
use crate::state::record::{Inode, SessionKind};
use crate::state::{key, planner};
use protocol::meta::{
    ClusterStatus, DataServerReport, DataServerStatus, FullRatios, MetadataMember, MetadataServerStatus,
    PoolStatus, Refusals, SessionStatus, Space,
};
use protocol::{DataServerId, InodeId, MetadataServerId, PoolId, Revision};
use std::collections::BTreeMap;
use std::net::SocketAddr;

impl<D: Disk, T> Turn<'_, D, T> {
    /// Everything from the leader; from others what they know themselves.
    pub(super) fn status(&self) -> ClusterStatus {
        let core = &*self.core;
        let map = core.machine.map();
        let progress = core.machine.progress();
        let reports = &core.leader.reports;
        let ratios = self.full_ratios();
        let mut space = self.space_of(DEFAULT_POOL);
        space.inodes = core.machine.inodes();
        ClusterStatus {
            cluster: core.config.cluster.to_string(),
            answered_by: core.config.id,
            metadata: self.metadata_servers(),
            leader: self.leader_id(),
            zab_epoch: progress.zab_epoch,
            revision: Revision(progress.revision),
            map_epoch: map.epoch,
            data: map
                .data_servers
                .iter()
                .map(|(id, info)| {
                    let member = |c: &&protocol::map::PgConfig| c.member(*id).is_some();
                    let primary = |c: &&protocol::map::PgConfig| c.primary == Some(*id);
                    let report = reports.get(id);
                    DataServerStatus {
                        id: *id,
                        address: info.address,
                        up: info.up,
                        in_cluster: info.reweight > 0,
                        class: load(&core.machine.committed(), &key::map_class(*id)).ok().flatten(),
                        capacity: report.map_or(0, |r| r.capacity),
                        used: report.map_or(0, |r| r.used),
                        groups: map.pgs.values().filter(member).count() as u32,
                        primaries: map.pgs.values().filter(primary).count() as u32,
                        corrupt_blocks: report.map_or(0, |r| r.corrupt_blocks),
                        failure: info.failure.clone(),
                    }
                })
                .collect(),
            groups: planner::states(map).into_iter().collect(),
            recovering: core.leader.recovering(map),
            space,
            sessions: self.client_sessions(),
            recovery: core.leader.recovery(map),
            scrub: core.leader.scrub_summary(map),
            pools: self.pools(),
            refusals: Refusals { requests: core.refused.get(), ..self.quorum.refusals() },
            full_ratios: ratios,
            warnings: self.space_warnings(ratios),
        }
    }

    /// When data servers count as full.
    pub(super) fn full_ratios(&self) -> FullRatios {
        load(&self.core.machine.committed(), &key::system("full_ratios")).ok().flatten().unwrap_or_default()
    }

    /// Space of a pool; nothing while nobody has reported.
    pub(super) fn space_of(&self, pool: PoolId) -> Space {
        let map = self.core.machine.map();
        self.core.leader.space(map, pool, self.full_ratios()).unwrap_or_default()
    }

    /// Space of the pool that an inode names.
    pub(super) fn space_at(&self, inode: InodeId) -> Space {
        let inode: Option<Inode> = load(&self.core.machine.committed(), &key::inode(inode)).ok().flatten();
        self.space_of(inode.map_or(DEFAULT_POOL, |inode| inode.pool))
    }

    fn space_warnings(&self, ratios: FullRatios) -> Vec<String> {
        let map = self.core.machine.map();
        let warning = |(id, report): (&DataServerId, &DataServerReport)| {
            let is_up = map.data_servers.get(id).is_some_and(|server| server.up);
            let percent = report.used as f64 * 100.0 / report.capacity.max(1) as f64;
            if !is_up || report.capacity == 0 || report.used < ratios.nearfull_at(report.capacity) {
                return None;
            }
            Some(if report.used >= ratios.full_at(report.capacity) {
                format!(
                    "data server {id} is full ({percent:.1} %): writes that need space on it are refused with ENOSPC; delete \
                     files, add data servers or take it out"
                )
            } else {
                format!("data server {id} is nearly full ({percent:.1} %); delete files or add data servers")
            })
        };
        self.core.leader.reports.iter().filter_map(warning).collect()
    }

    fn pools(&self) -> Vec<PoolStatus> {
        let (map, state) = (self.core.machine.map(), self.core.machine.committed());
        let (classes, ratios) = (class_names(&state).unwrap_or_default(), self.full_ratios());
        let mut pools: BTreeMap<PoolId, PoolStatus> = BTreeMap::new();
        for (id, pool) in &map.pools {
            let (failure_domain, class) = parse_rule(pool.rule);
            let inodes: Option<u64> = load(&state, &key::pool_inodes(*id)).ok().flatten();
            let status = PoolStatus {
                id: *id,
                name: pool.name.clone(),
                default: *id == DEFAULT_POOL,
                size: pool.size,
                min_size: pool.min_size,
                pg_num: pool.pg_num,
                failure_domain,
                class: class.and_then(|class| classes.get(class).cloned()),
                chunk_size: pool.chunk_size,
                inline_limit: pool.inline_limit,
                groups: planner::states_of(map, *id).into_iter().collect(),
                objects: 0,
                bytes: 0,
                available: self.core.leader.space(map, *id, ratios).map(|space| space.free),
                inodes: (*id != DEFAULT_POOL).then_some(inodes.unwrap_or(0)),
            };
            pools.insert(*id, status);
        }
        for (_, pg, report) in self.core.leader.led_groups(map) {
            if let Some(pool) = pools.get_mut(&pg.pool) {
                pool.objects += report.objects;
                pool.bytes += report.bytes;
            }
        }
        pools.into_values().collect()
    }

    fn client_sessions(&self) -> Vec<SessionStatus> {
        let now = self.now.ms;
        let clients = self.core.leader.clocks.iter().filter(|(_, c)| c.session.kind == SessionKind::Client);
        clients
            .map(|(id, clock)| SessionStatus {
                session: *id,
                info: clock.session.info.clone(),
                certificate: clock.session.certificate.clone(),
                expires_in_ms: (clock.heard + u64::from(clock.session.timeout_ms)).saturating_sub(now),
            })
            .collect()
    }

    fn leader_id(&self) -> Option<MetadataServerId> {
        match self.core.role {
            zab::Role::Leading { .. } => Some(self.core.config.id),
            zab::Role::Following { leader } | zab::Role::Observing { leader } => {
                Some(MetadataServerId(leader.0))
            }
            _ => None,
        }
    }

    fn metadata_servers(&self) -> Vec<MetadataServerStatus> {
        let leader = self.leader_id();
        let peers = self.quorum.peers();
        // Unknown only where the directory is older than addresses in the membership, and the file lacks it.
        let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
        let members = self.metadata_members().members;
        members
            .iter()
            .map(|MetadataMember { id, address, .. }| {
                let (role, zxid) = if *id == self.core.config.id {
                    let role = match self.core.role {
                        zab::Role::Leading { .. } => "leader",
                        zab::Role::Following { .. } => "follower",
                        zab::Role::Observing { .. } => "observer",
                        zab::Role::NotMember => "removed",
                        _ => "looking",
                    };
                    let applied = self.core.applied_zxid();
                    (role, (applied.epoch, applied.counter))
                } else {
                    let peer = peers.iter().find(|p| p.id.0 == id.0);
                    let leads = leader == Some(self.core.config.id);
                    let role = match peer {
                        _ if leader == Some(*id) => "leader",
                        Some(peer) if !peer.connected => "unreachable",
                        Some(peer) => match peer.counts {
                            Some(true) => "follower",
                            Some(false) => "observer",
                            // Only the leader knows who is in sync.
                            None => {
                                if leads {
                                    "looking"
                                } else {
                                    "follower"
                                }
                            }
                        },
                        None => "unreachable",
                    };
                    let zxid = peer.and_then(|p| p.acknowledged).unwrap_or_default();
                    (role, (zxid.epoch, zxid.counter))
                };
                let address = address.unwrap_or(unknown);
                MetadataServerStatus { id: *id, address, role: role.into(), zxid }
            })
            .collect()
    }
}
