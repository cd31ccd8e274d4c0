//! What administrators do to a cluster that is in use: empty and remove servers, restart all of them, scrub.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use cluster_tests::harness::{Cluster, Options, Server, Signal, Target, wait_until};
use cluster_tests::programs;
use cluster_tests::workload::bytes;

use crate::Row;
use crate::bit_rot::{FILE_BYTES, FILES, flip_bytes_of};
use crate::load::Load;
use crate::scene::Scene;

pub(crate) const TESTS: &[Row] = &[
    ("maintenance::a_drained_data_server_is_empty_and_is_removed", (240, 400), drain_and_remove),
    ("maintenance::a_rolling_restart_fails_no_call", (400, 600), rolling_restart),
    ("maintenance::a_deep_scrub_repairs_rot_that_nobody_read", (200, 300), scrub_rot),
];

const HEAL_LIMIT: Duration = Duration::from_secs(120);

/// Runs `zabfs ARGUMENTS --dir CLUSTER` with the administrator's certificate.
pub(crate) fn zabfs<S: AsRef<OsStr>>(
    cluster: &Cluster,
    arguments: &[S],
    limit: Duration,
) -> anyhow::Result<programs::Output> {
    let mut command = Command::new(cluster.command("status", "admin").get_program());
    command.args(arguments).arg("--dir").arg(cluster.layout().dir());
    programs::run(&mut command, limit)
}

fn write_files(mnt: &Path, count: u64) -> anyhow::Result<()> {
    for number in 0..count {
        let path = mnt.join(format!("f{number}"));
        fs::write(&path, bytes(number, 400_000)).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn verify_files(mnt: &Path, count: u64) -> anyhow::Result<()> {
    for number in 0..count {
        let path = mnt.join(format!("f{number}"));
        let found = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        ensure!(found == bytes(number, 400_000), "{} differs", path.display());
    }
    Ok(())
}

fn drain_and_remove(scene: &Scene) -> anyhow::Result<()> {
    let cluster = scene.cluster_with(&Options { data: 4, ..Options::default() })?;
    let mnt = scene.mount(&cluster, "mnt")?;
    write_files(&mnt, 40)?;
    let refused = zabfs(&cluster, &["data", "remove", "2"], HEAL_LIMIT)?;
    ensure!(refused.success().is_err(), "a server that is up and in was removed");

    let drained = zabfs(&cluster, &["data", "drain", "2", "--timeout", "120"], HEAL_LIMIT)?.success()?;
    println!("{drained}");
    ensure!(drained.contains("can be removed"), "the drain says: {drained}");
    zabfs(&cluster, &["recovery", "wait", "--timeout", "100"], HEAL_LIMIT)?.success()?;
    let status = cluster.status()?;
    let second = status.data_server(2).context("data 2 is listed until it is removed")?;
    ensure!(second.groups == 0 && status.clean().is_ok(), "{status:?}");

    zabfs(&cluster, &["data", "remove", "2"], HEAL_LIMIT)?.success()?;
    ensure!(cluster.status()?.data_server(2).is_none(), "data 2 is still listed");
    // Its process stops by itself, and so does every later start on the old store.
    let log = cluster.layout().log(&Server::data(2).name());
    let stopped = || match fs::read_to_string(&log) {
        Ok(text) if text.contains("was removed from the cluster") => Ok(()),
        Ok(_) => Err("the log says nothing of a removal".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    wait_until("the removed server to say so", Duration::from_secs(60), stopped)?;
    ensure!(cluster.status()?.data_server(2).is_none(), "data 2 came back");
    let fresh = scene.mount(&cluster, "fresh")?;
    verify_files(&fresh, 40)
}

/// Bytes flip in one data server's files; a scrub finds and repairs them without a reader.
fn scrub_rot(scene: &Scene) -> anyhow::Result<()> {
    let (cluster, mnt) = scene.mounted()?;
    for number in 0..FILES {
        let path = mnt.join(format!("f{number}"));
        fs::write(&path, bytes(number, FILE_BYTES))?;
        fs::File::open(&path)?.sync_all()?;
    }
    // What was read before, and in the same second, does not count.
    wait_until("the clock to pass the first scrubs", HEAL_LIMIT, || {
        let (_, newest) = read_ends(&cluster).map_err(|error| format!("{error:#}"))?;
        if unix_seconds() > newest { Ok(()) } else { Err(format!("one ended at {newest}")) }
    })?;
    let flipped = flip_bytes_of(&cluster, Server::data(1))?;
    println!("{flipped} bytes flipped");
    deep_scrub(&cluster)?;
    let status = zabfs(&cluster, &["status"], HEAL_LIMIT)?.success()?;
    ensure!(status.contains("scrubs found"), "nothing was found: {status}");
    // Server 1 alone is asked for what the others had to repair: whatever it reads now is right.
    let counted = cluster.status()?.data_server(1).map_or(0, |server| server.corrupt_blocks);
    ensure!(counted > 0, "no corrupt block was counted");
    for number in 0..FILES {
        let found = fs::read(mnt.join(format!("f{number}")))?;
        ensure!(found == bytes(number, FILE_BYTES), "file {number}");
    }
    let after = cluster.status()?.data_server(1).map_or(0, |server| server.corrupt_blocks);
    ensure!(after == counted, "readers still found {} corrupt blocks", after - counted);
    Ok(())
}

/// Has every block of every group read.
pub(crate) fn deep_scrub(cluster: &Cluster) -> anyhow::Result<()> {
    let begun = unix_seconds();
    zabfs(cluster, &["scrub", "start", "--deep"], HEAL_LIMIT)?.success()?;
    wait_until("every group to be read", HEAL_LIMIT, || {
        let (oldest, _) = read_ends(cluster).map_err(|error| format!("{error:#}"))?;
        if oldest >= begun { Ok(()) } else { Err(format!("one was read at {oldest}, it is {begun}")) }
    })?;
    Ok(())
}

/// When the groups were last read as a whole, in seconds since 1970: the oldest and the newest end.
fn read_ends(cluster: &Cluster) -> anyhow::Result<(u64, u64)> {
    let listed = zabfs(cluster, &["scrub", "status", "--json"], HEAL_LIMIT)?.success()?;
    let groups: Vec<serde_json::Value> = serde_json::from_str(&listed).context("the list of scrubs")?;
    let ends: Vec<u64> = groups.iter().filter_map(|group| group[2]["scrub"]["last_deep"].as_u64()).collect();
    ensure!(ends.len() >= 32, "{} groups are listed", ends.len());
    Ok((ends.iter().copied().min().unwrap_or(0), ends.iter().copied().max().unwrap_or(0)))
}

fn unix_seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// One server after the other, each time waiting until the cluster is whole again.
fn rolling_restart(scene: &Scene) -> anyhow::Result<()> {
    let (cluster, mnt) = scene.mounted()?;
    let load = Load::start(&mnt, &scene.scratch("load")?, scene.seed())?;
    load.wait_for_files(3, Duration::from_secs(60))?;
    let servers = (1..=3).map(Server::data).chain((1..=3).map(Server::metadata));
    for server in servers {
        cluster.kill(&Target::Server(server), Signal::TERM)?;
        let gone = || match cluster.find(&Target::Server(server)) {
            Err(_) => Ok(()),
            Ok(_) => Err(format!("{server} still runs")),
        };
        wait_until("the server to stop", Duration::from_secs(20), gone)?;
        cluster.start(server)?;
        cluster.wait_ready(HEAL_LIMIT)?;
        zabfs(&cluster, &["recovery", "wait", "--timeout", "100"], HEAL_LIMIT)?.success()?;
        load.check().map_err(|error| cluster.with_logs(error))?;
        let stall = load.take_stall();
        println!("{server} restarted: longest call {:?} ({})", stall.longest, stall.what);
    }
    load.wait_for_progress(Duration::from_secs(30))?;
    let finished = load.finish()?;
    finished.verify()?;
    println!("{} files and {} rows, all there", finished.written.len(), finished.rows);
    Ok(())
}
