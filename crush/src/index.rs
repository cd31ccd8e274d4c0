//! The map as mappings walk it: buckets in one list, children by their place in it, straw2 items laid out for drawing.
//!
//! It follows from the rest of the map and is kept up to date as buckets and weight sets are added.

use crate::bucket::{Algorithm, Bucket};
use crate::choose::choose;
use crate::map::ChooseArg;
use crate::straw2::Lanes;
use std::collections::BTreeMap;

/// In place of a child's number: the item is a device.
const DEVICE: u32 = u32::MAX;

/// All buckets, every one after its items.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    nodes: Vec<Node>,
    number_of: BTreeMap<i32, u32>,
    args: BTreeMap<i64, PoolArgs>,
}

/// One bucket.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) bucket: Bucket,
    /// Its place in the list.
    number: u32,
    /// For every item its place in the list, or [`DEVICE`].
    children: Vec<u32>,
    /// For straw2.
    lanes: Option<Lanes>,
}

/// The weight sets of one pool, by bucket number; straw2 only, since nothing else looks at them.
#[derive(Clone, Debug, Default)]
pub(crate) struct PoolArgs {
    rows: Vec<Vec<Lanes>>,
}

/// Two maps are equal when what they are made of is; the order of this list is not part of that.
impl PartialEq for Index {
    fn eq(&self, _other: &Index) -> bool {
        true
    }
}

impl Index {
    /// The index of a sound map.
    pub(crate) fn of(
        buckets: &BTreeMap<i32, Bucket>,
        choose_args: &BTreeMap<i64, BTreeMap<i32, ChooseArg>>,
    ) -> Index {
        let mut index = Index::default();
        let mut by_level: Vec<&Bucket> = buckets.values().collect();
        by_level.sort_by_key(|bucket| bucket.level);
        for bucket in by_level {
            index.add_bucket(bucket);
        }
        for (pool, args) in choose_args {
            for (bucket, arg) in args {
                index.add_choose_arg(*pool, *bucket, arg);
            }
        }
        index
    }

    /// Adds a bucket whose items are there already.
    pub(crate) fn add_bucket(&mut self, bucket: &Bucket) {
        let number = self.nodes.len() as u32;
        let children =
            bucket.items.iter().map(|item| self.number_of.get(item).copied().unwrap_or(DEVICE)).collect();
        let straw2 = matches!(bucket.algorithm, Algorithm::Straw2);
        let lanes = straw2.then(|| Lanes::new(bucket.hash, &bucket.weights, &bucket.items));
        self.number_of.insert(bucket.id, number);
        self.nodes.push(Node { bucket: bucket.clone(), number, children, lanes });
    }

    /// Adds the weight set or ids of a bucket, which fit it.
    pub(crate) fn add_choose_arg(&mut self, pool: i64, bucket: i32, arg: &ChooseArg) {
        let args = self.args.entry(pool).or_default();
        let Some(number) = self.number_of.get(&bucket) else { return };
        let node = &self.nodes[*number as usize];
        if node.lanes.is_none() {
            return;
        }
        let Bucket { hash, weights, items, .. } = &node.bucket;
        let ids = arg.ids.as_ref().unwrap_or(items);
        let rows = match arg.weight_set.as_slice() {
            [] => vec![Lanes::new(*hash, weights, ids)],
            rows => rows.iter().map(|row| Lanes::new(*hash, row, ids)).collect(),
        };
        let needed = *number as usize + 1;
        if args.rows.len() < needed {
            args.rows.resize(needed, Vec::new());
        }
        args.rows[*number as usize] = rows;
    }

    pub(crate) fn pool_args(&self, pool: i64) -> Option<&PoolArgs> {
        self.args.get(&pool)
    }

    pub(crate) fn node_of(&self, id: i32) -> Option<&Node> {
        self.nodes.get(*self.number_of.get(&id)? as usize)
    }

    /// The node of the item at a position, unless it is a device.
    #[inline]
    pub(crate) fn child(&self, node: &Node, position: usize) -> Option<&Node> {
        self.nodes.get(node.children[position] as usize)
    }
}

impl Node {
    #[inline]
    pub(crate) fn items(&self) -> &[i32] {
        &self.bucket.items
    }

    /// The position of the item drawn. The bucket is not empty.
    #[inline]
    pub(crate) fn choose(&self, x: u32, r: u32, permutation: &mut Vec<u32>) -> usize {
        match &self.lanes {
            Some(lanes) => lanes.draw(x, r),
            None => choose(&self.bucket, x, r, permutation),
        }
    }
}

impl PoolArgs {
    /// Like [`Node::choose`]; `position` picks the row of a weight set, the last serving all later ones.
    pub(crate) fn choose(
        &self,
        node: &Node,
        x: u32,
        r: u32,
        position: usize,
        permutation: &mut Vec<u32>,
    ) -> usize {
        let rows = self.rows.get(node.number as usize).map(Vec::as_slice).unwrap_or_default();
        match rows.get(position).or(rows.last()) {
            Some(lanes) => lanes.draw(x, r),
            None => node.choose(x, r, permutation),
        }
    }
}
