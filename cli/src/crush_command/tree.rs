//! `zabfs crush tree`: the hierarchy with weights.

use super::map_file::MapSource;
use crush::{Bucket, CrushMap};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{self, Write};

/// Arguments of `zabfs crush tree`.
#[derive(Debug, clap::Args)]
pub(crate) struct TreeArgs {
    #[command(flatten)]
    source: MapSource,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Show device classes' copies of the hierarchy too
    #[arg(long)]
    show_shadow: bool,
}

/// One line of the tree.
struct Line {
    id: i32,
    class: String,
    weight: u32,
    depth: usize,
    type_name: String,
    name: String,
    children: Vec<i32>,
}

impl TreeArgs {
    pub(super) fn write(&self, out: &mut impl Write) -> anyhow::Result<()> {
        let map = self.source.read()?;
        let lines = lines(&map, self.show_shadow);
        match self.json {
            true => writeln!(out, "{:#}", to_json(&map, &lines))?,
            false => write_table(&lines, out)?,
        }
        Ok(())
    }
}

/// Every root with what is below it, depth first.
fn lines(map: &CrushMap, show_shadow: bool) -> Vec<Line> {
    let held: BTreeSet<i32> = map.buckets().flat_map(|bucket| bucket.items().map(|(item, _)| item)).collect();
    let mut lines = Vec::new();
    for root in map.buckets().filter(|bucket| !held.contains(&bucket.id())) {
        if show_shadow || !root.is_shadow() {
            add_lines(map, root.id(), root.weight(), 0, &mut lines);
        }
    }
    lines
}

/// The recursion is bounded by the height of the map.
fn add_lines(map: &CrushMap, id: i32, weight: u32, depth: usize, lines: &mut Vec<Line>) {
    let copy_of = || map.bucket(id)?.name().split_once('~').map(|(_, class)| class);
    let class = map.device_class(id).or_else(copy_of).unwrap_or_default().to_owned();
    let type_id = map.bucket(id).map_or(0, Bucket::bucket_type);
    let type_name = map.type_name(type_id).unwrap_or_default().to_owned();
    let name = item_name(map, id);
    let mut items: Vec<(i32, u32)> =
        map.bucket(id).map(|bucket| bucket.items().collect()).unwrap_or_default();
    // Buckets by name, devices by class and id, as `ceph osd crush tree` has them.
    items.sort_by_cached_key(|(item, _)| match item {
        ..0 => (String::new(), item_name(map, *item), 0),
        _ => (map.device_class(*item).unwrap_or_default().to_owned(), String::new(), *item),
    });
    let children = items.iter().map(|(item, _)| *item).collect();
    lines.push(Line { id, class, weight, depth, type_name, name, children });
    for (item, weight) in items {
        add_lines(map, item, weight, depth + 1, lines);
    }
}

fn item_name(map: &CrushMap, id: i32) -> String {
    let device = || map.devices().find(|(other, _)| *other == id).map(|(_, device)| device.name().to_owned());
    map.bucket(id).map(|bucket| bucket.name().to_owned()).or_else(device).unwrap_or_default()
}

fn write_table(lines: &[Line], out: &mut impl Write) -> io::Result<()> {
    let width = |title: &str, cell: &dyn Fn(&Line) -> usize| {
        lines.iter().map(cell).chain([title.len()]).max().unwrap_or_default()
    };
    let id_width = width("ID", &|line| line.id.to_string().len());
    let class_width = width("CLASS", &|line| line.class.len());
    let weight_width = width("WEIGHT", &|line| decimal(line.weight).len());
    writeln!(out, "{:<id_width$}  {:<class_width$}  {:<weight_width$}  TYPE NAME", "ID", "CLASS", "WEIGHT")?;
    for line in lines {
        let (id, class, weight) = (line.id, &line.class, decimal(line.weight));
        let indent = "    ".repeat(line.depth);
        write!(out, "{id:>id_width$}  {class:>class_width$}  {weight:>weight_width$}  {indent}")?;
        match line.id {
            0.. => writeln!(out, "{}", line.name)?,
            _ => writeln!(out, "{} {}", line.type_name, line.name)?,
        }
    }
    Ok(())
}

fn to_json(map: &CrushMap, lines: &[Line]) -> Value {
    let node = |line: &Line| {
        let type_id = map.type_id(&line.type_name);
        let mut node = json!({
            "id": line.id, "name": line.name, "type": line.type_name, "type_id": type_id,
            "crush_weight": f64::from(line.weight) / f64::from(crush::WEIGHT_ONE), "depth": line.depth,
        });
        match line.id {
            0.. if line.class.is_empty() => {}
            0.. => node["device_class"] = line.class.as_str().into(),
            _ => node["children"] = line.children.clone().into(),
        }
        node
    };
    let placed = map.placed_devices();
    let stray = map.devices().filter(|(id, _)| !placed.contains(id));
    let stray =
        stray.map(|(id, device)| json!({ "id": id, "name": device.name(), "type": map.type_name(0) }));
    json!({ "nodes": lines.iter().map(node).collect::<Vec<_>>(), "stray": stray.collect::<Vec<_>>() })
}

fn decimal(weight: u32) -> String {
    match weight {
        0 => "0".to_owned(),
        _ => format!("{:.5}", f64::from(weight) / f64::from(crush::WEIGHT_ONE)),
    }
}
