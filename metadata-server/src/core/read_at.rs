//! Reads at a revision: any server that takes part answers them from its committed state, once that contains the revision
//! that the client has seen. Such a client never goes back, whichever servers it asks; what others have done since it may
//! not see, unless it passes on the answer to a `Sync`.

use super::flow::{Asker, Flow, Next};
use super::{Core, Turn};
use crate::state::layers::Disk;
use crate::state::read::{ReadError, read};
use protocol::meta::{MetaError, MetaReply, MetaResponse, ReadAnswer, ReadOp};
use protocol::{Errno, Revision, SessionId};
use zab::Role;

/// Reads that wait for a revision at most.
const BEHIND_MAX: usize = 1024;
/// A read waits this long, in milliseconds, before the client is told to ask another server.
const PATIENCE_MS: u64 = 2_000;

/// A read of a revision that is not here yet.
#[derive(Debug)]
pub(super) struct Behind<T> {
    token: T,
    at_least: Revision,
    op: ReadOp,
    gives_up_at: u64,
}

impl<T> Behind<T> {
    pub(super) fn gives_up_at(&self) -> u64 {
        self.gives_up_at
    }
}

impl<D: Disk, T> Turn<'_, D, T> {
    pub(super) fn read_at(&mut self, at_least: Revision, op: ReadOp) -> Flow {
        let takes_part =
            matches!(self.core.role, Role::Leading { .. } | Role::Following { .. } | Role::Observing { .. });
        if !takes_part || matches!(op, ReadOp::Statfs | ReadOp::StatfsAt(_) | ReadOp::WaitState { .. }) {
            return Err(self.not_leader());
        }
        Ok(Next::At(at_least, op))
    }

    pub(super) fn read_when_there(&mut self, asker: Asker<T>, at_least: Revision, op: ReadOp) {
        if at_least <= self.revision() {
            let response = self.core.answer_at(&op);
            return self.finish(asker, response);
        }
        if self.core.behind.len() >= BEHIND_MAX {
            return self.finish(asker, Err(MetaError::Overloaded));
        }
        let Asker::Client { token, .. } = asker else { return };
        let gives_up_at = self.now.ms + PATIENCE_MS;
        self.core.behind.push_back(Behind { token, at_least, op, gives_up_at });
    }
}

impl<D: Disk, T> Core<D, T> {
    /// Answers what can be answered now, and gives up what waited for too long.
    pub(super) fn serve_behind(&mut self, now: u64) {
        if self.behind.is_empty() {
            return;
        }
        let revision = Revision(self.machine.progress().revision);
        for waiting in std::mem::take(&mut self.behind) {
            if waiting.at_least <= revision {
                let response = self.answer_at(&waiting.op);
                self.reply(waiting.token, response);
            } else if waiting.gives_up_at <= now {
                self.reply(waiting.token, Err(MetaError::Behind { revision }));
            } else {
                self.behind.push_back(waiting);
            }
        }
    }

    fn answer_at(&mut self, op: &ReadOp) -> MetaResponse {
        let revision = Revision(self.machine.progress().revision);
        let found = read(&self.machine.committed(), SessionId::default(), op, Default::default());
        let answer = match found {
            Ok(reply) => ReadAnswer::of(reply).unwrap_or(ReadAnswer::Errno(Errno::EIO)),
            Err(ReadError::Errno(errno)) => ReadAnswer::Errno(errno),
            // What was not committed at this revision is not part of it.
            Err(ReadError::Deferred { committed, .. }) => {
                ReadAnswer::of(*committed).unwrap_or(ReadAnswer::Errno(Errno::EIO))
            }
            Err(ReadError::Store(error)) => return Err(self.store_failed(&error)),
        };
        Ok(MetaReply::ReadAt { revision, answer })
    }
}
