//! Layers of recent changes above the index.
//!
//! The store's view is `active` over `frozen` over the index: `active` takes new transactions, `frozen` is being moved
//! into the extents and the index by a checkpoint. While a transaction is prepared it has a layer of its own on top
//! (the stage), which is absorbed by `active` or dropped.
//!
//! Invariants:
//! * A layer that has an entry for a key says everything about it: nothing below is looked at.
//! * `cleared` ranges hide everything below the layer. A checkpoint removes what the index holds in them, frees its
//!   blocks, and then writes the layer's entries. So a hidden version is freed by the checkpoint, and its blocks may be
//!   in `freed` as well.
//! * What `moved` names leaves the index before that, and its blocks stay in use: they belong to an object with another name.
//! * `blocks` holds contents by physical block number. That is unambiguous because freed blocks are not used again
//!   before a checkpoint has forgotten them. A block may be newer in a higher layer (overwritten in place).

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
};

use bytes::Bytes;

use super::{
    object::{Object, Run, push_run},
    types::ObjectKey,
};

/// Entries of one layer: `Some` is a value, `None` says "deleted".
#[derive(Debug)]
pub(super) struct Layered<K, V> {
    pub(super) entries: BTreeMap<K, Option<V>>,
    /// Disjoint ranges `from -> to` that hide what is below.
    pub(super) cleared: BTreeMap<K, K>,
}

impl<K, V> Default for Layered<K, V> {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), cleared: BTreeMap::new() }
    }
}

/// What one layer knows about a key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found<V> {
    Value(V),
    Deleted,
    /// Look below.
    Unknown,
}

impl<K: Ord + Clone, V: Clone> Layered<K, V> {
    pub(super) fn get(&self, key: &K) -> Found<V> {
        match self.entries.get(key) {
            Some(Some(value)) => Found::Value(value.clone()),
            Some(None) => Found::Deleted,
            None if self.clears(key) => Found::Deleted,
            None => Found::Unknown,
        }
    }

    pub(super) fn clears(&self, key: &K) -> bool {
        self.cleared.range(..=key.clone()).next_back().is_some_and(|(_, to)| key < to)
    }

    /// Adds a cleared range, joining it with those it meets.
    pub(super) fn clear(&mut self, from: K, to: K) {
        if from >= to {
            return;
        }
        let (mut start, mut end) = (from, to);
        if let Some((before, before_end)) = self.cleared.range(..=start.clone()).next_back()
            && *before_end >= start
        {
            end = end.max(before_end.clone());
            start = before.clone();
        }
        let met: Vec<K> = self.cleared.range(start.clone()..=end.clone()).map(|(k, _)| k.clone()).collect();
        for key in met {
            if let Some(met_end) = self.cleared.remove(&key) {
                end = end.max(met_end);
            }
        }
        self.cleared.insert(start, end);
    }

    /// First key after `after` that this layer has an entry for, below `to`.
    pub(super) fn next_entry(&self, after: &Bound<K>, to: &K) -> Option<(&K, Option<&V>)> {
        let empty = match after {
            Bound::Included(from) | Bound::Excluded(from) => from >= to,
            Bound::Unbounded => false,
        };
        if empty {
            return None;
        }
        let range = (after.clone(), Bound::Excluded(to.clone()));
        self.entries.range::<K, _>(range).next().map(|(k, v)| (k, v.as_ref()))
    }
}

#[derive(Debug, Default)]
pub(super) struct Layer {
    pub(super) objects: Layered<ObjectKey, Arc<Object>>,
    pub(super) meta: Layered<Vec<u8>, Bytes>,
    pub(super) blocks: BTreeMap<u64, Bytes>,
    /// Objects that were given to another group: what the index has under these names goes, and its blocks stay.
    pub(super) moved: BTreeSet<ObjectKey>,
    /// Taken from the allocator by transactions of this layer.
    pub(super) allocated: Vec<Run>,
    /// No longer used after this layer; some may also be in `allocated`.
    pub(super) freed: Vec<Run>,
    /// Sum of `freed`, in blocks.
    freed_blocks: u64,
    /// Roughly the memory this layer takes.
    pub(super) bytes: usize,
    /// Number of transactions absorbed.
    pub(super) transactions: u64,
}

impl Layer {
    pub(super) fn is_empty(&self) -> bool {
        self.transactions == 0
    }

    pub(super) fn freed_blocks(&self) -> u64 {
        self.freed_blocks
    }

    /// Notes blocks that nothing of this layer or below uses any more, and forgets their contents, which spares the
    /// checkpoint their write.
    pub(super) fn free(&mut self, run: Run) {
        self.drop_blocks(run);
        self.freed_blocks += u64::from(run.len);
        push_run(&mut self.freed, run);
    }

    pub(super) fn clears_objects(&self) -> bool {
        !self.objects.cleared.is_empty()
    }

    /// Takes over a prepared transaction.
    pub(super) fn absorb(&mut self, stage: Layer) {
        self.transactions += 1;
        self.moved.extend(stage.moved);
        for (from, to) in stage.objects.cleared {
            self.objects.clear(from, to);
        }
        for (key, object) in stage.objects.entries {
            self.bytes += object.as_ref().map_or(64, |o| o.weight());
            if let Some(previous) = self.objects.entries.insert(key, object) {
                self.bytes = self.bytes.saturating_sub(previous.map_or(64, |o| o.weight()));
            }
        }
        for (from, to) in stage.meta.cleared {
            self.drop_meta(&from, &to);
            self.meta.clear(from, to);
        }
        for (key, value) in stage.meta.entries {
            self.bytes += meta_weight(&key, value.as_ref());
            let key_len = key.len();
            if let Some(previous) = self.meta.entries.insert(key, value) {
                self.bytes = self.bytes.saturating_sub(64 + key_len + previous.map_or(0, |v| v.len()));
            }
        }
        for (block, data) in stage.blocks {
            self.bytes += block_weight(&data);
            if let Some(previous) = self.blocks.insert(block, data) {
                self.bytes = self.bytes.saturating_sub(block_weight(&previous));
            }
        }
        stage.allocated.into_iter().for_each(|run| push_run(&mut self.allocated, run));
        stage.freed.into_iter().for_each(|run| self.free(run));
    }

    fn drop_blocks(&mut self, run: Run) {
        let gone: Vec<u64> = self.blocks.range(run.start..run.end()).map(|(block, _)| *block).collect();
        for block in gone {
            if let Some(data) = self.blocks.remove(&block) {
                self.bytes = self.bytes.saturating_sub(block_weight(&data));
            }
        }
    }

    /// Removes the entries of a range that is about to be cleared: a log record put and trimmed between two
    /// checkpoints never reaches the index.
    pub(super) fn drop_meta(&mut self, from: &Vec<u8>, to: &Vec<u8>) {
        if from >= to {
            return;
        }
        let gone: Vec<Vec<u8>> =
            self.meta.entries.range::<Vec<u8>, _>(from..to).map(|(k, _)| k.clone()).collect();
        for key in gone {
            if let Some(value) = self.meta.entries.remove(&key) {
                self.bytes = self.bytes.saturating_sub(meta_weight(&key, value.as_ref()));
            }
        }
    }
}

fn meta_weight(key: &[u8], value: Option<&Bytes>) -> usize {
    64 + key.len() + value.map_or(0, Bytes::len)
}

fn block_weight(data: &Bytes) -> usize {
    data.len() + 64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleared_ranges_join_and_hide() {
        let mut layered: Layered<u32, u32> = Layered::default();
        layered.clear(10, 20);
        layered.clear(30, 40);
        layered.clear(20, 30);
        layered.clear(50, 50);
        assert_eq!(layered.cleared.iter().collect::<Vec<_>>(), vec![(&10, &40)]);
        assert_eq!(layered.get(&9), Found::Unknown);
        assert_eq!(layered.get(&39), Found::Deleted);
        assert_eq!(layered.get(&40), Found::Unknown);
        layered.entries.insert(15, Some(1));
        assert_eq!(layered.get(&15), Found::Value(1));
        layered.clear(5, 12);
        assert_eq!(layered.cleared.iter().collect::<Vec<_>>(), vec![(&5, &40)]);
    }
}
