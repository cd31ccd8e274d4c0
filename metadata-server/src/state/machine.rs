//! The state machine of one server: layers, progress, and the committed cluster map kept decoded.

use super::key::{self, Key};
use super::layers::{Disk, Layers, StoreError, View, Writes};
use super::open::OpenTable;
use super::prep::{Prep, PrepError, load};
use super::record::{Counters, FORMAT_VERSION, Progress, encode};
use super::txn::Txn;
use bytes::Bytes;
use protocol::map::{ClusterMap, DataServerInfo, MapDelta, PgConfig, Pool};
use protocol::meta::Push;
use protocol::{DataServerId, MapEpoch, PgId, PoolId, SessionId, Timestamp};
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use zab::mutant;

/// See the module.
pub struct Machine<D> {
    layers: Layers<D>,
    /// Of the committed state.
    progress: Progress,
    /// Revision and time of the newest proposal, or of the committed state if there is none.
    proposed: (u64, Timestamp),
    /// Proposals under way, oldest first, with their wire form: what comes back from the log need not be decoded.
    /// Bounded as what the quorum has in flight is.
    under_way: VecDeque<(Bytes, Txn)>,
    map: ClusterMap,
    /// Leader memory; empty elsewhere.
    pub open: OpenTable,
}

/// Why there is no transaction, and the pushes that must go out all the same.
pub type Refusal = (PrepError, Vec<(SessionId, Push)>);

/// What applying a transaction means for the world outside.
#[derive(Debug, Default)]
pub struct Applied {
    /// To be sent by the leader.
    pub pushes: Vec<(SessionId, Push)>,
    /// The change of the map, if it changed.
    pub map: Option<MapDelta>,
    /// Sessions that were opened or ended.
    pub sessions: Vec<SessionId>,
    /// Whether the purge queue changed.
    pub purge: bool,
}

/// Why a transaction in the log cannot be applied: the log is not what this server's version wrote, or the
/// state is not what the log continues. Nothing may be guessed here; the server stops.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// It does not decode.
    #[error("transaction {0} does not decode: it was written by a newer version, or memory is damaged")]
    Undecodable(zab::Zxid),
    /// It is not the next one.
    #[error(
        "transaction {zxid} has revision {found} where {expected} follows: the log does not continue this state"
    )]
    Gap {
        /// Where.
        zxid: zab::Zxid,
        /// Its revision.
        found: u64,
        /// The state's next revision.
        expected: u64,
    },
}

impl<D: Disk> Machine<D> {
    /// The state that `disk` holds. Refuses any format but this version's: no release wrote an older one.
    pub fn open(disk: D) -> Result<Self, StoreError> {
        let layers = Layers::new(disk);
        let state = layers.committed();
        let format: u32 = load(&state, &key::system("format_version"))?.unwrap_or(FORMAT_VERSION);
        if format > FORMAT_VERSION {
            return Err(StoreError(format!(
                "it has format {format} and this version reads formats up to {FORMAT_VERSION}: install a newer zabfs"
            )));
        }
        if format < FORMAT_VERSION {
            return Err(StoreError(format!(
                "it has format {format}, which only versions before the first release wrote and this one does not read: \
                 copy the files with the version that wrote it into a new cluster"
            )));
        }
        let progress: Progress = load(&state, &key::system("progress"))?.unwrap_or_default();
        let map = load_map(&state)?;
        let proposed = (progress.revision, progress.time);
        let under_way = VecDeque::new();
        Ok(Self { layers, progress, proposed, under_way, map, open: OpenTable::default() })
    }

    /// Position and digest of the committed state.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// The committed map.
    pub fn map(&self) -> &ClusterMap {
        &self.map
    }

    /// Whether the cluster has its root and its first pool.
    pub fn is_formed(&self) -> bool {
        !self.map.pools.is_empty()
    }

    /// Inodes in use.
    pub fn inodes(&self) -> u64 {
        load::<Counters>(&self.layers.committed(), &key::system("counters"))
            .ok()
            .flatten()
            .map_or(0, |c| c.inodes)
    }

    /// The committed state.
    pub fn committed(&self) -> impl View + '_ {
        self.layers.committed()
    }

    /// The state with every proposal.
    pub fn proposed(&self) -> impl View + '_ {
        self.layers.proposed()
    }

    /// Whether proposals are under way.
    pub fn has_proposals(&self) -> bool {
        self.proposed.0 > self.progress.revision
    }

    /// Whether an uncommitted change stands on `key`.
    pub fn is_speculative(&self, key: &[u8]) -> bool {
        self.layers.is_speculative(key)
    }

    /// Bytes that a checkpoint would write.
    pub fn checkpoint_bytes(&self) -> usize {
        self.layers.committed_bytes()
    }

    /// Makes the next transaction. `clock` is the leader's; time never goes back. On refusal the pushes that
    /// must go out all the same come with the error.
    pub fn prepare<T>(
        &self,
        clock: Timestamp,
        decide: impl FnOnce(&mut Prep<'_>) -> Result<T, PrepError>,
    ) -> Result<(Txn, T), Refusal> {
        let view = self.layers.proposed();
        let next = if mutant!("time-goes-back") { clock } else { self.proposed.1.next().max(clock) };
        let (revision, time) = (self.proposed.0 + 1, next);
        let mut prep = Prep::new(&view, &self.open, revision, time);
        match decide(&mut prep) {
            Ok(value) => prep.finish().map(|txn| (txn, value)).map_err(|e| (e, Vec::new())),
            Err(error) => Err((error, prep.into_pushes())),
        }
    }

    /// The transaction was proposed as `wire`: later ones build on it.
    pub fn speculate(&mut self, txn: Txn, wire: Bytes) {
        self.layers.speculate(txn.revision, &txn.writes);
        self.proposed = (txn.revision, txn.time);
        self.under_way.push_back((wire, txn));
    }

    /// The role ended: proposals that did not commit so far are no longer ours.
    pub fn drop_proposals(&mut self) {
        self.layers.drop_speculative();
        self.under_way.clear();
        self.proposed = (self.progress.revision, self.progress.time);
        self.open = OpenTable::default();
    }

    /// Applies a committed transaction: the only way in which committed state changes.
    /// An empty one is the quorum's own business and moves only the position.
    pub fn apply(&mut self, zxid: zab::Zxid, bytes: &[u8]) -> Result<Applied, ApplyError> {
        if bytes.is_empty() {
            self.progress = Progress { zab_epoch: zxid.epoch, counter: zxid.counter, ..self.progress };
            return Ok(Applied::default());
        }
        let txn = self.decode(bytes).map_err(|_| ApplyError::Undecodable(zxid))?;
        let expected = self.progress.revision + 1;
        if txn.revision != expected {
            return Err(ApplyError::Gap { zxid, found: txn.revision, expected });
        }
        let applied = self.consequences(&txn).map_err(|_| ApplyError::Undecodable(zxid))?;
        self.progress = Progress {
            zab_epoch: zxid.epoch,
            counter: zxid.counter,
            revision: txn.revision,
            time: txn.time,
            digest: chain(self.progress.digest, bytes),
        };
        if self.proposed.0 < txn.revision {
            self.proposed = (txn.revision, txn.time);
        }
        self.layers.commit(txn.revision, txn.writes);
        if let Some(delta) = applied.map.clone() {
            self.map.apply(delta).expect("the map follows the same transactions");
        }
        Ok(Applied { pushes: txn.pushes, ..applied })
    }

    /// The transaction with this wire form: if it is the very bytes that were proposed here, the one at hand.
    fn decode(&mut self, bytes: &[u8]) -> Result<Txn, postcard::Error> {
        match self.under_way.pop_front() {
            Some((wire, txn)) if std::ptr::eq::<[u8]>(&*wire, bytes) => Ok(txn),
            _ => {
                self.under_way.clear();
                Txn::decode(bytes)
            }
        }
    }

    /// Starts a checkpoint: what to write, ending exactly at the current progress.
    pub fn freeze(&mut self) -> (Arc<Writes>, Progress) {
        let record = Writes::from([(key::system("progress"), Some(encode(&self.progress)))]);
        self.layers.commit(0, record);
        let mut writes = self.layers.freeze();
        if mutant!("checkpoint-without-sessions") {
            Arc::make_mut(&mut writes).retain(|key, _| key.first() != Some(&key::SESSION));
        }
        (writes, self.progress)
    }

    /// Whether a checkpoint is under way.
    pub fn is_freezing(&self) -> bool {
        self.layers.is_freezing()
    }

    /// Ends a checkpoint. Returns what was frozen, because freeing it takes a while.
    pub fn thaw(&mut self, disk: D) -> Option<Arc<Writes>> {
        self.layers.thaw(disk)
    }

    fn consequences(&self, txn: &Txn) -> Result<Applied, postcard::Error> {
        let mut applied = Applied::default();
        let mut delta = unchanged(self.map.epoch);
        for (key, value) in &txn.writes {
            match key.first() {
                Some(&key::SESSION) => applied.sessions.extend(key::number_at(key, 1).map(SessionId)),
                Some(&key::PURGE) => applied.purge = true,
                Some(&key::PG | &key::MAP) => map_change(&self.map, &mut delta, key, value.as_ref())?,
                Some(&key::SYSTEM) if *key == key::system("map_epoch") => {
                    delta.to = decode(value.as_ref())?.unwrap_or(delta.to);
                }
                _ => {}
            }
        }
        applied.map = (delta.to > delta.from).then_some(delta);
        Ok(applied)
    }
}

fn set<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
}

fn decode<T: DeserializeOwned>(value: Option<&Bytes>) -> Result<Option<T>, postcard::Error> {
    value.map(|bytes| postcard::from_bytes(bytes)).transpose()
}

/// Digest of everything up to and including `bytes`.
fn chain(digest: u64, bytes: &[u8]) -> u64 {
    let sum = u64::from(crc32c::crc32c(bytes)) << 32 | bytes.len() as u64;
    (digest.rotate_left(17) ^ sum).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The whole map out of its tables.
fn load_map(state: &dyn View) -> Result<ClusterMap, StoreError> {
    let epoch: MapEpoch = load(state, &key::system("map_epoch"))?.unwrap_or_default();
    let mut rows = state.scan(&[key::MAP], &[key::MAP + 1], usize::MAX)?;
    rows.extend(state.scan(&[key::PG], &[key::PG + 1], usize::MAX)?);
    let mut map = ClusterMap::default();
    let mut delta = unchanged(map.epoch);
    for (key, value) in rows {
        map_change(&map, &mut delta, &key, Some(&value))
            .map_err(|e| StoreError(format!("the record under key {key:02x?} does not decode: {e}")))?;
    }
    // Whatever the epoch is: an empty map takes this as its first change.
    delta.to = MapEpoch(1);
    map.apply(delta).expect("it starts at the epoch of the empty map");
    map.epoch = epoch;
    map.generation = load(state, &key::system("generation"))?.unwrap_or_default();
    Ok(map)
}

/// A change of nothing.
fn unchanged(epoch: MapEpoch) -> MapDelta {
    MapDelta {
        from: epoch,
        to: epoch,
        data_servers: None,
        pools: None,
        crush: None,
        pgs: Vec::new(),
        blocked: None,
        removed_pools: None,
    }
}

/// Adds what one row of the map's tables says.
fn map_change(
    map: &ClusterMap,
    delta: &mut MapDelta,
    key: &Key,
    value: Option<&Bytes>,
) -> Result<(), postcard::Error> {
    if key[0] == key::PG {
        if let (Some(id), Some(config)) = (key::number_at(key, 1), decode::<PgConfig>(value)?) {
            delta.pgs.push((PgId::from_u64(id), config));
        }
        return Ok(());
    }
    let id = key::number_at(key, 2).unwrap_or_default();
    match key.get(1) {
        Some(&key::MAP_SERVER) => {
            let servers = delta.data_servers.get_or_insert_with(|| map.data_servers.clone());
            set(servers, DataServerId(id as u32), decode::<DataServerInfo>(value)?);
        }
        Some(&key::MAP_POOL) => {
            let pools = delta.pools.get_or_insert_with(|| map.pools.clone());
            set(pools, PoolId(id as u32), decode::<Pool>(value)?);
        }
        Some(&key::MAP_POOL_REMOVED) => {
            delta.removed_pools.get_or_insert_with(|| map.removed_pools.clone()).insert(PoolId(id as u32));
        }
        Some(&key::MAP_BLOCKED) => {
            let blocked = delta.blocked.get_or_insert_with(|| map.blocked.clone());
            set(blocked, SessionId(id), decode::<MapEpoch>(value)?);
        }
        Some(&key::MAP_CRUSH) => {
            delta.crush = value.map(|text| String::from_utf8_lossy(text).into_owned());
        }
        _ => {}
    }
    Ok(())
}
