//! Building the changed map.

use super::weight_sets::{row_sums, row_weight};
use super::{Draft, DraftBucket, EditError};
use crate::map::{ChooseArg, CrushMap, NewBucket};
use crate::rule::Step;
use std::collections::{BTreeMap, BTreeSet};

impl Draft {
    /// The changed map, checked like one that was read.
    pub fn finish(mut self) -> Result<CrushMap, EditError> {
        self.drop_dead_classes();
        let mut map = CrushMap::new(self.tunables);
        for (id, name) in &self.types {
            map.add_type(*id, name)?;
        }
        for class in &self.classes {
            map.class_number(class)?;
        }
        for (id, device) in &self.devices {
            let class = device.class.and_then(|class| self.classes.get(class as usize));
            map.add_device(*id, &device.name, class.map(String::as_str))?;
        }
        let mut built = BTreeSet::new();
        for id in self.buckets.keys().rev() {
            self.build_bucket(*id, &mut map, &mut built)?;
        }
        for (original, ids) in &self.shadow_ids {
            for (class, id) in ids {
                map.reserve_shadow_id(*original, &self.classes[*class as usize], *id)?;
            }
        }
        self.build_rules(&mut map)?;
        self.build_choose_args(&mut map)?;
        Ok(map)
    }

    /// Forgets classes that no device has and no rule takes from; the numbers of the others close up.
    fn drop_dead_classes(&mut self) {
        let taken: BTreeSet<i32> = (self.rules.values().flat_map(|rule| &rule.steps))
            .filter_map(|step| if let Step::Take { item } = step { Some(*item) } else { None })
            .collect();
        let alive = |class: u32| {
            let copies = self.shadow_ids.values().filter_map(|ids| ids.get(&class));
            self.devices.values().any(|device| device.class == Some(class))
                || copies.into_iter().any(|copy| taken.contains(copy))
        };
        let kept: Vec<u32> = (0..self.classes.len() as u32).filter(|class| alive(*class)).collect();
        let renumber = |class: u32| kept.iter().position(|other| *other == class).map(|new| new as u32);
        for device in self.devices.values_mut() {
            device.class = device.class.and_then(renumber);
        }
        for ids in self.shadow_ids.values_mut() {
            *ids = ids.iter().filter_map(|(class, id)| Some((renumber(*class)?, *id))).collect();
        }
        self.classes = kept.iter().map(|class| self.classes[*class as usize].clone()).collect();
    }

    /// Items first; the recursion is bounded, since a draft has no cycle.
    fn build_bucket(&self, id: i32, map: &mut CrushMap, built: &mut BTreeSet<i32>) -> Result<(), EditError> {
        let Some(bucket) = self.buckets.get(&id).filter(|_| built.insert(id)) else { return Ok(()) };
        for (item, _) in &bucket.items {
            self.build_bucket(*item, map, built)?;
        }
        let DraftBucket { name, bucket_type, algorithm, hash, items } = bucket;
        let (bucket_type, hash, items) = (*bucket_type, *hash, items.clone());
        Ok(map.add_bucket(NewBucket { id, name, bucket_type, algorithm, hash, items })?)
    }

    fn build_rules(&self, map: &mut CrushMap) -> Result<(), EditError> {
        for rule in self.rules.values() {
            map.make_shadows()?;
            let mut rule = rule.clone();
            if let Some((root, class)) = self.class_takes.get(&rule.id) {
                let copy = map.shadow(*root, class).expect("the class has devices below the root");
                for step in &mut rule.steps {
                    if let Step::Take { item } = step {
                        *item = copy;
                    }
                }
            }
            map.add_rule(rule)?;
        }
        Ok(())
    }

    fn build_choose_args(&self, map: &mut CrushMap) -> Result<(), EditError> {
        for (index, args) in &self.choose_args {
            let mut args = args.clone();
            match self.items_changed {
                true => self.add_shadow_args(map, &mut args),
                false => {
                    let shadows = self.shadow_choose_args.get(index).into_iter().flatten();
                    let exist = shadows.filter(|(id, _)| map.bucket(**id).is_some());
                    args.extend(exist.map(|(id, arg)| (*id, arg.clone())));
                }
            }
            for (bucket, arg) in args {
                map.add_choose_arg(*index, bucket, arg)?;
            }
        }
        Ok(())
    }

    /// Weight sets of the copies, from those of their originals: devices' entries are taken over, a copy of a
    /// bucket weighs the sum of its own row.
    fn add_shadow_args(&self, map: &CrushMap, args: &mut BTreeMap<i32, ChooseArg>) {
        let mut shadows: Vec<_> = map.buckets().filter(|bucket| bucket.is_shadow()).collect();
        shadows.sort_by_key(|bucket| bucket.level);
        for shadow in shadows {
            let Some(original) =
                shadow.shadow_of.and_then(|id| Some((self.buckets.get(&id)?, args.get(&id)?)))
            else {
                continue;
            };
            let (bucket, arg) = original;
            let row_of = |position: usize| {
                let entry = |(item, weight): (i32, u32)| match args.get(&item) {
                    Some(child) if item < 0 => row_weight(Some(&row_sums(child)), position, weight),
                    None if item < 0 => weight,
                    _ => {
                        let at = bucket.items.iter().position(|(other, _)| *other == item);
                        at.map_or(weight, |at| arg.weight_set[position][at])
                    }
                };
                shadow.items().map(entry).collect()
            };
            let weight_set: Vec<Vec<u32>> = (0..arg.weight_set.len()).map(row_of).collect();
            if !weight_set.is_empty() {
                args.insert(shadow.id, ChooseArg { weight_set, ids: None });
            }
        }
    }
}
