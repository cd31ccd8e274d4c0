//! Mappings, hashes and compiled buckets against recorded ones of `crushtool` 16.2.15.

mod common;

use common::{Recorded, complete, embedded, mapping_lines, sha256};
use crush::CrushMap;
use serde_json::Value;

fn json(name: &str) -> Value {
    let text = std::fs::read_to_string(embedded().join(name)).expect("the vectors are in the repository");
    serde_json::from_str(&text).expect("the vectors are JSON")
}

fn word(value: &Value) -> u32 {
    let number = value.as_i64().expect("a number");
    u32::try_from(number).unwrap_or(number as i32 as u32)
}

#[test]
fn the_embedded_selection_maps_as_recorded() {
    let mut mappings = 0;
    for recorded in Recorded::all(&embedded()) {
        let map = recorded.map();
        mappings += recorded.cases().iter().map(|case| recorded.check(&map, case)).sum::<usize>();
    }
    assert!(mappings > 50_000, "only {mappings} mappings were compared");
}

#[test]
fn the_complete_collection_maps_as_recorded() {
    let Some(directory) = complete() else {
        println!("no directory in CRUSH_VECTORS: compared the embedded selection only");
        return;
    };
    let (mut cases, mut straw2_maps) = (0, 0);
    for recorded in Recorded::all(&directory) {
        let map = recorded.map();
        recorded.check_buckets(&map);
        recorded.cases().iter().for_each(|case| {
            recorded.check(&map, case);
        });
        cases += recorded.cases().len();
        straw2_maps += usize::from(recorded.has_tag("straw2"));
    }
    println!("{cases} cases compared, {straw2_maps} of the maps with straw2 buckets");
    assert!(cases > 0 && straw2_maps > 0, "{} holds no vectors", directory.display());
}

#[test]
fn buckets_compile_as_recorded() {
    for recorded in Recorded::all(&embedded()) {
        recorded.check_buckets(&recorded.map());
    }
}

#[test]
fn exported_text_and_serialized_maps_map_the_same() {
    for recorded in Recorded::all(&embedded()) {
        let map = recorded.map();
        let text = map.to_text();
        let again = CrushMap::parse_text(&text).unwrap_or_else(|error| panic!("{}: {error}", recorded.name));
        assert_eq!(again.to_text(), text, "{}: exporting twice", recorded.name);
        recorded.check_buckets(&again);
        let bytes = postcard::to_allocvec(&map).expect("a map serializes");
        let decoded: CrushMap = postcard::from_bytes(&bytes).expect("and comes back");
        assert_eq!(decoded, map, "{}", recorded.name);
        for case in recorded.cases().iter().filter(|case| !case["mappings"].is_null()) {
            recorded.check(&again, case);
            assert_eq!(mapping_lines(&decoded, case), mapping_lines(&map, case));
        }
    }
}

#[test]
fn hashes_are_as_recorded() {
    let vectors = json("hash-vectors.json");
    for vector in vectors["hash32"].as_array().expect("a list") {
        let inputs: Vec<u32> = vector[0].as_array().expect("a list").iter().map(word).collect();
        let hash = match *inputs {
            [a] => crush::hash::hash1(a),
            [a, b] => crush::hash::hash2(a, b),
            [a, b, c] => crush::hash::hash3(a, b, c),
            [a, b, c, d] => crush::hash::hash4(a, b, c, d),
            [a, b, c, d, e] => crush::hash::hash5(a, b, c, d, e),
            _ => panic!("one to five inputs"),
        };
        assert_eq!(hash, word(&vector[1]), "hash of {inputs:?}");
    }
    for vector in vectors["strhash_rjenkins"].as_array().expect("a list") {
        let hex = vector[0].as_str().expect("hexadecimal");
        let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
        let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
        assert_eq!(crush::hash::string_hash(&bytes), word(&vector[1]), "hash of 0x{hex}");
    }
}

#[test]
fn the_logarithm_is_as_recorded_for_every_input() {
    let vectors = json("hash-vectors.json");
    for vector in vectors["ln"].as_array().expect("a list") {
        let u = vector[0].as_u64().expect("a number") as u16;
        assert_eq!(Some(crush::crush_ln(u)), vector[1].as_u64(), "logarithm of {u}");
    }
    let lines: String = (0..=u16::MAX).map(|u| format!("{u} {}\n", crush::crush_ln(u))).collect();
    assert_eq!(sha256::hex_digest(lines.as_bytes()), vectors["ln_all_sha256"]);
}

#[test]
fn objects_reach_the_recorded_placement_groups() {
    for vector in json("pg-vectors.json")["objects"].as_array().expect("a list") {
        let name = vector["name"].as_str().expect("a name").as_bytes();
        let namespace = vector.get("namespace").and_then(Value::as_str).unwrap_or_default().as_bytes();
        let (pool, pg_num) = (word(&vector["pool"]), word(&vector["pg_num"]));
        let hash = crush::object_hash_in_namespace(namespace, name);
        let pg = crush::pg_of(hash, pg_num);
        let ours = [hash, pg, crush::pps(pool, pg, pg_num)];
        assert_eq!(ours, [word(&vector["hash"]), word(&vector["pg"]), word(&vector["pps"])], "{vector}");
    }
}

#[test]
fn the_digest_of_the_standard_example_is_right() {
    // FIPS 180-4's example "abc"; the digest cases are only as good as this.
    let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(sha256::hex_digest(b"abc"), digest);
}
