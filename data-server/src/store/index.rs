//! The index: a redb database with the objects, the meta records and the allocation bitmap as of the last checkpoint.
//!
//! It is committed only by checkpoints, once every few seconds, in one durable transaction that also records which
//! journal segment comes next.

use std::{collections::BTreeMap, io, ops::Bound, sync::Arc};

use bytes::Bytes;
use protocol::mutant;
use redb::{
    Builder, Database, Durability, ReadOnlyTable, ReadableDatabase, ReadableTable, StorageBackend,
    TableDefinition, WriteTransaction,
};
use serde::{Deserialize, Serialize};

use super::{
    disk::{Disk, DiskFile},
    layer::Layer,
    object::{Object, Run},
    types::{ObjectInfo, ObjectKey, StoreError},
};

pub(super) const FILE_NAME: &str = "index";
const OBJECTS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("objects");
const META: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("meta");
const BITMAP: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("bitmap");
const STORE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("store");
const CHECKPOINT: &str = "checkpoint";
/// Blocks per bitmap row.
const ROW_BLOCKS: u64 = 32_768;

/// What the index holds, and where the journal continues.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CheckpointRecord {
    pub(super) uuid: [u8; 16],
    /// Last transaction included.
    pub(super) seq: u64,
    /// The incarnation that writes the journal from here on.
    pub(super) incarnation: u64,
    /// Journal segment with the transactions after `seq`.
    pub(super) segment: u64,
}

#[derive(Debug)]
pub(super) struct Index {
    database: Database,
}

impl Index {
    /// Opens or creates the index; redb repairs itself to its last commit.
    pub(super) fn open(disk: &dyn Disk, cache_bytes: usize) -> Result<Self, StoreError> {
        let failed = |error: io::Error| StoreError::io("open the index", &error);
        let file = disk
            .open(FILE_NAME, true)
            .map_err(failed)?
            .ok_or_else(|| StoreError::Failed("the index vanished while it was opened".to_string()))?;
        let mut builder = Builder::new();
        builder.set_cache_size(cache_bytes);
        let database =
            builder.create_with_backend(IndexFile(file)).map_err(|e| StoreError::index("open", e))?;
        Ok(Self { database })
    }

    /// The first commit of a new store.
    pub(super) fn initialize(&self, record: &CheckpointRecord) -> Result<(), StoreError> {
        let txn = self.begin()?;
        open(&txn, OBJECTS)?;
        open(&txn, META)?;
        open_rows(&txn)?;
        put_record(&txn, record)?;
        txn.commit().map_err(|e| StoreError::index("commit the first state", e))
    }

    pub(super) fn record(&self) -> Result<CheckpointRecord, StoreError> {
        let fail = |e: redb::Error| StoreError::index("read the checkpoint record", e);
        let txn = self.database.begin_read().map_err(|e| fail(e.into()))?;
        let table = txn.open_table(STORE).map_err(|e| fail(e.into()))?;
        let bytes = table.get(CHECKPOINT).map_err(|e| fail(e.into()))?;
        let bytes = bytes.ok_or_else(|| {
            StoreError::Damaged("the index has no checkpoint record: rebuild this server".into())
        })?;
        postcard::from_bytes(bytes.value()).map_err(|e| {
            StoreError::Damaged(format!("the checkpoint record is unreadable ({e}): rebuild this server"))
        })
    }

    /// A view of the last commit.
    pub(super) fn base(&self) -> Result<Arc<Base>, StoreError> {
        let fail = |e: redb::Error| StoreError::index("begin reading", e);
        let txn = self.database.begin_read().map_err(|e| fail(e.into()))?;
        let objects = txn.open_table(OBJECTS).map_err(|e| fail(e.into()))?;
        let meta = txn.open_table(META).map_err(|e| fail(e.into()))?;
        Ok(Arc::new(Base { objects, meta }))
    }

    /// Calls `mark` for the allocated runs.
    pub(super) fn load_bitmap(
        &self,
        mut mark: impl FnMut(Run) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let fail = |e: redb::Error| StoreError::index("read the allocation bitmap", e);
        let txn = self.database.begin_read().map_err(|e| fail(e.into()))?;
        let table = txn.open_table(BITMAP).map_err(|e| fail(e.into()))?;
        for row in table.iter().map_err(|e| fail(e.into()))? {
            let (number, bits) = row.map_err(|e| fail(e.into()))?;
            let first = number.value() * ROW_BLOCKS;
            let mut open: Option<Run> = None;
            for (index, byte) in bits.value().iter().enumerate().filter(|(_, byte)| **byte != 0) {
                for bit in (0..8).filter(|bit| byte & (1 << bit) != 0) {
                    let block = first + index as u64 * 8 + bit;
                    match &mut open {
                        Some(run) if run.end() == block => run.len += 1,
                        _ => {
                            if let Some(run) = open.replace(Run { start: block, len: 1 }) {
                                mark(run)?;
                            }
                        }
                    }
                }
            }
            open.map_or(Ok(()), &mut mark)?;
        }
        Ok(())
    }

    /// Moves a layer into the index, durably. Returns all runs that are free from now on.
    pub(super) fn commit(&self, layer: &Layer, record: &CheckpointRecord) -> Result<Vec<Run>, StoreError> {
        let txn = self.begin()?;
        let mut freed = layer.freed.clone();
        commit_objects(&txn, layer, &mut freed)?;
        commit_meta(&txn, layer)?;
        commit_bitmap(&txn, &layer.allocated, &freed)?;
        put_record(&txn, record)?;
        txn.commit().map_err(|e| StoreError::index("commit a checkpoint", e))?;
        Ok(freed)
    }

    fn begin(&self) -> Result<WriteTransaction, StoreError> {
        let mut txn = self.database.begin_write().map_err(|e| StoreError::index("begin a checkpoint", e))?;
        txn.set_durability(Durability::Immediate).map_err(|e| StoreError::index("begin a checkpoint", e))?;
        // Opening after a crash then need not walk the whole index.
        txn.set_quick_repair(true);
        Ok(txn)
    }
}

fn open<'t>(
    txn: &'t WriteTransaction,
    table: TableDefinition<'static, &'static [u8], &'static [u8]>,
) -> Result<redb::Table<'t, &'static [u8], &'static [u8]>, StoreError> {
    txn.open_table(table).map_err(|e| StoreError::index("open a table", e))
}

fn open_rows(txn: &WriteTransaction) -> Result<redb::Table<'_, u64, &'static [u8]>, StoreError> {
    txn.open_table(BITMAP).map_err(|e| StoreError::index("open the bitmap", e))
}

fn put_record(txn: &WriteTransaction, record: &CheckpointRecord) -> Result<(), StoreError> {
    let bytes =
        postcard::to_stdvec(record).map_err(|e| StoreError::index("encode the checkpoint record", e))?;
    let mut table = txn.open_table(STORE).map_err(|e| StoreError::index("open a table", e))?;
    table.insert(CHECKPOINT, &bytes[..]).map_err(|e| StoreError::index("write the checkpoint record", e))?;
    Ok(())
}

fn commit_objects(txn: &WriteTransaction, layer: &Layer, freed: &mut Vec<Run>) -> Result<(), StoreError> {
    let fail = |e: redb::StorageError| StoreError::index("write objects", e);
    let mut table = open(txn, OBJECTS)?;
    for key in &layer.moved {
        table.remove(&key_bytes(*key)[..]).map_err(fail).map(drop)?;
    }
    for (from, to) in &layer.objects.cleared {
        let (from, to) = (key_bytes(*from), key_bytes(*to));
        let mut problem = None;
        let keep = |key: &[u8], value: &[u8]| {
            let Some(key) = key_from(key) else { return false };
            match Object::decode(key, value) {
                Ok(object) => freed.extend(object.extents().iter().map(|e| e.run)),
                Err(error) => problem = Some(error),
            }
            false
        };
        table.retain_in::<&[u8], _>(&from[..]..&to[..], keep).map_err(fail)?;
        if let Some(error) = problem {
            // The record is gone with the object; only its blocks stay allocated.
            tracing::warn!("blocks of a deleted object cannot be reused until the store is rebuilt: {error}");
        }
    }
    for (key, object) in &layer.objects.entries {
        let key = key_bytes(*key);
        match object {
            Some(object) => table.insert(&key[..], &object.encode()[..]).map_err(fail).map(drop)?,
            None => table.remove(&key[..]).map_err(fail).map(drop)?,
        }
    }
    Ok(())
}

fn commit_meta(txn: &WriteTransaction, layer: &Layer) -> Result<(), StoreError> {
    let fail = |e: redb::StorageError| StoreError::index("write meta records", e);
    let mut table = open(txn, META)?;
    for (from, to) in &layer.meta.cleared {
        table.retain_in::<&[u8], _>(&from[..]..&to[..], |_, _| false).map_err(fail)?;
    }
    for (key, value) in &layer.meta.entries {
        match value {
            Some(value) => table.insert(&key[..], &value[..]).map_err(fail).map(drop)?,
            None => table.remove(&key[..]).map_err(fail).map(drop)?,
        }
    }
    Ok(())
}

fn commit_bitmap(txn: &WriteTransaction, allocated: &[Run], freed: &[Run]) -> Result<(), StoreError> {
    let fail = |e: redb::StorageError| StoreError::index("write the allocation bitmap", e);
    let mut table = open_rows(txn)?;
    let mut rows: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    // Freeing after allocating: a block that was both is free.
    for (runs, set) in [(allocated, true), (freed, false)] {
        let runs = if set && mutant!("bitmap-forgets-allocations") { &[] } else { runs };
        for block in runs.iter().flat_map(|run| run.start..run.end()) {
            let number = block / ROW_BLOCKS;
            let row = match rows.entry(number) {
                std::collections::btree_map::Entry::Occupied(row) => row.into_mut(),
                std::collections::btree_map::Entry::Vacant(place) => {
                    let stored = table.get(number).map_err(fail)?;
                    place.insert(
                        stored.map_or_else(|| vec![0; ROW_BLOCKS as usize / 8], |row| row.value().to_vec()),
                    )
                }
            };
            let (byte, bit) = ((block % ROW_BLOCKS) as usize / 8, block % 8);
            if set {
                row[byte] |= 1 << bit;
            } else {
                row[byte] &= !(1 << bit);
            }
        }
    }
    for (number, row) in rows {
        table.insert(number, &row[..]).map_err(fail)?;
    }
    Ok(())
}

/// A frozen view of the index.
pub(super) struct Base {
    objects: ReadOnlyTable<&'static [u8], &'static [u8]>,
    meta: ReadOnlyTable<&'static [u8], &'static [u8]>,
}

impl std::fmt::Debug for Base {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Base")
    }
}

impl Base {
    pub(super) fn object(&self, key: ObjectKey) -> Result<Option<Arc<Object>>, StoreError> {
        let bytes =
            self.objects.get(&key_bytes(key)[..]).map_err(|e| StoreError::index("read an object", e))?;
        bytes.map(|bytes| Object::decode(key, bytes.value()).map(Arc::new)).transpose()
    }

    pub(super) fn meta(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let value = self.meta.get(key).map_err(|e| StoreError::index("read a meta record", e))?;
        Ok(value.map(|value| Bytes::copy_from_slice(value.value())))
    }

    /// The objects between `from` and `to`, in order.
    pub(super) fn objects(
        &self,
        from: Bound<ObjectKey>,
        to: ObjectKey,
    ) -> Result<impl Iterator<Item = Result<(ObjectKey, ObjectInfo), StoreError>>, StoreError> {
        let fail = |e: redb::StorageError| StoreError::index("list objects", e);
        let (from, to) = (from.map(key_bytes), key_bytes(to));
        let from: Bound<&[u8]> = from.as_ref().map(|k| &k[..]);
        let range = self.objects.range::<&[u8]>((from, Bound::Excluded(&to[..]))).map_err(fail)?;
        Ok(range.map(move |row| {
            let (key, value) = row.map_err(fail)?;
            let key = key_from(key.value()).ok_or_else(|| {
                StoreError::Damaged("the index holds an impossible key: rebuild this server".into())
            })?;
            Ok((key, Object::decode_info(key, value.value())?))
        }))
    }

    /// The meta records between `from` and `to`, in order.
    pub(super) fn metas(
        &self,
        from: Bound<Vec<u8>>,
        to: &[u8],
    ) -> Result<impl Iterator<Item = Result<(Vec<u8>, Bytes), StoreError>>, StoreError> {
        let fail = |e: redb::StorageError| StoreError::index("list meta records", e);
        let from: Bound<&[u8]> = from.as_ref().map(|k| &k[..]);
        let range = self.meta.range::<&[u8]>((from, Bound::Excluded(to))).map_err(fail)?;
        Ok(range.map(move |row| {
            let (key, value) = row.map_err(fail)?;
            Ok((key.value().to_vec(), Bytes::copy_from_slice(value.value())))
        }))
    }
}

/// Big-endian, so that byte order is key order.
fn key_bytes(key: ObjectKey) -> [u8; 20] {
    let mut bytes = [0; 20];
    bytes[..8].copy_from_slice(&key.pg.to_be_bytes());
    bytes[8..16].copy_from_slice(&key.inode.to_be_bytes());
    bytes[16..].copy_from_slice(&key.chunk.to_be_bytes());
    bytes
}

fn key_from(bytes: &[u8]) -> Option<ObjectKey> {
    let (pg, rest) = bytes.split_first_chunk::<8>()?;
    let (inode, rest) = rest.split_first_chunk::<8>()?;
    let chunk = rest.try_into().ok()?;
    Some(ObjectKey {
        pg: u64::from_be_bytes(*pg),
        inode: u64::from_be_bytes(*inode),
        chunk: u32::from_be_bytes(chunk),
    })
}

/// redb's file, through the store's file layer.
#[derive(Debug)]
struct IndexFile(Arc<dyn DiskFile>);

impl StorageBackend for IndexFile {
    fn len(&self) -> Result<u64, io::Error> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.0.read_at(offset, out)
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        self.0.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.0.write_at(offset, data)
    }
}
