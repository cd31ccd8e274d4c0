//! The map a cluster starts with.

use crate::map::{CrushMap, DEVICE_ID_MAX, NewBucket};
use crate::rule::{Mode, Rule, RuleKind, Step};
use crate::tunables::Tunables;
use std::collections::BTreeMap;

/// Types of the hierarchy, numbered as in Ceph so that rules written for it can be pasted in.
const TYPES: [(u32, &str); 12] = [
    (0, "osd"),
    (1, "host"),
    (2, "chassis"),
    (3, "rack"),
    (4, "row"),
    (5, "pdu"),
    (6, "pod"),
    (7, "room"),
    (8, "datacenter"),
    (9, "zone"),
    (10, "region"),
    (11, "root"),
];
const DEVICE: u32 = 0;
const HOST: u32 = 1;
const ROOT: u32 = 11;
const ROOT_ID: i32 = -1;

/// Between the ids of a bucket and of its copies for the classes.
const CLASS_STRIDE: i32 = 1 << 24;
/// Most classes.
pub const CLASSES_MAX: usize = 64;

/// Heavier straw2 items would have a negative weight and always win.
const STRAW2_WEIGHT_MAX: u32 = 0x7fff_ffff;

/// Draws per copy before CRUSH gives up. The profile's 50 leave one group in six without a third copy when the third
/// of three hosts is a fifteenth as large as the others.
const CHOOSE_TRIES: u32 = 400;

/// Rules of [`flat_map`]: 0 and 1 for all devices, 2 and 3 for those of the first class, and so on.
pub fn flat_rule(class: Option<usize>, hosts: bool) -> u32 {
    class.map_or(0, |class| 2 + 2 * class as u32) + u32::from(!hosts)
}

/// [`flat_map`] without classes.
pub fn flat_hosts(hosts: &[(String, Vec<(i32, u32)>)]) -> CrushMap {
    flat_map(hosts, &[])
}

/// A map `root default` → one host per group → its devices, all straw2, with the `jewel` tunables and two rules:
/// number 0, `replicated`, puts each copy on another host, number 1, `replicated_server`, on another device. Each
/// class with devices has two more ([`flat_rule`]) that take these only.
///
/// Takes host names with (device id, 16.16 weight). Groups of one name are one host; a device id that is
/// repeated, or outside `0..=DEVICE_ID_MAX`, is left out, and so is a host without devices. Characters that the
/// text format does not allow in names become `-`.
///
/// The result does not depend on the order of the groups, and a host's bucket id follows from its smallest
/// device id: hosts that come or go leave the draws of the others as they are. The ids of a class's copy of the
/// hierarchy follow from its place among `classes`: classes are only ever added at the end. A class's name consists
/// of lower-case letters and digits; devices from 2²⁴ up have none.
pub fn flat_map(hosts: &[(String, Vec<(i32, u32)>)], classes: &[(String, Vec<i32>)]) -> CrushMap {
    build(hosts, classes)
        .expect("names, ids and weights were made to fit, and items are added before what holds them")
}

fn build(
    hosts: &[(String, Vec<(i32, u32)>)],
    classes: &[(String, Vec<i32>)],
) -> Result<CrushMap, crate::MapError> {
    let mut map = CrushMap::new(Tunables::JEWEL);
    for (id, name) in TYPES {
        map.add_type(id, name)?;
    }
    let hosts = devices_by_host(hosts);
    let mut ids: Vec<i32> = hosts.values().flat_map(|devices| devices.keys().copied()).collect();
    ids.sort_unstable();
    let class_of = |id: i32| {
        let holds = |(_, devices): &&(String, Vec<i32>)| id < CLASS_STRIDE && devices.contains(&id);
        classes.iter().take(CLASSES_MAX).find(holds).map(|(name, _)| name.as_str())
    };
    for id in &ids {
        map.add_device(*id, &format!("osd.{id}"), class_of(*id))?;
    }
    let mut root_items = Vec::new();
    for (name, devices) in hosts {
        let Some(smallest) = devices.keys().next() else { continue };
        let id = ROOT_ID - 1 - smallest;
        let room = (u32::MAX / devices.len() as u32).min(STRAW2_WEIGHT_MAX);
        let items: Vec<(i32, u32)> =
            devices.iter().map(|(device, weight)| (*device, (*weight).min(room))).collect();
        let weight: u32 = items.iter().map(|(_, weight)| weight).sum();
        map.add_bucket(NewBucket {
            id,
            name: &name,
            bucket_type: HOST,
            algorithm: "straw2",
            hash: 0,
            items,
        })?;
        root_items.push((id, weight));
    }
    let room = u32::MAX / (root_items.len().max(1) as u32);
    let items =
        root_items.into_iter().map(|(id, weight)| (id, weight.min(room).min(STRAW2_WEIGHT_MAX))).collect();
    let root =
        NewBucket { id: ROOT_ID, name: "default", bucket_type: ROOT, algorithm: "straw2", hash: 0, items };
    map.add_bucket(root)?;
    let is_used = |class: &str| ids.iter().any(|id| class_of(*id) == Some(class));
    let names = classes.iter().map(|(name, _)| name.as_str()).enumerate();
    let used: Vec<(usize, &str)> = names.filter(|(_, class)| is_used(class)).collect();
    let buckets: Vec<i32> = map.buckets().filter(|b| !b.is_shadow()).map(|bucket| bucket.id).collect();
    for (number, class) in &used {
        for bucket in buckets.iter().filter(|bucket| **bucket >= -CLASS_STRIDE) {
            map.reserve_shadow_id(*bucket, class, bucket - (*number as i32 + 1) * CLASS_STRIDE)?;
        }
    }
    add_rules(&mut map, ROOT_ID, None, "")?;
    for (number, class) in used {
        if let Some(root) = map.shadow(ROOT_ID, class) {
            add_rules(&mut map, root, Some(number), &format!("_class_{class}"))?;
        }
    }
    Ok(map)
}

/// One rule for hosts, one for servers.
fn add_rules(
    map: &mut CrushMap,
    root: i32,
    class: Option<usize>,
    suffix: &str,
) -> Result<(), crate::MapError> {
    for hosts in [true, false] {
        let (leaf, item_type, domain) = if hosts { (true, HOST, "") } else { (false, DEVICE, "_server") };
        map.add_rule(Rule {
            id: flat_rule(class, hosts),
            name: Some(format!("replicated{domain}{suffix}")),
            kind: RuleKind::Replicated,
            min_size: 1,
            max_size: 10,
            steps: vec![
                Step::SetChooseTries(CHOOSE_TRIES),
                Step::Take { item: root },
                Step::Choose { mode: Mode::Firstn, leaf, num: 0, item_type },
                Step::Emit,
            ],
        })?;
    }
    Ok(())
}

/// Usable devices with their weights, by the usable name of their host.
fn devices_by_host(hosts: &[(String, Vec<(i32, u32)>)]) -> BTreeMap<String, BTreeMap<i32, u32>> {
    // By device first, in an order of its own, so that of a repeated device the same mention always counts.
    let mut by_device = BTreeMap::new();
    for (host, devices) in hosts {
        for &(device, weight) in devices {
            if (0..=DEVICE_ID_MAX).contains(&device) {
                let mention = (host_name(host), weight);
                let kept = by_device.entry(device).or_insert_with(|| mention.clone());
                *kept = mention.min(kept.clone());
            }
        }
    }
    let mut by_host: BTreeMap<String, BTreeMap<i32, u32>> = BTreeMap::new();
    for (device, (host, weight)) in by_device {
        by_host.entry(host).or_default().insert(device, weight);
    }
    by_host
}

/// A name the text format allows that is no device's and not the root's.
fn host_name(host: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let name: String = host.chars().map(|c| if allowed(c) { c } else { '-' }).collect();
    if name.is_empty() || name == "default" || name.starts_with("osd.") {
        format!("host-{name}")
    } else {
        name
    }
}
