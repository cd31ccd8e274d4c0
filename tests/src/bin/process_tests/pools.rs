//! Pools are made, changed and removed while files in them are written.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use cluster_tests::harness::{Cluster, Options, Server, Signal, Target, wait_until};
use cluster_tests::workload::bytes;

use crate::Row;
use crate::load::Load;
use crate::maintenance::{deep_scrub, zabfs};
use crate::scene::Scene;

pub(crate) const TESTS: &[Row] = &[
    ("pools::a_pool_changes_under_load_while_a_data_server_dies", (240, 400), changes_under_load),
    ("pools::a_pool_gets_more_groups_under_load_while_a_data_server_dies", (240, 400), splits_under_load),
];

const HEAL_LIMIT: Duration = Duration::from_secs(120);

fn order(cluster: &Cluster, words: &str) -> anyhow::Result<String> {
    let arguments: Vec<&str> = ["pool"].into_iter().chain(words.split(' ')).collect();
    zabfs(cluster, &arguments, HEAL_LIMIT)?.success().with_context(|| format!("zabfs pool {words}"))
}

fn refusal(cluster: &Cluster, words: &str, why: &str) -> anyhow::Result<()> {
    let arguments: Vec<&str> = ["pool"].into_iter().chain(words.split(' ')).collect();
    let refused = zabfs(cluster, &arguments, HEAL_LIMIT)?.success();
    let text = refused.err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(text.contains(why), "'zabfs pool {words}' should say '{why}', and says '{text}'");
    Ok(())
}

/// `zabfs.pool` of a file or directory.
#[allow(unsafe_code, reason = "getxattr has no safe wrapper here")]
fn pool_of(path: &Path) -> io::Result<String> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut value = [0_u8; 256];
    // SAFETY: both strings end with a zero byte, and the buffer is as long as said.
    let length = unsafe {
        libc::getxattr(path.as_ptr(), c"zabfs.pool".as_ptr(), value.as_mut_ptr().cast(), value.len())
    };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    Ok(String::from_utf8_lossy(&value[..length]).into_owned())
}

#[allow(unsafe_code, reason = "setxattr has no safe wrapper here")]
fn choose_pool(directory: &Path, pool: &str) -> io::Result<()> {
    let path = CString::new(directory.as_os_str().as_bytes())?;
    // SAFETY: both strings end with a zero byte, and the value is as long as said.
    let result =
        unsafe { libc::setxattr(path.as_ptr(), c"zabfs.pool".as_ptr(), pool.as_ptr().cast(), pool.len(), 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn changes_under_load(scene: &Scene) -> anyhow::Result<()> {
    let cluster = scene.cluster_with(&Options { data: 4, ..Options::default() })?;
    let mnt = scene.mount(&cluster, "mnt")?;
    order(&cluster, "create fast --size 2 --min-size 1 --pg-num 16 --inline-limit 4K")?;
    let inside = mnt.join("inside");
    fs::create_dir(&inside)?;
    ensure!(pool_of(&inside)? == "data", "the default pool");
    ensure!(choose_pool(&inside, "slow").is_err(), "there is no such pool");
    choose_pool(&inside, "fast")?;
    let load = Load::start(&inside, &scene.scratch("load")?, scene.seed())?;
    load.wait_for_files(3, Duration::from_secs(60))?;

    // More replicas, while one of those that have some dies and comes back.
    order(&cluster, "set fast size 3")?;
    cluster.kill(&Target::Server(Server::data(2)), Signal::KILL)?;
    load.wait_for_progress(Duration::from_secs(60))?;
    cluster.start(Server::data(2))?;
    settle(&cluster)?;
    load.check().map_err(|error| cluster.with_logs(error))?;
    order(&cluster, "set fast min_size=2 inline_limit=16K")?;
    let shown = order(&cluster, "show fast --json")?;
    let shown: serde_json::Value = serde_json::from_str(&shown).context("the pool")?;
    ensure!(shown["size"] == 3 && shown["min_size"] == 2 && shown["inline_limit"] == 16384, "{shown}");

    // Only two servers' devices, then all again, and fewer replicas.
    for server in ["1", "3"] {
        zabfs(&cluster, &["data", "class", server, "ssd"], HEAL_LIMIT)?.success()?;
    }
    order(&cluster, "set fast class=ssd size=2 min_size=1")?;
    // Whoever is not wanted goes only after all who are wanted have everything.
    cluster.wait_status("two copies of each group on those two", HEAL_LIMIT, |status| {
        status.clean()?;
        let copies: u32 = status.data.iter().map(|server| server.groups).sum();
        if copies == 32 * 3 + 16 * 2 { Ok(()) } else { Err(format!("there are {copies} copies of groups")) }
    })?;
    load.wait_for_progress(Duration::from_secs(30))?;
    let finished = load.finish()?;
    finished.verify()?;
    println!("{} files and {} rows, all there", finished.written.len(), finished.rows);

    refusal(&cluster, "set fast pg_num 8", "never merged")?;
    refusal(&cluster, "remove fast", "files and directories")?;
    refusal(&cluster, "set data size=1", "min_size")?;
    let below = inside.join("below");
    fs::create_dir(&below)?;
    fs::write(below.join("file"), vec![7; 300_000])?;
    ensure!(pool_of(&below.join("file"))? == "fast", "what is made in it gets its pool");
    fs::rename(below.join("file"), mnt.join("file"))?;
    ensure!(pool_of(&mnt.join("file"))? == "fast", "a file keeps its pool");
    fs::remove_file(mnt.join("file"))?;
    fs::remove_dir_all(&inside)?;
    wait_until("the pool to be empty", HEAL_LIMIT, || {
        order(&cluster, "remove fast").map(drop).map_err(|error| format!("{error:#}"))
    })?;
    settle(&cluster)?;
    let total: u32 = cluster.status()?.groups.values().sum();
    ensure!(total == 32, "{total} placement groups are left");
    Ok(())
}

/// Whole files, read again through another mount.
const FILES: u64 = 40;
const FILE_BYTES: usize = 300_000;

/// From 4 groups to 24, of which some have twice the objects, and on to 32.
fn splits_under_load(scene: &Scene) -> anyhow::Result<()> {
    let cluster = scene.cluster_with(&Options { data: 4, ..Options::default() })?;
    let mnt = scene.mount(&cluster, "mnt")?;
    order(&cluster, "create few --size 3 --min-size 2 --pg-num 4 --inline-limit 4K --chunk-size 64K")?;
    let inside = mnt.join("inside");
    fs::create_dir(&inside)?;
    choose_pool(&inside, "few")?;
    for number in 0..FILES {
        fs::write(inside.join(format!("f{number}")), bytes(number, FILE_BYTES))?;
    }
    let load = Load::start(&inside, &scene.scratch("load")?, scene.seed())?;
    load.wait_for_files(3, Duration::from_secs(60))?;

    order(&cluster, "set few pg_num 24")?;
    cluster.kill(&Target::Server(Server::data(2)), Signal::KILL)?;
    load.wait_for_progress(Duration::from_secs(60))?;
    // Before the first split is done everywhere.
    order(&cluster, "set few pg_num 32")?;
    refusal(&cluster, "set few pg_num 24", "never merged")?;
    cluster.start(Server::data(2))?;
    cluster.wait_status("64 groups that are where they should be", HEAL_LIMIT, |status| {
        status.missing(3, 4)?;
        match (status.recovering, status.groups.values().sum::<u32>()) {
            (0, 64) => Ok(()),
            (left, groups) => Err(format!("{left} objects are to be copied, there are {groups} groups")),
        }
    })?;
    load.check().map_err(|error| cluster.with_logs(error))?;
    load.wait_for_progress(Duration::from_secs(30))?;
    let finished = load.finish()?;
    finished.verify()?;
    let fresh = scene.mount(&cluster, "fresh")?;
    for number in 0..FILES {
        let found = fs::read(fresh.join(format!("inside/f{number}")))?;
        ensure!(found == bytes(number, FILE_BYTES), "file {number} differs");
    }
    println!("{} files and {} rows, all there", finished.written.len(), finished.rows);
    deep_scrub(&cluster)?;
    let status = zabfs(&cluster, &["status"], HEAL_LIMIT)?.success()?;
    ensure!(!status.contains("scrubs found"), "copies differ: {status}");
    let shown = order(&cluster, "show few")?;
    ensure!(shown.contains("groups          32 active+clean"), "{shown}");
    // Purges find every object, wherever it is by now.
    fs::remove_dir_all(&inside)?;
    wait_until("the objects to be gone", HEAL_LIMIT, || {
        let shown = order(&cluster, "show few --json").map_err(|error| format!("{error:#}"))?;
        let shown: serde_json::Value = serde_json::from_str(&shown).map_err(|error| error.to_string())?;
        if shown["objects"] == 0 { Ok(()) } else { Err(format!("{} are left", shown["objects"])) }
    })?;
    Ok(())
}

fn settle(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.wait_status("the groups to be where they should be", HEAL_LIMIT, |status| {
        status.missing(3, 4)?;
        match status.recovering {
            0 => Ok(()),
            left => Err(format!("{left} objects are to be copied")),
        }
    })?;
    Ok(())
}
