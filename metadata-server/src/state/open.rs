//! Which inodes are open where: leader memory, re-asserted by every session after a leader change.
//!
//! Only needed at one moment: when the last name of a file goes, every session that has it open gets a
//! replicated pin on it. Sessions that have not re-asserted yet are counted as having everything open; their
//! superfluous pins go when they attach. A reply that opened a file and that its session may not have seen counts as
//! a handle too: the retry will find it, and the file must still be there.

use protocol::{InodeId, SessionId};
use std::collections::{BTreeMap, BTreeSet};

/// See the module.
#[derive(Debug, Default)]
pub struct OpenTable {
    by_inode: BTreeMap<InodeId, BTreeMap<SessionId, BTreeSet<u64>>>,
    by_session: BTreeMap<SessionId, BTreeSet<InodeId>>,
    unknown: BTreeSet<SessionId>,
    /// Inodes that replies opened, by the sequence of the request. Bounded by the stored replies.
    unseen: BTreeMap<SessionId, BTreeMap<u64, InodeId>>,
}

impl OpenTable {
    /// A new leader's: nothing is known of any of `sessions`.
    pub fn new(sessions: impl IntoIterator<Item = SessionId>) -> Self {
        Self { unknown: sessions.into_iter().collect(), ..Self::default() }
    }

    /// Whether all that this session has open is known: it was opened under this leader, or has attached since.
    pub fn is_known(&self, session: SessionId) -> bool {
        !self.unknown.contains(&session)
    }

    /// A handle was opened.
    pub fn open(&mut self, session: SessionId, inode: InodeId, handle: u64) {
        self.by_inode.entry(inode).or_default().entry(session).or_default().insert(handle);
        self.by_session.entry(session).or_default().insert(inode);
    }

    /// A handle was closed. `true` if it was the session's last on that inode.
    pub fn close(&mut self, session: SessionId, inode: InodeId, handle: u64) -> bool {
        let Some(sessions) = self.by_inode.get_mut(&inode) else { return true };
        let Some(handles) = sessions.get_mut(&session) else { return true };
        handles.remove(&handle);
        if !handles.is_empty() {
            return false;
        }
        sessions.remove(&session);
        if sessions.is_empty() {
            self.by_inode.remove(&inode);
        }
        if let Some(inodes) = self.by_session.get_mut(&session) {
            inodes.remove(&inode);
        }
        true
    }

    /// A session said everything that it has open. `unseen`: what replies opened that it may not have seen.
    pub fn assert_all(
        &mut self,
        session: SessionId,
        open: &[(InodeId, u64)],
        unseen: impl IntoIterator<Item = (u64, InodeId)>,
    ) {
        self.forget(session);
        for (inode, handle) in open {
            self.open(session, *inode, *handle);
        }
        let unseen: BTreeMap<u64, InodeId> = unseen.into_iter().collect();
        if !unseen.is_empty() {
            self.unseen.insert(session, unseen);
        }
    }

    /// The inode that nothing but the reply to `sequence` keeps open for the session.
    pub fn kept_by_reply(&self, session: SessionId, sequence: u64) -> Option<InodeId> {
        let inode = *self.unseen.get(&session)?.get(&sequence)?;
        let has_handle = self.by_session.get(&session).is_some_and(|inodes| inodes.contains(&inode));
        (!has_handle).then_some(inode)
    }

    /// The session has seen the reply to `sequence`.
    pub fn seen(&mut self, session: SessionId, sequence: u64) {
        if let Some(replies) = self.unseen.get_mut(&session) {
            replies.remove(&sequence);
            if replies.is_empty() {
                self.unseen.remove(&session);
            }
        }
    }

    /// A session ended.
    pub fn forget(&mut self, session: SessionId) {
        self.unknown.remove(&session);
        self.unseen.remove(&session);
        for inode in self.by_session.remove(&session).unwrap_or_default() {
            if let Some(sessions) = self.by_inode.get_mut(&inode) {
                sessions.remove(&session);
                if sessions.is_empty() {
                    self.by_inode.remove(&inode);
                }
            }
        }
    }

    /// Whether this session has the inode open, as far as is known.
    pub fn is_open(&self, session: SessionId, inode: InodeId) -> bool {
        self.by_session.get(&session).is_some_and(|inodes| inodes.contains(&inode))
            || self
                .unseen
                .get(&session)
                .is_some_and(|replies| replies.values().any(|opened| *opened == inode))
    }

    /// Sessions that must be assumed to have `inode` open.
    pub fn holders(&self, inode: InodeId) -> BTreeSet<SessionId> {
        let known = self.by_inode.get(&inode).into_iter().flat_map(|sessions| sessions.keys().copied());
        let unseen =
            self.unseen.iter().filter(|(_, replies)| replies.values().any(|opened| *opened == inode));
        known.chain(self.unknown.iter().copied()).chain(unseen.map(|(session, _)| *session)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: InodeId = InodeId(5);

    #[test]
    fn a_silent_session_counts_as_having_everything_open() {
        let (a, b) = (SessionId(1), SessionId(2));
        let mut table = OpenTable::new([a, b]);
        assert_eq!(table.holders(FILE), [a, b].into());
        table.assert_all(a, &[], []);
        assert!(table.is_known(a) && !table.is_known(b));
        assert_eq!(table.holders(FILE), [b].into());
        table.assert_all(b, &[(FILE, 1)], []);
        table.forget(b);
        assert!(table.holders(FILE).is_empty());
    }

    #[test]
    fn the_last_handle_counts() {
        let session = SessionId(1);
        let mut table = OpenTable::default();
        table.open(session, FILE, 1);
        table.open(session, FILE, 2);
        assert!(!table.close(session, FILE, 1));
        assert!(table.is_open(session, FILE));
        assert!(table.close(session, FILE, 2));
        assert!(table.holders(FILE).is_empty());
    }

    #[test]
    fn a_reply_that_was_not_seen_keeps_open_what_it_opened() {
        let session = SessionId(1);
        let mut table = OpenTable::new([session]);
        table.assert_all(session, &[], [(7, FILE), (8, InodeId(6))]);
        assert_eq!(table.holders(FILE), [session].into());
        table.open(session, FILE, 1);
        assert_eq!(table.kept_by_reply(session, 7), None, "the retry's handle keeps it");
        assert_eq!(table.kept_by_reply(session, 8), Some(InodeId(6)), "nobody came for it");
        assert!(table.is_open(session, InodeId(6)));
        table.seen(session, 7);
        table.seen(session, 8);
        assert!(!table.is_open(session, InodeId(6)));
        assert!(table.close(session, FILE, 1));
        assert!(table.holders(FILE).is_empty());
    }
}
