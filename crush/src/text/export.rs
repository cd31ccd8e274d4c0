//! Writing a map as text.

use super::weight::{fixed, weight_to_text};
use crate::bucket::{Algorithm, Bucket};
use crate::map::{ChooseArg, CrushMap};
use crate::rule::{Mode, Rule, RuleKind, Step};
use crate::tunables::Tunables;
use std::collections::BTreeSet;
use std::fmt::Write;

pub(super) fn export(map: &CrushMap) -> String {
    let mut text = String::new();
    write_map(map, &mut text).expect("writing to a string does not fail");
    text
}

fn write_map(map: &CrushMap, text: &mut String) -> std::fmt::Result {
    writeln!(text, "# begin crush map")?;
    for ((name, value), (_, default)) in map.tunables.entries().into_iter().zip(Tunables::ARGONAUT.entries())
    {
        if value != default {
            writeln!(text, "tunable {name} {value}")?;
        }
    }
    writeln!(text, "\n# devices")?;
    for (id, device) in map.devices() {
        write!(text, "device {id} {}", device.name)?;
        match map.device_class(id) {
            Some(class) => writeln!(text, " class {class}")?,
            None => writeln!(text)?,
        }
    }
    writeln!(text, "\n# types")?;
    for (id, name) in map.types() {
        writeln!(text, "type {id} {name}")?;
    }
    writeln!(text, "\n# buckets")?;
    let mut written = BTreeSet::new();
    for bucket in map.buckets().rev().filter(|bucket| !bucket.is_shadow()) {
        write_with_children(map, bucket, &mut written, text)?;
    }
    writeln!(text, "\n# rules")?;
    for rule in map.rules() {
        write_rule(map, rule, text)?;
    }
    if !map.choose_args.is_empty() {
        writeln!(text, "\n# choose_args")?;
    }
    for (index, args) in &map.choose_args {
        writeln!(text, "choose_args {} {{", *index as u64)?;
        for (bucket, arg) in args {
            write_choose_arg(*bucket, arg, text)?;
        }
        writeln!(text, "}}")?;
    }
    writeln!(text, "\n# end crush map")
}

/// Children first, since items are defined before use; the recursion is bounded by `LEVELS_MAX`.
fn write_with_children(
    map: &CrushMap,
    bucket: &Bucket,
    written: &mut BTreeSet<i32>,
    text: &mut String,
) -> std::fmt::Result {
    if !written.insert(bucket.id) {
        return Ok(());
    }
    for child in bucket.items.iter().filter_map(|item| map.bucket(*item)) {
        write_with_children(map, child, written, text)?;
    }
    write_bucket(map, bucket, text)
}

fn write_bucket(map: &CrushMap, bucket: &Bucket, text: &mut String) -> std::fmt::Result {
    let type_name = map.type_name(bucket.bucket_type).unwrap_or_default();
    writeln!(text, "{type_name} {} {{", bucket.name)?;
    writeln!(text, "\tid {}\t\t# do not change unnecessarily", bucket.id)?;
    for (class, id) in map.shadow_ids.get(&bucket.id).into_iter().flatten() {
        let class = &map.classes[*class as usize];
        writeln!(text, "\tid {id} class {class}\t\t# do not change unnecessarily")?;
    }
    writeln!(text, "\t# weight {}", fixed(bucket.weight, 3))?;
    writeln!(text, "\talg {}", bucket.algorithm.name())?;
    writeln!(text, "\thash {}\t# rjenkins1", bucket.hash)?;
    let positions = matches!(bucket.algorithm, Algorithm::Uniform | Algorithm::Tree { .. });
    for (position, (item, weight)) in bucket.items().enumerate() {
        write!(text, "\titem {}", item_name(map, item))?;
        let sum = map.bucket(item).map(Bucket::weight);
        match weight_to_text(weight) {
            Some(weight) => write!(text, " weight {weight}")?,
            // Left out, the weight is the sum of the item's own items, which needs no float.
            None if sum == Some(weight) => {}
            None => write!(text, " weight {}", fixed(weight, 5))?,
        }
        match positions {
            true => writeln!(text, " pos {position}")?,
            false => writeln!(text)?,
        }
    }
    writeln!(text, "}}")
}

fn write_rule(map: &CrushMap, rule: &Rule, text: &mut String) -> std::fmt::Result {
    match &rule.name {
        Some(name) => writeln!(text, "rule {name} {{")?,
        None => writeln!(text, "rule {{")?,
    }
    let kind = match rule.kind {
        RuleKind::Replicated => "replicated",
        RuleKind::Erasure => "erasure",
    };
    writeln!(text, "\tid {}\n\ttype {kind}", rule.id)?;
    writeln!(text, "\tmin_size {}\n\tmax_size {}", rule.min_size, rule.max_size)?;
    for step in &rule.steps {
        writeln!(text, "\tstep {}", step_text(map, *step))?;
    }
    writeln!(text, "}}")
}

fn step_text(map: &CrushMap, step: Step) -> String {
    match step {
        // A device class's copy is called ORIGINAL~CLASS.
        Step::Take { item } => format!("take {}", item_name(map, item).replace('~', " class ")),
        Step::Emit => "emit".to_owned(),
        Step::Choose { mode, leaf, num, item_type } => {
            let choose = if leaf { "chooseleaf" } else { "choose" };
            let mode = match mode {
                Mode::Firstn => "firstn",
                Mode::Indep => "indep",
            };
            format!("{choose} {mode} {num} type {}", map.type_name(item_type).unwrap_or_default())
        }
        Step::SetChooseTries(tries) => format!("set_choose_tries {tries}"),
        Step::SetChooseleafTries(tries) => format!("set_chooseleaf_tries {tries}"),
        Step::SetChooseLocalTries(tries) => format!("set_choose_local_tries {tries}"),
        Step::SetChooseLocalFallbackTries(tries) => format!("set_choose_local_fallback_tries {tries}"),
        Step::SetChooseleafVaryR(vary_r) => format!("set_chooseleaf_vary_r {vary_r}"),
        Step::SetChooseleafStable(stable) => format!("set_chooseleaf_stable {stable}"),
    }
}

fn write_choose_arg(bucket: i32, arg: &ChooseArg, text: &mut String) -> std::fmt::Result {
    writeln!(text, "  {{\n    bucket_id {bucket}")?;
    if !arg.weight_set.is_empty() {
        writeln!(text, "    weight_set [")?;
        for row in &arg.weight_set {
            write!(text, "      [ ")?;
            for weight in row {
                write!(text, "{} ", weight_to_text(*weight).unwrap_or_else(|| fixed(*weight, 5)))?;
            }
            writeln!(text, "]")?;
        }
        writeln!(text, "    ]")?;
    }
    if let Some(ids) = &arg.ids {
        write!(text, "    ids [ ")?;
        for id in ids {
            write!(text, "{id} ")?;
        }
        writeln!(text, "]")?;
    }
    writeln!(text, "  }}")
}

fn item_name(map: &CrushMap, item: i32) -> &str {
    let device = || map.devices.get(&item).map(|device| device.name.as_str());
    map.bucket(item).map(Bucket::name).or_else(device).unwrap_or_default()
}
