//! What a mount knows about one inode while it has something to do with it.

use super::commits::Commits;
use super::deferral::Deferral;
use protocol::{Attr, FileView, InodeId, Layout};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::{Rc, Weak};
use tokio::sync::RwLock;
use tokio::time::Instant;

/// One inode in use.
pub(crate) struct Node {
    pub(crate) inode: InodeId,
    /// Exclusive for whatever changes size or layout, shared for overwrites. Reads do not take it.
    pub(crate) gate: RwLock<()>,
    view: RefCell<Option<Rc<FileView>>>,
    /// The newest view number seen: an answer that was overtaken by a newer one is ignored.
    newest: Cell<u64>,
    /// This session has the exclusive right to change the size. Changed under the exclusive gate only, except
    /// that a lost session takes it away.
    pub(crate) hold: Cell<bool>,
    /// After a recall, others get the hold first.
    pub(crate) yield_until: Cell<Option<Instant>>,
    /// Handles that may write.
    pub(crate) writers: Cell<u32>,
    /// Owners that took POSIX locks here and have not closed a descriptor since.
    pub(crate) posix_owners: RefCell<BTreeSet<u64>>,
    /// Commits of overwrites on their way.
    pub(crate) commits: Commits,
    /// Overwrites whose times are committed later.
    pub(crate) deferral: Deferral,
}

impl Node {
    fn new(inode: InodeId) -> Self {
        Self {
            inode,
            gate: RwLock::new(()),
            view: RefCell::default(),
            newest: Cell::new(0),
            hold: Cell::new(false),
            yield_until: Cell::new(None),
            writers: Cell::new(0),
            posix_owners: RefCell::default(),
            commits: Commits::default(),
            deferral: Deferral::default(),
        }
    }

    /// The view at hand, current as of some moment. Under the hold it is current.
    pub(crate) fn view(&self) -> Option<Rc<FileView>> {
        self.view.borrow().clone()
    }

    /// Takes a view unless a newer one was seen, and returns it in any case.
    pub(crate) fn note_view(&self, view: FileView) -> Rc<FileView> {
        let view = Rc::new(view);
        if view.data_revision >= self.newest.get() {
            self.newest.set(view.data_revision);
            *self.view.borrow_mut() = Some(view.clone());
        }
        view
    }

    /// A view that no longer holds is forgotten.
    pub(crate) fn forget_view(&self) {
        *self.view.borrow_mut() = None;
    }

    /// A write to chunks was committed. With `hold` nobody else changed the size or layout, so the view follows;
    /// without, it follows if its number is still the same, else it is forgotten.
    pub(crate) fn note_commit(&self, attr: Attr, data_revision: u64, hold: bool) {
        let mut slot = self.view.borrow_mut();
        let Some(view) = slot.as_ref() else { return };
        if data_revision < self.newest.get() {
            return;
        }
        if hold {
            let view = FileView { attr, data_revision, layout: Layout::Chunks, ..FileView::clone(view) };
            self.newest.set(data_revision);
            *slot = Some(Rc::new(view));
        } else if view.data_revision != data_revision {
            *slot = None;
        }
    }
}

/// The inodes in use. An entry lives as long as somebody holds it; what is left of it is swept now and then.
#[derive(Default)]
pub(crate) struct Nodes {
    table: RefCell<BTreeMap<InodeId, Weak<Node>>>,
    swept_at: Cell<usize>,
}

impl Nodes {
    /// The node of `inode`.
    pub(crate) fn get(&self, inode: InodeId) -> Rc<Node> {
        let mut table = self.table.borrow_mut();
        if let Some(node) = table.get(&inode).and_then(Weak::upgrade) {
            return node;
        }
        // Amortised: a sweep costs as much as the insertions since the last one.
        if table.len() > 2 * self.swept_at.get() + 64 {
            table.retain(|_, node| node.strong_count() > 0);
            self.swept_at.set(table.len());
        }
        let node = Rc::new(Node::new(inode));
        table.insert(inode, Rc::downgrade(&node));
        node
    }

    /// The node of `inode`, if it is in use.
    pub(crate) fn find(&self, inode: InodeId) -> Option<Rc<Node>> {
        self.table.borrow().get(&inode).and_then(Weak::upgrade)
    }

    /// Every node in use.
    pub(crate) fn all(&self) -> Vec<Rc<Node>> {
        self.table.borrow().values().filter_map(Weak::upgrade).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::testing::{chunk_view, inline_view};

    #[test]
    fn an_overtaken_view_is_not_taken() {
        let node = Node::new(InodeId(9));
        node.note_view(chunk_view(9, 100, 7));
        node.note_view(inline_view(9, b"old", 5));
        assert_eq!(node.view().map(|view| view.data_revision), Some(7));
        node.forget_view();
        node.note_view(inline_view(9, b"old", 5));
        assert_eq!(node.view(), None, "forgetting does not make old answers new");
    }

    #[test]
    fn a_commit_moves_the_view_under_the_hold_only() {
        let node = Node::new(InodeId(9));
        let view = node.note_view(inline_view(9, b"", 5));
        node.note_commit(Attr { size: 4096, ..view.attr }, 6, true);
        let now = node.view().expect("kept");
        assert_eq!((now.attr.size, now.data_revision, &now.layout), (4096, 6, &Layout::Chunks));
        node.note_commit(now.attr, 6, false);
        assert!(node.view().is_some(), "a plain overwrite leaves it");
        node.note_commit(now.attr, 8, false);
        assert_eq!(node.view(), None, "somebody else changed it");
    }

    #[test]
    fn nodes_are_shared_while_in_use_and_swept_afterwards() {
        let nodes = Nodes::default();
        let first = nodes.get(InodeId(1));
        assert!(Rc::ptr_eq(&first, &nodes.get(InodeId(1))));
        for inode in 2..10_000 {
            drop(nodes.get(InodeId(inode)));
        }
        assert!(nodes.table.borrow().len() < 200);
        assert_eq!(nodes.all().len(), 1);
    }
}
