//! Every decision of a metadata server as one pure state machine: who may ask what, when an answer may leave, when
//! sessions end, where groups should be, whose objects are to be cut.
//!
//! A [`Core`] has no I/O, no clock and no tasks. Its driver hands in what happens, with the time and the quorum at
//! hand ([`Broadcast`]), and takes out what to do:
//!
//! ```text
//! handle_connected(client, identity, address)     handle_disconnected(client)
//! handle_request(client, token, request)          answered by Output::Reply with the same token, exactly once
//! handle_tick()                                   next_deadline() -> Option<u64>
//! handle_applied(zxid, txn)                       \
//! handle_lost_proposals()                          |  the quorum's callbacks, as in
//! handle_role_changed(role)                        |  `quorum::StateMachine`
//! handle_read_ready(number)                       /
//! handle_trimmed(number, result)                  an Output::Trim was carried out, or not
//! checkpoint() checkpointed(disk) install(disk)   the state's bottom layer
//! poll_output() -> Option<Output>                 until None after every other call
//! ```
//!
//! | module | what |
//! |---|---|
//! | `flow` | how a request goes on: what it waits for, what comes then |
//! | `dispatch` | who may ask what; the first step of every request |
//! | `session`, `change`, `data_server`, `status` | the other steps |
//! | `proposal` | transactions made and proposed |
//! | `role` | what a change of role, and an applied transaction, mean |
//! | `membership` | who the metadata servers are, and changes of that |
//! | `read_at` | reads at a revision, which any server answers |
//! | `background` | what a leader does without being asked: expiry, placement |
//! | `purge` | which objects are to be cut next |
//! | [`leader`] | what a leader knows beyond the replicated state |
//!
//! # When an answer leaves
//!
//! * A change is answered after its transaction was applied here, which is after a quorum has it on disk.
//! * A refusal may rest on proposals that are not committed yet: it is answered after those.
//! * A read is answered from committed state while the leader's lease is valid, or after a quorum round.
//! * A read at a revision is answered by any server that takes part, once it has applied that revision.
//! * A heartbeat is answered after a quorum round that began after it arrived: a deposed leader confirms nothing.

mod background;
mod broadcast;
mod change;
mod data_server;
mod dispatch;
mod flow;
mod fsck;
pub mod leader;
mod membership;
mod proposal;
mod purge;
mod read_at;
mod role;
mod session;
mod status;

pub(crate) use broadcast::refusals;
pub use broadcast::{AtPeer, Broadcast};
pub use purge::{Trim, TrimFailed};

use crate::state::key::Key;
use crate::state::layers::{Disk, StoreError, Writes};
use crate::state::machine::Machine;
use background::Planner;
use flow::{Asker, Step};
use leader::LeaderMemory;
use protocol::identity::{ClusterId, PeerIdentity};
use protocol::meta::{MetaRequest, MetaResponse, Push};
use protocol::{MetadataServerId, Revision, SessionId, Timestamp};
use purge::Purger;
use read_at::Behind;
use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use zab::{Role, Zxid};

/// Number of a connection within this process.
pub type ClientId = u64;

/// What the core is told at its start.
#[derive(Clone, Debug)]
pub struct CoreConfig {
    /// This server.
    pub id: MetadataServerId,
    /// Cluster id.
    pub cluster: ClusterId,
    /// Addresses of all voters.
    pub voters: BTreeMap<MetadataServerId, SocketAddr>,
    /// Replicas of the first pool.
    pub pool_size: u32,
    /// Milliseconds after which a data server that stays away is taken out of placement.
    pub down_out_ms: u64,
}

/// A moment as one server's clocks show it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds of a monotonic clock; only differences matter.
    pub ms: u64,
    /// The wall clock, for transactions.
    pub wall: Timestamp,
}

/// One thing to do. `T` is what the driver knows a request by.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "short-lived, and boxing the common answers would cost more")]
pub enum Output<T> {
    /// Answer the request that came with `token`.
    Reply {
        /// As it was handed in.
        token: T,
        /// The answer.
        response: MetaResponse,
    },
    /// Tell a client something that it did not ask for. One that does not read is to be disconnected: it catches up
    /// when it comes back.
    Push {
        /// To whom.
        client: ClientId,
        /// What.
        push: Push,
    },
    /// End a connection. [`Core::handle_disconnected`] follows.
    Close {
        /// Whose.
        client: ClientId,
        /// Why, for people.
        why: &'static str,
    },
    /// Ask data servers to cut objects, and report by [`Core::handle_trimmed`].
    Trim(Trim),
    /// Begin a backup for a client: of a checkpoint that is at least at this revision.
    Backup {
        /// For whom.
        client: ClientId,
        /// Of its request.
        token: T,
        /// What the backup has to contain.
        at_least: Revision,
    },
    /// Answer with the next rows of the backup that this client began.
    BackupNext {
        /// For whom.
        client: ClientId,
        /// Of its request.
        token: T,
    },
    /// The state or the log is not what it must be: this server stops. Comes once; nothing is decided afterwards.
    Fatal(String),
}

/// A connection of a client, data server or administrator.
#[derive(Debug)]
struct Client {
    peer: Arc<PeerIdentity>,
    address: SocketAddr,
    /// The session that it is attached to.
    session: Option<SessionId>,
    /// It wants every change of the map.
    is_subscribed: bool,
    /// Requests that its certificate does not allow.
    refused: Cell<u64>,
}

/// See the module. `D` is the state's bottom layer, `T` what the driver knows a request by.
pub struct Core<D, T> {
    config: CoreConfig,
    machine: Machine<D>,
    role: Role,
    /// Meaningful while leading.
    leader: LeaderMemory,
    clients: BTreeMap<ClientId, Client>,
    /// Requests of all connections since the start that their certificates did not allow.
    refused: Cell<u64>,
    /// Which connection speaks for a session.
    attached: BTreeMap<SessionId, ClientId>,
    /// The newest proposal of this leadership.
    last_proposed: Zxid,
    /// What goes on once a transaction is applied. Zxids rise: everything waits for what is proposed last when it
    /// begins to wait. Bounded by the requests in service, which the driver bounds.
    waiters: VecDeque<(Zxid, Asker<T>, Step)>,
    /// What goes on once a quorum round has ended, by its number. Bounded likewise.
    reads: BTreeMap<u64, (Asker<T>, Step)>,
    next_read: u64,
    /// Reads at a revision that is not here yet.
    behind: VecDeque<Behind<T>>,
    tick_at: u64,
    planner: Planner,
    purger: Purger,
    is_failed: bool,
    outputs: VecDeque<Output<T>>,
}

/// One call into the core: what happens happens now, with this quorum.
struct Turn<'a, D, T> {
    core: &'a mut Core<D, T>,
    quorum: &'a mut dyn Broadcast,
    now: Now,
}

impl<D: Disk, T> Core<D, T> {
    /// A server that starts from the state in `disk`.
    ///
    /// # Errors
    /// The state cannot be read, or a newer version wrote it.
    pub fn new(config: CoreConfig, disk: D) -> Result<Self, StoreError> {
        Ok(Self {
            config,
            machine: Machine::open(disk)?,
            role: Role::Looking,
            leader: LeaderMemory::default(),
            clients: BTreeMap::new(),
            refused: Cell::new(0),
            attached: BTreeMap::new(),
            last_proposed: Zxid::ZERO,
            waiters: VecDeque::new(),
            reads: BTreeMap::new(),
            next_read: 0,
            behind: VecDeque::new(),
            tick_at: 0,
            planner: Planner::default(),
            purger: Purger::default(),
            is_failed: false,
            outputs: VecDeque::new(),
        })
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output<T>> {
        self.outputs.pop_front()
    }

    /// When [`handle_tick`](Self::handle_tick) is due, in [`Now::ms`]; `None` while there is nothing to wait for.
    pub fn next_deadline(&self) -> Option<u64> {
        if self.is_failed {
            return None;
        }
        let leader = [Some(self.tick_at), self.planner.next_deadline(), self.purger.next_deadline()];
        let leader = leader.into_iter().flatten().min().filter(|_| self.is_leader());
        let behind = self.behind.front().map(Behind::gives_up_at);
        [leader, behind].into_iter().flatten().min()
    }

    /// Whether this server leads, established.
    pub fn is_leader(&self) -> bool {
        matches!(self.role, Role::Leading { .. })
    }

    /// The cluster.
    pub fn cluster(&self) -> ClusterId {
        self.config.cluster
    }

    /// The role in the quorum, as last told.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Zxid of the last applied transaction.
    pub fn applied_zxid(&self) -> Zxid {
        let progress = self.machine.progress();
        Zxid { epoch: progress.zab_epoch, counter: progress.counter }
    }

    /// The replicated state.
    pub fn machine(&self) -> &Machine<D> {
        &self.machine
    }

    /// Requests that wait for an application or a quorum round.
    pub fn waiting(&self) -> usize {
        self.waiters.len() + self.reads.len() + self.behind.len()
    }

    // ---- connections --------------------------------------------------------------------------------------------

    /// A verified peer opened a connection. `client` was never used before.
    pub fn handle_connected(&mut self, client: ClientId, peer: Arc<PeerIdentity>, address: SocketAddr) {
        self.clients.insert(
            client,
            Client { peer, address, session: None, is_subscribed: false, refused: Cell::new(0) },
        );
    }

    /// A connection ended. What it asked for goes on; the answers may be thrown away.
    pub fn handle_disconnected(&mut self, client: ClientId) {
        let Some(gone) = self.clients.remove(&client) else { return };
        if gone.refused.get() > 1 {
            tracing::warn!("{} at {} was refused {} times", gone.peer, gone.address, gone.refused.get());
        }
        if let Some(session) = gone.session
            && self.attached.get(&session) == Some(&client)
        {
            self.attached.remove(&session);
        }
    }

    /// A client asks. Requests of one connection are to be handed in in the order in which they were sent.
    pub fn handle_request(
        &mut self,
        client: ClientId,
        token: T,
        request: MetaRequest,
        quorum: &mut impl Broadcast,
        now: Now,
    ) {
        let asker = Asker::Client { client, token };
        if self.is_failed {
            return self.turn(quorum, now).refuse(asker);
        }
        let mut turn = self.turn(quorum, now);
        let next = turn.begin(client, request);
        turn.go_on(asker, next);
    }

    /// Time has passed.
    pub fn handle_tick(&mut self, quorum: &mut impl Broadcast, now: Now) {
        if self.is_failed {
            return;
        }
        self.serve_behind(now.ms);
        if self.is_leader() {
            self.turn(quorum, now).tick();
        }
    }

    /// Data servers have answered an [`Output::Trim`], or have not.
    pub fn handle_trimmed(
        &mut self,
        number: u64,
        result: Result<(), TrimFailed>,
        quorum: &mut impl Broadcast,
        now: Now,
    ) {
        if !self.is_failed {
            self.turn(quorum, now).trimmed(number, result);
        }
    }

    // ---- the quorum ---------------------------------------------------------------------------------------------

    /// A transaction committed and is the next one.
    pub fn handle_applied(&mut self, zxid: Zxid, txn: &[u8], quorum: &mut impl Broadcast, now: Now) {
        if !self.is_failed {
            self.turn(quorum, now).apply(zxid, txn);
        }
    }

    /// This server led and does not any more: what it proposed may commit later or never.
    pub fn handle_lost_proposals(&mut self) {
        self.stop_leading();
    }

    /// The role changed. On `Leading` everything in the log was applied. Unanswered rounds are void.
    pub fn handle_role_changed(&mut self, role: Role, now: Now) {
        self.change_role(role, now);
    }

    /// A quorum round that began after it was asked for has ended.
    pub fn handle_read_ready(&mut self, number: u64, quorum: &mut impl Broadcast, now: Now) {
        if let Some((asker, step)) = self.reads.remove(&number) {
            let mut turn = self.turn(quorum, now);
            let next = turn.step(asker.client(), step);
            turn.go_on(asker, next);
        }
    }

    // ---- the bottom layer ---------------------------------------------------------------------------------------

    /// Freezes the committed state: what to write below, and the zxid that it ends at. `None` if nothing changed
    /// since the last checkpoint, or that one is still being written.
    pub fn checkpoint(&mut self) -> Option<(Arc<Writes>, Zxid)> {
        if self.machine.is_freezing() || self.machine.checkpoint_bytes() == 0 {
            return None;
        }
        let zxid = self.applied_zxid();
        Some((self.machine.freeze().0, zxid))
    }

    /// What was frozen is durable and visible in `disk`. Returns it, because freeing it takes a while.
    pub fn checkpointed(&mut self, disk: D) -> Option<Arc<Writes>> {
        self.machine.thaw(disk)
    }

    /// The state is another one from now on: a snapshot came from the leader.
    ///
    /// # Errors
    /// It cannot be read, or a newer version wrote it.
    pub fn install(&mut self, disk: D) -> Result<(), StoreError> {
        self.machine = Machine::open(disk)?;
        Ok(())
    }

    /// The server cannot go on.
    pub fn fail(&mut self, why: String) {
        if !self.is_failed {
            self.is_failed = true;
            self.outputs.push_back(Output::Fatal(why));
        }
    }

    /// Rows of the committed state, for those who compare states.
    ///
    /// # Errors
    /// The bottom layer cannot be read.
    pub fn rows(&self) -> Result<Vec<(Key, bytes::Bytes)>, StoreError> {
        use crate::state::layers::View;
        self.machine.committed().scan(&[], &[0xff], usize::MAX)
    }

    fn turn<'a>(&'a mut self, quorum: &'a mut dyn Broadcast, now: Now) -> Turn<'a, D, T> {
        Turn { core: self, quorum, now }
    }
}
