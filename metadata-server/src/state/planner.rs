//! Decides the next configuration of each placement group from the committed map.
//!
//! Pure: the same map gives the same decisions. One step at a time; each step is safe by itself, and the next
//! plan, made on the map that contains it, goes on. The rules (and why they lose nothing):
//!
//! 1. A member whose server is gone is dropped only if `min_size` living, certain members remain; otherwise the
//!    list stays, so that nobody forgets who may hold the newest writes.
//! 2. Only a living, certain, in-sync member becomes primary: every acknowledged write is on all of these.
//! 3. If all members are uncertain, the one with the largest position is taken once *all* of them are back.
//! 4. After a restored backup the members may be those of long ago. Nobody becomes primary before every server that is in
//!    is back, or was taken out; if one that is no member holds more than all members, the group moved there after the
//!    backup, and that one is taken.
//! 5. A server that CRUSH wants and that is no member becomes a learner, whatever it holds.
//! 6. A member that CRUSH does not want goes only after everybody whom it wants is in sync, and only if these are
//!    as many as the pool wants replicas: a copy that has no successor is not given up.

use super::prep::PgUpdate;
use crush::{CrushMap, Scratch};
use protocol::map::{ClusterMap, Member, PgConfig, Pool, WEIGHT_ONE};
use protocol::replication::Position;
use protocol::{DataServerId, PgId, PoolId};
use std::collections::BTreeMap;
use zab::mutant;

/// Changes of one plan: they become one transaction.
pub(crate) const UPDATES_MAX: usize = 1024;

/// Last (configuration version, sequence) of a server in a group, as it said when it registered.
pub type Positions = BTreeMap<(DataServerId, PgId), Position>;

/// What the plan is made from.
pub struct PlanInput<'a> {
    /// The committed map.
    pub map: &'a ClusterMap,
    /// Its CRUSH map, parsed.
    pub crush: &'a CrushMap,
    /// What servers hold.
    pub positions: &'a Positions,
    /// New groups may start with `min_size` members instead of waiting for `size` servers.
    pub start_small: bool,
}

/// Groups whose configuration should change now, at most [`UPDATES_MAX`]: the next plan sees these changed and goes on.
pub fn plan(input: &PlanInput<'_>) -> Vec<PgUpdate> {
    let mut updates = Vec::new();
    let (mut scratch, mut devices) = (Scratch::default(), Vec::new());
    let weights = weights(input.map);
    for (pool_id, pool) in &input.map.pools {
        for seed in 0..pool.pg_num {
            let pg = PgId { pool: *pool_id, seed };
            let x = crush::pps(pool_id.0, seed, pool.pg_num);
            input.crush.do_rule(pool.rule, x, pool.size as usize, &weights, &mut scratch, &mut devices);
            let targets: Vec<DataServerId> = devices
                .iter()
                .filter_map(|d| u32::try_from(*d).ok().map(DataServerId))
                .filter(|d| input.map.data_servers.contains_key(d))
                .collect();
            let empty = PgConfig::default();
            let current = match input.map.pgs.get(&pg) {
                Some(config) => config,
                // Its objects are in another group, which will be split.
                None if input.map.holder(*pool_id, seed).is_some() => continue,
                None => &empty,
            };
            let step = Step { input, pool, pg, targets: &targets };
            if let Some(config) = step.next(current) {
                updates.push(PgUpdate { pg, based_on: current.version, config });
                if updates.len() >= UPDATES_MAX {
                    return updates;
                }
            }
        }
    }
    updates
}

/// Reweight by device id, 0 for ids that do not exist.
fn weights(map: &ClusterMap) -> Vec<u32> {
    let len = map.data_servers.keys().next_back().map_or(0, |id| id.0 as usize + 1);
    let mut weights = vec![0; len];
    for (id, info) in &map.data_servers {
        weights[id.0 as usize] = info.reweight.min(WEIGHT_ONE);
    }
    weights
}

struct Step<'a> {
    input: &'a PlanInput<'a>,
    pool: &'a Pool,
    pg: PgId,
    targets: &'a [DataServerId],
}

impl Step<'_> {
    fn next(&self, current: &PgConfig) -> Option<PgConfig> {
        if current.version == 0 {
            return self.create();
        }
        let mut config = current.clone();
        self.drop_dead(&mut config);
        self.appoint(&mut config);
        self.add_learners(&mut config);
        if config.primary != current.primary {
            // The old primary stays a member until the new one has activated: every write of the new one needs
            // its acknowledgement, so it learns that it was replaced before anything can change behind its back.
            config.activated = mutant!("new-primary-active-at-once");
        }
        self.remove_surplus(&mut config);
        (config != *current).then_some(config)
    }

    /// A group that holds nothing yet starts where CRUSH wants it.
    fn create(&self) -> Option<PgConfig> {
        let in_sync: Vec<Member> = self.targets.iter().filter_map(|id| self.member(*id)).collect();
        let needed = if self.input.start_small { self.pool.min_size } else { self.pool.size };
        if in_sync.len() < needed as usize {
            return None;
        }
        let primary = in_sync.first().map(|m| m.server);
        let pg_num = self.pool.pg_num;
        Some(PgConfig { version: 0, primary, in_sync, learners: Vec::new(), activated: false, pg_num })
    }

    fn drop_dead(&self, config: &mut PgConfig) {
        config.learners.retain(|m| self.alive(m));
        let remaining = config.certain().filter(|m| self.alive(m)).count();
        if remaining >= self.pool.min_size as usize || mutant!("dead-members-dropped-below-min-size") {
            config.in_sync.retain(|m| self.alive(m));
        }
    }

    fn appoint(&self, config: &mut PgConfig) {
        let able = |m: &&Member| (!m.uncertain || mutant!("uncertain-member-leads")) && self.alive(m);
        let candidates: Vec<DataServerId> = config.in_sync.iter().filter(able).map(|m| m.server).collect();
        let wanted = self.targets.iter().copied().find(|t| candidates.contains(t));
        let current = config.primary.filter(|p| candidates.contains(p));
        config.primary = match (current, wanted) {
            // Moving a primary interrupts the group for a moment: only when it is otherwise settled.
            (Some(now), Some(first)) if now != first && self.settled(config) => Some(first),
            (Some(now), _) => Some(now),
            (None, wanted) => wanted.or(candidates.first().copied()),
        };
        if config.primary.is_none() {
            self.appoint_uncertain(config);
        }
    }

    /// Rule 3.
    fn appoint_uncertain(&self, config: &mut PgConfig) {
        let all_back = config.in_sync.iter().all(|m| m.uncertain && self.alive(m));
        let all_back = all_back || mutant!("uncertain-members-do-not-wait-for-all");
        if config.in_sync.is_empty() || !all_back {
            return;
        }
        // A server that said what it holds, and not this group, holds nothing of it: it began after that with a split that
        // this server lacks.
        let spoke = |server| {
            let first = PgId { pool: PoolId(0), seed: 0 };
            let mut said = self.input.positions.range((server, first)..);
            said.next().is_some_and(|((other, _), _)| *other == server).then(Position::default)
        };
        let position =
            |m: &Member| self.input.positions.get(&(m.server, self.pg)).copied().or_else(|| spoke(m.server));
        if config.in_sync.iter().any(|m| position(m).is_none()) {
            return;
        }
        let most = config.in_sync.iter().filter_map(position).max().unwrap_or_default();
        let is_restored = most.version < self.input.map.generation.revision;
        if is_restored && !self.may_all_be_here() {
            return;
        }
        if let Some(holder) = self.moved_to(config, most).filter(|_| is_restored) {
            config.primary = Some(holder.server);
            config.in_sync.push(holder);
        } else if let Some(best) = config
            .in_sync
            .iter_mut()
            .max_by_key(|m| position(m).filter(|_| !mutant!("any-uncertain-member-leads")))
        {
            best.uncertain = false;
            config.primary = Some(best.server);
        }
    }

    /// Rule 4: whoever may hold more than the members had time to say so.
    fn may_all_be_here(&self) -> bool {
        self.input.start_small
            && self.input.map.data_servers.values().all(|info| info.up || info.reweight == 0)
    }

    /// Rule 4: the server that is no member and holds more than all of them, of a group that was not written to since a
    /// backup was restored.
    fn moved_to(&self, config: &PgConfig, most: Position) -> Option<Member> {
        let position = |server| self.input.positions.get(&(server, self.pg)).copied().unwrap_or_default();
        let others = self.input.map.data_servers.keys().filter(|id| config.member(**id).is_none());
        let best = others.filter_map(|id| self.member(*id)).max_by_key(|m| position(m.server))?;
        let held = position(best.server);
        (held > most && held.version < self.input.map.generation.revision).then_some(best)
    }

    fn add_learners(&self, config: &mut PgConfig) {
        for target in self.targets {
            if config.member(*target).is_none()
                && let Some(member) = self.member(*target)
            {
                let returns = mutant!("dropped-member-returns-in-sync");
                (if returns { &mut config.in_sync } else { &mut config.learners }).push(member);
            }
        }
    }

    fn remove_surplus(&self, config: &mut PgConfig) {
        let wanted = |m: &Member| self.targets.contains(&m.server);
        config.learners.retain(wanted);
        if !self.settled(config) && !mutant!("copy-given-up-before-its-successor") {
            return;
        }
        // The primary goes last: first another one takes over and activates.
        let primary = config.primary;
        let mut spare = (self.pool.size as usize).saturating_sub(self.targets.len());
        config.in_sync.retain(|m| {
            let kept = wanted(m) || Some(m.server) == primary || spare > 0;
            spare -= usize::from(kept && !wanted(m) && spare > 0);
            kept
        });
    }

    /// Everybody whom CRUSH wants is in sync, and the group serves.
    fn settled(&self, config: &PgConfig) -> bool {
        let in_sync =
            |id: &DataServerId| config.in_sync_member(*id).is_some_and(|m| !m.uncertain && self.alive(m));
        config.activated
            && self.targets.len() >= self.pool.min_size as usize
            && self.targets.iter().all(in_sync)
    }

    fn alive(&self, member: &Member) -> bool {
        self.member(member.server)
            .is_some_and(|now| now.store == member.store && now.incarnation == member.incarnation)
    }

    /// The server as a certain member, if it is up.
    fn member(&self, server: DataServerId) -> Option<Member> {
        let info = self.input.map.data_servers.get(&server).filter(|info| info.up)?;
        Some(Member { server, store: info.store, incarnation: info.incarnation, uncertain: false })
    }
}

/// Number of groups by state, in Ceph's words.
pub fn states(map: &ClusterMap) -> BTreeMap<String, u32> {
    let mut states = BTreeMap::new();
    for pool in map.pools.keys() {
        for (state, count) in states_of(map, *pool) {
            *states.entry(state).or_insert(0) += count;
        }
    }
    states
}

/// Number of a pool's groups by state.
pub fn states_of(map: &ClusterMap, id: PoolId) -> BTreeMap<String, u32> {
    let mut states = BTreeMap::new();
    let Some(pool) = map.pools.get(&id) else { return states };
    for seed in 0..pool.pg_num {
        let config = map.pgs.get(&PgId { pool: id, seed });
        if config.is_none() && map.holder(id, seed).is_some() {
            // Does not exist before the group that holds its objects is split.
            continue;
        }
        *states.entry(state(map, pool, config)).or_insert(0) += 1;
    }
    states
}

fn state(map: &ClusterMap, pool: &Pool, config: Option<&PgConfig>) -> String {
    let Some(config) = config else { return "creating".into() };
    let up = |m: &&Member| map.data_servers.get(&m.server).is_some_and(|s| s.up && s.store == m.store);
    let living = config.certain().filter(up).count();
    let mut words = Vec::new();
    match config.primary {
        None if config.in_sync.iter().all(|m| m.uncertain) => words.push("uncertain"),
        None => words.push("down"),
        Some(_) if !config.activated => words.push("peering"),
        Some(_) if living < pool.min_size as usize => words.push("undersized"),
        Some(_) => words.push("active"),
    }
    if config.pg_num < pool.pg_num {
        words.push("splitting");
    }
    if !config.learners.is_empty() || config.in_sync.iter().any(|m| m.uncertain) {
        words.push("recovering");
    }
    if living < pool.size as usize {
        words.push("degraded");
    }
    if words == ["active"] {
        words.push("clean");
    }
    words.join("+")
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::map::DataServerInfo;
    use protocol::{SessionId, StoreUuid};
    use std::collections::BTreeSet;

    struct World {
        map: ClusterMap,
        crush: CrushMap,
        positions: Positions,
    }

    impl World {
        fn new(servers: u32) -> Self {
            let mut map = ClusterMap::default();
            for id in 1..=servers {
                map.data_servers.insert(
                    DataServerId(id),
                    DataServerInfo {
                        address: "127.0.0.1:1".parse().expect("an address"),
                        host: format!("h{id}"),
                        up: true,
                        session: SessionId(u64::from(id)),
                        store: StoreUuid(u128::from(id)),
                        incarnation: 1,
                        crush_weight: WEIGHT_ONE,
                        reweight: WEIGHT_ONE,
                        failure: None,
                    },
                );
            }
            let pool = Pool {
                name: "data".into(),
                size: 3,
                min_size: 2,
                pg_num: 16,
                rule: 0,
                chunk_size: 1,
                inline_limit: 1,
            };
            map.pools.insert(PoolId(1), pool);
            let hosts: Vec<_> =
                (1..=servers).map(|id| (format!("h{id}"), vec![(id as i32, WEIGHT_ONE)])).collect();
            let crush = crush::flat_hosts(&hosts);
            Self { map, crush, positions: Positions::new() }
        }

        /// One plan; activates what it configured as primaries would.
        fn step(&mut self) -> usize {
            let updates = plan(&PlanInput {
                map: &self.map,
                crush: &self.crush,
                positions: &self.positions,
                start_small: false,
            });
            let changed = updates.len();
            for update in updates {
                let config = PgConfig { version: update.based_on + 1, ..update.config };
                self.map.pgs.insert(update.pg, config);
            }
            changed
        }

        fn pool(&mut self) -> &mut Pool {
            self.map.pools.get_mut(&PoolId(1)).expect("the pool")
        }

        fn activate(&mut self) {
            for config in self.map.pgs.values_mut().filter(|c| c.primary.is_some()) {
                config.activated = true;
            }
        }

        fn promote(&mut self) {
            for config in self.map.pgs.values_mut() {
                let learners = std::mem::take(&mut config.learners);
                config.in_sync.extend(learners);
            }
        }

        fn settle(&mut self) {
            for _ in 0..10 {
                if self.step() == 0 {
                    return;
                }
                self.activate();
                self.promote();
            }
            panic!("the planner does not come to rest");
        }

        fn down(&mut self, id: u32) {
            self.map.data_servers.get_mut(&DataServerId(id)).expect("known").up = false;
        }
    }

    #[test]
    fn groups_wait_for_enough_servers_and_then_start_where_crush_wants_them() {
        let mut world = World::new(2);
        assert_eq!(world.step(), 0);
        let mut world = World::new(3);
        world.settle();
        assert_eq!(states(&world.map), BTreeMap::from([("active+clean".to_string(), 16)]));
    }

    #[test]
    fn a_dead_member_goes_but_never_below_min_size() {
        let mut world = World::new(3);
        world.settle();
        world.down(1);
        world.settle();
        assert!(world.map.pgs.values().all(|c| c.in_sync.len() == 2 && c.primary != Some(DataServerId(1))));
        world.down(2);
        world.step();
        assert!(world.map.pgs.values().all(|c| c.in_sync.len() == 2), "the list stays");
        assert!(world.map.pgs.values().all(|c| c.primary == Some(DataServerId(3))));
        world.down(3);
        world.step();
        assert!(world.map.pgs.values().all(|c| c.primary.is_none() && c.in_sync.len() == 2));
    }

    #[test]
    fn a_fourth_server_is_filled_before_anybody_leaves() {
        let mut world = World::new(3);
        world.settle();
        let old: Vec<_> = world.map.pgs.values().cloned().collect();
        let four = World::new(4);
        world.map.data_servers = four.map.data_servers;
        world.crush = four.crush;
        world.step();
        for (before, after) in old.iter().zip(world.map.pgs.values()) {
            assert_eq!(before.in_sync, after.in_sync, "learners come first");
        }
        world.promote();
        world.settle();
        let on_four = world.map.pgs.values().filter(|c| c.in_sync_member(DataServerId(4)).is_some()).count();
        assert!(on_four > 4, "the new server holds its share, got {on_four}");
        assert!(world.map.pgs.values().all(|c| c.in_sync.len() == 3));
    }

    #[test]
    fn if_all_are_uncertain_the_longest_history_wins_once_everybody_is_back() {
        let mut world = World::new(3);
        world.settle();
        for config in world.map.pgs.values_mut() {
            config.primary = None;
            config.in_sync.iter_mut().for_each(|m| m.uncertain = true);
        }
        assert_eq!(world.step(), 0, "positions are not known yet");
        for seed in 0..16 {
            for id in 1..=3 {
                let pg = PgId { pool: PoolId(1), seed };
                let position = Position { version: 5, sequence: u64::from(id % 3) };
                world.positions.insert((DataServerId(id), pg), position);
            }
        }
        world.down(1);
        assert_eq!(world.step(), 0, "one is missing");
        world.map.data_servers.get_mut(&DataServerId(1)).expect("known").up = true;
        world.step();
        assert!(world.map.pgs.values().all(|c| c.primary == Some(DataServerId(2))));
    }

    #[test]
    fn after_a_restored_backup_the_server_that_holds_most_leads_wherever_the_group_was() {
        let mut world = World::new(4);
        world.settle();
        let pg = *world.map.pgs.keys().next().expect("a group");
        let members: Vec<DataServerId> = world.map.pgs[&pg].in_sync.iter().map(|m| m.server).collect();
        let other =
            (1..=4).map(DataServerId).find(|id| !members.contains(id)).expect("four are more than three");
        world.map.generation.revision = 1 << 40;
        world.map.pgs.retain(|id, _| *id == pg);
        world.map.pools.get_mut(&PoolId(1)).expect("the pool").pg_num = 1;
        let config = world.map.pgs.get_mut(&pg).expect("the group");
        (config.primary, config.activated) = (None, false);
        config.in_sync.iter_mut().for_each(|m| m.uncertain = true);
        for id in &members {
            world.positions.insert((*id, pg), Position { version: 5, sequence: 7 });
        }
        world.positions.insert((other, pg), Position { version: 6, sequence: 9 });
        let look = |world: &World, start_small| {
            let (map, crush, positions) = (&world.map, &world.crush, &world.positions);
            let updates = plan(&PlanInput { map, crush, positions, start_small });
            updates.into_iter().find(|update| update.pg == pg).and_then(|update| update.config.primary)
        };
        assert_eq!(look(&world, false), None, "others may not have said what they hold");
        world.down(other.0);
        assert_eq!(look(&world, true), None, "one that is in is missing");
        world.map.data_servers.get_mut(&other).expect("known").up = true;
        assert_eq!(look(&world, true), Some(other));
        world.positions.insert((other, pg), Position { version: 5, sequence: 6 });
        let first = look(&world, true).expect("all are back");
        assert!(members.contains(&first));
    }

    impl World {
        /// As the leader does: out is weightless.
        fn rebuild_crush(&mut self) {
            let host = |(id, s): (&DataServerId, &DataServerInfo)| {
                let weight = if s.reweight == 0 { 0 } else { s.crush_weight };
                (s.host.clone(), vec![(id.0 as i32, weight)])
            };
            self.crush = crush::flat_hosts(&self.map.data_servers.iter().map(host).collect::<Vec<_>>());
        }

        /// Where the groups are: (group, server).
        fn places(&self) -> BTreeSet<(PgId, DataServerId)> {
            let of =
                |(pg, c): (&PgId, &PgConfig)| c.in_sync.iter().map(|m| (*pg, m.server)).collect::<Vec<_>>();
            self.map.pgs.iter().flat_map(of).collect()
        }

        /// Settles, and counts the copies that were made meanwhile, needed in the end or not.
        fn copies(&mut self) -> usize {
            let mut copied = 0;
            for _ in 0..30 {
                let before: BTreeSet<_> = self.all_members();
                let changed = self.step();
                copied += self.all_members().difference(&before).count();
                if changed == 0 {
                    return copied;
                }
                self.activate();
                self.promote();
            }
            panic!("the planner does not come to rest");
        }

        fn all_members(&self) -> BTreeSet<(PgId, DataServerId)> {
            let of = |(pg, c): (&PgId, &PgConfig)| {
                c.in_sync.iter().chain(&c.learners).map(|m| (*pg, m.server)).collect::<Vec<_>>()
            };
            self.map.pgs.iter().flat_map(of).collect()
        }
    }

    fn six_of_many_groups() -> World {
        let mut world = World::new(6);
        world.map.pools.get_mut(&PoolId(1)).expect("the pool").pg_num = 512;
        world.settle();
        world
    }

    #[test]
    fn a_lost_server_of_six_moves_what_it_held_and_its_removal_nothing() {
        let mut world = six_of_many_groups();
        let held = world.places().iter().filter(|(_, server)| *server == DataServerId(4)).count();
        world.down(4);
        world.map.data_servers.get_mut(&DataServerId(4)).expect("known").reweight = 0;
        world.rebuild_crush();
        let copied = world.copies();
        assert!(copied * 10 <= held * 11, "{copied} copies for {held} that were lost");
        assert!(world.map.pgs.values().all(|c| c.in_sync.len() == 3));
        world.map.data_servers.remove(&DataServerId(4));
        world.rebuild_crush();
        assert_eq!(world.copies(), 0);
    }

    #[test]
    fn a_drained_server_of_six_moves_what_it_held() {
        let mut world = six_of_many_groups();
        let held = world.places().iter().filter(|(_, server)| *server == DataServerId(2)).count();
        world.map.data_servers.get_mut(&DataServerId(2)).expect("known").reweight = 0;
        world.rebuild_crush();
        let copied = world.copies();
        assert!(copied * 10 <= held * 11, "{copied} copies for {held} that were held");
        assert!(world.map.pgs.values().all(|c| c.member(DataServerId(2)).is_none() && c.in_sync.len() == 3));
    }

    #[test]
    fn an_added_server_moves_no_more_than_the_mappings_differ() {
        let mut world = six_of_many_groups();
        let before = world.places();
        world.map.data_servers = World::new(7).map.data_servers;
        world.rebuild_crush();
        let copied = world.copies();
        let differ = world.places().difference(&before).count();
        assert!(copied * 10 <= differ * 11, "{copied} copies where the mappings differ in {differ}");
        let share = 512 * 3 / 7;
        assert!(copied * 10 <= share * 13, "{copied} copies for a share of {share}");
    }

    #[test]
    fn a_pool_that_wants_more_or_fewer_replicas_gets_them_step_by_step() {
        let mut world = World::new(5);
        world.settle();
        world.pool().size = 4;
        let before = world.map.pgs.clone();
        world.step();
        for (before, after) in before.values().zip(world.map.pgs.values()) {
            assert_eq!((&before.in_sync, after.learners.len()), (&after.in_sync, 1), "a learner first");
        }
        world.promote();
        world.settle();
        assert!(world.map.pgs.values().all(|c| c.in_sync.len() == 4));
        world.pool().size = 2;
        world.settle();
        assert!(world.map.pgs.values().all(|c| c.in_sync.len() == 2 && c.learners.is_empty()));
        assert_eq!(states(&world.map), BTreeMap::from([("active+clean".to_string(), 16)]));
    }

    #[test]
    fn a_pool_of_another_class_moves_there_and_loses_no_copy_on_the_way() {
        let mut world = World::new(6);
        world.settle();
        let hosts: Vec<_> = (1..=6).map(|id| (format!("h{id}"), vec![(id, WEIGHT_ONE)])).collect();
        world.crush = crush::flat_map(&hosts, &[("ssd".into(), vec![4, 5, 6])]);
        world.pool().rule = crush::flat_rule(Some(0), true);
        for _ in 0..20 {
            let changed = world.step();
            assert!(world.map.pgs.values().all(|c| c.certain().count() >= 3), "a copy went too early");
            world.activate();
            world.promote();
            if changed == 0 {
                break;
            }
        }
        let settled = |c: &PgConfig| c.in_sync.len() == 3 && c.in_sync.iter().all(|m| m.server.0 > 3);
        assert!(world.map.pgs.values().all(settled), "{:?}", world.map.pgs);
        // A class that nobody has any more moves nothing.
        world.crush = crush::flat_hosts(&hosts);
        assert_eq!(world.step(), 0);
    }

    #[test]
    fn groups_to_come_wait_for_those_that_hold_their_objects_and_then_move() {
        let mut world = World::new(5);
        world.settle();
        world.pool().pg_num = 32;
        assert_eq!(world.step(), 0, "nothing begins empty");
        let split = BTreeMap::from([("active+splitting".to_string(), 16)]);
        assert_eq!(states(&world.map), split);
        let parents: Vec<PgId> = world.map.pgs.keys().copied().collect();
        for pg in parents {
            let config = world.map.pgs.get_mut(&pg).expect("a group");
            let holders: Vec<DataServerId> = config.certain().map(|m| m.server).collect();
            let (seed, child) = config.divide(pg.seed, 32, &holders).flatten().expect("a child");
            world.map.pgs.insert(PgId { seed, ..pg }, PgConfig { version: 1, ..child });
        }
        let before = world.places();
        world.activate();
        world.settle();
        assert_eq!(states(&world.map), BTreeMap::from([("active+clean".to_string(), 32)]));
        assert_ne!(world.places(), before, "the children go where they are wanted");
    }

    #[test]
    fn who_lacks_a_group_that_began_later_does_not_keep_it_from_its_primary() {
        let mut world = World::new(3);
        world.settle();
        let pg = PgId { pool: PoolId(1), seed: 3 };
        let config = world.map.pgs.get_mut(&pg).expect("a group");
        (config.primary, config.activated) = (None, false);
        config.in_sync.iter_mut().for_each(|m| m.uncertain = true);
        // Server 3 spoke before the group began, and lacks it.
        let other = PgId { seed: 1, ..pg };
        for (id, pg, sequence) in [(1, pg, 4), (2, pg, 5), (3, other, 9)] {
            world.positions.insert((DataServerId(id), pg), Position { version: 5, sequence });
        }
        world.step();
        assert_eq!(world.map.pgs[&pg].primary, Some(DataServerId(2)));
    }

    #[test]
    fn a_copy_without_a_successor_is_not_given_up() {
        let mut world = World::new(3);
        world.settle();
        world.map.data_servers.get_mut(&DataServerId(2)).expect("known").reweight = 0;
        world.rebuild_crush();
        world.copies();
        assert!(world.map.pgs.values().all(|c| c.in_sync.len() == 3), "nobody can replace it");
        world
            .map
            .data_servers
            .insert(DataServerId(4), World::new(4).map.data_servers[&DataServerId(4)].clone());
        world.rebuild_crush();
        world.copies();
        assert!(world.map.pgs.values().all(|c| c.in_sync.len() == 3 && c.member(DataServerId(2)).is_none()));
    }
}
