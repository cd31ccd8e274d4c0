//! WRITE.
//!
//! Three ways ([`write_plan`](super::write_plan)): into the znode; over chunk bytes below the size; and, whenever
//! size or layout change, under the *hold*. Chunk bytes go to the data servers first, all pieces at once, then the
//! metadata leader commits size, times and space: bytes beyond the committed size are never shown. Whatever finds
//! the file truncated or spilled meanwhile is done again under a fresh view, as new data operations.
//!
//! A large write behind the committed size goes as several pieces, so that the primary passes the first on while the
//! next is still on its way: nobody can see them before the commit. A write within the size stays one operation per
//! chunk, because others must see all of it or nothing.

use super::commits::{Basis as CommitBasis, Closed, Turn};
use super::node::Node;
use super::write_plan::{Range, Way, way};
use super::{Answer, ZabFs};
use crate::backoff::Backoff;
use crate::data::{Basis, ChunkedFile, DataFailure, Piece};
use crate::fuse::Reply;
use crate::fuse::operation::Write;
use crate::meta::MetaFailure;
use bytes::Bytes;
use protocol::data::IO_MAX;
use protocol::meta::{MetaReply, WriteOp};
use protocol::{Attr, Errno, FileView, Layout, mutant};
use std::rc::Rc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// A WRITE that met this many truncations in a row fails with EIO.
const ROUNDS_MAX: u32 = 1000;
/// Bytes of one piece of a write that nobody sees before its commit.
const UNSEEN_PIECE: u32 = 256 << 10;
/// After giving the hold back on request, this mount lets others take it first.
pub(super) const YIELD: Duration = Duration::from_millis(25);

/// A write on its way.
pub(super) struct Job {
    pub(super) range: Range,
    pub(super) data: Bytes,
    pub(super) kill_privileges: bool,
    /// Of the session when it began.
    pub(super) generation: u64,
    /// Space that earlier rounds allocated and that is not committed yet.
    pub(super) allocated: i64,
    /// Bytes went to data servers: they need an fsync. What is in a znode is durable when the write returns.
    pub(super) reached_chunks: bool,
}

/// How a round ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Round {
    Done,
    /// The view was outdated.
    Again,
}

impl ZabFs {
    pub(super) async fn write(self: &Rc<Self>, node: u64, write: Write) -> Answer {
        self.check_writable()?;
        // Written-back pages may carry any opener's handle: they are the inode's.
        let file = self.handles.file(write.handle).ok().filter(|_| !write.from_cache);
        if !write.from_cache {
            let file = file.as_ref().ok_or(Errno::EBADF)?;
            file.check_change()?;
        }
        let node = self.nodes.get(self.inode(node));
        let length = write.data.len() as u32;
        let append = file.as_ref().is_some_and(|file| file.appends());
        let mut job = Job {
            range: Range { offset: write.offset, length: length.into(), append },
            data: write.data,
            kill_privileges: write.kill_suid_gid,
            generation: self.meta.generation(),
            allocated: 0,
            reached_chunks: false,
        };
        let written = self.write_node(&node, &mut job).await;
        if let Some(file) = file.as_ref().filter(|_| job.reached_chunks) {
            file.dirty.set(true);
        }
        written?;
        if let Some(file) = file.filter(|file| file.is_synchronous()) {
            self.sync_all_of(&node, job.generation, !file.is_wholly_synchronous()).await?;
        }
        Ok(Reply::Written(length))
    }

    async fn write_node(self: &Rc<Self>, node: &Node, job: &mut Job) -> Result<(), Errno> {
        if job.data.is_empty() {
            return Ok(());
        }
        let mut backoff = Backoff::short();
        for round in 0..ROUNDS_MAX {
            if round > 1 {
                backoff.wait().await;
            }
            let view = match node.view() {
                Some(view) => view,
                None => self.fetch_view(node, 0).await?,
            };
            let done = match self.way(&view, job.range).await {
                Way::Inline => {
                    let _gate = node.gate.read().await;
                    self.write_inline(node, job).await?
                }
                Way::Overwrite => {
                    self.consider_deferring(node, job.generation).await;
                    let _gate = node.gate.read().await;
                    job.reached_chunks = true;
                    self.overwrite(node, job).await?
                }
                Way::Hold => {
                    let _gate = node.gate.write().await;
                    job.reached_chunks = true;
                    match self.write_under_hold(node, job).await {
                        Ok(round) => round,
                        Err(errno) => {
                            self.abandon_hold(node, job.generation).await;
                            return Err(errno);
                        }
                    }
                }
            };
            match done {
                Round::Done => return Ok(()),
                Round::Again => node.forget_view(),
            }
        }
        tracing::error!(inode = %node.inode, "a write met {ROUNDS_MAX} truncations in a row and fails with EIO");
        Err(Errno::EIO)
    }

    async fn way(&self, view: &FileView, range: Range) -> Way {
        way(view, range, self.data.pool(view.pool).await.inline_limit)
    }

    async fn write_inline(self: &Rc<Self>, node: &Node, job: &Job) -> Result<Round, Errno> {
        let op = WriteOp::WriteInline {
            inode: node.inode,
            offset: (!job.range.append).then_some(job.range.offset),
            data: job.data.to_vec(),
            kill_privileges: job.kill_privileges,
        };
        match self.meta.write_in(Some(job.generation), op).await {
            Ok(MetaReply::Written { .. }) => {
                node.forget_view();
                Ok(Round::Done)
            }
            Ok(_) => Err(MetaFailure::Unexpected("a write").into()),
            Err(MetaFailure::Respill) => Ok(Round::Again),
            Err(failure) => Err(failure.into()),
        }
    }

    /// Under the shared gate: no write of this mount changes the size meanwhile.
    ///
    /// Bytes and times go out together, as on a local disk: whoever sees the new time too early reads again later,
    /// and a crash in between leaves a time without a change.
    async fn overwrite(self: &Rc<Self>, node: &Node, job: &mut Job) -> Result<Round, Errno> {
        // What was decided before the gate was passed may not hold behind it.
        let Some(view) = node.view() else { return Ok(Round::Again) };
        if self.way(&view, job.range).await != Way::Overwrite {
            return Ok(Round::Again);
        }
        let end = job.range.offset + job.range.length;
        if !job.kill_privileges && job.allocated == 0 && self.may_defer(node, &view) {
            return self.overwrite_deferring(node, &view, end, job).await;
        }
        let committed_space = std::mem::take(&mut job.allocated);
        let (written, committed) = tokio::join!(
            self.write_chunks(&view, job.range.offset, job.data.clone(), job.generation),
            self.commit_overwrite(node, &view, end, committed_space, job)
        );
        let (allocated, result) = written;
        if let Round::Again = committed? {
            job.allocated = committed_space + allocated;
            return Ok(Round::Again);
        }
        job.allocated = allocated;
        match result {
            Err(DataFailure::Stale) => return Ok(Round::Again),
            // Nothing that was not there before, and nothing that has to be undone.
            Err(failure) => return Err(failure.into()),
            Ok(()) if job.allocated == 0 => return Ok(Round::Done),
            Ok(()) => {}
        }
        // A hole was filled: the space it took is known only now.
        self.commit(node, &view, end, Ok(()), job).await
    }

    /// An overwrite that leaves its times for later, if that is still allowed when the data servers have it.
    async fn overwrite_deferring(
        self: &Rc<Self>,
        node: &Node,
        view: &FileView,
        end: u64,
        job: &mut Job,
    ) -> Result<Round, Errno> {
        let (allocated, written) =
            self.write_chunks(view, job.range.offset, job.data.clone(), job.generation).await;
        job.allocated = allocated;
        if written.is_ok() && allocated == 0 && self.may_defer(node, view) {
            self.defer_times(node);
            return Ok(Round::Done);
        }
        self.commit(node, view, end, written, job).await
    }

    /// Under the exclusive gate.
    async fn write_under_hold(self: &Rc<Self>, node: &Node, job: &mut Job) -> Result<Round, Errno> {
        let view = self.take_hold(node, job.generation).await?;
        match self.way(&view, job.range).await {
            // It was cut to nothing while this waited.
            Way::Inline => return self.write_inline(node, job).await,
            Way::Overwrite | Way::Hold => {}
        }
        let start = job.range.start(&view);
        let end = start.checked_add(job.range.length).ok_or(Errno::EFBIG)?;
        if end > self.chunked(&view).await.size_max() {
            return Err(Errno::EFBIG);
        }
        if let Layout::Inline(bytes) = &view.layout
            && !bytes.is_empty()
        {
            // Before the new bytes, which may overlap: two overlapping writes are never in flight at once.
            let bytes = Bytes::copy_from_slice(bytes);
            let (allocated, spilled) = self.write_chunks(&view, 0, bytes, job.generation).await;
            job.allocated += allocated;
            match spilled {
                Ok(()) => {}
                Err(DataFailure::Stale) => return Ok(Round::Again),
                Err(failure) => return Err(failure.into()),
            }
        }
        let (allocated, written) = self.write_chunks(&view, start, job.data.clone(), job.generation).await;
        job.allocated += allocated;
        self.commit(node, &view, end, written, job).await
    }

    /// Makes sure that this session has the hold, and returns the current view. Under the exclusive gate.
    pub(super) async fn take_hold(
        self: &Rc<Self>,
        node: &Node,
        generation: u64,
    ) -> Result<Rc<FileView>, Errno> {
        if node.hold.get() {
            return match node.view() {
                Some(view) => Ok(view),
                None => self.fetch_view(node, 0).await,
            };
        }
        if let Some(until) = node.yield_until.take()
            && until > Instant::now()
        {
            sleep_until(until).await;
        }
        match self.meta.write_in(Some(generation), WriteOp::Hold(node.inode)).await? {
            MetaReply::View(view) => {
                // A session that was lost in this very moment took its holds with it.
                node.hold.set(self.meta.generation() == generation);
                Ok(node.note_view(view))
            }
            _ => Err(MetaFailure::Unexpected("a hold").into()),
        }
    }

    /// An extension failed half-way: what it left past the committed size is cut. Under the exclusive gate.
    async fn abandon_hold(self: &Rc<Self>, node: &Node, generation: u64) {
        if !node.hold.get() {
            return;
        }
        self.end_deferral(node).await;
        if !node.hold.replace(false) {
            return;
        }
        node.forget_view();
        let op = WriteOp::ReleaseHold { inode: node.inode, dirty: true };
        match self.meta.write_in(Some(generation), op).await {
            Ok(_) | Err(MetaFailure::SessionLost) => {}
            Err(failure) => tracing::warn!(inode = %node.inode, %failure, "a hold was not given back"),
        }
    }

    /// Writes bytes to chunk objects, all pieces at once. Returns the change of allocated bytes in any case.
    async fn write_chunks(
        self: &Rc<Self>,
        view: &FileView,
        offset: u64,
        data: Bytes,
        generation: u64,
    ) -> (i64, Result<(), DataFailure>) {
        let basis = Basis { generation, truncations: view.truncations.clone() };
        let file = self.chunked(view).await;
        let most = piece_max(view, offset, data.len());
        let pieces = match file.pieces(offset, data.len() as u64, most) {
            Ok(pieces) => pieces,
            Err(error) => return (0, Err(DataFailure::Rejected(error.to_string()))),
        };
        if let [piece] = pieces.as_slice() {
            return match self.data.write(&basis, *piece, data).await {
                Ok(allocated) => (allocated, Ok(())),
                Err(failure) => (0, Err(failure)),
            };
        }
        let mut writing = JoinSet::new();
        for piece in pieces {
            let (client, basis) = (self.data.clone(), basis.clone());
            let bytes = data.slice(piece.at as usize..piece.at as usize + piece.length as usize);
            writing.spawn_local(async move { client.write(&basis, piece, bytes).await });
        }
        // All of them, also after a failure: what goes on behind a redone write could undo it.
        let (mut allocated, mut result) = (0, Ok(()));
        while let Some(ended) = writing.join_next().await {
            match ended.unwrap_or_else(|error| Err(DataFailure::Rejected(error.to_string()))) {
                Ok(bytes) => allocated += bytes,
                Err(failure) => result = Err(failure),
            }
            if mutant!("write-acknowledged-before-all-groups") {
                writing.detach_all();
            }
        }
        (allocated, result)
    }

    /// Commits an overwrite, together with others that are on their way.
    async fn commit_overwrite(
        self: &Rc<Self>,
        node: &Node,
        view: &FileView,
        end: u64,
        allocated: i64,
        job: &Job,
    ) -> Result<Round, Errno> {
        if allocated != 0 || job.kill_privileges {
            return self.commit_write(node, view, end, allocated, job).await;
        }
        let basis = CommitBasis { generation: job.generation, truncate_seq: view.truncate_seq() };
        let outcome = match node.commits.join(basis, end) {
            Turn::Now(_slot) => return self.commit_write(node, view, end, 0, job).await,
            Turn::Shared(outcome) => outcome,
            Turn::First(outcome) => {
                tokio::task::spawn_local(self.clone().commit_batch(self.nodes.get(node.inode)));
                outcome
            }
        };
        // The task that answers ends early only with the whole mount.
        outcome.await.unwrap_or(Err(Errno::EIO))
    }

    async fn commit_batch(self: Rc<Self>, node: Rc<Node>) {
        let Some(Closed { basis, end, members, slot }) = node.commits.close_batch().await else { return };
        let op = commit_op(&node, basis.truncate_seq, end, 0, false);
        let outcome = self.send_commit(&node, basis.generation, op).await;
        drop(slot);
        for member in members {
            // Who asked may be gone.
            let _ = member.send(outcome);
        }
    }

    /// Commits what was written to chunks.
    pub(super) async fn commit(
        self: &Rc<Self>,
        node: &Node,
        view: &FileView,
        end: u64,
        written: Result<(), DataFailure>,
        job: &Job,
    ) -> Result<Round, Errno> {
        match written {
            Ok(()) => self.commit_write(node, view, end, job.allocated, job).await,
            Err(DataFailure::Stale) => Ok(Round::Again),
            Err(failure) => Err(failure.into()),
        }
    }

    async fn commit_write(
        self: &Rc<Self>,
        node: &Node,
        view: &FileView,
        end: u64,
        allocated: i64,
        job: &Job,
    ) -> Result<Round, Errno> {
        let op = commit_op(node, view.truncate_seq(), end, allocated, job.kill_privileges);
        self.send_commit(node, job.generation, op).await
    }

    async fn send_commit(self: &Rc<Self>, node: &Node, generation: u64, op: WriteOp) -> Result<Round, Errno> {
        match self.meta.write_in(Some(generation), op).await {
            Ok(MetaReply::Written { attr, data_revision, .. }) => {
                self.note_committed(node, attr, data_revision);
                Ok(Round::Done)
            }
            Ok(_) => Err(MetaFailure::Unexpected("a commit").into()),
            Err(MetaFailure::Respill) => Ok(Round::Again),
            Err(failure) => Err(failure.into()),
        }
    }

    fn note_committed(&self, node: &Node, attr: Attr, data_revision: u64) {
        node.note_commit(attr, data_revision, node.hold.get());
    }
}

fn commit_op(node: &Node, truncate_seq: u64, end: u64, allocated: i64, kill_privileges: bool) -> WriteOp {
    WriteOp::CommitWrite { inode: node.inode, truncate_seq, end, allocated, kill_privileges }
}

/// The pieces of a range that a program may name.
pub(super) fn pieces_of(file: &ChunkedFile, offset: u64, length: u64) -> Result<Vec<Piece>, DataFailure> {
    file.pieces(offset, length, IO_MAX).map_err(|error| DataFailure::Rejected(error.to_string()))
}

/// Bytes of one data operation of a write at `start`.
fn piece_max(view: &FileView, start: u64, length: usize) -> u32 {
    let unseen = start >= view.attr.size && length >= 2 * UNSEEN_PIECE as usize;
    if unseen { UNSEEN_PIECE } else { IO_MAX }
}

#[cfg(test)]
#[path = "write_tests.rs"]
mod tests;
