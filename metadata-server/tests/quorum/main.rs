//! Metadata servers in one process over real connections and real files.

#![allow(clippy::unwrap_used, reason = "what a test asserts it may unwrap")]

mod key_value;
mod world;

use std::time::{Duration, Instant};

use metadata_server::quorum::{QuorumConfig, QuorumError};
use zab::{PeerId, Role};

use key_value::Put;
use world::{Command, World, wait_for};

fn defaults(_: &mut QuorumConfig) {}

/// Checkpoints and purges early, so that who is away for some rows needs a snapshot.
fn forgetful(config: &mut QuorumConfig) {
    config.checkpoint_bytes = 32 << 10;
    config.checkpoint_interval_ms = 50;
    config.zab.log_window_bytes = 8 << 10;
}

/// Waits until every running server has made a checkpoint of what it has.
fn wait_for_checkpoints(world: &World) {
    wait_for("checkpoints", || {
        let is_done = |id: &PeerId| {
            let (status, _) = world.servers[id].status()?;
            (status.log_bytes <= 24 << 10).then_some(())
        };
        world.servers.keys().all(|id| is_done(id).is_some()).then_some(())
    });
}

#[test]
fn three_servers_elect_commit_and_read() {
    let world = World::start(defaults);
    world.commit("row", 50, 100);
    let table = world.agree();
    assert_eq!(table.rows.len(), 50);
    let leader = &world.servers[&world.leader()];
    leader.read(77).unwrap();
    wait_for("the read", || leader.view.lock().unwrap().reads.contains(&(77, table.applied)).then_some(()));
    wait_for("the lease", || leader.status().filter(|(_, lease)| *lease));
    let follower = &world.servers[&world.follower()];
    assert!(follower.read(1).is_err(), "a follower confirms nothing");
    assert!(follower.propose(&Put { key: "x".into(), value: vec![] }).is_err());
    let (status, lease) = follower.status().unwrap();
    assert_eq!((status.leader, lease), (Some(leader.id), false));
    assert_eq!(status.connected.len(), 2);
}

#[test]
fn a_follower_that_was_away_gets_what_it_missed_from_the_log() {
    let mut world = World::start(defaults);
    world.commit("before", 20, 100);
    let away = world.follower();
    world.agree();
    world.kill(away);
    world.commit("meanwhile", 30, 1000);
    world.start_server(away);
    let table = world.agree();
    assert_eq!(table.rows.len(), 50);
    let view = &world.servers[&away].view;
    assert_eq!(view.lock().unwrap().snapshots_installed, 0);
    wait_for("its role", || {
        matches!(view.lock().unwrap().roles.last(), Some(Role::Following { .. })).then_some(())
    });
}

#[test]
fn everything_committed_survives_a_restart_of_all() {
    let mut world = World::start(forgetful);
    world.commit("row", 100, 1000);
    let table = world.agree();
    for id in 1..=3 {
        world.kill(PeerId(id));
    }
    for id in 1..=3 {
        world.start_server(PeerId(id));
    }
    world.leader();
    assert_eq!(world.agree(), table);
    world.commit("after", 1, 10);
    assert_eq!(world.agree().rows.len(), 101);
}

#[test]
fn a_follower_that_was_away_too_long_gets_a_snapshot() {
    let mut world = World::start(forgetful);
    world.commit("before", 10, 100);
    world.agree();
    let away = world.follower();
    world.kill(away);
    world.commit("meanwhile", 200, 1000);
    wait_for_checkpoints(&world);
    world.start_server(away);
    let table = world.agree();
    assert_eq!(table.rows.len(), 210);
    assert_eq!(world.servers[&away].view.lock().unwrap().snapshots_installed, 1);
    // What it got is its own: it starts from there, and follows.
    world.kill(away);
    world.commit("later", 5, 10);
    world.start_server(away);
    assert_eq!(world.agree().rows.len(), 215);
    assert_eq!(world.servers[&away].view.lock().unwrap().snapshots_installed, 0);
    let states = std::fs::read_dir(world.path(away)).unwrap().flatten();
    let states = states.filter(|entry| entry.file_name().to_string_lossy().ends_with(".redb"));
    assert_eq!(states.count(), 1, "superseded states are removed");
}

#[test]
fn an_empty_directory_joins_by_a_snapshot_and_does_not_vote() {
    let mut world = World::start(forgetful);
    world.commit("before", 10, 100);
    world.agree();
    let wiped = world.follower();
    world.kill(wiped);
    std::fs::remove_dir_all(world.path(wiped)).unwrap();
    world.commit("meanwhile", 200, 1000);
    wait_for_checkpoints(&world);
    world.start_server(wiped);
    assert_eq!(world.agree().rows.len(), 210);
    let view = &world.servers[&wiped].view;
    assert_eq!(view.lock().unwrap().snapshots_installed, 1);
    wait_for("its role", || {
        matches!(view.lock().unwrap().roles.last(), Some(Role::Observing { .. })).then_some(())
    });
}

#[test]
fn a_killed_leader_is_replaced_within_two_seconds() {
    let mut world = World::start(defaults);
    world.commit("before", 10, 100);
    let old = world.leader();
    world.agree();
    world.kill(old);
    let since = Instant::now();
    let new = world.leader();
    assert!(since.elapsed() < Duration::from_secs(2), "it took {:?}", since.elapsed());
    assert_ne!(new, old);
    world.commit("after", 10, 100);
    world.start_server(old);
    assert_eq!(world.agree().rows.len(), 20);
}

#[test]
fn a_leader_that_stops_in_good_order_is_replaced_at_once() {
    let mut world = World::start(defaults);
    world.commit("before", 10, 100);
    world.agree();
    let old = world.leader();
    let since = Instant::now();
    world.servers.remove(&old).unwrap().end(Command::Stop).unwrap();
    world.leader();
    assert!(since.elapsed() < Duration::from_secs(2), "it took {:?}", since.elapsed());
}

#[test]
fn a_leader_whose_disk_fails_ends_and_is_replaced() {
    let mut world = World::start(defaults);
    world.commit("before", 10, 100);
    world.agree();
    let old = world.leader();
    let server = world.servers.remove(&old).unwrap();
    server.disk.fail();
    let since = Instant::now();
    let _ = server.propose(&Put { key: "fails".into(), value: vec![] });
    let view = server.view.clone();
    let ended = server.end(Command::Status(std::sync::mpsc::channel().0));
    assert!(matches!(ended, Err(QuorumError::Storage(_))), "{ended:?}");
    assert_eq!(view.lock().unwrap().roles.last(), Some(&Role::Failed));
    assert_eq!(view.lock().unwrap().losses, 1);
    world.leader();
    assert!(since.elapsed() < Duration::from_secs(2), "it took {:?}", since.elapsed());
    world.commit("after", 1, 10);
    // The disk was replaced by a working one with the same contents.
    world.start_server(old);
    world.agree();
}

#[test]
fn a_leader_whose_disk_stalls_is_replaced() {
    let world = World::start(defaults);
    world.commit("before", 10, 100);
    world.agree();
    let old = world.leader();
    let stalled = world.servers[&old].disk.stall();
    let _ = world.servers[&old].propose(&Put { key: "stalls".into(), value: vec![] });
    let new = wait_for("another leader", || Some(world.leader()).filter(|leader| *leader != old));
    assert_ne!(new, old);
    drop(stalled);
    world.commit("after", 1, 10);
    world.agree();
}

#[test]
fn a_damaged_log_is_filled_by_the_leader() {
    let mut world = World::start(defaults);
    world.commit("row", 40, 100);
    world.agree();
    let damaged = world.follower();
    world.servers.remove(&damaged).unwrap().end(Command::Stop).unwrap();
    let log = std::fs::read_dir(world.path(damaged)).unwrap().flatten().map(|entry| entry.path());
    let log =
        log.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("log-")).min().unwrap();
    let mut bytes = std::fs::read(&log).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&log, bytes).unwrap();
    world.start_server(damaged);
    assert_eq!(world.agree().rows.len(), 40);
    wait_for("the end of the repair", || {
        world.servers[&damaged].status().filter(|(status, _)| !status.needs_sync && status.leader.is_some())
    });
    // It counts again: without it there would be no quorum.
    let other = *world.servers.keys().find(|id| **id != damaged && **id != world.leader()).unwrap();
    world.kill(other);
    world.commit("after", 1, 10);
    assert_eq!(world.agree().rows.len(), 41);
}
