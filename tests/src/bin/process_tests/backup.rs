//! A backup made while programs run, all metadata servers destroyed, and the cluster that comes back.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use cluster_tests::harness::{Cluster, Server, Signal, Target, wait_until};
use cluster_tests::workload::bytes;

use crate::Row;
use crate::maintenance::zabfs;
use crate::scene::Scene;

pub(crate) const TESTS: &[Row] =
    &[("backup::a_restored_cluster_serves_what_was_backed_up_and_repeats_nothing", (300, 400), restored)];

const LIMIT: Duration = Duration::from_secs(120);
/// What a restore raises every number by, at least.
const RAISES: u64 = 1 << 40;

/// Sizes of the files: empty, inline, at the inline limit, just above it, a few chunks.
const SIZES: [usize; 8] = [0, 1, 9_000, 16_384, 16_385, 400_000, 4 << 20, 9_500_000];

fn file(dir: &Path, number: usize) -> std::path::PathBuf {
    dir.join("tree").join(format!("f{number}"))
}

fn write_tree(mnt: &Path) -> anyhow::Result<()> {
    fs::create_dir(mnt.join("tree")).context("make the tree")?;
    for (number, size) in SIZES.iter().enumerate() {
        let path = file(mnt, number);
        fs::write(&path, bytes(number as u64, *size)).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn verify_tree(mnt: &Path) -> anyhow::Result<()> {
    for (number, size) in SIZES.iter().enumerate() {
        let path = file(mnt, number);
        let found = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        ensure!(found == bytes(number as u64, *size), "{} differs", path.display());
    }
    Ok(())
}

/// Every metadata server, followers included, shows the file once a quorum was asked.
fn read_from_all(cluster: &Cluster, path: &str, size: usize) -> anyhow::Result<()> {
    for id in 1..=3 {
        let address = cluster.address(Server::metadata(id))?.to_string();
        let stat = ["metadata", "stat", path, "--sync", "--server", &address];
        let said = zabfs(cluster, &stat, LIMIT)?.success()?;
        ensure!(said.contains(&format!("size {size} ")), "metadata server {id} says: {said}");
        ensure!(said.contains(&format!("answered by {address}")), "somebody else answered: {said}");
    }
    Ok(())
}

/// What is refused, and says why.
fn refused(cluster: &Cluster, arguments: &[&str], why: &str) -> anyhow::Result<()> {
    let error = zabfs(cluster, arguments, LIMIT)?.success().err().context("it was not refused")?;
    ensure!(format!("{error:#}").contains(why), "it says {error:#}, not {why:?}");
    Ok(())
}

fn restored(scene: &Scene) -> anyhow::Result<()> {
    let (cluster, mnt) = scene.mounted()?;
    write_tree(&mnt)?;
    scene.bash(60, &format!("sync -f '{}'", mnt.display()))?;
    let backup = scene.scratch("backups")?.join("metadata.zabfs");
    let name = backup.to_str().context("a name")?;
    let said = zabfs(&cluster, &["metadata", "backup", name], LIMIT)?.success()?;
    ensure!(said.contains("is written: revision"), "{said}");
    refused(&cluster, &["metadata", "backup", name], "--force")?;
    zabfs(&cluster, &["metadata", "backup", name, "--verify"], LIMIT)?.success()?;

    // What comes after the backup: gone after the restore, or cut off.
    fs::write(mnt.join("later"), bytes(99, 700_000))?;
    scene.bash(60, &format!("head -c 3000000 /dev/zero >> '{}'", file(&mnt, 6).display()))?;
    scene.bash(60, &format!("sync -f '{}'", mnt.display()))?;
    read_from_all(&cluster, "/later", 700_000)?;
    let before = cluster.status()?;

    for id in 1..=3 {
        cluster.kill(&Target::Server(Server::metadata(id)), Signal::KILL)?;
    }
    refused(&cluster, &["metadata", "restore", name], "--replace")?;
    for id in 1..=3 {
        let dir = cluster.layout().server(&Server::metadata(id).name());
        for entry in fs::read_dir(&dir)?.flatten().filter(|entry| entry.file_name() != "tls") {
            if entry.path().is_dir() {
                fs::remove_dir_all(entry.path())?
            } else {
                fs::remove_file(entry.path())?
            }
        }
    }
    let cut = backup.with_extension("cut");
    fs::write(&cut, &fs::read(&backup)?[..1000])?;
    refused(&cluster, &["metadata", "restore", cut.to_str().context("a name")?], "damaged")?;
    let said = zabfs(&cluster, &["metadata", "restore", name], LIMIT)?.success()?;
    ensure!(said.contains("generation 1"), "{said}");
    for id in 1..=3 {
        cluster.start(Server::metadata(id))?;
    }
    cluster.wait_ready(LIMIT)?;

    let after = cluster.status()?;
    ensure!(after.revision >= before.revision + RAISES, "revision {} repeats", after.revision);
    ensure!(after.map_epoch >= before.map_epoch + RAISES, "map epoch {} repeats", after.map_epoch);
    let fresh = scene.mount(&cluster, "fresh")?;
    verify_tree(&fresh).map_err(|error| cluster.with_logs(error))?;
    ensure!(!fresh.join("later").exists(), "a file of after the backup is there");
    // New files get none of the numbers, and thus none of the bytes, of files that are gone.
    fs::write(fresh.join("later"), bytes(100, 900_000))?;
    scene.bash(60, &format!("truncate -s 5000000 '{}'", fresh.join("sparse").display()))?;
    ensure!(fs::read(fresh.join("later"))? == bytes(100, 900_000), "a new file differs");
    ensure!(fs::read(fresh.join("sparse"))?.iter().all(|byte| *byte == 0), "a hole shows old bytes");
    read_from_all(&cluster, "/later", 900_000)?;
    // The mount of the time before works on, under a session of its own.
    wait_until("the old mount to serve", LIMIT, || verify_tree(&mnt).map_err(|error| format!("{error:#}")))
        .map_err(|timeout| cluster.with_logs(timeout.into()))?;
    fs::write(mnt.join("from the old mount"), b"works")?;
    ensure!(fs::read(fresh.join("from the old mount"))? == b"works", "the mounts differ");
    Ok(())
}
