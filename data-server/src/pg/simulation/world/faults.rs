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
        let kinds = if self.faults.split { 15 } else { 11 + u64::from(self.faults.resize) };
        let kind = self.rng.below(kinds);
        if self.trace {
            println!("{} fault {kind} {one} {other}", self.now);
        }
        match kind {
            0 => {
                let for_ms = 20 + self.rng.below(3000);
                self.stop(one, false, for_ms);
            }
            1 => {
                let for_ms = 20 + self.rng.below(100);
                self.stop(one, false, for_ms);
            }
            2 if self.faults.power_loss && self.may_lose_power(one) => {
                let for_ms = 20 + self.rng.below(3000);
                self.stop(one, true, for_ms);
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
                let size = 2 + self.rng.below(ids.len() as u64 - 1);
                let min_size = 2 + self.rng.below(size - 1);
                let before = self.meta.epoch;
                self.meta.set_pool(size as usize, min_size as usize);
                self.publish(before);
            }
            12 | 13 if self.faults.split => {
                let more = 1 + self.rng.below(u64::from(self.meta.pg_num)) as u32;
                self.grow(more);
            }
            14 => {
                let before = self.meta.epoch;
                let pg = self.any_group();
                self.meta.migrate(pg, one);
                self.publish(before);
            }
            10 => {
                if let Some(client) = self.clients.to_fence(&mut self.rng) {
                    self.fence(client);
                }
            }
            _ => {}
        }
        let delay = 1 + self.rng.below(2 * self.faults.every_ms);
        self.at(delay, Event::Fault);
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

    /// One machine at a time, with no other fault that takes bytes: what was not synced survives any one server,
    /// not any two.
    fn may_lose_power(&self, server: DataServerId) -> bool {
        let intact = |(id, node): (&DataServerId, &Node)| {
            let complete = node.replicas.values().all(Replica::is_complete);
            (*id == server || (node.clean && complete)) && node.store.damaged.is_empty()
        };
        let backed = |config: &PgConfig| {
            let others = config.certain().filter(|m| m.server != server);
            config.in_sync.iter().all(|m| !m.uncertain) && others.count() >= 1
        };
        self.meta.groups.values().all(backed) && self.nodes.iter().all(intact)
    }

    /// Damages an object on one server, if all others in sync are intact.
    fn damage(&mut self, server: DataServerId) {
        let intact = self.nodes.iter().all(|(id, node)| *id == server || node.store.damaged.is_empty());
        let uncertain = self.nodes.values().any(|node| !node.clean);
        if !intact || uncertain || !self.meta.is_healthy() {
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

    pub(in crate::pg::simulation) fn stop(
        &mut self,
        server: DataServerId,
        power_loss: bool,
        restart_after: u64,
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
        node.syncs.clear();
        node.clean &= !power_loss;
        node.sync_scheduled = false;
        node.write_scheduled = false;
        node.room_scheduled = false;
        // Nothing that is under way may reach the next start.
        node.incarnation += 1;
        self.at(restart_after, Event::Restart(server));
    }
}
