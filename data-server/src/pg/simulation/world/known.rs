//! Objects that are written once, spoiled behind everybody's back, and looked at.

use super::*;

/// Requests (session, low-water mark, numbers) and truncation floors (inode, sequence).
type Remembered = (Vec<(u64, u64, Vec<u64>)>, Vec<(u64, u64)>);

impl World {
    /// Faults begin.
    pub(in crate::pg::simulation) fn begin_faults(&mut self, every_ms: u64) {
        self.faults.every_ms = every_ms;
        self.at(1, Event::Fault);
    }

    /// The primary writes an object that no client knows.
    pub(in crate::pg::simulation) fn write_known(&mut self, inode: u64, number: u64) {
        let Some(primary) = self.meta.config().primary else { return };
        let payload = Bytes::from(vec![inode as u8; CHUNK as usize - (inode % 7) as usize]);
        let request = RequestId { session: SessionId(9000), sequence: number, low_water: 0 };
        let object = protocol::ObjectId { pool: PG.pool, inode: protocol::InodeId(inode), chunk: 0 };
        let context =
            protocol::data::ObjectContext { object, pg_num: 1, truncations: Vec::new(), fence: MapEpoch(0) };
        let body = DataRequest::Write { request, context, offset: 0, crc: crc32c::crc32c(&payload) };
        let token = RequestToken(u64::MAX - number);
        self.with(primary, PG, |replica, cx| replica.handle_request(cx, token, body, payload));
    }

    /// Objects of these inodes on a server.
    pub(in crate::pg::simulation) fn known(
        &self,
        server: DataServerId,
        inodes: std::ops::Range<u64>,
    ) -> Objects {
        let objects = self.nodes[&server].store.objects().iter();
        objects.filter(|(key, _)| inodes.contains(&key.inode)).map(|(k, o)| (*k, o.clone())).collect()
    }

    /// Objects on a server that do not match their checksum.
    pub(in crate::pg::simulation) fn damaged(
        &self,
        server: DataServerId,
    ) -> &BTreeSet<crate::store::ObjectKey> {
        &self.nodes[&server].store.damaged
    }

    /// The store under a server; for faults that nobody notices.
    pub(in crate::pg::simulation) fn store(&mut self, server: DataServerId) -> &mut SimStore {
        &mut self.node(server).store
    }

    /// Begins a deep scrub, if there is a primary.
    pub(in crate::pg::simulation) fn scrub(&mut self) {
        if let Some(primary) = self.meta.config().primary {
            self.with(primary, PG, |replica, cx| {
                replica.handle_scrub_start(cx, true);
            });
        }
    }

    /// No scrub is under way.
    pub(in crate::pg::simulation) fn is_scrubbed(&self) -> bool {
        let primary = self.meta.config().primary.and_then(|id| self.nodes[&id].replicas.get(&PG));
        primary.is_some_and(|r| r.is_active() && !r.is_scrubbing() && !r.wants_credit())
    }

    /// What the primary says of scrubs.
    pub(in crate::pg::simulation) fn scrub_record(&self) -> Option<protocol::replication::ScrubRecord> {
        let primary = self.meta.config().primary.and_then(|id| self.nodes[&id].replicas.get(&PG));
        Some(primary?.report()?.scrub)
    }

    /// State of the servers, for a person who looks for the fault.
    pub(in crate::pg::simulation) fn describe(&self) -> String {
        let node = |(id, node): (&DataServerId, &Node)| {
            let lease = node.lease_until;
            let state: Vec<String> = node
                .replicas
                .iter()
                .map(|(pg, replica)| format!("\n  {pg}: {}", replica.describe()))
                .collect();
            format!(
                "server {id} (incarnation {}, lease {lease}, now {}): {}",
                node.incarnation,
                self.now,
                state.concat()
            )
        };
        self.nodes.iter().map(node).collect::<Vec<_>>().join("\n")
    }

    /// Requests that a living server has and does not answer.
    pub(in crate::pg::simulation) fn unanswered(&self) -> usize {
        self.nodes.values().filter(|node| node.alive).map(|node| node.tokens.len()).sum()
    }

    /// Servers that hold what was synced in every group, and know it.
    fn may_be_left(&self) -> Vec<DataServerId> {
        let fit = |server: &DataServerId| {
            let node = &self.nodes[server];
            let certain = |config: &PgConfig| {
                config.certain().any(|m| m.server == *server && m.incarnation == node.incarnation)
            };
            node.clean && node.alive && self.meta.groups.values().all(certain)
        };
        self.ids().into_iter().filter(fit).collect()
    }

    pub(in crate::pg::simulation) fn may_lose_all_but_one(&self) -> bool {
        !self.may_be_left().is_empty()
    }

    /// All members are lost but one, and the power fails there too. Everybody waits for the others until an
    /// administrator says that they will not come back.
    pub(in crate::pg::simulation) fn lose_all_but_one(&mut self) {
        self.forget_unsynced();
        let fit = self.may_be_left();
        let left = fit[self.rng.below(fit.len() as u64) as usize];
        let lost: Vec<DataServerId> = self.ids().into_iter().filter(|id| *id != left).collect();
        lost.iter().for_each(|id| self.destroy(*id));
        self.stop(left, true, Some(50));
    }

    /// Requests and truncation floors that a server remembers in a group.
    fn remembered(&self, server: DataServerId, pg: PgId) -> Option<Remembered> {
        let copy = &self.nodes[&server].replicas.get(&pg)?.group.copy;
        let image = copy.table.image(copy.head());
        let session = |s: &protocol::replication::SessionImage| {
            (s.session.0, s.low_water, s.done.iter().map(|(number, _)| *number).collect())
        };
        Some((image.sessions.iter().map(session).collect(), image.floors))
    }

    /// What differs between the in-sync members of a group, or is where it does not belong, if something is.
    pub(in crate::pg::simulation) fn divergence(&self) -> Option<String> {
        self.meta.groups.iter().find_map(|(pg, config)| self.divergence_of(*pg, config))
    }

    fn divergence_of(&self, pg: PgId, config: &PgConfig) -> Option<String> {
        let objects = |server: &DataServerId| -> Objects {
            let all = self.nodes[server].store.objects().iter();
            all.filter(|(key, _)| key.pg == pg.to_u64()).map(|(k, o)| (*k, o.clone())).collect()
        };
        let members: Vec<DataServerId> = config.in_sync.iter().map(|m| m.server).collect();
        let (first, others) = members.split_first()?;
        let expected = objects(first);
        let belongs = |key: &&crate::store::ObjectKey| {
            let (inode, chunk) = (protocol::InodeId(key.inode), key.chunk);
            protocol::ObjectId { pool: pg.pool, inode, chunk }.pg(config.pg_num) == pg
        };
        if let Some(key) = expected.keys().find(|key| !belongs(key)) {
            return Some(format!("{key} on server {first} belongs to another group"));
        }
        for other in others {
            let (ours, theirs) = (self.remembered(*first, pg), self.remembered(*other, pg));
            if ours != theirs {
                return Some(format!(
                    "group {pg}: servers {first} and {other} remember {ours:?} and {theirs:?}"
                ));
            }
            let objects = objects(other);
            if objects != expected {
                let differing = expected.iter().find(|(key, object)| objects.get(key) != Some(object));
                let extra = objects.iter().find(|(key, _)| !expected.contains_key(key));
                let there = differing.and_then(|(key, _)| objects.get(key));
                return Some(format!(
                    "group {pg}: servers {first} and {other} differ: {differing:?} {there:?} {extra:?}"
                ));
            }
        }
        None
    }
}
