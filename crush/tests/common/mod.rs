//! Reading recorded mappings and comparing with them.

pub(crate) mod sha256;

use crush::{CrushMap, ITEM_NONE, Scratch, WEIGHT_ONE};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// `crushtool --test` asks for the weight sets of this pool.
const TEST_CHOOSE_ARGS: i64 = 0;

/// The selection that is part of the repository.
pub(crate) fn embedded() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors")
}

/// The complete collection, where there is one.
pub(crate) fn complete() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/crush-vectors");
    let directory = std::env::var_os("CRUSH_VECTORS").map_or(beside, PathBuf::from);
    directory.is_dir().then_some(directory)
}

/// One map with its recorded cases.
pub(crate) struct Recorded {
    pub name: String,
    pub text: String,
    pub json: Value,
    pub mappings: BTreeMap<String, String>,
}

impl Recorded {
    /// All maps of a directory, in order of name.
    pub(crate) fn all(directory: &Path) -> Vec<Recorded> {
        let entries = fs::read_dir(directory).expect("the directory of vectors is readable");
        let names = entries.map(|entry| entry.expect("its entries are too").file_name());
        let names = names.filter_map(|name| name.to_str()?.strip_suffix(".cases.json").map(str::to_owned));
        let mut names: Vec<String> = names.collect();
        names.sort();
        names.into_iter().map(|name| Recorded::read(directory, name)).collect()
    }

    fn read(directory: &Path, name: String) -> Recorded {
        let read = |suffix: &str| {
            let path = directory.join(format!("{name}.{suffix}"));
            fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
        };
        let sections = read("map");
        let sections = sections.split("@ ").skip(1).filter_map(|section| section.split_once('\n'));
        let mappings = sections.map(|(id, lines)| (id.trim().to_owned(), lines.to_owned())).collect();
        let json = serde_json::from_str(&read("cases.json")).expect("cases are JSON");
        Recorded { text: read("txt"), json, mappings, name }
    }

    pub(crate) fn map(&self) -> CrushMap {
        CrushMap::parse_text(&self.text).unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    pub(crate) fn has_tag(&self, tag: &str) -> bool {
        self.json["tags"].as_array().is_some_and(|tags| tags.iter().any(|other| other == tag))
    }

    pub(crate) fn cases(&self) -> &[Value] {
        self.json["cases"].as_array().expect("there are cases")
    }

    /// Compares one case; panics with the first difference. Returns the number of mappings.
    pub(crate) fn check(&self, map: &CrushMap, case: &Value) -> usize {
        let lines = mapping_lines(map, case);
        let id = case["id"].as_str().expect("a case has an id");
        match case["mappings"].is_null() {
            true => {
                let digest = sha256::hex_digest(lines.as_bytes());
                assert_eq!(digest, case["sha256"], "{}/{id}: digest of all mappings", self.name);
            }
            false => {
                let recorded = self.mappings[id].lines();
                for (ours, recorded) in lines.lines().zip(recorded) {
                    assert_eq!(ours, recorded, "{}/{id}", self.name);
                }
                let recorded = self.mappings[id].lines().count();
                assert_eq!(lines.lines().count(), recorded, "{}/{id}: number of mappings", self.name);
            }
        }
        lines.lines().count()
    }

    /// Compares the compiled buckets.
    pub(crate) fn check_buckets(&self, map: &CrushMap) {
        let ours: Vec<Value> = map
            .buckets()
            .rev()
            .map(|bucket| {
                let items: Vec<Value> =
                    bucket.items().map(|(item, weight)| vec![item as i64, weight.into()].into()).collect();
                let type_name = map.type_name(bucket.bucket_type());
                let algorithm = bucket.algorithm().name();
                serde_json::json!([bucket.id(), bucket.name(), type_name, algorithm, bucket.weight(), items])
            })
            .collect();
        let mut recorded = self.json["buckets"].as_array().expect("there are buckets").clone();
        recorded.sort_by_key(|bucket| -bucket[0].as_i64().expect("a bucket has an id"));
        for (ours, recorded) in ours.iter().zip(&recorded) {
            assert_eq!(ours, recorded, "{}: compiled bucket", self.name);
        }
        assert_eq!(ours.len(), recorded.len(), "{}: number of buckets", self.name);
    }
}

/// The lines `x device,device,...` of a case.
pub(crate) fn mapping_lines(map: &CrushMap, case: &Value) -> String {
    let number = |key: &str| case[key].as_i64().unwrap_or_else(|| panic!("{key} is a number"));
    let (rule, num_rep) = (number("rule") as u32, number("num_rep") as usize);
    let weights = reweights(map, &case["weights"]);
    let mut scratch = Scratch::default();
    let (mut devices, mut lines) = (Vec::new(), String::new());
    for x in number("min_x")..=number("max_x") {
        let input = match case.get("pool_id").and_then(Value::as_i64) {
            Some(pool) => crush::hash::hash2(x as u32, pool as u32),
            None => x as u32,
        };
        map.do_rule_in_pool(TEST_CHOOSE_ARGS, rule, input, num_rep, &weights, &mut scratch, &mut devices);
        let device = |device: &i32| if *device == ITEM_NONE { "NONE".to_owned() } else { device.to_string() };
        let devices = devices.iter().map(device).collect::<Vec<_>>().join(",");
        lines += &format!("{x} {}\n", if devices.is_empty() { "-" } else { &devices });
    }
    lines
}

fn reweights(map: &CrushMap, overrides: &Value) -> Vec<u32> {
    let mut weights = vec![0; map.max_devices() as usize];
    for device in map.placed_devices() {
        weights[device as usize] = WEIGHT_ONE;
    }
    for entry in overrides.as_array().expect("weights are a list") {
        let device = entry[0].as_u64().expect("a device id") as usize;
        let weight: f32 = entry[1].as_str().expect("a decimal").parse().expect("a decimal");
        if let Some(slot) = weights.get_mut(device) {
            *slot = (weight.clamp(0.0, 1.0) * 65536.0) as u32;
        }
    }
    weights
}
