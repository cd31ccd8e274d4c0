//! Placement as pure functions: map, rule and input to devices, bit-identical to Ceph's CRUSH.
//!
//! A [`CrushMap`] is a hierarchy of *buckets* (hosts, racks, roots) with *devices* at the leaves, and *rules*
//! that say how to pick devices from it. [`CrushMap::do_rule`] turns a rule and a 32-bit input into an ordered
//! list of devices. The input comes from [`placement`]: object name, to placement group, to input.
//!
//! Invariants:
//! * The same map, rule, input and reweights give the same devices on every machine and in every version;
//!   they are the devices `crushtool` 16.2.15 gives. `tests/vectors` holds recorded mappings.
//! * No I/O, no clock, no randomness. Floating point decides in two places only, both while a map is built:
//!   decimal weights in the text format, and the lengths of legacy straw buckets. Mappings use it to reject
//!   items early and to divide, both with proven bounds (`straw2`).
//! * A mapping allocates nothing once its [`Scratch`] has grown to the size in use.
//! * A `CrushMap` that exists is sound: every item exists, the hierarchy has no cycle, lengths agree. Text and
//!   serialized maps are checked on the way in.
//!
//! Deliberately absent: editing a built map in place (a [`Draft`] makes a new one), MSR rules.

pub mod balance;
mod binary;
mod bucket;
mod choose;
mod class;
pub mod compare;
mod edit;
mod flat;
pub mod hash;
mod index;
mod ln;
mod ln_tables;
mod map;
mod mapper;
pub mod placement;
mod rule;
mod straw;
mod straw2;
mod text;
mod tunables;

pub use binary::BinaryError;
pub use bucket::{Algorithm, Bucket};
pub use edit::{DEVICE_WEIGHT_MAX, Draft, EditError, NewRule};
pub use flat::{CLASSES_MAX, flat_hosts, flat_map, flat_rule};
pub use ln::crush_ln;
pub use map::{ChooseArg, CrushMap, DEVICE_ID_MAX, Device, LEVELS_MAX, MapError, NewBucket};
pub use mapper::{Scratch, is_out};
pub use placement::{object_hash, object_hash_in_namespace, pg_of, pps, stable_mod};
pub use rule::{CHOOSE_NUM_MAX, Mode, Rule, RuleKind, Step, TRIES_MAX};
pub use text::{ParseError, weight_from_text};
pub use tunables::Tunables;

/// A hole in the result of an `indep` rule: no device was found for that position.
pub const ITEM_NONE: i32 = 0x7fff_ffff;

/// A weight of 1.0 in the 16.16 fixed-point form used for all weights.
pub const WEIGHT_ONE: u32 = 0x1_0000;
