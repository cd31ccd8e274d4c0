//! The newest cluster map that this process knows, and a way to wait for a newer one.

use protocol::map::{ClusterMap, MapDelta, MapGap};
use protocol::{MapEpoch, mutant};
use std::cell::RefCell;
use std::rc::Rc;
use tokio::sync::watch;

/// Shared by the metadata session, which feeds it, and the data client, which routes by it.
#[derive(Debug)]
pub struct MapHolder {
    map: RefCell<Rc<ClusterMap>>,
    epoch: watch::Sender<MapEpoch>,
}

impl Default for MapHolder {
    fn default() -> Self {
        Self { map: RefCell::default(), epoch: watch::Sender::new(MapEpoch(0)) }
    }
}

impl MapHolder {
    /// The map now; epoch 0 until the first one came.
    pub fn current(&self) -> Rc<ClusterMap> {
        self.map.borrow().clone()
    }

    /// The epoch now.
    pub fn epoch(&self) -> MapEpoch {
        self.map.borrow().epoch
    }

    /// Takes a whole map unless it is older.
    pub fn replace(&self, map: ClusterMap) {
        let epoch = map.epoch;
        let known = self.map.borrow().generation.number;
        if self.epoch() > MapEpoch(0) && known < map.generation.number {
            tracing::warn!(
                "the metadata was restored from a backup (generation {} now): what was done since that backup is gone, \
                 and handles that were open are of the time before",
                map.generation.number
            );
        }
        if epoch >= self.epoch() || mutant!("older-map-taken") {
            *self.map.borrow_mut() = Rc::new(map);
            self.epoch.send_replace(epoch);
        }
    }

    /// Takes a change.
    ///
    /// # Errors
    /// Changes are missing in between: the whole map is needed.
    pub fn apply(&self, delta: MapDelta) -> Result<(), MapGap> {
        Rc::make_mut(&mut self.map.borrow_mut()).apply(delta)?;
        self.epoch.send_replace(self.epoch());
        Ok(())
    }

    /// Resolves at every change from now on.
    pub fn changes(&self) -> watch::Receiver<MapEpoch> {
        self.epoch.subscribe()
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
            crush: None,
            pgs: vec![],
            blocked: None,
            removed_pools: None,
        }
    }

    #[test]
    fn older_maps_are_ignored_and_gaps_reported() {
        let holder = MapHolder::default();
        holder.replace(ClusterMap { epoch: MapEpoch(5), ..ClusterMap::default() });
        holder.replace(ClusterMap { epoch: MapEpoch(4), ..ClusterMap::default() });
        assert_eq!(holder.epoch(), MapEpoch(5));
        assert!(holder.apply(delta(5, 6)).is_ok());
        assert!(holder.apply(delta(7, 8)).is_err());
        assert_eq!(holder.epoch(), MapEpoch(6));
    }
}
