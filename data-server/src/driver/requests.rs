//! Requests of clients and of the metadata leader: who may ask what, and to which group it goes.

use super::{Driver, WRITES_BYTES_MAX};
use crate::store::{ObjectInfo, ObjectKey};
use bytes::Bytes;
use protocol::data::{
    DataError, DataReply, DataRequest, DataResponse, IO_MAX, LIST_MAX, ListedObject, ObjectContext,
};
use protocol::identity::{PeerIdentity, Role};
use protocol::split::Extent;
use protocol::{InodeId, PgId, PoolId};
use std::rc::Rc;
use std::time::Duration;

/// How long a request waits for the map that it presupposes; then the client asks again.
const MAP_PATIENCE: Duration = Duration::from_secs(2);
/// How often the map is asked for meanwhile.
const MAP_AGAIN: Duration = Duration::from_millis(250);

impl Driver {
    /// Answers one request.
    pub async fn answer(
        self: Rc<Self>,
        peer: &PeerIdentity,
        request: DataRequest,
        payload: Bytes,
    ) -> (DataResponse, Bytes) {
        if let Err(error) = authorize(peer, &request).and_then(|()| check(&request, &payload)) {
            return (Err(error), Bytes::new());
        }
        if let DataRequest::Sync { pgs } = request {
            return (self.sync(pgs).await, Bytes::new());
        }
        if let DataRequest::Scrub { pgs, deep } = request {
            return (self.start_scrubs(&pgs, deep), Bytes::new());
        }
        if let DataRequest::List { pg, pg_num, after, limit } = request {
            return match self.list(Extent { pg, pg_num }, after, limit) {
                Ok((reply, objects)) => (Ok(reply), objects),
                Err(error) => (Err(error), Bytes::new()),
            };
        }
        if let Err(error) = self.catch_up(&request).await {
            return (Err(error), Bytes::new());
        }
        let pg = match self.group_of(&request) {
            Ok(pg) => pg,
            Err(error) => return (Err(error), Bytes::new()),
        };
        let bytes = payload.len();
        if bytes > 0 && self.writing_bytes.get() + bytes > WRITES_BYTES_MAX {
            return (Err(DataError::Overloaded), Bytes::new());
        }
        self.writing_bytes.set(self.writing_bytes.get() + bytes);
        let answer = self.submit(pg, request, payload).await;
        self.writing_bytes.set(self.writing_bytes.get() - bytes);
        answer.unwrap_or_else(|_| (Err(self.not_primary(pg)), Bytes::new()))
    }

    /// The client knows of a fenced session: so must this server. It waits here and not in the group's queue, where
    /// one client that names an epoch which never comes would keep all others waiting.
    async fn catch_up(&self, request: &DataRequest) -> Result<(), DataError> {
        let fence = match request {
            DataRequest::Read { context, .. }
            | DataRequest::Write { context, .. }
            | DataRequest::Zero { context, .. } => context.fence,
            DataRequest::Sync { .. }
            | DataRequest::TrimInode { .. }
            | DataRequest::Scrub { .. }
            | DataRequest::List { .. } => {
                return Ok(());
            }
        };
        let newer = async {
            while self.map_epoch() < fence {
                self.map_needed.notify_one();
                let mut epoch = self.epoch.subscribe();
                // Asked for again after a while: the question may have been lost with a leader.
                let _ = tokio::time::timeout(MAP_AGAIN, epoch.wait_for(|epoch| *epoch >= fence)).await;
            }
        };
        tokio::time::timeout(MAP_PATIENCE, newer).await.map_err(|_| {
            DataError::Unavailable(format!(
                "the cluster map {fence} that the request presupposes did not come from the metadata cluster"
            ))
        })
    }

    async fn sync(self: &Rc<Self>, pgs: Vec<Extent>) -> DataResponse {
        // All of them are asked before the first is waited for: one sync of the journal covers all.
        let asked: Vec<_> = pgs
            .into_iter()
            .map(|extent| {
                let sync = DataRequest::Sync { pgs: vec![extent] };
                (extent.pg, self.submit(extent.pg, sync, Bytes::new()))
            })
            .collect();
        for (pg, answered) in asked {
            match answered.await {
                Ok((response, _)) => {
                    response?;
                }
                Err(_) => return Err(self.not_primary(pg)),
            }
        }
        Ok(DataReply::Synced)
    }

    /// Objects of a group that this server serves.
    fn list(
        &self,
        Extent { pg, pg_num }: Extent,
        after: Option<(InodeId, u32)>,
        limit: u32,
    ) -> Result<(DataReply, Bytes), DataError> {
        if !self.groups.borrow().get(&pg).is_some_and(|r| r.is_active() && r.holds_under(pg_num)) {
            return Err(self.not_primary(pg));
        }
        let limit = limit.clamp(1, LIST_MAX) as usize;
        let after = after.map(|(inode, chunk)| (inode.0, chunk));
        let rows = self.store.list(pg.to_u64(), after, limit);
        let rows = rows.map_err(|error| DataError::Unavailable(error.to_string()))?;
        let end = rows.len() < limit;
        let shown = |(key, info): (ObjectKey, ObjectInfo)| ListedObject {
            inode: InodeId(key.inode),
            chunk: key.chunk,
            size: info.size,
            allocated: info.allocated_bytes,
            truncate_seq: info.truncate_seq,
        };
        let objects: Vec<ListedObject> = rows.into_iter().map(shown).collect();
        let encoded = postcard::to_stdvec(&objects);
        let encoded = Bytes::from(encoded.map_err(|error| DataError::Unavailable(error.to_string()))?);
        Ok((DataReply::Objects { crc: crc32c::crc32c(&encoded), end }, encoded))
    }

    fn not_primary(&self, pg: PgId) -> DataError {
        let map = self.map.borrow();
        let config = map.as_ref().and_then(|map| map.pgs.get(&pg));
        DataError::NotPrimary { version: config.map_or(0, |config| config.version) }
    }

    fn group_of(&self, request: &DataRequest) -> Result<PgId, DataError> {
        let map = self.map.borrow();
        let Some(map) = map.as_ref() else {
            return Err(DataError::Unavailable("this data server has no cluster map yet".into()));
        };
        let pool = |id: PoolId| {
            map.pools.get(&id).ok_or_else(|| DataError::Malformed(format!("there is no pool {id}")))
        };
        match request {
            DataRequest::Read { context, offset, length } => {
                let pool = pool(context.object.pool)?;
                check_range(*offset, *length, pool.chunk_size)?;
                Ok(context.object.pg(context.pg_num))
            }
            DataRequest::Zero { context, offset, length, .. } => {
                let pool = pool(context.object.pool)?;
                check_end(*offset, *length, pool.chunk_size)?;
                Ok(context.object.pg(context.pg_num))
            }
            DataRequest::Write { context, .. } => {
                pool(context.object.pool)?;
                Ok(context.object.pg(context.pg_num))
            }
            DataRequest::TrimInode { pg, .. } => Ok(*pg),
            DataRequest::List { pg, .. } => Ok(*pg),
            DataRequest::Sync { .. } | DataRequest::Scrub { .. } => {
                Err(DataError::Malformed("a request for several groups has no one group".into()))
            }
        }
    }
}

fn authorize(peer: &PeerIdentity, request: &DataRequest) -> Result<(), DataError> {
    let changes = matches!(request, DataRequest::Write { .. } | DataRequest::Zero { .. });
    match (peer.role, request) {
        (Role::Metadata, DataRequest::TrimInode { .. }) => Ok(()),
        (_, DataRequest::TrimInode { .. }) => {
            tracing::warn!("refused {peer}: only metadata servers cut and delete objects");
            Err(DataError::Refused("only metadata servers cut and delete objects".into()))
        }
        (Role::Admin, DataRequest::Scrub { .. } | DataRequest::List { .. }) => Ok(()),
        (_, DataRequest::List { .. }) => {
            tracing::warn!("refused {peer}: only administrators list objects");
            Err(DataError::Refused("only administrators list objects".into()))
        }
        (_, DataRequest::Scrub { .. }) => {
            tracing::warn!("refused {peer}: only administrators begin scrubs");
            Err(DataError::Refused("only administrators begin scrubs".into()))
        }
        (Role::Client | Role::Admin, _) if changes && peer.limits.read_only => {
            tracing::warn!("refused a write of {peer}: its certificate is read-only");
            Err(DataError::Refused("the certificate is read-only".into()))
        }
        (Role::Client | Role::Admin, _) => Ok(()),
        _ => {
            tracing::warn!("refused {peer}: only clients read and write objects");
            Err(DataError::Refused("only clients read and write objects".into()))
        }
    }
}

/// What can be refused without knowing the map.
fn check(request: &DataRequest, payload: &Bytes) -> Result<(), DataError> {
    let context: Option<&ObjectContext> = match request {
        DataRequest::Read { context, .. } | DataRequest::Zero { context, .. } => Some(context),
        // The store compares the checksum.
        DataRequest::Write { context, .. } => {
            if payload.is_empty() || payload.len() > IO_MAX as usize {
                return Err(DataError::Malformed(format!("a write of {} bytes", payload.len())));
            }
            Some(context)
        }
        _ => None,
    };
    match context {
        Some(context) if context.truncations.len() > 4 * protocol::attr::TRUNCATIONS_MAX => {
            Err(DataError::Malformed(format!("{} truncations", context.truncations.len())))
        }
        _ => Ok(()),
    }
}

fn check_range(offset: u32, length: u32, chunk_size: u32) -> Result<(), DataError> {
    if length > IO_MAX {
        return Err(DataError::Malformed(format!("a read of {length} bytes, more than {IO_MAX}")));
    }
    check_end(offset, length, chunk_size)
}

fn check_end(offset: u32, length: u32, chunk_size: u32) -> Result<(), DataError> {
    match offset.checked_add(length) {
        Some(end) if end <= chunk_size => Ok(()),
        _ => Err(DataError::Malformed(format!("{length} bytes at {offset} reach beyond a chunk"))),
    }
}
