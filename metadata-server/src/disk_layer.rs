//! The disk layer of the state: one redb file, written by checkpoints only.
//!
//! One table `state`: key bytes → value bytes. A checkpoint is one durable redb transaction that contains the
//! progress record, so the file always ends at exactly one transaction. A snapshot is the rows of an immutable
//! read transaction in key order.

use crate::quorum::{CheckpointJob, SNAPSHOT_CHUNK_BYTES_MAX, SnapshotSink, SnapshotSource, StateError};
use crate::state::key::{self, Key};
use crate::state::layers::{Disk, StoreError, Writes};
use crate::state::record::{Progress, encode};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use redb::{Database, ReadOnlyTable, ReadableDatabase, ReadableTable, TableDefinition};
use std::path::Path;
use std::sync::Arc;
use zab::Zxid;

const STATE: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("state");

/// Bytes of pages that redb keeps in memory.
const CACHE_BYTES: usize = 8 << 20;

/// Chunks of a snapshot stream are closed when they reach this many bytes.
const CHUNK_BYTES: usize = 256 << 10;

fn failed(error: impl std::fmt::Display) -> StoreError {
    StoreError(error.to_string())
}

/// The file and a read transaction as of the last checkpoint.
pub struct DiskLayer {
    database: Arc<Database>,
    table: ReadOnlyTable<&'static [u8], &'static [u8]>,
}

impl DiskLayer {
    /// Opens or makes the file.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let database = Database::builder().set_cache_size(CACHE_BYTES).create(path).map_err(failed)?;
        let mut write = database.begin_write().map_err(failed)?;
        write.set_quick_repair(true);
        write.open_table(STATE).map_err(failed)?;
        write.commit().map_err(failed)?;
        Self::at_last_commit(Arc::new(database))
    }

    fn at_last_commit(database: Arc<Database>) -> Result<Self, StoreError> {
        let read = database.begin_read().map_err(failed)?;
        let table = read.open_table(STATE).map_err(failed)?;
        Ok(Self { database, table })
    }

    /// The same file after its latest checkpoint.
    pub fn refreshed(&self) -> Result<Self, StoreError> {
        Self::at_last_commit(self.database.clone())
    }

    /// The database, for a checkpoint job.
    pub fn database(&self) -> Arc<Database> {
        self.database.clone()
    }

    /// Rows of this layer, to be sent to another server.
    pub fn source(&self) -> Result<RowSource, StoreError> {
        let fresh = self.refreshed()?;
        let progress = fresh.get(&key::system("progress"))?.and_then(|p| postcard::from_bytes(&p).ok());
        let Progress { zab_epoch, counter, .. } = progress.unwrap_or_default();
        Ok(RowSource { layer: fresh, zxid: Zxid { epoch: zab_epoch, counter }, next: Vec::new() })
    }
}

impl Disk for DiskLayer {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let found = self.table.get(key).map_err(failed)?;
        Ok(found.map(|value| Bytes::copy_from_slice(value.value())))
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Bytes)>, StoreError> {
        let mut rows = Vec::new();
        for row in self.table.range(from..to).map_err(failed)?.take(limit) {
            let (key, value) = row.map_err(failed)?;
            rows.push((key.value().to_vec(), Bytes::copy_from_slice(value.value())));
        }
        Ok(rows)
    }
}

/// Writes one frozen layer.
pub struct Checkpoint {
    /// Where to.
    pub database: Arc<Database>,
    /// What.
    pub writes: Arc<Writes>,
    /// The zxid that it ends at.
    pub zxid: Zxid,
}

impl CheckpointJob for Checkpoint {
    fn run(self: Box<Self>) -> Result<Zxid, StateError> {
        let mut write = self.database.begin_write()?;
        // Otherwise a server that was killed reads the whole file before it starts.
        write.set_quick_repair(true);
        {
            let mut table = write.open_table(STATE)?;
            for (key, value) in self.writes.iter() {
                match value {
                    Some(value) => drop(table.insert(key.as_slice(), &value[..])?),
                    None => drop(table.remove(key.as_slice())?),
                }
            }
        }
        write.commit()?;
        Ok(self.zxid)
    }
}

/// Rows in key order: `u32 key length, u32 value length, key, value`, packed into chunks.
pub struct RowSource {
    layer: DiskLayer,
    zxid: Zxid,
    next: Key,
}

impl SnapshotSource for RowSource {
    fn zxid(&self) -> Zxid {
        self.zxid
    }

    fn next_chunk(&mut self) -> Result<Option<Bytes>, StateError> {
        let mut chunk = BytesMut::with_capacity(CHUNK_BYTES + 4096);
        for row in self.layer.table.range(self.next.as_slice()..)? {
            let (key, value) = row?;
            let (key, value) = (key.value(), value.value());
            let row_bytes = 8 + key.len() + value.len();
            if row_bytes > SNAPSHOT_CHUNK_BYTES_MAX {
                return Err(format!("the row under key {key:02x?} has {row_bytes} bytes").into());
            }
            if !chunk.is_empty() && chunk.len() + row_bytes > CHUNK_BYTES {
                break;
            }
            chunk.put_u32_le(u32::try_from(key.len())?);
            chunk.put_u32_le(u32::try_from(value.len())?);
            chunk.extend_from_slice(key);
            chunk.extend_from_slice(value);
            self.next = key.to_vec();
            self.next.push(0);
        }
        Ok((!chunk.is_empty()).then(|| chunk.freeze()))
    }
}

/// Takes the first row off `rows`; `None` at their end.
///
/// # Errors
/// They are no rows.
pub fn next_row(rows: &mut Bytes) -> Result<Option<(Bytes, Bytes)>, &'static str> {
    if rows.is_empty() {
        return Ok(None);
    }
    if rows.remaining() < 8 {
        return Err("a row's header is cut off");
    }
    let (key, value) = (rows.get_u32_le() as usize, rows.get_u32_le() as usize);
    if rows.remaining() < key.saturating_add(value) {
        return Err("a row is cut off");
    }
    Ok(Some((rows.split_to(key), rows.split_to(value))))
}

/// Builds a new file from rows.
pub struct RowSink {
    database: Database,
}

impl RowSink {
    /// Begins a file at `path`.
    pub fn create(path: &Path) -> Result<Self, StateError> {
        Ok(Self { database: Database::builder().set_cache_size(CACHE_BYTES).create(path)? })
    }
}

impl SnapshotSink for RowSink {
    fn write(&mut self, mut chunk: Bytes) -> Result<(), StateError> {
        let mut write = self.database.begin_write()?;
        // The last transaction, in `finish`, makes all of them durable.
        write.set_durability(redb::Durability::None)?;
        {
            let mut table = write.open_table(STATE)?;
            while let Some((key, value)) = next_row(&mut chunk)? {
                table.insert(&key[..], &value[..])?;
            }
        }
        write.commit()?;
        Ok(())
    }

    fn finish(self: Box<Self>, zxid: Zxid) -> Result<(), StateError> {
        let mut write = self.database.begin_write()?;
        write.set_quick_repair(true);
        {
            let mut table = write.open_table(STATE)?;
            let progress_key = key::system("progress");
            let found = table.get(progress_key.as_slice())?.map(|v| v.value().to_vec());
            let progress: Progress = match found {
                Some(bytes) => postcard::from_bytes(&bytes)?,
                None => Progress::default(),
            };
            let ends = Zxid { epoch: progress.zab_epoch, counter: progress.counter };
            if ends != zxid {
                return Err(format!("the snapshot ends at {ends} and was announced as {zxid}").into());
            }
            table.insert(progress_key.as_slice(), &encode(&progress)[..])?;
        }
        write.commit()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_travels_as_a_snapshot() {
        let dir = tempfile::tempdir().expect("a directory");
        let layer = DiskLayer::open(&dir.path().join("a.redb")).expect("opens");
        let progress = Progress { zab_epoch: 2, counter: 9, revision: 11, ..Progress::default() };
        let mut writes = Writes::from([(key::system("progress"), Some(encode(&progress)))]);
        for i in 0..5000u32 {
            writes.insert(i.to_be_bytes().to_vec(), Some(vec![7u8; 100].into()));
        }
        let zxid = Zxid { epoch: 2, counter: 9 };
        let job = Checkpoint { database: layer.database(), writes: Arc::new(writes), zxid };
        assert_eq!(Box::new(job).run().expect("writes"), zxid);
        assert!(layer.get(&7u32.to_be_bytes()).expect("reads").is_none(), "the old view is immutable");

        let mut source = layer.source().expect("opens");
        assert_eq!(source.zxid(), zxid);
        let path = dir.path().join("b.redb");
        let mut sink = RowSink::create(&path).expect("begins");
        while let Some(chunk) = source.next_chunk().expect("reads") {
            sink.write(chunk).expect("writes");
        }
        Box::new(sink).finish(zxid).expect("finishes");
        let copy = DiskLayer::open(&path).expect("opens");
        let rows = copy.scan(&[], &[0xff; 9], usize::MAX).expect("scans");
        assert_eq!(rows, layer.refreshed().expect("opens").scan(&[], &[0xff; 9], usize::MAX).expect("scans"));
        assert_eq!(rows.len(), 5001);
    }

    #[test]
    fn a_snapshot_of_another_position_or_with_a_cut_row_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let sink = RowSink::create(&dir.path().join("a.redb")).expect("begins");
        assert!(Box::new(sink).finish(Zxid { epoch: 1, counter: 1 }).is_err());
        let mut sink = RowSink::create(&dir.path().join("b.redb")).expect("begins");
        assert!(sink.write(Bytes::from_static(&[9, 0, 0, 0, 1, 0, 0, 0, 1])).is_err());
    }
}
