//! Filling members: object after object, with a bound on what is on its way, after the foreground.

use bytes::Bytes;
use protocol::replication::{Cursor, GroupObject, Push, StreamBody, Unit};
use protocol::{DataServerId, InodeId, mutant};
use std::collections::BTreeSet;

use super::peer::{CurrentObject, FillProgress, Peer, Stage};
use super::{Phase, Primary};
use crate::pg::group::Group;
use crate::pg::types::{Context, Output};
use crate::store::{BLOCK_BYTES, StoreError};

/// What one step brought.
enum Step {
    /// Bytes were sent.
    Sent(usize),
    /// Nothing remains.
    Complete,
    /// An object cannot be read until it is repaired.
    Damaged { object: GroupObject, offset: u32, length: u32 },
}

impl Primary {
    /// Sends as much as the windows and the credit allow.
    pub(in crate::pg) fn pump_fills(&mut self, g: &mut Group, cx: &mut Context<'_>) {
        if self.phase == Phase::Broken && !mutant!("incomplete-copy-fills-others") {
            return;
        }
        let mut damaged = Vec::new();
        for peer in self.peers.values_mut().filter(|peer| peer.stage == Stage::Streaming) {
            // What clients wait for is not held back for the sake of clients.
            let urgent = peer.needed();
            while (urgent || self.credit > 0)
                && peer.fill.is_some()
                && peer.in_flight_bytes < g.settings.fill_window_bytes
            {
                match step(g, cx, peer) {
                    Ok(Step::Sent(_)) if urgent => {}
                    Ok(Step::Sent(bytes)) => self.credit -= bytes.max(BLOCK_BYTES) as i64,
                    Ok(Step::Complete) => complete(g, peer),
                    Ok(Step::Damaged { object, offset, length }) => {
                        damaged.push((object, offset, length));
                        break;
                    }
                    Err(error) => {
                        g.note("filling a member", error);
                        break;
                    }
                }
            }
        }
        for (object, offset, length) in damaged {
            self.begin_repair(g, object, offset, length, None);
        }
    }

    /// A member's copy of an object is damaged.
    pub(super) fn handle_need(&mut self, from: DataServerId, object: GroupObject) {
        let Some(peer) = self.peers.get_mut(&from).filter(|peer| peer.stage == Stage::Streaming) else {
            return;
        };
        let fill = peer.fill.get_or_insert_with(|| FillProgress::new(Cursor::End, BTreeSet::new()));
        let current = fill.current.is_some_and(|current| current.object == object);
        if current {
            // What was pushed of it may be damaged already: from the beginning.
            fill.current = None;
        } else if !fill.has_passed(object) {
            return;
        }
        fill.missing.insert(Unit::Object(object));
    }
}

fn complete(g: &mut Group, peer: &mut Peer) {
    peer.fill = None;
    peer.stream(g, StreamBody::FillEnd, Bytes::new());
    peer.set_barrier(u64::MAX);
    peer.durable = 0;
    peer.counting = peer.counting.map(|_| g.copy.head().sequence);
    tracing::info!("placement group {}: server {} holds everything", g.copy.pg, peer.member.server);
}

/// Sends the next piece of the fill.
fn step(g: &mut Group, cx: &mut Context<'_>, peer: &mut Peer) -> Result<Step, StoreError> {
    let Some(fill) = &mut peer.fill else { return Ok(Step::Complete) };
    if fill.current.is_none() {
        match fill.missing.pop_first() {
            Some(Unit::Object(object)) => {
                fill.current = Some(CurrentObject { object, offset: 0, advances_cursor: false });
            }
            Some(Unit::Group) => {
                fill.cursor = Cursor::Start;
                return Ok(Step::Sent(0));
            }
            Some(Unit::Inode(inode)) => return send_inode(g, cx, peer, inode),
            None => match next_behind_cursor(g, cx, fill.cursor)? {
                Some(object) => {
                    fill.current = Some(CurrentObject { object, offset: 0, advances_cursor: true });
                }
                None if fill.cursor != Cursor::End => {
                    let cursor = std::mem::replace(&mut fill.cursor, Cursor::End);
                    peer.stream(g, StreamBody::FillTail(cursor), Bytes::new());
                    return Ok(Step::Sent(0));
                }
                None => return Ok(Step::Complete),
            },
        }
    }
    send_piece(g, cx, peer)
}

fn next_behind_cursor(
    g: &Group,
    cx: &mut Context<'_>,
    cursor: Cursor,
) -> Result<Option<GroupObject>, StoreError> {
    let after = match cursor {
        Cursor::Start => None,
        Cursor::At(object) => Some((object.inode.0, object.chunk)),
        Cursor::End => return Ok(None),
    };
    let next = cx.store.list(g.copy.pg.to_u64(), after, 1)?;
    Ok(next.first().map(|(key, _)| GroupObject { inode: InodeId(key.inode), chunk: key.chunk }))
}

/// Objects of the inode that the member has go; those that exist here become missing one by one.
fn send_inode(
    g: &mut Group,
    cx: &mut Context<'_>,
    peer: &mut Peer,
    inode: InodeId,
) -> Result<Step, StoreError> {
    let Some(fill) = &mut peer.fill else { return Ok(Step::Complete) };
    let objects = match g.copy.objects_of(cx, inode.0) {
        Ok(objects) => objects,
        Err(error) => {
            fill.missing.insert(Unit::Inode(inode));
            return Err(error);
        }
    };
    let chunks: Vec<u32> = objects.into_iter().map(|(key, _)| key.chunk).collect();
    let objects = chunks.iter().map(|chunk| GroupObject { inode, chunk: *chunk });
    fill.missing.extend(objects.filter(|object| Cursor::At(*object) <= fill.cursor).map(Unit::Object));
    peer.stream(g, StreamBody::FillInode { inode, chunks }, Bytes::new());
    Ok(Step::Sent(0))
}

/// Sends the next piece of the current object as it is now. Operations that come between the pieces reach the
/// member too, so that all pieces together are the object as it is when the last one is sent.
fn send_piece(g: &mut Group, cx: &mut Context<'_>, peer: &mut Peer) -> Result<Step, StoreError> {
    let Some(fill) = &mut peer.fill else { return Ok(Step::Complete) };
    let Some(current) = fill.current else { return Ok(Step::Sent(0)) };
    let object = current.object;
    let info = match g.copy.info(cx, object) {
        Ok(info) => info,
        Err(error) => {
            fill.put_back();
            return Err(error);
        }
    };
    let size = info.map_or(0, |info| info.size as u32);
    let length = size.saturating_sub(current.offset).min(g.settings.fill_piece_bytes);
    let key = g.copy.key(object);
    let data = match length {
        0 => Bytes::new(),
        _ => match cx.store.read(key, u64::from(current.offset), length as usize) {
            Ok(piece) => piece.map_or(Bytes::new(), |piece| piece.data),
            Err(error) => {
                fill.put_back();
                if !matches!(error, StoreError::Corrupt { .. }) {
                    return Err(error);
                }
                g.note("filling a member", error);
                return Ok(Step::Damaged { object, offset: current.offset, length });
            }
        },
    };
    let end = current.offset + length;
    let last = (end >= size).then_some(info.map(|_| size));
    let first = current.offset == 0;
    let (segments, payload) = without_zeros(current.offset, &data);
    let push = Push {
        object,
        clear_after: (first && current.advances_cursor).then_some(fill.cursor),
        first,
        segments,
        crc: crc32c::crc32c(&payload),
        truncate_seq: info.map_or(0, |info| info.truncate_seq),
        changed: info.map_or(0, |info| info.version),
        last,
        advances_cursor: current.advances_cursor,
    };
    if last.is_none() {
        fill.current = Some(CurrentObject { offset: end, ..current });
    } else {
        fill.current = None;
        fill.pushed += 1;
        if current.advances_cursor {
            fill.cursor = Cursor::At(object);
        }
    }
    let bytes = payload.len();
    peer.stream(g, StreamBody::Push(push), payload);
    g.outputs.push_back(Output::Copied { whole: last.is_some(), bytes });
    Ok(Step::Sent(bytes))
}

/// Leaves out blocks of zeros, so that holes stay holes.
fn without_zeros(offset: u32, data: &Bytes) -> (Vec<(u32, u32)>, Bytes) {
    let mut segments: Vec<(u32, u32)> = Vec::new();
    let mut payload = Vec::with_capacity(data.len());
    for (index, block) in data.chunks(BLOCK_BYTES).enumerate() {
        if block.iter().all(|byte| *byte == 0) {
            continue;
        }
        let at = offset + (index * BLOCK_BYTES) as u32;
        match segments.last_mut() {
            Some((start, length)) if *start + *length == at => *length += block.len() as u32,
            _ => segments.push((at, block.len() as u32)),
        }
        payload.extend_from_slice(block);
    }
    (segments, Bytes::from(payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_left_out_by_whole_blocks() {
        let mut data = vec![0; 4 * BLOCK_BYTES + 10];
        data[BLOCK_BYTES + 5] = 1;
        data[2 * BLOCK_BYTES] = 2;
        data[4 * BLOCK_BYTES + 9] = 3;
        let (segments, payload) = without_zeros(8192, &Bytes::from(data));
        assert_eq!(segments, [(8192 + 4096, 8192), (8192 + 4 * 4096, 10)]);
        assert_eq!(payload.len(), 8202);
    }
}
