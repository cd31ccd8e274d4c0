//! Mappings per second on 3-level straw2 maps, 3 replicas: `cargo bench -p crush`.
//!
//! `benches/beside-crushtool` measures the same maps with Debian's `crushtool` in the same minute.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use crush::{CrushMap, Mode, NewBucket, NewRule, RuleKind, Scratch, Tunables, WEIGHT_ONE};
use std::hint::black_box;

/// Inputs per measured call.
const INPUTS: u32 = 1000;

/// `racks` racks of 10 hosts of 10 devices, of equal weights or of ten different ones.
fn three_levels(racks: i32, equal: bool) -> CrushMap {
    let mut map = CrushMap::new(Tunables::JEWEL);
    for (number, name) in [(0, "osd"), (1, "host"), (2, "rack"), (3, "root")] {
        map.add_type(number, name).expect("a new type");
    }
    let mut next_id = 0;
    let mut add = |map: &mut CrushMap, bucket_type: u32, items: Vec<(i32, u32)>| {
        next_id -= 1;
        let weight = items.iter().map(|(_, weight)| weight).sum();
        let name = format!("bucket{}", -next_id);
        let new = NewBucket { id: next_id, name: &name, bucket_type, algorithm: "straw2", hash: 0, items };
        map.add_bucket(new).expect("existing items");
        (next_id, weight)
    };
    let mut rack_items = Vec::new();
    for rack in 0..racks {
        let mut host_items = Vec::new();
        for host in 0..10 {
            let devices = (0..10).map(|n| (rack * 100 + host * 10 + n, n));
            let weight = |n: i32| if equal { WEIGHT_ONE } else { WEIGHT_ONE + 6553 * n as u32 };
            let items: Vec<(i32, u32)> = devices.map(|(id, n)| (id, weight(n))).collect();
            for (id, _) in &items {
                map.add_device(*id, &format!("osd.{id}"), None).expect("a new device");
            }
            host_items.push(add(&mut map, 1, items));
        }
        rack_items.push(add(&mut map, 2, host_items));
    }
    add(&mut map, 3, rack_items);
    let root = format!("bucket{}", racks * 11 + 1);
    let (mode, kind) = (Mode::Firstn, RuleKind::Replicated);
    let rule = NewRule { name: "r", root: &root, failure_domain: "host", mode, kind, class: None };
    let mut draft = map.edit();
    draft.create_rule(rule).expect("a root and a type");
    draft.finish().expect("a sound map")
}

fn do_rule(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("do_rule");
    group.throughput(Throughput::Elements(INPUTS.into()));
    for (name, racks, equal) in [
        ("1000 devices, equal weights", 10, true),
        ("1000 devices, ten weights", 10, false),
        ("10000 devices, equal weights", 100, true),
        ("10000 devices, ten weights", 100, false),
    ] {
        let map = three_levels(racks, equal);
        let weights = vec![WEIGHT_ONE; map.max_devices() as usize];
        let (mut scratch, mut out) = (Scratch::default(), Vec::new());
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                for x in 0..INPUTS {
                    map.do_rule(0, black_box(x), 3, &weights, &mut scratch, &mut out);
                    black_box(&out);
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, do_rule);
criterion_main!(benches);
