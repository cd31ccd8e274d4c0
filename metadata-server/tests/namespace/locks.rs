//! Locks: one by one what each rule promises, and random histories against a table kept byte by byte.

use super::invariants::check;
use super::world::{Answer, World};
use metadata_server::state::key;
use metadata_server::state::prep::load;
use proptest::prelude::*;
use protocol::meta::{
    LockHolderInfo, LockRequest, LockResource, MetaError, MetaReply, NewNode, Push, ReadOp, WriteOp,
};
use protocol::{EntryName, Errno, FileKind, InodeId, MapEpoch, SessionId};
use std::collections::{BTreeMap, BTreeSet};

const WHOLE: (u64, u64) = (0, u64::MAX);
const BYTES: u64 = 8;

struct Bench {
    world: World,
    sessions: Vec<SessionId>,
    files: [InodeId; 2],
}

fn refused(errno: Errno) -> Answer {
    Err(MetaError::Errno(errno))
}

fn named() -> LockResource {
    LockResource::Named(EntryName::new("n").expect("legal"))
}

impl Bench {
    fn new(sessions: usize) -> Self {
        let mut world = World::new();
        let sessions: Vec<_> = (0..sessions).map(|_| world.open_session()).collect();
        let files = ["f", "g"].map(|name| {
            let node = NewNode { kind: FileKind::File, mode: 0o644, uid: 0, gid: 0, rdev: 0, target: vec![] };
            let name = EntryName::new(name).expect("legal");
            let op = WriteOp::Create { parent: InodeId::ROOT, name, node, handle: None };
            match world.write(sessions[0], op) {
                Ok(MetaReply::Entry(attr)) => attr.inode,
                other => panic!("no file: {other:?}"),
            }
        });
        world.settle();
        Self { world, sessions, files }
    }

    fn flock(&self) -> LockResource {
        LockResource::Flock(self.files[0])
    }

    fn posix(&self, file: usize) -> LockResource {
        LockResource::Posix(self.files[file])
    }

    fn execute(&mut self, session: SessionId, op: WriteOp) -> Answer {
        let answer = self.world.unmodelled(session, op);
        self.world.settle();
        check(&self.world.leader.machine.committed());
        answer
    }

    /// Session `who` locks as owner 1, waiting.
    fn lock(&mut self, who: usize, resource: &LockResource, range: (u64, u64), exclusive: bool) -> Answer {
        self.lock_as((self.sessions[who], 1), resource, range, exclusive, true)
    }

    fn lock_as(
        &mut self,
        (session, owner): (SessionId, u64),
        resource: &LockResource,
        (start, end): (u64, u64),
        exclusive: bool,
        wait: bool,
    ) -> Answer {
        let request = LockRequest { owner, exclusive, start, end, pid: 1 };
        let (resource, holder) = (resource.clone(), LockHolderInfo::default());
        self.execute(session, WriteOp::Lock { resource, request, wait, holder })
    }

    fn unlock(&mut self, who: usize, resource: &LockResource, (start, end): (u64, u64)) {
        let (session, resource) = (self.sessions[who], resource.clone());
        let answer = self.execute(session, WriteOp::Unlock { resource, owner: 1, start, end });
        assert_eq!(answer, Ok(MetaReply::Done));
    }

    /// Who was told to hold a lock since the last look.
    fn granted(&mut self) -> Vec<SessionId> {
        let is_grant = |(_, push): &(SessionId, Push)| matches!(push, Push::LockGranted { .. });
        std::mem::take(&mut self.world.pushed).into_iter().filter(is_grant).map(|(to, _)| to).collect()
    }

    fn holders(&self, resource: &LockResource) -> Vec<(SessionId, u64)> {
        match self.world.read(SessionId(0), &ReadOp::LockState(resource.clone())) {
            Ok(MetaReply::LockState { holders, .. }) => {
                holders.iter().map(|e| (e.session, e.token)).collect()
            }
            other => panic!("no state: {other:?}"),
        }
    }
}

fn is_granted(answer: &Answer) -> bool {
    matches!(answer, Ok(MetaReply::Granted { .. }))
}

fn wait_number(answer: &Answer) -> u64 {
    match answer {
        Ok(MetaReply::Queued { waiter }) => *waiter,
        other => panic!("it does not wait: {other:?}"),
    }
}

#[test]
fn waiters_are_served_in_order_with_rising_tokens() {
    let mut bench = Bench::new(4);
    assert!(is_granted(&bench.lock(0, &named(), WHOLE, true)));
    for who in 1..4 {
        wait_number(&bench.lock(who, &named(), WHOLE, true));
    }
    let mut last = 0;
    for who in 1..4 {
        bench.unlock(who - 1, &named(), WHOLE);
        assert_eq!(bench.granted(), [bench.sessions[who]]);
        let holders = bench.holders(&named());
        assert!(matches!(holders[..], [(session, token)] if session == bench.sessions[who] && token > last));
        last = holders[0].1;
    }
    bench.unlock(3, &named(), WHOLE);
    assert_eq!(bench.world.read(bench.sessions[0], &ReadOp::NamedLocks), Ok(MetaReply::Names(vec![])));
}

#[test]
fn readers_do_not_overtake_a_waiting_writer_and_then_come_together() {
    let mut bench = Bench::new(4);
    let flock = bench.flock();
    assert!(is_granted(&bench.lock(0, &flock, WHOLE, false)));
    wait_number(&bench.lock(1, &flock, WHOLE, true));
    wait_number(&bench.lock(2, &flock, WHOLE, false));
    wait_number(&bench.lock(3, &flock, WHOLE, false));
    bench.unlock(0, &flock, WHOLE);
    assert_eq!(bench.granted(), [bench.sessions[1]]);
    bench.unlock(1, &flock, WHOLE);
    assert_eq!(bench.granted(), bench.sessions[2..]);
}

#[test]
fn the_end_of_a_session_promotes_who_waits_under_the_epoch_that_fences_it() {
    let mut bench = Bench::new(2);
    assert!(is_granted(&bench.lock(0, &named(), WHOLE, true)));
    let waiter = wait_number(&bench.lock(1, &named(), WHOLE, true));
    bench.world.end_session(bench.sessions[0], true);
    bench.world.settle();
    let fence = bench.world.leader.machine.map().blocked[&bench.sessions[0]];
    let token = bench.world.revision();
    let push = Push::LockGranted { resource: named(), waiter, token, fence };
    assert!(bench.world.pushed.contains(&(bench.sessions[1], push)), "{:?}", bench.world.pushed);
    let state = bench.world.read(bench.sessions[1], &ReadOp::WaitState { resource: named(), waiter });
    assert_eq!(state, Ok(MetaReply::Granted { token, fence }), "also for who missed the push");
    let stored: Option<MapEpoch> =
        load(&bench.world.leader.machine.committed(), &key::system("fence")).expect("memory reads");
    assert_eq!(stored, Some(fence));
}

#[test]
fn a_session_that_ends_leaves_the_queue() {
    let mut bench = Bench::new(3);
    assert!(is_granted(&bench.lock(0, &named(), WHOLE, true)));
    wait_number(&bench.lock(1, &named(), WHOLE, true));
    wait_number(&bench.lock(2, &named(), WHOLE, true));
    bench.world.end_session(bench.sessions[1], false);
    bench.unlock(0, &named(), WHOLE);
    assert_eq!(bench.granted(), [bench.sessions[2]]);
}

#[test]
fn a_wait_that_is_cancelled_too_late_gives_its_grant_to_the_next() {
    let mut bench = Bench::new(3);
    assert!(is_granted(&bench.lock(0, &named(), WHOLE, true)));
    let waiter = wait_number(&bench.lock(1, &named(), WHOLE, true));
    wait_number(&bench.lock(2, &named(), WHOLE, true));
    bench.unlock(0, &named(), WHOLE);
    assert_eq!(bench.granted(), [bench.sessions[1]]);
    let cancel = WriteOp::CancelWait { resource: named(), waiter };
    assert_eq!(bench.execute(bench.sessions[1], cancel.clone()), Ok(MetaReply::Done));
    assert_eq!(bench.granted(), [bench.sessions[2]]);
    assert_eq!(bench.execute(bench.sessions[1], cancel), Ok(MetaReply::Done), "cancelling is idempotent");
    assert_eq!(bench.holders(&named())[0].0, bench.sessions[2]);
    let state = bench.world.read(bench.sessions[1], &ReadOp::WaitState { resource: named(), waiter });
    assert_eq!(state, refused(Errno::ENOENT));
}

#[test]
fn a_broken_lock_goes_to_the_next_in_line() {
    let mut bench = Bench::new(3);
    let name = EntryName::new("n").expect("legal");
    let broken = WriteOp::BreakLock { name };
    assert_eq!(bench.execute(bench.sessions[2], broken.clone()), refused(Errno::ENOENT));
    assert!(is_granted(&bench.lock(0, &named(), WHOLE, true)));
    wait_number(&bench.lock(1, &named(), WHOLE, true));
    assert_eq!(bench.execute(bench.sessions[2], broken), Ok(MetaReply::Done));
    assert_eq!(bench.granted(), [bench.sessions[1]]);
    bench.unlock(0, &named(), WHOLE);
    assert_eq!(bench.holders(&named())[0].0, bench.sessions[1], "who lost it cannot release it");
}

#[test]
fn two_who_convert_a_shared_flock_do_not_wait_for_each_other() {
    let mut bench = Bench::new(2);
    let flock = bench.flock();
    assert!(is_granted(&bench.lock(0, &flock, WHOLE, false)));
    assert!(is_granted(&bench.lock(1, &flock, WHOLE, false)));
    let again = bench.lock_as((bench.sessions[0], 1), &flock, WHOLE, true, false);
    assert_eq!(again, refused(Errno::EAGAIN));
    assert_eq!(bench.holders(&flock).len(), 2, "who does not wait keeps what it has");
    wait_number(&bench.lock(0, &flock, WHOLE, true));
    assert!(is_granted(&bench.lock(1, &flock, WHOLE, true)), "the other let go when it began to wait");
    bench.unlock(1, &flock, WHOLE);
    assert_eq!(bench.granted(), [bench.sessions[0]]);
}

#[test]
fn circles_of_posix_locks_are_refused() {
    let mut bench = Bench::new(3);
    let (f, g) = (bench.posix(0), bench.posix(1));
    assert!(is_granted(&bench.lock(0, &f, (0, 0), true)));
    assert!(is_granted(&bench.lock(1, &f, (1, 1), true)));
    assert!(is_granted(&bench.lock(2, &g, (0, 9), false)));
    wait_number(&bench.lock(0, &f, (1, 1), true));
    wait_number(&bench.lock(1, &g, (5, 5), true));
    assert_eq!(bench.lock(2, &f, (0, 9), true), refused(Errno::EDEADLK), "over two files and three owners");
    let without_waiting = bench.lock_as((bench.sessions[2], 1), &f, (0, 0), true, false);
    assert_eq!(without_waiting, refused(Errno::EAGAIN));
    let flock = bench.flock();
    assert!(is_granted(&bench.lock(2, &flock, WHOLE, true)), "other kinds of locks do not count");
}

#[test]
fn a_turn_is_no_reason_for_a_deadlock() {
    let mut bench = Bench::new(3);
    let (f, g) = (bench.posix(0), bench.posix(1));
    let (reader, writer, third) = (0, 1, 2);
    assert!(is_granted(&bench.lock(reader, &f, (0, 0), false)));
    assert!(is_granted(&bench.lock(third, &g, (0, 0), true)));
    wait_number(&bench.lock(writer, &f, (0, 0), true));
    wait_number(&bench.lock(reader, &g, (0, 0), true));
    // It would wait for the writer, which waits for the reader, which waits for it.
    assert!(is_granted(&bench.lock(third, &f, (0, 0), false)), "as it would be without a queue");
}

#[test]
fn a_grant_that_turns_a_lock_into_a_shared_one_lets_in_who_came_before() {
    let mut bench = Bench::new(3);
    let posix = bench.posix(0);
    assert!(is_granted(&bench.lock(0, &posix, (0, 10), true)));
    assert!(is_granted(&bench.lock(1, &posix, (11, 20), true)));
    wait_number(&bench.lock(2, &posix, (0, 5), false));
    wait_number(&bench.lock(0, &posix, (0, 20), false));
    bench.unlock(1, &posix, (11, 20));
    assert_eq!(bench.granted(), [bench.sessions[0], bench.sessions[2]]);
}

#[test]
fn what_does_not_exist_cannot_be_locked() {
    let mut bench = Bench::new(1);
    assert_eq!(bench.lock(0, &LockResource::Flock(InodeId(999)), WHOLE, true), refused(Errno::ENOENT));
    let posix = bench.posix(0);
    assert_eq!(bench.lock(0, &posix, (5, 4), true), refused(Errno::EINVAL));
    let unlock = WriteOp::Unlock { resource: posix, owner: 1, start: 5, end: 4 };
    assert_eq!(bench.execute(bench.sessions[0], unlock), refused(Errno::EINVAL));
}

type Owner = (SessionId, u64);

/// A wait in the reference table.
#[derive(Clone, Debug, PartialEq)]
struct Wait {
    number: u64,
    owner: Owner,
    range: (u64, u64),
    exclusive: bool,
}

/// One resource, byte by byte.
#[derive(Clone, Debug, Default)]
struct Reference {
    /// byte → owner → exclusive
    held: BTreeMap<u64, BTreeMap<Owner, bool>>,
    queue: Vec<Wait>,
}

fn meets(a: (u64, u64), b: (u64, u64)) -> bool {
    a.0 <= b.1 && b.0 <= a.1
}

impl Reference {
    fn in_range(&self, (start, end): (u64, u64)) -> impl Iterator<Item = (&Owner, &bool)> {
        self.held.range(start..=end).flat_map(|(_, owners)| owners)
    }

    fn in_the_way(&self, wait: &Wait) -> BTreeSet<Owner> {
        let all = self
            .in_range(wait.range)
            .filter(|(o, exclusive)| **o != wait.owner && (**exclusive || wait.exclusive));
        all.map(|(owner, _)| *owner).collect()
    }

    /// Those who came first, unless it holds a part already.
    fn before(&self, wait: &Wait, queue: &[Wait]) -> BTreeSet<Owner> {
        if self.in_range(wait.range).any(|(owner, _)| *owner == wait.owner) {
            return BTreeSet::new();
        }
        let is_before = |w: &&Wait| {
            w.owner != wait.owner && meets(w.range, wait.range) && (w.exclusive || wait.exclusive)
        };
        queue.iter().filter(is_before).map(|w| w.owner).collect()
    }

    fn release(&mut self, owner: Owner, (start, end): (u64, u64)) {
        for (_, owners) in self.held.range_mut(start..=end) {
            owners.remove(&owner);
        }
    }

    fn grant(&mut self, wait: &Wait) {
        for byte in wait.range.0..=wait.range.1 {
            self.held.entry(byte).or_default().insert(wait.owner, wait.exclusive);
        }
    }

    /// Grants what can be granted; the numbers of the waits.
    fn promote(&mut self) -> Vec<u64> {
        let mut granted = Vec::new();
        let mut at = 0;
        while at < self.queue.len() {
            let wait = self.queue[at].clone();
            if self.in_the_way(&wait).is_empty() && self.before(&wait, &self.queue[..at]).is_empty() {
                self.grant(&wait);
                granted.push(self.queue.remove(at).number);
                at = 0;
            } else {
                at += 1;
            }
        }
        granted
    }
}

/// Whether `from` waits for itself.
fn is_circle(tables: &[&Reference], from: Owner) -> bool {
    let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
    while let Some(owner) = next.pop() {
        for table in tables {
            for (at, wait) in table.queue.iter().enumerate().filter(|(_, wait)| wait.owner == owner) {
                let waits_for =
                    table.in_the_way(wait).into_iter().chain(table.before(wait, &table.queue[..at]));
                for other in waits_for {
                    if other == from {
                        return true;
                    }
                    if seen.insert(other) {
                        next.push(other);
                    }
                }
            }
        }
    }
    false
}

struct Play {
    bench: Bench,
    tables: BTreeMap<LockResource, Reference>,
}

impl Play {
    fn resource(&self, by: u8) -> LockResource {
        match by % 5 {
            0 => self.bench.flock(),
            1 => named(),
            2 => self.bench.posix(1),
            _ => self.bench.posix(0),
        }
    }

    fn step(&mut self, [what, who, on, from, to, how]: [u8; 6]) {
        let session = self.bench.sessions[usize::from(who) % self.bench.sessions.len()];
        let owner = (session, u64::from(who / 64));
        let resource = self.resource(on);
        let is_posix = matches!(resource, LockResource::Posix(_));
        let (from, to) = (u64::from(from) % BYTES, u64::from(to) % BYTES);
        let range = if is_posix { (from.min(to), from.max(to)) } else { (0, BYTES - 1) };
        let waits = self.tables.values().flat_map(|t| &t.queue).any(|wait| wait.owner == owner);
        match what % 8 {
            // A thread that waits does nothing else.
            0..=4 if !waits => self.lock(owner, &resource, range, how),
            5..=6 if !waits => self.unlock(owner, &resource, range),
            7 if how < 60 => self.end_session(session),
            _ => self.cancel(&resource, how),
        }
        self.compare();
    }

    fn lock(&mut self, owner: Owner, resource: &LockResource, range: (u64, u64), how: u8) {
        let (exclusive, may_wait) = (how.is_multiple_of(2), how % 8 != 1);
        let number = self.bench.world.revision() + 1;
        let wait = Wait { number, owner, range, exclusive };
        let mut table = self.tables.remove(resource).unwrap_or_default();
        let (held, turn) = (table.in_the_way(&wait), table.before(&wait, &table.queue));
        let answer = self.bench.lock_as(owner, resource, range, exclusive, may_wait);
        table.queue.push(wait.clone());
        let others = self.tables.iter().filter(|(r, _)| matches!(r, LockResource::Posix(_))).map(|(_, t)| t);
        let tables: Vec<_> = others.chain([&table]).collect();
        let is_circle = matches!(resource, LockResource::Posix(_)) && is_circle(&tables, owner);
        table.queue.pop();
        if held.is_empty() && (turn.is_empty() || (may_wait && is_circle)) {
            assert!(is_granted(&answer), "{answer:?}");
            table.grant(&wait);
        } else if !may_wait {
            assert_eq!(answer, refused(Errno::EAGAIN));
        } else if is_circle {
            assert_eq!(answer, refused(Errno::EDEADLK));
        } else {
            assert_eq!(wait_number(&answer), number);
            if matches!(resource, LockResource::Flock(_)) {
                table.release(owner, range);
            }
            table.queue.push(wait);
        }
        self.tables.insert(resource.clone(), table);
        self.promote(std::slice::from_ref(resource));
    }

    fn unlock(&mut self, (session, owner): Owner, resource: &LockResource, (start, end): (u64, u64)) {
        let op = WriteOp::Unlock { resource: resource.clone(), owner, start, end };
        assert_eq!(self.bench.execute(session, op), Ok(MetaReply::Done));
        self.tables.entry(resource.clone()).or_default().release((session, owner), (start, end));
        self.promote(std::slice::from_ref(resource));
    }

    fn cancel(&mut self, resource: &LockResource, by: u8) {
        let table = self.tables.entry(resource.clone()).or_default();
        if table.queue.is_empty() {
            return;
        }
        let wait = table.queue.remove(usize::from(by) % table.queue.len());
        let op = WriteOp::CancelWait { resource: resource.clone(), waiter: wait.number };
        assert_eq!(self.bench.execute(wait.owner.0, op), Ok(MetaReply::Done));
        self.promote(std::slice::from_ref(resource));
    }

    fn end_session(&mut self, session: SessionId) {
        self.bench.world.end_session(session, true);
        self.bench.world.settle();
        for table in self.tables.values_mut() {
            table.held.values_mut().for_each(|owners| owners.retain(|owner, _| owner.0 != session));
            table.queue.retain(|wait| wait.owner.0 != session);
        }
        let new = self.bench.world.open_session();
        self.bench.world.settle();
        self.bench.sessions.retain(|other| *other != session);
        self.bench.sessions.push(new);
        let all: Vec<_> = self.tables.keys().cloned().collect();
        self.promote(&all);
    }

    fn promote(&mut self, resources: &[LockResource]) {
        let mut expected = BTreeSet::new();
        for resource in resources {
            let granted = self.tables.get_mut(resource).map(Reference::promote).unwrap_or_default();
            expected.extend(granted.into_iter().map(|number| (resource.clone(), number)));
        }
        let pushed = std::mem::take(&mut self.bench.world.pushed).into_iter();
        let told: BTreeSet<_> = pushed
            .filter_map(|(_, push)| match push {
                Push::LockGranted { resource, waiter, .. } => Some((resource, waiter)),
                _ => None,
            })
            .collect();
        assert_eq!(told, expected, "who is told");
    }

    fn compare(&self) {
        for (resource, table) in &self.tables {
            let state = self.bench.world.read(SessionId(0), &ReadOp::LockState(resource.clone()));
            let Ok(MetaReply::LockState { holders, waiters }) = state else { panic!("no state: {state:?}") };
            let mut held: BTreeMap<u64, BTreeMap<Owner, bool>> = BTreeMap::new();
            for entry in &holders {
                let (owner, request) = ((entry.session, entry.request.owner), entry.request);
                for byte in request.start..=request.end.min(BYTES - 1) {
                    let twice = held.entry(byte).or_default().insert(owner, request.exclusive);
                    assert_eq!(twice, None, "an owner holds a byte once");
                }
            }
            let mut expected = table.held.clone();
            expected.retain(|_, owners| !owners.is_empty());
            assert_eq!(held, expected, "{resource:?}");
            let numbers: Vec<_> = waiters.iter().map(|entry| entry.token).collect();
            assert_eq!(numbers, table.queue.iter().map(|wait| wait.number).collect::<Vec<_>>());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn locks_behave_like_a_table_of_bytes(steps in prop::collection::vec(any::<[u8; 6]>(), 1..80)) {
        let mut play = Play { bench: Bench::new(3), tables: BTreeMap::new() };
        steps.iter().for_each(|step| play.step(*step));
    }
}
