//! The interpreter of rules: from rule and input to devices.
//!
//! `r` is the attempt number that makes two draws with the same input differ. Retries, collisions and their
//! order are the definition of CRUSH; nothing here may be simplified without the recorded mappings agreeing.

use crate::ITEM_NONE;
use crate::WEIGHT_ONE;
use crate::bucket::Algorithm;
use crate::choose::permuted;
use crate::hash::hash2;
use crate::index::{Index, Node, PoolArgs};
use crate::map::CrushMap;
use crate::rule::{CHOOSE_NUM_MAX, Mode, Step};

/// Marks a position of an `indep` choice that is still to be filled.
const ITEM_UNDEFINED: i32 = 0x7fff_fffe;

/// The index of the weight sets used by pools that have none of their own.
const CHOOSE_ARGS_DEFAULT: i64 = -1;

/// Working memory of a mapping. Reuse it: it grows to the size in use and is then never reallocated.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    current: Vec<i32>,
    chosen: Vec<i32>,
    leaves: Vec<i32>,
    permutation: Vec<u32>,
}

impl CrushMap {
    /// Maps input `x` to at most `num_rep` items by rule number `rule`, into `out`.
    ///
    /// `weights` are the 16.16 reweights by device id: 1.0 keeps a device in, 0 puts it out, between the two it
    /// keeps that share of its placements; a device beyond the end of the slice is out. `out` is empty if the
    /// rule does not exist. A firstn rule may give fewer items; an indep rule marks holes with [`ITEM_NONE`].
    /// `num_rep` above 4096 counts as 4096. Uses the default weight sets, if the map has any.
    pub fn do_rule(
        &self,
        rule: u32,
        x: u32,
        num_rep: usize,
        weights: &[u32],
        scratch: &mut Scratch,
        out: &mut Vec<i32>,
    ) {
        self.do_rule_in_pool(CHOOSE_ARGS_DEFAULT, rule, x, num_rep, weights, scratch, out);
    }

    /// Like [`CrushMap::do_rule`], with the weight sets of a pool if the map has them.
    #[allow(
        clippy::too_many_arguments,
        reason = "do_rule with one more; a struct would be built per mapping"
    )]
    pub fn do_rule_in_pool(
        &self,
        pool: i64,
        rule: u32,
        x: u32,
        num_rep: usize,
        weights: &[u32],
        scratch: &mut Scratch,
        out: &mut Vec<i32>,
    ) {
        out.clear();
        let Some(rule) = self.rules.get(&rule) else { return };
        let args = self.index.pool_args(pool).or_else(|| self.index.pool_args(CHOOSE_ARGS_DEFAULT));
        let result_max = num_rep.min(CHOOSE_NUM_MAX as usize);
        let Scratch { current, chosen, leaves, permutation } = scratch;
        let mut mapper =
            Mapper { index: &self.index, args, weights, x, permutation, retries: Retries::of(self) };
        current.clear();
        for step in &rule.steps {
            match *step {
                Step::Take { item } => {
                    if self.can_take(item) {
                        current.clear();
                        current.push(item);
                    }
                }
                Step::Choose { mode, leaf, num, item_type } => {
                    let request = Request { num, item_type, leaf, result_max };
                    mapper.choose_step(mode, request, current, chosen, leaves);
                    std::mem::swap(current, if leaf { leaves } else { chosen });
                }
                Step::Emit => {
                    let room = result_max - out.len();
                    out.extend(current.iter().take(room));
                    current.clear();
                }
                step => mapper.retries.set(step),
            }
        }
    }

    fn can_take(&self, item: i32) -> bool {
        match item {
            0.. => self.devices.contains_key(&item) && (item as u32) < self.max_devices(),
            _ => self.buckets.contains_key(&item),
        }
    }
}

/// Whether a device with this reweight list is out for input `x`.
pub fn is_out(weights: &[u32], device: i32, x: u32) -> bool {
    match usize::try_from(device).ok().and_then(|device| weights.get(device)) {
        None => true,
        Some(&weight) if weight >= WEIGHT_ONE => false,
        Some(&weight) => weight == 0 || (hash2(x, device as u32) & 0xffff) >= weight,
    }
}

/// The settings a rule may change as it goes.
struct Retries {
    /// Attempts per replica.
    tries: u32,
    /// Attempts of the leaf search, if a rule set them.
    leaf_tries: Option<u32>,
    descend_once: bool,
    local: u32,
    fallback: u32,
    vary_r: u32,
    stable: bool,
}

impl Retries {
    fn of(map: &CrushMap) -> Retries {
        let tunables = &map.tunables;
        Retries {
            // The tunable counts retries, the steps that replace it count attempts.
            tries: tunables.choose_total_tries.saturating_add(1),
            leaf_tries: None,
            descend_once: tunables.chooseleaf_descend_once != 0,
            local: tunables.choose_local_tries,
            fallback: tunables.choose_local_fallback_tries,
            vary_r: tunables.chooseleaf_vary_r,
            stable: tunables.chooseleaf_stable != 0,
        }
    }

    fn set(&mut self, step: Step) {
        match step {
            Step::SetChooseTries(0) | Step::SetChooseleafTries(0) => {}
            Step::SetChooseTries(tries) => self.tries = tries,
            Step::SetChooseleafTries(tries) => self.leaf_tries = Some(tries),
            Step::SetChooseLocalTries(tries) => self.local = tries,
            Step::SetChooseLocalFallbackTries(tries) => self.fallback = tries,
            Step::SetChooseleafVaryR(vary_r) => self.vary_r = vary_r,
            Step::SetChooseleafStable(stable) => self.stable = stable != 0,
            Step::Take { .. } | Step::Choose { .. } | Step::Emit => {}
        }
    }
}

/// One choose step, with the number of items the caller of the rule asked for.
#[derive(Clone, Copy)]
struct Request {
    num: i32,
    item_type: u32,
    leaf: bool,
    result_max: usize,
}

/// One search below one bucket.
#[derive(Clone, Copy)]
struct Search {
    numrep: u32,
    item_type: u32,
    tries: u32,
    leaf_tries: u32,
    /// Added to every attempt number: for a leaf search, where the outer search stood.
    parent_r: u32,
}

/// What ended one descent.
enum Descent<'a> {
    /// An item of the wanted type, with its node if it is a bucket.
    Found(i32, Option<&'a Node>),
    /// A device where a bucket was wanted; no attempt from here can help.
    DeadEnd,
    /// An empty bucket; another attempt may go elsewhere.
    Empty,
}

/// One mapping in progress.
struct Mapper<'a> {
    index: &'a Index,
    args: Option<&'a PoolArgs>,
    weights: &'a [u32],
    x: u32,
    permutation: &'a mut Vec<u32>,
    retries: Retries,
}

impl<'a> Mapper<'a> {
    /// Runs one choose step over all current items. Afterwards the new items are in `leaves` for a leaf step,
    /// else in `chosen`.
    fn choose_step(
        &mut self,
        mode: Mode,
        request: Request,
        current: &[i32],
        chosen: &mut Vec<i32>,
        leaves: &mut Vec<i32>,
    ) {
        let Request { num, item_type, leaf, result_max } = request;
        for list in [&mut *chosen, &mut *leaves] {
            list.clear();
            list.resize(result_max, ITEM_UNDEFINED);
        }
        let wanted = if num > 0 { i64::from(num) } else { i64::from(num) + result_max as i64 };
        let mut size = 0;
        for item in current {
            let Some(bucket) = self.index.node_of(*item) else { continue };
            if wanted <= 0 {
                continue;
            }
            let (tries, retries) = (self.retries.tries, &self.retries);
            let leaf_tries = match (mode, retries.leaf_tries) {
                (_, Some(tries)) => tries,
                (Mode::Firstn, None) if !retries.descend_once => tries,
                (_, None) => 1,
            };
            let search = Search { numrep: wanted as u32, item_type, tries, leaf_tries, parent_r: 0 };
            // Items of different current buckets are not compared: each search sees only its own part.
            let (chosen, leaves) = (&mut chosen[size..], &mut leaves[size..]);
            let leaves = leaf.then_some(leaves);
            size += match mode {
                Mode::Firstn => self.firstn(bucket, search, chosen, 0, leaves),
                Mode::Indep => {
                    let end = chosen.len().min(wanted as usize);
                    self.indep(bucket, search, chosen, 0..end, leaves);
                    end
                }
            };
        }
        chosen.truncate(size);
        leaves.truncate(size);
    }

    /// Fills `out` from `outpos` on with distinct items, skipping replicas for which none is found; returns the
    /// new end. Leaves go to the same positions of `leaves`.
    fn firstn(
        &mut self,
        bucket: &'a Node,
        search: Search,
        out: &mut [i32],
        mut outpos: usize,
        mut leaves: Option<&mut [i32]>,
    ) -> usize {
        let first = if self.retries.stable { 0 } else { outpos as u32 };
        for replica in first..search.numrep {
            if outpos == out.len() {
                break;
            }
            if let Some(item) = self.firstn_one(bucket, search, replica, out, outpos, leaves.as_deref_mut()) {
                out[outpos] = item;
                outpos += 1;
            }
        }
        outpos
    }

    /// Finds the item for one replica, or gives up after all attempts.
    fn firstn_one(
        &mut self,
        root: &'a Node,
        search: Search,
        replica: u32,
        out: &[i32],
        outpos: usize,
        mut leaves: Option<&mut [i32]>,
    ) -> Option<i32> {
        let mut failures_total = 0u32;
        loop {
            let mut bucket = root;
            let mut failures_here = 0u32;
            loop {
                let r = replica.wrapping_add(search.parent_r).wrapping_add(failures_total);
                let collide = match self.descend(&mut bucket, search.item_type, r, outpos, failures_here) {
                    Descent::DeadEnd => return None,
                    Descent::Empty => false,
                    Descent::Found(item, child) => {
                        let collide = out[..outpos].contains(&item);
                        if !collide && self.accept(item, child, search, r, outpos, leaves.as_deref_mut()) {
                            return Some(item);
                        }
                        collide
                    }
                };
                failures_total += 1;
                failures_here += 1;
                let fallback = self.retries.fallback as usize;
                let again_here = (collide && failures_here <= self.retries.local)
                    || (fallback > 0 && failures_here as usize <= bucket.items().len() + fallback);
                if !again_here {
                    break;
                }
            }
            if failures_total >= search.tries {
                return None;
            }
        }
    }

    /// Goes down from `bucket` to an item of the wanted type; leaves in `bucket` the bucket that held the last
    /// item, where local retries resume. After many failures there the permutation stands in for the draw, since
    /// it cannot repeat an item.
    fn descend(
        &mut self,
        bucket: &mut &'a Node,
        item_type: u32,
        r: u32,
        position: usize,
        failures_here: u32,
    ) -> Descent<'a> {
        let fallback = self.retries.fallback;
        loop {
            if bucket.items().is_empty() {
                return Descent::Empty;
            }
            let half = bucket.items().len() / 2;
            let permute = fallback > 0 && failures_here as usize >= half && failures_here > fallback;
            let chosen = match permute {
                true => permuted(&bucket.bucket, self.x, r, self.permutation),
                false => self.choose(bucket, r, position),
            };
            let item = bucket.items()[chosen];
            match self.index.child(bucket, chosen) {
                None if item_type == 0 => return Descent::Found(item, None),
                None => return Descent::DeadEnd,
                Some(child) if child.bucket.bucket_type == item_type => {
                    return Descent::Found(item, Some(child));
                }
                Some(child) => *bucket = child,
            }
        }
    }

    /// Whether an item that does not collide can be used: its leaf search succeeds, and a device is in.
    fn accept(
        &mut self,
        item: i32,
        child: Option<&'a Node>,
        search: Search,
        r: u32,
        outpos: usize,
        leaves: Option<&mut [i32]>,
    ) -> bool {
        if let Some(leaves) = leaves {
            match child {
                None => leaves[outpos] = item,
                Some(bucket) => {
                    let Retries { stable, vary_r, .. } = self.retries;
                    let leaf_search = Search {
                        numrep: if stable { 1 } else { outpos as u32 + 1 },
                        item_type: 0,
                        tries: search.leaf_tries,
                        leaf_tries: 0,
                        parent_r: vary_r.checked_sub(1).map_or(0, |shift| r.checked_shr(shift).unwrap_or(0)),
                    };
                    if self.firstn(bucket, leaf_search, leaves, outpos, None) <= outpos {
                        return false;
                    }
                }
            }
        }
        item < 0 || !is_out(self.weights, item, self.x)
    }

    /// Fills every position of `range`, breadth first, leaving holes where nothing is found.
    fn indep(
        &mut self,
        bucket: &'a Node,
        search: Search,
        out: &mut [i32],
        range: std::ops::Range<usize>,
        mut leaves: Option<&mut [i32]>,
    ) {
        let mut left = range.len();
        out[range.clone()].fill(ITEM_UNDEFINED);
        if let Some(leaves) = &mut leaves {
            leaves[range.clone()].fill(ITEM_UNDEFINED);
        }
        for attempt in 0..search.tries {
            if left == 0 {
                break;
            }
            for position in range.clone() {
                if out[position] != ITEM_UNDEFINED {
                    continue;
                }
                let leaves = leaves.as_deref_mut();
                if let Some(item) = self.indep_one(bucket, search, attempt, position, out, &range, leaves) {
                    out[position] = item;
                    left -= 1;
                }
            }
        }
        for list in [Some(out), leaves].into_iter().flatten() {
            for item in &mut list[range.clone()] {
                if *item == ITEM_UNDEFINED {
                    *item = ITEM_NONE;
                }
            }
        }
    }

    /// One attempt for one position: an item, [`ITEM_NONE`] if the position can never be filled, or `None` if a
    /// later attempt may.
    #[allow(clippy::too_many_arguments, reason = "the state of one attempt, used once")]
    fn indep_one(
        &mut self,
        root: &'a Node,
        search: Search,
        attempt: u32,
        position: usize,
        out: &[i32],
        range: &std::ops::Range<usize>,
        leaves: Option<&mut [i32]>,
    ) -> Option<i32> {
        let mut bucket = root;
        loop {
            // A uniform bucket of a multiple of numrep items would give the same item at every attempt.
            let repeats = matches!(bucket.bucket.algorithm, Algorithm::Uniform)
                && (bucket.items().len() as u32).is_multiple_of(search.numrep);
            let stride = search.numrep.wrapping_add(u32::from(repeats));
            let r =
                (position as u32).wrapping_add(search.parent_r).wrapping_add(attempt.wrapping_mul(stride));
            if bucket.items().is_empty() {
                return None;
            }
            // The weight set's position is where this search began, not the position being filled.
            let chosen = self.choose(bucket, r, range.start);
            let item = bucket.items()[chosen];
            let child = self.index.child(bucket, chosen);
            if child.map_or(0, |child| child.bucket.bucket_type) != search.item_type {
                match child {
                    Some(child) => bucket = child,
                    None => {
                        if let Some(leaves) = leaves {
                            leaves[position] = ITEM_NONE;
                        }
                        return Some(ITEM_NONE);
                    }
                }
                continue;
            }
            if out[range.clone()].contains(&item) {
                return None;
            }
            if let Some(leaves) = leaves {
                match child {
                    None => leaves[position] = item,
                    Some(child) => {
                        let leaf_search = Search {
                            item_type: 0,
                            tries: search.leaf_tries,
                            leaf_tries: 0,
                            parent_r: r,
                            ..search
                        };
                        self.indep(child, leaf_search, leaves, position..position + 1, None);
                        if leaves[position] == ITEM_NONE {
                            return None;
                        }
                    }
                }
            }
            // The leaf stays written when the device is out: it is what the result shows when attempts run out.
            let out_device = item >= 0 && is_out(self.weights, item, self.x);
            return (!out_device).then_some(item);
        }
    }

    /// The position of the item that the bucket's algorithm draws.
    #[inline]
    fn choose(&mut self, node: &Node, r: u32, position: usize) -> usize {
        match self.args {
            None => node.choose(self.x, r, self.permutation),
            Some(args) => args.choose(node, self.x, r, position, self.permutation),
        }
    }
}
