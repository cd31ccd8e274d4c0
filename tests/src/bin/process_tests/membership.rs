//! Metadata servers come, go and lose their directories while programs run: no program gets an error.

use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};
use cluster_tests::harness::{Cluster, Server, Signal, Target, wait_until};
use cluster_tests::programs;

use crate::Row;
use crate::load::Load;
use crate::scene::Scene;

pub(crate) const TESTS: &[Row] = &[
    ("membership::a_wiped_server_is_replaced_and_votes_again", (240, 400), replaced),
    ("membership::servers_are_added_and_the_leader_removed_under_load", (300, 600), grown),
    ("membership::a_mount_survives_the_replacement_of_every_server", (400, 800), all_new),
];

/// What a change, or an election after it, may take.
const LIMIT: Duration = Duration::from_secs(90);

/// `zabfs metadata ARGUMENTS`, with an administrator's certificate.
fn metadata(cluster: &Cluster, arguments: &[&str]) -> anyhow::Result<String> {
    let (subcommand, rest) = arguments.split_first().context("there is a subcommand")?;
    let layout = cluster.layout();
    let mut command = std::process::Command::new(programs::zabfs_binary()?);
    command.args(["metadata", subcommand]).args(rest);
    command.arg("--dir").arg(layout.dir()).arg("--identity").arg(layout.identity("admin"));
    programs::run(&mut command, LIMIT)?.success()
}

fn kill(cluster: &Cluster, server: Server) -> anyhow::Result<()> {
    cluster.kill(&Target::Server(server), Signal::KILL).map(drop)
}

/// Forgets everything but the certificate.
fn wipe(cluster: &Cluster, server: Server) -> anyhow::Result<()> {
    let dir = cluster.layout().server(&server.name());
    for entry in fs::read_dir(&dir)?.flatten().filter(|entry| entry.file_name() != "tls") {
        let path = entry.path();
        if path.is_dir() { fs::remove_dir_all(&path)? } else { fs::remove_file(&path)? }
    }
    Ok(())
}

/// Waits until exactly these are voters at work.
fn wait_voters(cluster: &Cluster, wanted: &[u32]) -> anyhow::Result<()> {
    let waited = cluster.wait_status(&format!("{wanted:?} to vote"), LIMIT, |status| {
        let at_work = status.metadata.iter().filter(|one| one.role == "leader" || one.role == "follower");
        let mut found: Vec<u32> = at_work.map(|one| one.id).collect();
        found.sort_unstable();
        if found == wanted { Ok(()) } else { Err(format!("{found:?} do, of {:?}", status.metadata)) }
    });
    waited.map(drop)
}

fn add_voter(cluster: &Cluster, id: u32) -> anyhow::Result<()> {
    cluster.start(Server::metadata(id))?;
    let address = cluster.address(Server::metadata(id))?.to_string();
    metadata(cluster, &["add", &id.to_string(), &address])?;
    metadata(cluster, &["promote", &id.to_string()]).map(drop)
}

/// The log of a removed server says that it was.
fn wait_told(cluster: &Cluster, server: Server) -> anyhow::Result<()> {
    let log = cluster.layout().log(&server.name());
    wait_until(&format!("{server} to say that it was removed"), LIMIT, || {
        let text = fs::read_to_string(&log).map_err(|error| error.to_string())?;
        let said = text.contains("was removed from its cluster");
        if said { Ok(()) } else { Err(format!("{} does not say so", log.display())) }
    })?;
    Ok(())
}

fn replaced(scene: &Scene) -> anyhow::Result<()> {
    let (cluster, mnt) = scene.mounted()?;
    let load = Load::start(&mnt, &scene.scratch("load")?, scene.seed())?;
    load.wait_for_files(3, Duration::from_secs(60))?;
    let leader = cluster.leader(LIMIT)?;
    let mut followers = (1..=3).map(Server::metadata).filter(|server| *server != leader);
    let lost = followers.next().context("a follower")?;
    kill(&cluster, lost)?;
    wipe(&cluster, lost)?;
    cluster.start(lost)?;
    // Until the leader has heard of the new directory it believes in the old one, and refuses.
    cluster.wait_status("the wiped server to follow without a vote", LIMIT, |status| {
        let role = status.metadata.iter().find(|one| one.id == lost.id).map(|one| one.role.clone());
        if role.as_deref() == Some("observer") { Ok(()) } else { Err(format!("it is {role:?}")) }
    })?;
    metadata(&cluster, &["replace", &lost.id.to_string()]).map_err(|error| cluster.with_logs(error))?;
    wait_voters(&cluster, &[1, 2, 3])?;
    // The one that was there before and the one that was wiped are a quorum; without the replacement they were none.
    kill(&cluster, leader)?;
    load.wait_for_progress(Duration::from_secs(30)).map_err(|error| cluster.with_logs(error))?;
    load.check().map_err(|error| cluster.with_logs(error))?;
    cluster.start(leader)?;
    wait_voters(&cluster, &[1, 2, 3])?;
    load.finish()?.verify()
}

fn grown(scene: &Scene) -> anyhow::Result<()> {
    let (cluster, mnt) = scene.mounted()?;
    let load = Load::start(&mnt, &scene.scratch("load")?, scene.seed())?;
    load.wait_for_files(3, Duration::from_secs(60))?;
    for id in [4, 5] {
        add_voter(&cluster, id).map_err(|error| cluster.with_logs(error))?;
    }
    wait_voters(&cluster, &[1, 2, 3, 4, 5])?;
    let leader = cluster.leader(LIMIT)?;
    metadata(&cluster, &["remove", &leader.id.to_string()]).map_err(|error| cluster.with_logs(error))?;
    wait_told(&cluster, leader)?;
    let rest: Vec<u32> = (1..=5).filter(|id| *id != leader.id).collect();
    wait_voters(&cluster, &rest)?;
    load.wait_for_progress(Duration::from_secs(30)).map_err(|error| cluster.with_logs(error))?;
    // What was removed for good may be switched off; of the four that stay one may fail.
    kill(&cluster, leader)?;
    kill(&cluster, Server::metadata(rest[0]))?;
    load.wait_for_progress(Duration::from_secs(30)).map_err(|error| cluster.with_logs(error))?;
    load.check().map_err(|error| cluster.with_logs(error))?;
    load.finish()?.verify()
}

fn all_new(scene: &Scene) -> anyhow::Result<()> {
    let (cluster, mnt) = scene.mounted()?;
    let load = Load::start(&mnt, &scene.scratch("load")?, scene.seed())?;
    load.wait_for_files(3, Duration::from_secs(60))?;
    for old in 1..=3 {
        add_voter(&cluster, old + 3).map_err(|error| cluster.with_logs(error))?;
        metadata(&cluster, &["remove", &old.to_string()]).map_err(|error| cluster.with_logs(error))?;
        kill(&cluster, Server::metadata(old))?;
        load.wait_for_progress(Duration::from_secs(30)).map_err(|error| cluster.with_logs(error))?;
    }
    wait_voters(&cluster, &[4, 5, 6])?;
    // The mount and the data servers were told three addresses at which nobody is any more.
    kill(&cluster, cluster.leader(LIMIT)?)?;
    load.wait_for_progress(Duration::from_secs(30)).map_err(|error| cluster.with_logs(error))?;
    load.check().map_err(|error| cluster.with_logs(error))?;
    let finished = load.finish()?;
    finished.verify()?;
    ensure!(!finished.written.is_empty(), "the load wrote something");
    let fresh = scene.mount(&cluster, "fresh")?;
    finished.written.iter().try_for_each(|file| file.verify(&fresh)).context("on a fresh mount")
}
