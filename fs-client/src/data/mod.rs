//! Data operations: routed by the cluster map, retried until they succeed or cannot.
//!
//! Every operation goes to the primary of its object's placement group. When the primary changes, is gone, or
//! does not serve, the operation waits and is sent again under the same [`RequestId`], so that it takes effect
//! once. An operation belongs to the session (*generation*) that it began in and ends with it.
//!
//! Bounds: [`IN_FLIGHT_BYTES_MAX`] bytes of payload in flight (asked for or sent), sequence numbers spanning
//! [`SPAN_MAX`], one connection per data server. Beyond them operations wait.

mod attempt;
pub mod bench;
mod error;
pub mod plan;
mod servers;

pub use error::DataFailure;
pub use plan::{ChunkedFile, Piece};

use crate::map_holder::MapHolder;
use crate::meta::MetaClient;
use crate::sequence::SequenceWindow;
use bytes::Bytes;
use protocol::data::{DataReply, DataRequest, ObjectContext};
use protocol::map::ClusterMap;
use protocol::split::Extent;
use protocol::transport::Endpoint;
use protocol::{DataServerId, MapEpoch, ObjectId, PoolId, RequestId, Truncation, mutant};
use servers::Servers;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;

/// Payload bytes in flight; further operations wait.
pub const IN_FLIGHT_BYTES_MAX: usize = 64 << 20;
/// Most sequence numbers from the oldest unfinished operation to the newest.
pub const SPAN_MAX: u64 = 4096;
/// Reads whose bytes arrive damaged are repeated this often.
const DAMAGED_READS_MAX: u32 = 3;

/// The client of all data servers.
pub struct DataClient {
    meta: Rc<MetaClient>,
    map: Rc<MapHolder>,
    servers: Servers,
    window: RefCell<Window>,
    progress: Notify,
    in_flight_kib: Semaphore,
    /// Groups that this mount wrote to since they were last synced.
    unsynced: RefCell<BTreeSet<Extent>>,
}

struct Window {
    generation: u64,
    numbers: SequenceWindow,
}

/// What a data operation is based on.
#[derive(Clone, Debug)]
pub struct Basis {
    /// The session's generation when the operation began.
    pub generation: u64,
    /// The file's truncations, of the view at hand.
    pub truncations: Vec<Truncation>,
}

impl DataClient {
    /// A client that routes by `map` and acts for `meta`'s session.
    pub fn new(endpoint: Endpoint, meta: Rc<MetaClient>, map: Rc<MapHolder>) -> Rc<Self> {
        Rc::new(Self {
            window: RefCell::new(Window {
                generation: meta.generation(),
                numbers: SequenceWindow::new(SPAN_MAX),
            }),
            meta,
            map,
            servers: Servers::new(endpoint),
            progress: Notify::new(),
            in_flight_kib: Semaphore::new(IN_FLIGHT_BYTES_MAX >> 10),
            unsynced: RefCell::default(),
        })
    }

    #[cfg(test)]
    pub(crate) fn meta(&self) -> &Rc<MetaClient> {
        &self.meta
    }

    /// The map now.
    pub fn map(&self) -> Rc<ClusterMap> {
        self.map.current()
    }

    /// A pool of the map; waits for the first map.
    pub async fn pool(&self, pool: PoolId) -> protocol::map::Pool {
        let mut changes = self.map.changes();
        loop {
            changes.mark_unchanged();
            if let Some(pool) = self.map.current().pools.get(&pool) {
                return pool.clone();
            }
            // The sender lives in `self.map`.
            let _ = changes.changed().await;
        }
    }

    /// Reads one piece. What the object does not have is missing at the end of the answer.
    pub async fn read(self: &Rc<Self>, basis: &Basis, piece: Piece) -> Result<Bytes, DataFailure> {
        let _room = self.room(piece.length).await;
        let context = self.context(basis, piece.object);
        let request = DataRequest::Read { context, offset: piece.offset, length: piece.length };
        for _ in 0..DAMAGED_READS_MAX {
            let target = attempt::Target::Object(piece.object);
            let (reply, payload) = self.execute(basis.generation, target, &request, Bytes::new()).await?;
            match reply {
                DataReply::Data { crc }
                    if crc == crc32c::crc32c(&payload) || mutant!("damage-on-the-way-is-read") =>
                {
                    return Ok(payload.slice(..payload.len().min(piece.length as usize)));
                }
                DataReply::Data { .. } => {
                    tracing::warn!(object = %piece.object, "bytes were damaged on their way from a data server; reading again");
                }
                _ => return Err(DataFailure::Rejected("a read was answered by something else".to_owned())),
            }
        }
        Err(DataFailure::Corrupt("what data servers send does not match its checksum".to_owned()))
    }

    /// Writes one piece. Returns the change of allocated bytes.
    pub async fn write(
        self: &Rc<Self>,
        basis: &Basis,
        piece: Piece,
        data: Bytes,
    ) -> Result<i64, DataFailure> {
        let _room = self.room(piece.length).await;
        let crc = crc32c::crc32c(&data);
        self.change(basis, piece, data, |request, context| DataRequest::Write {
            request,
            context,
            offset: piece.offset,
            crc,
        })
        .await
    }

    /// Makes one piece zero. Returns the change of allocated bytes.
    pub async fn zero(self: &Rc<Self>, basis: &Basis, piece: Piece) -> Result<i64, DataFailure> {
        self.change(basis, piece, Bytes::new(), |request, context| DataRequest::Zero {
            request,
            context,
            offset: piece.offset,
            length: piece.length,
        })
        .await
    }

    /// Returns when everything that was acknowledged in these groups is on stable storage of all in-sync replicas.
    pub async fn sync(self: &Rc<Self>, generation: u64, groups: BTreeSet<Extent>) -> Result<(), DataFailure> {
        let mut waiting = groups;
        // A group whose primary changes meanwhile is asked for again, alone, and one that is split meanwhile with what
        // was split off: rounds end when none is left.
        while !waiting.is_empty() {
            waiting = self.successors(&waiting);
            let noted = self.unsynced.take();
            self.unsynced.replace(self.successors(&noted));
            let mut syncing = JoinSet::new();
            for pgs in self.by_primary(&waiting).into_values() {
                let client = self.clone();
                syncing.spawn_local(async move { client.sync_some(generation, pgs).await });
            }
            while let Some(ended) = syncing.join_next().await {
                let synced = ended.map_err(|error| DataFailure::Rejected(error.to_string()))??;
                waiting.retain(|pg| !synced.contains(pg));
                if mutant!("fsync-waits-for-one-group") {
                    waiting.clear();
                    syncing.detach_all();
                }
            }
        }
        Ok(())
    }

    /// Syncs every group that this mount wrote to since it was last synced.
    pub async fn sync_all(self: &Rc<Self>, generation: u64) -> Result<(), DataFailure> {
        let groups = self.unsynced.borrow().clone();
        self.sync(generation, groups).await
    }

    /// Groups that this mount wrote to since they were last synced.
    pub fn unsynced_groups(&self) -> usize {
        self.unsynced.borrow().len()
    }

    /// The groups that a file of `size` bytes can have chunks in.
    pub fn groups_of(&self, file: &ChunkedFile, size: u64) -> BTreeSet<Extent> {
        let map = self.map.current();
        let Some(pg_num) = map.pools.get(&file.pool).map(|pool| pool.pg_num) else {
            return BTreeSet::new();
        };
        let chunks = file.chunks(size);
        if chunks >= u64::from(pg_num) * 8 {
            // Practically all of them, without hashing every chunk of a huge sparse file.
            return map.extents(file.pool).collect();
        }
        (0..chunks).filter_map(|index| extent_of(&map, file.object(index))).collect()
    }

    /// Where the objects of these groups are now.
    fn successors(&self, extents: &BTreeSet<Extent>) -> BTreeSet<Extent> {
        let map = self.map.current();
        extents.iter().flat_map(|extent| map.successors(*extent)).collect()
    }

    async fn change(
        self: &Rc<Self>,
        basis: &Basis,
        piece: Piece,
        data: Bytes,
        request: impl FnOnce(RequestId, ObjectContext) -> DataRequest,
    ) -> Result<i64, DataFailure> {
        let number = self.begin(basis.generation).await?;
        let request = request(number.request, self.context(basis, piece.object));
        let target = attempt::Target::Object(piece.object);
        let answer = self.execute(basis.generation, target, &request, data).await;
        // Only now: a sync that began before the acknowledgement need not cover it.
        if !mutant!("fsync-forgets-a-group") || piece.object.chunk == 0 {
            self.note_unsynced(piece.object);
        }
        match answer? {
            (DataReply::Written { allocated }, _) => Ok(allocated),
            _ => Err(DataFailure::Rejected("a write was answered by something else".to_owned())),
        }
    }

    /// Syncs groups that had one primary when this was decided. Returns those that are synced: without those that were
    /// split meanwhile.
    async fn sync_some(
        self: Rc<Self>,
        generation: u64,
        pgs: Vec<Extent>,
    ) -> Result<Vec<Extent>, DataFailure> {
        // What is written from here on is noted again.
        self.unsynced.borrow_mut().retain(|pg| !pgs.contains(pg));
        let target = match pgs.as_slice() {
            [] => return Ok(pgs),
            [pg] => attempt::Target::Group(*pg),
            _ => attempt::Target::GroupsOnce(pgs.clone()),
        };
        let request = DataRequest::Sync { pgs: pgs.clone() };
        let mut result = self.execute(generation, target, &request, Bytes::new()).await.map(|_| pgs.clone());
        if result == Err(DataFailure::Scattered) {
            result = self.sync_each(generation, &pgs).await;
        }
        let synced = result.as_deref().unwrap_or_default();
        let left = pgs.iter().copied().filter(|pg| !synced.contains(pg));
        if result.is_ok() || !mutant!("failed-sync-is-forgotten") {
            self.unsynced.borrow_mut().extend(left);
        }
        result
    }

    async fn sync_each(&self, generation: u64, pgs: &[Extent]) -> Result<Vec<Extent>, DataFailure> {
        let forgotten = usize::from(mutant!("scattered-sync-forgets-a-group")).min(pgs.len());
        let mut synced = pgs[..forgotten].to_vec();
        for pg in &pgs[forgotten..] {
            let request = DataRequest::Sync { pgs: vec![*pg] };
            let target = attempt::Target::Group(*pg);
            match self.execute(generation, target, &request, Bytes::new()).await {
                Ok(_) => synced.push(*pg),
                Err(DataFailure::Scattered) => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(synced)
    }

    fn by_primary(&self, groups: &BTreeSet<Extent>) -> BTreeMap<Option<DataServerId>, Vec<Extent>> {
        let map = self.map.current();
        let mut by_primary: BTreeMap<_, Vec<Extent>> = BTreeMap::new();
        for extent in groups {
            let primary = map.pgs.get(&extent.pg).and_then(|config| config.primary);
            by_primary.entry(primary).or_default().push(*extent);
        }
        by_primary
    }

    fn note_unsynced(&self, object: ObjectId) {
        self.unsynced.borrow_mut().extend(extent_of(&self.map.current(), object));
    }

    fn context(&self, basis: &Basis, object: ObjectId) -> ObjectContext {
        let pg_num = extent_of(&self.map.current(), object).map_or(0, |extent| extent.pg_num);
        ObjectContext {
            object,
            pg_num,
            truncations: basis.truncations.clone(),
            fence: if mutant!("fence-not-shown") { MapEpoch(0) } else { self.meta.fence() },
        }
    }

    async fn room(&self, bytes: u32) -> tokio::sync::SemaphorePermit<'_> {
        let kib = bytes.div_ceil(1024);
        self.in_flight_kib.acquire_many(kib).await.expect("this semaphore is never closed")
    }

    /// Takes the next sequence number of the session.
    async fn begin(self: &Rc<Self>, generation: u64) -> Result<Numbered, DataFailure> {
        loop {
            let progress = self.progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            if self.meta.generation() != generation && !mutant!("old-writes-under-a-new-session") {
                return Err(DataFailure::SessionLost);
            }
            let Some(session) = self.meta.session() else { return Err(DataFailure::SessionLost) };
            {
                let mut window = self.window.borrow_mut();
                if window.generation != generation {
                    *window = Window { generation, numbers: SequenceWindow::new(SPAN_MAX) };
                }
                if let Some(sequence) = window.numbers.begin() {
                    let low_water = window.numbers.low_water();
                    let request = RequestId { session: session.id, sequence, low_water };
                    return Ok(Numbered { client: self.clone(), generation, request });
                }
            }
            let mut generations = self.meta.generations();
            tokio::select! {
                () = progress => {}
                _ = generations.changed() => {}
            }
        }
    }
}

/// The group that holds an object.
fn extent_of(map: &ClusterMap, object: ObjectId) -> Option<Extent> {
    map.locate(object).map(|(pg, config)| Extent { pg, pg_num: config.pg_num })
}

/// A sequence number in use; finished when dropped, with whatever outcome: an operation is dropped only when it
/// will not be sent again.
struct Numbered {
    client: Rc<DataClient>,
    generation: u64,
    request: RequestId,
}

impl Drop for Numbered {
    fn drop(&mut self) {
        let mut window = self.client.window.borrow_mut();
        if window.generation == self.generation {
            window.numbers.finish(self.request.sequence);
        }
        drop(window);
        self.client.progress.notify_waiters();
    }
}

#[cfg(test)]
pub(crate) mod tests;
