//! Locks: flock, POSIX byte ranges and named locks, with FIFO queues.
//!
//! One table per resource. A request is granted when it conflicts with no holder and with nobody who waits
//! before it; the owner's own locks never conflict. POSIX ranges split, merge and replace as fcntl(2) says;
//! flock and named locks are whole-resource. A flock that converts and has to wait lets go of what it had, as
//! flock(2) says: otherwise two who convert would wait for each other for ever.

use super::{Prep, Result, load};
use crate::state::key;
use crate::state::layers::View;
use crate::state::record::{LockTable, encode};
use protocol::meta::{LockEntry, LockHolderInfo, LockRequest, LockResource, MetaReply, Push};
use protocol::{EntryName, Errno, SessionId};
use std::collections::BTreeSet;
use zab::mutant;

/// Most holders plus waiters of one resource; one more gets ENOLCK.
const ENTRIES_MAX: usize = 10_000;
/// Most POSIX lock tables that the search for deadlocks looks at.
const DEADLOCK_SEARCH_MAX: usize = 10_000;
/// Longest host name and command of a holder in bytes; more is cut off, so that a full table fits into a
/// transaction.
const HOLDER_TEXT_MAX: usize = 96;

/// What a request has to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Obstacle {
    /// Somebody holds it.
    Holder,
    /// It is free, and somebody came first.
    Turn,
}

impl Prep<'_> {
    pub(super) fn lock(
        &mut self,
        session: SessionId,
        resource: &LockResource,
        request: &LockRequest,
        wait: bool,
        holder: &LockHolderInfo,
    ) -> Result<MetaReply> {
        let request = checked(resource, request)?;
        if let LockResource::Flock(id) | LockResource::Posix(id) = resource {
            self.inode(*id)?;
        }
        let mut table = self.lock_table(resource)?;
        if table.holders.len() + table.waiters.len() >= ENTRIES_MAX {
            return Err(Errno::ENOLCK.into());
        }
        let (token, since, holder) = (self.revision, self.time, shortened(holder));
        let entry = LockEntry { session, request, holder, token, waiter: 0, since };
        let obstacle = obstacle(&table.holders, &table.waiters, &entry);
        let is_posix = matches!(resource, LockResource::Posix(_));
        match obstacle {
            None => {}
            Some(_) if !wait => return Err(Errno::EAGAIN.into()),
            Some(found) if is_posix && self.would_deadlock(resource, &entry)? => match found {
                Obstacle::Holder => return Err(Errno::EDEADLK.into()),
                // Only the queue closes the circle: without one, as on a local disk, it would be granted.
                Obstacle::Turn => {}
            },
            Some(_) => return self.enqueue(resource, table, entry),
        }
        let fence = self.fence()?;
        table.grant(resource, entry);
        self.promote(resource, &mut table)?;
        self.put_lock_table(resource, &table, [session]);
        Ok(MetaReply::Granted { token: self.revision, fence })
    }

    fn enqueue(
        &mut self,
        resource: &LockResource,
        mut table: LockTable,
        entry: LockEntry,
    ) -> Result<MetaReply> {
        let session = entry.session;
        if matches!(resource, LockResource::Flock(_)) {
            table.holders.retain(|held| !same_owner(held, &entry));
        }
        table.waiters.push(entry);
        self.promote(resource, &mut table)?;
        self.put_lock_table(resource, &table, [session]);
        Ok(MetaReply::Queued { waiter: self.revision })
    }

    pub(super) fn unlock(
        &mut self,
        session: SessionId,
        resource: &LockResource,
        owner: u64,
        start: u64,
        end: u64,
    ) -> Result<MetaReply> {
        let range = LockRequest { owner, exclusive: false, start, end, pid: 0 };
        let LockRequest { start, end, .. } = checked(resource, &range)?;
        let mut table = self.lock_table(resource)?;
        table.holders = cut(std::mem::take(&mut table.holders), session, owner, (start, end));
        self.promote(resource, &mut table)?;
        self.put_lock_table(resource, &table, [session]);
        Ok(MetaReply::Done)
    }

    /// Leaves the queue. If the grant happened meanwhile nobody wants it: it is given back.
    pub(super) fn cancel_wait(
        &mut self,
        session: SessionId,
        resource: &LockResource,
        waiter: u64,
    ) -> Result<MetaReply> {
        let mut table = self.lock_table(resource)?;
        let abandoned = |e: &LockEntry| e.session == session && e.token == waiter;
        let was_granted = |e: &LockEntry| e.session == session && e.waiter == waiter;
        table.waiters.retain(|e| !abandoned(e));
        table.holders.retain(|e| !was_granted(e));
        self.promote(resource, &mut table)?;
        self.put_lock_table(resource, &table, [session]);
        Ok(MetaReply::Done)
    }

    pub(super) fn break_lock(&mut self, name: &EntryName) -> Result<MetaReply> {
        let resource = LockResource::Named(name.clone());
        let mut table = self.lock_table(&resource)?;
        if table.holders.is_empty() {
            return Err(Errno::ENOENT.into());
        }
        let sessions: Vec<_> = table.holders.drain(..).map(|e| e.session).collect();
        self.promote(&resource, &mut table)?;
        self.put_lock_table(&resource, &table, sessions);
        Ok(MetaReply::Done)
    }

    /// A session ended: everything that it held or waited for on this resource goes.
    pub(super) fn release_session(&mut self, session: SessionId, resource: &LockResource) -> Result<()> {
        let mut table = self.lock_table(resource)?;
        table.holders.retain(|e| e.session != session);
        table.waiters.retain(|e| e.session != session);
        self.promote(resource, &mut table)?;
        self.put_lock_table(resource, &table, [session]);
        Ok(())
    }

    fn lock_table(&self, resource: &LockResource) -> Result<LockTable> {
        Ok(self.load(&key::lock(resource))?.unwrap_or_default())
    }

    fn put_lock_table(
        &mut self,
        resource: &LockResource,
        table: &LockTable,
        touched: impl IntoIterator<Item = SessionId>,
    ) {
        let key = key::lock(resource);
        match table.holders.is_empty() && table.waiters.is_empty() {
            true => self.draft.delete(key),
            false => self.draft.put(key, encode(table)),
        }
        for session in touched {
            let owned = key::owned_lock(session, resource);
            match table.holders.iter().chain(&table.waiters).any(|e| e.session == session) {
                true => self.draft.put(owned, bytes::Bytes::new()),
                false => self.draft.delete(owned),
            }
        }
    }

    /// Grants what has become free, first in line first. A grant can free something too, when it turns a part
    /// of what its owner held into a shared lock: then those before it in the line are looked at again.
    fn promote(&mut self, resource: &LockResource, table: &mut LockTable) -> Result<()> {
        let fence = self.fence()?;
        loop {
            let mut still_waiting: Vec<LockEntry> = Vec::new();
            let before = table.waiters.len();
            for entry in std::mem::take(&mut table.waiters) {
                if obstacle(&table.holders, &still_waiting, &entry).is_some() {
                    still_waiting.push(entry);
                    continue;
                }
                let (waiter, token) = (entry.token, self.revision);
                let push = Push::LockGranted { resource: resource.clone(), waiter, token, fence };
                self.pushes.push((entry.session, push));
                table.grant(resource, LockEntry { token, waiter, since: self.time, ..entry });
            }
            table.waiters = still_waiting;
            if table.waiters.len() == before || table.waiters.is_empty() {
                return Ok(());
            }
        }
    }

    fn fence(&self) -> Result<protocol::MapEpoch> {
        Ok(self.load(&key::system("fence"))?.unwrap_or_default())
    }

    /// Whether waiting for `resource` closes a circle of POSIX owners that wait for one another, be it for a
    /// lock or for their turn.
    fn would_deadlock(&self, resource: &LockResource, wish: &LockEntry) -> Result<bool> {
        let mut own = self.lock_table(resource)?;
        own.waiters.push(wish.clone());
        let mut tables = vec![own];
        let posix = [key::LOCK, key::LOCK_POSIX];
        for (key, _) in self.draft.scan(&posix, &key::prefix_end(&posix), DEADLOCK_SEARCH_MAX)? {
            if key != key::lock(resource) {
                tables.extend(load(&self.draft, &key)?);
            }
        }
        let me = owner_of(wish);
        let mut seen = BTreeSet::new();
        let mut next = vec![me];
        while let Some(owner) = next.pop() {
            for before in tables.iter().flat_map(|table| table.before(owner)) {
                if before == me {
                    return Ok(true);
                }
                if seen.insert(before) {
                    next.push(before);
                }
            }
        }
        Ok(false)
    }
}

/// A request with a range that makes sense: whole-resource locks have no other.
fn checked(resource: &LockResource, request: &LockRequest) -> Result<LockRequest> {
    if !matches!(resource, LockResource::Posix(_)) {
        return Ok(LockRequest { start: 0, end: u64::MAX, ..*request });
    }
    if request.start > request.end {
        return Err(Errno::EINVAL.into());
    }
    Ok(*request)
}

fn shortened(holder: &LockHolderInfo) -> LockHolderInfo {
    let short = |text: &str| text[..text.floor_char_boundary(HOLDER_TEXT_MAX)].to_owned();
    LockHolderInfo { host: short(&holder.host), command: short(&holder.command) }
}

impl LockTable {
    /// Adds a granted lock, replacing what its owner held in the range.
    fn grant(&mut self, resource: &LockResource, mut entry: LockEntry) {
        let range = (entry.request.start, entry.request.end);
        self.holders = cut(std::mem::take(&mut self.holders), entry.session, entry.request.owner, range);
        if matches!(resource, LockResource::Posix(_)) {
            self.absorb_neighbours(&mut entry);
        }
        self.holders.push(entry);
    }

    /// Neighbouring ranges of one owner become one lock, so that locking byte by byte stays small. Not those
    /// that somebody waited for: the wait may yet be cancelled, and then exactly its range is given back.
    fn absorb_neighbours(&mut self, entry: &mut LockEntry) {
        if entry.waiter != 0 {
            return;
        }
        self.holders.retain(|held| {
            let (ours, theirs) = (&mut entry.request, &held.request);
            let is_alike = held.session == entry.session
                && (theirs.owner, theirs.exclusive) == (ours.owner, ours.exclusive)
                && held.waiter == 0;
            let touches = theirs.end.checked_add(1) == Some(ours.start)
                || ours.end.checked_add(1) == Some(theirs.start);
            if is_alike && touches {
                (ours.start, ours.end) = (ours.start.min(theirs.start), ours.end.max(theirs.end));
            }
            !(is_alike && touches)
        });
    }

    /// Owners that `owner` waits for on this resource.
    fn before(&self, owner: Owner) -> impl Iterator<Item = Owner> {
        let waits = self.waiters.iter().enumerate().filter(move |(_, waiter)| owner_of(waiter) == owner);
        waits.flat_map(|(at, waiter)| {
            let queue = if owns(&self.holders, waiter) { &[] } else { &self.waiters[..at] };
            self.holders.iter().chain(queue).filter(|other| conflicts(other, waiter)).map(owner_of)
        })
    }
}

/// Who locks: the session, and the owner within it.
type Owner = (SessionId, u64);

fn owner_of(entry: &LockEntry) -> Owner {
    (entry.session, entry.request.owner)
}

fn same_owner(a: &LockEntry, b: &LockEntry) -> bool {
    owner_of(a) == owner_of(b)
}

fn overlap(a: &LockEntry, b: &LockEntry) -> bool {
    a.request.start <= b.request.end && b.request.start <= a.request.end
}

fn conflicts(held: &LockEntry, wish: &LockEntry) -> bool {
    if mutant!("two-holders") {
        return false;
    }
    overlap(held, wish) && (held.request.exclusive || wish.request.exclusive) && !same_owner(held, wish)
}

/// Whether the owner of `wish` holds some of what it asks for.
fn owns(holders: &[LockEntry], wish: &LockEntry) -> bool {
    holders.iter().any(|held| same_owner(held, wish) && overlap(held, wish))
}

/// What `wish` has to wait for. An owner that holds some of it already goes before the queue, or converting a
/// shared lock would wait for those who wait for it.
fn obstacle(holders: &[LockEntry], queue: &[LockEntry], wish: &LockEntry) -> Option<Obstacle> {
    if holders.iter().any(|held| conflicts(held, wish)) {
        return Some(Obstacle::Holder);
    }
    let has_turn = owns(holders, wish) || !queue.iter().any(|waiter| conflicts(waiter, wish));
    (!has_turn).then_some(Obstacle::Turn)
}

/// Removes `[start, end]` from what `owner` holds, splitting what reaches beyond.
fn cut(holders: Vec<LockEntry>, session: SessionId, owner: u64, (start, end): (u64, u64)) -> Vec<LockEntry> {
    let mut kept = Vec::with_capacity(holders.len() + 1);
    for entry in holders {
        let (first, last) = (entry.request.start, entry.request.end);
        if entry.session != session || entry.request.owner != owner || last < start || end < first {
            kept.push(entry);
            continue;
        }
        if first < start {
            let mut left = entry.clone();
            left.request.end = start - 1;
            kept.push(left);
        }
        if end < last {
            let mut right = entry;
            right.request.start = end + 1;
            kept.push(right);
        }
    }
    kept
}

/// The lock that keeps `wish` from being granted, for F_GETLK.
pub fn conflict<'a>(table: &'a LockTable, wish: &LockEntry) -> Option<&'a LockEntry> {
    table.holders.iter().find(|h| conflicts(h, wish))
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::{InodeId, Timestamp};

    fn entry(session: u64, owner: u64, range: (u64, u64), exclusive: bool) -> LockEntry {
        LockEntry {
            session: SessionId(session),
            request: LockRequest { owner, exclusive, start: range.0, end: range.1, pid: 1 },
            holder: LockHolderInfo::default(),
            token: 1,
            waiter: 0,
            since: Timestamp::default(),
        }
    }

    #[test]
    fn unlocking_the_middle_leaves_both_ends() {
        let kept = cut(vec![entry(1, 1, (0, 99), true)], SessionId(1), 1, (10, 19));
        let ranges: Vec<_> = kept.iter().map(|e| (e.request.start, e.request.end)).collect();
        assert_eq!(ranges, [(0, 9), (20, 99)]);
    }

    #[test]
    fn a_reader_behind_a_waiting_writer_waits() {
        let holders = [entry(1, 1, (0, 9), false)];
        let queue = [entry(2, 1, (0, 9), true)];
        assert_eq!(obstacle(&holders, &queue, &entry(3, 1, (0, 9), false)), Some(Obstacle::Turn));
        assert_eq!(obstacle(&holders, &[], &entry(3, 1, (0, 9), false)), None);
    }

    #[test]
    fn an_owner_converts_its_own_lock() {
        let mut table = LockTable::default();
        let resource = LockResource::Posix(InodeId(9));
        table.grant(&resource, entry(1, 1, (0, 9), false));
        assert_eq!(obstacle(&table.holders, &[], &entry(1, 1, (0, 4), true)), None);
        table.grant(&resource, entry(1, 1, (0, 4), true));
        let ranges: Vec<_> =
            table.holders.iter().map(|e| (e.request.start, e.request.end, e.request.exclusive)).collect();
        assert_eq!(ranges, [(5, 9, false), (0, 4, true)]);
    }

    #[test]
    fn neighbouring_ranges_become_one_unless_somebody_waited_for_one() {
        let mut table = LockTable::default();
        let resource = LockResource::Posix(InodeId(9));
        for range in [(0, 4), (10, 14), (5, 9)] {
            table.grant(&resource, entry(1, 1, range, true));
        }
        assert_eq!(table.holders.len(), 1);
        table.grant(&resource, LockEntry { waiter: 7, ..entry(1, 1, (15, u64::MAX), true) });
        let ranges: Vec<_> = table.holders.iter().map(|e| (e.request.start, e.request.end)).collect();
        assert_eq!(ranges, [(0, 14), (15, u64::MAX)]);
    }
}
