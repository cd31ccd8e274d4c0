//! Overwrites of one file that are in flight at the same time share the message that commits their times.
//!
//! What an overwrite needs is a commit that the metadata leader orders after the overwrite began: then whoever looks
//! at the times before and after it sees a difference. Which of several commits that is does not matter. So at most
//! [`RUNNING_MAX`] are on their way per file; overwrites that begin meanwhile gather in one batch, which is sent when
//! one of those returns. A writer alone never waits for anybody.

use super::write::Round;
use protocol::Errno;
use std::cell::{Cell, RefCell};
use tokio::sync::{Notify, oneshot};

/// Commits of overwrites of one file on their way at once.
const RUNNING_MAX: usize = 2;

/// What a commit came to, for all who share it.
pub(super) type Outcome = Result<Round, Errno>;

/// Commits can be shared only by overwrites that are equal in this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Basis {
    /// Of the session.
    pub(super) generation: u64,
    /// Newest truncation that the data operations carried.
    pub(super) truncate_seq: u64,
}

/// The commits of one file.
#[derive(Default)]
pub(crate) struct Commits {
    running: Cell<usize>,
    waiting: RefCell<Option<Batch>>,
    freed: Notify,
}

/// Overwrites whose commit has not been sent.
struct Batch {
    basis: Basis,
    /// The furthest end.
    end: u64,
    members: Vec<oneshot::Sender<Outcome>>,
}

/// How an overwrite gets its commit.
pub(super) enum Turn<'a> {
    /// It sends it now, and drops the slot when it has the answer.
    Now(Option<Slot<'a>>),
    /// Another one sends it.
    Shared(oneshot::Receiver<Outcome>),
    /// As `Shared`, and the caller has to see to it that somebody calls [`Commits::close_batch`].
    First(oneshot::Receiver<Outcome>),
}

/// A batch that takes no more members.
pub(super) struct Closed<'a> {
    pub(super) basis: Basis,
    pub(super) end: u64,
    pub(super) members: Vec<oneshot::Sender<Outcome>>,
    pub(super) slot: Slot<'a>,
}

/// The right to have a commit on its way.
pub(super) struct Slot<'a>(&'a Commits);

impl Commits {
    /// For an overwrite that begins now.
    pub(super) fn join(&self, basis: Basis, end: u64) -> Turn<'_> {
        let mut waiting = self.waiting.borrow_mut();
        match waiting.as_mut() {
            Some(batch) if batch.basis == basis => {
                batch.end = batch.end.max(end);
                Turn::Shared(batch.add())
            }
            // Rare (a truncation or a lost session in between): not worth a second batch.
            Some(_) => Turn::Now(None),
            None if self.running.get() < RUNNING_MAX => Turn::Now(Some(self.slot())),
            None => {
                let batch = waiting.insert(Batch { basis, end, members: Vec::new() });
                Turn::First(batch.add())
            }
        }
    }

    /// Waits for a slot and takes the batch; from then on others gather in the next one.
    pub(super) async fn close_batch(&self) -> Option<Closed<'_>> {
        while self.running.get() >= RUNNING_MAX {
            self.freed.notified().await;
        }
        let Batch { basis, end, members } = self.waiting.borrow_mut().take()?;
        Some(Closed { basis, end, members, slot: self.slot() })
    }

    fn slot(&self) -> Slot<'_> {
        self.running.set(self.running.get() + 1);
        Slot(self)
    }
}

impl Batch {
    fn add(&mut self) -> oneshot::Receiver<Outcome> {
        let (sender, receiver) = oneshot::channel();
        self.members.push(sender);
        receiver
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.0.running.set(self.0.running.get() - 1);
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASIS: Basis = Basis { generation: 1, truncate_seq: 7 };

    fn now<'a>(turn: Turn<'a>) -> Slot<'a> {
        match turn {
            Turn::Now(Some(slot)) => slot,
            _ => panic!("it should go at once"),
        }
    }

    #[tokio::test]
    async fn who_comes_while_commits_are_on_their_way_shares_the_next() {
        let commits = Commits::default();
        let first = now(commits.join(BASIS, 10));
        let second = now(commits.join(BASIS, 10));
        let Turn::First(third) = commits.join(BASIS, 30) else { panic!("it opens a batch") };
        let Turn::Shared(fourth) = commits.join(BASIS, 20) else { panic!("it joins the batch") };
        drop(first);
        let closed = commits.close_batch().await.expect("there is a batch");
        assert_eq!((closed.basis, closed.end, closed.members.len()), (BASIS, 30, 2));
        assert!(matches!(commits.join(BASIS, 1), Turn::First(_)), "both slots are taken again");
        for member in closed.members {
            member.send(Ok(Round::Done)).expect("they wait");
        }
        assert_eq!((third.await, fourth.await), (Ok(Ok(Round::Done)), Ok(Ok(Round::Done))));
        drop((closed.slot, second));
    }

    #[tokio::test]
    async fn a_batch_waits_for_a_slot() {
        let commits = Commits::default();
        let first = now(commits.join(BASIS, 1));
        let _second = now(commits.join(BASIS, 1));
        let Turn::First(_third) = commits.join(BASIS, 1) else { panic!("it opens a batch") };
        let closing = commits.close_batch();
        tokio::pin!(closing);
        assert!(futures_pending(closing.as_mut()).await);
        drop(first);
        assert_eq!(closing.await.expect("there is a batch").members.len(), 1);
    }

    #[test]
    fn a_different_view_shares_nothing() {
        let commits = Commits::default();
        let _slots = (now(commits.join(BASIS, 1)), now(commits.join(BASIS, 1)));
        let Turn::First(_third) = commits.join(BASIS, 1) else { panic!("it opens a batch") };
        let other = Basis { truncate_seq: 8, ..BASIS };
        assert!(matches!(commits.join(other, 1), Turn::Now(None)));
    }

    /// Whether it is not ready when polled once.
    async fn futures_pending<T>(mut future: std::pin::Pin<&mut impl Future<Output = T>>) -> bool {
        std::future::poll_fn(|cx| std::task::Poll::Ready(future.as_mut().poll(cx).is_pending())).await
    }
}
