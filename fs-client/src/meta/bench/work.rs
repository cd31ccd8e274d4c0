//! The operations of the benchmark, and the loops that run them.

use super::{BenchError, Row};
use crate::data::bench::quantile;
use crate::meta::{MetaClient, MetaFailure};
use crate::os;
use protocol::meta::{MetaReply, NewNode, ReadOp, WriteOp};
use protocol::{EntryName, FileKind, InodeId};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// Bytes of a value.
const VALUE_BYTES: usize = 100;
/// Operations under way per session while znodes are made and removed.
const BULK_DEPTH: u32 = 200;
/// Names asked for at once when everything is removed.
const LISTED: u32 = 1024;
/// Operations under way at most at a fixed rate; what is due beyond begins later, and its delay counts.
const PACED_MAX: usize = 20_000;

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Makes a znode with its bytes.
    Create,
    /// Replaces a znode's bytes.
    Set,
    /// Reads attributes and bytes of a znode.
    Get,
    /// One set, two gets.
    Mixed,
}

/// One measurement, on a directory of its own.
pub(super) struct Bench {
    sessions: Vec<Rc<MetaClient>>,
    directory: InodeId,
    name: EntryName,
    /// How many znodes sets and gets touch.
    wanted: u32,
    znodes: RefCell<Vec<InodeId>>,
    /// Names given so far.
    names: Cell<u64>,
    random: Cell<u64>,
    stopping: Cell<bool>,
    running: Cell<usize>,
    clock: RefCell<Clock>,
}

/// What is noted of the answers of one row.
#[derive(Default)]
struct Clock {
    latencies: Vec<Duration>,
    last: Option<Instant>,
    gap: Duration,
}

impl Clock {
    fn note(&mut self, began: Instant) {
        let now = Instant::now();
        self.latencies.push(now - began);
        self.gap = self.gap.max(self.last.map_or(Duration::ZERO, |last| now - last));
        self.last = Some(now);
    }
}

/// Counts a loop as running while it lives.
struct Running<'a>(&'a Cell<usize>);

impl<'a> Running<'a> {
    fn begin(count: &'a Cell<usize>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Bench {
    /// Makes the directory.
    pub(super) async fn begin(sessions: Vec<Rc<MetaClient>>, wanted: u32) -> Result<Rc<Self>, BenchError> {
        let name = format!("zabfs-bench-{:x}", os::random_u128());
        let name = EntryName::new(name).expect("a legal name");
        let failed = |failure| BenchError::Refused { step: "make a directory".to_owned(), failure };
        let node = new_node(FileKind::Directory, Vec::new());
        let op = WriteOp::Create { parent: InodeId::ROOT, name: name.clone(), node, handle: None };
        let directory = match sessions[0].write(op).await.map_err(failed)? {
            MetaReply::Entry(attr) => attr.inode,
            _ => return Err(failed(MetaFailure::Unexpected("a creation"))),
        };
        Ok(Rc::new(Self {
            sessions,
            directory,
            name,
            wanted,
            znodes: RefCell::default(),
            names: Cell::new(0),
            random: Cell::new(0x9e37_79b9_7f4a_7c15),
            stopping: Cell::new(false),
            running: Cell::new(0),
            clock: RefCell::default(),
        }))
    }

    /// Makes the znodes that sets and gets touch.
    pub(super) async fn fill(self: &Rc<Self>) -> Result<Row, BenchError> {
        let began = Instant::now();
        let mut running = JoinSet::new();
        let wanted = self.wanted as usize;
        let workers = (self.sessions.len() * BULK_DEPTH as usize).min(wanted);
        for worker in 0..workers {
            let bench = self.clone();
            running.spawn_local(async move {
                let _running = Running::begin(&bench.running);
                let mut share = wanted / workers + usize::from(worker < wanted % workers);
                while share > 0 && !bench.stopping.get() {
                    share -= 1;
                    let made =
                        bench.timed(&bench.sessions[worker % bench.sessions.len()], Kind::Create).await?;
                    bench.znodes.borrow_mut().extend(made);
                }
                Ok(())
            });
        }
        finish(&mut running, "fill").await?;
        Ok(self.row("fill", self.sessions.len() as u32, (workers / self.sessions.len()) as u32, began))
    }

    /// As many operations under way as said, for as long as said.
    pub(super) async fn closed_loop(
        self: &Rc<Self>,
        name: &str,
        kind: Kind,
        sessions: u32,
        depth: u32,
        length: Duration,
    ) -> Result<Row, BenchError> {
        let began = Instant::now();
        let until = began + length;
        let mut running = JoinSet::new();
        for worker in 0..sessions * depth {
            let bench = self.clone();
            let session = self.sessions[(worker % sessions) as usize].clone();
            running.spawn_local(async move {
                let _running = Running::begin(&bench.running);
                while Instant::now() < until && !bench.stopping.get() {
                    bench.timed(&session, kind).await?;
                }
                Ok(())
            });
        }
        finish(&mut running, name).await?;
        Ok(self.row(name, sessions, depth, began))
    }

    /// Sets at a fixed rate, each timed from when it was due.
    pub(super) async fn paced(
        self: &Rc<Self>,
        name: &str,
        sessions: u32,
        rate: u32,
        length: Duration,
    ) -> Result<Row, BenchError> {
        let began = Instant::now();
        let total = (length.as_secs_f64() * f64::from(rate)) as u64;
        let mut running = JoinSet::new();
        let mut sent = 0;
        while sent < total && !self.stopping.get() {
            let due = ((began.elapsed().as_secs_f64() * f64::from(rate)) as u64).min(total);
            while sent < due && running.len() < PACED_MAX {
                let bench = self.clone();
                let session = self.sessions[(sent % u64::from(sessions)) as usize].clone();
                let due_at = began + Duration::from_secs_f64(sent as f64 / f64::from(rate));
                running.spawn_local(async move {
                    let _running = Running::begin(&bench.running);
                    bench.operate(&session, Kind::Set).await?;
                    bench.clock.borrow_mut().note(due_at);
                    Ok(())
                });
                sent += 1;
            }
            while let Some(ended) = running.try_join_next() {
                check(ended, name)?;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        finish(&mut running, name).await?;
        Ok(self.row(name, sessions, 0, began))
    }

    /// Ends the loops; what they have under way is decided when this returns.
    pub(super) async fn stop(&self) {
        self.stopping.set(true);
        while self.running.get() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Removes everything that was made.
    pub(super) async fn remove(self: &Rc<Self>) -> Result<(), BenchError> {
        let mut next = 0;
        loop {
            let names = self.list().await?;
            if names.is_empty() {
                break;
            }
            let mut running = JoinSet::new();
            for name in names {
                next += 1;
                let session = self.sessions[next % self.sessions.len()].clone();
                let op = WriteOp::Unlink { parent: self.directory, name };
                running.spawn_local(async move { session.write(op).await.map(drop) });
            }
            finish(&mut running, "remove").await?;
        }
        let op = WriteOp::Rmdir { parent: InodeId::ROOT, name: self.name.clone() };
        let removed = self.sessions[0].write(op).await.map(drop);
        removed.map_err(|failure| BenchError::Refused { step: "remove the directory".to_owned(), failure })
    }

    async fn list(&self) -> Result<Vec<EntryName>, BenchError> {
        let (mut names, mut cookie) = (Vec::new(), 0);
        // Several pages at once, so that many removals are under way together.
        for _ in 0..8 {
            let op = ReadOp::Readdir { inode: self.directory, cookie, limit: LISTED };
            let page = match self.sessions[0].read(op).await {
                Ok(MetaReply::Entries { entries, .. }) => entries,
                Ok(_) => return Err(refused("list", MetaFailure::Unexpected("a listing"))),
                Err(failure) => return Err(refused("list", failure)),
            };
            let Some(last) = page.last() else { break };
            cookie = last.cookie;
            names.extend(page.into_iter().map(|entry| entry.name));
        }
        Ok(names)
    }

    /// One operation, and the time it took.
    async fn timed(&self, session: &Rc<MetaClient>, kind: Kind) -> Result<Option<InodeId>, MetaFailure> {
        let began = Instant::now();
        let made = self.operate(session, kind).await?;
        self.clock.borrow_mut().note(began);
        Ok(made)
    }

    async fn operate(&self, session: &Rc<MetaClient>, kind: Kind) -> Result<Option<InodeId>, MetaFailure> {
        let kind = match kind {
            Kind::Mixed if self.random().is_multiple_of(3) => Kind::Set,
            Kind::Mixed => Kind::Get,
            other => other,
        };
        let number = self.names.get();
        match kind {
            Kind::Create => {
                self.names.set(number + 1);
                let name = EntryName::new(format!("z{number}")).expect("a legal name");
                let node = new_node(FileKind::File, vec![0x5a; VALUE_BYTES]);
                let op = WriteOp::Create { parent: self.directory, name, node, handle: None };
                match session.write(op).await? {
                    MetaReply::Entry(attr) => Ok(Some(attr.inode)),
                    _ => Err(MetaFailure::Unexpected("a creation")),
                }
            }
            Kind::Set => {
                let data = vec![self.random() as u8; VALUE_BYTES];
                let inode = self.place();
                let op = WriteOp::WriteInline { inode, offset: Some(0), data, kill_privileges: false };
                session.write(op).await.map(|_| None)
            }
            Kind::Get | Kind::Mixed => {
                session.read(ReadOp::View { inode: self.place(), known: 0 }).await.map(|_| None)
            }
        }
    }

    fn place(&self) -> InodeId {
        let znodes = self.znodes.borrow();
        znodes[(self.random() % znodes.len() as u64) as usize]
    }

    /// Xorshift: any will do.
    fn random(&self) -> u64 {
        let mut x = self.random.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random.set(x);
        x
    }

    fn row(&self, name: &str, sessions: u32, depth: u32, began: Instant) -> Row {
        let seconds = began.elapsed().as_secs_f64();
        let Clock { mut latencies, gap, .. } = std::mem::take(&mut *self.clock.borrow_mut());
        latencies.sort_unstable();
        let operations = latencies.len() as u64;
        Row {
            name: name.to_owned(),
            sessions,
            depth,
            operations,
            seconds,
            ops_per_second: operations as f64 / seconds,
            p50_us: quantile(&latencies, 0.5),
            p99_us: quantile(&latencies, 0.99),
            max_us: quantile(&latencies, 1.0),
            gap_us: gap.as_micros() as u64,
            lost_sessions: self.sessions.iter().map(|session| session.generation()).sum(),
        }
    }
}

fn new_node(kind: FileKind, target: Vec<u8>) -> NewNode {
    let (uid, gid) = os::own_ids();
    let mode = if kind == FileKind::Directory { 0o700 } else { 0o600 };
    NewNode { kind, mode, uid, gid, rdev: 0, target }
}

fn refused(step: &str, failure: MetaFailure) -> BenchError {
    BenchError::Refused { step: step.to_owned(), failure }
}

/// Waits for all of them; the first failure counts.
async fn finish(running: &mut JoinSet<Result<(), MetaFailure>>, step: &str) -> Result<(), BenchError> {
    while let Some(ended) = running.join_next().await {
        check(ended, step)?;
    }
    Ok(())
}

fn check(
    ended: Result<Result<(), MetaFailure>, tokio::task::JoinError>,
    step: &str,
) -> Result<(), BenchError> {
    ended.expect("a task of the benchmark panicked").map_err(|failure| refused(step, failure))
}
