//! Conformance suites: pjdfstest and fsx.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use cluster_tests::programs::{self, workspace};

use crate::Row;
use crate::programs::tool;
use crate::scene::Scene;

pub(crate) const TESTS: &[Row] = &[
    ("suites::pjdfstest_passes_but_for_the_listed_cases", (300, 300), pjdfstest),
    ("suites::fsx_20000_operations", (400, 1200), fsx),
];

/// Asks pathconf for LINK_MAX, which glibc answers from a table of file system types that has no row for FUSE.
const SKIPPED_ON_ANY_FUSE: &str = "link::link_count_max";

/// The verdicts of a run.
#[derive(Debug, Default)]
struct Verdicts {
    passed: usize,
    failed: BTreeSet<String>,
    skipped: BTreeSet<String>,
}

fn pjdfstest(scene: &Scene) -> anyhow::Result<()> {
    let (_cluster, mnt) = scene.mounted()?;
    let local = run_pjdfstest(scene, &scene.scratch("local")?).context("on the local disk")?;
    let ours = run_pjdfstest(scene, &mnt).context("on the mount")?;
    println!(
        "pjdfstest: {} passed, {} failed, {} skipped",
        ours.passed,
        ours.failed.len(),
        ours.skipped.len()
    );
    let expected = expected_failures()?;
    let unexpected: Vec<&String> = ours.failed.difference(&expected).collect();
    ensure!(unexpected.is_empty(), "{} cases fail that are not listed: {unexpected:#?}", unexpected.len());
    let cured: Vec<&String> = expected.difference(&ours.failed).collect();
    ensure!(cured.is_empty(), "these pass now; take them off tests/pjdfstest-expected.txt: {cured:#?}");
    let mut skipped: Vec<&String> = ours.skipped.difference(&local.skipped).collect();
    skipped.retain(|name| *name != SKIPPED_ON_ANY_FUSE);
    ensure!(skipped.is_empty(), "cases that the local disk does not skip are skipped: {skipped:#?}");
    let total = |verdicts: &Verdicts| verdicts.passed + verdicts.failed.len() + verdicts.skipped.len();
    ensure!(total(&ours) == total(&local), "{} cases ran, {} on the disk", total(&ours), total(&local));
    Ok(())
}

fn run_pjdfstest(scene: &Scene, path: &Path) -> anyhow::Result<Verdicts> {
    let config = scene.dir().join("pjdfstest.toml");
    fs::write(&config, PJDFSTEST_CONFIG).context("write the configuration of pjdfstest")?;
    let mut command = Command::new(tool("pjdfstest")?);
    command.arg("-c").arg(&config).arg("-p").arg(path).args(["-s", "/dev/shm"]);
    // Its exit status says whether anything failed; which cases is in what it prints.
    let output = programs::run(&mut command, Duration::from_secs(240))?;
    let text = format!("{}{}", output.stdout, output.stderr);
    fs::write(scene.dir().join("pjdfstest.out"), &text).context("keep the output of pjdfstest")?;
    let mut verdicts = Verdicts::default();
    for line in text.lines() {
        match line.split_once(char::is_whitespace).map(|(name, rest)| (name, rest.trim())) {
            Some((_, "ok")) => verdicts.passed += 1,
            Some((name, "FAILED")) => drop(verdicts.failed.insert(name.to_owned())),
            Some((name, "skipped")) => drop(verdicts.skipped.insert(name.to_owned())),
            _ => {}
        }
    }
    let last = text.lines().rev().find(|line| !line.is_empty()).unwrap_or_default();
    ensure!(last.starts_with("Summary:"), "pjdfstest did not reach its summary:\n{text}");
    ensure!(
        last.contains(&format!("{} failed", verdicts.failed.len())),
        "counted {} failures, pjdfstest says {last}",
        verdicts.failed.len()
    );
    Ok(verdicts)
}

const PJDFSTEST_CONFIG: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
stat_st_birthtime = {}
[settings]
naptime = 0.01
allow_remount = false
expected_failures = []
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

/// The cases that `docs/SEMANTICS.md` explains.
fn expected_failures() -> anyhow::Result<BTreeSet<String>> {
    let path = workspace().join("tests/pjdfstest-expected.txt");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(lines.map(str::to_owned).collect())
}

fn fsx(scene: &Scene) -> anyhow::Result<()> {
    let (_cluster, mnt) = scene.mounted()?;
    let config = scene.dir().join("fsx.toml");
    fs::write(&config, FSX_CONFIG).context("write the configuration of fsx")?;
    // A small file stays inline for long, a large one crosses chunks of 4 MiB.
    for (name, flen, operations) in
        [("small", 200_000, 20_000), ("large", 12_000_000, scene.size(3_000, 20_000))]
    {
        let with_length = scene.dir().join(format!("fsx-{name}.toml"));
        fs::write(&with_length, format!("flen = {flen}\n{FSX_CONFIG}"))
            .context("write fsx's configuration")?;
        let mut command = Command::new(tool("fsx")?);
        command.arg("-f").arg(&with_length).args(["-N", &operations.to_string()]);
        command.args(["-S", &scene.seed().to_string(), "-P"]).arg(scene.dir()).arg(mnt.join(name));
        let output = programs::run(&mut command, Duration::from_secs(scene.size(180, 560)))?;
        output.success().with_context(|| format!("fsx on the {name} file"))?;
    }
    Ok(())
}

/// No shared mappings, whose coherence is not promised yet.
const FSX_CONFIG: &str = r#"
[opsize]
max = 65536
[weights]
close_open = 1.0
mapread = 0.0
mapwrite = 0.0
read = 5.0
write = 5.0
truncate = 2.0
fsync = 0.3
fdatasync = 0.3
posix_fallocate = 0.5
punch_hole = 0.5
sendfile = 0.5
copy_file_range = 0.5
"#;
