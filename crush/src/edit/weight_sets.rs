//! Items in buckets, with the weight sets that follow them.

use super::Draft;
use crate::map::ChooseArg;
use std::collections::BTreeMap;

impl Draft {
    /// Appends an item to a bucket and to every row of its weight sets.
    pub(super) fn attach(&mut self, bucket: i32, item: i32, weight: u32) {
        let rows = self.rows_of(item);
        let Some(holder) = self.buckets.get_mut(&bucket) else { return };
        holder.items.push((item, weight));
        for (index, args) in &mut self.choose_args {
            let Some(arg) = args.get_mut(&bucket) else { continue };
            for (position, row) in arg.weight_set.iter_mut().enumerate() {
                row.push(row_weight(rows.get(index), position, weight));
            }
            if let Some(ids) = &mut arg.ids {
                ids.push(item);
            }
        }
        self.items_changed = true;
    }

    /// Takes an item out of every bucket that holds it; their ancestors weigh less.
    pub(super) fn detach(&mut self, item: i32) {
        for bucket in self.parents(item) {
            self.detach_from(bucket, item);
            self.update_ancestors(bucket);
        }
    }

    fn detach_from(&mut self, bucket: i32, item: i32) {
        let Some(holder) = self.buckets.get_mut(&bucket) else { return };
        while let Some(at) = holder.items.iter().position(|(other, _)| *other == item) {
            holder.items.remove(at);
            for args in self.choose_args.values_mut() {
                let Some(arg) = args.get_mut(&bucket) else { continue };
                for row in &mut arg.weight_set {
                    row.remove(at);
                }
                if let Some(ids) = &mut arg.ids {
                    ids.remove(at);
                }
            }
        }
        self.items_changed = true;
    }

    /// Gives an item of a bucket a weight, also in weight sets. All items of a uniform bucket weigh the same.
    pub(super) fn set_weight(&mut self, bucket: i32, item: i32, weight: u32) {
        let rows = self.rows_of(item);
        let Some(holder) = self.buckets.get_mut(&bucket) else { return };
        let uniform = holder.algorithm == "uniform";
        for (at, (other, held)) in holder.items.iter_mut().enumerate() {
            if *other != item && !uniform {
                continue;
            }
            *held = weight;
            for (index, args) in &mut self.choose_args {
                let Some(arg) = args.get_mut(&bucket) else { continue };
                for (position, row) in arg.weight_set.iter_mut().enumerate() {
                    row[at] = row_weight(rows.get(index), position, weight);
                }
            }
        }
        self.items_changed = true;
    }

    /// Lets all ancestors of a bucket weigh what they hold. The recursion is bounded by the map's height.
    pub(super) fn update_ancestors(&mut self, bucket: i32) {
        let weight = self.buckets.get(&bucket).map_or(0, |bucket| bucket.weight());
        for parent in self.parents(bucket) {
            self.set_weight(parent, bucket, weight);
            self.update_ancestors(parent);
        }
        self.items_changed = true;
    }

    /// What a bucket with weight sets of its own weighs in each row, per index of weight sets; nothing for others.
    fn rows_of(&self, item: i32) -> BTreeMap<i64, Vec<u32>> {
        let sets = self.choose_args.iter().filter_map(|(index, args)| Some((*index, args.get(&item)?)));
        sets.filter(|(_, arg)| !arg.weight_set.is_empty())
            .map(|(index, arg)| (index, row_sums(arg)))
            .collect()
    }
}

/// The sum of each row.
pub(super) fn row_sums(arg: &ChooseArg) -> Vec<u32> {
    let sum = |row: &Vec<u32>| row.iter().fold(0u32, |sum, weight| sum.saturating_add(*weight));
    arg.weight_set.iter().map(sum).collect()
}

/// The weight for a row: the last row of a shorter set stands for all later ones.
pub(super) fn row_weight(rows: Option<&Vec<u32>>, position: usize, weight: u32) -> u32 {
    let row = rows.and_then(|rows| rows.get(position).or(rows.last()));
    row.copied().unwrap_or(weight)
}
