//! Servers fill up: who is full says so and refuses what needs space, and deletion frees it.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use cluster_tests::harness::{Cluster, Options, Settings, wait_until};
use cluster_tests::workload::bytes;

use crate::Row;
use crate::maintenance::zabfs;
use crate::scene::Scene;

pub(crate) const TESTS: &[Row] =
    &[("space::full_servers_refuse_what_needs_space_and_deletion_frees_it", (180, 240), full)];

const LIMIT: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;
const CAPACITY: u64 = 400 * MIB;
/// From here on servers are full: a quarter.
const FULL: u64 = 100 * MIB;
const FILE: u64 = 10 * MIB;

/// Bytes of the file system and free ones, as df(1) says.
fn df(scene: &Scene, mnt: &Path) -> anyhow::Result<(u64, u64)> {
    let said = scene.bash(30, &format!("df -B1 --output=size,avail '{}' | tail -1", mnt.display()))?;
    let mut numbers = said.split_whitespace().map(str::parse);
    let mut number = || anyhow::Ok(numbers.next().context("df says too little")??);
    Ok((number()?, number()?))
}

fn wait_for_text(cluster: &Cluster, what: &str, wanted: bool) -> anyhow::Result<()> {
    wait_until(&format!("the status to say {what:?}: {wanted}"), LIMIT, || {
        let said = zabfs(cluster, &["status"], LIMIT).and_then(|ran| ran.success());
        match said {
            Ok(said) if said.contains(what) == wanted => Ok(()),
            Ok(said) => Err(said),
            Err(error) => Err(format!("{error:#}")),
        }
    })?;
    Ok(())
}

fn full(scene: &Scene) -> anyhow::Result<()> {
    let cluster = scene.cluster_with(&Options {
        settings: Settings { capacity: Some(CAPACITY), ..Settings::default() },
        ..Options::default()
    })?;
    let mnt = scene.mount(&cluster, "mnt")?;
    let set = |which: &str, ratio: &str| zabfs(&cluster, &["data", which, ratio], LIMIT)?.success();
    ensure!(set("set-full-ratio", "1.5").is_err(), "a ratio above 1 was taken");
    set("set-nearfull-ratio", "0.1")?;
    set("set-full-ratio", "0.25")?;
    wait_until("df to show what can be written", LIMIT, || match df(scene, &mnt) {
        Ok((size, free)) if size.abs_diff(FULL) < 2 * MIB && free.abs_diff(FULL) < 2 * MIB => Ok(()),
        other => Err(format!("{other:?}, not {FULL}")),
    })?;

    let write = |number: u64| fs::write(mnt.join(format!("f{number}")), bytes(number, FILE as usize));
    for number in 0..5 {
        write(number)?;
    }
    wait_for_text(&cluster, "is nearly full", true)?;
    wait_until("df to show what was written", LIMIT, || match df(scene, &mnt) {
        Ok((size, free)) if (size - free).abs_diff(5 * FILE) < MIB => Ok(()),
        other => Err(format!("{other:?}, and {} are written", 5 * FILE)),
    })?;
    let refused = (5..30).find_map(|number| write(number).err()).context("nothing was refused")?;
    ensure!(refused.raw_os_error() == Some(28), "{refused}, not ENOSPC");
    wait_for_text(&cluster, "is full (", true)?;
    let json = zabfs(&cluster, &["status", "--json"], LIMIT)?.success()?;
    ensure!(json.contains("\"warnings\": [\n    \"data server"), "{json}");

    // What needs no space goes on.
    let file = OpenOptions::new().write(true).open(mnt.join("f0"))?;
    file.write_all_at(&[7; 65_536], 4_096)?;
    file.sync_all()?;
    fs::write(mnt.join("small"), b"in the namespace")?;

    for number in 0..30 {
        match fs::remove_file(mnt.join(format!("f{number}"))) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    wait_for_text(&cluster, "is nearly full", false)?;
    wait_for_text(&cluster, "is full (", false)?;
    wait_until("df to show that everything is free", LIMIT, || match df(scene, &mnt) {
        Ok((size, free)) if free.abs_diff(FULL) < 2 * MIB && size - free < MIB => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    write(0).context("after the deletions")?;
    Ok(())
}
