//! Changing a map: devices and buckets come, move and go, weights change, rules are made.
//!
//! A [`Draft`] is a map taken apart. Its methods change it as operators of Ceph expect of `ceph osd crush` and
//! `crushtool`; [`Draft::finish`] builds a new, checked map. The map it came from is untouched.
//!
//! Invariants of every change:
//! * ids of existing buckets, device classes' copies included, stay: they enter the hashes;
//! * the weight of every ancestor of a changed item is again the sum of its items;
//! * weight sets keep fitting their buckets: a changed item gets its new weight in every row, and ancestors the
//!   sums of the rows below. Copies' weight sets are made anew from their originals'.

mod finish;
mod items;
mod rules;
mod weight_sets;

pub use rules::NewRule;

use crate::map::{ChooseArg, CrushMap, Device, MapError};
use crate::rule::Rule;
use crate::tunables::Tunables;
use std::collections::BTreeMap;

/// Largest weight of a device, 100.0: the text format refuses more.
pub const DEVICE_WEIGHT_MAX: u32 = 100 * crate::WEIGHT_ONE;

/// A map taken apart for changes.
#[derive(Clone, Debug)]
pub struct Draft {
    tunables: Tunables,
    types: BTreeMap<u32, String>,
    devices: BTreeMap<i32, Device>,
    classes: Vec<String>,
    /// Originals only; the copies for device classes are made again at the end.
    buckets: BTreeMap<i32, DraftBucket>,
    shadow_ids: BTreeMap<i32, BTreeMap<u32, i32>>,
    rules: BTreeMap<u32, Rule>,
    /// New rules that take from the copy of a bucket for a class: rule to (bucket, class).
    class_takes: BTreeMap<u32, (i32, String)>,
    choose_args: BTreeMap<i64, BTreeMap<i32, ChooseArg>>,
    /// As they were, for maps that nothing changed in a way that concerns copies.
    shadow_choose_args: BTreeMap<i64, BTreeMap<i32, ChooseArg>>,
    /// Whether items or weights changed, so that the copies' weight sets must be made again.
    items_changed: bool,
}

#[derive(Clone, Debug)]
struct DraftBucket {
    name: String,
    bucket_type: u32,
    algorithm: &'static str,
    hash: u8,
    items: Vec<(i32, u32)>,
}

impl DraftBucket {
    /// Saturating: a sum past the limit is refused when the map is built.
    fn weight(&self) -> u32 {
        self.items.iter().fold(0, |sum, (_, weight)| sum.saturating_add(*weight))
    }
}

/// Why a change was refused. The draft may be left changed in part: drop it. The map it came from is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    #[error("`{0}` is neither a device nor a bucket of this map; `zabfs crush tree` lists them")]
    NoSuchItem(String),
    #[error("the map has no type `{name}`; it has: {known}")]
    NoSuchType { name: String, known: String },
    #[error("`{0}` is not a location; write TYPE=NAME, like host=node1")]
    BadLocation(String),
    #[error("the location names two buckets of type `{0}`; give one")]
    LocationTypeTwice(String),
    #[error("no location is given; name at least one bucket that holds `{0}`, like host=node1")]
    NoLocation(String),
    #[error("`{name}` is a {actual}, not a {wanted}")]
    WrongType { name: String, actual: String, wanted: String },
    #[error(
        "a {container} cannot hold `{name}`, which is a {item}: types must rise from devices to the root"
    )]
    TypesDoNotRise { container: String, name: String, item: String },
    #[error("`{lower}` is not below {wanted}; move `{lower}` first, or leave {wanted} out of the location")]
    NotBelow { lower: String, wanted: String },
    #[error("`{name}` is already in `{parent}`; use `zabfs crush move` or `zabfs crush reweight`")]
    AlreadyPlaced { name: String, parent: String },
    #[error("the name `{0}` is already taken")]
    NameTaken(String),
    #[error("`{name}` is below `{target}` already or the same, so that the hierarchy would be a cycle")]
    Cycle { name: String, target: String },
    #[error("bucket `{name}` still holds {count} items; move or remove them first")]
    NotEmpty { name: String, count: usize },
    #[error("rule `{rule}` takes from `{name}`; remove the rule first")]
    InUse { name: String, rule: String },
    #[error("`{0}` does not say its id; name devices osd.N, or give --id N")]
    NoDeviceId(String),
    #[error("device id {id} belongs to `{name}`; give another id")]
    DeviceIdTaken { id: i32, name: String },
    #[error("the weight of a device is at most 100; weights are usually capacities in TiB")]
    WeightTooLarge,
    #[error("`{0}` is not in any bucket, so it has no weight; add it at a location first")]
    NotPlaced(String),
    #[error(
        "`{0}` is a bucket, whose weight is that of its items; reweight all devices below it with --subtree"
    )]
    BucketWeight(String),
    #[error("the map has no rule `{name}`; it has: {known}")]
    NoSuchRule { name: String, known: String },
    #[error("a rule `{0}` exists already")]
    RuleTaken(String),
    #[error("no device below `{root}` has the class `{class}`")]
    NoSuchClass { root: String, class: String },
    #[error("`{0}` is a device; a rule starts from a bucket, usually a root")]
    RootIsDevice(String),
    #[error("the map would be wrong: {0}")]
    Map(#[from] MapError),
}

impl CrushMap {
    /// Takes the map apart, to be changed and built again.
    pub fn edit(&self) -> Draft {
        let originals = self.buckets.values().filter(|bucket| !bucket.is_shadow());
        let buckets = originals.map(|bucket| {
            let draft = DraftBucket {
                name: bucket.name.clone(),
                bucket_type: bucket.bucket_type,
                algorithm: bucket.algorithm.name(),
                hash: bucket.hash,
                items: bucket.items().collect(),
            };
            (bucket.id, draft)
        });
        let split = |shadows: bool| {
            let of_bucket =
                |id: &i32| self.buckets.get(id).is_some_and(|bucket| bucket.is_shadow() == shadows);
            let args = self.choose_args.iter().map(|(index, args)| {
                let kept = args.iter().filter(|(id, _)| of_bucket(id));
                (*index, kept.map(|(id, arg)| (*id, arg.clone())).collect())
            });
            args.collect()
        };
        Draft {
            tunables: self.tunables,
            types: self.types.clone(),
            devices: self.devices.clone(),
            classes: self.classes.clone(),
            buckets: buckets.collect(),
            shadow_ids: self.shadow_ids.clone(),
            rules: self.rules.clone(),
            class_takes: BTreeMap::new(),
            choose_args: split(false),
            shadow_choose_args: split(true),
            items_changed: false,
        }
    }
}

impl Draft {
    fn item_id(&self, name: &str) -> Option<i32> {
        let device = self.devices.iter().find(|(_, device)| device.name == name).map(|(id, _)| *id);
        device.or_else(|| self.buckets.iter().find(|(_, bucket)| bucket.name == name).map(|(id, _)| *id))
    }

    fn known_item(&self, name: &str) -> Result<i32, EditError> {
        self.item_id(name).ok_or_else(|| EditError::NoSuchItem(name.to_owned()))
    }

    fn item_name(&self, id: i32) -> String {
        let device = self.devices.get(&id).map(|device| device.name.clone());
        device.or_else(|| self.buckets.get(&id).map(|bucket| bucket.name.clone())).unwrap_or_default()
    }

    /// 0 for a device.
    fn item_type(&self, id: i32) -> u32 {
        self.buckets.get(&id).map_or(0, |bucket| bucket.bucket_type)
    }

    fn type_id(&self, name: &str) -> Result<u32, EditError> {
        let known = || self.types.values().map(String::as_str).collect::<Vec<_>>().join(", ");
        let found = self.types.iter().find(|(_, other)| *other == name).map(|(id, _)| *id);
        found.ok_or_else(|| EditError::NoSuchType { name: name.to_owned(), known: known() })
    }

    fn type_name(&self, id: u32) -> String {
        self.types.get(&id).cloned().unwrap_or_else(|| format!("type {id}"))
    }

    /// The buckets that hold an item.
    fn parents(&self, item: i32) -> Vec<i32> {
        let holds = |bucket: &DraftBucket| bucket.items.iter().any(|(other, _)| *other == item);
        self.buckets.iter().filter(|(_, bucket)| holds(bucket)).map(|(id, _)| *id).collect()
    }

    /// Whether `item` is `root` or somewhere below it. The recursion is bounded by the height of the map.
    fn is_below(&self, item: i32, root: i32) -> bool {
        item == root || self.parents(item).into_iter().any(|parent| self.is_below(parent, root))
    }
}
