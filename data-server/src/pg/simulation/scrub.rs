//! Copies go wrong behind everybody's back on one replica of three; a scrub makes all of them equal and right.

use std::ops::Range;

use super::store::Spoil;
use super::world::{Faults, Objects, PG, World};
use super::{check, read_everything, seeds, settle};
use crate::store::ObjectKey;
use protocol::DataServerId;

/// Inodes of objects that are written once and that no client reads.
const KNOWN: Range<u64> = 200..212;
/// Inodes that nobody wrote.
const INVENTED: Range<u64> = 212..216;
const ALL: Range<u64> = 200..216;

fn key(inode: u64) -> ObjectKey {
    ObjectKey { pg: PG.to_u64(), inode, chunk: 0 }
}

/// A healthy group with known objects on all of its replicas. Its log reaches back to the beginning, so that who
/// returns is brought up by operations: a backfill from a wrong copy would make the wrong ones the majority.
fn world(seed: u64) -> (World, Objects) {
    let mut world = World::new(seed, 3, 4, Faults::NONE);
    world.log_max = 100_000;
    assert!(world.run_until(20_000, |world| world.meta.is_healthy()), "seed {seed}: not healthy");
    let ids = world.ids();
    let complete = |world: &World| ids.iter().all(|id| world.known(*id, ALL).len() == KNOWN.count());
    // A request may find no room; again under the same number then.
    for _ in 0..40 {
        for inode in KNOWN {
            world.write_known(inode, inode);
            world.run_until(40, |_| false);
        }
        if world.run_until(500, complete) {
            break;
        }
    }
    assert!(complete(&world), "seed {seed}: the objects are not on all replicas");
    assert!(world.run_until(20_000, |world| world.meta.is_healthy()), "seed {seed}: not healthy any more");
    let right = world.known(ids[0], ALL);
    (world, right)
}

fn spoil(world: &mut World, victim: DataServerId) -> usize {
    let count = 1 + world.rng.below(5);
    for _ in 0..count {
        let inode = KNOWN.start + world.rng.below(KNOWN.count() as u64);
        match world.rng.below(4) {
            0 => world.store(victim).spoil(key(inode), Spoil::Lose),
            1 => world.store(victim).spoil(key(inode), Spoil::Alter),
            2 => {
                world.store(victim).damaged.insert(key(inode));
            }
            _ => {
                let inode = INVENTED.start + world.rng.below(INVENTED.count() as u64);
                world.store(victim).spoil(key(inode), Spoil::Invent);
            }
        }
        let lost: Vec<_> = world.store(victim).damaged.iter().copied().collect();
        let missing: Vec<_> =
            lost.into_iter().filter(|key| !world.store(victim).objects().contains_key(key)).collect();
        for key in &missing {
            world.store(victim).damaged.remove(key);
        }
    }
    count as usize
}

fn assert_right(world: &mut World, seed: u64, right: &Objects) {
    let ids = world.ids();
    // What the primary sent last is on its way to a member yet.
    let all_right =
        |world: &World| ids.iter().all(|id| world.known(*id, ALL) == *right && world.damaged(*id).is_empty());
    if !world.run_until(5000, all_right) {
        check(world, seed);
        let states: Vec<_> = ids.iter().map(|id| (world.known(*id, ALL), world.damaged(*id))).collect();
        panic!("seed {seed}: right is {right:?}, there is {states:?}");
    }
}

fn scrub_and_wait(world: &mut World, seed: u64) {
    world.scrub();
    let done = world.run_until(130_000, World::is_scrubbed);
    check(world, seed);
    assert!(done, "seed {seed}: the scrub does not end\n{}", world.describe());
}

#[test]
fn a_scrub_replaces_what_went_wrong_on_one_replica() {
    let mut repaired = 0;
    for seed in seeds(300) {
        let (mut world, right) = world(seed);
        let ids = world.ids();
        let victim = ids[world.rng.below(3) as usize];
        for _ in 0..2 {
            spoil(&mut world, victim);
            scrub_and_wait(&mut world, seed);
            assert_right(&mut world, seed, &right);
        }
        let record = world.scrub_record().expect("there is a primary");
        assert!(record.found >= record.repaired && record.undecided == 0, "seed {seed}: {record:?}");
        repaired += record.repaired;
        settle(&mut world, seed);
        read_everything(&mut world, seed);
    }
    println!("{repaired} copies were replaced");
}

#[test]
fn crashes_and_changes_of_the_configuration_keep_no_scrub_from_its_work() {
    for seed in seeds(400) {
        let (mut world, right) = world(seed);
        let ids = world.ids();
        let victim = ids[world.rng.below(3) as usize];
        world.begin_faults(400);
        for _ in 0..3 {
            if world.meta.is_healthy() {
                spoil(&mut world, victim);
            }
            world.scrub();
            world.run_until(2500, |_| false);
            check(&mut world, seed);
        }
        world.heal();
        loop {
            let healthy =
                world.run_until(130_000, |w| w.all_are_up() && w.meta.is_healthy() && w.is_scrubbed());
            check(&mut world, seed);
            assert!(healthy, "seed {seed}: not healthy again\n{}", world.describe());
            let version = world.meta.config().version;
            scrub_and_wait(&mut world, seed);
            // Who was away meanwhile was not looked at: what was delayed by a pause can still have it dropped.
            if world.meta.config().version == version {
                break;
            }
        }
        assert_right(&mut world, seed, &right);
        settle(&mut world, seed);
        read_everything(&mut world, seed);
    }
}

#[test]
fn objects_that_are_being_written_are_made_equal_too() {
    for seed in seeds(200) {
        let (mut world, _) = world(seed);
        let primary = world.meta.config().primary.expect("healthy");
        let victim = world.ids().into_iter().find(|id| *id != primary).expect("three servers");
        for _ in 0..3 {
            let objects: Vec<ObjectKey> = world.known(victim, 1..101).into_keys().collect();
            for key in objects.into_iter().filter(|_| world.rng.chance(400)).collect::<Vec<_>>() {
                let how = if world.rng.chance(500) { Spoil::Lose } else { Spoil::Alter };
                world.store(victim).spoil(key, how);
            }
            // Clients go on meanwhile.
            world.scrub();
            world.run_until(1500, |_| false);
            check(&mut world, seed);
        }
        scrub_and_wait(&mut world, seed);
        settle(&mut world, seed);
        read_everything(&mut world, seed);
    }
}

#[test]
fn where_nothing_is_wrong_a_scrub_finds_nothing() {
    for seed in seeds(100) {
        let (mut world, right) = world(seed);
        world.scrub();
        world.begin_faults(500);
        world.run_until(4000, |_| false);
        check(&mut world, seed);
        settle(&mut world, seed);
        scrub_and_wait(&mut world, seed);
        assert_right(&mut world, seed, &right);
        let record = world.scrub_record().expect("there is a primary");
        assert_eq!((record.found, record.undecided), (0, 0), "seed {seed}");
        assert!(record.last_deep > 0, "seed {seed}: it came to an end");
    }
}
