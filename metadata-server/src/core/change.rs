//! Changes of files and locks, exactly once, and the handles that keep unlinked files.

use super::flow::{Flow, Next, Step};
use super::{ClientId, Turn};
use crate::state::key;
use crate::state::layers::{Disk, View};
use crate::state::prep::data::view_of;
use crate::state::prep::load;
use protocol::meta::{MetaError, MetaReply, REPLIES_MAX, WriteOp};
use protocol::{Errno, InodeId, SessionId};
use zab::mutant;

/// Old replies that one transaction forgets at most, so that none grows without bound.
const FORGET_MAX: usize = 256;

impl<D: Disk, T> Turn<'_, D, T> {
    pub(super) fn write(&mut self, client: ClientId, sequence: u64, low_water: u64, op: &WriteOp) -> Flow {
        let session = self.session(client)?;
        if let Some(reply) = self.stored_reply(session, sequence)? {
            self.note_opened(session, op, &reply);
            return self.settle(Step::Say(Ok(reply)));
        }
        let finished = self.finished_replies(session, sequence, low_water)?;
        let needless = self.kept_by_replies(session, &finished);
        let (zxid, result) = self.propose(|prep| {
            let reply = prep.execute(session, op)?;
            prep.remember_reply(session, sequence, &reply, finished.iter().copied());
            prep.release_pins(session, needless)?;
            Ok(reply)
        });
        if let Ok(reply) = &result {
            self.forgot_replies(session, &finished);
            if let Some(clock) = self.core.leader.clocks.get_mut(&session) {
                clock.replies.insert(sequence);
            }
            self.note_opened(session, op, reply);
        }
        Ok(Next::Applied(zxid, Step::Say(result)))
    }

    /// The handle counts from here: an unlink that is prepared next must see it.
    fn note_opened(&mut self, session: SessionId, op: &WriteOp, reply: &MetaReply) {
        if let (Some(handle), MetaReply::Opened(view)) = (opened_handle(op), reply) {
            self.core.machine.open.open(session, view.attr.inode, handle);
        }
    }

    /// What nothing but these replies keeps open: once they are forgotten, it needs no pin.
    pub(super) fn kept_by_replies(&self, session: SessionId, replies: &[u64]) -> Vec<InodeId> {
        let open = &self.core.machine.open;
        if mutant!("forgotten-replies-keep-pins") {
            return Vec::new();
        }
        replies.iter().filter_map(|sequence| open.kept_by_reply(session, *sequence)).collect()
    }

    /// A proposal forgets these replies.
    pub(super) fn forgot_replies(&mut self, session: SessionId, replies: &[u64]) {
        for old in replies {
            self.core.machine.open.seen(session, *old);
            if let Some(clock) = self.core.leader.clocks.get_mut(&session) {
                clock.replies.remove(old);
            }
        }
    }

    /// The reply of an earlier attempt, committed or on its way.
    fn stored_reply(&mut self, session: SessionId, sequence: u64) -> Result<Option<MetaReply>, MetaError> {
        let stored = self.core.leader.clocks.get(&session).is_some_and(|c| c.replies.contains(&sequence));
        if !stored || mutant!("retry-is-executed-again") {
            return Ok(None);
        }
        let found = load(&self.core.machine.proposed(), &key::reply(session, sequence));
        self.core.stored(found)
    }

    /// Replies that the client has seen; an error if it leaves too many unseen or repeats what it has seen.
    fn finished_replies(
        &self,
        session: SessionId,
        sequence: u64,
        low_water: u64,
    ) -> Result<Vec<u64>, MetaError> {
        if sequence < low_water {
            return Err(MetaError::Refused(format!(
                "request {sequence} is below the low-water mark {low_water} that it carries"
            )));
        }
        let clock = self.core.leader.clocks.get(&session).ok_or(MetaError::SessionExpired)?;
        let finished: Vec<u64> = clock.replies.range(..low_water).copied().take(FORGET_MAX).collect();
        if clock.replies.len() as u64 - finished.len() as u64 >= REPLIES_MAX {
            return Err(MetaError::Overloaded);
        }
        Ok(finished)
    }

    pub(super) fn open_file(&mut self, session: SessionId, inode: InodeId, handle: u64) -> Flow {
        let exists = self.core.machine.proposed().get(&key::inode(inode));
        if self.core.stored(exists)?.is_some() {
            self.core.machine.open.open(session, inode, handle);
        }
        if self.core.machine.is_speculative(&key::inode(inode)) {
            return self.settle(Step::View(inode));
        }
        self.view(inode)
    }

    pub(super) fn view(&mut self, inode: InodeId) -> Flow {
        let view = view_of(&self.core.machine.committed(), inode);
        match self.core.stored(view)? {
            Some(view) => Ok(Next::Reply(MetaReply::View(view))),
            None => Err(Errno::ENOENT.into()),
        }
    }

    pub(super) fn close_file(
        &mut self,
        client: ClientId,
        inode: InodeId,
        handle: u64,
        release_hold: bool,
    ) -> Flow {
        let session = self.session(client)?;
        let machine = &mut self.core.machine;
        let is_last = machine.open.close(session, inode, handle);
        let is_pinned = machine.proposed().get(&key::pin(inode, session)).is_ok_and(|pin| pin.is_some());
        let holder = load::<SessionId>(&machine.proposed(), &key::hold(inode));
        let unpin = is_last && is_pinned && !mutant!("close-keeps-the-pin");
        let release = release_hold && holder.ok().flatten() == Some(session);
        if !unpin && !release {
            return Ok(Next::Reply(MetaReply::Done));
        }
        self.change(
            |prep| {
                if release {
                    prep.execute(session, &WriteOp::ReleaseHold { inode, dirty: false })?;
                }
                if unpin {
                    prep.release_pins(session, [inode])?;
                }
                Ok(())
            },
            super::dispatch::done,
        )
    }
}

fn opened_handle(op: &WriteOp) -> Option<u64> {
    match op {
        WriteOp::Create { handle, .. } => *handle,
        WriteOp::Tmpfile { handle, .. } => Some(*handle),
        _ => None,
    }
}
