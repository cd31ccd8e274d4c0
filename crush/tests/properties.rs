//! What placement promises: shares in proportion to weight, and no more movement than a change requires.

use crush::{
    CrushMap, Mode, NewBucket, Rule, RuleKind, Scratch, Step, Tunables, WEIGHT_ONE, flat_hosts, is_out,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// One straw2 bucket of devices, and a rule that chooses among them.
fn one_bucket(weights: &[u32]) -> CrushMap {
    let mut map = CrushMap::new(Tunables::JEWEL);
    map.add_type(0, "osd").expect("a new type");
    map.add_type(1, "root").expect("a new type");
    let items: Vec<(i32, u32)> = (0..).zip(weights.iter().copied()).collect();
    for (id, _) in &items {
        map.add_device(*id, &format!("osd.{id}"), None).expect("a new device");
    }
    let root = NewBucket { id: -1, name: "default", bucket_type: 1, algorithm: "straw2", hash: 0, items };
    map.add_bucket(root).expect("existing items");
    let choose = Step::Choose { mode: Mode::Firstn, leaf: false, num: 0, item_type: 0 };
    let steps = vec![Step::Take { item: -1 }, choose, Step::Emit];
    let rule = Rule { id: 0, name: None, kind: RuleKind::Replicated, min_size: 1, max_size: 10, steps };
    map.add_rule(rule).expect("a new rule");
    map
}

fn hosts(groups: &[&[(i32, u32)]]) -> Vec<(String, Vec<(i32, u32)>)> {
    (0..).zip(groups).map(|(n, devices): (u32, _)| (format!("host{n}"), devices.to_vec())).collect()
}

/// The mappings of inputs `0..count`.
fn mappings(map: &CrushMap, count: u32, num_rep: usize, weights: &[u32]) -> Vec<Vec<i32>> {
    let mut scratch = Scratch::default();
    let map_one = |x| {
        let mut out = Vec::new();
        map.do_rule(0, x, num_rep, weights, &mut scratch, &mut out);
        out
    };
    (0..count).map(map_one).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) })]

    /// Each device's count is within six standard deviations of its share.
    #[test]
    fn shares_are_in_proportion_to_weights(weights in prop::collection::vec(0x1000u32..0x40_0000, 2..12)) {
        const INPUTS: u32 = 20_000;
        let mut counts = BTreeMap::new();
        for out in mappings(&one_bucket(&weights), INPUTS, 1, &[WEIGHT_ONE; 12]) {
            *counts.entry(out[0]).or_insert(0u32) += 1;
        }
        let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
        for (device, weight) in (0..).zip(&weights) {
            let share = f64::from(*weight) / total;
            let expected = share * f64::from(INPUTS);
            let deviation = (expected * (1.0 - share)).sqrt().max(1.0);
            let count = f64::from(counts.get(&device).copied().unwrap_or(0));
            prop_assert!((count - expected).abs() < 6.0 * deviation, "device {device}: {count}, not {expected}");
        }
    }

    /// With one device per input, a heavier device only gains and every loss goes to it.
    #[test]
    fn a_heavier_device_moves_inputs_only_to_itself(
        weights in prop::collection::vec(0x1000u32..0x40_0000, 2..12),
        changed in any::<prop::sample::Index>(),
        gain in 1u32..0x40_0000,
    ) {
        let changed = changed.index(weights.len());
        let mut heavier = weights.clone();
        heavier[changed] += gain;
        let before = mappings(&one_bucket(&weights), 3000, 1, &[WEIGHT_ONE; 12]);
        let after = mappings(&one_bucket(&heavier), 3000, 1, &[WEIGHT_ONE; 12]);
        for (before, after) in before.iter().zip(&after) {
            prop_assert!(after == before || after == &[changed as i32], "{before:?} became {after:?}");
        }
    }

    /// Copies of one input are on distinct hosts, and in full number nearly always: with as many hosts as copies and
    /// unequal weights, 50 tries may miss the lightest one.
    #[test]
    fn copies_are_on_distinct_hosts(
        sizes in prop::collection::vec(1..4i32, 3..8),
        num_rep in 1..4usize,
    ) {
        let mut host_of = BTreeMap::new();
        for (host, size) in sizes.iter().enumerate() {
            for _ in 0..*size {
                host_of.insert(host_of.len() as i32, host);
            }
        }
        let mut groups = vec![(String::new(), Vec::new()); sizes.len()];
        for (device, host) in &host_of {
            groups[*host].0 = format!("host{host}");
            groups[*host].1.push((*device, WEIGHT_ONE));
        }
        let mut short = 0;
        for out in mappings(&flat_hosts(&groups), 500, num_rep, &[WEIGHT_ONE; 32]) {
            let hosts: BTreeSet<usize> = out.iter().map(|device| host_of[device]).collect();
            prop_assert_eq!(out.len(), hosts.len());
            prop_assert!(out.len() <= num_rep);
            short += usize::from(out.len() < num_rep);
        }
        prop_assert!(short <= 5, "{} of 500 inputs found too few hosts", short);
    }
}

#[test]
fn a_new_host_takes_its_share_and_little_else_moves() {
    let device = |id| (id, WEIGHT_ONE);
    let five: [&[(i32, u32)]; 5] = [&[device(1)], &[device(2)], &[device(3)], &[device(4)], &[device(5)]];
    let mut six = hosts(&five);
    // Named to come first, so that a map that numbered hosts by order would shuffle all of them.
    six.push(("a-new-host".to_owned(), vec![device(6)]));
    let before = mappings(&flat_hosts(&hosts(&five)), 6000, 3, &[WEIGHT_ONE; 7]);
    let after = mappings(&flat_hosts(&six), 6000, 3, &[WEIGHT_ONE; 7]);
    let moved = |(before, after): (&Vec<i32>, &Vec<i32>)| {
        let before: BTreeSet<&i32> = before.iter().collect();
        after.iter().filter(|device| !before.contains(device)).count()
    };
    let moved: usize = before.iter().zip(&after).map(moved).sum();
    let share = after.iter().flatten().filter(|device| **device == 6).count();
    // A sixth of all 18000 copies belongs to the new host; replacing a copy elsewhere is the exception.
    assert!((2700..3300).contains(&share), "the new host holds {share} of 18000 copies");
    assert!(moved < share * 13 / 10, "{moved} copies moved for a share of {share}");
}

#[test]
fn a_device_that_goes_out_loses_all_and_the_rest_stays() {
    let map = one_bucket(&[WEIGHT_ONE; 8]);
    let mut weights = [WEIGHT_ONE; 8];
    let before = mappings(&map, 2000, 3, &weights);
    weights[5] = 0;
    let after = mappings(&map, 2000, 3, &weights);
    for (before, after) in before.iter().zip(&after) {
        assert!(!after.contains(&5) && after.len() == 3);
        let kept = before.iter().filter(|device| **device != 5);
        assert!(kept.clone().all(|device| after.contains(device)), "{before:?} became {after:?}");
    }
}

#[test]
fn a_reweight_keeps_about_that_share() {
    let weights = [WEIGHT_ONE / 4, 0, WEIGHT_ONE];
    let kept = |device| (0..10_000).filter(|x| !is_out(&weights, device, *x)).count();
    assert!((2300..2700).contains(&kept(0)), "a quarter of 10000, not {}", kept(0));
    assert_eq!([kept(1), kept(2), kept(3), kept(-1)], [0, 10_000, 0, 0]);
}

#[test]
fn a_flat_map_accepts_whatever_is_registered() {
    let odd = [
        ("rack 1/ß".to_owned(), vec![(0, 0), (1, u32::MAX), (2, u32::MAX)]),
        ("default".to_owned(), vec![(3, WEIGHT_ONE), (3, 5), (-4, 1), (i32::MAX, 1)]),
        ("osd.0".to_owned(), vec![(crush::DEVICE_ID_MAX, WEIGHT_ONE)]),
        ("".to_owned(), vec![(4, WEIGHT_ONE)]),
        ("empty".to_owned(), vec![]),
    ];
    let map = flat_hosts(&odd);
    let names: Vec<&str> = map.buckets().map(|bucket| bucket.name()).collect();
    assert_eq!(names, ["host-osd.0", "host-", "host-default", "rack-1--", "default"]);
    let mut reversed = odd.to_vec();
    reversed.reverse();
    assert_eq!(flat_hosts(&reversed), map, "the order of registration does not matter");
    assert!(flat_hosts(&[]).bucket(-1).is_some_and(|root| root.items().len() == 0));
    let mut out = vec![7];
    flat_hosts(&[]).do_rule(0, 1, 3, &[], &mut Scratch::default(), &mut out);
    assert!(out.is_empty());
}

#[test]
fn an_unknown_rule_maps_to_nothing() {
    let mut out = vec![7];
    one_bucket(&[WEIGHT_ONE]).do_rule(9, 1, 3, &[WEIGHT_ONE], &mut Scratch::default(), &mut out);
    assert!(out.is_empty());
}

#[test]
fn a_host_that_is_much_smaller_than_the_others_is_found() {
    let host = |id: i32, weight| (format!("h{id}"), vec![(id, weight)]);
    let map = flat_hosts(&[host(1, 5120), host(2, 5120), host(3, 384)]);
    for (input, out) in mappings(&map, 1000, 3, &[WEIGHT_ONE; 4]).into_iter().enumerate() {
        assert_eq!(out.len(), 3, "input {input}");
    }
}

#[test]
fn a_class_has_rules_of_its_own_whose_draws_later_classes_leave_alone() {
    let hosts: Vec<(String, Vec<(i32, u32)>)> = (0..8)
        .map(|host| (format!("h{host}"), vec![(2 * host, WEIGHT_ONE), (2 * host + 1, WEIGHT_ONE)]))
        .collect();
    let even: Vec<i32> = (0..16).filter(|id| id % 2 == 0).collect();
    let ssd = ("ssd".to_owned(), even.clone());
    let one = crush::flat_map(&hosts, std::slice::from_ref(&ssd));
    let two = crush::flat_map(&hosts, &[ssd, ("hdd".to_owned(), vec![1, 3, 5])]);
    assert_eq!(CrushMap::parse_text(&two.to_text()).expect("it parses"), two);
    let draw = |map: &CrushMap, rule| {
        let (mut scratch, mut all) = (Scratch::default(), Vec::new());
        for x in 0..500 {
            let mut out = Vec::new();
            map.do_rule(rule, x, 3, &[WEIGHT_ONE; 16], &mut scratch, &mut out);
            all.push(out);
        }
        all
    };
    for hosts_differ in [true, false] {
        let rule = crush::flat_rule(Some(0), hosts_differ);
        let drawn = draw(&one, rule);
        assert!(drawn.iter().all(|out| out.len() == 3 && out.iter().all(|id| even.contains(id))));
        assert_eq!(drawn, draw(&two, rule), "another class changes nothing");
    }
    assert_eq!(draw(&flat_hosts(&hosts), 0), draw(&two, 0), "nor do classes change what takes all devices");
    let other = draw(&two, crush::flat_rule(Some(1), true));
    assert!(other.iter().all(|out| out.iter().all(|id| [1, 3, 5].contains(id))));
    let by_server = draw(&two, crush::flat_rule(None, false));
    assert!(by_server.iter().any(|out| out[0] / 2 == out[1] / 2), "two copies may share a host");
}
