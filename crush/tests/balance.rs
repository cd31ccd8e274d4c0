//! What the balancer promises: fuller devices get lighter, failure domains hold, little moves, all can be undone.

use crush::balance::{Overrides, Plan, Request, plan, with_overrides};
use crush::{CrushMap, Scratch, WEIGHT_ONE, flat_hosts, pps};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// Hosts of devices with weights in quarters.
fn map_of(hosts: &[Vec<u32>]) -> (CrushMap, BTreeMap<i32, usize>) {
    let (mut host_of, mut groups) = (BTreeMap::new(), Vec::new());
    for (host, quarters) in hosts.iter().enumerate() {
        let mut devices = Vec::new();
        for quarter in quarters {
            let id = host_of.len() as i32;
            host_of.insert(id, host);
            devices.push((id, quarter * WEIGHT_ONE / 4));
        }
        groups.push((format!("host{host}"), devices));
    }
    (flat_hosts(&groups), host_of)
}

fn request<'a>(map: &'a CrushMap, weights: &'a [u32], overrides: &'a Overrides) -> Request<'a> {
    let (moves_max, tolerance) = (usize::MAX, 0.05);
    Request { map, rule: 0, pool: 1, pg_num: 512, num_rep: 3, weights, overrides, moves_max, tolerance }
}

fn placed(request: &Request<'_>, overrides: &Overrides) -> Vec<Vec<i32>> {
    let mut scratch = Scratch::default();
    let place = |group| {
        let mut out = Vec::new();
        let input = pps(request.pool, group, request.pg_num);
        request.map.do_rule(0, input, request.num_rep, request.weights, &mut scratch, &mut out);
        with_overrides(&mut out, overrides.get(&group).map(Vec::as_slice).unwrap_or_default());
        out
    };
    (0..request.pg_num).map(place).collect()
}

fn moved(before: &[Vec<i32>], after: &[Vec<i32>]) -> usize {
    let differing = |(a, b): (&Vec<i32>, &Vec<i32>)| a.iter().zip(b).filter(|(a, b)| a != b).count();
    before.iter().zip(after).map(differing).sum()
}

#[test]
fn equal_hosts_come_within_five_percent() {
    let (map, _) = map_of(&vec![vec![4; 4]; 10]);
    let (weights, none) = (vec![WEIGHT_ONE; 40], Overrides::new());
    let request = request(&map, &weights, &none);
    let Plan { before, after, moves, overrides } = plan(&request).expect("a sound request");
    assert!(before.fullest > 1.1, "there is something to do: {before:?}");
    // 38.4 replicas per device: 40 of them are 4.2 % above.
    assert!(after.fullest <= 1.05, "{after:?}");
    let (raw, now) = (placed(&request, &none), placed(&request, &overrides));
    assert!(moved(&raw, &now) <= moves.len());
    assert!(moves.len() < 512 * 3 / 10, "{} of 1536 replicas moved", moves.len());
}

#[test]
fn a_plan_for_balanced_groups_is_empty_and_stable() {
    let (map, _) = map_of(&vec![vec![4; 4]; 10]);
    let (weights, none) = (vec![WEIGHT_ONE; 40], Overrides::new());
    let first = plan(&request(&map, &weights, &none)).expect("a sound request");
    let again = plan(&request(&map, &weights, &first.overrides)).expect("a sound request");
    assert_eq!((again.moves.len(), &again.overrides), (0, &first.overrides));
    assert_eq!(again.before, first.after);
}

#[test]
fn overrides_that_do_not_apply_are_dropped() {
    let (map, _) = map_of(&vec![vec![4; 2]; 5]);
    let weights = vec![WEIGHT_ONE; 10];
    let stale = Overrides::from([(0, vec![(77, 1), (1, 99)]), (9999, vec![(0, 1)])]);
    let plan = plan(&request(&map, &weights, &stale)).expect("a sound request");
    assert!(plan.overrides.values().flatten().all(|(from, to)| *from < 10 && *to < 10));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(40) })]

    #[test]
    fn plans_keep_what_the_rule_promises(
        hosts in prop::collection::vec(prop::collection::vec(1..9u32, 1..5), 3..9),
        moves_max in 0..120usize,
        out_device in prop::option::of(0..6usize),
    ) {
        let (map, host_of) = map_of(&hosts);
        let mut weights = vec![WEIGHT_ONE; host_of.len()];
        if let Some(weight) = out_device.and_then(|device| weights.get_mut(device)) {
            *weight = 0;
        }
        let none = Overrides::new();
        let request = Request { moves_max, ..request(&map, &weights, &none) };
        let plan = plan(&request).expect("a sound request");
        let (raw, now) = (placed(&request, &none), placed(&request, &plan.overrides));
        prop_assert!(plan.moves.len() <= moves_max);
        prop_assert!(moved(&raw, &now) <= plan.moves.len());
        prop_assert!(plan.after.fullest <= plan.before.fullest + 1e-9);
        prop_assert!(plan.after.deviation <= plan.before.deviation + 0.05);
        for devices in &now {
            let hosts: BTreeSet<usize> = devices.iter().map(|device| host_of[device]).collect();
            prop_assert_eq!(hosts.len(), devices.len(), "hosts of {:?}", devices);
            prop_assert!(devices.iter().all(|device| weights[*device as usize] > 0));
        }
        for (raw, now) in raw.iter().zip(&now) {
            prop_assert_eq!(raw.len(), now.len());
        }
        // Without the overrides everything is where it was: they are all there is.
        prop_assert_eq!(placed(&request, &none), raw);
    }
}
