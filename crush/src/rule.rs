//! Rules: small programs that pick devices from the hierarchy.

use serde::{Deserialize, Serialize};

/// Bound on the absolute count in a choose step; larger ones are refused. It bounds the work of one mapping.
pub const CHOOSE_NUM_MAX: u32 = 4096;

/// Bound on every retry count, in tunables and in `set_` steps; larger ones are refused.
pub const TRIES_MAX: u32 = 1_000_000;

/// A named sequence of steps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// The number pools refer to.
    pub id: u32,
    /// Unique among rules; a rule may have none.
    pub name: Option<String>,
    /// What kind of pool the rule is meant for; no effect on mappings.
    pub kind: RuleKind,
    /// Smallest pool size the rule is meant for; no effect on mappings.
    pub min_size: u32,
    /// Largest pool size the rule is meant for; no effect on mappings.
    pub max_size: u32,
    /// Executed in order.
    pub steps: Vec<Step>,
}

/// What kind of pool a rule is meant for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RuleKind {
    /// Interchangeable copies.
    Replicated,
    /// Shards, of which each position is distinct.
    Erasure,
}

/// How a choose step treats positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// A failed choice is skipped and later ones move up; for copies.
    Firstn,
    /// A failed choice leaves a hole and the others stay; for shards.
    Indep,
}

/// One instruction of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Start from this bucket (possibly one device class's copy of it) or device.
    Take { item: i32 },
    /// Choose items of a type below each current item.
    Choose {
        mode: Mode,
        /// Go on to one device below each chosen item (`chooseleaf`).
        leaf: bool,
        /// How many; zero or less counts from the number of replicas asked for.
        num: i32,
        /// The type to choose; 0 is the device type.
        item_type: u32,
    },
    /// Append the current items to the result.
    Emit,
    /// Replace the retries per replica, when not 0.
    SetChooseTries(u32),
    /// Replace the retries of the leaf search, when not 0.
    SetChooseleafTries(u32),
    /// Replace the tunable of that name.
    SetChooseLocalTries(u32),
    /// Replace the tunable of that name.
    SetChooseLocalFallbackTries(u32),
    /// Replace the tunable of that name.
    SetChooseleafVaryR(u32),
    /// Replace the tunable of that name.
    SetChooseleafStable(u32),
}
