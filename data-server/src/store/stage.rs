//! The one apply function: it puts changes into a layer of their own, on top of the store's view.
//!
//! Live transactions and the replay of the journal both go through [`Stage::apply`], so that they cannot differ.

use std::sync::Arc;

use bytes::Bytes;
use protocol::mutant;

use super::{
    index::Base,
    layer::{Found, Layer},
    object::{Object, Run, push_run},
    record::{Blocks, Change, cooked},
    types::{BLOCK_BYTES, ObjectKey, StoreError},
};

/// What lies below a stage.
#[derive(Clone, Copy, Debug)]
pub(super) struct Below<'a> {
    pub(super) active: &'a Layer,
    pub(super) frozen: Option<&'a Layer>,
    pub(super) base: &'a Base,
}

impl Below<'_> {
    pub(super) fn object(&self, key: ObjectKey) -> Result<Option<Arc<Object>>, StoreError> {
        match self.active.objects.get(&key) {
            Found::Value(object) => Ok(Some(object)),
            Found::Deleted => Ok(None),
            Found::Unknown => match self.frozen.map_or(Found::Unknown, |frozen| frozen.objects.get(&key)) {
                Found::Value(object) => Ok(Some(object)),
                Found::Deleted => Ok(None),
                Found::Unknown => self.base.object(key),
            },
        }
    }

    pub(super) fn meta(&self, key: &Vec<u8>) -> Result<Option<Bytes>, StoreError> {
        for layer in [Some(self.active), self.frozen].into_iter().flatten() {
            match layer.meta.get(key) {
                Found::Value(value) => return Ok(Some(value)),
                Found::Deleted => return Ok(None),
                Found::Unknown => {}
            }
        }
        self.base.meta(key)
    }
}

#[derive(Debug)]
pub(super) struct Stage<'a> {
    below: Below<'a>,
    pub(super) layer: Layer,
}

impl<'a> Stage<'a> {
    pub(super) fn new(below: Below<'a>) -> Self {
        Self { below, layer: Layer::default() }
    }

    pub(super) fn object(&self, key: ObjectKey) -> Result<Option<Arc<Object>>, StoreError> {
        match self.layer.objects.get(&key) {
            Found::Value(object) => Ok(Some(object)),
            Found::Deleted => Ok(None),
            Found::Unknown => self.below.object(key),
        }
    }

    /// Applies one change. Fails only if the index cannot be read.
    pub(super) fn apply(&mut self, change: &Change) -> Result<(), StoreError> {
        match change {
            Change::Attributes { key, size, truncate_seq, version } => {
                let object = self.edit(cooked(*key))?;
                (object.size, object.truncate_seq, object.version) = (*size, *truncate_seq, *version);
            }
            Change::Blocks(blocks) => self.apply_blocks(blocks)?,
            Change::Unmap { key, block, count } => {
                let freed = self.edit(cooked(*key))?.unmap(*block, *count);
                self.free(&freed);
            }
            Change::Delete { key } => {
                let key = cooked(*key);
                if let Some(object) = self.object(key)? {
                    self.forget(key, &object);
                }
            }
            Change::Move { key, pg } => self.apply_move(cooked(*key), *pg)?,
            Change::Clear { from, to } => self.apply_clear(cooked(*from), cooked(*to))?,
            Change::PutMeta { key, value } => {
                self.layer.meta.entries.insert(key.clone(), Some(value.clone()));
            }
            Change::DeleteMeta { key } => {
                self.layer.meta.entries.insert(key.clone(), None);
            }
            Change::ClearMeta { from, to } => {
                self.layer.drop_meta(from, to);
                self.layer.meta.clear(from.clone(), to.clone());
            }
        }
        Ok(())
    }

    fn apply_blocks(&mut self, blocks: &Blocks) -> Result<(), StoreError> {
        let runs = blocks.runs();
        let object = self.edit(cooked(blocks.key))?;
        let mut freed = Vec::new();
        if blocks.fresh {
            freed = object.map(blocks.block, &runs);
        }
        object.set_crcs(blocks.block, &blocks.crcs);
        if blocks.fresh {
            runs.iter().for_each(|run| push_run(&mut self.layer.allocated, *run));
            self.free(&freed);
        }
        if !blocks.external {
            for (index, block) in blocks.physical().enumerate() {
                self.layer.blocks.insert(block, padded_block(&blocks.data, index));
            }
        }
        Ok(())
    }

    /// Entries of the stage and of `active` are settled one by one, because their newest blocks are in no index; what
    /// lies deeper is left to the checkpoint.
    fn apply_clear(&mut self, from: ObjectKey, to: ObjectKey) -> Result<(), StoreError> {
        let mut present: Vec<ObjectKey> = Vec::new();
        let to =
            if mutant!("range-delete-takes-the-next") { ObjectKey { chunk: to.chunk + 1, ..to } } else { to };
        for layer in [&self.layer, self.below.active] {
            present
                .extend(layer.objects.entries.range(from..to).filter(|(_, o)| o.is_some()).map(|(k, _)| *k));
        }
        for key in present {
            if let Some(object) = self.object(key)? {
                self.forget(key, &object);
            }
        }
        self.layer.objects.clear(from, to);
        Ok(())
    }

    /// The record that the index may have under the old name must go before a range deletion looks at it, which would
    /// free its blocks. What a range deletion of this layer hides is not what is moved, and stays for it.
    fn apply_move(&mut self, key: ObjectKey, pg: u64) -> Result<(), StoreError> {
        let Some(object) = self.object(key)? else { return Ok(()) };
        let to = ObjectKey { pg, ..key };
        if let Some(old) = self.object(to)? {
            self.forget(to, &old);
        }
        if !self.layer.objects.clears(&key) && !self.below.active.objects.clears(&key) {
            self.layer.moved.insert(key);
        }
        self.layer.objects.entries.insert(key, None);
        self.layer.objects.entries.insert(to, Some(object));
        Ok(())
    }

    fn forget(&mut self, key: ObjectKey, object: &Object) {
        let runs: Vec<Run> = object.extents().iter().map(|e| e.run).collect();
        self.free(&runs);
        self.layer.objects.entries.insert(key, None);
    }

    fn free(&mut self, runs: &[Run]) {
        runs.iter().for_each(|run| self.layer.free(*run));
    }

    /// The stage's own copy of an object, created if it is missing.
    fn edit(&mut self, key: ObjectKey) -> Result<&mut Object, StoreError> {
        if !matches!(self.layer.objects.entries.get(&key), Some(Some(_))) {
            let object = self.object(key)?;
            self.layer.objects.entries.insert(key, Some(object.unwrap_or_default()));
        }
        let entry = self.layer.objects.entries.get_mut(&key).and_then(Option::as_mut);
        Ok(Arc::make_mut(entry.expect("the entry was inserted above")))
    }
}

/// Block `index` of contents whose trailing zeros were left out.
fn padded_block(data: &Bytes, index: usize) -> Bytes {
    let from = (index * BLOCK_BYTES).min(data.len());
    let to = (from + BLOCK_BYTES).min(data.len());
    if to - from == BLOCK_BYTES {
        return data.slice(from..to);
    }
    let mut block = vec![0; BLOCK_BYTES];
    block[..to - from].copy_from_slice(&data[from..to]);
    Bytes::from(block)
}
