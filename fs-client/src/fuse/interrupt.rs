//! How an operation learns that its caller wants to stop waiting.
//!
//! The kernel sends INTERRUPT once per request, at the first signal of any kind. Waits that are indefinite by
//! nature (lock, queue, barrier) await [`Interrupt::any_signal`] and answer EINTR. Everything else ignores
//! signals; the dispatcher itself answers EINTR when one is fatal, and the operation runs on.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// One request's view of signals. Clones share the state.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Rc<State>);

#[derive(Debug, Default)]
struct State {
    signalled: Cell<bool>,
    abandoned: Cell<bool>,
    listening: Cell<bool>,
    wakers: RefCell<Vec<Waker>>,
}

impl Interrupt {
    /// One that never fires unless its owner fires it: for operations that no request started, and tests.
    pub fn new() -> Self {
        Self::default()
    }

    /// Resolves once any signal, fatal or not, came for the caller, or the request was abandoned.
    /// For waits that are indefinite by nature; the operation then answers EINTR.
    pub async fn any_signal(&self) {
        self.0.listening.set(true);
        poll_fn(|context| {
            if self.is_signalled() {
                return Poll::Ready(());
            }
            let mut wakers = self.0.wakers.borrow_mut();
            if !wakers.iter().any(|w| w.will_wake(context.waker())) {
                wakers.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }

    /// Whether a signal came, or the request was abandoned.
    pub fn is_signalled(&self) -> bool {
        self.0.signalled.get()
    }

    /// Whether the dispatcher already answered (EINTR after a fatal signal, or ETIMEDOUT): the reply will be
    /// undone. An operation that would take something for its caller (a lock) must give it back instead.
    pub fn is_abandoned(&self) -> bool {
        self.0.abandoned.get()
    }

    /// Reports a signal.
    pub fn signal(&self) {
        self.0.signalled.set(true);
        for waker in self.0.wakers.take() {
            waker.wake();
        }
    }

    /// Reports that the request was answered without the operation.
    pub fn abandon(&self) {
        self.0.abandoned.set(true);
        self.signal();
    }

    /// Whether the operation awaited [`any_signal`](Self::any_signal), so that it answers signals itself.
    pub(super) fn is_heard(&self) -> bool {
        self.0.listening.get()
    }
}
