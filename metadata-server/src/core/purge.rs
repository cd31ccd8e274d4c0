//! Which objects of truncated and deleted files are to be cut next.
//!
//! The queue is replicated. A pass goes through it once, in order of inodes, one item at a time; what fails stays in
//! the queue for the next pass.

use super::flow::Asker;
use super::{Output, Turn};
use crate::state::key;
use crate::state::layers::{Disk, View};
use crate::state::record::Purge;
use protocol::data::DataRequest;
use protocol::map::ClusterMap;
use protocol::split::Extent;
use protocol::{DataServerId, InodeId};
use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;

/// Items read from the queue at a time.
const BATCH: usize = 16;
/// Between two passes through the queue, if nothing comes into it, in milliseconds.
const INTERVAL_MS: u64 = 1_000;

/// Requests to data servers that cut one inode's objects. All of them have to succeed.
#[derive(Clone, Debug, PartialEq)]
pub struct Trim {
    /// To be handed back.
    pub number: u64,
    /// Whom to ask what.
    pub requests: Vec<(DataServerId, SocketAddr, DataRequest)>,
}

/// Objects were not cut.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct TrimFailed {
    /// The data server that did not answer at all, if that is why: nothing else waits for it in this pass.
    pub silent: Option<DataServerId>,
    /// For people.
    pub why: String,
}

/// Where the pass is.
#[derive(Default)]
pub(super) struct Purger {
    /// The next pass, while none is under way.
    at: u64,
    /// Something came into the queue since this pass began.
    is_woken: bool,
    is_busy: bool,
    /// The item whose objects are being cut.
    cutting: Option<(u64, InodeId, Purge)>,
    next_number: u64,
    /// Read from the queue, not yet worked on.
    items: VecDeque<(InodeId, Purge)>,
    /// Where to read on.
    from: Vec<u8>,
    /// Data servers that did not answer in this pass.
    silent: BTreeSet<DataServerId>,
}

impl Purger {
    /// A new leadership begins with a pass.
    pub(super) fn begin(&mut self) {
        *self = Self { next_number: self.next_number, ..Self::default() };
    }

    /// Something came into the queue.
    pub(super) fn wake(&mut self) {
        (self.at, self.is_woken) = (0, true);
    }

    pub(super) fn next_deadline(&self) -> Option<u64> {
        (!self.is_busy).then_some(self.at)
    }
}

impl<D: Disk, T> Turn<'_, D, T> {
    /// Begins a pass.
    pub(super) fn begin_purge(&mut self) {
        let purger = &mut self.core.purger;
        (purger.is_busy, purger.is_woken) = (true, false);
        purger.silent.clear();
        purger.items.clear();
        purger.from = vec![key::PURGE];
        self.purge_next();
    }

    /// Goes on with the next item that can be worked on, or ends the pass.
    pub(super) fn purge_next(&mut self) {
        while self.core.is_leader()
            && let Some((inode, purge)) = self.next_item()
        {
            match self.trim_requests(inode, &purge) {
                Ok(requests) => {
                    let purger = &mut self.core.purger;
                    purger.next_number += 1;
                    let number = purger.next_number;
                    purger.cutting = Some((number, inode, purge));
                    return self.core.outputs.push_back(Output::Trim(Trim { number, requests }));
                }
                Err(why) => tracing::debug!("objects of inode {inode} are cut later: {why}"),
            }
        }
        let purger = &mut self.core.purger;
        purger.is_busy = false;
        purger.at = if purger.is_woken { 0 } else { self.now.ms + INTERVAL_MS };
    }

    fn next_item(&mut self) -> Option<(InodeId, Purge)> {
        if self.core.purger.items.is_empty() {
            let rows = self.core.machine.committed().scan(&self.core.purger.from, &[key::PURGE + 1], BATCH);
            let rows = self.core.stored(rows).ok()?;
            let (last, _) = rows.last()?;
            self.core.purger.from = key::purge(InodeId(key::number_at(last, 1)? + 1));
            let item = |(k, v): &(key::Key, bytes::Bytes)| {
                Some((InodeId(key::number_at(k, 1)?), postcard::from_bytes(v).ok()?))
            };
            self.core.purger.items = rows.iter().filter_map(item).collect();
        }
        self.core.purger.items.pop_front()
    }

    fn trim_requests(
        &self,
        inode: InodeId,
        purge: &Purge,
    ) -> Result<Vec<(DataServerId, SocketAddr, DataRequest)>, String> {
        let map = self.core.machine.map();
        let pool = map.pools.get(&purge.pool).ok_or("its pool is gone")?;
        let floor = purge.truncations.last().map_or(0, |t| t.seq);
        let request = |Extent { pg, pg_num }: Extent| {
            let (server, address) =
                map.primary_address(pg).ok_or_else(|| format!("group {pg} has no primary"))?;
            if self.core.purger.silent.contains(&server) {
                return Err(format!("data server {server} did not answer before"));
            }
            let (truncations, chunk_size) = (purge.truncations.clone(), pool.chunk_size);
            Ok((
                server,
                address,
                DataRequest::TrimInode { pg, pg_num, inode, chunk_size, truncations, floor },
            ))
        };
        groups(map, inode, purge).into_iter().map(request).collect()
    }

    pub(super) fn trimmed(&mut self, number: u64, result: Result<(), TrimFailed>) {
        // The answer to what an earlier leadership asked is of no use.
        if !self.core.is_leader() || self.core.purger.cutting.as_ref().is_none_or(|c| c.0 != number) {
            return;
        }
        let Some((_, inode, purge)) = self.core.purger.cutting.take() else { return };
        match result {
            Ok(()) => {
                // If this fails the item stays in the queue.
                let next = self.change(|prep| prep.finish_purge(inode, &purge), super::dispatch::done);
                self.go_on(Asker::Purger, next);
            }
            Err(error) => {
                tracing::debug!("objects of inode {inode} are cut later: {error}");
                self.core.purger.silent.extend(error.silent);
                self.purge_next();
            }
        }
    }
}

/// The groups that may hold objects of the inode. One that was split when it is asked refuses, so that a sweep counts
/// only for what was there when it began: a split keeps what was cut, and hands the floor on.
fn groups(map: &ClusterMap, inode: InodeId, purge: &Purge) -> BTreeSet<Extent> {
    let Some(pool) = map.pools.get(&purge.pool) else { return BTreeSet::new() };
    if purge.strays || purge.chunks_high >= pool.pg_num.saturating_mul(8) {
        return map.extents(purge.pool).collect();
    }
    let object = |chunk| protocol::ObjectId { pool: purge.pool, inode, chunk };
    let held = (0..purge.chunks_high).filter_map(|chunk| map.locate(object(chunk)));
    held.map(|(pg, config)| Extent { pg, pg_num: config.pg_num }).collect()
}
