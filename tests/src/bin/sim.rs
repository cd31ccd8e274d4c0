//! Lives through simulated worlds of whole metadata clusters, one per seed.
//!
//! ```text
//! sim --seed 42                    one world, two simulated minutes at least
//! sim --seed 42 --hours 5          the same for longer
//! sim --seeds 0..1000              many
//! sim --seed 42 --trace            every line of what happens
//! ```

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use cluster_tests::sim::{self, Counts, Decided, TraceMode};

/// Simulates whole metadata clusters from a seed: one seed is one world.
#[derive(Debug, Parser)]
#[command(name = "sim")]
struct Cli {
    /// The world
    #[arg(long, default_value_t = 0, conflicts_with = "seeds")]
    seed: u64,
    /// Several worlds, one after the other: FIRST..END, END excluded
    #[arg(long, value_name = "FIRST..END")]
    seeds: Option<String>,
    /// Simulated hours of each world
    #[arg(long, default_value_t = 0.03)]
    hours: f64,
    /// No new world begins after so many seconds of real time
    #[arg(long, value_name = "SECONDS")]
    stop_after: Option<u64>,
    /// Print what happens
    #[arg(long)]
    trace: bool,
    /// Print which message met which phase
    #[arg(long)]
    coverage: bool,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("sim: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<bool> {
    let (first, end) = match &cli.seeds {
        None => (cli.seed, cli.seed + 1),
        Some(text) => {
            let (first, end) = text.split_once("..").context("--seeds is FIRST..END, such as 0..100")?;
            (first.parse().context("the first seed")?, end.parse().context("the end of the seeds")?)
        }
    };
    let mode = if cli.trace { TraceMode::Print } else { TraceMode::Off };
    let is_one = end == first + 1;
    let (begun, cpu_begun) = (Instant::now(), cpu_time());
    let (mut total, mut decided, mut simulated_ms, mut worlds) =
        (Counts::default(), Decided::default(), 0, 0);
    let mut is_good = true;
    for seed in first..end {
        if cli.stop_after.is_some_and(|limit| begun.elapsed() >= Duration::from_secs(limit)) {
            break;
        }
        match sim::run(seed, (cli.hours * 3_600_000.0) as u64, mode) {
            Ok(report) => {
                if is_one {
                    println!("seed {seed}: digest {:016x}", report.digest);
                }
                worlds += 1;
                simulated_ms += report.simulated_ms;
                decided.linearizable += report.decided.linearizable;
                decided.undecided += report.decided.undecided;
                decided.calls += report.decided.calls;
                total.add(&report.counts);
            }
            Err(failure) => {
                println!("{failure}");
                println!(
                    "again: cargo run --release -p cluster-tests --bin sim -- --seed {seed} --hours {}",
                    cli.hours
                );
                is_good = false;
                break;
            }
        }
    }
    summary(&total, decided, simulated_ms, worlds, begun.elapsed(), cpu_time().saturating_sub(cpu_begun));
    if cli.coverage {
        println!("{}", total.coverage.table());
    }
    Ok(is_good)
}

/// Processor time of this process so far, as the kernel counts it in hundredths of a second.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name may hold blanks; it ends with the last parenthesis.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    Duration::from_millis(fields.filter_map(|field| field.parse::<u64>().ok()).sum::<u64>() * 10)
}

fn summary(total: &Counts, decided: Decided, simulated_ms: u64, worlds: u64, took: Duration, cpu: Duration) {
    let hours = simulated_ms as f64 / 3_600_000.0;
    let per_minute = |time: Duration| hours / (time.as_secs_f64().max(0.01) / 60.0);
    println!(
        "{worlds} worlds, {hours:.2} simulated hours in {:.1} s and {:.1} s of one core: {:.1} simulated hours per \
         minute, {:.1} per minute of the core",
        took.as_secs_f64(),
        cpu.as_secs_f64(),
        per_minute(took),
        per_minute(cpu)
    );
    println!(
        "{} events, {} faults, {} starts, {} leaders, {} proposals, {} committed, {} checkpoints, {} snapshots installed, {} changes \
         of the membership",
        total.steps,
        total.faults,
        total.boots,
        total.leaders,
        total.proposals,
        total.committed,
        total.checkpoints,
        total.installs,
        total.changes
    );
    println!(
        "{} answers, {} locks granted, {} times deferred, {} sessions ended, {} trims; histories: {} linearizable, {} undecided, {} calls",
        total.answers,
        total.grants,
        total.deferred,
        total.ended,
        total.trims,
        decided.linearizable,
        decided.undecided,
        decided.calls
    );
    println!("{} pairs of message and phase", total.coverage.pairs());
}
