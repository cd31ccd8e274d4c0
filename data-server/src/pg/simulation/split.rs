//! Pools that get more groups: one to three groups at the beginning, up to twelve in the end, raised at any moment of
//! any fault, while groups move between servers and clients route by maps that are seconds old.

use super::world::{Faults, World};
use super::{check, read_everything, run, seeds, settle};

/// Seeds per run of the suite.
const SEEDS: u64 = 250;

fn faults(every_ms: u64) -> Faults {
    Faults { every_ms, split: true, ..Faults::NONE }
}

#[test]
fn groups_are_split_among_faults_and_lose_nothing() {
    let (mut done, mut groups) = (0, 0);
    for seed in seeds(SEEDS) {
        let faults = Faults {
            power_loss: true,
            damage: seed.is_multiple_of(5),
            resize: seed.is_multiple_of(3),
            disks: seed.is_multiple_of(2),
            ..faults(300)
        };
        let mut world = run(seed, faults, 8000);
        settle(&mut world, seed);
        read_everything(&mut world, seed);
        done += world.clients.done();
        groups += world.meta.groups.len();
    }
    println!("{done} operations completed, {groups} groups in the end");
}

#[test]
fn power_lost_everywhere_while_groups_are_split_keeps_what_was_synced() {
    for seed in seeds(SEEDS) {
        // From all at rest but the split to a life with many faults before.
        let eventful = seed.is_multiple_of(2);
        let mut world = run(seed, faults(if eventful { 400 } else { 0 }), 1500 + seed % 700);
        if eventful {
            world.run_until(2500, |_| false);
        }
        split_now(&mut world, seed);
        let now = world.now;
        world.clients.lose_unsynced(now);
        world.lose_all_power();
        settle(&mut world, seed);
        read_everything(&mut world, seed);
    }
}

#[test]
fn all_processes_killed_while_groups_are_split_lose_nothing() {
    for seed in seeds(SEEDS / 2) {
        let mut world = run(seed, faults(0), 1500);
        split_now(&mut world, seed);
        world.kill_all();
        world.run_until(700, |_| false);
        split_now(&mut world, seed);
        world.kill_all();
        settle(&mut world, seed);
        read_everything(&mut world, seed);
    }
}

/// A primary stops when it has executed a split and the others have not, again and again: with luck what it wrote is
/// undone, and the group is split once more with what is left of the first time on its disk.
#[test]
fn a_primary_that_stops_in_a_split_undoes_or_completes_it() {
    for seed in seeds(SEEDS) {
        let mut world = run(seed, faults(0), 1500);
        for _ in 0..3 {
            assert!(
                world.run_until(60_000, |world| world.meta.is_healthy()),
                "seed {seed}: {}",
                world.describe()
            );
            let groups: Vec<_> = world.meta.groups.values().filter_map(|config| config.primary).collect();
            let primary = groups[world.rng.below(groups.len() as u64) as usize];
            let more = 1 + world.rng.below(4) as u32;
            world.grow(more);
            let (within_ms, power_loss) = (world.rng.below(40), world.rng.chance(700));
            world.hold_up_others(primary, 300);
            world.run_until(within_ms, |_| false);
            let away_ms = 20 + world.rng.below(400);
            world.stop(primary, power_loss, Some(away_ms));
            check(&mut world, seed);
        }
        settle(&mut world, seed);
        read_everything(&mut world, seed);
    }
}

/// Begins a split, and lets it come as far as it does in some milliseconds, or beyond its end, where some clients do not
/// know of it.
fn split_now(world: &mut World, seed: u64) {
    let more = 1 + world.rng.below(4) as u32;
    world.grow(more);
    let for_ms = if world.rng.chance(500) { world.rng.below(90) } else { world.rng.below(1500) };
    world.run_until(for_ms, |_| false);
    check(world, seed);
}

#[test]
fn a_split_without_faults_is_done_in_a_moment_and_clients_go_on() {
    for seed in seeds(20) {
        let mut world = run(seed, faults(0), 2000);
        world.grow(9);
        let before = world.clients.done();
        assert!(world.run_until(5000, |world| world.meta.is_healthy()), "seed {seed}: {}", world.describe());
        world.run_until(2000, |_| false);
        let done = world.clients.done() - before;
        assert!(done > 20, "seed {seed}: only {done} operations");
        settle(&mut world, seed);
        read_everything(&mut world, seed);
    }
}

/// The configurations are those of before some splits, the stores are not.
#[test]
fn a_backup_that_is_older_than_splits_loses_no_group() {
    for seed in seeds(SEEDS / 5) {
        // All servers are in all groups: where a group moved to since a backup, the planner of the real leader finds out.
        let mut world = World::new(seed * 2 + 1, 3, 4, faults(0));
        world.run_until(1500, |_| false);
        let (pg_num, groups) = (world.meta.pg_num, world.meta.groups.clone());
        world.grow(1 + (seed % 9) as u32);
        world.run_until(500 + seed % 1500, |_| false);
        world.clients.stopping = true;
        assert!(world.run_until(20_000, |world| world.clients.idle() && world.meta.is_healthy()));
        let split = world.meta.pg_num;
        world.restore(pg_num, groups);
        settle(&mut world, seed);
        assert_eq!(world.meta.pg_num, split, "seed {seed}: the groups are there again");
        read_everything(&mut world, seed);
    }
}

#[test]
fn one_seed_is_one_run() {
    assert_eq!(run(5, faults(300), 6000).digest, run(5, faults(300), 6000).digest);
}
