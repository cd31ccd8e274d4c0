//! The process tests: real programs and real faults on a cluster of real processes.
//!
//! Each test runs in a process of its own, below a directory of its own, with a deadline. However it ends,
//! every mount below that directory is taken out of the tree and every process that it started is ended, by
//! pid. `process-tests` runs the set that CI runs; `--full` takes the sizes and durations of a soak.

mod backup;
mod bit_rot;
mod bounds;
mod coherence;
mod crash;
mod disks;
mod failover;
mod fsck;
mod load;
mod locks;
mod maintenance;
mod membership;
mod pools;
mod power;
mod programs;
mod recovery;
mod scene;
mod security;
mod space;
mod suites;
mod times;

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use cluster_tests::harness::{Cluster, clean_up_cut_disk, detach, log_tails, mounts_below};
use cluster_tests::programs::kill_group;

use scene::Scene;

/// One test.
struct Test {
    /// `module::what_it_shows`
    name: &'static str,
    /// Deadline in seconds: in CI's sizes, in full sizes.
    limit: (u64, u64),
    run: fn(&Scene) -> anyhow::Result<()>,
}

/// Lines of each log that a failure prints.
const TAIL_LINES: usize = 40;

/// In a test's directory: why it failed, in the words of its own process.
const FAILURE: &str = "failure";

/// Where the tests' directories go: on a disk, and short, since the path of a unix socket on a mount below
/// has at most 107 bytes.
const ROOT: &str = "/var/tmp/zabfs-tests";

/// Runs the process tests: real programs and real faults on clusters of real processes.
#[derive(Debug, Parser)]
#[command(name = "process-tests")]
struct Cli {
    /// Run only tests whose name contains one of these
    filters: Vec<String>,
    /// Only print the names
    #[arg(long)]
    list: bool,
    /// The sizes and durations of a soak instead of those of CI
    #[arg(long)]
    full: bool,
    /// Seed of every random choice
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Keep the directories of tests that pass, too
    #[arg(long)]
    keep: bool,
    /// Where the tests' directories go; without it, /var/tmp/zabfs-tests
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Run the one test of exactly this name in this process (what each test's own process is told)
    #[arg(long, hide = true)]
    only: Option<String>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let tests = all();
    match &cli.only {
        Some(name) => run_here(&tests, name, &cli),
        None => run_all(&tests, &cli),
    }
}

fn all() -> Vec<Test> {
    [
        programs::TESTS,
        suites::TESTS,
        coherence::TESTS,
        times::TESTS,
        locks::TESTS,
        security::TESTS,
        bounds::TESTS,
        bit_rot::TESTS,
        crash::TESTS,
        disks::TESTS,
        maintenance::TESTS,
        pools::TESTS,
        recovery::TESTS,
        membership::TESTS,
        backup::TESTS,
        fsck::TESTS,
        space::TESTS,
        failover::TESTS,
        power::TESTS,
    ]
    .into_iter()
    .flatten()
    .map(|(name, limit, run)| Test { name, limit: *limit, run: *run })
    .collect()
}

/// A row of a module's table: name, deadlines in seconds (CI, full), the test.
type Row = (&'static str, (u64, u64), fn(&Scene) -> anyhow::Result<()>);

/// The body of a test's own process.
fn run_here(tests: &[Test], name: &str, cli: &Cli) -> ExitCode {
    let Some((test, dir)) = tests.iter().find(|test| test.name == name).zip(cli.dir.as_ref()) else {
        eprintln!("there is no test {name}, or it has no --dir");
        return ExitCode::FAILURE;
    };
    let scene = Scene::new(dir, cli.full, cli.seed);
    match (test.run)(&scene) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let text = format!("{error:#}");
            // If it cannot be written, stderr has it still.
            let _ = fs::write(dir.join(FAILURE), &text);
            eprintln!("{text}");
            ExitCode::FAILURE
        }
    }
}

fn run_all(tests: &[Test], cli: &Cli) -> ExitCode {
    let chosen = tests.iter().enumerate().filter(|(_, test)| {
        cli.filters.is_empty() || cli.filters.iter().any(|filter| test.name.contains(filter.as_str()))
    });
    if cli.list {
        chosen.for_each(|(_, test)| println!("{}", test.name));
        return ExitCode::SUCCESS;
    }
    let root = cli.dir.clone().unwrap_or_else(|| PathBuf::from(ROOT));
    let (mut passed, mut failed) = (0, Vec::new());
    for (number, test) in chosen {
        let start = Instant::now();
        let result = run_guarded(test, cli, &root.join(directory_name(number, test)));
        let seconds = start.elapsed().as_secs_f64();
        match result {
            Ok(()) => {
                passed += 1;
                println!("test {} ... ok ({seconds:.1} s)", test.name);
            }
            Err(error) => {
                failed.push((test.name, error.root_cause().to_string()));
                println!("test {} ... FAILED ({seconds:.1} s)\n{error:#}\n", test.name);
            }
        }
    }
    for (name, cause) in &failed {
        println!("failed: {name}: {cause}");
    }
    let verdict = if failed.is_empty() { "ok" } else { "FAILED" };
    println!("test result: {verdict}. {passed} passed; {} failed", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Short and distinct: the test's number and module.
fn directory_name(number: usize, test: &Test) -> String {
    format!("{:02}-{}", number + 1, test.name.split("::").next().unwrap_or_default())
}

/// Runs a test in a process of its own, and leaves nothing of it behind.
fn run_guarded(test: &Test, cli: &Cli, dir: &Path) -> anyhow::Result<()> {
    clean_up(dir)?;
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("remove {}", dir.display()))?;
    }
    fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    let result = run_child(test, cli, dir);
    let tails = if result.is_err() { cluster_logs(dir) } else { String::new() };
    clean_up(dir)?;
    match result {
        Ok(()) => {
            if !cli.keep {
                fs::remove_dir_all(dir).with_context(|| format!("remove {}", dir.display()))?;
            }
            Ok(())
        }
        Err(error) => Err(error.context(format!("{tails}everything is kept in {}", dir.display()))),
    }
}

fn run_child(test: &Test, cli: &Cli, dir: &Path) -> anyhow::Result<()> {
    let limit = Duration::from_secs(if cli.full { test.limit.1 } else { test.limit.0 });
    let own = std::env::current_exe().context("find this program")?;
    let mut command = Command::new(own);
    command.args(["--only", test.name, "--seed", &cli.seed.to_string(), "--dir"]).arg(dir);
    if cli.full {
        command.arg("--full");
    }
    // A backtrace says nothing about a failure of the programs under test.
    let mut child = command.env("RUST_BACKTRACE", "0").process_group(0).spawn().context("start the test")?;
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().context("look after the test")? {
            if status.success() {
                return Ok(());
            }
            let text = fs::read_to_string(dir.join(FAILURE));
            anyhow::bail!("{}", text.unwrap_or_else(|_| format!("the test ended with {status}")));
        }
        if Instant::now() >= deadline {
            kill_group(i32::try_from(child.id()).context("a pid fits into 31 bits")?);
            anyhow::bail!("the test did not end within {limit:?}");
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Ends every process of every cluster in `dir` and takes every mount below it out of the tree.
fn clean_up(dir: &Path) -> anyhow::Result<()> {
    for cluster in clusters(dir) {
        cluster.abandon()?;
    }
    clean_up_cut_disk(dir)?;
    for mountpoint in mounts_below(dir).into_iter().rev() {
        detach(&mountpoint)?;
    }
    Ok(())
}

fn cluster_logs(dir: &Path) -> String {
    clusters(dir).iter().map(|cluster| log_tails(&cluster.layout().logs(), TAIL_LINES)).collect()
}

fn clusters(dir: &Path) -> Vec<Cluster> {
    // A mount whose servers are gone does not even tell whether it holds a cluster.
    let mounts = mounts_below(dir);
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found: Vec<PathBuf> = entries.filter(|path| !mounts.contains(path)).collect();
    found.sort();
    found.iter().filter_map(|path| Cluster::open(path).ok()).collect()
}
