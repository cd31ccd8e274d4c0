//! Changes of maps and the binary form, against what `crushtool` 16.2.15 made of the same; and what is refused.

use crush::{CrushMap, Draft, EditError, Mode, NewRule, RuleKind, weight_from_text};
use proptest::prelude::*;
use serde_json::Value;
use std::path::Path;

fn recorded() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/edit-vectors.json");
    let text = std::fs::read_to_string(path).expect("the vectors are in the repository");
    serde_json::from_str(&text).expect("the vectors are JSON")
}

fn base() -> CrushMap {
    CrushMap::parse_text(recorded()["base"].as_str().expect("a text")).expect("the map is correct")
}

/// One change in the words of the command line.
fn apply(draft: &mut Draft, words: &[&str]) -> Result<(), EditError> {
    let location = |from: usize| words[from..].iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    match words {
        ["add", name, what, ..] => match weight_from_text(what) {
            Some(weight) => draft.add_device(name, None, weight, None, &location(3)),
            None => draft.add_bucket(name, what, &location(3)),
        },
        ["move", name, ..] => draft.move_item(name, &location(2)),
        ["remove", name] => draft.remove(name),
        ["reweight", name, weight] => {
            draft.reweight(name, weight_from_text(weight).expect("a weight"), false)
        }
        ["rule", name, root, failure_domain, mode] => {
            let mode = if *mode == "indep" { Mode::Indep } else { Mode::Firstn };
            let kind = RuleKind::Replicated;
            let new = NewRule { name, root, failure_domain, mode, kind, class: None };
            draft.create_rule(new).map(|_| ())
        }
        ["unrule", name] => draft.remove_rule(name),
        other => panic!("{other:?} is no change"),
    }
}

fn changed(map: &CrushMap, words: &[&str]) -> Result<CrushMap, EditError> {
    let mut draft = map.edit();
    apply(&mut draft, words)?;
    draft.finish()
}

#[test]
fn changes_give_the_maps_that_crushtool_gives() {
    let recorded = recorded();
    let mut map = base();
    for step in recorded["steps"].as_array().expect("a list") {
        let words: Vec<&str> =
            step["edit"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
        map = changed(&map, &words).unwrap_or_else(|error| panic!("{words:?}: {error}"));
        let theirs = CrushMap::parse_text(step["text"].as_str().expect("a text")).expect("crushtool's map");
        assert_eq!(map.to_text(), theirs.to_text(), "after {words:?}");
        assert!(map.buckets().eq(theirs.buckets()), "compiled buckets after {words:?}");
    }
}

#[test]
fn the_binary_form_is_crushtools() {
    let recorded = recorded();
    for (name, hex) in recorded["binaries"].as_object().expect("an object") {
        let hex = hex.as_str().expect("hexadecimal");
        let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
        let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/vectors/{name}.txt"));
        let text = std::fs::read_to_string(path).expect("the map of that name");
        let map = CrushMap::parse_text(&text).expect("the map is correct");
        assert!(CrushMap::is_binary(&bytes) && !CrushMap::is_binary(text.as_bytes()));
        let theirs = CrushMap::from_binary(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(theirs.to_text(), map.to_text(), "{name}");
        let ours = CrushMap::from_binary(&map.to_binary().expect("it fits")).expect("our own bytes");
        assert_eq!(ours.to_text(), map.to_text(), "{name}: there and back");
        assert!(ours.buckets().eq(map.buckets()) && theirs.buckets().eq(map.buckets()), "{name}: buckets");
    }
}

#[test]
fn refusals_name_the_thing_and_the_next_step() {
    let map = base();
    let cases: [(&[&str], &str); 19] = [
        (&["add", "osd.0", "1", "host=h0"], "`osd.0` is already in `h0`; use `zabfs crush move`"),
        (&["add", "disk", "1", "host=h0"], "`disk` does not say its id; name devices osd.N, or give --id N"),
        (&["add", "osd.9", "100.5", "host=h0"], "the weight of a device is at most 100"),
        (&["add", "osd.9", "1"], "no location is given; name at least one bucket that holds `osd.9`"),
        (&["add", "osd.9", "1", "host"], "`host` is not a location; write TYPE=NAME"),
        (&["add", "osd.9", "1", "shelf=a"], "the map has no type `shelf`; it has: osd, host, rack, root"),
        (&["add", "osd.9", "1", "host=r0"], "`r0` is a rack, not a host"),
        (&["add", "osd.9", "1", "host=h0", "host=h1"], "the location names two buckets of type `host`"),
        (&["add", "osd.9", "1", "host=h0", "rack=r1"], "`h0` is not below rack=r1; move `h0` first"),
        (&["add", "h0", "host"], "the name `h0` is already taken"),
        (&["add", "o d", "1", "host=h0"], "the map would be wrong: `o d` is not a name"),
        (&["move", "r0", "host=h1"], "a host cannot hold `r0`, which is a rack"),
        (&["move", "h9", "rack=r0"], "`h9` is neither a device nor a bucket of this map"),
        (&["remove", "h0"], "bucket `h0` still holds 2 items; move or remove them first"),
        (&["remove", "default"], "rule `ssds` takes from `default`; remove the rule first"),
        (&["reweight", "h0", "3"], "`h0` is a bucket, whose weight is that of its items"),
        (&["rule", "ssds", "default", "host", "firstn"], "a rule `ssds` exists already"),
        (&["rule", "new", "osd.1", "host", "firstn"], "`osd.1` is a device; a rule starts from a bucket"),
        (&["unrule", "none"], "the map has no rule `none`; it has: ssds"),
    ];
    for (words, message) in cases {
        let error = changed(&map, words).expect_err(message);
        assert!(error.to_string().starts_with(message), "{words:?}: `{error}` says `{message}`");
    }
}

#[test]
fn weight_sets_follow_their_buckets() {
    let text = format!(
        "{}choose_args 3 {{ {{ bucket_id -2 weight_set [ [ 1 2 ] [ 3 1 ] ] ids [ 5 6 ] }} {{ bucket_id -8 weight_set [ [ 2 ] ] }} }}",
        recorded()["base"].as_str().expect("a text")
    );
    let map = CrushMap::parse_text(&text).expect("the map is correct");
    let map = changed(&map, &["reweight", "osd.0", "4"]).expect("a device");
    let map = changed(&map, &["move", "h0", "rack=r1"]).expect("a host and a rack");
    let map = changed(&map, &["remove", "osd.1"]).expect("a device");
    let text = map.to_text();
    // -2 keeps osd.0's new weight in both rows; r1 got h0's sum, now 4, beside h1's 2.
    for (bucket, rows) in [("-2", "[ 4.000 ]\n      [ 4.000 ]"), ("-8", "[ 2.000 4.000 ]")] {
        let wanted = format!("bucket_id {bucket}\n    weight_set [\n      {rows}\n    ]");
        assert!(text.contains(&wanted), "{wanted}\nis in\n{text}");
    }
    assert!(text.contains("ids [ 5 ]"), "{text}");
}

#[test]
fn new_weights_reach_every_ancestor() {
    let map = base();
    let mut draft = map.edit();
    draft.reweight("default", 3 * crush::WEIGHT_ONE, true).expect("a bucket with --subtree");
    let map = draft.finish().expect("a sound map");
    let weight = |name: &str| map.bucket(map.item_id(name).expect("it exists")).map(|bucket| bucket.weight());
    assert_eq!(["h0", "r0", "default"].map(weight), [6, 6, 9].map(|weight| Some(weight * crush::WEIGHT_ONE)));
}

#[test]
fn an_unchanged_draft_is_the_same_map() {
    for name in ["choose-args-class-0", "class-partial-explicit", "host-osd-tb", "mixed-algs-1"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/vectors/{name}.txt"));
        let map =
            CrushMap::parse_text(&std::fs::read_to_string(path).expect("a map")).expect("a correct map");
        assert_eq!(map.edit().finish().expect("it was sound").to_text(), map.to_text(), "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    /// Bytes that are no map are an error, and bytes that are one are a sound map.
    #[test]
    fn no_damaged_binary_makes_anything_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
        shorten in any::<bool>(),
    ) {
        let mut bytes = base().to_binary().expect("it fits");
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if shorten {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(map) = CrushMap::from_binary(&bytes) {
            let (mut scratch, mut out) = (crush::Scratch::default(), Vec::new());
            for rule in map.rules().map(|rule| rule.id).collect::<Vec<_>>() {
                map.do_rule(rule, 1, 3, &[crush::WEIGHT_ONE; 4], &mut scratch, &mut out);
            }
            let _ = (map.to_text(), map.to_binary());
        }
    }

    /// After any accepted changes every bucket weighs what its items weigh, and the text reads back.
    #[test]
    fn weights_are_sums_after_any_changes(
        changes in prop::collection::vec((0..5u8, 0..8u32, 0..4u32, 1..80u32), 1..20),
    ) {
        let mut map = base();
        for (kind, device, host, eighths) in changes {
            let (device, host, rack) = (format!("osd.{device}"), format!("h{host}"), format!("rack=r{}", eighths % 3));
            let (at, weight) = (format!("host={host}"), (f64::from(eighths) / 8.0).to_string());
            let words: Vec<&str> = match kind {
                0 => vec!["add", &device, &weight, &at],
                1 => vec!["move", &host, &rack],
                2 => vec!["remove", &device],
                3 => vec!["reweight", &device, &weight],
                _ => vec!["remove", &host],
            };
            map = changed(&map, &words).unwrap_or(map);
        }
        for bucket in map.buckets() {
            for (item, weight) in bucket.items() {
                prop_assert!(map.bucket(item).is_none_or(|child| child.weight() == weight));
            }
        }
        let again = CrushMap::parse_text(&map.to_text()).expect("an export is correct");
        prop_assert_eq!(again.to_text(), map.to_text());
        prop_assert!(again.buckets().eq(map.buckets()));
    }
}
