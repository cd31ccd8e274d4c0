//! READ.
//!
//! The view at hand is used at once: data is asked for while the metadata leader confirms the view. "Unchanged"
//! means that the view held from before this READ until the confirmation, so the bytes are those of one moment in
//! between. Otherwise the data is asked for again under the view that came instead.

use super::node::Node;
use super::{Answer, ZabFs};
use crate::backoff::Backoff;
use crate::data::{Basis, ChunkedFile, DataFailure, Piece};
use crate::fuse::Reply;
use crate::meta::MetaFailure;
use crate::os;
use bytes::Bytes;
use protocol::data::IO_MAX;
use protocol::meta::{MetaReply, ReadOp};
use protocol::{Errno, FileView, Layout};
use std::rc::Rc;
use tokio::task::JoinSet;

/// A READ that met this many truncations in a row fails with EIO.
const ROUNDS_MAX: u32 = 1000;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

impl ZabFs {
    pub(super) async fn read(self: &Rc<Self>, node: u64, handle: u64, offset: u64, size: u32) -> Answer {
        // The page cache may name any handle, or one that is closed by now.
        if let Ok(file) = self.handles.file(handle) {
            file.check_read()?;
        }
        let node = self.nodes.get(self.inode(node));
        let parts = self.read_node(&node, offset, size).await?;
        Ok(Reply::DataParts(parts))
    }

    async fn read_node(self: &Rc<Self>, node: &Node, offset: u64, size: u32) -> Result<Vec<Bytes>, Errno> {
        let mut backoff = Backoff::short();
        let mut fresh: Option<Rc<FileView>> = None;
        for round in 0..ROUNDS_MAX {
            let read = match (fresh.take(), node.view()) {
                (Some(view), _) => self.fetch(&view, offset, size).await,
                (None, None) => {
                    fresh = Some(self.fetch_view(node, 0).await?);
                    continue;
                }
                (None, Some(view)) if self.is_surely_held(node, &view) => {
                    let read = self.fetch(&view, offset, size).await;
                    // Still held at the end: the view held all the time.
                    if !self.is_surely_held(node, &view) {
                        continue;
                    }
                    read
                }
                (None, Some(view)) => {
                    let fetching = self.fetch(&view, offset, size);
                    let confirming = self.fetch_view(node, view.data_revision);
                    let (read, confirmed) = tokio::join!(fetching, confirming);
                    let confirmed = confirmed?;
                    if confirmed.data_revision != view.data_revision {
                        fresh = Some(confirmed);
                        continue;
                    }
                    read
                }
            };
            match read {
                Err(DataFailure::Stale) => {
                    if round > 0 {
                        backoff.wait().await;
                    }
                    fresh = Some(self.fetch_view(node, 0).await?);
                }
                // Reading changes nothing: the next session may do it.
                Err(DataFailure::SessionLost) => {}
                other => return Ok(other?),
            }
        }
        tracing::error!(inode = %node.inode, "a read met {ROUNDS_MAX} truncations in a row and fails with EIO");
        Err(Errno::EIO)
    }

    /// Whether nobody else can have changed the size or layout: this session has the hold, and has surely not
    /// expired.
    pub(super) fn is_surely_held(&self, node: &Node, view: &FileView) -> bool {
        let is_valid = || self.meta.session().is_some_and(|session| os::boottime() < session.valid_until);
        node.hold.get()
            && view.layout == Layout::Chunks
            && node.view().is_some_and(|now| now.data_revision == view.data_revision)
            && is_valid()
    }

    /// The view as of now; the one at hand if its number is `known` and still current.
    pub(super) async fn fetch_view(&self, node: &Node, known: u64) -> Result<Rc<FileView>, Errno> {
        loop {
            // Under `known` 0 the server always sends one.
            let at_hand = node.view().filter(|view| view.data_revision == known);
            let known = at_hand.as_ref().map_or(0, |view| view.data_revision);
            match self.meta.read(ReadOp::View { inode: node.inode, known }).await? {
                MetaReply::View(view) => return Ok(node.note_view(view)),
                MetaReply::Unchanged => match at_hand {
                    Some(view) => return Ok(view),
                    None => continue,
                },
                _ => return Err(MetaFailure::Unexpected("a view").into()),
            }
        }
    }

    /// The bytes under a view, up to its size.
    async fn fetch(
        self: &Rc<Self>,
        view: &FileView,
        offset: u64,
        size: u32,
    ) -> Result<Vec<Bytes>, DataFailure> {
        let length = view.attr.size.saturating_sub(offset).min(u64::from(size));
        if length == 0 {
            return Ok(vec![]);
        }
        match &view.layout {
            Layout::Inline(bytes) => {
                let start = offset.min(bytes.len() as u64) as usize;
                let end = (offset + length).min(bytes.len() as u64) as usize;
                let mut parts = vec![Bytes::copy_from_slice(&bytes[start..end])];
                pad(&mut parts, (end - start) as u64, length);
                Ok(parts)
            }
            Layout::Chunks => {
                let file = self.chunked(view).await;
                let pieces = file
                    .pieces(offset, length, IO_MAX)
                    .map_err(|error| DataFailure::Rejected(error.to_string()))?;
                let generation = self.meta.generation();
                let basis = Basis { generation, truncations: view.truncations.clone() };
                self.fetch_pieces(basis, pieces).await
            }
        }
    }

    async fn fetch_pieces(
        self: &Rc<Self>,
        basis: Basis,
        pieces: Vec<Piece>,
    ) -> Result<Vec<Bytes>, DataFailure> {
        let mut read: Vec<Option<Bytes>> = vec![None; pieces.len()];
        if let [piece] = pieces.as_slice() {
            read[0] = Some(self.data.read(&basis, *piece).await?);
        } else {
            let mut reading = JoinSet::new();
            for (index, piece) in pieces.iter().copied().enumerate() {
                let (data, basis) = (self.data.clone(), basis.clone());
                reading.spawn_local(async move { (index, data.read(&basis, piece).await) });
            }
            while let Some(ended) = reading.join_next().await {
                let (index, bytes) = ended.map_err(|error| DataFailure::Rejected(error.to_string()))?;
                read[index] = Some(bytes?);
            }
        }
        let mut parts = Vec::with_capacity(pieces.len());
        for (piece, bytes) in pieces.iter().zip(read) {
            let bytes = bytes.unwrap_or_default();
            let length = bytes.len() as u64;
            parts.push(bytes);
            pad(&mut parts, length, u64::from(piece.length));
        }
        Ok(parts)
    }

    /// Where the chunks of a file are.
    pub(super) async fn chunked(&self, view: &FileView) -> ChunkedFile {
        let pool = self.data.pool(view.pool).await;
        ChunkedFile { pool: view.pool, inode: view.attr.inode, chunk_size: pool.chunk_size.max(1) }
    }
}

/// What is missing reads as zeros.
fn pad(parts: &mut Vec<Bytes>, mut have: u64, want: u64) {
    while have < want {
        let take = (want - have).min(ZEROS.len() as u64) as usize;
        parts.push(Bytes::from_static(&ZEROS).slice(..take));
        have += take as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_reads_as_zeros() {
        let mut parts = vec![Bytes::from_static(b"ab")];
        pad(&mut parts, 2, 200_000);
        let whole: Vec<u8> = parts.concat();
        assert_eq!(whole.len(), 200_000);
        assert!(whole.starts_with(b"ab\0\0") && whole[2..].iter().all(|b| *b == 0));
    }
}
