//! The state behind a store, and the three steps that move it: write, sync, checkpoint.
//!
//! No step needs a thread of its own: [`Store`](super::Store) runs them on threads, a simulation calls them one by
//! one. Lock order: `checkpointing`, `syncing`, `state`; file writes and syncs happen without `state`.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use protocol::mutant;
use tokio::sync::watch;

use super::{
    alloc::Allocator,
    config::StoreConfig,
    contents::{Contents, InFlight},
    disk::DiskFile,
    extents::{ExtentFiles, locked},
    index::{Base, CheckpointRecord, Index},
    journal::{Journal, JournalFull, JournalWrite},
    layer::Layer,
    prep::{Limits, Prepared, prepare},
    record,
    stage::Below,
    types::{BLOCK_BYTES, Progress, Space, StoreError, Submitted, Ticket, Transaction},
};

/// Contents of one transaction, at most: two of the largest objects.
const TRANSACTION_BYTES_MAX: usize = 128 << 20;

/// Bytes on their way to the files.
#[derive(Debug)]
struct QueuedWrite {
    seq: u64,
    extents: Vec<(u64, Bytes)>,
    journal: Vec<JournalWrite>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) active: Layer,
    pub(super) frozen: Option<Arc<Layer>>,
    pub(super) base: Arc<Base>,
    pub(super) alloc: Allocator,
    pub(super) journal: Journal,
    pub(super) in_flight: InFlight,
    in_flight_bytes: usize,
    queue: VecDeque<QueuedWrite>,
    /// Somebody is writing what was in the queue.
    writing: bool,
    pub(super) last_seq: u64,
    written: u64,
    durable: u64,
    sync_wanted: u64,
    capacity_blocks: u64,
    /// As the configuration said, until somebody said otherwise.
    full_ratio: f64,
    pub(super) checkpoint_wanted: bool,
    /// A transaction was told `Busy` for lack of free blocks.
    space_blocked: bool,
    failed: Option<String>,
    pub(super) stopping: bool,
}

/// A layer on its way into the index.
#[derive(Debug)]
pub(super) struct Frozen {
    layer: Arc<Layer>,
    record: CheckpointRecord,
}

/// What a freshly recovered store starts with.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) active: Layer,
    pub(super) base: Arc<Base>,
    pub(super) alloc: Allocator,
    pub(super) journal: Journal,
    pub(super) first_header: JournalWrite,
    pub(super) last_seq: u64,
    pub(super) capacity_blocks: u64,
}

#[derive(Debug)]
pub(super) struct Core {
    pub(super) config: StoreConfig,
    pub(super) uuid: [u8; 16],
    pub(super) incarnation: u64,
    pub(super) index: Index,
    pub(super) extents: ExtentFiles,
    journal_file: Arc<dyn DiskFile>,
    state: Mutex<State>,
    syncing: Mutex<()>,
    checkpointing: Mutex<()>,
    /// The threads wait on these; the last is for anyone who waits for `written`, `durable` or `failed`.
    pub(super) write_signal: Condvar,
    pub(super) sync_signal: Condvar,
    pub(super) checkpoint_signal: Condvar,
    changed: Condvar,
    progress: watch::Sender<Progress>,
    room: watch::Sender<()>,
}

impl State {
    pub(super) fn below(&self) -> Below<'_> {
        Below { active: &self.active, frozen: self.frozen.as_deref(), base: &self.base }
    }

    pub(super) fn contents<'a>(&'a self, extents: &'a ExtentFiles) -> Contents<'a> {
        Contents { active: &self.active, frozen: self.frozen.as_deref(), in_flight: &self.in_flight, extents }
    }

    pub(super) fn dirty_bytes(&self) -> usize {
        self.active.bytes + self.frozen.as_ref().map_or(0, |f| f.bytes) + self.in_flight_bytes
    }

    pub(super) fn check(&self) -> Result<(), StoreError> {
        self.failed.clone().map_or(Ok(()), |why| Err(StoreError::Failed(why)))
    }

    pub(super) fn has_writes(&self) -> bool {
        !self.queue.is_empty() && !self.writing && self.failed.is_none()
    }

    pub(super) fn wants_sync(&self) -> bool {
        self.failed.is_none() && self.sync_wanted > self.durable && self.written > self.durable
    }

    pub(super) fn is_failed(&self) -> bool {
        self.failed.is_some()
    }

    fn releasing_blocks(&self) -> u64 {
        self.active.freed_blocks() + self.frozen.as_ref().map_or(0, |f| f.freed_blocks())
    }

    fn limits(&self, config: &StoreConfig) -> Limits {
        Limits {
            large_write_bytes: config.large_write_bytes,
            capacity_blocks: self.capacity_blocks,
            full_blocks: (self.capacity_blocks as f64 * self.full_ratio) as u64,
            releasing_blocks: self.releasing_blocks(),
            releasing_unknown: self.active.clears_objects()
                || self.frozen.as_ref().is_some_and(|f| f.clears_objects()),
        }
    }

    fn has_room(&self, config: &StoreConfig) -> bool {
        self.dirty_bytes() < config.dirty_bytes_max && self.journal.has_room() && !self.space_blocked
    }

    /// Whether enough has gathered for a checkpoint before its time. Freed blocks count so that churn does not spread
    /// the store over the disk: they stay below a tenth of what is in use (or 16 MiB in a small store).
    fn is_due(&self, config: &StoreConfig) -> bool {
        let used = self.alloc.allocated_blocks();
        let freed_max = (used / 10).max((16 << 20) / BLOCK_BYTES as u64).min(self.capacity_blocks / 10);
        self.active.bytes >= config.dirty_bytes_max / 2 || self.active.freed_blocks() > freed_max
    }
}

impl Core {
    pub(super) fn new(
        (config, uuid, incarnation): (StoreConfig, [u8; 16], u64),
        (index, extents, journal_file): (Index, ExtentFiles, Arc<dyn DiskFile>),
        start: Start,
    ) -> Result<Self, StoreError> {
        write_journal(&*journal_file, &start.first_header)?;
        let seq = start.last_seq;
        let state = State {
            active: start.active,
            frozen: None,
            base: start.base,
            alloc: start.alloc,
            journal: start.journal,
            in_flight: InFlight::new(),
            in_flight_bytes: 0,
            queue: VecDeque::new(),
            writing: false,
            last_seq: seq,
            written: seq,
            durable: seq,
            sync_wanted: seq,
            capacity_blocks: start.capacity_blocks,
            full_ratio: config.full_ratio,
            checkpoint_wanted: false,
            space_blocked: false,
            failed: None,
            stopping: false,
        };
        Ok(Self {
            config,
            uuid,
            incarnation,
            index,
            extents,
            journal_file,
            state: Mutex::new(state),
            syncing: Mutex::new(()),
            checkpointing: Mutex::new(()),
            write_signal: Condvar::new(),
            sync_signal: Condvar::new(),
            checkpoint_signal: Condvar::new(),
            changed: Condvar::new(),
            progress: watch::Sender::new(Progress { written: seq, durable: seq, failed: None }),
            room: watch::Sender::new(()),
        })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    pub(super) fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    pub(super) fn room(&self) -> watch::Receiver<()> {
        self.room.subscribe()
    }

    pub(super) fn has_room(&self) -> Result<bool, StoreError> {
        let state = self.state();
        state.check()?;
        Ok(state.has_room(&self.config))
    }

    pub(super) fn set_full_ratio(&self, ratio: f64) {
        self.state().full_ratio = ratio.clamp(0.01, 1.0);
    }

    pub(super) fn space(&self) -> Space {
        let state = self.state();
        let limits = state.limits(&self.config);
        let block = BLOCK_BYTES as u64;
        Space {
            capacity: limits.capacity_blocks * block,
            used: (state.alloc.allocated_blocks().saturating_sub(limits.releasing_blocks)) * block,
            releasing: limits.releasing_blocks * block,
            full_at: limits.full_blocks * block,
            preallocated: self.extents.bytes(),
        }
    }

    /// Orders a transaction and makes it visible. With `write_now`, one that fits the journal is also written to it by
    /// the caller if nobody else is writing: that saves waking another thread.
    pub(super) fn submit(&self, transaction: &Transaction, write_now: bool) -> Result<Submitted, StoreError> {
        check_size(transaction)?;
        let mut state = self.state();
        state.check()?;
        if state.stopping {
            return Err(StoreError::Failed("it is closed".to_string()));
        }
        if state.dirty_bytes() >= self.config.dirty_bytes_max {
            return Err(self.busy(&mut state, false));
        }
        let limits = state.limits(&self.config);
        let prepared = self.prepare(&mut state, transaction, limits)?;
        let submitted = self.order(&mut state, prepared)?;
        if state.is_due(&self.config) && !state.checkpoint_wanted {
            self.want_checkpoint(&mut state);
        }
        let alone = !state.writing && state.queue.len() == 1 && state.queue[0].extents.is_empty();
        drop(state);
        if write_now && alone {
            self.write_step();
        } else {
            self.write_signal.notify_one();
        }
        Ok(submitted)
    }

    fn prepare(
        &self,
        state: &mut State,
        transaction: &Transaction,
        limits: Limits,
    ) -> Result<Prepared, StoreError> {
        let State { active, frozen, base, alloc, in_flight, .. } = state;
        let below = Below { active, frozen: frozen.as_deref(), base };
        let contents = Contents { active, frozen: frozen.as_deref(), in_flight, extents: &self.extents };
        let prepared = prepare(transaction, below, contents, alloc, &self.extents, limits);
        match prepared {
            Err(StoreError::Busy) => Err(self.busy(state, true)),
            Err(StoreError::Failed(why)) => Err(self.fail_locked(state, why)),
            other => other,
        }
    }

    /// Gives a prepared transaction its place.
    fn order(&self, state: &mut State, prepared: Prepared) -> Result<Submitted, StoreError> {
        let Prepared { layer, changes, writes } = prepared;
        let seq = state.last_seq + 1;
        let placed = record::encode(&changes).and_then(|body| {
            if body.len() > state.journal.body_bytes_max() {
                return Err(StoreError::Invalid(format!(
                    "the transaction takes {} bytes of journal, at most {} fit: split it",
                    body.len(),
                    state.journal.body_bytes_max()
                )));
            }
            let segment = state.journal.segment();
            let placed = state.journal.append(seq, state.durable, &body);
            state.checkpoint_wanted |= state.journal.segment() != segment;
            placed.map_err(|JournalFull| StoreError::Busy)
        });
        let journal = match placed {
            Ok(journal) => journal,
            Err(error) => {
                layer.allocated.iter().for_each(|run| state.alloc.release(*run));
                return Err(if error == StoreError::Busy { self.busy(state, false) } else { error });
            }
        };
        let blocks = |runs: &[super::object::Run]| runs.iter().map(|r| i64::from(r.len)).sum::<i64>();
        let allocated_delta = (blocks(&layer.allocated) - blocks(&layer.freed)) * BLOCK_BYTES as i64;
        state.last_seq = seq;
        if mutant!("written-before-the-write") {
            state.written = seq;
            self.publish(state);
        }
        if mutant!("extents-freed-at-once") {
            layer.freed.iter().for_each(|run| state.alloc.release(*run));
        }
        state.active.absorb(layer);
        for (start, bytes) in &writes {
            state.in_flight_bytes += bytes.len();
            state.in_flight.insert(*start, bytes.clone());
        }
        state.queue.push_back(QueuedWrite { seq, extents: writes, journal });
        if state.checkpoint_wanted {
            self.checkpoint_signal.notify_one();
        }
        Ok(Submitted { ticket: Ticket(seq), allocated_delta })
    }

    fn busy(&self, state: &mut State, for_space: bool) -> StoreError {
        state.space_blocked |= for_space;
        self.want_checkpoint(state);
        StoreError::Busy
    }

    fn want_checkpoint(&self, state: &mut State) {
        state.checkpoint_wanted = true;
        self.checkpoint_signal.notify_one();
    }

    /// Asks for an fsync that covers `seq`, without waiting.
    pub(super) fn request_durable(&self, seq: u64) {
        let mut state = self.state();
        state.sync_wanted = state.sync_wanted.max(seq.min(state.last_seq));
        if state.wants_sync() {
            self.sync_signal.notify_one();
        }
    }

    pub(super) fn is_owed(&self) -> bool {
        let state = self.state();
        state.writing || !state.queue.is_empty() || state.wants_sync()
    }

    /// Writes what is queued, unless somebody is at it. Returns whether there was anything.
    pub(super) fn write_step(&self) -> bool {
        let mut state = self.state();
        if state.writing || state.queue.is_empty() || state.is_failed() {
            return false;
        }
        state.writing = true;
        let batch = std::mem::take(&mut state.queue);
        drop(state);
        let result = self.write_batch(&batch);
        let mut state = self.state();
        state.writing = false;
        if let Err(StoreError::Failed(why)) = result {
            self.fail_locked(&mut state, why);
            return true;
        }
        for (start, bytes) in batch.iter().flat_map(|item| &item.extents) {
            state.in_flight.remove(start);
            state.in_flight_bytes -= bytes.len();
        }
        state.written = batch.back().map_or(state.written, |item| item.seq);
        if state.wants_sync() {
            self.sync_signal.notify_one();
        }
        if state.has_writes() {
            self.write_signal.notify_one();
        }
        self.publish(&state);
        true
    }

    /// Contents before the records that speak of them; neighbouring records in one call.
    fn write_batch(&self, batch: &VecDeque<QueuedWrite>) -> Result<(), StoreError> {
        for (start, bytes) in batch.iter().flat_map(|item| &item.extents) {
            self.extents.write(*start, bytes).map_err(|e| StoreError::io("write to the extents", &e))?;
            self.extents.write_behind(*start, bytes.len());
        }
        let mut pending: Option<(u64, Vec<u8>)> = None;
        for write in batch.iter().flat_map(|item| &item.journal) {
            match &mut pending {
                Some((at, bytes)) if *at + bytes.len() as u64 == write.offset => {
                    bytes.extend_from_slice(&write.bytes)
                }
                _ => {
                    self.flush_journal(pending.take())?;
                    pending = Some((write.offset, write.bytes.to_vec()));
                }
            }
        }
        self.flush_journal(pending)
    }

    fn flush_journal(&self, pending: Option<(u64, Vec<u8>)>) -> Result<(), StoreError> {
        let Some((offset, bytes)) = pending else { return Ok(()) };
        write_journal(&*self.journal_file, &JournalWrite { offset, bytes: Bytes::from(bytes) })
    }

    /// Makes durable what is written.
    pub(super) fn sync_step(&self) -> Result<(), StoreError> {
        let _one_at_a_time = locked(&self.syncing);
        let state = self.state();
        state.check()?;
        let target = state.written;
        if target == state.durable {
            return Ok(());
        }
        drop(state);
        let contents = if mutant!("fsync-without-contents") { Ok(()) } else { self.extents.sync() };
        let journal = if mutant!("fsync-without-journal") { Ok(()) } else { self.journal_file.sync() };
        let result = contents.and(journal);
        let result = if mutant!("failed-data-fsync-ignored") { Ok(()) } else { result };
        let mut state = self.state();
        match result {
            Ok(()) => {
                state.durable = state.durable.max(target);
                self.publish(&state);
                state.check()
            }
            Err(error) => Err(self.fail_locked(&mut state, format!("could not sync to the disk: {error}"))),
        }
    }

    /// Makes everything up to `seq` durable, on this thread.
    pub(super) fn sync_to(&self, seq: u64) -> Result<(), StoreError> {
        loop {
            let state = self.state();
            state.check()?;
            if state.durable >= seq {
                return Ok(());
            }
            if state.written >= seq {
                drop(state);
                self.sync_step()?;
            } else if state.writing {
                drop(self.changed.wait(state).unwrap_or_else(PoisonError::into_inner));
            } else {
                drop(state);
                self.write_step();
            }
        }
    }

    /// Moves everything submitted so far into the extents and the index, and frees its journal segments. New
    /// transactions go on meanwhile. One at a time.
    pub(super) fn checkpoint(&self) -> Result<(), StoreError> {
        let _one_at_a_time = locked(&self.checkpointing);
        self.freeze()?.map_or(Ok(()), |frozen| self.thaw(frozen))
    }

    /// Ends the active layer at a journal segment's end.
    pub(super) fn freeze(&self) -> Result<Option<Frozen>, StoreError> {
        let mut state = self.state();
        state.check()?;
        state.checkpoint_wanted = false;
        if state.active.is_empty() {
            state.space_blocked = false;
            self.publish(&state);
            return Ok(None);
        }
        let (seq, durable) = (state.last_seq, state.durable);
        if let Some(header) = state.journal.rotate(seq + 1, durable) {
            state.queue.push_back(QueuedWrite { seq, extents: Vec::new(), journal: vec![header] });
            self.write_signal.notify_one();
        }
        let layer = Arc::new(std::mem::take(&mut state.active));
        if mutant!("journal-freed-before-the-checkpoint") {
            let segment = state.journal.segment();
            state.journal.release_before(segment);
        }
        state.frozen = Some(Arc::clone(&layer));
        let segment = state.journal.segment();
        let record = CheckpointRecord { uuid: self.uuid, seq, incarnation: self.incarnation, segment };
        Ok(Some(Frozen { layer, record }))
    }

    /// Makes a frozen layer part of the index.
    pub(super) fn thaw(&self, Frozen { layer, record }: Frozen) -> Result<(), StoreError> {
        let synced = if mutant!("checkpoint-before-the-journal") { Ok(()) } else { self.sync_to(record.seq) };
        let result = synced.and_then(|()| write_blocks(&self.extents, &layer)).and_then(|()| {
            let freed = self.index.commit(&layer, &record)?;
            Ok((freed, self.index.base()?))
        });
        let mut state = self.state();
        let (freed, base) = match result {
            Ok(result) => result,
            Err(error) => return Err(self.fail_locked(&mut state, failure_text(error))),
        };
        state.base = base;
        state.frozen = None;
        freed.into_iter().for_each(|run| state.alloc.release(run));
        state.journal.release_before(record.segment);
        state.space_blocked = false;
        self.publish(&state);
        Ok(())
    }

    /// Stops the store for good; returns the error to hand out.
    fn fail_locked(&self, state: &mut State, why: String) -> StoreError {
        if state.failed.is_none() {
            tracing::error!(
                "the chunk store stops: {why}; what was synced is safe, restart after the disk is mended"
            );
            state.failed = Some(why.clone());
        }
        self.publish(state);
        StoreError::Failed(why)
    }

    fn publish(&self, state: &State) {
        self.changed.notify_all();
        let now = Progress { written: state.written, durable: state.durable, failed: state.failed.clone() };
        self.progress.send_if_modified(|progress| {
            let modified = *progress != now;
            *progress = now;
            modified
        });
        self.room.send_replace(());
    }
}

/// Contents that rode in the journal go to their blocks. They are durable in the journal by now, so a power failure
/// may tear a block here: replaying writes it again.
pub(super) fn write_blocks(extents: &ExtentFiles, layer: &Layer) -> Result<(), StoreError> {
    let failed = |e: std::io::Error| StoreError::io("write a checkpoint to the extents", &e);
    let (mut start, mut written) = (0, BTreeSet::new());
    let mut pending: Vec<u8> = Vec::new();
    for (block, bytes) in &layer.blocks {
        let end = start + (pending.len() / BLOCK_BYTES) as u64;
        if pending.len() >= 1 << 20 || *block != end {
            extents.write_noting(start, &pending, &mut written).map_err(failed)?;
            pending.clear();
            start = *block;
        }
        pending.extend_from_slice(bytes);
    }
    extents.write_noting(start, &pending, &mut written).map_err(failed)?;
    if mutant!("checkpoint-before-its-blocks") {
        return Ok(());
    }
    if mutant!("checkpoint-takes-others-files") {
        extents.note(&written);
        return extents.sync().map_err(failed);
    }
    extents.sync_files(&written).map_err(failed)
}

fn failure_text(error: StoreError) -> String {
    match error {
        StoreError::Failed(why) => why,
        other => other.to_string(),
    }
}

fn write_journal(file: &dyn DiskFile, write: &JournalWrite) -> Result<(), StoreError> {
    file.write_at(write.offset, &write.bytes).map_err(|e| StoreError::io("write the journal", &e))
}

fn check_size(transaction: &Transaction) -> Result<(), StoreError> {
    let bytes: usize = transaction
        .ops
        .iter()
        .map(|op| match op {
            super::types::Op::Write { data, .. } => data.len(),
            super::types::Op::PutMeta { value, .. } => value.len(),
            _ => 0,
        })
        .sum();
    if bytes > TRANSACTION_BYTES_MAX {
        return Err(StoreError::Invalid(format!(
            "the transaction carries {bytes} bytes, at most {TRANSACTION_BYTES_MAX} are allowed: split it"
        )));
    }
    Ok(())
}
