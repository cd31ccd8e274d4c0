//! Servers come, go, and come back with nothing: the data follows.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use cluster_tests::harness::{Cluster, Options, Server, Settings, Signal, Status, Target};
use cluster_tests::workload::bytes;

use crate::Row;
use crate::scene::Scene;

pub(crate) const TESTS: &[Row] = &[
    ("recovery::a_fourth_data_server_gets_its_share", (150, 300), fourth_joins),
    ("recovery::a_data_server_that_was_away_catches_up", (180, 300), away_and_back),
    ("recovery::a_lost_data_server_is_replaced_by_the_others", (300, 600), lost_for_good),
    ("recovery::a_wiped_metadata_server_comes_back_by_snapshot", (180, 300), wiped_metadata),
    ("recovery::a_metadata_server_that_was_away_catches_up", (180, 300), metadata_away),
];

const HEAL_LIMIT: Duration = Duration::from_secs(120);

fn write_files(mnt: &Path, prefix: &str, count: u64) -> anyhow::Result<()> {
    for number in 0..count {
        let path = mnt.join(format!("{prefix}{number}"));
        fs::write(&path, contents(number)).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn contents(number: u64) -> Vec<u8> {
    // Inline ones, one-chunk ones, and some of two chunks.
    bytes(number, [3000, 300_000, 60_000, 5_000_000][(number % 4) as usize])
}

fn verify_files(mnt: &Path, prefix: &str, count: u64) -> anyhow::Result<()> {
    for number in 0..count {
        let path = mnt.join(format!("{prefix}{number}"));
        let found = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        ensure!(found == contents(number), "{} differs", path.display());
    }
    Ok(())
}

fn kill(cluster: &Cluster, server: Server) -> anyhow::Result<()> {
    cluster.kill(&Target::Server(server), Signal::KILL).map(drop)
}

fn is_healed(status: &Status) -> Result<(), String> {
    status.clean()?;
    if status.recovering > 0 {
        Err(format!("{} objects are to be copied", status.recovering))
    } else {
        Ok(())
    }
}

fn fourth_joins(scene: &Scene) -> anyhow::Result<()> {
    let (cluster, mnt) = scene.mounted()?;
    write_files(&mnt, "before", 40)?;
    cluster.start(Server::data(4))?;
    write_files(&mnt, "during", 40)?;
    let status = cluster.wait_status("the fourth server to have its share", HEAL_LIMIT, |status| {
        let fourth = status.data_server(4).filter(|server| server.up).ok_or("data 4 is not up")?;
        if fourth.groups == 0 {
            return Err("data 4 is in no placement group".to_owned());
        }
        is_healed(status)
    })?;
    let groups: Vec<u32> = status.data.iter().map(|server| server.groups).collect();
    println!("placement groups by server: {groups:?}");
    ensure!(groups.iter().all(|count| *count * 2 > groups.iter().sum::<u32>() / 4), "uneven: {groups:?}");
    // Its copies are real: with two of the first three gone, it serves what it shares with the third.
    kill(&cluster, Server::data(1))?;
    let fresh = scene.mount(&cluster, "fresh")?;
    for mnt in [&mnt, &fresh] {
        verify_files(mnt, "before", 40)?;
        verify_files(mnt, "during", 40)?;
    }
    Ok(())
}

fn away_and_back(scene: &Scene) -> anyhow::Result<()> {
    let (cluster, mnt) = scene.mounted()?;
    write_files(&mnt, "before", 24)?;
    kill(&cluster, Server::data(2))?;
    write_files(&mnt, "during", 24)?;
    // Some of the earlier files change while it is away.
    for number in 0..8 {
        fs::write(mnt.join(format!("before{number}")), contents(number + 100))?;
        fs::remove_file(mnt.join(format!("before{}", number + 16)))?;
    }
    cluster.start(Server::data(2))?;
    cluster.wait_status("data 2 to catch up", HEAL_LIMIT, |status| {
        status.missing(3, 3)?;
        is_healed(status)
    })?;
    // Now the two that never were away take turns; what data 2 missed it must have by now.
    for gone in [Server::data(1), Server::data(3)] {
        kill(&cluster, gone)?;
        let fresh = scene.mount(&cluster, &format!("without-{}", gone.id))?;
        verify_files(&fresh, "during", 24)?;
        for number in 0..8 {
            let found = fs::read(fresh.join(format!("before{number}")))?;
            ensure!(found == contents(number + 100), "before{number} is old");
            ensure!(!fresh.join(format!("before{}", number + 16)).exists(), "a removed file is back");
        }
        write_files(&fresh, &format!("without-{}-", gone.id), 8)?;
        cluster.start(gone)?;
        cluster.wait_status("the cluster to heal", HEAL_LIMIT, |status| {
            status.missing(3, 3)?;
            is_healed(status)
        })?;
    }
    Ok(())
}

fn lost_for_good(scene: &Scene) -> anyhow::Result<()> {
    let cluster = scene.cluster_with(&Options {
        data: 4,
        settings: Settings { down_out: Some(20), ..Settings::default() },
        ..Options::default()
    })?;
    let mnt = scene.mount(&cluster, "mnt")?;
    write_files(&mnt, "before", 40)?;
    kill(&cluster, Server::data(3))?;
    write_files(&mnt, "during", 20)?;
    cluster.wait_status("the others to hold three copies again", Duration::from_secs(240), |status| {
        let third = status.data_server(3).ok_or("data 3 is not in the status")?;
        if third.groups > 0 {
            return Err(format!("data 3 is in {} placement groups still", third.groups));
        }
        is_healed(status)
    })?;
    kill(&cluster, Server::data(1))?;
    let fresh = scene.mount(&cluster, "fresh")?;
    verify_files(&fresh, "before", 40)?;
    verify_files(&fresh, "during", 20)
}

/// Any metadata server that does not lead.
fn follower(cluster: &Cluster) -> anyhow::Result<Server> {
    let leader = cluster.leader(Duration::from_secs(10))?;
    (1..=3).map(Server::metadata).find(|server| *server != leader).context("three servers, one leads")
}

fn wiped_metadata(scene: &Scene) -> anyhow::Result<()> {
    let (cluster, mnt) = scene.mounted()?;
    write_files(&mnt, "before", 20)?;
    let server = follower(&cluster)?;
    kill(&cluster, server)?;
    let dir = cluster.layout().server(&server.name());
    for entry in fs::read_dir(&dir)?.flatten().filter(|entry| entry.file_name() != "tls") {
        let path = entry.path();
        if path.is_dir() { fs::remove_dir_all(&path)? } else { fs::remove_file(&path)? }
    }
    write_files(&mnt, "during", 20)?;
    cluster.start(server)?;
    // Its new directory is no voter's: it learns everything and counts for nothing (docs/ZAB.md).
    let caught_up = |status: &Status| {
        let leader =
            status.metadata.iter().find(|server| server.role == "leader").ok_or("there is no leader")?;
        let wiped = status.metadata.iter().find(|known| known.id == server.id).ok_or("it is not listed")?;
        match wiped.role == "observer" && wiped.zxid >= leader.zxid {
            true => Ok(()),
            false => Err(format!(
                "{server} is {} at {:?}, the leader at {:?}",
                wiped.role, wiped.zxid, leader.zxid
            )),
        }
    };
    cluster.wait_status("the wiped server to hold everything", HEAL_LIMIT, caught_up)?;
    write_files(&mnt, "after", 20)?;
    cluster.wait_status("the wiped server to keep up", HEAL_LIMIT, caught_up)?;
    // It finds its state again at the next start, too.
    kill(&cluster, server)?;
    cluster.start(server)?;
    cluster.wait_status("the wiped server to be back", HEAL_LIMIT, caught_up)?;
    let fresh = scene.mount(&cluster, "fresh")?;
    for prefix in ["before", "during", "after"] {
        verify_files(&fresh, prefix, 20)?;
    }
    Ok(())
}

fn metadata_away(scene: &Scene) -> anyhow::Result<()> {
    let (cluster, mnt) = scene.mounted()?;
    let server = follower(&cluster)?;
    kill(&cluster, server)?;
    for number in 0..scene.size(3000, 30_000) {
        fs::write(mnt.join(format!("n{number}")), "x")?;
    }
    cluster.start(server)?;
    cluster.wait_ready(HEAL_LIMIT)?;
    let other = (1..=3).map(Server::metadata).find(|other| *other != server).context("three servers")?;
    kill(&cluster, other)?;
    let fresh = scene.mount(&cluster, "fresh")?;
    let count = fs::read_dir(&fresh)?.count();
    ensure!(count == scene.size(3000, 30_000), "{count} names after the catch-up");
    Ok(())
}
