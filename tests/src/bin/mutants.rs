//! Brings known bugs back, one at a time, and sees whether the tests notice.
//!
//! ```text
//! mutants                    all of them
//! mutants NAME...            those whose name contains a NAME, or whose lesson does: "data" are those of file contents
//! mutants --list             what there is
//! ```
//!
//! One build with the feature `mutants` serves all; a bug is chosen by an environment variable. Everything is seeded, so
//! that what is noticed once is always noticed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Parser;
use cluster_tests::harness::wait_until;
use cluster_tests::mutants::{Mutant, Suite, all};

/// Worlds of whole clusters.
const SIM_SEEDS: &str = "500000..500080";
/// Worlds of zab alone.
const ZAB_RUNS: &str = "3000";
/// Worlds whose steps are compared with the model's.
const MODEL_RUNS: &str = "200";
/// A suite that takes longer than this has found an endless loop, if it does not without the bug.
const SUITE_LIMIT: Duration = Duration::from_secs(400);

/// Brings known bugs back, one at a time, and sees whether the tests notice.
#[derive(Debug, Parser)]
#[command(name = "mutants")]
struct Cli {
    /// Only mutants whose name or lesson contains one of these
    names: Vec<String>,
    /// Print names, lessons and what is broken
    #[arg(long)]
    list: bool,
    /// Ask every suite about every mutant, instead of the first that should notice
    #[arg(long)]
    every_suite: bool,
}

const SUITES: [Suite; 10] = [
    Suite::Paper,
    Suite::Core,
    Suite::Units,
    Suite::Namespace,
    Suite::ZabSim,
    Suite::Model,
    Suite::Sim,
    Suite::Client,
    Suite::Chunks,
    Suite::Groups,
];
/// Worlds of a placement group, for its main test.
const GROUP_SEEDS: &str = "1200";

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("mutants: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<bool> {
    let is_chosen = |mutant: &&Mutant| {
        let fits =
            |name: &String| mutant.name.contains(name.as_str()) || mutant.lesson.contains(name.as_str());
        cli.names.is_empty() || cli.names.iter().any(fits)
    };
    let chosen: Vec<&Mutant> = all().filter(is_chosen).collect();
    if cli.list {
        chosen.iter().for_each(|m| println!("{:<36} {:<16} {}", m.name, m.lesson, m.broken));
        return Ok(true);
    }
    if chosen.is_empty() {
        bail!("no mutant has such a name; --list prints them");
    }
    let programs = build(&chosen, cli.every_suite)?;
    let suites = |mutant: &Mutant| if cli.every_suite { SUITES.to_vec() } else { mutant.suites.to_vec() };
    let mut sound = BTreeSet::new();
    let mut survivors = Vec::new();
    println!("{:<36} {:<16} {:<10} {:>6}  what", "mutant", "lesson", "killed by", "s");
    for mutant in chosen {
        let (mut killers, mut took) = (Vec::new(), Duration::ZERO);
        for suite in suites(mutant) {
            if sound.insert(suite)
                && let Some(what) = ask(&programs, suite, "")?
            {
                bail!("{suite:?} fails without any bug brought back: {what}");
            }
            let begun = Instant::now();
            let noticed = ask(&programs, suite, mutant.name)?;
            took += begun.elapsed();
            let is_last = noticed.is_some() && !cli.every_suite;
            killers.extend(noticed.map(|what| (suite, what)));
            if is_last {
                break;
            }
        }
        let names: Vec<String> = killers.iter().map(|(suite, _)| format!("{suite:?}")).collect();
        let names = if names.is_empty() { "NOBODY".to_owned() } else { names.join(" ") };
        let what = killers.first().map_or(mutant.broken, |(_, what)| what);
        let seconds = took.as_secs_f64();
        println!("{:<36} {:<16} {names:<10} {seconds:>6.1}  {what}", mutant.name, mutant.lesson);
        if killers.is_empty() {
            survivors.push(mutant.name);
        }
    }
    if !survivors.is_empty() {
        println!("survived: {}", survivors.join(", "));
    }
    Ok(survivors.is_empty())
}

/// Programs by package and target.
type Programs = BTreeMap<(String, String), PathBuf>;

/// Builds the suites that are needed, once.
fn build(chosen: &[&Mutant], every_suite: bool) -> anyhow::Result<Programs> {
    let needs = |of_data: bool| {
        every_suite || chosen.iter().flat_map(|m| m.suites).any(|suite| suite.is_of_data() == of_data)
    };
    let mut programs = Programs::new();
    if needs(false) {
        programs.extend(compile(&["build", "--bin", "sim"], METADATA)?);
        let tests = ["sim", "paper", "model", "namespace_model", "core"];
        let arguments = ["test", "--no-run", "--lib"].into_iter();
        let tests: Vec<&str> = arguments.chain(tests.iter().flat_map(|test| ["--test", test])).collect();
        programs.extend(compile(&tests, METADATA)?);
    }
    if needs(true) {
        programs.extend(compile(&["test", "--no-run", "--lib"], DATA)?);
    }
    Ok(programs)
}

/// Packages with their switches. Always the same together, so that nothing is compiled twice.
const METADATA: &[&str] =
    &["-p", "zab", "-p", "metadata-server", "-p", "cluster-tests", "--features", "zab/mutants"];
const DATA: &[&str] = &["-p", "data-server", "-p", "fs-client", "--features", "protocol/mutants"];

/// Compiles packages with the switches.
fn compile(arguments: &[&str], packages: &[&str]) -> anyhow::Result<Programs> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let built = Command::new(cargo)
        .args(arguments)
        .args(["--release", "--locked", "--message-format=json-render-diagnostics"])
        .args(packages)
        .stderr(Stdio::inherit())
        .output()
        .context("cargo cannot be started")?;
    if !built.status.success() {
        bail!("the suites do not build");
    }
    let mut programs = Programs::new();
    for line in String::from_utf8_lossy(&built.stdout).lines() {
        let Ok(message) = serde_json::from_str::<serde_json::Value>(line) else { continue };
        let Some(program) = message["executable"].as_str() else { continue };
        let manifest = message["manifest_path"].as_str().unwrap_or_default();
        let package = manifest.rsplit('/').nth(1).unwrap_or_default().to_owned();
        let is_test = message["profile"]["test"].as_bool() == Some(true);
        let kind = if is_test { "test" } else { "bin" };
        let target = format!("{kind} {}", message["target"]["name"].as_str().unwrap_or_default());
        programs.insert((package, target), PathBuf::from(program));
    }
    Ok(programs)
}

/// Runs a suite with a bug. Says how it failed, if it did.
fn ask(programs: &Programs, suite: Suite, mutant: &str) -> anyhow::Result<Option<String>> {
    let (package, target, arguments): (_, _, &[&str]) = match suite {
        Suite::Sim => ("tests", "bin sim", &["--seeds", SIM_SEEDS]),
        Suite::ZabSim => ("zab", "test sim", &["seeds"]),
        Suite::Paper => ("zab", "test paper", &[]),
        Suite::Model => ("zab", "test model", &["what_real"]),
        Suite::Core => ("metadata-server", "test core", &[]),
        Suite::Namespace => ("metadata-server", "test namespace_model", &[]),
        Suite::Units => ("metadata-server", "test metadata_server", &[]),
        Suite::Groups => ("data-server", "test data_server", &["pg::"]),
        Suite::Chunks => ("data-server", "test data_server", &["store::"]),
        Suite::Client => ("fs-client", "test fs_client", &[]),
    };
    let key = (package.to_owned(), target.to_owned());
    let program = programs.get(&key).with_context(|| format!("{target} of {package} was not built"))?;
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("tests/ lies in the workspace")?;
    let output = tempfile::NamedTempFile::new().context("no temporary file")?;
    let runs = if suite == Suite::Model { MODEL_RUNS } else { ZAB_RUNS };
    let mut child = Command::new(program)
        .args(arguments)
        .env(zab::mutant::VARIABLE, mutant)
        .env("ZAB_RUNS", runs)
        .env("SEEDS", GROUP_SEEDS)
        .env("PROPTEST_RNG_SEED", "1")
        .env("PROPTEST_MAX_SHRINK_ITERS", "0")
        .env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "1")
        .env("RUST_BACKTRACE", "0")
        .current_dir(directory.join(package))
        .stdout(output.reopen()?)
        .stderr(output.reopen()?)
        .spawn()
        .with_context(|| format!("{} cannot be started", program.display()))?;
    let ended =
        wait_until("the end of a suite", SUITE_LIMIT, || child.try_wait().ok().flatten().ok_or("it runs"));
    let Ok(status) = ended else {
        child.kill().context("it cannot be ended")?;
        child.wait()?;
        return Ok(Some(format!("no end within {} s", SUITE_LIMIT.as_secs())));
    };
    if status.success() {
        return Ok(None);
    }
    let text = String::from_utf8_lossy(&std::fs::read(output.path())?).into_owned();
    Ok(Some(symptom(&text)))
}

/// The line that says what went wrong.
fn symptom(text: &str) -> String {
    let lines = || text.lines().map(str::trim);
    let seed =
        lines().find(|line| line.starts_with("seed ") && line.contains(": ") && !line.contains("digest"));
    let failed = lines().find(|line| line.starts_with("test ") && line.ends_with("FAILED"));
    let panicked = lines().find(|line| line.contains("panicked at"));
    let line = seed.or(failed).or(panicked).unwrap_or("it ended with an error");
    line.chars().take(140).collect()
}
