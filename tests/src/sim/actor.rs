//! What a client or a data server does to have a session: finds the leader, attaches, keeps alive, asks again.

use std::collections::BTreeMap;

use protocol::meta::{MetaError, MetaReply, MetaRequest, MetaResponse, Push, WriteOp};
use protocol::{InodeId, SessionId};
use zab::PeerId;

use super::data_server::DataServer;
use super::oracle::Oracle;
use super::program::{Ask, Locks, Outcome, Private, Registers, Scene};
use super::reader::Reader;
use super::times::Times;
use crate::simulation::rng::Rng;

/// What an actor wants done.
#[derive(Debug)]
pub(crate) enum Wish {
    Connect(PeerId),
    Send(u64, MetaRequest),
    Disconnect,
}

/// What an actor sees of the world.
pub(crate) struct Stage<'a> {
    /// Simulated time.
    pub(crate) time: u64,
    pub(crate) rng: &'a mut Rng,
    pub(crate) oracle: &'a mut Oracle,
    pub(crate) servers: &'a [PeerId],
    /// New work is wanted.
    pub(crate) is_busy_time: bool,
    pub(crate) wishes: Vec<Wish>,
}

/// A client, a data server, or a client that only reads.
pub(crate) enum Actor {
    Client(Box<Client>),
    Data(Box<DataServer>),
    Reader(Box<Reader>),
}

impl Actor {
    pub(crate) fn tick(&mut self, stage: &mut Stage<'_>) -> Result<(), String> {
        match self {
            Actor::Client(client) => client.tick(stage),
            Actor::Data(server) => server.tick(stage),
            Actor::Reader(reader) => {
                reader.tick(stage);
                Ok(())
            }
        }
    }

    pub(crate) fn answered(
        &mut self,
        call: u64,
        response: MetaResponse,
        stage: &mut Stage<'_>,
    ) -> Result<(), String> {
        match self {
            Actor::Client(client) => client.answered(call, response, stage),
            Actor::Data(server) => server.answered(call, response, stage),
            Actor::Reader(reader) => reader.answered(call, response, stage),
        }
    }

    pub(crate) fn pushed(&mut self, push: &Push, stage: &mut Stage<'_>) -> Result<(), String> {
        match self {
            Actor::Client(client) => client.pushed(push, stage),
            Actor::Data(server) => {
                server.pushed(push);
                Ok(())
            }
            Actor::Reader(_) => Ok(()),
        }
    }

    /// The connection is gone.
    pub(crate) fn lost(&mut self, stage: &mut Stage<'_>) {
        match self {
            Actor::Client(client) => client.link.lost(stage),
            Actor::Data(server) => server.link.lost(stage),
            Actor::Reader(reader) => reader.lost(stage),
        }
    }

    /// When it wants to be called.
    pub(crate) fn wakes_at(&self) -> u64 {
        match self {
            Actor::Client(client) => client.wakes_at(),
            Actor::Data(server) => server.wakes_at(),
            Actor::Reader(reader) => reader.wakes_at(),
        }
    }
}

/// A connection to whom an actor takes for the leader.
pub(crate) struct Link {
    /// A call without an answer for this long costs the connection.
    patience_ms: u64,
    pub(crate) is_up: bool,
    pub(crate) retry_at: u64,
    hint: Option<PeerId>,
    next_call: u64,
    /// When the oldest call that has no answer was made.
    pub(crate) waiting: BTreeMap<u64, u64>,
}

impl Link {
    pub(crate) fn new(patience_ms: u64) -> Link {
        Link { patience_ms, is_up: false, retry_at: 0, hint: None, next_call: 0, waiting: BTreeMap::new() }
    }

    pub(crate) fn connect(&mut self, stage: &mut Stage<'_>) {
        let server = self.hint.take().unwrap_or_else(|| stage.rng.pick(stage.servers));
        self.is_up = true;
        stage.wishes.push(Wish::Connect(server));
    }

    pub(crate) fn send(&mut self, request: MetaRequest, stage: &mut Stage<'_>) -> u64 {
        self.next_call += 1;
        self.waiting.insert(self.next_call, stage.time);
        stage.wishes.push(Wish::Send(self.next_call, request));
        self.next_call
    }

    pub(crate) fn drop_connection(&mut self, stage: &mut Stage<'_>) {
        if self.is_up {
            stage.wishes.push(Wish::Disconnect);
        }
        self.lost(stage);
    }

    pub(crate) fn lost(&mut self, stage: &mut Stage<'_>) {
        self.is_up = false;
        self.waiting.clear();
        self.retry_at = stage.time + stage.rng.between(1, 300);
    }

    /// It does not lead: the one that it names is next.
    pub(crate) fn not_leader(&mut self, leader: Option<u32>, stage: &mut Stage<'_>) {
        self.drop_connection(stage);
        self.hint = leader.map(PeerId);
        if self.hint.is_some() {
            self.retry_at = stage.time + 1;
        }
    }

    pub(crate) fn gives_up_at(&self) -> Option<u64> {
        self.waiting.values().min().map(|since| since + self.patience_ms)
    }
}

/// Programs of a client, and where their calls are. The last one only settles times, whatever the others wait for.
const PROGRAMS: usize = 5;
const SETTLER: usize = 4;

struct Work {
    ask: Ask,
    /// Of a write: drawn when it is first sent.
    sequence: Option<u64>,
    /// The call of this connection that asks for it.
    call: Option<u64>,
    send_at: u64,
}

/// A client with one session at a time.
pub(crate) struct Client {
    pub(crate) id: u32,
    /// Milliseconds that its clock counts in 1,000.
    rate: u64,
    timeout_ms: u32,
    pub(crate) link: Link,
    nonce: u128,
    session: Option<SessionId>,
    is_attached: bool,
    /// The call that opens, attaches or keeps alive, and when it was sent.
    session_call: Option<(u64, u64)>,
    heartbeat_at: u64,
    next_sequence: u64,
    /// The low-water mark as last told: it may lag.
    told_low_water: u64,
    registers: Registers,
    locks: Locks,
    private: Private,
    times: Times,
    /// Until then the session has surely not ended, by this client's clock and with its margin.
    valid_until: u64,
    work: [Option<Work>; PROGRAMS],
    next_at: [u64; PROGRAMS],
    think_ms: u64,
    pub(crate) completed: u64,
}

impl Client {
    pub(crate) fn new(id: u32, rate: u64, timeout_ms: u32, patience_ms: u64, think_ms: u64) -> Client {
        Client {
            id,
            rate,
            timeout_ms,
            link: Link::new(patience_ms),
            nonce: 0,
            session: None,
            is_attached: false,
            session_call: None,
            heartbeat_at: 0,
            next_sequence: 1,
            told_low_water: 0,
            registers: Registers::default(),
            locks: Locks::default(),
            private: Private::default(),
            times: Times::default(),
            valid_until: 0,
            work: [const { None }; PROGRAMS],
            next_at: [0; PROGRAMS],
            think_ms,
            completed: 0,
        }
    }

    /// Whether nothing is under way and nothing is held.
    pub(crate) fn is_idle(&self) -> bool {
        self.work.iter().all(Option::is_none) && self.locks.is_idle()
    }

    pub(crate) fn is_attached(&self) -> bool {
        self.link.is_up && self.is_attached
    }

    pub(crate) fn timeout_ms(&self) -> u64 {
        u64::from(self.timeout_ms)
    }

    /// The inode that it has open and that has no name any more.
    pub(crate) fn pinned(&self) -> Option<(InodeId, SessionId)> {
        Some((self.private.nameless()?, self.session?))
    }

    /// The files whose sizes are its alone.
    pub(crate) fn held(&self) -> impl Iterator<Item = InodeId> {
        self.private.held().into_iter().chain(self.times.held())
    }

    pub(crate) fn describe(&self) -> String {
        let asks: Vec<String> =
            self.work.iter().flatten().map(|w| format!("{:?} as {:?}", w.ask, w.sequence)).collect();
        format!(
            "client {}: session {:?}, {}, waits for {asks:?}",
            self.id,
            self.session,
            if self.is_attached() { "attached" } else { "not attached" },
        )
    }

    fn scene<'a>(
        id: u32,
        (session, valid_until): (Option<SessionId>, u64),
        stage: &'a mut Stage<'_>,
    ) -> Scene<'a> {
        Scene {
            client: id,
            session: session.unwrap_or_default(),
            valid_until,
            time: stage.time,
            rng: stage.rng,
            oracle: stage.oracle,
            is_busy_time: stage.is_busy_time,
        }
    }

    pub(crate) fn wakes_at(&self) -> u64 {
        if !self.link.is_up {
            return self.link.retry_at;
        }
        let mut at = self.link.gives_up_at().unwrap_or(u64::MAX);
        if self.is_attached {
            if self.session_call.is_none() {
                at = at.min(self.heartbeat_at);
            }
            for (index, work) in self.work.iter().enumerate() {
                at = match work {
                    Some(work) if work.call.is_none() => at.min(work.send_at),
                    Some(_) => at,
                    None if index == SETTLER && self.times.has_settlement() => 0,
                    None if index == SETTLER => at,
                    None if index == 1 => at.min(self.locks.wakes_at().unwrap_or(self.next_at[1])),
                    None => at.min(self.next_at[index]),
                };
            }
        }
        at
    }

    pub(crate) fn tick(&mut self, stage: &mut Stage<'_>) -> Result<(), String> {
        if self.link.gives_up_at().is_some_and(|at| at <= stage.time) {
            self.link.drop_connection(stage);
        }
        if !self.link.is_up {
            if self.link.retry_at <= stage.time {
                self.begin_connection(stage);
            }
            return Ok(());
        }
        if self.is_attached {
            if self.session_call.is_none() && self.heartbeat_at <= stage.time {
                let low_water = self.low_water();
                let call = self.link.send(MetaRequest::Heartbeat { low_water }, stage);
                self.session_call = Some((call, stage.time));
            }
            self.find_work(stage);
            self.send_work(stage);
        }
        Ok(())
    }

    fn begin_connection(&mut self, stage: &mut Stage<'_>) {
        self.link.connect(stage);
        self.is_attached = false;
        for work in self.work.iter_mut().flatten() {
            work.call = None;
        }
        let request = match self.session {
            Some(session) => MetaRequest::Attach { session, nonce: self.nonce, open: self.private.open() },
            None => {
                if self.nonce == 0 {
                    self.nonce = u128::from(stage.rng.next()) << 32 | u128::from(self.id);
                }
                let (nonce, timeout_ms) = (self.nonce, self.timeout_ms);
                MetaRequest::OpenSession { nonce, timeout_ms, info: Default::default() }
            }
        };
        let call = self.link.send(request, stage);
        self.session_call = Some((call, stage.time));
    }

    fn low_water(&self) -> u64 {
        self.work.iter().flatten().filter_map(|w| w.sequence).min().unwrap_or(self.next_sequence)
    }

    fn find_work(&mut self, stage: &mut Stage<'_>) {
        for index in 0..PROGRAMS {
            if self.work[index].is_some() {
                continue;
            }
            let is_due = self.next_at[index] <= stage.time;
            let mut scene = Self::scene(self.id, (self.session, self.valid_until), stage);
            let ask = match index {
                0 if is_due => self.registers.next(&mut scene),
                1 if is_due || self.locks.wakes_at().is_some() => self.locks.next(&mut scene),
                2 if is_due => self.private.next(&mut scene),
                3 if is_due => self.times.next(&mut scene),
                SETTLER => self.times.next_settlement(),
                _ => None,
            };
            match ask {
                Some(ask) => {
                    self.work[index] = Some(Work { ask, sequence: None, call: None, send_at: stage.time });
                }
                None if is_due => self.next_at[index] = stage.time + self.pause(stage),
                None => {}
            }
        }
    }

    fn pause(&self, stage: &mut Stage<'_>) -> u64 {
        stage.rng.between(1, 2 * self.think_ms)
    }

    fn send_work(&mut self, stage: &mut Stage<'_>) {
        for index in 0..PROGRAMS {
            let Some(work) = &mut self.work[index] else { continue };
            if work.call.is_some() || work.send_at > stage.time {
                continue;
            }
            if matches!(work.ask, Ask::Write(_)) && work.sequence.is_none() {
                work.sequence = Some(self.next_sequence);
                self.next_sequence += 1;
            }
            if stage.rng.chance(300) {
                self.told_low_water = self.low_water();
            }
            let low_water = self.told_low_water;
            let Some(work) = &mut self.work[index] else { continue };
            let request = match (&work.ask, work.sequence) {
                (Ask::Write(op), Some(sequence)) => {
                    MetaRequest::Write { sequence, low_water, op: op.clone() }
                }
                (Ask::Read(op), _) => MetaRequest::Read(op.clone()),
                (Ask::Close(inode, handle), _) => {
                    MetaRequest::CloseFile { inode: *inode, handle: *handle, release_hold: false }
                }
                (Ask::Write(_), None) => continue,
            };
            work.call = Some(self.link.send(request, stage));
        }
    }

    pub(crate) fn answered(
        &mut self,
        call: u64,
        response: MetaResponse,
        stage: &mut Stage<'_>,
    ) -> Result<(), String> {
        if self.link.waiting.remove(&call).is_none() {
            return Ok(());
        }
        stage.oracle.answers += 1;
        match &response {
            Err(MetaError::NotLeader { leader }) => {
                self.link.not_leader(leader.map(|(id, _)| id.0), stage);
                return Ok(());
            }
            Err(MetaError::NotAttached) => {
                self.link.drop_connection(stage);
                return Ok(());
            }
            Err(MetaError::SessionExpired) => return self.expired(stage),
            _ => {}
        }
        if self.session_call.is_some_and(|(session_call, _)| session_call == call) {
            return self.session_answered(response, stage);
        }
        let Some(index) = self.work.iter().position(|w| w.as_ref().is_some_and(|w| w.call == Some(call)))
        else {
            return Ok(());
        };
        self.work_answered(index, response, stage)?;
        self.tick(stage)
    }

    fn session_answered(&mut self, response: MetaResponse, stage: &mut Stage<'_>) -> Result<(), String> {
        let Some((_, sent_at)) = self.session_call.take() else { return Ok(()) };
        match response {
            Ok(MetaReply::Session { session, timeout_ms, .. }) => {
                if self.session.is_some_and(|mine| mine != session) {
                    return Err(format!("client {} asked for its session and got {session}", self.id));
                }
                self.session = Some(session);
                self.is_attached = true;
                let until = sent_at + u64::from(timeout_ms) * 1000 / self.rate;
                stage.oracle.confirmed(session, until)?;
                self.valid_until = sent_at + u64::from(timeout_ms) * 900 / self.rate;
                self.heartbeat_at = stage.time + u64::from(timeout_ms) / 3;
                self.tick(stage)
            }
            Err(MetaError::Overloaded) => {
                self.link.drop_connection(stage);
                Ok(())
            }
            other => Err(format!("client {} asked for a session and got {other:?}", self.id)),
        }
    }

    fn work_answered(
        &mut self,
        index: usize,
        response: MetaResponse,
        stage: &mut Stage<'_>,
    ) -> Result<(), String> {
        let is_try = matches!(&self.work[index], Some(Work { ask: Ask::Write(WriteOp::Defer(_)), .. }));
        if matches!(response, Err(MetaError::Overloaded))
            || (matches!(response, Err(MetaError::Busy)) && !is_try)
        {
            let again = stage.time + stage.rng.between(5, 100);
            if let Some(work) = &mut self.work[index] {
                (work.call, work.send_at) = (None, again);
            }
            return Ok(());
        }
        let outcome = response.map_or_else(Outcome::Error, Outcome::Reply);
        self.finish(index, &outcome, stage)
    }

    fn finish(&mut self, index: usize, outcome: &Outcome, stage: &mut Stage<'_>) -> Result<(), String> {
        let pause = self.pause(stage);
        self.work[index] = None;
        self.next_at[index] = stage.time + pause;
        self.completed += u64::from(!matches!(outcome, Outcome::Unknown));
        let mut scene = Self::scene(self.id, (self.session, self.valid_until), stage);
        let result = match index {
            0 => self.registers.done(&mut scene, outcome).map(|again| {
                let send_at = scene.time;
                self.work[0] = again.map(|ask| Work { ask, sequence: None, call: None, send_at });
            }),
            1 => self.locks.done(&mut scene, outcome),
            3 => self.times.done(&mut scene, outcome).map(|next| {
                let send_at = scene.time;
                self.work[3] = next.map(|ask| Work { ask, sequence: None, call: None, send_at });
            }),
            SETTLER => self.times.settlement_done(outcome),
            _ => self.private.done(outcome),
        };
        result.map_err(|what| format!("client {}: {what}", self.id))
    }

    /// The session is over: what was under way happened, or not.
    fn expired(&mut self, stage: &mut Stage<'_>) -> Result<(), String> {
        if let Some(session) = self.session {
            stage.oracle.closing(session);
        }
        for index in 0..PROGRAMS {
            if self.work[index].is_some() {
                self.finish(index, &Outcome::Unknown, stage)?;
            }
        }
        self.work = [const { None }; PROGRAMS];
        self.valid_until = 0;
        self.private.session_ended();
        self.times.session_ended();
        self.locks.session_ended(self.id, self.session.unwrap_or_default(), stage.oracle);
        (self.session, self.nonce, self.is_attached, self.session_call) = (None, 0, false, None);
        (self.next_sequence, self.told_low_water) = (1, 0);
        self.link.drop_connection(stage);
        Ok(())
    }

    /// The process ended: another one begins. Its session is left to expire.
    pub(crate) fn forget(&mut self, time: u64, oracle: &mut Oracle) {
        if let Some(session) = self.session {
            oracle.closing(session);
            self.registers.session_ended(oracle);
            self.locks.session_ended(self.id, session, oracle);
        }
        let completed = self.completed;
        let patience_ms = self.link.patience_ms;
        let renewed = Client::new(self.id, self.rate, self.timeout_ms, patience_ms, self.think_ms);
        *self = Client { completed, ..renewed };
        self.link.retry_at = time;
    }

    pub(crate) fn pushed(&mut self, push: &Push, stage: &mut Stage<'_>) -> Result<(), String> {
        match push {
            Push::Settle(inode) => self.times.asked(*inode),
            Push::RecallHold(inode) => self.times.recalled(*inode),
            _ => {}
        }
        let mut scene = Self::scene(self.id, (self.session, self.valid_until), stage);
        self.locks.pushed(&mut scene, push)?;
        self.tick(stage)
    }
}
