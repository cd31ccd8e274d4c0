//! `zabfs crush balance`: overrides that bring the fullest devices down to their share.

use super::map_file::MapSource;
use anyhow::{Context, bail};
use crush::balance::{Fullness, GROUPS_MAX, Overrides, Request, plan};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Arguments of `zabfs crush balance`.
#[derive(Debug, clap::Args)]
pub(crate) struct BalanceArgs {
    #[command(flatten)]
    source: MapSource,
    /// Name or number of the rule
    #[arg(long)]
    rule: String,
    /// How many placement groups the pool has
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(GROUPS_MAX)))]
    pg_num: u32,
    /// How many replicas each has
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(crush::CHOOSE_NUM_MAX)))]
    num_rep: u32,
    /// The number of the pool, which enters the inputs of the rule
    #[arg(long, default_value_t = 1)]
    pool: u32,
    /// Bound on the replicas that move
    #[arg(long, default_value_t = 1000)]
    max_moves: usize,
    /// How far above its share, in percent, the fullest device may stay
    #[arg(long, default_value_t = 5.0)]
    tolerance: f64,
    /// Overrides in force: the output of an earlier run
    #[arg(long, value_name = "FILE")]
    overrides: Option<PathBuf>,
    /// Reweight a device, from 0 (out) to 1 (fully in); may be repeated
    #[arg(long, value_name = "ID:W", value_parser = super::reweight)]
    weight: Vec<(i32, u32)>,
}

impl BalanceArgs {
    /// Prints the figures as comments and every override as "GROUP FROM TO", so that the output can be read back.
    pub(super) fn write(&self, out: &mut impl Write) -> anyhow::Result<()> {
        let map = self.source.read()?;
        let rule = map.rule_id(&self.rule).or_else(|| self.rule.parse().ok());
        let rule = rule.with_context(|| format!("the map has no rule `{}`", self.rule))?;
        let weights = super::reweights(&map, &self.weight)?;
        let overrides = self.overrides.as_deref().map(read_overrides).transpose()?.unwrap_or_default();
        if !self.tolerance.is_finite() || self.tolerance < 0.0 {
            bail!("a tolerance of {} percent makes no sense; give 0 or more", self.tolerance);
        }
        let result = plan(&Request {
            map: &map,
            rule,
            pool: self.pool,
            pg_num: self.pg_num,
            num_rep: self.num_rep as usize,
            weights: &weights,
            overrides: &overrides,
            moves_max: self.max_moves,
            tolerance: self.tolerance / 100.0,
        })?;
        write_fullness("before", result.before, out)?;
        write_fullness("after", result.after, out)?;
        let replicas = u64::from(self.pg_num) * u64::from(self.num_rep);
        writeln!(out, "# {} of {replicas} replicas move", result.moves.len())?;
        for (group, pairs) in &result.overrides {
            for (from, to) in pairs {
                writeln!(out, "{group} {from} {to}")?;
            }
        }
        Ok(())
    }
}

fn write_fullness(when: &str, fullness: Fullness, out: &mut impl Write) -> io::Result<()> {
    let Fullness { fullest, emptiest, deviation } = fullness;
    writeln!(
        out,
        "# {when}: fullest {fullest:.3}, emptiest {emptiest:.3} of the share by weight, deviation {deviation:.3}"
    )
}

fn read_overrides(path: &Path) -> anyhow::Result<Overrides> {
    let text = fs::read_to_string(path).with_context(|| format!("read the overrides {}", path.display()))?;
    let mut overrides = Overrides::new();
    for (number, line) in (1..).zip(text.lines()) {
        let words: Vec<&str> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
        let parsed = match words[..] {
            [] => continue,
            [group, from, to] => group.parse().ok().zip(from.parse().ok().zip(to.parse().ok())),
            _ => None,
        };
        let (group, pair) = parsed.with_context(|| {
            format!("{}, line {number}: an override is three numbers, GROUP FROM TO", path.display())
        })?;
        overrides.entry(group).or_default().push(pair);
    }
    Ok(overrides)
}
