//! `zabfs crush bench`: mappings per second of one map.

use super::map_file::MapSource;
use anyhow::bail;
use crush::Scratch;
use std::hint::black_box;
use std::io::Write;
use std::time::Instant;

/// Arguments of `zabfs crush bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    source: MapSource,
    /// Number of the rule
    #[arg(long, default_value_t = 0)]
    rule: u32,
    /// How many devices to ask for
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=i64::from(crush::CHOOSE_NUM_MAX)))]
    num_rep: u32,
    /// How many inputs to map
    #[arg(long, default_value_t = 1_000_000)]
    inputs: u32,
}

impl BenchArgs {
    pub(super) fn write(&self, out: &mut impl Write) -> anyhow::Result<()> {
        let map = self.source.read()?;
        if map.rule(self.rule).is_none() {
            bail!("the map has no rule {}; `zabfs crush rule list` prints those it has", self.rule);
        }
        let weights = super::reweights(&map, &[])?;
        let (mut scratch, mut devices) = (Scratch::default(), Vec::with_capacity(self.num_rep as usize));
        let start = Instant::now();
        for x in 0..self.inputs {
            map.do_rule(self.rule, black_box(x), self.num_rep as usize, &weights, &mut scratch, &mut devices);
            black_box(&devices);
        }
        let seconds = start.elapsed().as_secs_f64();
        let rate = f64::from(self.inputs) / seconds;
        writeln!(out, "{} mappings in {seconds:.3} s: {rate:.0}/s", self.inputs)?;
        Ok(())
    }
}
