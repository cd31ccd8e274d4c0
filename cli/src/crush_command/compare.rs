//! `zabfs crush compare`: the experiment of `docs/PLACEMENT.md`.

use super::map_file::replace_file;
use anyhow::Context;
use crush::compare::{Method, Outcome, run, scenarios};
use std::fmt::Write as _;
use std::io::Write;
use std::path::PathBuf;

/// Arguments of `zabfs crush compare`.
#[derive(Debug, clap::Args)]
pub(crate) struct CompareArgs {
    /// How many devices there are before each change
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(2..=10_000))]
    devices: u32,
    /// How many keys are placed
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    keys: u32,
    /// Draw the movement as an SVG
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// One change with what every method did.
struct Row {
    name: String,
    outcomes: Vec<Outcome>,
}

impl CompareArgs {
    pub(super) fn write(&self, out: &mut impl Write) -> anyhow::Result<()> {
        let mut rows = Vec::new();
        for (equal, weights) in [(true, "equal"), (false, "mixed")] {
            for scenario in scenarios(self.devices, equal) {
                let outcomes = Method::ALL.iter().map(|method| run(*method, &scenario, self.keys));
                let outcomes = outcomes.collect::<Result<Vec<_>, _>>().context("build the map for straw2")?;
                rows.push(Row { name: format!("{}, {weights}", scenario.name), outcomes });
            }
        }
        let (devices, keys) = (self.devices, self.keys);
        writeln!(out, "{devices} devices, {keys} keys; movement as a multiple of the minimum,")?;
        writeln!(out, "the fullest device and the standard deviation as multiples of the share by weight\n")?;
        write!(out, "| change, weights |")?;
        for method in Method::ALL {
            write!(out, " {} moved | fullest | σ |", method.name())?;
        }
        writeln!(out, "\n|---|{}", "---|".repeat(3 * Method::ALL.len()))?;
        for row in &rows {
            write!(out, "| {} |", row.name)?;
            for Outcome { movement, fullest, deviation, .. } in &row.outcomes {
                write!(out, " {movement:.2} | {fullest:.2} | {deviation:.3} |")?;
            }
            writeln!(out)?;
        }
        if let Some(path) = &self.svg {
            let drawn = svg(&rows).context("draw the plot")?;
            replace_file(path, drawn.as_bytes()).with_context(|| format!("write {}", path.display()))?;
        }
        Ok(())
    }
}

const COLOURS: [&str; 4] = ["#1b6ca8", "#d98324", "#4c9a5b", "#8a4fa0"];
const BAR: f64 = 9.0;
const GROUP: f64 = 5.5 * BAR;
const LEFT: f64 = 46.0;
/// The height of one panel, and where its axis ends: bars beyond carry their number.
const PANEL: f64 = 180.0;
const TOP_VALUE: f64 = 3.0;

/// Two panels of grouped bars, one per quantity; a line marks the ideal, 1.
fn svg(rows: &[Row]) -> Result<String, std::fmt::Error> {
    let width = LEFT + GROUP * rows.len() as f64 + 20.0;
    let height = 2.0 * PANEL + 250.0;
    let mut text = String::new();
    writeln!(
        text,
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0}" height="{height:.0}" font-family="sans-serif" font-size="11">"#
    )?;
    writeln!(text, r#"<rect width="100%" height="100%" fill="white"/>"#)?;
    for (index, method) in Method::ALL.iter().enumerate() {
        let x = LEFT + 110.0 * index as f64;
        writeln!(text, r#"<rect x="{x}" y="10" width="10" height="10" fill="{}"/>"#, COLOURS[index])?;
        writeln!(text, r#"<text x="{}" y="19">{}</text>"#, x + 14.0, method.name())?;
    }
    panel(&mut text, rows, 50.0, "moved, multiple of the minimum", |outcome| outcome.movement)?;
    panel(&mut text, rows, 80.0 + PANEL, "fullest device, multiple of its share", |outcome| outcome.fullest)?;
    for (index, row) in rows.iter().enumerate() {
        let (x, y) = (LEFT + GROUP * (index as f64 + 0.4), 95.0 + 2.0 * PANEL);
        writeln!(text, r#"<text transform="translate({x:.1},{y:.1}) rotate(60)">{}</text>"#, row.name)?;
    }
    writeln!(text, "</svg>")?;
    Ok(text)
}

fn panel(
    text: &mut String,
    rows: &[Row],
    top: f64,
    title: &str,
    value: impl Fn(&Outcome) -> f64,
) -> std::fmt::Result {
    let y = |value: f64| top + PANEL * (1.0 - value.min(TOP_VALUE) / TOP_VALUE);
    let right = LEFT + GROUP * rows.len() as f64;
    writeln!(text, r#"<text x="{LEFT}" y="{}">{title}</text>"#, top - 6.0)?;
    for tick in 0..=TOP_VALUE as u32 {
        let at = y(f64::from(tick));
        let colour = if tick == 1 { "#444444" } else { "#dddddd" };
        writeln!(text, r#"<line x1="{LEFT}" x2="{right:.1}" y1="{at:.1}" y2="{at:.1}" stroke="{colour}"/>"#)?;
        writeln!(text, r#"<text x="{}" y="{:.1}" text-anchor="end">{tick}</text>"#, LEFT - 6.0, at + 4.0)?;
    }
    for (group, row) in rows.iter().enumerate() {
        for (index, outcome) in row.outcomes.iter().enumerate() {
            let x = LEFT + GROUP * group as f64 + BAR * (index as f64 + 0.5);
            let (value, colour) = (value(outcome), COLOURS[index % COLOURS.len()]);
            let (at, bar) = (y(value), BAR - 1.0);
            let tall = y(0.0) - at;
            writeln!(
                text,
                r#"<rect x="{x:.1}" y="{at:.1}" width="{bar:.1}" height="{tall:.1}" fill="{colour}"><title>{value:.3}</title></rect>"#
            )?;
            if value > TOP_VALUE {
                let (x, at) = (x + bar / 2.0, at + 12.0);
                writeln!(
                    text,
                    r#"<text x="{x:.1}" y="{at:.1}" font-size="8" text-anchor="middle">{value:.1}</text>"#
                )?;
            }
        }
    }
    Ok(())
}
