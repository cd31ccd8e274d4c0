//! The serving side: which connections have a backup under way.
//!
//! A thread reads the checkpoint's view and stops when two chunks wait, so that a slow client costs no memory and a slow
//! disk no heartbeat. The view keeps the pages of its checkpoint from being used again; it goes with its connection.

use crate::core::ClientId;
use crate::disk_layer::DiskLayer;
use crate::quorum::SnapshotSource;
use crate::state::key;
use crate::state::layers::{Disk, StoreError};
use crate::state::record::Progress;
use bytes::Bytes;
use protocol::identity::ClusterId;
use protocol::map::Generation;
use protocol::meta::{BackupHead, MetaError, MetaReply, MetaResponse};
use protocol::transport::rpc::Responder;
use protocol::{Revision, Timestamp};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::rc::Rc;
use tokio::sync::{Mutex, mpsc};
use tokio::task::{spawn_blocking, spawn_local};

/// Backups under way at most.
const BACKUPS_MAX: usize = 2;
/// Chunks that wait for their client.
const CHUNKS_WAITING: usize = 2;

type Chunks = Rc<Mutex<mpsc::Receiver<Result<Bytes, String>>>>;

/// What the head of a backup says beside what the state knows.
#[derive(Clone, Debug)]
pub struct BackupView {
    /// The cluster.
    pub cluster: ClusterId,
    /// The leader's clock.
    pub taken: Timestamp,
    /// See [`BackupHead::directories`].
    pub directories: Vec<u128>,
}

/// See the module.
#[derive(Default)]
pub struct Backups {
    /// Until a checkpoint contains what they have to.
    waiting: Vec<(ClientId, Responder<MetaResponse>, Revision)>,
    open: BTreeMap<ClientId, Chunks>,
}

impl Backups {
    /// A client wants one that contains at least this revision.
    pub fn begin(&mut self, client: ClientId, token: Responder<MetaResponse>, at_least: Revision) {
        self.open.remove(&client);
        if self.open.len() + self.waiting.len() >= BACKUPS_MAX {
            let why = format!("{BACKUPS_MAX} backups are under way already; try again when one has ended");
            return token.send(&Err(MetaError::Refused(why)), Bytes::new());
        }
        self.waiting.push((client, token, at_least));
    }

    /// Whether a checkpoint is waited for.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// There is a checkpoint in `disk`.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn checkpointed(&mut self, disk: &DiskLayer, view: &BackupView) -> Result<(), StoreError> {
        let fresh = disk.refreshed()?;
        let head = head(&fresh, view)?;
        let is_there = |(_, _, at_least): &(ClientId, _, Revision)| *at_least <= head.revision;
        let (ready, waiting) = std::mem::take(&mut self.waiting).into_iter().partition(is_there);
        self.waiting = waiting;
        for (client, token, _) in ready {
            let source = disk.source()?;
            let (chunks, waiting) = mpsc::channel(CHUNKS_WAITING);
            spawn_blocking(move || read(source, &chunks));
            self.open.insert(client, Rc::new(Mutex::new(waiting)));
            tracing::info!("An administrator makes a backup of revision {}.", head.revision);
            token.send(&Ok(MetaReply::Backup(head.clone())), Bytes::new());
        }
        Ok(())
    }

    /// The next rows.
    pub fn next(&mut self, client: ClientId, token: Responder<MetaResponse>) {
        let Some(chunks) = self.open.get(&client).cloned() else {
            let why = "this connection has no backup under way".to_owned();
            return token.send(&Err(MetaError::Refused(why)), Bytes::new());
        };
        spawn_local(async move {
            let chunk = chunks.lock().await.recv().await;
            match chunk {
                Some(Ok(rows)) => {
                    let crc = crc32c::crc32c(&rows);
                    token.send(&Ok(MetaReply::BackupRows { crc }), rows);
                }
                None => token.send(&Err(MetaError::Refused("the backup has ended".into())), Bytes::new()),
                Some(Err(why)) => token.send(&Err(MetaError::Refused(why)), Bytes::new()),
            }
        });
    }

    /// A connection ended.
    pub fn forget(&mut self, client: ClientId) {
        self.open.remove(&client);
        self.waiting.retain(|(other, ..)| *other != client);
    }
}

/// Reads everything; an empty chunk is the end, so that a thread that ended early does not look like it.
fn read(mut source: impl SnapshotSource, chunks: &mpsc::Sender<Result<Bytes, String>>) {
    loop {
        let chunk = match source.next_chunk() {
            Ok(chunk) => Ok(chunk.unwrap_or_default()),
            Err(error) => Err(format!("the state cannot be read: {error}")),
        };
        let is_last = chunk.as_ref().map_or(true, Bytes::is_empty);
        if chunks.blocking_send(chunk).is_err() || is_last {
            return;
        }
    }
}

fn head(disk: &DiskLayer, view: &BackupView) -> Result<BackupHead, StoreError> {
    let progress: Progress = system(disk, "progress")?.unwrap_or_default();
    let generation: Generation = system(disk, "generation")?.unwrap_or_default();
    Ok(BackupHead {
        cluster: view.cluster.0,
        generation: generation.number,
        revision: Revision(progress.revision),
        zxid: (progress.zab_epoch, progress.counter),
        state_format: system(disk, "format_version")?.unwrap_or(1),
        taken: view.taken,
        directories: view.directories.clone(),
    })
}

fn system<T: DeserializeOwned>(disk: &DiskLayer, name: &str) -> Result<Option<T>, StoreError> {
    let found = disk.get(&key::system(name))?;
    let decoded = found.map(|bytes| postcard::from_bytes(&bytes)).transpose();
    decoded.map_err(|error| StoreError(format!("the record '{name}' does not decode: {error}")))
}
