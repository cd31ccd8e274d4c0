//! The text format: what is refused and where, and that nothing makes the parser panic.

use crush::{CrushMap, ParseError, weight_from_text};
use proptest::prelude::*;

const MAP: &str = "\
tunable choose_total_tries 50
device 0 osd.0 class ssd
device 1 osd.1
type 0 osd
type 1 host
type 2 root
host a {
  id -1
  alg straw2
  hash 0 # rjenkins1
  item osd.0 weight 1.000
  item osd.1 weight 2.500
}
root default {
  id -2
  alg straw2
  hash rjenkins1
  item a
}
rule first {
  id 7
  type replicated
  step take default class ssd
  step chooseleaf firstn 0 type host
  step emit
}
choose_args 18446744073709551615 {
  { bucket_id -1 weight_set [ [ 1 2 ] [ 0 1 ] ] ids [ 5 6 ] }
}
";

fn error_of(text: &str) -> ParseError {
    CrushMap::parse_text(text).expect_err("the text is wrong")
}

/// The error after one replacement in a correct map.
fn error_after(from: &str, to: &str) -> ParseError {
    assert!(MAP.contains(from), "`{from}` is in the map");
    error_of(&MAP.replacen(from, to, 1))
}

#[test]
fn a_map_is_read_and_written() {
    let map = CrushMap::parse_text(MAP).expect("the map is correct");
    assert_eq!(map.rule_id("first"), Some(7));
    assert_eq!(map.item_id("default"), Some(-2));
    assert_eq!(map.device_class(0), Some("ssd"));
    assert_eq!(map.bucket(-2).map(|root| root.weight()), Some(0x3_8000));
    let text = map.to_text();
    assert_eq!(CrushMap::parse_text(&text).expect("an export is correct"), map);
    for line in
        ["tunable choose_total_tries 50", "\titem osd.1 weight 2.500", "\tstep take default class ssd"]
    {
        assert!(text.lines().any(|other| other == line), "`{line}` is in\n{text}");
    }
}

#[test]
fn errors_name_line_column_and_cause() {
    let cases = [
        (
            error_after("choose_total_tries", "choose_most_tries"),
            (1, 9),
            "`choose_most_tries` is not a tunable",
        ),
        (error_after("tries 50", "tries fifty"), (1, 28), "`fifty` is where a whole number should be"),
        (error_after("device 1", "device 0"), (3, 10), "device id 0 is already taken or outside"),
        (error_after("osd.1\n", "osd.0\n"), (3, 10), "the name `osd.0` is already taken"),
        (error_after("host a", "rack a"), (7, 1), "no type `rack` is declared"),
        (error_after("  alg straw2\n", ""), (7, 6), "bucket `a` has no `alg` line"),
        (error_after("alg straw2", "alg straw3"), (7, 6), "`straw3` is not a bucket algorithm"),
        (error_after("item osd.1", "item osd.9"), (12, 8), "no device or bucket `osd.9` is defined before"),
        (error_after("weight 2.500", "weight -1"), (12, 21), "`-1` is where a weight"),
        (error_after("weight 2.500", "weight 100.1"), (12, 21), "the weight of `osd.1` is more than 100"),
        (error_after("id -2", "id -1"), (14, 6), "bucket id -1 is already taken or not negative"),
        (error_after("id -2", "id -2 id -3"), (15, 9), "the bucket has a second `id` line"),
        (
            error_after("class ssd\n  step", "class hdd\n  step"),
            (23, 27),
            "`default` has no devices of a class `hdd`",
        ),
        (error_after("type replicated", "type msr_firstn"), (22, 8), "`msr_firstn` is where `replicated`"),
        (error_after("firstn 0 type host", "firstn 0 type rack"), (24, 33), "no type `rack` is declared"),
        (error_after("firstn 0", "firstn 5000"), (20, 6), "a choose step asks for 5000 items"),
        (error_after("[ 0 1 ]", "[ 0 ]"), (28, 15), "the weight set or ids of bucket -1 do not fit it"),
    ];
    for (error, position, message) in cases {
        assert_eq!((error.line, error.column), position, "position of: {error}");
        assert!(error.message.starts_with(message), "`{error}` says `{message}`");
    }
}

#[test]
fn a_truncated_map_is_refused_at_its_end() {
    let error = error_of("type 1 host\nhost a {\n  alg straw2");
    assert_eq!(error.to_string(), "line 3, column 13: the text ends where `}` should be");
}

#[test]
fn sections_out_of_order_are_refused() {
    let error = error_of(&format!("{MAP}device 2 osd.2\n"));
    assert_eq!((error.line, error.column), (30, 1));
    assert!(error.message.starts_with("`device` cannot come here"), "{error}");
}

#[test]
fn weights_go_through_a_32_bit_float() {
    let weights = ["1e1", ".5", "5.", "0.1", "16.777217", "1.00000762939453125", "0.0000152"];
    let fixed = weights.map(weight_from_text);
    assert_eq!(fixed, [655360, 32768, 327680, 6553, 1099511, 65536, 0].map(Some));
    assert_eq!(["-1", "inf", "nan", "65536", "1x", ""].map(weight_from_text), [None; 6]);
}

/// A text near a correct map: lines dropped, doubled, swapped, words replaced.
fn mangled_map() -> impl Strategy<Value = String> {
    let edit = (0..4u8, any::<prop::sample::Index>(), any::<prop::sample::Index>(), word());
    prop::collection::vec(edit, 0..6).prop_map(|edits| {
        let mut words: Vec<String> = MAP.split_inclusive(char::is_whitespace).map(str::to_owned).collect();
        for (kind, at, other, replacement) in edits {
            let (at, other) = (at.index(words.len()), other.index(words.len()));
            match kind {
                0 => words[at] = format!("{replacement} "),
                1 => words.insert(at, words[other].clone()),
                2 => words.swap(at, other),
                _ => drop(words.drain(at.min(other)..at.max(other).min(at.min(other) + 9))),
            }
            if words.is_empty() {
                words.push(replacement);
            }
        }
        words.concat()
    })
}

fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<i32>().prop_map(|n| n.to_string()),
        (-9..9i32).prop_map(|n| n.to_string()),
        (0.0..1e6f32).prop_map(|n| n.to_string()),
        "[{}\\[\\]#\n]",
        "(uniform|list|tree|straw|straw2|item|id|class|ssd|pos|weight|rule|step|take|emit|a|default|osd\\.1)",
        "\\PC{0,8}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC{0,200}") {
        let _ = CrushMap::parse_text(&text);
    }

    /// What is accepted can also be used and comes back from an export with the same buckets.
    #[test]
    fn no_mangled_map_makes_anything_panic(text in mangled_map()) {
        if let Ok(map) = CrushMap::parse_text(&text) {
            let (mut scratch, mut out) = (crush::Scratch::default(), Vec::new());
            for rule in map.rules() {
                for x in 0..20 {
                    map.do_rule(rule.id, x, 3, &[crush::WEIGHT_ONE; 4], &mut scratch, &mut out);
                    prop_assert!(out.len() <= 3);
                }
            }
            let again = CrushMap::parse_text(&map.to_text());
            let again = again.unwrap_or_else(|error| panic!("{error} in\n{}", map.to_text()));
            prop_assert!(again.buckets().eq(map.buckets()), "buckets of\n{}", map.to_text());
        }
    }

    /// Bytes from a peer or a disk are a sound map or an error.
    #[test]
    fn no_damaged_serialization_makes_anything_panic(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let map = CrushMap::parse_text(MAP).expect("the map is correct");
        let mut bytes = postcard::to_allocvec(&map).expect("a map serializes");
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(map) = postcard::from_bytes::<CrushMap>(&bytes) {
            let (mut scratch, mut out) = (crush::Scratch::default(), Vec::new());
            map.do_rule(7, 1, 3, &[crush::WEIGHT_ONE; 4], &mut scratch, &mut out);
            let _ = map.to_text();
        }
    }
}
