//! One data server's disk fails: the server leaves by itself, says why, and nobody gets an error.

use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};
use cluster_tests::harness::{Cluster, CutDisk, Options, Power, Server, Status, wait_until};

use crate::Row;
use crate::load::Load;
use crate::scene::Scene;

pub(crate) const TESTS: &[Row] = &[
    ("disks::a_data_server_whose_disk_fails_leaves_at_once", (120, 300), fails),
    ("disks::a_data_server_whose_disk_stops_answering_leaves", (150, 300), stalls),
];

/// The server whose disk it is.
const VICTIM: u32 = 3;
/// Time for everything that may wait for a session's timeout and then be copied.
const LIMIT: Duration = Duration::from_secs(90);
/// Well above what a server needs, sparse.
const ROOMY: u64 = 6 << 30;

/// A cluster that is not started yet, with the victim's store on a disk of its own.
fn prepared(scene: &Scene, bytes: u64) -> anyhow::Result<(CutDisk, Power, Cluster)> {
    let disk = CutDisk::create(scene.dir(), bytes)?;
    let power = disk.power_on()?;
    let cluster = Cluster::create(&scene.dir().join("cluster"), &Options::default())?;
    disk.take_server(&cluster, Server::data(VICTIM))?;
    Ok((disk, power, cluster))
}

/// Waits until the status says that the victim left by itself, and returns what it said.
fn wait_left(cluster: &Cluster) -> anyhow::Result<String> {
    let left = |status: &Status| {
        let victim = status.data_server(VICTIM).ok_or("it is not in the status")?;
        match (victim.up, &victim.failure) {
            (false, Some(_)) => Ok(()),
            (up, failure) => Err(format!("up {up}, failure {failure:?}")),
        }
    };
    let status = cluster.wait_status("the data server to say why it left", LIMIT, left)?;
    status.data_server(VICTIM).and_then(|victim| victim.failure.clone()).context("it was there a moment ago")
}

fn is_whole(status: &Status) -> Result<(), String> {
    status.missing(3, 3)?;
    status.clean()?;
    let failure = status.data_server(VICTIM).and_then(|victim| victim.failure.as_ref());
    failure.map_or(Ok(()), |failure| Err(format!("it still shows {failure:?}")))
}

fn fails(scene: &Scene) -> anyhow::Result<()> {
    let (disk, power, cluster) = prepared(scene, ROOMY)?;
    cluster.start_all()?;
    let mnt = scene.mount(&cluster, "mnt")?;
    let load = Load::start(&mnt, &scene.scratch("load")?, scene.seed())?;
    load.wait_for_files(10, LIMIT)?;
    load.take_stall();
    disk.cut(scene.seed())?;
    let why = wait_left(&cluster)?;
    load.wait_for_progress(LIMIT)?;
    let stall = load.take_stall();
    println!("it said: {why}; the longest call took {:?} ({})", stall.longest, stall.what);
    let log = fs::read_to_string(cluster.layout().log(&Server::data(VICTIM).name()))?;
    ensure!(log.contains("this data server stops"), "its log says nothing");
    load.finish()?.verify()?;
    cluster.down()?;
    power.off(&disk)
}

fn stalls(scene: &Scene) -> anyhow::Result<()> {
    let (disk, power, cluster) = prepared(scene, ROOMY)?;
    cluster.start_all()?;
    let mnt = scene.mount(&cluster, "mnt")?;
    let load = Load::start(&mnt, &scene.scratch("load")?, scene.seed())?;
    load.wait_for_files(10, LIMIT)?;
    load.take_stall();
    power.stall()?;
    let left =
        cluster.wait_status("the data server with the stalled disk to be down", LIMIT, |status| match status
            .data_server(VICTIM)
        {
            Some(victim) if victim.up => Err("it is up".to_owned()),
            _ => Ok(()),
        });
    let went_on = load.wait_for_progress(LIMIT);
    // In every outcome, or nothing of it can be ended.
    power.go_on()?;
    let failure = left?.data_server(VICTIM).and_then(|victim| victim.failure.clone());
    went_on?;
    let stall = load.take_stall();
    println!("the longest call took {:?} ({})", stall.longest, stall.what);
    // One that was stuck as a whole, and so could not even leave, goes on by itself.
    if let Some(why) = failure {
        println!("it said: {why}");
        wait_until("its process to end", LIMIT, || match cluster.is_running(Server::data(VICTIM)) {
            Ok(false) => Ok(()),
            other => Err(format!("running: {other:?}")),
        })?;
        cluster.start(Server::data(VICTIM))?;
    }
    cluster.wait_status("the data server to be back with everything", LIMIT, is_whole)?;
    load.finish()?.verify()?;
    cluster.down()?;
    power.off(&disk)
}
