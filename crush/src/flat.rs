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
const HOST: u32 = 1;
const ROOT: u32 = 11;
const ROOT_ID: i32 = -1;

/// Heavier straw2 items would have a negative weight and always win.
const STRAW2_WEIGHT_MAX: u32 = 0x7fff_ffff;

/// Draws per copy before CRUSH gives up. The profile's 50 leave one group in six without a third copy when the third
/// of three hosts is a fifteenth as large as the others.
const CHOOSE_TRIES: u32 = 200;

/// A map `root default` → one host per group → its devices, all straw2, with the `jewel` tunables and one rule:
/// number 0, `replicated`, which puts each copy on another host.
///
/// Takes host names with (device id, 16.16 weight). Groups of one name are one host; a device id that is
/// repeated, or outside `0..=DEVICE_ID_MAX`, is left out, and so is a host without devices. Characters that the
/// text format does not allow in names become `-`.
///
/// The result does not depend on the order of the groups, and a host's bucket id follows from its smallest
/// device id: hosts that come or go leave the draws of the others as they are.
pub fn flat_hosts(hosts: &[(String, Vec<(i32, u32)>)]) -> CrushMap {
    build(hosts).expect("names, ids and weights were made to fit, and items are added before what holds them")
}

fn build(hosts: &[(String, Vec<(i32, u32)>)]) -> Result<CrushMap, crate::MapError> {
    let mut map = CrushMap::new(Tunables::JEWEL);
    for (id, name) in TYPES {
        map.add_type(id, name)?;
    }
    let hosts = devices_by_host(hosts);
    let mut ids: Vec<i32> = hosts.values().flat_map(|devices| devices.keys().copied()).collect();
    ids.sort_unstable();
    for id in ids {
        map.add_device(id, &format!("osd.{id}"), None)?;
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
    map.add_rule(Rule {
        id: 0,
        name: Some("replicated".to_owned()),
        kind: RuleKind::Replicated,
        min_size: 1,
        max_size: 10,
        steps: vec![
            Step::SetChooseTries(CHOOSE_TRIES),
            Step::Take { item: ROOT_ID },
            Step::Choose { mode: Mode::Firstn, leaf: true, num: 0, item_type: HOST },
            Step::Emit,
        ],
    })?;
    Ok(map)
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
