//! From map to bytes.

use super::{ALGORITHMS, BinaryError, MAGIC, RULE_ERASURE, RULE_REPLICATED, SLOTS_MAX};
use crate::bucket::{Algorithm, Bucket};
use crate::map::{ChooseArg, CrushMap};
use crate::rule::{Mode, Rule, RuleKind, Step};
use std::collections::BTreeMap;

pub(super) fn write(map: &CrushMap) -> Result<Vec<u8>, BinaryError> {
    let mut out = Writer(Vec::new());
    let lowest = map.buckets.keys().next().copied().unwrap_or(0);
    let bucket_slots = fit("the number of bucket ids", -i64::from(lowest), SLOTS_MAX.into())?;
    let largest_rule = map.rules.keys().next_back().map_or(-1, |id| i64::from(*id));
    // Rules share their numbers with the rulesets of old, which have eight bits.
    let rule_slots = fit("the number of rules", largest_rule + 1, 256)?;
    out.u32(MAGIC);
    out.u32(bucket_slots);
    out.u32(rule_slots);
    out.u32(map.max_devices());
    for slot in 1..=bucket_slots as i32 {
        match map.buckets.get(&-slot) {
            Some(bucket) => out.bucket(bucket)?,
            None => out.u32(0),
        }
    }
    for slot in 0..rule_slots {
        match map.rules.get(&slot) {
            Some(rule) => out.rule(rule)?,
            None => out.u32(0),
        }
    }
    out.names(map.types.iter().map(|(id, name)| (*id as i32, name.as_str())).collect());
    let devices = map.devices.iter().map(|(id, device)| (*id, device.name.as_str()));
    out.names(devices.chain(map.buckets.iter().map(|(id, bucket)| (*id, bucket.name.as_str()))).collect());
    let named = map.rules.iter().filter_map(|(id, rule)| Some((*id as i32, rule.name.as_deref()?)));
    out.names(named.collect());
    out.tunables(map)?;
    out.classes(map);
    out.choose_args(map);
    Ok(out.0)
}

fn fit(what: &'static str, value: i64, limit: i64) -> Result<u32, BinaryError> {
    if value > limit { Err(BinaryError::DoesNotFit { what, value, limit }) } else { Ok(value as u32) }
}

struct Writer(Vec<u8>);

impl Writer {
    fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn i32(&mut self, value: i32) {
        self.u32(value as u32);
    }

    fn byte(&mut self, what: &'static str, value: u32) -> Result<(), BinaryError> {
        self.u8(fit(what, value.into(), u8::MAX.into())? as u8);
        Ok(())
    }

    fn text(&mut self, text: &str) {
        self.u32(text.len() as u32);
        self.0.extend_from_slice(text.as_bytes());
    }

    fn bucket(&mut self, bucket: &Bucket) -> Result<(), BinaryError> {
        let name = bucket.algorithm.name();
        let number = ALGORITHMS.iter().find(|(_, other)| *other == name).map_or(0, |(number, _)| *number);
        self.u32(number);
        self.i32(bucket.id);
        let bucket_type = fit("the type number", bucket.bucket_type.into(), u16::MAX.into())?;
        self.0.extend_from_slice(&(bucket_type as u16).to_le_bytes());
        self.u8(number as u8);
        self.u8(bucket.hash);
        self.u32(bucket.weight);
        self.u32(bucket.items.len() as u32);
        bucket.items.iter().for_each(|item| self.i32(*item));
        match &bucket.algorithm {
            Algorithm::Uniform => self.u32(bucket.weights.first().copied().unwrap_or(0)),
            Algorithm::List { sums } => self.pairs(&bucket.weights, sums),
            Algorithm::Straw { lengths } => self.pairs(&bucket.weights, lengths),
            Algorithm::Straw2 => bucket.weights.iter().for_each(|weight| self.u32(*weight)),
            Algorithm::Tree { .. } if bucket.items.is_empty() => self.u8(0),
            Algorithm::Tree { nodes } => {
                self.byte("the number of nodes of a tree bucket", nodes.len() as u32)?;
                nodes.iter().for_each(|node| self.u32(*node));
            }
        }
        Ok(())
    }

    fn pairs(&mut self, weights: &[u32], others: &[u32]) {
        for (weight, other) in weights.iter().zip(others) {
            self.u32(*weight);
            self.u32(*other);
        }
    }

    fn rule(&mut self, rule: &Rule) -> Result<(), BinaryError> {
        self.u32(1);
        self.u32(rule.steps.len() as u32);
        self.u8(rule.id as u8);
        self.u8(if rule.kind == RuleKind::Replicated { RULE_REPLICATED } else { RULE_ERASURE });
        self.byte("the smallest size of a rule", rule.min_size)?;
        self.byte("the largest size of a rule", rule.max_size)?;
        for step in &rule.steps {
            let (operation, first, second) = step_words(*step);
            self.u32(operation);
            self.i32(first);
            self.i32(second);
        }
        Ok(())
    }

    fn names(&mut self, names: BTreeMap<i32, &str>) {
        self.u32(names.len() as u32);
        for (id, name) in names {
            self.i32(id);
            self.text(name);
        }
    }

    fn tunables(&mut self, map: &CrushMap) -> Result<(), BinaryError> {
        let tunables = &map.tunables;
        self.u32(tunables.choose_local_tries);
        self.u32(tunables.choose_local_fallback_tries);
        self.u32(tunables.choose_total_tries);
        self.u32(tunables.chooseleaf_descend_once);
        self.byte("tunable chooseleaf_vary_r", tunables.chooseleaf_vary_r)?;
        self.byte("tunable straw_calc_version", tunables.straw_calc_version)?;
        self.u32(tunables.allowed_bucket_algs);
        self.byte("tunable chooseleaf_stable", tunables.chooseleaf_stable)
    }

    fn classes(&mut self, map: &CrushMap) {
        let of_devices: Vec<_> =
            map.devices.iter().filter_map(|(id, device)| Some((*id, device.class?))).collect();
        self.u32(of_devices.len() as u32);
        for (device, class) in of_devices {
            self.i32(device);
            self.u32(class);
        }
        self.names((0..).zip(map.classes.iter().map(String::as_str)).collect());
        // Ids that are only reserved have no bucket, which crushtool does not expect.
        let copies = map.shadow_ids.iter().map(|(original, ids)| {
            let made = ids.iter().filter(|(_, id)| map.buckets.contains_key(id));
            (*original, made.map(|(class, id)| (*class, *id)).collect::<Vec<_>>())
        });
        let copies: Vec<_> = copies.filter(|(_, ids)| !ids.is_empty()).collect();
        self.u32(copies.len() as u32);
        for (original, ids) in copies {
            self.i32(original);
            self.u32(ids.len() as u32);
            for (class, id) in ids {
                self.u32(class);
                self.i32(id);
            }
        }
    }

    fn choose_args(&mut self, map: &CrushMap) {
        self.u32(map.choose_args.len() as u32);
        for (index, args) in &map.choose_args {
            self.0.extend_from_slice(&index.to_le_bytes());
            self.u32(args.len() as u32);
            for (bucket, ChooseArg { weight_set, ids }) in args.iter().rev() {
                self.i32(-1 - bucket);
                self.u32(weight_set.len() as u32);
                for row in weight_set {
                    self.u32(row.len() as u32);
                    row.iter().for_each(|weight| self.u32(*weight));
                }
                let ids = ids.as_deref().unwrap_or_default();
                self.u32(ids.len() as u32);
                ids.iter().for_each(|id| self.i32(*id));
            }
        }
    }
}

fn step_words(step: Step) -> (u32, i32, i32) {
    match step {
        Step::Take { item } => (1, item, 0),
        Step::Choose { mode, leaf, num, item_type } => {
            let operation = match (leaf, mode) {
                (false, Mode::Firstn) => 2,
                (false, Mode::Indep) => 3,
                (true, Mode::Firstn) => 6,
                (true, Mode::Indep) => 7,
            };
            (operation, num, item_type as i32)
        }
        Step::Emit => (4, 0, 0),
        Step::SetChooseTries(tries) => (8, tries as i32, 0),
        Step::SetChooseleafTries(tries) => (9, tries as i32, 0),
        Step::SetChooseLocalTries(tries) => (10, tries as i32, 0),
        Step::SetChooseLocalFallbackTries(tries) => (11, tries as i32, 0),
        Step::SetChooseleafVaryR(vary_r) => (12, vary_r as i32, 0),
        Step::SetChooseleafStable(stable) => (13, stable as i32, 0),
    }
}
