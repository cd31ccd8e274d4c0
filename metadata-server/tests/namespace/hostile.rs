//! Requests that decode and make no sense: a client that a certificate admits can still send anything.
//!
//! Random bytes are decoded as operations. Numbers come out small, so that they often name what exists. Whatever is
//! asked: nothing panics, what is refused changes nothing, what is accepted keeps every invariant, and both replicas
//! stay equal. `FUZZ_ROUNDS=N` plays N times as many.

use super::invariants::check;
use super::world::World;
use metadata_server::state::prep::PrepError;
use protocol::meta::{NewNode, ReadOp, WriteOp};
use protocol::{DataServerId, EntryName, FileKind, InodeId, PgId, SessionId};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use serde::de::DeserializeOwned;

/// Worlds per round, and operations in each.
const WORLDS: u64 = 12;
const OPERATIONS: usize = 400;
/// Longest encoding that is tried in bytes.
const BYTES_MAX: usize = 48;

/// Random bytes until they decode. Most are small: they end up as small numbers, short names and short lists.
fn any<T: DeserializeOwned>(rng: &mut ChaCha8Rng) -> T {
    loop {
        let mut bytes: Vec<u8> = (0..BYTES_MAX).map(|_| any_byte(rng)).collect();
        // Which variant it is.
        bytes[0] = (rng.next_u32() % 24) as u8;
        if let Ok((value, _)) = postcard::take_from_bytes(&bytes) {
            return value;
        }
    }
}

fn any_byte(rng: &mut ChaCha8Rng) -> u8 {
    match rng.next_u32() % 16 {
        0 => rng.next_u32() as u8,
        1 => 0xff,
        2 | 3 => b'a' + (rng.next_u32() % 3) as u8,
        4..8 => (rng.next_u32() % 8) as u8,
        8 | 9 => 0,
        _ => 1,
    }
}

fn rounds() -> u64 {
    std::env::var("FUZZ_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

#[test]
fn whatever_clients_ask_the_tables_stay_sound() {
    let (mut accepted, mut asked) = (0, 0);
    for seed in 0..WORLDS * rounds() {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut world = World::new();
        let sessions = [world.open_session(), world.open_session(), SessionId(77)];
        for (name, kind) in [("a", FileKind::Directory), ("b", FileKind::File), ("c", FileKind::File)] {
            let node = NewNode { kind, mode: 0o777, uid: 1, gid: 1, rdev: 0, target: vec![] };
            let name = EntryName::new(name).expect("legal");
            let op = WriteOp::Create { parent: InodeId::ROOT, name, node, handle: None };
            world.unmodelled(sessions[0], op).expect("the root takes them");
        }
        for _ in 0..OPERATIONS {
            let session = sessions[rng.next_u32() as usize % sessions.len()];
            let op: WriteOp = any(&mut rng);
            accepted += u32::from(world.unmodelled(session, op).is_ok());
            // Any answer will do.
            let _ = world.read(session, &any::<ReadOp>(&mut rng));
            asked += 1;
            if rng.next_u32().is_multiple_of(3) {
                world.settle();
                check(&world.leader.machine.committed());
            }
        }
        world.settle();
        check(&world.leader.machine.committed());
        assert_eq!(world.leader.rows(), world.follower.rows(), "seed {seed}");
        world.restart_follower();
    }
    assert!(
        accepted * 50 > asked,
        "only {accepted} of {asked} operations were accepted: they miss what exists"
    );
}

#[test]
fn whatever_data_servers_propose_the_map_stays_sound() {
    for seed in 0..WORLDS * rounds() {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let world = World::new();
        for _ in 0..OPERATIONS {
            let server = DataServerId(rng.next_u32() % 4);
            let (pg, change): (PgId, _) = (any(&mut rng), any(&mut rng));
            let version = u64::from(rng.next_u32() % 3);
            let proposed = world.leader.machine.prepare(protocol::Timestamp::default(), |prep| {
                prep.change_group(server, pg, version, &change)
            });
            if let Err((PrepError::Store(error), _)) = proposed {
                panic!("seed {seed}: {error}");
            }
        }
    }
}
