//! The balancer: a few overrides that bring the fullest devices down to their share.
//!
//! CRUSH spreads placement groups at random, so that devices end up some percent above or below their share by
//! weight. An override replaces one device of one group by another. It is reversible (dropping it gives back what
//! CRUSH says), small (nothing else moves), and keeps the rule's failure domains.
//!
//! [`plan`] is a pure function. A planner of the metadata servers would call it with the pool's map, rule and
//! group count, store the overrides of the result with the pool, and use [`with_overrides`] wherever it asks CRUSH.

use crate::map::CrushMap;
use crate::mapper::Scratch;
use crate::rule::Step;
use crate::{ITEM_NONE, WEIGHT_ONE, pps};
use std::collections::{BTreeMap, BTreeSet};

/// Bound on the placement groups of one plan.
pub const GROUPS_MAX: u32 = 1 << 20;

/// For each group the devices to replace: (the one CRUSH chose, the one to use instead).
pub type Overrides = BTreeMap<u32, Vec<(i32, i32)>>;

/// What to balance, and how far.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    pub map: &'a CrushMap,
    pub rule: u32,
    /// Enters the groups' inputs, as in [`pps`].
    pub pool: u32,
    pub pg_num: u32,
    /// The pool's size.
    pub num_rep: usize,
    /// 16.16 reweights by device id, as for [`CrushMap::do_rule`].
    pub weights: &'a [u32],
    /// What is in force.
    pub overrides: &'a Overrides,
    /// Bound on the replicas that move.
    pub moves_max: usize,
    /// How far above its share the fullest device may stay; 0.05 for five percent.
    pub tolerance: f64,
}

/// How full devices are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fullness {
    /// The fullest device, over its share by weight.
    pub fullest: f64,
    /// The emptiest.
    pub emptiest: f64,
    /// The standard deviation of that ratio.
    pub deviation: f64,
}

/// The result.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// All overrides to be in force from now on; those of groups not mentioned are to be dropped.
    pub overrides: Overrides,
    /// The replicas that move: (group, from, to).
    pub moves: Vec<(u32, i32, i32)>,
    pub before: Fullness,
    pub after: Fullness,
}

/// Why nothing can be planned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BalanceError {
    #[error("the map has no rule {0}")]
    NoSuchRule(u32),
    #[error("{0} placement groups cannot be balanced; give from 1 to {GROUPS_MAX}")]
    BadGroupCount(u32),
    #[error("the rule places nothing: no device below what it takes has a weight")]
    NothingPlaced,
}

/// The devices of a group: those CRUSH chose, with its overrides, all at once. A pair whose first device is not
/// there does nothing; if two positions would get the same device, none applies.
pub fn with_overrides(devices: &mut [i32], overrides: &[(i32, i32)]) {
    let replaced =
        |device: &i32| overrides.iter().find(|(from, _)| from == device).map_or(*device, |(_, to)| *to);
    let clash = devices.iter().enumerate().any(|(position, device)| {
        let now = replaced(device);
        now != ITEM_NONE && devices[..position].iter().any(|other| replaced(other) == now)
    });
    if !clash {
        devices.iter_mut().for_each(|device| *device = replaced(device));
    }
}

/// Proposes overrides until the fullest device is within the tolerance of its share (or within less than one
/// group of it, which no move can better), until no move helps, or until the bound on moves.
///
/// Existing overrides are kept if they apply, and undone first where that helps.
pub fn plan(request: &Request<'_>) -> Result<Plan, BalanceError> {
    let mut state = State::new(request)?;
    let before = state.fullness();
    let mut stuck = BTreeSet::new();
    while state.moves.len() < request.moves_max {
        let Some(device) = state.fullest_above_target(&stuck) else { break };
        if !state.relieve(device) {
            stuck.insert(device);
        }
    }
    let after = state.fullness();
    Ok(Plan { overrides: state.overrides, moves: state.moves, before, after })
}

/// One device below what the rule takes.
struct Device {
    share: f64,
    count: u32,
    /// Its bucket of each failure-domain type of the rule, outermost first.
    domains: Vec<Option<i32>>,
    /// What the rule takes that holds it: a bit per take step.
    takes: u64,
}

struct State {
    devices: BTreeMap<i32, Device>,
    /// What CRUSH says.
    raw: Vec<Vec<i32>>,
    /// With overrides.
    current: Vec<Vec<i32>>,
    overrides: Overrides,
    groups_of: BTreeMap<i32, BTreeSet<u32>>,
    moves: Vec<(u32, i32, i32)>,
    tolerance: f64,
}

impl State {
    fn new(request: &Request<'_>) -> Result<State, BalanceError> {
        let Request { map, pg_num, .. } = *request;
        if pg_num == 0 || pg_num > GROUPS_MAX {
            return Err(BalanceError::BadGroupCount(pg_num));
        }
        let mut devices = devices_of_rule(request)?;
        let (mut scratch, mut out) = (Scratch::default(), Vec::new());
        let (mut raw, mut current, mut overrides) = (Vec::new(), Vec::new(), Overrides::new());
        let mut groups_of: BTreeMap<i32, BTreeSet<u32>> = BTreeMap::new();
        for group in 0..pg_num {
            let input = pps(request.pool, group, pg_num);
            map.do_rule_in_pool(
                request.pool.into(),
                request.rule,
                input,
                request.num_rep,
                request.weights,
                &mut scratch,
                &mut out,
            );
            let mut with = out.clone();
            if let Some(pairs) = request.overrides.get(&group) {
                with_overrides(&mut with, pairs);
                if !holds(&devices, &out, &with) {
                    with.clone_from(&out);
                }
                let pairs = pairs_of(&out, &with);
                if !pairs.is_empty() {
                    overrides.insert(group, pairs);
                }
            }
            for device in &with {
                if let Some(entry) = devices.get_mut(device) {
                    entry.count += 1;
                    groups_of.entry(*device).or_default().insert(group);
                }
            }
            raw.push(out.clone());
            current.push(with);
        }
        let placed: u32 = devices.values().map(|device| device.count).sum();
        let total: f64 = devices.values().map(|device| device.share).sum();
        if placed == 0 || total <= 0.0 {
            return Err(BalanceError::NothingPlaced);
        }
        devices.values_mut().for_each(|device| device.share *= f64::from(placed) / total);
        let tolerance = request.tolerance.max(0.0);
        Ok(State { devices, raw, current, overrides, groups_of, moves: Vec::new(), tolerance })
    }

    fn fullness(&self) -> Fullness {
        let ratios: Vec<f64> =
            self.devices.values().map(|device| f64::from(device.count) / device.share).collect();
        let variance = ratios.iter().map(|ratio| (ratio - 1.0).powi(2)).sum::<f64>() / ratios.len() as f64;
        Fullness {
            fullest: ratios.iter().copied().fold(0.0, f64::max),
            emptiest: ratios.iter().copied().fold(f64::MAX, f64::min),
            deviation: variance.sqrt(),
        }
    }

    /// The device that is the most above its share in proportion, if that is above the tolerance and by more than
    /// the part of a group that cannot be moved.
    fn fullest_above_target(&self, stuck: &BTreeSet<i32>) -> Option<i32> {
        let above = |device: &Device| {
            let target = (device.share * (1.0 + self.tolerance)).max(device.share.ceil());
            f64::from(device.count) > target
        };
        let ratio = |device: &Device| f64::from(device.count) / device.share;
        let candidates = self.devices.iter().filter(|(id, device)| !stuck.contains(id) && above(device));
        candidates.max_by(|a, b| ratio(a.1).total_cmp(&ratio(b.1))).map(|(id, _)| *id)
    }

    /// Moves one replica off a device: by undoing an override, else to the device that lacks the most.
    fn relieve(&mut self, from: i32) -> bool {
        let groups: Vec<u32> = self.groups_of.get(&from).into_iter().flatten().copied().collect();
        for group in &groups {
            let undone = self.overrides.get(group).and_then(|pairs| pairs.iter().find(|pair| pair.1 == from));
            if let Some((back, _)) = undone.copied()
                && self.helps(from, back)
                && self.fits(*group, from, back)
            {
                self.apply(*group, from, back);
                return true;
            }
        }
        let targets = self.devices.iter().filter(|(id, _)| self.helps(from, **id));
        let mut targets: Vec<(f64, i32)> =
            targets.map(|(id, device)| (device.ratio_with(0.5), *id)).collect();
        targets.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        for (_, to) in targets {
            let fitting = groups.iter().find(|group| self.fits(**group, from, to));
            if let Some(group) = fitting {
                self.apply(*group, from, to);
                return true;
            }
        }
        false
    }

    /// Whether a replica less here and one more there lowers the sum of squared distances from the shares, each
    /// over its share, and leaves no device fuller than the fuller of the two was. The first makes the loop end.
    fn helps(&self, from: i32, to: i32) -> bool {
        let (Some(old), Some(new)) = (self.devices.get(&from), self.devices.get(&to)) else { return false };
        new.ratio_with(0.5) < old.ratio_with(-0.5) && new.ratio_with(1.0) <= old.ratio_with(0.0)
    }

    fn fits(&self, group: u32, from: i32, to: i32) -> bool {
        let devices = &self.current[group as usize];
        let position = devices.iter().position(|device| *device == from);
        position.is_some_and(|position| fits(&self.devices, devices, position, from, to))
    }

    fn apply(&mut self, group: u32, from: i32, to: i32) {
        let devices = &mut self.current[group as usize];
        let Some(position) = devices.iter().position(|device| *device == from) else { return };
        devices[position] = to;
        let pairs = pairs_of(&self.raw[group as usize], devices);
        if pairs.is_empty() {
            self.overrides.remove(&group);
        } else {
            self.overrides.insert(group, pairs);
        }
        for (device, change) in [(from, -1i32), (to, 1)] {
            if let Some(entry) = self.devices.get_mut(&device) {
                entry.count = entry.count.saturating_add_signed(change);
            }
        }
        self.groups_of.entry(from).or_default().remove(&group);
        self.groups_of.entry(to).or_default().insert(group);
        self.moves.push((group, from, to));
    }
}

impl Device {
    /// How full it would be with some replicas more, over its share.
    fn ratio_with(&self, more: f64) -> f64 {
        (f64::from(self.count) + more) / self.share
    }
}

/// What leads from CRUSH's devices to those in use: a pair per position that differs.
fn pairs_of(raw: &[i32], now: &[i32]) -> Vec<(i32, i32)> {
    let differing = raw.iter().zip(now).filter(|(raw, now)| raw != now);
    differing.map(|(raw, now)| (*raw, *now)).collect()
}

/// Whether overrides that were made for another map, or by hand, keep the rule.
fn holds(devices: &BTreeMap<i32, Device>, raw: &[i32], now: &[i32]) -> bool {
    let changed = raw.iter().zip(now).enumerate().filter(|(_, (raw, now))| raw != now);
    changed.into_iter().all(|(position, (from, to))| fits(devices, now, position, *from, *to))
}

/// Whether `to` may stand in for `from` at a position of a group: below the same takes, in the same outer domains,
/// and in an innermost domain that no other device of the group uses.
fn fits(devices: &BTreeMap<i32, Device>, group: &[i32], position: usize, from: i32, to: i32) -> bool {
    let (Some(old), Some(new)) = (devices.get(&from), devices.get(&to)) else { return false };
    let others = || group.iter().enumerate().filter(|(at, _)| *at != position).map(|(_, device)| device);
    if old.takes & !new.takes != 0 || others().any(|other| *other == to) {
        return false;
    }
    let Some((inner, outer)) = new.domains.split_last() else { return true };
    if old.domains[..outer.len()] != *outer || inner.is_none() {
        return false;
    }
    let mut others = others().filter_map(|device| devices.get(device));
    others.all(|other| other.domains.last() != Some(inner))
}

/// Every device that the rule may choose, with its weight as share.
fn devices_of_rule(request: &Request<'_>) -> Result<BTreeMap<i32, Device>, BalanceError> {
    let rule = request.map.rule(request.rule).ok_or(BalanceError::NoSuchRule(request.rule))?;
    let mut domain_types = Vec::new();
    let mut takes = Vec::new();
    for step in &rule.steps {
        match *step {
            Step::Choose { item_type, .. } if item_type != 0 && !domain_types.contains(&item_type) => {
                domain_types.push(item_type);
            }
            Step::Take { item } if !takes.contains(&item) => takes.push(item),
            _ => {}
        }
    }
    let mut devices = BTreeMap::new();
    for (number, take) in takes.iter().take(u64::BITS as usize).enumerate() {
        let walk = Walk { request, domain_types: &domain_types, take: number };
        walk.visit(*take, 0, &mut vec![None; domain_types.len()], &mut devices);
    }
    devices.retain(|_, device| device.share > 0.0);
    if devices.is_empty() { Err(BalanceError::NothingPlaced) } else { Ok(devices) }
}

struct Walk<'a> {
    request: &'a Request<'a>,
    domain_types: &'a [u32],
    take: usize,
}

impl Walk<'_> {
    /// The recursion is bounded by the height of the map.
    fn visit(
        &self,
        item: i32,
        weight: u32,
        domains: &mut Vec<Option<i32>>,
        devices: &mut BTreeMap<i32, Device>,
    ) {
        let Some(bucket) = self.request.map.bucket(item) else {
            let reweight = usize::try_from(item).ok().and_then(|id| self.request.weights.get(id));
            let reweight = reweight.copied().unwrap_or(0).min(WEIGHT_ONE);
            let share = f64::from(weight) * f64::from(reweight) / f64::from(WEIGHT_ONE);
            let fresh = || Device { share: 0.0, count: 0, domains: domains.clone(), takes: 0 };
            let device = devices.entry(item).or_insert_with(fresh);
            device.share = device.share.max(share);
            device.takes |= 1 << self.take;
            return;
        };
        let domain = self.domain_types.iter().position(|domain| *domain == bucket.bucket_type());
        let outside = domain.map(|at| domains[at].replace(bucket.id()));
        for (item, weight) in bucket.items() {
            self.visit(item, weight, domains, devices);
        }
        if let (Some(at), Some(outside)) = (domain, outside) {
            domains[at] = outside;
        }
    }
}
