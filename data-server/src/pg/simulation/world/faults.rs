//! What goes wrong, and what administrators do meanwhile.

use super::*;

impl World {
    /// Fences a client's session: from the answer on, others that heard of it see nothing new of it.
    pub(in crate::pg::simulation) fn fence(&mut self, client: usize) {
        let before = self.meta.epoch;
        let session = self.clients.session(client);
        let epoch = self.meta.fence(session);
        self.clients.fenced(client, epoch, self.now);
        self.publish(before);
    }

    pub(super) fn fault(&mut self) {
        if self.faults.every_ms == 0 {
            return;
        }
        self.faults_seen += 1;
        let ids = self.ids();
        let one = ids[self.rng.below(ids.len() as u64) as usize];
        let other = ids[self.rng.below(ids.len() as u64) as usize];
        let kind = self.kind_of_fault();
        if self.trace {
            println!("{} fault {kind} {one} {other}", self.now);
        }
        match kind {
            0 => {
                let for_ms = 20 + self.rng.below(3000);
                self.stop(one, false, Some(for_ms));
            }
            1 => {
                let for_ms = 20 + self.rng.below(100);
                self.stop(one, false, Some(for_ms));
            }
            2 if self.faults.power_loss && self.may_lose_power(one) => {
                let for_ms = 20 + self.rng.below(3000);
                self.stop(one, true, Some(for_ms));
            }
            3 => {
                let for_ms = 100 + self.rng.below(4000);
                self.node(one).paused_until = self.now + for_ms;
            }
            4 if one != other => self.cut_link(one, other, 1),
            5 if one != other => {
                let for_ms = 50 + self.rng.below(3000);
                self.cut_link(one, other, for_ms);
            }
            6 => {
                let until = self.now + 50 + self.rng.below(5000);
                self.lonely.insert(one, until);
            }
            7 => {
                let before = self.meta.epoch;
                let pg = self.any_group();
                self.meta.move_primary(pg, one);
                self.publish(before);
            }
            8 if self.nodes[&one].alive => {
                let incarnation = self.nodes[&one].incarnation;
                let node = self.node(one);
                node.store.busy = true;
                node.room_scheduled = true;
                let delay = 5 + self.rng.below(200);
                self.at(delay, Event::Room(one, incarnation));
            }
            9 if self.faults.damage => self.damage(one),
            11 if self.faults.resize => {
                let living = self.nodes.values().filter(|node| !node.destroyed).count() as u64;
                let size = 2 + self.rng.below(living - 1);
                let min_size = 2 + self.rng.below(size - 1);
                let before = self.meta.epoch;
                self.meta.set_pool(size as usize, min_size as usize);
                self.publish(before);
            }
            10 => {
                if let Some(client) = self.clients.to_fence(&mut self.rng) {
                    self.fence(client);
                }
            }
            12..20 => self.disk_or_link_fault(kind, one, other),
            20 | 21 => {
                let more = 1 + self.rng.below(u64::from(self.meta.pg_num)) as u32;
                self.grow(more);
            }
            22 => {
                let before = self.meta.epoch;
                let pg = self.any_group();
                self.meta.migrate(pg, one);
                self.publish(before);
            }
            _ => {}
        }
        let delay = 1 + self.rng.below(2 * self.faults.every_ms);
        self.at(delay, Event::Fault);
    }

    /// Those of disks and links are 12 to 19, what administrators do with groups is from 20 on.
    fn kind_of_fault(&mut self) -> u64 {
        let ordinary = match self.faults {
            Faults { disks: true, .. } => 20,
            Faults { split: true, .. } | Faults { resize: true, .. } => 12,
            _ => 11,
        };
        let kind = self.rng.below(ordinary + if self.faults.split { 3 } else { 0 });
        if kind < ordinary { kind } else { 20 + kind - ordinary }
    }

    /// What a slow disk adds to a write or a sync, in milliseconds.
    pub(super) fn slowness(&mut self, server: DataServerId) -> u64 {
        let is_slow = self.nodes[&server].slow_until > self.now;
        if is_slow { self.rng.below(1500) } else { 0 }
    }

    /// Memory or a cable changes a byte of what one server sends to another.
    pub(super) fn damaged_on_the_way(&mut self, message: &PeerMessage, payload: Bytes) -> Bytes {
        // Repairs are rare.
        let per_mille = if matches!(message, PeerMessage::Blocks { .. }) { 150 } else { 4 };
        if !self.faults.disks || payload.is_empty() || !self.rng.chance(per_mille) {
            return payload;
        }
        let mut bytes = payload.to_vec();
        let at = self.rng.below(bytes.len() as u64) as usize;
        bytes[at] ^= 1 << self.rng.below(8);
        Bytes::from(bytes)
    }

    fn disk_or_link_fault(&mut self, kind: u64, one: DataServerId, other: DataServerId) {
        match kind {
            12 | 13 => {
                let until = self.now + 100 + self.rng.below(4000);
                self.node(one).slow_until = until;
            }
            14 => {
                let is_full = self.rng.chance(500);
                self.node(one).store.full = is_full;
            }
            15 if self.may_lose_power(one) && self.others_are_whole(one) => {
                // Somewhere in the next writes.
                let after = self.rng.below(6);
                let store = &mut self.node(one).store;
                store.fails_at = Some(store.submitted() + after);
            }
            16 if self.may_lose_power(one) && self.others_are_whole(one) => {
                let (seed, writes) = (self.rng.below(u64::MAX), 1 + self.rng.below(3));
                self.node(one).store.lies = Some((seed, writes));
            }
            17 | 18 if one != other => {
                let until = self.now + 50 + self.rng.below(3000);
                self.silent.insert((one, other), until);
            }
            19 => {
                // Part of the servers does not reach the rest.
                let for_ms = 50 + self.rng.below(3000);
                for (a, b) in self.pairs() {
                    if self.rng.chance(500) {
                        self.cut_link(a, b, for_ms);
                    }
                }
            }
            _ => {}
        }
    }

    fn pairs(&self) -> Vec<(DataServerId, DataServerId)> {
        let ids = self.ids();
        ids.iter().flat_map(|a| ids.iter().filter(move |b| *b > a).map(|b| (*a, *b))).collect()
    }

    /// A machine is gone for good; another one comes in its stead.
    pub(in crate::pg::simulation) fn destroy(&mut self, server: DataServerId) {
        if self.nodes[&server].destroyed {
            return;
        }
        self.stop(server, false, None);
        let node = self.node(server);
        node.destroyed = true;
        node.store = SimStore::default();
        let fresh = DataServerId(self.nodes.len() as u32);
        self.nodes.insert(fresh, Node::default());
        let delay = 100 + self.rng.below(3000);
        self.at(delay, Event::Restart(fresh));
        let delay = 500 + self.rng.below(4000);
        self.at(delay, Event::Forget(server));
    }

    /// The pool wants more groups.
    pub(in crate::pg::simulation) fn grow(&mut self, more: u32) {
        let before = self.meta.epoch;
        self.meta.set_pg_num((self.meta.pg_num + more).min(GROUPS_MAX));
        self.publish(before);
    }

    /// A backup is restored, and every server registers again.
    pub(in crate::pg::simulation) fn restore(&mut self, pg_num: u32, groups: BTreeMap<PgId, PgConfig>) {
        let before = self.meta.epoch;
        self.kill_all();
        self.meta.restore(pg_num, groups);
        self.publish(before);
    }

    fn any_group(&mut self) -> PgId {
        let count = self.meta.groups.len() as u64;
        let nth = if count == 1 { 0 } else { self.rng.below(count) };
        self.meta.groups.keys().nth(nth as usize).copied().unwrap_or(PG)
    }

    /// All certain members beside this one run and hold everything.
    fn others_are_whole(&self, server: DataServerId) -> bool {
        let whole = |(pg, config): (&PgId, &PgConfig)| {
            let holds = |id: &DataServerId| {
                let node = &self.nodes[id];
                !node.destroyed && node.replicas.get(pg).is_some_and(Replica::is_complete)
            };
            config.certain().filter(|m| m.server != server).all(|m| holds(&m.server))
        };
        self.meta.is_healthy() && self.meta.groups.iter().all(whole)
    }

    /// One machine at a time, with no other fault that takes bytes: what was not synced survives any one server,
    /// not any two.
    fn may_lose_power(&self, server: DataServerId) -> bool {
        let intact = |(id, node): (&DataServerId, &Node)| {
            let own = *id == server || node.destroyed;
            let complete = || !node.store.is_incomplete(self.meta.groups.keys().copied());
            (own || (node.clean && complete())) && node.store.is_honest()
        };
        let backed = |config: &PgConfig| {
            let others = config.certain().filter(|m| m.server != server);
            let whole = others.filter(|m| !self.nodes[&m.server].destroyed);
            config.in_sync.iter().all(|m| !m.uncertain) && whole.count() >= 1
        };
        self.meta.groups.values().all(backed) && self.nodes.iter().all(intact)
    }

    /// Damages an object on one server, if all others in sync are intact.
    fn damage(&mut self, server: DataServerId) {
        let intact = self.nodes.iter().all(|(id, node)| *id == server || node.store.is_honest());
        let uncertain = self.nodes.values().any(|node| !node.clean);
        // A machine that is gone is a member until somebody says so.
        let mut members = self.meta.groups.values().flat_map(|config| &config.in_sync);
        let lost = members.any(|m| self.nodes[&m.server].destroyed);
        if !intact || uncertain || lost || !self.meta.is_healthy() {
            return;
        }
        let keys: Vec<_> = self.nodes[&server].store.objects().keys().copied().collect();
        if !keys.is_empty() {
            let key = keys[self.rng.below(keys.len() as u64) as usize];
            self.node(server).store.damaged.insert(key);
        }
    }

    /// All servers but one do nothing for a while.
    pub(in crate::pg::simulation) fn hold_up_others(&mut self, server: DataServerId, for_ms: u64) {
        let until = self.now + for_ms;
        self.nodes
            .iter_mut()
            .filter(|(id, _)| **id != server)
            .for_each(|(_, node)| node.paused_until = until);
    }

    /// The process or its machine stops; it comes back after so many milliseconds, or never.
    pub(in crate::pg::simulation) fn stop(
        &mut self,
        server: DataServerId,
        power_loss: bool,
        restart_after: Option<u64>,
    ) {
        if !self.nodes[&server].alive {
            return;
        }
        for other in self.ids().into_iter().filter(|other| *other != server) {
            *self.links.entry(pair(server, other)).or_default() += 1;
            self.with_all(other, |replica, cx| replica.handle_link(cx, server, false));
        }
        let least = self.nodes[&server].store.least_kept(power_loss);
        let most = self.nodes[&server].store.submitted();
        let keep = least + self.rng.below(most - least + 1);
        let node = self.node(server);
        node.store.crash(keep);
        node.alive = false;
        node.replicas.clear();
        node.tokens.clear();
        node.requests.clear();
        node.syncs.clear();
        node.clean &= !power_loss;
        node.sync_scheduled = false;
        node.sync_wanted = 0;
        node.write_scheduled = false;
        node.room_scheduled = false;
        // Nothing that is under way may reach the next start.
        node.incarnation += 1;
        if let Some(restart_after) = restart_after {
            self.at(restart_after, Event::Restart(server));
        }
    }
}
