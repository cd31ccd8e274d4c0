//! An experiment: how evenly, and with how much movement when devices change, four ways of placing keys work.
//!
//! One copy per key, no failure domains: what is compared is the choice of one device among many, which is what
//! straw2 does inside a bucket. Everything is deterministic; the keys are numbers, hashed by every method itself.

use crate::hash::{hash2, hash3};
use crate::map::{CrushMap, MapError, NewBucket};
use crate::mapper::Scratch;
use crate::rule::{Mode, Rule, RuleKind, Step};
use crate::tunables::Tunables;
use crate::{DEVICE_ID_MAX, WEIGHT_ONE};
use std::collections::{BTreeMap, BTreeSet};

/// Points on the ring, and slots of jump hashing, per 1.0 of weight.
pub const RING_POINTS: u32 = 100;
pub const JUMP_SLOTS: u32 = 10;

/// Devices with 16.16 weights.
pub type Devices = BTreeMap<i32, u32>;

/// A way to place keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    /// One straw2 bucket.
    Straw2,
    /// Consistent hashing: points on a ring, [`RING_POINTS`] per weight; a key belongs to the next point.
    Ring,
    /// Highest random weight: the device whose hash with the key, scaled by weight, is the greatest.
    Rendezvous,
    /// Jump hashing over a table of slots, [`JUMP_SLOTS`] per weight; a slot that goes is taken by the last one.
    Jump,
}

impl Method {
    /// All methods, in the order of tables.
    pub const ALL: [Method; 4] = [Method::Straw2, Method::Ring, Method::Rendezvous, Method::Jump];

    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Method::Straw2 => "straw2",
            Method::Ring => "ring",
            Method::Rendezvous => "rendezvous",
            Method::Jump => "jump",
        }
    }
}

/// One change of the devices.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub name: &'static str,
    pub before: Devices,
    pub after: Devices,
}

/// What a method did in a scenario.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub method: Method,
    /// The share of keys that moved, over the share that had to: the sum of what devices gain by weight.
    pub movement: f64,
    /// The fullest device after the change, over its share by weight.
    pub fullest: f64,
    /// The standard deviation of that ratio over all devices after the change.
    pub deviation: f64,
}

/// The scenarios for `count` devices: equal weights, or weights of 1 to 4 in steps.
pub fn scenarios(count: u32, equal: bool) -> Vec<Scenario> {
    let count = count.clamp(2, DEVICE_ID_MAX as u32 / 2) as i32;
    let weight = |id: i32| if equal { WEIGHT_ONE } else { WEIGHT_ONE + WEIGHT_ONE / 2 * (id as u32 % 7) };
    let before: Devices = (0..count).map(|id| (id, weight(id))).collect();
    let changed = |name, change: &dyn Fn(&mut Devices)| {
        let mut after = before.clone();
        change(&mut after);
        Scenario { name, before: before.clone(), after }
    };
    let middle = count / 2;
    vec![
        changed("add one", &|devices| {
            devices.insert(count, weight(count));
        }),
        changed("add a tenth", &|devices| {
            devices.extend((count..count + (count / 10).max(1)).map(|id| (id, weight(id))));
        }),
        changed("remove one", &|devices| {
            devices.remove(&middle);
        }),
        changed("double one", &|devices| {
            devices.insert(middle, 2 * weight(middle));
        }),
        changed("halve one", &|devices| {
            devices.insert(middle, weight(middle) / 2);
        }),
    ]
}

/// Places `keys` keys before and after the change.
pub fn run(method: Method, scenario: &Scenario, keys: u32) -> Result<Outcome, MapError> {
    let (mut before, mut after) = (Placer::new(method, &scenario.before, &[])?, None);
    if let Placer::Jump { slots } = &before {
        after = Some(Placer::new(method, &scenario.after, slots)?);
    }
    let mut after = match after {
        Some(after) => after,
        None => Placer::new(method, &scenario.after, &[])?,
    };
    let (mut moved, mut counts) = (0u32, BTreeMap::new());
    for key in 0..keys {
        let (from, to) = (before.place(key), after.place(key));
        moved += u32::from(from != to);
        *counts.entry(to).or_insert(0u32) += 1;
    }
    let shares = shares(&scenario.after);
    let had = self::shares(&scenario.before);
    let minimum: f64 = shares.iter().map(|(id, share)| (share - had.get(id).unwrap_or(&0.0)).max(0.0)).sum();
    let ratio = |(id, share): (&i32, &f64)| {
        f64::from(counts.get(id).copied().unwrap_or(0)) / (share * f64::from(keys)).max(f64::MIN_POSITIVE)
    };
    let ratios: Vec<f64> = shares.iter().map(ratio).collect();
    let variance = ratios.iter().map(|ratio| (ratio - 1.0).powi(2)).sum::<f64>() / ratios.len().max(1) as f64;
    Ok(Outcome {
        method,
        movement: f64::from(moved) / f64::from(keys.max(1)) / minimum.max(f64::MIN_POSITIVE),
        fullest: ratios.iter().copied().fold(0.0, f64::max),
        deviation: variance.sqrt(),
    })
}

fn shares(devices: &Devices) -> BTreeMap<i32, f64> {
    let total: f64 = devices.values().map(|weight| f64::from(*weight)).sum();
    devices.iter().map(|(id, weight)| (*id, f64::from(*weight) / total)).collect()
}

/// A method with its state for one set of devices.
enum Placer {
    Straw2 { map: Box<CrushMap>, weights: Vec<u32>, scratch: Scratch, out: Vec<i32> },
    Ring { points: Vec<(u32, i32)> },
    Rendezvous { devices: Devices },
    Jump { slots: Vec<i32> },
}

impl Placer {
    /// `old_slots` is the table of jump hashing before a change.
    fn new(method: Method, devices: &Devices, old_slots: &[i32]) -> Result<Placer, MapError> {
        Ok(match method {
            Method::Straw2 => {
                let map = Box::new(one_bucket(devices)?);
                let weights = vec![WEIGHT_ONE; map.max_devices() as usize];
                Placer::Straw2 { map, weights, scratch: Scratch::default(), out: Vec::new() }
            }
            Method::Ring => {
                let points = devices.iter().flat_map(|(id, weight)| {
                    (0..units(*weight, RING_POINTS)).map(|point| (hash2(*id as u32, point), *id))
                });
                let mut points: Vec<(u32, i32)> = points.collect();
                points.sort_unstable();
                Placer::Ring { points }
            }
            Method::Rendezvous => Placer::Rendezvous { devices: devices.clone() },
            Method::Jump => Placer::Jump { slots: slots(devices, old_slots) },
        })
    }

    fn place(&mut self, key: u32) -> i32 {
        match self {
            Placer::Straw2 { map, weights, scratch, out } => {
                map.do_rule(0, key, 1, weights, scratch, out);
                out.first().copied().unwrap_or(crate::ITEM_NONE)
            }
            Placer::Ring { points } => {
                let at = hash2(key, u32::MAX);
                let next = points.partition_point(|(point, _)| *point < at);
                points.get(next).or(points.first()).map_or(crate::ITEM_NONE, |(_, device)| *device)
            }
            Placer::Rendezvous { devices } => {
                let score = |(id, weight): (&i32, &u32)| {
                    let random = (f64::from(hash3(key, *id as u32, 0)) + 0.5) / 4_294_967_296.0;
                    (-f64::from(*weight) / random.ln(), *id)
                };
                let best = devices.iter().map(score).max_by(|a, b| a.0.total_cmp(&b.0));
                best.map_or(crate::ITEM_NONE, |(_, id)| id)
            }
            Placer::Jump { slots } => slots[jump(key, slots.len())],
        }
    }
}

fn units(weight: u32, per_one: u32) -> u32 {
    ((u64::from(weight) * u64::from(per_one)) >> 16) as u32
}

fn one_bucket(devices: &Devices) -> Result<CrushMap, MapError> {
    let mut map = CrushMap::new(Tunables::JEWEL);
    map.add_type(0, "osd")?;
    map.add_type(1, "root")?;
    for id in devices.keys() {
        map.add_device(*id, &format!("osd.{id}"), None)?;
    }
    let items = devices.iter().map(|(id, weight)| (*id, *weight)).collect();
    map.add_bucket(NewBucket {
        id: -1,
        name: "default",
        bucket_type: 1,
        algorithm: "straw2",
        hash: 0,
        items,
    })?;
    let choose = Step::Choose { mode: Mode::Firstn, leaf: false, num: 0, item_type: 0 };
    let steps = vec![Step::Take { item: -1 }, choose, Step::Emit];
    map.add_rule(Rule { id: 0, name: None, kind: RuleKind::Replicated, min_size: 1, max_size: 10, steps })?;
    Ok(map)
}

/// The table of slots after a change: surplus slots are given to the last ones, missing ones are appended.
fn slots(devices: &Devices, old: &[i32]) -> Vec<i32> {
    let mut slots = old.to_vec();
    let mut wanted: BTreeMap<i32, u32> =
        devices.iter().map(|(id, weight)| (*id, units(*weight, JUMP_SLOTS))).collect();
    let mut surplus = BTreeSet::new();
    for (slot, device) in slots.iter().enumerate() {
        match wanted.get_mut(device).filter(|left| **left > 0) {
            Some(left) => *left -= 1,
            None => {
                surplus.insert(slot);
            }
        }
    }
    for (device, left) in wanted {
        for _ in 0..left {
            match surplus.pop_first() {
                Some(slot) => slots[slot] = device,
                None => slots.push(device),
            }
        }
    }
    // From the last on: what is swapped in is never surplus itself.
    for slot in surplus.into_iter().rev() {
        slots.swap_remove(slot);
    }
    slots
}

/// "A Fast, Minimal Memory, Consistent Hash Algorithm" (Lamping and Veach, 2014): the slot of a key.
fn jump(key: u32, slots: usize) -> usize {
    let mut state = u64::from(hash2(key, 1)) << 32 | u64::from(hash2(key, 2));
    let (mut slot, mut next) = (0u64, 0u64);
    while next < slots as u64 {
        slot = next;
        state = state.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        next = ((slot + 1) as f64 * ((1u64 << 31) as f64 / ((state >> 33) + 1) as f64)) as u64;
    }
    slot as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_method_but_jump_moves_much_more_than_it_must() {
        for equal in [true, false] {
            for scenario in scenarios(20, equal) {
                for method in [Method::Straw2, Method::Ring, Method::Rendezvous] {
                    let outcome = run(method, &scenario, 20_000).expect("a sound map");
                    // The sample of keys, and the ring's unequal arcs, leave a quarter of room.
                    let what = format!("{method:?}, {}: {outcome:?}", scenario.name);
                    assert!((0.7..1.3).contains(&outcome.movement), "{what}");
                    assert!(outcome.fullest < 1.5, "{what}");
                }
            }
        }
    }

    #[test]
    fn jump_hashing_moves_twice_when_a_slot_in_the_middle_goes() {
        let scenario = scenarios(20, true).swap_remove(2);
        assert_eq!(scenario.name, "remove one");
        let outcome = run(Method::Jump, &scenario, 20_000).expect("a sound map");
        assert!((1.7..2.3).contains(&outcome.movement), "{outcome:?}");
    }

    #[test]
    fn jump_slots_are_evenly_used_and_stay_when_slots_are_appended() {
        for key in 0..2000 {
            let (ten, eleven) = (jump(key, 10), jump(key, 11));
            assert!(eleven == ten || eleven == 10, "key {key} moved from {ten} to {eleven}");
        }
    }
}
