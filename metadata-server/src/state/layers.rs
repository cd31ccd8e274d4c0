//! The layers of the replicated state.
//!
//! ```text
//! speculative   leader only: proposed, not committed     <- prep reads from here down
//! committed     applied, newer than the checkpoint       <- replies, reads and pushes read from here down
//! frozen        being written to disk by a checkpoint
//! disk          the last checkpoint (redb, immutable until the next one)
//! ```
//!
//! Invariants: nothing below `speculative` holds anything uncommitted; a checkpoint holds exactly the
//! transactions up to the progress record inside it; a role change drops `speculative` and nothing else.
//!
//! Rows of the disk layer that were read lately stay in a [`RowCache`], absent ones too.

use super::key::{Key, is_written_once};
use super::row_cache::RowCache;
use super::rows::Rows;
use bytes::Bytes;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::iter::Peekable;
use std::ops::Bound;
use std::sync::Arc;
use zab::mutant;

/// Changes by key; `None` deletes.
pub type Writes = BTreeMap<Key, Option<Bytes>>;

/// Reading the disk layer failed. The server cannot go on: it leaves the quorum and says so.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot read the metadata store: {0}; check the disk, then start the server again or replace it")]
pub struct StoreError(pub String);

/// The immutable layer at the bottom.
pub trait Disk {
    /// Value of `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// At most `limit` keys and values in `[from, to)`, in order.
    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Bytes)>, StoreError>;
}

/// A disk layer in memory, for tests and the simulator.
impl Disk for BTreeMap<Key, Bytes> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(BTreeMap::get(self, key).cloned())
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Bytes)>, StoreError> {
        Ok(self.range(from.to_vec()..to.to_vec()).take(limit).map(|(k, v)| (k.clone(), v.clone())).collect())
    }
}

/// Something that can be read by key.
pub trait View {
    /// Value of `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// At most `limit` keys and values in `[from, to)`, in order.
    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Bytes)>, StoreError>;
}

/// All layers of one server.
pub struct Layers<D> {
    disk: D,
    /// What `disk` says; nothing that `committed` or `frozen` say anything about.
    cache: RefCell<RowCache>,
    frozen: Option<Rows<Option<Bytes>>>,
    committed: Rows<Option<Bytes>>,
    committed_bytes: usize,
    /// Each with the revision that wrote it last.
    speculative: Rows<(u64, Option<Bytes>)>,
}

impl<D: Disk> Layers<D> {
    /// Only a disk layer.
    pub fn new(disk: D) -> Self {
        Self {
            disk,
            cache: RefCell::default(),
            frozen: None,
            committed: Rows::default(),
            committed_bytes: 0,
            speculative: Rows::default(),
        }
    }

    /// Adds a proposed transaction's changes on top.
    pub fn speculate(&mut self, revision: u64, writes: &Writes) {
        for (key, value) in writes {
            self.speculative.insert(key.clone(), (revision, value.clone()));
        }
    }

    /// Moves a transaction's changes to the committed layer.
    pub fn commit(&mut self, revision: u64, writes: Writes) {
        for (key, value) in writes {
            self.speculative.remove_if(&key, |(by, _)| *by == revision);
            self.cache.get_mut().forget(&key);
            self.commit_row(key, value);
        }
    }

    fn commit_row(&mut self, key: Key, value: Option<Bytes>) {
        // A reply that comes and goes within this layer leaves no trace: nothing below can have it, so nothing has to
        // be hidden.
        let once = is_written_once(&key);
        if once
            && value.is_none()
            && let Some(reply) = self.committed.remove_if(&key, Option::is_some)
        {
            self.committed_bytes -= row_bytes(key.len(), reply.as_ref());
            return;
        }
        let key_bytes = key.len();
        self.committed_bytes += row_bytes(key_bytes, value.as_ref());
        if let Some(before) = self.committed.insert(key, value) {
            debug_assert!(!once, "a reply is put once and deleted once");
            self.committed_bytes -= row_bytes(key_bytes, before.as_ref());
        }
    }

    /// Forgets everything that was proposed and not committed.
    pub fn drop_speculative(&mut self) {
        self.speculative = Rows::default();
    }

    /// Whether any uncommitted change stands on `key`.
    pub fn is_speculative(&self, key: &[u8]) -> bool {
        self.speculative.contains_key(key)
    }

    /// Bytes in the committed layer: what the next checkpoint will write.
    pub fn committed_bytes(&self) -> usize {
        self.committed_bytes
    }

    /// Whether a checkpoint is being written.
    pub fn is_freezing(&self) -> bool {
        self.frozen.is_some()
    }

    /// Starts a checkpoint: the committed layer becomes immutable and a new one begins.
    pub fn freeze(&mut self) -> Arc<Writes> {
        assert!(self.frozen.is_none(), "one checkpoint at a time");
        let mut frozen = std::mem::take(&mut self.committed);
        if mutant!("checkpoint-holds-speculation") {
            for (key, (_, value)) in self.speculative.share().iter() {
                frozen.insert(key.clone(), value.clone());
            }
        }
        self.committed_bytes = 0;
        let shared = frozen.share();
        self.frozen = Some(frozen);
        shared
    }

    /// Ends a checkpoint: `disk` holds what was frozen. Returns that, because freeing it takes a while.
    pub fn thaw(&mut self, disk: D) -> Option<Arc<Writes>> {
        self.disk = disk;
        self.frozen.take().map(Rows::into_shared)
    }

    /// What is committed.
    pub fn committed(&self) -> Committed<'_, D> {
        Committed(self)
    }

    /// What will be committed if every proposal is.
    pub fn proposed(&self) -> Proposed<'_, D> {
        Proposed(self)
    }

    fn scan_layers(
        &self,
        from: &[u8],
        to: &[u8],
        limit: usize,
        with_speculative: bool,
    ) -> Result<Vec<(Key, Bytes)>, StoreError> {
        let mut result = Vec::new();
        if from >= to {
            return Ok(result);
        }
        let mut overlay = self.overlay(from, to, with_speculative);
        let mut from = from.to_vec();
        while result.len() < limit {
            // Deleted keys make a batch of the disk layer yield fewer than asked for: go on behind it.
            let want = (limit - result.len()).saturating_add(16).min(4096);
            let base = self.disk.scan(&from, to, want)?;
            let is_last = base.len() < want;
            for (key, value) in base {
                overlay.take_below(Some(&key), limit, &mut result);
                from.clone_from(&key);
                let value = overlay.take(&key).map_or(Some(value), |newer| newer.clone());
                result.extend(value.map(|value| (key, value)));
            }
            if is_last {
                overlay.take_below(None, limit, &mut result);
                break;
            }
            from.push(0);
        }
        result.truncate(limit);
        Ok(result)
    }

    /// What stands above the disk in `[from, to)`.
    fn overlay(&self, from: &[u8], to: &[u8], with_speculative: bool) -> Overlay<'_> {
        let range = (Bound::Included(from), Bound::Excluded(to));
        let mut layers: Vec<Peekable<LayerRows<'_>>> = Vec::with_capacity(3);
        if with_speculative {
            let rows = self.speculative.range(range).map(|(key, (_, value))| (key, value));
            layers.push((Box::new(rows) as LayerRows<'_>).peekable());
        }
        for layer in [Some(&self.committed), self.frozen.as_ref()].into_iter().flatten() {
            layers.push((Box::new(layer.range(range)) as LayerRows<'_>).peekable());
        }
        Overlay { layers }
    }

    fn get_committed(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        if let Some(value) = self.committed.get(key) {
            return Ok(value.clone());
        }
        if let Some(value) = self.frozen.as_ref().and_then(|f| f.get(key)) {
            return Ok(value.clone());
        }
        if let Some(known) = self.cache.borrow().get(key) {
            return Ok(known.clone());
        }
        let value = self.disk.get(key)?;
        self.cache.borrow_mut().note(key, value.clone());
        Ok(value)
    }
}

/// What a row is reckoned to take.
pub(super) fn row_bytes(key_bytes: usize, value: Option<&Bytes>) -> usize {
    key_bytes + value.map_or(0, Bytes::len) + 64
}

type LayerRows<'a> = Box<dyn Iterator<Item = (&'a Key, &'a Option<Bytes>)> + 'a>;

/// Several layers read as one, the newest first. Looks at no more rows than it is asked for.
struct Overlay<'a> {
    layers: Vec<Peekable<LayerRows<'a>>>,
}

impl<'a> Overlay<'a> {
    fn first_key(&mut self) -> Option<&'a Key> {
        self.layers.iter_mut().filter_map(|layer| layer.peek().map(|(key, _)| *key)).min()
    }

    /// The newest row of `key`, if there is one; the rows of that key are behind.
    fn take(&mut self, key: &[u8]) -> Option<&'a Option<Bytes>> {
        let mut newest = None;
        for layer in &mut self.layers {
            let row = layer.next_if(|(other, _)| other.as_slice() == key);
            newest = newest.or(row.map(|(_, value)| value));
        }
        newest
    }

    /// Moves rows below `end` to `result`, until that has `limit`.
    fn take_below(&mut self, end: Option<&[u8]>, limit: usize, result: &mut Vec<(Key, Bytes)>) {
        while result.len() < limit
            && let Some(key) = self.first_key()
            && end.is_none_or(|end| key.as_slice() < end)
        {
            let value = self.take(key).and_then(Option::as_ref);
            result.extend(value.map(|value| (key.clone(), value.clone())));
        }
    }
}

/// See [`Layers::committed`].
pub struct Committed<'a, D>(&'a Layers<D>);

impl<D: Disk> View for Committed<'_, D> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.0.get_committed(key)
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Bytes)>, StoreError> {
        self.0.scan_layers(from, to, limit, false)
    }
}

/// See [`Layers::proposed`].
pub struct Proposed<'a, D>(&'a Layers<D>);

impl<D: Disk> View for Proposed<'_, D> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        match self.0.speculative.get(key) {
            Some((_, value)) => Ok(value.clone()),
            None => self.0.get_committed(key),
        }
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Bytes)>, StoreError> {
        self.0.scan_layers(from, to, limit, true)
    }
}

/// Lengths and marks of one change in a transaction.
const ROW_BYTES: usize = 8;

/// A view with a transaction's own changes on top.
pub struct Draft<'a> {
    base: &'a dyn View,
    writes: Writes,
    bytes: usize,
}

impl<'a> Draft<'a> {
    /// Nothing changed yet.
    pub fn new(base: &'a dyn View) -> Self {
        Self { base, writes: Writes::new(), bytes: 0 }
    }

    /// Sets `key`.
    pub fn put(&mut self, key: Key, value: Bytes) {
        self.bytes += key.len() + value.len() + ROW_BYTES;
        self.writes.insert(key, Some(value));
    }

    /// Deletes `key`.
    pub fn delete(&mut self, key: Key) {
        self.bytes += key.len() + ROW_BYTES;
        self.writes.insert(key, None);
    }

    /// Bytes that the changes take in a transaction, or a little less than this.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The changes so far.
    pub fn writes(&self) -> &Writes {
        &self.writes
    }

    /// The changes.
    pub fn into_writes(self) -> Writes {
        self.writes
    }
}

impl View for Draft<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        match self.writes.get(key) {
            Some(value) => Ok(value.clone()),
            None => self.base.get(key),
        }
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Bytes)>, StoreError> {
        if from >= to {
            return Ok(Vec::new());
        }
        let own: Vec<_> = self.writes.range(from.to_vec()..to.to_vec()).collect();
        let mut merged: BTreeMap<Key, Bytes> =
            self.base.scan(from, to, limit.saturating_add(own.len()))?.into_iter().collect();
        let deleted: BTreeSet<&Key> = own.iter().filter(|(_, v)| v.is_none()).map(|(k, _)| *k).collect();
        for (key, value) in &own {
            if let Some(value) = value {
                merged.insert((*key).clone(), value.clone());
            }
        }
        Ok(merged.into_iter().filter(|(k, _)| !deleted.contains(k)).take(limit).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn writes(key: u8, value: Option<u8>) -> Writes {
        Writes::from([(vec![key], value.map(|v| Bytes::from(vec![v])))])
    }

    #[test]
    fn speculation_is_invisible_to_readers_and_dies_with_the_role() {
        let mut layers = Layers::new(BTreeMap::<Key, Bytes>::new());
        layers.speculate(1, &writes(1, Some(7)));
        assert!(layers.committed().get(&[1]).expect("reads").is_none());
        assert!(layers.proposed().get(&[1]).expect("reads").is_some());
        layers.drop_speculative();
        assert!(layers.proposed().get(&[1]).expect("reads").is_none());
    }

    #[test]
    fn a_commit_keeps_newer_speculation_on_the_same_key() {
        let mut layers = Layers::new(BTreeMap::<Key, Bytes>::new());
        layers.speculate(1, &writes(1, Some(7)));
        layers.speculate(2, &writes(1, Some(8)));
        layers.commit(1, writes(1, Some(7)));
        assert_eq!(layers.proposed().get(&[1]).expect("reads").expect("there")[0], 8);
        assert_eq!(layers.committed().get(&[1]).expect("reads").expect("there")[0], 7);
    }

    #[test]
    fn a_reply_that_comes_and_goes_leaves_no_trace_but_hides_one_below() {
        let reply = |sequence| super::super::key::reply(protocol::SessionId(1), sequence);
        let put = |sequence| Writes::from([(reply(sequence), Some(Bytes::from_static(b"done")))]);
        let delete = |sequence| Writes::from([(reply(sequence), None)]);
        let mut layers = Layers::new(BTreeMap::<Key, Bytes>::new());
        layers.commit(1, put(1));
        layers.commit(2, put(2));
        layers.commit(3, delete(1));
        assert_eq!(layers.freeze().keys().collect::<Vec<_>>(), [&reply(2)]);
        layers.commit(4, delete(2));
        assert!(layers.committed().get(&reply(2)).expect("reads").is_none(), "the frozen one is hidden");
        assert_eq!(layers.committed_bytes(), row_bytes(reply(2).len(), None));
    }

    #[test]
    fn what_was_read_from_the_disk_does_not_outlive_a_change() {
        let disk = BTreeMap::from([(vec![1], Bytes::from_static(b"old"))]);
        let mut layers = Layers::new(disk.clone());
        assert_eq!(layers.committed().get(&[1]).expect("reads").expect("there"), "old");
        assert!(layers.committed().get(&[2]).expect("reads").is_none());
        layers.commit(1, Writes::from([(vec![1], None), (vec![2], Some(Bytes::from_static(b"new")))]));
        layers.freeze();
        layers.thaw(BTreeMap::from([(vec![2], Bytes::from_static(b"new"))]));
        assert!(layers.committed().get(&[1]).expect("reads").is_none());
        assert_eq!(layers.committed().get(&[2]).expect("reads").expect("there"), "new");
    }

    proptest! {
        /// Whatever is spread over the layers in whatever way reads like one map.
        #[test]
        fn layers_read_like_one_map(ops in prop::collection::vec((0u8..40, prop::option::of(any::<u8>()), 0u8..12), 0..200), limit in 1usize..50) {
            let mut layers = Layers::new(BTreeMap::<Key, Bytes>::new());
            let mut model = BTreeMap::<Key, Bytes>::new();
            let mut frozen: Option<Arc<Writes>> = None;
            for (revision, (key, value, action)) in ops.into_iter().enumerate() {
                let change = writes(key, value);
                layers.speculate(revision as u64, &change);
                layers.commit(revision as u64, change.clone());
                for (k, v) in change {
                    match v { Some(v) => { model.insert(k, v); } None => { model.remove(&k); } }
                }
                if action == 0 && frozen.is_none() {
                    frozen = Some(layers.freeze());
                } else if action == 1 && let Some(done) = frozen.take() {
                    let mut disk = std::mem::take(&mut layers.disk);
                    for (k, v) in done.iter() {
                        match v { Some(v) => { disk.insert(k.clone(), v.clone()); } None => { disk.remove(k); } }
                    }
                    layers.thaw(disk);
                }
            }
            let range = |model: &BTreeMap<Key, Bytes>, from: u8, to: u8| -> Vec<_> {
                model.range(vec![from]..vec![to]).take(limit).map(|(k, v)| (k.clone(), v.clone())).collect()
            };
            for (from, to) in [(0, 255), (0, 7), (5, 30), (39, 255)] {
                let found = layers.committed().scan(&[from], &[to], limit).expect("scans");
                prop_assert_eq!(found, range(&model, from, to));
            }
            layers.speculate(9999, &Writes::from([(vec![3], Some(Bytes::from_static(&[1]))), (vec![6], None)]));
            let mut proposed = model.clone();
            proposed.insert(vec![3], Bytes::from_static(&[1]));
            proposed.remove([6].as_slice());
            let found = layers.proposed().scan(&[0], &[255], limit).expect("scans");
            prop_assert_eq!(found, range(&proposed, 0, 255));
            for key in 0u8..40 {
                prop_assert_eq!(layers.committed().get(&[key]).expect("reads"), model.get([key].as_slice()).cloned());
            }
        }
    }
}
