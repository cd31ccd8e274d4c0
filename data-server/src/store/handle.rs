//! [`Store`]: what the rest of the server holds, and the threads behind it.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::watch;

use super::{
    config::StoreConfig,
    core::Core,
    disk::{Disk, OsDisk},
    extents::locked,
    recover::{self, Opened},
    superblock::SuperblockFile,
    types::{
        Digest, ObjectInfo, ObjectKey, Piece, Progress, Space, StoreError, Submitted, Ticket, Transaction,
    },
};

/// Who writes, syncs and checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// Three threads of the store: writing is not held up by a sync, nor either by a checkpoint.
    Own,
    /// The caller, with [`Store::step_write`], [`Store::step_sync`] and [`Store::checkpoint`]: for simulations.
    None,
}

/// A chunk store. All calls are synchronous and none waits for an fsync, except where it says so; futures are
/// `'static` and may be awaited on any runtime.
///
/// Dropping it without [`close`](Self::close) is an unclean stop: nothing written is lost, but the next open reports it.
#[derive(Debug)]
pub struct Store {
    pub(super) core: Arc<Core>,
    superblock: Mutex<SuperblockFile>,
    was_clean: bool,
    owns_threads: bool,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Store {
    /// Opens the store in `dir`, creating it if the directory is empty. Blocks: replays the journal.
    ///
    /// # Errors
    /// `Refused` if the directory is in use, foreign or of a newer format; `Damaged` if something that was durable is
    /// gone; `Failed` if the disk does not work.
    pub fn open(dir: &Path, config: StoreConfig) -> Result<Self, StoreError> {
        let disk = OsDisk::open(dir).map_err(|e| {
            StoreError::Refused(format!("the directory {} cannot be used: {e}", dir.display()))
        })?;
        Self::open_on(Arc::new(disk), config, Threads::Own)
    }

    /// Opens a store on any [`Disk`].
    pub fn open_on(disk: Arc<dyn Disk>, config: StoreConfig, threads: Threads) -> Result<Self, StoreError> {
        let Opened { core, superblock, was_clean } = recover::open(&disk, config)?;
        let core = Arc::new(core);
        let owns_threads = threads == Threads::Own;
        let store = Self {
            core,
            superblock: Mutex::new(superblock),
            was_clean,
            owns_threads,
            threads: Mutex::default(),
        };
        if owns_threads {
            store.spawn("store-write", write_loop)?;
            store.spawn("store-sync", sync_loop)?;
            store.spawn("store-checkpoint", checkpoint_loop)?;
        }
        Ok(store)
    }

    /// Identity of the store, made when it was created.
    pub fn uuid(&self) -> [u8; 16] {
        self.core.uuid
    }

    /// Number of times the store has been opened, this time included.
    pub fn incarnation(&self) -> u64 {
        self.core.incarnation
    }

    /// Whether the last stop before this open was a [`close`](Self::close). If not, transactions that were written but
    /// not durable may be missing (from the end).
    pub fn was_clean(&self) -> bool {
        self.was_clean
    }

    /// Orders a transaction. When this returns, reads see it; nothing else is promised until
    /// [`written`](Self::written) and [`durable`](Self::durable).
    ///
    /// # Errors
    /// After any error the transaction has left no trace. `Busy`: wait for [`room`](Self::room) and submit again.
    /// `Full`, `Invalid`, `BadChecksum`: it cannot be done. `Corrupt`: a block to be changed in part does not match its
    /// checksum. `Failed`: the store accepts nothing any more.
    pub fn submit(&self, transaction: &Transaction) -> Result<Submitted, StoreError> {
        self.core.submit(transaction, self.owns_threads)
    }

    /// Resolves when a transaction that was answered `Busy` may be tried again.
    pub fn room(&self) -> impl Future<Output = Result<(), StoreError>> + Send + use<> {
        let core = Arc::clone(&self.core);
        let mut changes = core.room();
        async move {
            while !core.has_room()? {
                changes.changed().await.map_err(|_| closed())?;
            }
            Ok(())
        }
    }

    /// Resolves when the transaction survives a `kill -9` of this process.
    pub fn written(&self, ticket: Ticket) -> impl Future<Output = Result<(), StoreError>> + Send + use<> {
        wait_for(self.progress(), move |progress| progress.written >= ticket.0)
    }

    /// Starts an fsync that covers the transaction (if none has) and resolves when it survives a power failure.
    pub fn durable(&self, ticket: Ticket) -> impl Future<Output = Result<(), StoreError>> + Send + use<> {
        self.request_durable(ticket);
        wait_for(self.progress(), move |progress| progress.durable >= ticket.0)
    }

    /// [`durable`](Self::durable) for everything submitted so far.
    pub fn sync(&self) -> impl Future<Output = Result<(), StoreError>> + Send + use<> {
        self.durable(self.last_ticket())
    }

    /// Starts an fsync that covers the transaction, without waiting: [`progress`](Self::progress) tells the end.
    pub fn request_durable(&self, ticket: Ticket) {
        self.core.request_durable(ticket.0);
    }

    /// Whether the disk was asked for something that it has not completed: a write, or a sync.
    pub fn is_owed(&self) -> bool {
        self.core.is_owed()
    }

    /// The last transaction submitted.
    pub fn last_ticket(&self) -> Ticket {
        Ticket(self.core.state().last_seq)
    }

    /// Follows what is written, what is durable and whether the store has failed.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.core.progress()
    }

    /// Reads up to `len` bytes at `offset`; `None` if there is no such object. On the caller's thread, from memory and
    /// by `pread`.
    ///
    /// # Errors
    /// `Corrupt` names the first block that does not match its checksum; no byte of the piece is returned then.
    pub fn read(&self, key: ObjectKey, offset: u64, len: usize) -> Result<Option<Piece>, StoreError> {
        self.core.read(key, offset, len)
    }

    /// What the index knows about an object.
    pub fn info(&self, key: ObjectKey) -> Result<Option<ObjectInfo>, StoreError> {
        self.core.info(key)
    }

    /// Objects of a group in order of (inode, chunk), after the given one; at most `limit` (and 65,536).
    pub fn list(
        &self,
        pg: u64,
        after: Option<(u64, u32)>,
        limit: usize,
    ) -> Result<Vec<(ObjectKey, ObjectInfo)>, StoreError> {
        self.core.list(pg, after, limit)
    }

    /// A meta record.
    pub fn get_meta(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.core.get_meta(key)
    }

    /// Meta records whose keys start with `prefix`, in byte order, after the given key; at most `limit` (and 65,536).
    pub fn list_meta(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Bytes)>, StoreError> {
        self.core.list_meta(prefix, after, limit)
    }

    /// The fingerprint of an object from the index alone: compares what replicas *should* hold.
    pub fn digest(&self, key: ObjectKey) -> Result<Option<Digest>, StoreError> {
        self.core.digest(key)
    }

    /// Reads all blocks of an object (for scrub), at most 1 MiB at a time.
    ///
    /// # Errors
    /// `Corrupt` names the first bad block.
    pub fn verify(&self, key: ObjectKey) -> Result<Option<Digest>, StoreError> {
        self.core.verify(key)
    }

    /// Ordinary transactions are refused above this share of the capacity from now on, whatever the configuration said.
    pub fn set_full_ratio(&self, ratio: f64) {
        self.core.set_full_ratio(ratio);
    }

    /// Space used and free.
    pub fn space(&self) -> Space {
        self.core.space()
    }

    /// Moves everything submitted so far to extents and index and waits for it. The checkpoint thread does this by
    /// itself; here for tests, simulations and before a backup.
    pub fn checkpoint(&self) -> Result<(), StoreError> {
        self.core.checkpoint()
    }

    /// With [`Threads::None`]: writes what was submitted; returns whether there was anything.
    pub fn step_write(&self) -> bool {
        self.core.write_step()
    }

    /// With [`Threads::None`]: makes durable what is written.
    pub fn step_sync(&self) -> Result<(), StoreError> {
        self.core.sync_step()
    }

    /// Stops cleanly: a last checkpoint, then the superblock says so. Blocks. From its beginning nothing is accepted any
    /// more; what was written stays readable.
    pub fn close(&self) -> Result<(), StoreError> {
        self.stop_threads();
        self.core.checkpoint()?;
        locked(&self.superblock).update(|superblock| superblock.clean = true)
    }

    fn spawn(&self, name: &str, body: fn(&Core)) -> Result<(), StoreError> {
        let core = Arc::clone(&self.core);
        let spawned = thread::Builder::new().name(name.to_string()).spawn(move || body(&core));
        locked(&self.threads).push(spawned.map_err(|e| StoreError::io("start a thread", &e))?);
        Ok(())
    }

    /// Stops without waiting for the disk, which may never answer: an unclean stop.
    pub fn abandon(&self) {
        // Threads that are not in a list are waited for by nobody.
        locked(&self.threads).clear();
        self.stop_threads();
    }

    fn stop_threads(&self) {
        self.core.state().stopping = true;
        let core = &self.core;
        for signal in [&core.write_signal, &core.sync_signal, &core.checkpoint_signal] {
            signal.notify_all();
        }
        let threads = std::mem::take(&mut *locked(&self.threads));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the chunk store panicked; its message is above");
            }
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.stop_threads();
    }
}

async fn wait_for(
    mut progress: watch::Receiver<Progress>,
    reached: impl Fn(&Progress) -> bool,
) -> Result<(), StoreError> {
    let now = progress.wait_for(|p| p.failed.is_some() || reached(p)).await.map_err(|_| closed())?;
    match &now.failed {
        Some(why) if !reached(&now) => Err(StoreError::Failed(why.clone())),
        _ => Ok(()),
    }
}

fn closed() -> StoreError {
    StoreError::Failed("it was closed while a caller waited for it".to_string())
}

fn write_loop(core: &Core) {
    loop {
        let mut state = core.state();
        while !state.has_writes() && !state.stopping {
            state = core.write_signal.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if !state.has_writes() {
            return;
        }
        drop(state);
        core.write_step();
    }
}

fn sync_loop(core: &Core) {
    loop {
        let mut state = core.state();
        while !state.wants_sync() && !state.stopping {
            state = core.sync_signal.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.stopping {
            return;
        }
        drop(state);
        // A failure is in the state by now, where everyone who waits sees it.
        let _ = core.sync_step();
    }
}

fn checkpoint_loop(core: &Core) {
    let interval = Duration::from_millis(core.config.checkpoint_interval_ms);
    loop {
        let mut state = core.state();
        if !state.stopping && (!state.checkpoint_wanted || state.is_failed()) {
            (state, _) =
                core.checkpoint_signal.wait_timeout(state, interval).unwrap_or_else(PoisonError::into_inner);
        }
        if state.stopping {
            return;
        }
        drop(state);
        let _ = core.checkpoint();
    }
}
