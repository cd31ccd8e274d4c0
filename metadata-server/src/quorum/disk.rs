//! The disk thread: carries out zab's ordered storage stream with group commit.
//!
//! The only thread hop of the commit path. It takes everything that waits, writes it as one batch, syncs once, and
//! reports the highest token that is durable. The first failure ends it: nothing after it is written or reported.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;

use super::error::StorageError;
use super::files::Directory;
use super::log_store::{LogStore, make_spare};
use super::storage::RecordFile;
pub(super) use super::stream::DiskOperation;
use super::stream::{DiskStream, Group};

/// Bytes gathered into one batch before it is written even if more waits.
const GROUP_BYTES_MAX: usize = 8 << 20;
/// Bytes of entries that may wait for the disk. Zab bounds what is in flight far below; a disk that is this far
/// behind counts as failed.
const BACKLOG_BYTES_MAX: u64 = 256 << 20;
/// How long the end of a server waits for a disk that hangs.
const ENDING_MAX: Duration = Duration::from_secs(2);

/// The runtime's end of the disk thread. Dropping it waits a while for what was handed over.
pub(super) struct Disk {
    sender: Option<Sender<DiskOperation>>,
    shared: Arc<Shared>,
    /// Closed when the thread has ended.
    ended: Receiver<()>,
}

#[derive(Default)]
struct Shared {
    durable: AtomicU64,
    backlog_bytes: AtomicU64,
    failure: Mutex<Option<StorageError>>,
    has_failed: AtomicBool,
    stops_cleanly: AtomicBool,
    changed: Notify,
}

impl Disk {
    /// Starts the thread. `keep` lives as long as it does (the directory's lock).
    pub(super) fn start(
        directory: Arc<dyn Directory>,
        log: LogStore,
        record: RecordFile,
        segment_bytes: u64,
        keep: impl Send + 'static,
    ) -> Result<Disk, StorageError> {
        let (sender, receiver) = mpsc::channel();
        let shared = Arc::new(Shared::default());
        let spare = Arc::new(SpareMaker { directory, segment_bytes, is_running: AtomicBool::new(false) });
        let writer = Writer { stream: DiskStream::new(log, record), shared: shared.clone(), spare };
        let (lives, ended) = mpsc::channel();
        std::thread::Builder::new()
            .name("quorum-disk".to_owned())
            .spawn(move || {
                writer.run(&receiver);
                drop(keep);
                drop(lives);
            })
            .map_err(StorageError::io("start", "the disk thread"))?;
        Ok(Disk { sender: Some(sender), shared, ended })
    }

    /// Hands over the next operation. Never blocks.
    ///
    /// # Errors
    /// The disk failed or is too far behind.
    pub(super) fn push(&self, operation: DiskOperation) -> Result<(), StorageError> {
        if self.shared.has_failed.load(Ordering::Acquire) {
            return Err(self.failure());
        }
        let bytes = operation.bytes();
        let backlog = self.shared.backlog_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if backlog > BACKLOG_BYTES_MAX {
            return Err(StorageError::TooFarBehind { bytes: backlog });
        }
        let sent = self.sender.as_ref().and_then(|sender| sender.send(operation).ok());
        sent.ok_or_else(|| self.failure())
    }

    /// Waits until [`durable`](Self::durable) may have grown. Cancelling loses nothing.
    ///
    /// # Errors
    /// The disk failed.
    pub(super) async fn changed(&self) -> Result<(), StorageError> {
        self.shared.changed.notified().await;
        if self.shared.has_failed.load(Ordering::Acquire) { Err(self.failure()) } else { Ok(()) }
    }

    /// The highest token that is durable; 0 at first.
    pub(super) fn durable(&self) -> u64 {
        self.shared.durable.load(Ordering::Acquire)
    }

    /// Lets the thread finish what it has and note the log's end, and waits for it.
    pub(super) fn stop(mut self) {
        self.shared.stops_cleanly.store(true, Ordering::Release);
        self.join();
    }

    fn failure(&self) -> StorageError {
        let mut failure = self.shared.failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        failure.take().unwrap_or(StorageError::ThreadGone)
    }

    fn join(&mut self) {
        self.sender = None;
        if self.ended.recv_timeout(ENDING_MAX) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!(
                "The disk did not finish its work within {ENDING_MAX:?}; what it had not confirmed may be lost here, \
                 and nobody was told that it is safe."
            );
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.join();
    }
}

/// Tells the runtime however the thread ends, a panic included.
struct Farewell(Arc<Shared>);

impl Drop for Farewell {
    fn drop(&mut self) {
        self.0.has_failed.store(true, Ordering::Release);
        self.0.changed.notify_one();
    }
}

struct Writer {
    stream: DiskStream,
    shared: Arc<Shared>,
    spare: Arc<SpareMaker>,
}

impl Writer {
    fn run(mut self, operations: &Receiver<DiskOperation>) {
        let _farewell = Farewell(self.shared.clone());
        while let Ok(first) = operations.recv() {
            if let Err(error) = self.commit_group(first, operations) {
                *self.shared.failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error);
                return;
            }
        }
        if self.shared.stops_cleanly.load(Ordering::Acquire)
            && let Err(error) = self.stream.log().write_mark()
        {
            tracing::warn!("Cannot note the end of the log: {error}.");
        }
    }

    /// Takes what waits, makes it durable and reports it.
    fn commit_group(
        &mut self,
        first: DiskOperation,
        operations: &Receiver<DiskOperation>,
    ) -> Result<(), StorageError> {
        let mut group = Group::default();
        let mut next = Some(first);
        while let Some(operation) = next {
            self.stream.stage(operation, &mut group)?;
            let is_full = self.stream.log().staged_bytes() >= GROUP_BYTES_MAX;
            next = if is_full { None } else { operations.try_recv().ok() };
        }
        self.stream.commit(&group)?;
        self.shared.backlog_bytes.fetch_sub(group.bytes(), Ordering::Relaxed);
        self.report(group.token());
        self.stream.purge(&group)?;
        self.spare.make_if_due(self.stream.log());
        Ok(())
    }

    fn report(&self, token: u64) {
        if token > 0 {
            self.shared.durable.store(token, Ordering::Release);
            self.shared.changed.notify_one();
        }
    }
}

/// Zeroes the next segment while the current one fills, on a thread of its own that lives that long.
struct SpareMaker {
    directory: Arc<dyn Directory>,
    segment_bytes: u64,
    is_running: AtomicBool,
}

impl SpareMaker {
    fn make_if_due(self: &Arc<Self>, log: &mut LogStore) {
        if !log.wants_spare() || self.is_running.swap(true, Ordering::AcqRel) {
            return;
        }
        let maker = self.clone();
        let made = std::thread::Builder::new().name("quorum-spare".to_owned()).spawn(move || {
            if let Err(error) = make_spare(&*maker.directory, maker.segment_bytes) {
                tracing::warn!(
                    "Cannot prepare the next segment of the log: {error}. It will be made when needed."
                );
            }
            maker.is_running.store(false, Ordering::Release);
        });
        if made.is_err() {
            self.is_running.store(false, Ordering::Release);
        }
    }
}
