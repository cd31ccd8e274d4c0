//! Who learns of which map, and when.

use super::*;

impl World {
    /// Tells everyone about a newer map.
    pub(super) fn publish(&mut self, before: u64) {
        if self.meta.epoch != before {
            if self.trace {
                println!("{} configurations {:?}", self.now, self.meta.groups);
            }
            let map = Rc::new(self.meta.map());
            for client in 0..self.client_maps.len() {
                if self.faults.split {
                    let late = if self.rng.chance(300) { 3000 } else { 5 };
                    let delay = self.rng.below(late);
                    self.at(delay, Event::ClientMap { client, map: map.clone() });
                } else {
                    self.client_maps[client] = map.clone();
                }
            }
            for server in self.ids() {
                self.send_map(server);
            }
        }
    }

    pub(super) fn send_map(&mut self, server: DataServerId) {
        if self.is_lonely(server) {
            return;
        }
        let epoch = self.meta.epoch;
        let blocked = Rc::new(self.meta.blocked.clone());
        let view = |config: &PgConfig| GroupView {
            config: config.clone(),
            epoch: MapEpoch(epoch),
            blocked: blocked.clone(),
            size: self.meta.size,
            min_size: self.meta.min_size,
            chunk_size: CHUNK,
            pg_num: self.meta.pg_num,
            restored_at: self.meta.restored_at,
            ..GroupView::default()
        };
        let views = self.meta.groups.iter().map(|(pg, config)| (*pg, view(config))).collect();
        let incarnation = self.nodes[&server].incarnation;
        let delay = self.rng.latency();
        self.at(delay, Event::Map { server, incarnation, epoch, views });
    }

    pub(super) fn take_map(
        &mut self,
        server: DataServerId,
        incarnation: u64,
        epoch: u64,
        views: BTreeMap<PgId, GroupView>,
    ) {
        let node = self.node(server);
        if node.incarnation != incarnation || node.map_epoch >= epoch {
            return;
        }
        node.map_epoch = epoch;
        node.settle_leases();
        node.views = views.clone();
        for (pg, view) in views {
            if view.config.member(server).is_some() {
                self.ensure(server, pg);
            }
            self.with(server, pg, |replica, cx| replica.handle_view(cx, view));
        }
    }

    pub(super) fn tell_client(&mut self, client: usize, map: Rc<ClusterMap>) {
        if self.client_maps[client].epoch < map.epoch {
            self.client_maps[client] = map;
        }
    }
}
