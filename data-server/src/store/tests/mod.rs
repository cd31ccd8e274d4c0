//! Tests of the whole store: against a model, through power failures, with damaged and full disks.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;

use super::*;

mod churn;
mod crash;
mod damage;
mod model;
mod threads;

/// Small enough that a few operations fill a segment and need another extent file.
pub(super) fn small_config() -> StoreConfig {
    StoreConfig {
        capacity_bytes: Some(16 << 20),
        large_write_bytes: 16 << 10,
        dirty_bytes_max: 4 << 20,
        index_cache_bytes: 1 << 20,
        journal_segment_bytes: 256 << 10,
        journal_segments: 4,
        extent_file_bytes: 1 << 20,
        ..StoreConfig::default()
    }
}

pub(super) fn open(disk: &SimDisk, config: StoreConfig) -> Result<Store, StoreError> {
    Store::open_on(Arc::new(disk.clone()), config, Threads::None)
}

pub(super) fn key(pg: u64, inode: u64, chunk: u32) -> ObjectKey {
    ObjectKey { pg, inode, chunk }
}

pub(super) fn write(key: ObjectKey, offset: u64, data: &[u8], version: u64) -> Op {
    let data = Bytes::copy_from_slice(data);
    Op::Write { key, offset, crc: crc32c::crc32c(&data), data, truncate_seq: 0, version }
}

pub(super) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    (0..len as u64).map(|i| ((i / 7).wrapping_mul(31) ^ i ^ seed.wrapping_mul(131)) as u8).collect()
}

/// Submits, making room by hand as often as the store asks for it.
pub(super) fn submit(store: &Store, ops: Vec<Op>) -> Result<Submitted, StoreError> {
    submit_beside(store, ops, &mut None)
}

/// The same while a checkpoint may be half done.
pub(super) fn submit_beside(
    store: &Store,
    ops: Vec<Op>,
    frozen: &mut Option<core::Frozen>,
) -> Result<Submitted, StoreError> {
    let transaction = Transaction::new(ops);
    for _ in 0..4 {
        match store.submit(&transaction) {
            Err(StoreError::Busy) => checkpoint_beside(store, frozen)?,
            other => return other,
        }
    }
    Err(StoreError::Busy)
}

/// Finishes the checkpoint that is half done, or does a whole one.
pub(super) fn checkpoint_beside(store: &Store, frozen: &mut Option<core::Frozen>) -> Result<(), StoreError> {
    match frozen.take() {
        Some(frozen) => store.core.thaw(frozen),
        None => store.checkpoint(),
    }
}

/// What the store should hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Model {
    pub(super) objects: BTreeMap<ObjectKey, ModelObject>,
    pub(super) meta: BTreeMap<Vec<u8>, Bytes>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ModelObject {
    pub(super) data: Vec<u8>,
    pub(super) truncate_seq: u64,
    pub(super) version: u64,
}

impl Model {
    pub(super) fn apply(&mut self, ops: &[Op]) {
        ops.iter().for_each(|op| self.apply_one(op));
    }

    fn apply_one(&mut self, op: &Op) {
        match op.clone() {
            Op::Write { key, offset, data, truncate_seq, version, .. } => {
                let object = self.objects.entry(key).or_default();
                let (from, to) = (offset as usize, offset as usize + data.len());
                if !data.is_empty() && object.data.len() < to {
                    object.data.resize(to, 0);
                }
                if !data.is_empty() {
                    object.data[from..to].copy_from_slice(&data);
                }
                object.truncate_seq = object.truncate_seq.max(truncate_seq);
                object.version = version;
            }
            Op::Truncate { key, size, truncate_seq, version } => {
                if let Some(object) = self.objects.get_mut(&key) {
                    object.data.resize(size as usize, 0);
                    object.truncate_seq = object.truncate_seq.max(truncate_seq);
                    object.version = version;
                }
            }
            Op::Zero { key, offset, len, version } => {
                if let Some(object) = self.objects.get_mut(&key) {
                    let size = object.data.len() as u64;
                    let (from, to) = (offset.min(size), offset.saturating_add(len).min(size));
                    object.data[from as usize..to as usize].fill(0);
                    object.version = version;
                }
            }
            Op::Delete { key } => drop(self.objects.remove(&key)),
            Op::DeleteRange { pg, inode, from_chunk } => {
                self.objects.retain(|k, _| (k.pg, k.inode) != (pg, inode) || k.chunk < from_chunk);
            }
            Op::Move { key, pg } => {
                if let Some(object) = self.objects.remove(&key) {
                    self.objects.insert(ObjectKey { pg, ..key }, object);
                }
            }
            Op::DeletePg { pg } => self.objects.retain(|k, _| k.pg != pg),
            Op::PutMeta { key, value } => drop(self.meta.insert(key, value)),
            Op::DeleteMeta { key } => drop(self.meta.remove(&key)),
            Op::DeleteMetaRange { from, to } => self.meta.retain(|k, _| *k < from || *k >= to),
        }
    }
}

/// Reads everything a store holds.
pub(super) fn contents(store: &Store, groups: &[u64]) -> Result<Model, StoreError> {
    let mut model = Model::default();
    for pg in groups {
        let mut after = None;
        loop {
            let page = store.list(*pg, after, 3)?;
            let Some((last, _)) = page.last() else { break };
            after = Some((last.inode, last.chunk));
            for (key, info) in page {
                let piece = store.read(key, 0, 1 << 26)?.expect("a listed object can be read");
                assert_eq!(piece.info, info, "listing and reading agree about {key}");
                assert_eq!(piece.data.len() as u64, info.size);
                assert_eq!(piece.crc, crc32c::crc32c(&piece.data));
                let ObjectInfo { truncate_seq, version, .. } = info;
                model.objects.insert(key, ModelObject { data: piece.data.to_vec(), truncate_seq, version });
            }
        }
    }
    let mut after: Option<Vec<u8>> = None;
    loop {
        let page = store.list_meta(b"", after.as_deref(), 3)?;
        let Some((last, _)) = page.last() else { break };
        after = Some(last.clone());
        for (key, value) in &page {
            assert_eq!(store.get_meta(key)?.as_ref(), Some(value), "listing and reading agree about {key:?}");
        }
        model.meta.extend(page);
    }
    Ok(model)
}

/// Checks the bitmap against the objects: nothing leaked, nothing shared.
pub(super) fn check_space(store: &Store, groups: &[u64]) {
    store.checkpoint().unwrap();
    let mut allocated = 0;
    for pg in groups {
        allocated +=
            store.list(*pg, None, 10_000).unwrap().iter().map(|(_, i)| i.allocated_bytes).sum::<u64>();
    }
    let space = store.space();
    assert_eq!((space.used, space.releasing), (allocated, 0), "blocks in use are those of the objects");
}
