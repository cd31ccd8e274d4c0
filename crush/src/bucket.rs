//! Inner nodes of the hierarchy.

use crate::straw::straw_lengths;
use serde::{Deserialize, Serialize};

/// Largest number of items of a tree bucket: the format keeps the node count in eight bits.
pub(crate) const TREE_ITEMS_MAX: usize = 64;

/// An inner node: items with weights, and the algorithm that picks one of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    pub(crate) id: i32,
    pub(crate) name: String,
    pub(crate) bucket_type: u32,
    pub(crate) algorithm: Algorithm,
    pub(crate) hash: u8,
    pub(crate) weight: u32,
    pub(crate) items: Vec<i32>,
    pub(crate) weights: Vec<u32>,
    /// Greater than the level of every item that is a bucket, so that the hierarchy cannot have a cycle.
    pub(crate) level: u32,
    /// For one device class's copy of a bucket: the original.
    pub(crate) shadow_of: Option<i32>,
}

impl Bucket {
    /// Negative; enters the hashes, so it must not change while data is placed by it.
    pub fn id(&self) -> i32 {
        self.id
    }

    /// Unique in the map; a device class's copy is called `ORIGINAL~CLASS`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The number of its type (host, rack, ...); never 0, which is the device type.
    pub fn bucket_type(&self) -> u32 {
        self.bucket_type
    }

    /// How an item is chosen.
    pub fn algorithm(&self) -> &Algorithm {
        &self.algorithm
    }

    /// The sum of the item weights, 16.16.
    pub fn weight(&self) -> u32 {
        self.weight
    }

    /// Items with their 16.16 weights, in order; the order matters to every algorithm but straw2.
    pub fn items(&self) -> impl ExactSizeIterator<Item = (i32, u32)> {
        self.items.iter().copied().zip(self.weights.iter().copied())
    }

    /// Whether this is a device class's copy of another bucket.
    pub fn is_shadow(&self) -> bool {
        self.shadow_of.is_some()
    }

    /// Whether what was read back has the lengths that choosing relies on.
    pub(crate) fn lengths_agree(&self) -> bool {
        let size = self.items.len();
        self.weights.len() == size
            && match &self.algorithm {
                Algorithm::Uniform | Algorithm::Straw2 => true,
                Algorithm::List { sums } => sums.len() == size,
                Algorithm::Tree { nodes } => size <= TREE_ITEMS_MAX && nodes.len() == tree_node_count(size),
                Algorithm::Straw { lengths } => lengths.len() == size,
            }
    }
}

/// How a bucket chooses one of its items, with what that needs beside the weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Algorithm {
    /// Equal weights; constant work, but adding an item moves nearly everything.
    Uniform,
    /// Best when items are only ever appended. `sums[i]` is the weight of items `0..=i`.
    List { sums: Vec<u32> },
    /// A binary tree of weights.
    Tree { nodes: Vec<u32> },
    /// The predecessor of straw2; a weight change moves more than it has to.
    Straw { lengths: Vec<u32> },
    /// Each item draws independently: a weight change moves only what it must. The one to use.
    Straw2,
}

impl Algorithm {
    /// Builds the algorithm named as in the text format for items of these weights; `None` for another name.
    /// The sums of weights must fit 32 bits.
    pub(crate) fn build(name: &str, weights: &[u32], straw_calc_version: u32) -> Option<Algorithm> {
        match name {
            "uniform" => Some(Algorithm::Uniform),
            "list" => Some(Algorithm::List { sums: running_sums(weights) }),
            "tree" => Some(Algorithm::Tree { nodes: tree_nodes(weights) }),
            "straw" => Some(Algorithm::Straw { lengths: straw_lengths(weights, straw_calc_version) }),
            "straw2" => Some(Algorithm::Straw2),
            _ => None,
        }
    }

    /// The name in the text format.
    pub fn name(&self) -> &'static str {
        match self {
            Algorithm::Uniform => "uniform",
            Algorithm::List { .. } => "list",
            Algorithm::Tree { .. } => "tree",
            Algorithm::Straw { .. } => "straw",
            Algorithm::Straw2 => "straw2",
        }
    }
}

fn running_sums(weights: &[u32]) -> Vec<u32> {
    weights
        .iter()
        .scan(0u32, |sum, &weight| {
            *sum = sum.wrapping_add(weight);
            Some(*sum)
        })
        .collect()
}

/// Weights of the nodes of the binary tree; item `i` is the leaf `2i + 1`, an inner node is the sum of its leaves.
fn tree_nodes(weights: &[u32]) -> Vec<u32> {
    let mut nodes = vec![0u32; tree_node_count(weights.len())];
    let root = nodes.len() / 2;
    for (item, &weight) in weights.iter().enumerate() {
        let mut node = 2 * item + 1;
        nodes[node] = weight;
        while node != root {
            node = tree_parent(node);
            nodes[node] = nodes[node].wrapping_add(weight);
        }
    }
    nodes
}

fn tree_node_count(size: usize) -> usize {
    match size {
        0 => 1,
        _ => 2 << (usize::BITS - (size - 1).leading_zeros()),
    }
}

/// The height of a node is its number of trailing zero bits; the bit above says which child it is.
fn tree_parent(node: usize) -> usize {
    let height = node.trailing_zeros();
    if node & (2 << height) != 0 { node - (1 << height) } else { node + (1 << height) }
}
