//! Who waits for which queued lock. Pure.

use protocol::meta::LockResource;
use std::collections::{BTreeMap, VecDeque};
use tokio::sync::oneshot;

/// Most grants kept that nobody waits for yet: they overtook the answer that names their wait.
pub(super) const EARLY_MAX: usize = 1024;

/// A wait in a queue: what is locked, and the number that the server gave it.
pub(super) type WaitKey = (LockResource, u64);

/// The waits of one session.
#[derive(Default)]
pub(super) struct Waits {
    waiting: BTreeMap<WaitKey, oneshot::Sender<u64>>,
    early: VecDeque<(WaitKey, u64)>,
}

impl Waits {
    /// Waits for the grant of `key`; resolves with its token, or fails when the session is lost.
    pub(super) fn wait(&mut self, key: WaitKey) -> oneshot::Receiver<u64> {
        let (sender, receiver) = oneshot::channel();
        match self.early.iter().position(|(early, _)| *early == key) {
            Some(index) => {
                if let Some((_, token)) = self.early.remove(index) {
                    // The receiver is right here.
                    let _ = sender.send(token);
                }
            }
            None => {
                self.waiting.insert(key, sender);
            }
        }
        receiver
    }

    /// A grant came.
    pub(super) fn granted(&mut self, key: WaitKey, token: u64) {
        match self.waiting.remove(&key) {
            // Given up meanwhile: the cancellation gives the grant back.
            Some(sender) => drop(sender.send(token)),
            None => {
                self.early.push_back((key, token));
                if self.early.len() > EARLY_MAX {
                    self.early.pop_front();
                }
            }
        }
    }

    /// Nobody waits for `key` any more.
    pub(super) fn forget(&mut self, key: &WaitKey) {
        self.waiting.remove(key);
        self.early.retain(|(early, _)| early != key);
    }

    /// Whether anybody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The session is lost.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
        self.early.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::InodeId;

    fn key(waiter: u64) -> WaitKey {
        (LockResource::Flock(InodeId(9)), waiter)
    }

    #[test]
    fn a_grant_may_come_before_the_answer_that_names_its_wait() {
        let mut waits = Waits::default();
        waits.granted(key(1), 77);
        assert_eq!(waits.wait(key(1)).try_recv(), Ok(77));
        let mut later = waits.wait(key(2));
        assert!(later.try_recv().is_err());
        waits.granted(key(2), 78);
        assert_eq!(later.try_recv(), Ok(78));
        assert!(waits.is_empty());
    }

    #[test]
    fn unclaimed_grants_are_bounded_and_a_lost_session_ends_waits() {
        let mut waits = Waits::default();
        for waiter in 0..2 * EARLY_MAX as u64 {
            waits.granted(key(waiter), waiter);
        }
        assert_eq!(waits.early.len(), EARLY_MAX);
        let mut waiting = waits.wait(key(u64::MAX));
        waits.clear();
        assert_eq!(waiting.try_recv(), Err(oneshot::error::TryRecvError::Closed));
    }
}
