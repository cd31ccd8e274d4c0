//! Times of overwrites that are committed later.
//!
//! Under the hold nobody else changes size or layout, so an overwrite needs no word from the metadata leader but for its
//! times. With the right to defer (`WriteOp::Defer`) it is answered when the data servers have it, and the times follow:
//! at fsync, before this mount itself looks at or sets attributes, before the hold is given back, when the leader asks
//! because somebody else looks, and after [`DEFER_MAX`] at the latest. The leader tells nobody else the times meanwhile.
//!
//! A question of the leader is answered at once: from then on overwrites commit their times themselves, also those that
//! are on their way. Nothing is waited for, so data servers that are away keep nobody waiting who only wants to look.

use super::ZabFs;
use super::node::Node;
use crate::meta::MetaFailure;
use protocol::meta::{MetaReply, WriteOp};
use protocol::{FileView, InodeId};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Times are committed this long after the first overwrite that deferred them.
const DEFER_MAX: Duration = Duration::from_secs(1);
/// Overwrites that commit their times themselves after which the right is worth a transaction.
const STREAK: u32 = 3;
/// After the leader asked, or somebody else had the hold, the right is not asked for again for so long.
const PAUSE: Duration = Duration::from_secs(1);

/// What a mount has deferred of one file.
#[derive(Default)]
pub(crate) struct Deferral {
    /// This session has the right.
    granted: Cell<bool>,
    /// How often the leader asked for it: a grant that such a question overtook counts for nothing.
    asked: Cell<u64>,
    /// Overwrites that committed their times themselves.
    streak: Cell<u32>,
    not_before: Cell<Option<Instant>>,
    /// Overwrites answered whose times were deferred; those whose commit was sent; those whose commit was answered.
    written: Cell<u64>,
    sent: Cell<u64>,
    settled: Cell<u64>,
    /// Settlements on their way that give the right back.
    giving_back: Cell<i64>,
    /// A task waits for [`DEFER_MAX`].
    is_timed: Cell<bool>,
    progress: Notify,
}

impl Deferral {
    /// Whether another overwrite that commits its times itself makes the right worth asking for.
    fn is_wanted(&self) -> bool {
        if !self.may_ask() {
            return false;
        }
        self.streak.set(self.streak.get() + 1);
        self.streak.get() > STREAK
    }

    /// A grant that is being given back could be taken away by that, so nothing is asked meanwhile.
    fn may_ask(&self) -> bool {
        let is_paused = self.not_before.get().is_some_and(|at| Instant::now() < at);
        !self.granted.get() && self.giving_back.get() == 0 && !is_paused
    }

    fn pause(&self) {
        self.streak.set(0);
        self.not_before.set(Some(Instant::now() + PAUSE));
    }

    /// Whether times of answered overwrites are not committed.
    fn is_open(&self) -> bool {
        self.settled.get() < self.written.get()
    }

    /// The session is lost: the metadata cluster sets the times of what it had deferred.
    pub(super) fn lose(&self) {
        self.granted.set(false);
        self.sent.set(self.written.get());
        self.settle_up_to(self.written.get());
    }

    fn settle_up_to(&self, upto: u64) {
        self.settled.set(self.settled.get().max(upto));
        self.progress.notify_waiters();
    }

    async fn wait_until(&self, is_there: impl Fn(&Self) -> bool) {
        loop {
            let progress = self.progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            if is_there(self) {
                return;
            }
            progress.await;
        }
    }
}

impl ZabFs {
    /// Whether an overwrite under `view` may leave its times for later: asked before and after it.
    pub(super) fn may_defer(&self, node: &Node, view: &FileView) -> bool {
        node.deferral.granted.get() && self.is_surely_held(node, view)
    }

    /// An overwrite is answered now.
    pub(super) fn defer_times(self: &Rc<Self>, node: &Node) {
        let deferral = &node.deferral;
        deferral.written.set(deferral.written.get() + 1);
        if deferral.is_timed.replace(true) {
            return;
        }
        let (fs, node) = (self.clone(), self.nodes.get(node.inode));
        tokio::task::spawn_local(async move {
            tokio::time::sleep(DEFER_MAX).await;
            node.deferral.is_timed.set(false);
            fs.settle_times(&node).await;
        });
    }

    /// Asks for the right if it is worth it. Not under the gate.
    pub(super) async fn consider_deferring(&self, node: &Node, generation: u64) {
        // It is given back with the hold when the last handle that may write is closed.
        if node.writers.get() == 0 || !node.deferral.is_wanted() {
            return;
        }
        let _gate = node.gate.write().await;
        if !node.deferral.may_ask() {
            return;
        }
        let asked = node.deferral.asked.get();
        // A hold that another mount has stays there: overwrites need none.
        match self.meta.write_or_busy(generation, WriteOp::Defer(node.inode)).await {
            Ok(Some(MetaReply::View(view))) if self.meta.generation() == generation => {
                node.hold.set(true);
                node.note_view(view);
                node.deferral.granted.set(node.deferral.asked.get() == asked);
            }
            _ => node.deferral.pause(),
        }
    }

    /// Returns when the times of every overwrite answered so far are committed.
    pub(super) async fn settle_times(self: &Rc<Self>, node: &Node) {
        let upto = node.deferral.written.get();
        if node.deferral.sent.get() < upto {
            self.send_settlement(node, false);
        }
        node.deferral.wait_until(|deferral| deferral.settled.get() >= upto).await;
    }

    /// As [`settle_times`](Self::settle_times); whether anything had to be committed.
    pub(super) async fn settle_inode(self: &Rc<Self>, inode: InodeId) -> bool {
        match self.nodes.find(inode) {
            Some(node) if node.deferral.is_open() => {
                self.settle_times(&node).await;
                true
            }
            _ => false,
        }
    }

    /// The times of every file.
    pub(super) async fn settle_all(self: &Rc<Self>) {
        for node in self.nodes.all() {
            self.settle_times(&node).await;
        }
    }

    /// Commits what is deferred and gives the right back, before the hold is given back. Under the exclusive gate.
    pub(super) async fn end_deferral(self: &Rc<Self>, node: &Node) {
        if node.deferral.granted.replace(false) {
            self.send_settlement(node, true);
        }
        self.settle_times(node).await;
        node.deferral.wait_until(|deferral| deferral.giving_back.get() == 0).await;
    }

    /// The leader asks.
    pub(super) fn settle_for_others(self: &Rc<Self>, inode: InodeId) {
        let node = self.nodes.get(inode);
        node.deferral.asked.set(node.deferral.asked.get() + 1);
        node.deferral.granted.set(false);
        node.deferral.pause();
        // Also if nothing is deferred (any more): the answer is what the other mount waits for. It asks again and again.
        if node.deferral.giving_back.get() == 0 {
            self.send_settlement(&node, true);
        }
    }

    fn send_settlement(self: &Rc<Self>, node: &Node, done: bool) {
        let upto = node.deferral.written.get();
        let changed = node.deferral.sent.replace(upto) < upto;
        let (fs, node) = (self.clone(), self.nodes.get(node.inode));
        let generation = self.meta.generation();
        let giving_back = move |node: &Node, by: i64| {
            let count = node.deferral.giving_back.get();
            node.deferral.giving_back.set(if done { count + by } else { count });
        };
        giving_back(&node, 1);
        tokio::task::spawn_local(async move {
            let op = WriteOp::Settle { inode: node.inode, changed, done };
            match fs.meta.write_in(Some(generation), op).await {
                Ok(_) | Err(MetaFailure::SessionLost) => {}
                Err(failure) => tracing::warn!(inode = %node.inode, %failure, "times were not committed"),
            }
            giving_back(&node, -1);
            node.deferral.settle_up_to(upto);
        });
    }
}
