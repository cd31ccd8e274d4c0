//! Servers are killed under load: no program gets an error, nothing acknowledged is lost.

use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use cluster_tests::harness::{Cluster, Server, Signal, Target};

use crate::Row;
use crate::load::Load;
use crate::scene::Scene;

pub(crate) const TESTS: &[Row] = &[
    ("failover::nothing_is_lost_and_no_program_gets_an_error", (400, 900), under_load),
    ("failover::a_frozen_leader_is_replaced_and_comes_back", (120, 120), frozen_leader),
];

/// Longest stall that is allowed after a leader's end.
const LEADER_STALL_MAX: Duration = Duration::from_secs(5);
/// The same after a data server's: the session timeout and five seconds.
const DATA_STALL_MAX: Duration = Duration::from_secs(15);
/// Kills of the leader are this far apart.
const KILL_EVERY: Duration = Duration::from_secs(10);
/// A killed leader is started again this long after.
const DOWN_FOR: Duration = Duration::from_secs(3);
/// What a restart of servers may take until everything is clean again.
const HEAL_LIMIT: Duration = Duration::from_secs(90);

fn under_load(scene: &Scene) -> anyhow::Result<()> {
    let (cluster, mnt) = scene.mounted()?;
    let load = Load::start(&mnt, &scene.scratch("load")?, scene.seed())?;
    load.wait_for_files(3, Duration::from_secs(60))?;
    let quiet = load.take_stall();
    println!("before any fault: longest call {:?} ({})", quiet.longest, quiet.what);

    leaders(scene, &cluster, &load)?;
    data_server_then_one_of_each(&cluster, &load)?;
    all_six(&cluster, &load)?;

    let calls = load.calls();
    let finished = load.finish()?;
    finished.verify()?;
    println!("{calls} calls, {} files and {} rows, all there", finished.written.len(), finished.rows);
    // A mount that never saw any of it agrees.
    let fresh = scene.mount(&cluster, "fresh")?;
    finished.written.iter().try_for_each(|file| file.verify(&fresh)).context("on a fresh mount")
}

fn leaders(scene: &Scene, cluster: &Cluster, load: &Load) -> anyhow::Result<()> {
    let mut longest = Duration::ZERO;
    for round in 1..=scene.size(3, 12) {
        let leader = cluster.leader(Duration::from_secs(10))?;
        cluster.kill(&Target::Server(leader), Signal::KILL)?;
        thread::sleep(DOWN_FOR);
        cluster.start(leader)?;
        thread::sleep(KILL_EVERY - DOWN_FOR);
        load.check().map_err(|error| cluster.with_logs(error))?;
        let stall = load.take_stall();
        println!("leader {round} ({leader}) killed: longest call {:?} ({})", stall.longest, stall.what);
        longest = longest.max(stall.longest);
    }
    ensure!(longest <= LEADER_STALL_MAX, "a call took {longest:?} after the end of a leader");
    cluster.wait_ready(HEAL_LIMIT)
}

fn data_server_then_one_of_each(cluster: &Cluster, load: &Load) -> anyhow::Result<()> {
    load.take_stall();
    cluster.kill(&Target::Server(Server::data(1)), Signal::KILL)?;
    thread::sleep(DATA_STALL_MAX + Duration::from_secs(3));
    load.check().map_err(|error| cluster.with_logs(error))?;
    let stall = load.take_stall();
    println!("data 1 killed: longest call {:?} ({})", stall.longest, stall.what);
    ensure!(stall.longest <= DATA_STALL_MAX, "a call took {:?} after the end of data 1", stall.longest);

    // One of each at once: only one data server is left, so writes wait until the others return.
    let leader = cluster.leader(Duration::from_secs(10))?;
    cluster.kill(&Target::Server(leader), Signal::KILL)?;
    cluster.kill(&Target::Server(Server::data(2)), Signal::KILL)?;
    thread::sleep(Duration::from_secs(8));
    for server in [leader, Server::data(2), Server::data(1)] {
        cluster.start(server)?;
    }
    cluster.wait_ready(HEAL_LIMIT)?;
    load.wait_for_progress(Duration::from_secs(30)).map_err(|error| cluster.with_logs(error))?;
    let stall = load.take_stall();
    println!("one of each killed, all started again: longest call {:?} ({})", stall.longest, stall.what);
    Ok(())
}

fn all_six(cluster: &Cluster, load: &Load) -> anyhow::Result<()> {
    cluster.kill_all_servers()?;
    thread::sleep(Duration::from_secs(2));
    cluster.start_all()?;
    load.wait_for_progress(Duration::from_secs(60)).map_err(|error| cluster.with_logs(error))?;
    let stall = load.take_stall();
    println!("all six killed and started: longest call {:?} ({})", stall.longest, stall.what);
    Ok(())
}

fn frozen_leader(scene: &Scene) -> anyhow::Result<()> {
    let (cluster, mnt) = scene.mounted()?;
    let load = Load::start(&mnt, &scene.scratch("load")?, scene.seed())?;
    load.wait_for_files(3, Duration::from_secs(60))?;
    let old = cluster.leader(Duration::from_secs(10))?;
    cluster.kill(&Target::Server(old), Signal::STOP)?;
    let changed =
        cluster.wait_status("another leader", Duration::from_secs(20), |status| match status.leader {
            Some(id) if id != old.id => Ok(()),
            other => Err(format!("the leader is {other:?}")),
        });
    cluster.kill(&Target::Server(old), Signal::CONT)?;
    changed?;
    cluster.wait_ready(HEAL_LIMIT)?;
    load.wait_for_progress(Duration::from_secs(30))?;
    let finished = load.finish()?;
    finished.verify()
}
