//! From bytes to map. Every length is checked against the bytes that are left before anything is allocated.

use super::{ALGORITHMS, BinaryError, MAGIC, RULE_ERASURE, RULE_REPLICATED, SLOTS_MAX};
use crate::bucket::Algorithm;
use crate::map::{ChooseArg, CrushMap, NewBucket, check_name};
use crate::rule::{Mode, Rule, RuleKind, Step};
use crate::tunables::Tunables;
use std::collections::{BTreeMap, BTreeSet};

pub(super) fn read(bytes: &[u8]) -> Result<CrushMap, BinaryError> {
    let mut reader = Reader { bytes, at: 0 };
    let magic = reader.u32("the magic number")?;
    if magic != MAGIC {
        return Err(reader.unexpected(magic.into(), "the magic number of a map"));
    }
    let bucket_slots = reader.slots("the number of bucket slots")?;
    let rule_slots = reader.slots("the number of rule slots")?;
    reader.u32("the number of devices")?;
    let buckets =
        (0..bucket_slots).filter_map(|_| reader.bucket().transpose()).collect::<Result<Vec<_>, _>>()?;
    let rules =
        (0..rule_slots).filter_map(|id| reader.rule(id).transpose()).collect::<Result<Vec<_>, _>>()?;
    let types = reader.names()?;
    let names = reader.names()?;
    let rule_names = reader.names()?;
    let tunables = reader.tunables()?;
    // Maps from before device classes end here.
    let classes = if reader.is_at_end() { Classes::default() } else { reader.classes()? };
    let choose_args = if reader.is_at_end() { Vec::new() } else { reader.choose_args(&buckets)? };
    let raw = Raw { buckets, rules, types, names, rule_names, tunables, classes, choose_args };
    raw.map()
}

struct RawBucket {
    id: i32,
    bucket_type: u32,
    algorithm: &'static str,
    hash: u8,
    items: Vec<(i32, u32)>,
    /// Sums, node weights or straw lengths, as they were written.
    derived: Vec<u32>,
}

#[derive(Default)]
struct Classes {
    of_device: BTreeMap<i32, i32>,
    names: BTreeMap<i32, String>,
    copies: BTreeMap<i32, BTreeMap<i32, i32>>,
}

struct Raw {
    buckets: Vec<RawBucket>,
    rules: Vec<Rule>,
    types: BTreeMap<i32, String>,
    names: BTreeMap<i32, String>,
    rule_names: BTreeMap<i32, String>,
    tunables: Tunables,
    classes: Classes,
    choose_args: Vec<(i64, i32, ChooseArg)>,
}

impl Raw {
    fn map(self) -> Result<CrushMap, BinaryError> {
        let mut map = CrushMap::new(Tunables::ARGONAUT);
        map.set_tunables(self.tunables)?;
        for (id, name) in &self.types {
            map.add_type(*id as u32, name)?;
        }
        // Numbered anew in the same order; only the order matters.
        for name in self.classes.names.values() {
            map.class_number(name)?;
        }
        self.add_devices(&mut map)?;
        let by_id: BTreeMap<i32, &RawBucket> =
            self.buckets.iter().map(|bucket| (bucket.id, bucket)).collect();
        let mut started = BTreeSet::new();
        for id in by_id.keys().rev() {
            self.add_bucket(*id, &by_id, &mut map, &mut started, 0)?;
        }
        for mut rule in self.rules {
            rule.name = self.rule_names.get(&(rule.id as i32)).cloned();
            rule.name.as_deref().map_or(Ok(()), check_name)?;
            map.check_steps(&rule)?;
            map.rules.insert(rule.id, rule);
        }
        for (index, bucket, arg) in self.choose_args {
            map.add_choose_arg(index, bucket, arg)?;
        }
        Ok(map)
    }

    /// Named devices, and those in buckets that have no name, as `crushtool` calls them.
    fn add_devices(&self, map: &mut CrushMap) -> Result<(), BinaryError> {
        let items = self.buckets.iter().flat_map(|bucket| bucket.items.iter().map(|(item, _)| *item));
        let named = self.names.keys().copied();
        let ids: BTreeSet<i32> = items.chain(named).filter(|id| *id >= 0).collect();
        for id in ids {
            let name = self.names.get(&id).cloned().unwrap_or_else(|| format!("device{id}"));
            let class = self.classes.of_device.get(&id).and_then(|class| self.classes.names.get(class));
            map.add_device(id, &name, class.map(String::as_str))?;
        }
        Ok(())
    }

    /// Items first. A cycle ends at the bucket that was started already, which then does not exist yet.
    fn add_bucket(
        &self,
        id: i32,
        by_id: &BTreeMap<i32, &RawBucket>,
        map: &mut CrushMap,
        started: &mut BTreeSet<i32>,
        depth: u32,
    ) -> Result<(), BinaryError> {
        let Some(raw) = by_id.get(&id).copied().filter(|_| started.insert(id)) else { return Ok(()) };
        let name = self.names.get(&id).cloned().unwrap_or_else(|| format!("bucket{}", -1 - id));
        if depth > crate::map::LEVELS_MAX {
            return Err(crate::map::MapError::TooDeep(name).into());
        }
        for (item, _) in &raw.items {
            self.add_bucket(*item, by_id, map, started, depth + 1)?;
        }
        let original = self.copy_of(id);
        match (original, name.split_once('~')) {
            (Some(_), Some((name, class))) => check_name(name).and_then(|()| check_name(class))?,
            _ => check_name(&name)?,
        }
        let RawBucket { bucket_type, algorithm, hash, .. } = *raw;
        if bucket_type == 0 || map.type_name(bucket_type).is_none() {
            return Err(crate::map::MapError::NoSuchType(bucket_type).into());
        }
        if map.item_id(&name).is_some() {
            return Err(crate::map::MapError::NameTaken(name).into());
        }
        let new = NewBucket { id, name: &name, bucket_type, algorithm, hash, items: raw.items.clone() };
        let mut bucket = map.make_bucket(new)?;
        match &mut bucket.algorithm {
            Algorithm::Uniform | Algorithm::Straw2 => {}
            // crushtool gives an empty tree no nodes, where we keep its root.
            Algorithm::Tree { .. } if raw.items.is_empty() => {}
            Algorithm::List { sums: derived }
            | Algorithm::Tree { nodes: derived }
            | Algorithm::Straw { lengths: derived } => derived.clone_from(&raw.derived),
        }
        if !bucket.lengths_agree() {
            return Err(crate::map::MapError::InconsistentBucket(id).into());
        }
        if let Some((original, class)) = original {
            bucket.shadow_of = Some(original);
            let class = self.classes.names.get(&class).map(|name| map.class_number(name)).transpose()?;
            let class = class.ok_or(crate::map::MapError::InconsistentClass)?;
            map.shadow_ids.entry(original).or_default().insert(class, id);
        }
        map.insert_bucket(bucket);
        Ok(())
    }

    /// The bucket and the class that a copy stands for.
    fn copy_of(&self, id: i32) -> Option<(i32, i32)> {
        let mut copies = self.classes.copies.iter();
        copies.find_map(|(original, ids)| {
            ids.iter().find(|(_, copy)| **copy == id).map(|(class, _)| (*original, *class))
        })
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn is_at_end(&self) -> bool {
        self.at == self.bytes.len()
    }

    fn unexpected(&self, value: i64, what: &'static str) -> BinaryError {
        BinaryError::Unexpected { at: self.at, value, what }
    }

    fn take<const N: usize>(&mut self, wanted: &'static str) -> Result<[u8; N], BinaryError> {
        let bytes = self.bytes.get(self.at..).and_then(|rest| rest.first_chunk::<N>());
        let bytes = bytes.ok_or(BinaryError::Truncated { at: self.at, wanted })?;
        self.at += N;
        Ok(*bytes)
    }

    fn u8(&mut self, wanted: &'static str) -> Result<u8, BinaryError> {
        Ok(self.take::<1>(wanted)?[0])
    }

    fn u32(&mut self, wanted: &'static str) -> Result<u32, BinaryError> {
        Ok(u32::from_le_bytes(self.take(wanted)?))
    }

    fn i32(&mut self, wanted: &'static str) -> Result<i32, BinaryError> {
        Ok(self.u32(wanted)? as i32)
    }

    fn slots(&mut self, wanted: &'static str) -> Result<u32, BinaryError> {
        let slots = self.u32(wanted)?;
        if slots > SLOTS_MAX { Err(self.unexpected(slots.into(), wanted)) } else { Ok(slots) }
    }

    /// A length of rows of at least `size` bytes each, all of which must still be there.
    fn length(&mut self, wanted: &'static str, size: usize) -> Result<usize, BinaryError> {
        let length = self.u32(wanted)?;
        let left = self.bytes.len() - self.at;
        match (length as usize).checked_mul(size) {
            Some(needed) if needed <= left => Ok(length as usize),
            _ => Err(self.unexpected(length.into(), wanted)),
        }
    }

    fn words(&mut self, count: usize, wanted: &'static str) -> Result<Vec<u32>, BinaryError> {
        (0..count).map(|_| self.u32(wanted)).collect()
    }

    fn bucket(&mut self) -> Result<Option<RawBucket>, BinaryError> {
        if self.u32("a bucket's algorithm")? == 0 {
            return Ok(None);
        }
        let id = self.i32("a bucket's id")?;
        let bucket_type = u32::from(u16::from_le_bytes(self.take("a bucket's type")?));
        let number = u32::from(self.u8("a bucket's algorithm")?);
        let found = ALGORITHMS.iter().find(|(other, _)| *other == number);
        let algorithm = found.ok_or_else(|| self.unexpected(number.into(), "a bucket algorithm"))?.1;
        let hash = self.u8("a bucket's hash")?;
        self.u32("a bucket's weight")?;
        let size = self.length("a bucket's size", 4)?;
        let items: Vec<i32> = self.words(size, "an item")?.into_iter().map(|item| item as i32).collect();
        let (weights, derived) = self.bucket_weights(algorithm, size)?;
        let items = items.into_iter().zip(weights).collect();
        Ok(Some(RawBucket { id, bucket_type, algorithm, hash, items, derived }))
    }

    fn bucket_weights(&mut self, algorithm: &str, size: usize) -> Result<(Vec<u32>, Vec<u32>), BinaryError> {
        match algorithm {
            "uniform" => Ok((vec![self.u32("the weight of items")?; size], Vec::new())),
            "straw2" => Ok((self.words(size, "a weight")?, Vec::new())),
            "tree" => {
                let count = self.u8("the number of nodes")?;
                let nodes = self.words(count.into(), "the weight of a node")?;
                let leaf = |item: usize| nodes.get(2 * item + 1).copied().unwrap_or(0);
                Ok(((0..size).map(leaf).collect(), nodes))
            }
            _ => {
                let words = self.words(2 * size, "a weight")?;
                Ok(words.chunks_exact(2).map(|pair| (pair[0], pair[1])).unzip())
            }
        }
    }

    fn rule(&mut self, id: u32) -> Result<Option<Rule>, BinaryError> {
        if self.u32("a rule")? == 0 {
            return Ok(None);
        }
        let length = self.length("the length of a rule", 12)?;
        self.u8("a ruleset")?;
        let kind = match self.u8("the type of a rule")? {
            RULE_REPLICATED => RuleKind::Replicated,
            RULE_ERASURE => RuleKind::Erasure,
            other => return Err(self.unexpected(other.into(), "the type of a rule")),
        };
        let min_size = self.u8("a size")?.into();
        let max_size = self.u8("a size")?.into();
        let steps = (0..length).map(|_| self.step()).collect::<Result<Vec<_>, _>>()?;
        let steps = steps.into_iter().flatten().collect();
        Ok(Some(Rule { id, name: None, kind, min_size, max_size, steps }))
    }

    /// `None` for the step that does nothing.
    fn step(&mut self) -> Result<Option<Step>, BinaryError> {
        let operation = self.u32("a step")?;
        let first = self.i32("a step")?;
        let second = self.i32("a step")?;
        let choose = |mode, leaf| Step::Choose { mode, leaf, num: first, item_type: second as u32 };
        Ok(Some(match operation {
            0 => return Ok(None),
            1 => Step::Take { item: first },
            2 => choose(Mode::Firstn, false),
            3 => choose(Mode::Indep, false),
            4 => Step::Emit,
            6 => choose(Mode::Firstn, true),
            7 => choose(Mode::Indep, true),
            8 => Step::SetChooseTries(first as u32),
            9 => Step::SetChooseleafTries(first as u32),
            10 => Step::SetChooseLocalTries(first as u32),
            11 => Step::SetChooseLocalFallbackTries(first as u32),
            12 => Step::SetChooseleafVaryR(first as u32),
            13 => Step::SetChooseleafStable(first as u32),
            other => return Err(self.unexpected(other.into(), "a step of a rule")),
        }))
    }

    fn names(&mut self) -> Result<BTreeMap<i32, String>, BinaryError> {
        let count = self.length("the number of names", 8)?;
        let mut names = BTreeMap::new();
        for _ in 0..count {
            let id = self.i32("an id")?;
            let length = self.length("the length of a name", 1)?;
            let name = self.bytes[self.at..self.at + length].to_vec();
            let name = String::from_utf8(name).map_err(|_| BinaryError::BadName { at: self.at })?;
            self.at += length;
            names.insert(id, name);
        }
        Ok(names)
    }

    /// Later releases appended tunables; what is missing at the end is as it was before there was such a tunable.
    fn tunables(&mut self) -> Result<Tunables, BinaryError> {
        let mut tunables = Tunables::ARGONAUT;
        let wanted = "a tunable";
        if self.is_at_end() {
            return Ok(tunables);
        }
        tunables.choose_local_tries = self.u32(wanted)?;
        tunables.choose_local_fallback_tries = self.u32(wanted)?;
        tunables.choose_total_tries = self.u32(wanted)?;
        if !self.is_at_end() {
            tunables.chooseleaf_descend_once = self.u32(wanted)?;
        }
        if !self.is_at_end() {
            tunables.chooseleaf_vary_r = self.u8(wanted)?.into();
        }
        if !self.is_at_end() {
            tunables.straw_calc_version = self.u8(wanted)?.into();
        }
        if !self.is_at_end() {
            tunables.allowed_bucket_algs = self.u32(wanted)?;
        }
        if !self.is_at_end() {
            tunables.chooseleaf_stable = self.u8(wanted)?.into();
        }
        Ok(tunables)
    }

    fn pairs(&mut self) -> Result<BTreeMap<i32, i32>, BinaryError> {
        let count = self.length("the number of pairs", 8)?;
        (0..count).map(|_| Ok((self.i32("an id")?, self.i32("an id")?))).collect()
    }

    fn classes(&mut self) -> Result<Classes, BinaryError> {
        let of_device = self.pairs()?;
        let names = self.names()?;
        let count = self.length("the number of buckets with copies", 8)?;
        let copies = (0..count)
            .map(|_| Ok((self.i32("an id")?, self.pairs()?)))
            .collect::<Result<_, BinaryError>>()?;
        Ok(Classes { of_device, names, copies })
    }

    fn choose_args(&mut self, buckets: &[RawBucket]) -> Result<Vec<(i64, i32, ChooseArg)>, BinaryError> {
        let mut all = Vec::new();
        for _ in 0..self.length("the number of weight sets", 12)? {
            let index = i64::from_le_bytes(self.take("a pool number")?);
            for _ in 0..self.length("the number of buckets with weight sets", 12)? {
                let slot = self.u32("a bucket's index")?;
                if slot >= SLOTS_MAX {
                    return Err(self.unexpected(slot.into(), "a bucket's index"));
                }
                let rows = self.length("the number of rows", 4)?;
                let weight_set = (0..rows).map(|_| self.row()).collect::<Result<Vec<_>, _>>()?;
                let ids: Vec<i32> = self.row()?.into_iter().map(|id| id as i32).collect();
                let bucket = -1 - slot as i32;
                // No ids are written like an empty list of ids, which is what an empty bucket would have.
                let empty = buckets.iter().any(|other| other.id == bucket && other.items.is_empty());
                let ids = (!ids.is_empty() && !empty).then_some(ids);
                all.push((index, bucket, ChooseArg { weight_set, ids }));
            }
        }
        Ok(all)
    }

    fn row(&mut self) -> Result<Vec<u32>, BinaryError> {
        let length = self.length("the length of a row", 4)?;
        self.words(length, "a weight")
    }
}
