//! FSYNC.
//!
//! Metadata is on disks of a majority when it is answered, and the bytes of inline files with it. Chunk bytes are
//! on every in-sync replica, but not on stable storage: that is asked of the primaries of all groups that the file
//! can have chunks in, because another mount may have written to any of them. Deferred times are committed meanwhile,
//! unless only the data is asked for.

use super::handles::Lost;
use super::node::Node;
use super::{Answer, ZabFs};
use crate::fuse::Reply;
use protocol::{Errno, Layout, mutant};
use std::rc::Rc;

impl ZabFs {
    pub(super) async fn fsync(self: &Rc<Self>, node: u64, handle: u64, data_only: bool) -> Answer {
        let file = self.handles.file(handle)?;
        if matches!(file.lost.get(), Lost::Writes | Lost::File) {
            return Err(Errno::EIO);
        }
        let generation = self.meta.generation();
        let node = self.nodes.get(self.inode(node));
        // Before it: what is written meanwhile is not covered.
        file.dirty.set(false);
        if let Err(errno) = self.sync_all_of(&node, generation, data_only).await {
            file.dirty.set(!mutant!("failed-fsync-cleans-the-file"));
            return Err(errno);
        }
        Ok(Reply::Done)
    }

    /// As [`sync_node`](Self::sync_node), and the times with it unless `data_only`.
    pub(super) async fn sync_all_of(
        self: &Rc<Self>,
        node: &Node,
        generation: u64,
        data_only: bool,
    ) -> Result<(), Errno> {
        if data_only {
            return self.sync_node(node, generation).await;
        }
        let (synced, ()) = tokio::join!(self.sync_node(node, generation), self.settle_times(node));
        synced
    }

    /// Returns when everything written to the file so far is on stable storage.
    pub(super) async fn sync_node(self: &Rc<Self>, node: &Node, generation: u64) -> Result<(), Errno> {
        let view = match node.view() {
            Some(view) if self.is_surely_held(node, &view) => view,
            Some(view) => self.fetch_view(node, view.data_revision).await?,
            None => self.fetch_view(node, 0).await?,
        };
        if view.layout != Layout::Chunks {
            return Ok(());
        }
        let file = self.chunked(&view).await;
        let groups = self.data.groups_of(&file, view.attr.size);
        Ok(self.data.sync(generation, groups).await?)
    }

    /// Everything that this mount wrote.
    pub(crate) async fn syncfs(self: &Rc<Self>) -> Answer {
        let (synced, ()) = tokio::join!(self.data.sync_all(self.meta.generation()), self.settle_all());
        synced?;
        Ok(Reply::Done)
    }
}
