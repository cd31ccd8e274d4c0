//! Damaged blocks of the primary's own copy: their bytes come from another member, are written again here,
//! and whatever stumbled over them goes on.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use protocol::data::DataError;
use protocol::replication::{GroupObject, StreamBody};
use protocol::{DataServerId, mutant};

use super::peer::{PeerRole, Stage};
use super::{Primary, Request, order};
use crate::pg::group::Group;
use crate::pg::types::Context;
use crate::store::{BLOCK_BYTES, Op, StoreError};

/// How often a member is asked again because operations came between.
const ATTEMPTS_MAX: u32 = 20;
/// Repairs at once; beyond it what needs another one is refused for now.
const REPAIRS_MAX: usize = 64;

#[derive(Debug)]
pub(super) struct Repair {
    object: GroupObject,
    offset: u32,
    length: u32,
    waiters: Vec<Request>,
    refused: BTreeSet<DataServerId>,
    asked: Option<(DataServerId, u64)>,
    attempts: u32,
}

impl Primary {
    /// Repairs the blocks around a range; `waiter` is tried again afterwards.
    pub(super) fn begin_repair(
        &mut self,
        g: &mut Group,
        object: GroupObject,
        offset: u32,
        length: u32,
        waiter: Option<Request>,
    ) {
        let block = BLOCK_BYTES as u32;
        let start = offset / block * block;
        let length = (offset + length).next_multiple_of(block) - start;
        let same = |r: &&mut Repair| {
            r.object == object && r.offset <= start && r.offset + r.length >= start + length
        };
        if let Some(repair) = self.repairs.values_mut().find(same) {
            repair.waiters.extend(waiter);
            return;
        }
        if self.repairs.len() >= REPAIRS_MAX {
            waiter.into_iter().for_each(|waiter| order::refuse(g, waiter.token, DataError::Overloaded));
            return;
        }
        self.last_repair += 1;
        let repair = Repair {
            object,
            offset: start,
            length,
            waiters: waiter.into_iter().collect(),
            refused: BTreeSet::new(),
            asked: None,
            attempts: 0,
        };
        self.repairs.insert(self.last_repair, repair);
        self.ask_for_blocks(g, self.last_repair);
    }

    /// Asks again where a link broke.
    pub(super) fn retry_repairs(&mut self, g: &mut Group) {
        let links: BTreeMap<DataServerId, u64> =
            self.peers.iter().map(|(id, peer)| (*id, peer.link)).collect();
        let lost = |repair: &Repair| {
            repair.asked.is_none_or(|(server, link)| links.get(&server).is_none_or(|now| *now != link))
        };
        let lost: Vec<u64> = self.repairs.iter().filter(|(_, r)| lost(r)).map(|(id, _)| *id).collect();
        lost.into_iter().for_each(|id| self.ask_for_blocks(g, id));
    }

    pub(super) fn handle_blocks(
        &mut self,
        g: &mut Group,
        cx: &mut Context<'_>,
        from: DataServerId,
        id: u64,
        found: Option<(u64, u32)>,
        payload: Bytes,
    ) {
        if self.handle_pulled(g, cx, id, found, &payload) {
            return;
        }
        let Some(repair) = self.repairs.get_mut(&id) else { return };
        repair.asked = None;
        let valid = found.filter(|(_, crc)| crc32c::crc32c(&payload) == *crc);
        let valid = if mutant!("repair-not-verified") {
            found.map(|(changed, _)| (changed, crc32c::crc32c(&payload)))
        } else {
            valid
        };
        let Some((changed, crc)) = valid else {
            repair.refused.insert(from);
            return self.ask_for_blocks(g, id);
        };
        let (object, offset) = (repair.object, repair.offset);
        let info = match g.copy.info(cx, object) {
            Ok(info) => info,
            Err(error) => return g.note("repairing an object", error),
        };
        let Some(info) = info else { return self.end_repair(id) };
        repair.attempts += 1;
        if info.version != changed && !mutant!("repair-with-another-version") {
            // Operations on the object passed the question on its way.
            if repair.attempts >= ATTEMPTS_MAX {
                repair.refused.insert(from);
            }
            return self.ask_for_blocks(g, id);
        }
        let op = Op::Write {
            key: g.copy.key(object),
            offset: u64::from(offset),
            data: payload,
            crc,
            truncate_seq: info.truncate_seq,
            version: info.version,
        };
        match g.copy.submit(cx, vec![op], true) {
            Ok(_) => {
                g.copy.scrub.repaired += u64::from(repair.waiters.is_empty());
                tracing::warn!(
                    "placement group {}: repaired {:x}.{:08x} from {offset} with the copy of server {from}",
                    g.copy.pg,
                    object.inode.0,
                    object.chunk
                );
                self.end_repair(id);
            }
            Err(StoreError::Busy) => g.stall(),
            Err(error) => {
                g.note("repairing an object", error);
                if let Some(repair) = self.repairs.get_mut(&id) {
                    repair.refused.insert(from);
                }
                self.ask_for_blocks(g, id);
            }
        }
    }

    pub(super) fn take_repair_waiters(&mut self) -> Vec<Request> {
        std::mem::take(&mut self.repairs).into_values().flat_map(|repair| repair.waiters).collect()
    }

    /// What waited is tried again first.
    fn end_repair(&mut self, id: u64) {
        let Some(repair) = self.repairs.remove(&id) else { return };
        repair.waiters.into_iter().rev().for_each(|waiter| self.queue.push_front(waiter));
    }

    fn ask_for_blocks(&mut self, g: &mut Group, id: u64) {
        let Some(repair) = self.repairs.get_mut(&id) else { return };
        let whole = self.peers.values_mut().filter(|p| p.role == PeerRole::Certain && p.fill.is_none());
        let mut candidates = whole.filter(|peer| !repair.refused.contains(&peer.member.server)).peekable();
        if candidates.peek().is_none() {
            let name = format!("{:x}.{:08x}", repair.object.inode.0, repair.object.chunk);
            tracing::error!(
                "placement group {}: no replica has valid bytes of {name} at {}; restore the file from a backup",
                g.copy.pg,
                repair.offset
            );
            if let Some(repair) = self.repairs.remove(&id) {
                let error = DataError::Corrupt(format!("object {name} from byte {}", repair.offset));
                repair.waiters.into_iter().for_each(|w| order::refuse(g, w.token, error.clone()));
            }
            return;
        }
        // A member whose link is being restarted is asked at a later tick.
        let Some(peer) = candidates.find(|peer| peer.stage == Stage::Streaming) else { return };
        let (object, offset, length) = (repair.object, repair.offset, repair.length);
        repair.asked = Some((peer.member.server, peer.link));
        peer.stream(g, StreamBody::ReadBlocks { id, object, offset, length }, Bytes::new());
    }
}
