//! The map: devices, types, buckets, rules, and how it is put together.

use crate::bucket::{Algorithm, Bucket, TREE_ITEMS_MAX};
use crate::index::Index;
use crate::rule::{CHOOSE_NUM_MAX, Rule, Step, TRIES_MAX};
use crate::tunables::Tunables;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Largest device id; the two above it mark holes in results.
pub const DEVICE_ID_MAX: i32 = 0x7fff_fffd;

/// Bound on the height of the hierarchy, counted in buckets from root to device.
pub const LEVELS_MAX: u32 = 64;

/// A hierarchy of buckets over devices, the rules to pick devices from it, and the settings that matter to it.
///
/// Built in the order types, devices, buckets (children first), rules, weight sets; never edited afterwards.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Parts")]
pub struct CrushMap {
    pub(crate) tunables: Tunables,
    pub(crate) types: BTreeMap<u32, String>,
    pub(crate) devices: BTreeMap<i32, Device>,
    pub(crate) classes: Vec<String>,
    pub(crate) buckets: BTreeMap<i32, Bucket>,
    /// Ids of device classes' copies, asked for or assigned: original, then class, to copy.
    pub(crate) shadow_ids: BTreeMap<i32, BTreeMap<u32, i32>>,
    pub(crate) rules: BTreeMap<u32, Rule>,
    pub(crate) choose_args: BTreeMap<i64, BTreeMap<i32, ChooseArg>>,
    #[serde(skip)]
    pub(crate) names: BTreeMap<String, i32>,
    /// What mappings read; follows from the rest.
    #[serde(skip)]
    pub(crate) index: Index,
}

/// A leaf of the hierarchy: one data server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    pub(crate) name: String,
    pub(crate) class: Option<u32>,
}

impl Device {
    /// Unique in the map, among devices and buckets.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Replacements for one straw2 bucket's weights and ids, used while choosing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChooseArg {
    /// One row of 16.16 weights per position in the result; the last row serves all later positions.
    pub weight_set: Vec<Vec<u32>>,
    /// Ids to hash instead of the items' own.
    pub ids: Option<Vec<i32>>,
}

/// What [`CrushMap::add_bucket`] makes a bucket of.
#[derive(Clone, Debug)]
pub struct NewBucket<'a> {
    /// Negative and unused.
    pub id: i32,
    pub name: &'a str,
    /// The number of a declared type other than 0.
    pub bucket_type: u32,
    /// `uniform`, `list`, `tree`, `straw` or `straw2`.
    pub algorithm: &'a str,
    /// 0, the only defined hash.
    pub hash: u8,
    /// Existing devices or buckets with their 16.16 weights.
    pub items: Vec<(i32, u32)>,
}

/// Why something cannot be part of a map.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    #[error("`{0}` is not a name: use letters, digits, `-`, `_` and `.`")]
    BadName(String),
    #[error("the name `{0}` is already taken; names are unique among devices and buckets")]
    NameTaken(String),
    #[error("type {0} is already declared, or its name is")]
    TypeTaken(u32),
    #[error("type {0} is not declared")]
    NoSuchType(u32),
    #[error("bucket `{0}` has type 0, which is the type of devices")]
    BucketOfDeviceType(String),
    #[error("device id {0} is already taken or outside 0..={DEVICE_ID_MAX}")]
    BadDeviceId(i32),
    #[error("bucket id {0} is already taken or not negative")]
    BadBucketId(i32),
    #[error("item {0} does not exist; define items before the buckets that hold them")]
    NoSuchItem(i32),
    #[error("`{0}` is not a bucket algorithm; use straw2, straw, tree, list or uniform")]
    NoSuchAlgorithm(String),
    #[error("tree bucket `{0}` has more than {TREE_ITEMS_MAX} items; use straw2")]
    TreeTooLarge(String),
    #[error("the items of uniform bucket `{0}` have different weights; use straw2 or equal weights")]
    UnequalWeights(String),
    #[error("the weights of the items of bucket `{0}` sum to 65536.0 or more")]
    WeightOverflow(String),
    #[error("bucket `{0}` is more than {LEVELS_MAX} levels above its devices")]
    TooDeep(String),
    #[error(
        "bucket `{0}` comes after a rule; buckets come first, since rules may copy them per device class"
    )]
    BucketAfterRule(String),
    #[error("uniform bucket `{0}` cannot be copied per device class; use straw2")]
    UniformWithClass(String),
    #[error("rule {0} is already defined, or its name is")]
    RuleTaken(u32),
    #[error("a retry count is {0}; the largest is {TRIES_MAX}")]
    TooManyTries(u32),
    #[error("a choose step asks for {0} items; the largest count is {CHOOSE_NUM_MAX}")]
    TooManyChosen(i32),
    #[error(
        "the weight set or ids of bucket {0} do not fit it: the bucket must exist and lengths must agree"
    )]
    BadChooseArg(i32),
    #[error("the serialized map is inconsistent at bucket {0}")]
    InconsistentBucket(i32),
    #[error("the serialized map is inconsistent: a device class is missing")]
    InconsistentClass,
}

impl CrushMap {
    /// A map of nothing.
    pub fn new(tunables: Tunables) -> CrushMap {
        CrushMap {
            tunables,
            types: BTreeMap::new(),
            devices: BTreeMap::new(),
            classes: Vec::new(),
            buckets: BTreeMap::new(),
            shadow_ids: BTreeMap::new(),
            rules: BTreeMap::new(),
            choose_args: BTreeMap::new(),
            names: BTreeMap::new(),
            index: Index::default(),
        }
    }

    /// Declares a type. Type 0 is the type of devices.
    pub fn add_type(&mut self, id: u32, name: &str) -> Result<(), MapError> {
        check_name(name)?;
        if self.types.contains_key(&id) || self.type_id(name).is_some() {
            return Err(MapError::TypeTaken(id));
        }
        self.types.insert(id, name.to_owned());
        Ok(())
    }

    /// Adds a device, of a device class or none.
    pub fn add_device(&mut self, id: i32, name: &str, class: Option<&str>) -> Result<(), MapError> {
        if !(0..=DEVICE_ID_MAX).contains(&id) || self.devices.contains_key(&id) {
            return Err(MapError::BadDeviceId(id));
        }
        self.check_new_name(name)?;
        let class = class.map(|class| self.class_number(class)).transpose()?;
        self.names.insert(name.to_owned(), id);
        self.devices.insert(id, Device { name: name.to_owned(), class });
        Ok(())
    }

    /// Adds a bucket of existing items.
    pub fn add_bucket(&mut self, new: NewBucket<'_>) -> Result<(), MapError> {
        let name = new.name.to_owned();
        self.check_new_name(new.name)?;
        if !self.rules.is_empty() {
            return Err(MapError::BucketAfterRule(name));
        }
        if new.bucket_type == 0 {
            return Err(MapError::BucketOfDeviceType(name));
        }
        if !self.types.contains_key(&new.bucket_type) {
            return Err(MapError::NoSuchType(new.bucket_type));
        }
        let bucket = self.make_bucket(new)?;
        self.insert_bucket(bucket);
        Ok(())
    }

    /// Adds a rule. The first one makes the copies of the hierarchy per device class, if there are classes.
    pub fn add_rule(&mut self, rule: Rule) -> Result<(), MapError> {
        if let Some(name) = &rule.name {
            check_name(name)?;
        }
        let name_taken = rule.name.is_some() && self.rules.values().any(|other| other.name == rule.name);
        if name_taken || self.rules.contains_key(&rule.id) {
            return Err(MapError::RuleTaken(rule.id));
        }
        self.make_shadows()?;
        self.check_steps(&rule)?;
        self.rules.insert(rule.id, rule);
        Ok(())
    }

    /// Adds replacement weights or ids for a bucket, used by mappings that ask for `index`: a pool's number, or
    /// -1 for pools without their own.
    pub fn add_choose_arg(&mut self, index: i64, bucket: i32, arg: ChooseArg) -> Result<(), MapError> {
        self.check_choose_arg(bucket, &arg)?;
        self.index.add_choose_arg(index, bucket, &arg);
        self.choose_args.entry(index).or_default().insert(bucket, arg);
        Ok(())
    }

    /// The settings of the retry behaviour.
    pub fn tunables(&self) -> &Tunables {
        &self.tunables
    }

    /// Changes the settings; a bucket built before keeps the straw lengths it was built with.
    pub fn set_tunables(&mut self, tunables: Tunables) -> Result<(), MapError> {
        check_tunables(&tunables)?;
        self.tunables = tunables;
        Ok(())
    }

    /// Number and name of every type.
    pub fn types(&self) -> impl Iterator<Item = (u32, &str)> {
        self.types.iter().map(|(id, name)| (*id, name.as_str()))
    }

    /// The number of a type.
    pub fn type_id(&self, name: &str) -> Option<u32> {
        self.types.iter().find(|(_, other)| *other == name).map(|(id, _)| *id)
    }

    /// The name of a type.
    pub fn type_name(&self, id: u32) -> Option<&str> {
        self.types.get(&id).map(String::as_str)
    }

    /// All declared devices, in ascending order of id.
    pub fn devices(&self) -> impl Iterator<Item = (i32, &Device)> {
        self.devices.iter().map(|(id, device)| (*id, device))
    }

    /// The device class of a device.
    pub fn device_class(&self, id: i32) -> Option<&str> {
        let class = self.devices.get(&id)?.class?;
        self.classes.get(class as usize).map(String::as_str)
    }

    /// All buckets, device classes' copies included, in ascending order of id (newest first).
    pub fn buckets(&self) -> impl DoubleEndedIterator<Item = &Bucket> {
        self.buckets.values()
    }

    /// The bucket with that id.
    pub fn bucket(&self, id: i32) -> Option<&Bucket> {
        self.buckets.get(&id)
    }

    /// All rules, in ascending order of number.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.rules.values()
    }

    /// The rule with that number.
    pub fn rule(&self, id: u32) -> Option<&Rule> {
        self.rules.get(&id)
    }

    /// The number of the rule with that name.
    pub fn rule_id(&self, name: &str) -> Option<u32> {
        self.rules.values().find(|rule| rule.name.as_deref() == Some(name)).map(|rule| rule.id)
    }

    /// The id of the device or bucket with that name.
    pub fn item_id(&self, name: &str) -> Option<i32> {
        self.names.get(name).copied()
    }

    /// The largest id of a device in any bucket, plus one; the length a list of reweights must have to
    /// cover every device.
    pub fn max_devices(&self) -> u32 {
        let items = self.buckets.values().flat_map(|bucket| &bucket.items);
        items.max().map_or(0, |largest| (largest + 1).max(0) as u32)
    }

    /// The devices that are in any bucket.
    pub fn placed_devices(&self) -> BTreeSet<i32> {
        let items = self.buckets.values().flat_map(|bucket| &bucket.items);
        items.copied().filter(|item| *item >= 0).collect()
    }

    /// A bucket of existing items, not yet part of the map. Its type and name are not checked.
    pub(crate) fn make_bucket(&self, new: NewBucket<'_>) -> Result<Bucket, MapError> {
        let name = new.name.to_owned();
        if new.id >= 0 || self.buckets.contains_key(&new.id) {
            return Err(MapError::BadBucketId(new.id));
        }
        let (items, weights): (Vec<i32>, Vec<u32>) = new.items.into_iter().unzip();
        if new.algorithm == "uniform" && weights.windows(2).any(|pair| pair[0] != pair[1]) {
            return Err(MapError::UnequalWeights(name));
        }
        if new.algorithm == "tree" && items.len() > TREE_ITEMS_MAX {
            return Err(MapError::TreeTooLarge(name));
        }
        let weight = weights.iter().try_fold(0u32, |sum, weight| sum.checked_add(*weight));
        let Some(weight) = weight else { return Err(MapError::WeightOverflow(name)) };
        let mut level = 1;
        for item in &items {
            level = level.max(self.item_level(*item).ok_or(MapError::NoSuchItem(*item))? + 1);
        }
        if level > LEVELS_MAX {
            return Err(MapError::TooDeep(name));
        }
        let algorithm = Algorithm::build(new.algorithm, &weights, self.tunables.straw_calc_version)
            .ok_or_else(|| MapError::NoSuchAlgorithm(new.algorithm.to_owned()))?;
        let bucket_type = new.bucket_type;
        let (id, hash) = (new.id, new.hash);
        Ok(Bucket { id, name, bucket_type, algorithm, hash, weight, items, weights, level, shadow_of: None })
    }

    pub(crate) fn insert_bucket(&mut self, bucket: Bucket) {
        self.names.insert(bucket.name.clone(), bucket.id);
        self.index.add_bucket(&bucket);
        self.buckets.insert(bucket.id, bucket);
    }

    /// The number of a device class, which is new if it was not mentioned before.
    pub(crate) fn class_number(&mut self, class: &str) -> Result<u32, MapError> {
        check_name(class)?;
        if let Some(known) = self.classes.iter().position(|other| other == class) {
            return Ok(known as u32);
        }
        self.classes.push(class.to_owned());
        Ok(self.classes.len() as u32 - 1)
    }

    /// 0 for a device, more for a bucket, `None` for neither.
    fn item_level(&self, item: i32) -> Option<u32> {
        match item {
            0.. => self.devices.contains_key(&item).then_some(0),
            _ => self.buckets.get(&item).map(|bucket| bucket.level),
        }
    }

    fn check_new_name(&self, name: &str) -> Result<(), MapError> {
        check_name(name)?;
        match self.names.contains_key(name) {
            true => Err(MapError::NameTaken(name.to_owned())),
            false => Ok(()),
        }
    }

    pub(crate) fn check_steps(&self, rule: &Rule) -> Result<(), MapError> {
        for step in &rule.steps {
            match *step {
                Step::Emit => {}
                Step::Take { item } => {
                    self.item_level(item).ok_or(MapError::NoSuchItem(item))?;
                }
                Step::Choose { num, item_type, .. } => {
                    if num.unsigned_abs() > CHOOSE_NUM_MAX {
                        return Err(MapError::TooManyChosen(num));
                    }
                    if !self.types.contains_key(&item_type) {
                        return Err(MapError::NoSuchType(item_type));
                    }
                }
                Step::SetChooseTries(tries)
                | Step::SetChooseleafTries(tries)
                | Step::SetChooseLocalTries(tries)
                | Step::SetChooseLocalFallbackTries(tries)
                | Step::SetChooseleafVaryR(tries)
                | Step::SetChooseleafStable(tries) => check_tries(tries)?,
            }
        }
        Ok(())
    }

    fn check_choose_arg(&self, bucket: i32, arg: &ChooseArg) -> Result<(), MapError> {
        let size = self.buckets.get(&bucket).ok_or(MapError::BadChooseArg(bucket))?.items.len();
        let fits = arg.weight_set.iter().all(|row| row.len() == size)
            && arg.ids.as_ref().is_none_or(|ids| ids.len() == size);
        if fits { Ok(()) } else { Err(MapError::BadChooseArg(bucket)) }
    }

    /// What building a map step by step guarantees, checked on one that came from elsewhere.
    fn check(&self) -> Result<(), MapError> {
        check_tunables(&self.tunables)?;
        for name in self.types.values().chain(&self.classes) {
            check_name(name)?;
        }
        for (id, device) in &self.devices {
            check_name(&device.name)?;
            if !(0..=DEVICE_ID_MAX).contains(id) {
                return Err(MapError::BadDeviceId(*id));
            }
            if device.class.is_some_and(|class| class as usize >= self.classes.len()) {
                return Err(MapError::InconsistentClass);
            }
        }
        if self
            .shadow_ids
            .values()
            .flat_map(|ids| ids.keys())
            .any(|class| *class as usize >= self.classes.len())
        {
            return Err(MapError::InconsistentClass);
        }
        for (id, bucket) in &self.buckets {
            match bucket.is_shadow() {
                true => bucket.name.split('~').try_for_each(check_name)?,
                false => check_name(&bucket.name)?,
            }
            let inconsistent = Err(MapError::InconsistentBucket(*id));
            if *id >= 0 || bucket.id != *id || bucket.level > LEVELS_MAX || !bucket.lengths_agree() {
                return inconsistent;
            }
            if bucket.bucket_type == 0 || !self.types.contains_key(&bucket.bucket_type) {
                return inconsistent;
            }
            if bucket
                .items
                .iter()
                .any(|item| self.item_level(*item).is_none_or(|level| level >= bucket.level))
            {
                return inconsistent;
            }
        }
        for (id, rule) in &self.rules {
            if rule.id != *id {
                return Err(MapError::RuleTaken(*id));
            }
            rule.name.as_deref().map_or(Ok(()), check_name)?;
            self.check_steps(rule)?;
        }
        let mut args = self.choose_args.values().flatten();
        args.try_for_each(|(bucket, arg)| self.check_choose_arg(*bucket, arg))
    }
}

/// The serialized form; the same fields in the same order as [`CrushMap`], not yet checked.
#[derive(Deserialize)]
struct Parts {
    tunables: Tunables,
    types: BTreeMap<u32, String>,
    devices: BTreeMap<i32, Device>,
    classes: Vec<String>,
    buckets: BTreeMap<i32, Bucket>,
    shadow_ids: BTreeMap<i32, BTreeMap<u32, i32>>,
    rules: BTreeMap<u32, Rule>,
    choose_args: BTreeMap<i64, BTreeMap<i32, ChooseArg>>,
}

impl TryFrom<Parts> for CrushMap {
    type Error = MapError;

    fn try_from(parts: Parts) -> Result<CrushMap, MapError> {
        let Parts { tunables, types, devices, classes, buckets, shadow_ids, rules, choose_args } = parts;
        let device_names = devices.iter().map(|(id, device)| (&device.name, *id));
        let bucket_names = buckets.iter().map(|(id, bucket)| (&bucket.name, *id));
        let mut names = BTreeMap::new();
        for (name, id) in device_names.chain(bucket_names) {
            if names.insert(name.clone(), id).is_some() {
                return Err(MapError::NameTaken(name.clone()));
            }
        }
        let index = Index::default();
        let mut map = CrushMap {
            tunables,
            types,
            devices,
            classes,
            buckets,
            shadow_ids,
            rules,
            choose_args,
            names,
            index,
        };
        map.check()?;
        map.index = Index::of(&map.buckets, &map.choose_args);
        Ok(map)
    }
}

pub(crate) fn check_name(name: &str) -> Result<(), MapError> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !name.is_empty() && name.chars().all(fine) { Ok(()) } else { Err(MapError::BadName(name.to_owned())) }
}

fn check_tries(tries: u32) -> Result<(), MapError> {
    if tries > TRIES_MAX { Err(MapError::TooManyTries(tries)) } else { Ok(()) }
}

fn check_tunables(tunables: &Tunables) -> Result<(), MapError> {
    tunables.entries().iter().try_for_each(|(_, value)| check_tries(*value))
}
