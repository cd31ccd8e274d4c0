//! Moving a snapshot from one server's state to another's.
//!
//! ```text
//! Hello::Snapshot { id, zxid } · Chunk (payload) · Chunk · … · End { length, crc }
//! ```
//! `length` and `crc` (crc32c) cover all chunks one after the other. Reading and writing the state happen on
//! blocking threads; at most [`CHUNKS_WAITING`] chunks wait on either side, so a slow disk slows the sender.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use protocol::channel_kind;
use protocol::transport::{Connection, FrameReceiver, TransportError};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use zab::{SnapshotDescriptor, Zxid};

use super::files::Directory;
use super::state_machine::{SNAPSHOT_CHUNK_BYTES_MAX, SnapshotSink, SnapshotSource, StateError};
use super::transport::Hello;

/// Chunks between the network and the thread that reads or writes the state.
const CHUNKS_WAITING: usize = 4;
/// While the disk works on what has arrived, the receiver says this often that it is alive.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum SnapshotFrame {
    Chunk,
    End { length: u64, crc: u32 },
}

/// Why a snapshot did not get across. Another attempt follows.
#[derive(Debug, thiserror::Error)]
pub(super) enum SnapshotError {
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error("the state could not be read or written: {0}")]
    State(#[from] StateError),
    #[error("a chunk of {bytes} bytes is not between 1 and {SNAPSHOT_CHUNK_BYTES_MAX} bytes long")]
    ChunkLength { bytes: usize },
    #[error("the channel ended before the snapshot did")]
    Truncated,
    #[error(
        "{length} bytes arrived with checksum {crc:08x}, but {sent_length} with {sent_crc:08x} were sent"
    )]
    Checksum { length: u64, crc: u32, sent_length: u64, sent_crc: u32 },
    #[error("the thread that reads or writes the state ended early")]
    ThreadGone,
    #[error("the directory could not be synced: {0}")]
    Directory(std::io::Error),
}

/// Counts and sums what passes.
#[derive(Clone, Copy, Default)]
struct Tally {
    length: u64,
    crc: u32,
}

impl Tally {
    fn add(&mut self, chunk: &Bytes) -> Result<(), SnapshotError> {
        if chunk.is_empty() || chunk.len() > SNAPSHOT_CHUNK_BYTES_MAX {
            return Err(SnapshotError::ChunkLength { bytes: chunk.len() });
        }
        self.length += chunk.len() as u64;
        self.crc = crc32c::crc32c_append(self.crc, chunk);
        Ok(())
    }
}

/// Sends all of `source` under the name `id`. Dropping the future gives up.
pub(super) async fn send(
    connection: Connection,
    id: u64,
    mut source: Box<dyn SnapshotSource>,
) -> Result<SnapshotDescriptor, SnapshotError> {
    let zxid = source.zxid();
    let (chunks, mut waiting) = mpsc::channel::<Result<Bytes, StateError>>(CHUNKS_WAITING);
    let reader = tokio::task::spawn_blocking(move || {
        while let Some(chunk) = source.next_chunk().transpose() {
            let is_last = chunk.is_err();
            if chunks.blocking_send(chunk).is_err() || is_last {
                return;
            }
        }
    });
    let channel = connection.open_channel(channel_kind::ZAB).await?;
    let (mut sender, _answers) = channel.split();
    sender.send(&Hello::Snapshot { id, zxid }, Bytes::new()).await?;
    let mut tally = Tally::default();
    while let Some(chunk) = waiting.recv().await {
        let chunk = chunk?;
        tally.add(&chunk)?;
        sender.send(&SnapshotFrame::Chunk, chunk).await?;
    }
    // A reader that panicked must not look like the end of the snapshot.
    reader.await.map_err(|_| SnapshotError::ThreadGone)?;
    let Tally { length, crc } = tally;
    sender.send(&SnapshotFrame::End { length, crc }, Bytes::new()).await?;
    sender.finish().await?;
    Ok(SnapshotDescriptor { id, zxid, length, crc })
}

/// A snapshot being received.
pub(super) struct Reception {
    pub(super) id: u64,
    pub(super) zxid: Zxid,
    pub(super) receiver: FrameReceiver,
    pub(super) path: PathBuf,
    pub(super) directory: Arc<dyn Directory>,
}

impl Reception {
    /// Receives everything and makes it durable; calls `progress` now and then. On failure the file is removed.
    /// Dropping the future gives up and leaves the file to the next cleanup.
    pub(super) async fn run(
        mut self,
        sink: Box<dyn SnapshotSink>,
        progress: impl Fn(),
    ) -> Result<SnapshotDescriptor, SnapshotError> {
        let path = self.path.clone();
        let (orders, sink) = self.start_thread(sink);
        let received = self.receive(orders, sink, &progress).await;
        if received.is_err() {
            // It may not exist; the next cleanup tries again.
            let _ = std::fs::remove_file(path);
        }
        received
    }

    fn start_thread(
        &self,
        mut sink: Box<dyn SnapshotSink>,
    ) -> (mpsc::Sender<Order>, JoinHandle<Result<(), SnapshotError>>) {
        let (orders, mut waiting) = mpsc::channel(CHUNKS_WAITING);
        let zxid = self.zxid;
        let directory = self.directory.clone();
        let thread = tokio::task::spawn_blocking(move || {
            while let Some(order) = waiting.blocking_recv() {
                match order {
                    Order::Write(chunk) => sink.write(chunk)?,
                    Order::Finish => {
                        sink.finish(zxid)?;
                        return directory.sync().map_err(SnapshotError::Directory);
                    }
                }
            }
            Err(SnapshotError::Truncated)
        });
        (orders, thread)
    }

    async fn receive(
        &mut self,
        orders: mpsc::Sender<Order>,
        mut sink: JoinHandle<Result<(), SnapshotError>>,
        progress: &impl Fn(),
    ) -> Result<SnapshotDescriptor, SnapshotError> {
        let mut tally = Tally::default();
        loop {
            let Some((frame, payload)) = self.receiver.recv::<SnapshotFrame>().await? else {
                return Err(SnapshotError::Truncated);
            };
            progress();
            let order = match frame {
                SnapshotFrame::Chunk => {
                    tally.add(&payload)?;
                    Order::Write(payload)
                }
                SnapshotFrame::End { length, crc } if (length, crc) == (tally.length, tally.crc) => {
                    Order::Finish
                }
                SnapshotFrame::End { length, crc } => {
                    let Tally { length: arrived, crc: found } = tally;
                    return Err(SnapshotError::Checksum {
                        length: arrived,
                        crc: found,
                        sent_length: length,
                        sent_crc: crc,
                    });
                }
            };
            let is_end = matches!(order, Order::Finish);
            let handed_over = alive(orders.send(order), progress).await.is_ok();
            if is_end || !handed_over {
                break;
            }
        }
        drop(orders);
        alive(&mut sink, progress).await.map_err(|_| SnapshotError::ThreadGone)??;
        Ok(SnapshotDescriptor { id: self.id, zxid: self.zxid, length: tally.length, crc: tally.crc })
    }
}

enum Order {
    Write(Bytes),
    Finish,
}

/// Waits for `work` and reports progress meanwhile.
async fn alive<T>(work: impl Future<Output = T>, progress: &impl Fn()) -> T {
    tokio::pin!(work);
    loop {
        tokio::select! {
            result = &mut work => return result,
            () = tokio::time::sleep(PROGRESS_INTERVAL) => progress(),
        }
    }
}

#[cfg(test)]
#[path = "tests/snapshot.rs"]
mod tests;
