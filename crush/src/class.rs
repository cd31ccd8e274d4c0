//! Device classes: one copy of the hierarchy per class, holding only that class's devices ("shadow trees").
//!
//! The ids of the copies enter the hashes, so the order in which they are assigned is part of the definition:
//! by root from the most negative id, by class in order of first mention, children before parents.

use crate::bucket::Bucket;
use crate::map::{CrushMap, MapError, NewBucket};
use std::collections::BTreeSet;

impl CrushMap {
    /// The bucket that stands for `bucket` in the copy of the hierarchy for a class; it exists once a rule does.
    pub fn shadow(&self, bucket: i32, class: &str) -> Option<i32> {
        let class = self.classes.iter().position(|other| other == class)? as u32;
        let id = *self.shadow_ids.get(&bucket)?.get(&class)?;
        self.buckets.contains_key(&id).then_some(id)
    }

    /// Reserves the id of a bucket's copy for a class, as `id -N class C` in the text format does.
    pub fn reserve_shadow_id(&mut self, bucket: i32, class: &str, id: i32) -> Result<(), MapError> {
        let taken = self.buckets.contains_key(&id) || self.reserved_shadow_ids().contains(&id);
        if id >= 0 || taken {
            return Err(MapError::BadBucketId(id));
        }
        let class = self.class_number(class)?;
        match self.shadow_ids.entry(bucket).or_default().insert(class, id) {
            None => Ok(()),
            Some(other) => Err(MapError::BadBucketId(other)),
        }
    }

    /// Makes the copies that do not exist yet. Adding the first rule does it too; a rule that takes from a copy
    /// needs the copy's id ([`CrushMap::shadow`]) before that.
    pub fn make_shadows(&mut self) -> Result<(), MapError> {
        if !self.rules.is_empty() || self.classes.is_empty() {
            return Ok(());
        }
        let held: BTreeSet<i32> =
            self.buckets.values().flat_map(|bucket| bucket.items.iter().copied()).collect();
        let originals = self.buckets.values().filter(|bucket| !bucket.is_shadow());
        let roots: Vec<i32> = originals.map(|bucket| bucket.id).filter(|id| !held.contains(id)).collect();
        let mut next_id = -1;
        for root in roots {
            for class in 0..self.classes.len() as u32 {
                self.make_shadow(root, class, &mut next_id)?;
            }
        }
        Ok(())
    }

    /// The copy of one bucket and what is below it; the recursion is bounded by `LEVELS_MAX`.
    fn make_shadow(&mut self, original: i32, class: u32, next_id: &mut i32) -> Result<i32, MapError> {
        let reserved = self.shadow_ids.get(&original).and_then(|ids| ids.get(&class)).copied();
        if let Some(made) = reserved.filter(|id| self.buckets.contains_key(id)) {
            return Ok(made);
        }
        let bucket = &self.buckets[&original];
        let (bucket_type, hash, algorithm) = (bucket.bucket_type, bucket.hash, bucket.algorithm.name());
        if algorithm == "uniform" {
            return Err(MapError::UniformWithClass(bucket.name.clone()));
        }
        let name = format!("{}~{}", bucket.name, self.classes[class as usize]);
        let mut items = Vec::new();
        for (item, weight) in bucket.items().collect::<Vec<_>>() {
            if item >= 0 {
                items.extend((self.devices[&item].class == Some(class)).then_some((item, weight)));
            } else {
                // A child stays even when empty, and weighs what its copy weighs.
                let copy = self.make_shadow(item, class, next_id)?;
                items.push((copy, self.buckets[&copy].weight));
            }
        }
        let id = match reserved {
            Some(id) => id,
            None => self.unused_id(next_id),
        };
        let new = NewBucket { id, name: &name, bucket_type, algorithm, hash, items };
        let copy = self.make_bucket(new)?;
        self.insert_bucket(Bucket { shadow_of: Some(original), ..copy });
        self.shadow_ids.entry(original).or_default().insert(class, id);
        Ok(id)
    }

    fn reserved_shadow_ids(&self) -> BTreeSet<i32> {
        self.shadow_ids.values().flat_map(|ids| ids.values().copied()).collect()
    }

    /// The greatest id at most `next_id` that is neither a bucket nor reserved.
    fn unused_id(&self, next_id: &mut i32) -> i32 {
        let reserved = self.reserved_shadow_ids();
        while self.buckets.contains_key(next_id) || reserved.contains(next_id) {
            *next_id -= 1;
        }
        *next_id
    }
}
