//! The handle through which the rest of the server uses the quorum.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use protocol::transport::{Channel, Endpoint, EndpointStats};
use tokio::sync::Notify;
use zab::{
    ChangeError, Membership, MembershipChange, Peer, PeerId, ProposeError, ReadError, Role, StartError, Tick,
    Zxid,
};

use super::disk::Disk;
use super::driver::{Driver, Files};
use super::error::StorageError;
use super::state_machine::SNAPSHOT_CHUNK_BYTES_MAX;
use super::storage::{Storage, current_state_id, random_bytes};
use super::transport::Network;

/// The longest transaction: it must fit into a frame of the transport together with its neighbours' headers.
pub const TXN_BYTES_MAX: usize = SNAPSHOT_CHUNK_BYTES_MAX;

/// How the quorum runs on one server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuorumConfig {
    /// Timeouts and bounds of the protocol; the timeouts must be the same on all servers.
    pub zab: zab::Config,
    /// Where the metadata servers listen, `HOST:PORT` each, as far as this one was told: a first hint, which the
    /// membership's own addresses precede. Names are resolved anew for every connection, and mean nothing beyond
    /// that.
    pub peers: BTreeMap<PeerId, String>,
    /// A checkpoint is made after this many milliseconds, if anything changed.
    pub checkpoint_interval_ms: u64,
    /// A checkpoint is made after this many bytes of transactions.
    pub checkpoint_bytes: u64,
}

impl QuorumConfig {
    /// The defaults for server `id`.
    pub fn new(id: PeerId, peers: BTreeMap<PeerId, String>) -> QuorumConfig {
        let zab = zab::Config {
            txn_bytes_max: TXN_BYTES_MAX,
            // The log is in memory too. Beyond the bound, which checkpoints that lag behind reach, clients wait.
            log_window_bytes: 16 << 20,
            log_bytes_max: 128 << 20,
            ..zab::Config::new(id)
        };
        QuorumConfig { zab, peers, checkpoint_interval_ms: 5_000, checkpoint_bytes: 8 << 20 }
    }

    fn validate(&self) -> Result<(), QuorumError> {
        let rules = [
            (
                self.zab.txn_bytes_max <= TXN_BYTES_MAX,
                "zab.txn_bytes_max must be at most 4 MiB, or a transaction fits into no frame",
            ),
            (
                self.zab.message_bytes_max <= TXN_BYTES_MAX as u64,
                "zab.message_bytes_max must be at most 4 MiB, or a message fits into no frame",
            ),
            (self.checkpoint_interval_ms > 0, "checkpoint_interval_ms must be at least 1"),
            (
                self.checkpoint_bytes > 0 && self.checkpoint_bytes < self.zab.log_bytes_max,
                "checkpoint_bytes must be positive and below zab.log_bytes_max, or the log fills before a checkpoint",
            ),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, sentence)) => Err(QuorumError::Config(sentence)),
            None => Ok(()),
        }
    }
}

/// Why the quorum cannot start, or why it ended.
#[derive(Debug, thiserror::Error)]
pub enum QuorumError {
    #[error("the configuration of the quorum is not usable: {0}")]
    Config(&'static str),
    #[error("the quorum cannot start from what is on disk: {0}")]
    Start(#[from] StartError),
    #[error("the state is at {found}, but the quorum was told {told}; this is a bug")]
    StateMoved { told: Zxid, found: Zxid },
    #[error("the storage of this metadata server failed, so it stops taking part: {0}")]
    Storage(#[from] StorageError),
}

/// What can be seen from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuorumStatus {
    pub id: PeerId,
    pub role: Role,
    pub leader: Option<PeerId>,
    pub zab_epoch: u64,
    /// The end of the log, durable or not.
    pub last: Zxid,
    pub committed: Zxid,
    pub delivered: Zxid,
    /// Bytes of transactions in the log.
    pub log_bytes: u64,
    /// The newest membership that is known to be committed.
    pub membership: Membership,
    /// A newer one that is not.
    pub pending_membership: Option<Membership>,
    /// The log was found damaged; a leader has to fill it before this server counts.
    pub needs_sync: bool,
    /// The peers that this server has a connection to.
    pub connected: Vec<PeerId>,
    /// The other metadata servers.
    pub peers: Vec<PeerStatus>,
    /// The protocol's counters.
    pub counters: zab::Counters,
    /// The socket's counters, those of all connections.
    pub transport: EndpointStats,
    /// Zab's own line about this peer.
    pub summary: String,
}

/// Another metadata server, as seen from this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    pub id: PeerId,
    /// This server has a connection to it.
    pub connected: bool,
    /// What it last said is on its disk. Followers say so to their leader only.
    pub acknowledged: Option<Zxid>,
    /// It follows this leader and is in sync: whether its acks count. `None` for others, and if this is no leader.
    pub counts: Option<bool>,
}

/// A handle to this server's member of the quorum. Cheap to clone; for the runtime's thread only. None of its
/// methods waits.
#[derive(Clone)]
pub struct Quorum {
    pub(super) inner: Rc<Inner>,
}

pub(super) struct Inner {
    pub(super) peer: RefCell<Peer>,
    pub(super) network: Network,
    /// The addresses that this server was told at its start.
    pub(super) hints: BTreeMap<PeerId, String>,
    /// What followers last acknowledged to this server.
    pub(super) acknowledged: RefCell<BTreeMap<PeerId, Zxid>>,
    /// Of the clock that goes on in suspend.
    pub(super) started: Duration,
    /// The driver is to look for outputs.
    pub(super) wake: Notify,
    pub(super) stop: Cell<bool>,
}

impl Quorum {
    /// Prepares this server's member of the quorum: its disk thread and its links start, the member itself with
    /// [`Driver::run`]. `applied` is where the state in [`Storage::state_path`] ends. Must be called within the
    /// `current_thread` runtime that will run the driver.
    ///
    /// # Errors
    /// The configuration contradicts itself, or state and log do not fit together.
    pub fn new(
        config: QuorumConfig,
        storage: Storage,
        applied: Zxid,
        endpoint: Endpoint,
    ) -> Result<(Quorum, Driver), QuorumError> {
        config.validate()?;
        let record = storage.record().clone();
        let state_id = current_state_id(&record);
        let Storage { path, directory, record_file, log, entries, lock, log_options, .. } = storage;
        let recovered = zab::Recovered { record, log: entries, applied };
        let seed = u64::from_le_bytes(random_bytes()?);
        let peer = Peer::new(config.zab.clone(), recovered, 0, seed)?;
        let disk = Disk::start(directory.clone(), log, record_file, log_options.segment_bytes, lock)?;
        let hints = config.peers.clone();
        let reachable = addresses(&hints, peer.membership(), peer.pending_membership());
        let (network, events) = Network::start(endpoint, config.zab.id, seed, &reachable);
        let inner = Inner {
            peer: RefCell::new(peer),
            network,
            hints,
            acknowledged: RefCell::default(),
            started: since_boot(),
            wake: Notify::new(),
            stop: Cell::new(false),
        };
        let quorum = Quorum { inner: Rc::new(inner) };
        let files = Files { path, directory, state_id };
        let driver = Driver::new(quorum.clone(), &config, disk, files, applied, events);
        Ok((quorum, driver))
    }

    /// Leader: proposes a transaction. It takes effect when [`StateMachine::apply`](super::StateMachine::apply)
    /// gets it, with this zxid.
    ///
    /// # Errors
    /// It was not taken and has no effect.
    pub fn propose(&self, txn: Bytes) -> Result<Zxid, ProposeError> {
        let now = self.now();
        let zxid = self.inner.peer.borrow_mut().propose(txn, now)?;
        self.inner.wake.notify_one();
        Ok(zxid)
    }

    /// Leader: asks its quorum whether it still leads, with a round begun after this call. The answer comes through
    /// [`StateMachine::read_ready`](super::StateMachine::read_ready), or a change of role voids the request.
    ///
    /// # Errors
    /// It was not asked.
    pub fn read_index(&self, request: u64) -> Result<(), ReadError> {
        let now = self.now();
        self.inner.peer.borrow_mut().read_index(request, now)?;
        self.inner.wake.notify_one();
        Ok(())
    }

    /// Leader: whether it may serve reads at this moment without asking, because no other leader can exist yet.
    pub fn lease_valid(&self) -> bool {
        self.inner.peer.borrow().lease_valid(self.now())
    }

    /// Whether this server leads, established, as far as it knows.
    pub fn is_leader(&self) -> bool {
        matches!(self.role(), Role::Leading { .. })
    }

    /// What this server is.
    pub fn role(&self) -> Role {
        self.inner.peer.borrow().role()
    }

    /// The leader, if one is known and established.
    pub fn leader(&self) -> Option<PeerId> {
        self.inner.peer.borrow().leader()
    }

    /// Everything that can be seen from outside.
    pub fn status(&self) -> QuorumStatus {
        let peer = self.inner.peer.borrow();
        QuorumStatus {
            id: peer.id(),
            role: peer.role(),
            leader: peer.leader(),
            zab_epoch: peer.epoch(),
            last: peer.last_zxid(),
            committed: peer.committed(),
            delivered: peer.delivered(),
            log_bytes: peer.log_bytes(),
            membership: peer.membership().clone(),
            pending_membership: peer.pending_membership().cloned(),
            needs_sync: peer.record().needs_sync,
            connected: self.inner.network.connected(),
            peers: self.peers(),
            counters: peer.counters(),
            transport: self.inner.network.transport(),
            summary: peer.to_string(),
        }
    }

    /// Takes a channel of kind [`protocol::channel_kind::ZAB`] that was opened to this server.
    pub fn accept_channel(&self, channel: Channel) {
        self.inner.network.accept(channel);
    }

    /// Leader: proposes a change of the membership. It is done when [`is_membership_settled`] says so.
    ///
    /// [`is_membership_settled`]: Self::is_membership_settled
    ///
    /// # Errors
    /// It was not proposed; see [`ChangeError`].
    pub fn change_membership(&self, change: &MembershipChange) -> Result<Zxid, ChangeError> {
        let now = self.now();
        let zxid = self.inner.peer.borrow_mut().change_membership(change, now)?;
        self.inner.wake.notify_one();
        Ok(zxid)
    }

    /// Leader: whether the last change of the membership is done for good: whoever was removed may be switched off.
    pub fn is_membership_settled(&self) -> bool {
        self.inner.peer.borrow().is_membership_settled()
    }

    /// Data directories that vote or have voted, as far as the membership remembers.
    pub fn directories(&self) -> Vec<u128> {
        let peer = self.inner.peer.borrow();
        let membership = peer.membership();
        let voting = membership.voters.values().flatten();
        membership.removed.iter().chain(voting).map(|uuid| uuid.0).collect()
    }

    /// Where each member is reached, as this server knows it; members without a known address are absent.
    pub fn addresses(&self) -> BTreeMap<PeerId, String> {
        let peer = self.inner.peer.borrow();
        let all = addresses(&self.inner.hints, peer.membership(), peer.pending_membership());
        all.into_iter()
            .filter_map(|(id, addresses)| addresses.into_iter().next().map(|one| (id, one)))
            .collect()
    }

    /// Gives up leadership, if this server has it: the others elect at once.
    pub fn step_down(&self) {
        let now = self.now();
        self.inner.peer.borrow_mut().step_down(now);
        self.inner.wake.notify_one();
    }

    /// Ends [`Driver::run`] in good order.
    pub fn stop(&self) {
        self.inner.stop.set(true);
        self.inner.wake.notify_one();
    }

    /// The clock of this member, in milliseconds since it was made. It goes on while the machine is suspended: a
    /// leader that wakes up must not take its lease for valid.
    pub fn now(&self) -> Tick {
        u64::try_from(since_boot().saturating_sub(self.inner.started).as_millis())
            .expect("a process lives less than 584 million years")
    }

    fn peers(&self) -> Vec<PeerStatus> {
        let acknowledged = self.inner.acknowledged.borrow();
        let followers: BTreeMap<PeerId, bool> = self.inner.peer.borrow().followers().into_iter().collect();
        let status = |(id, connected)| PeerStatus {
            id,
            connected,
            acknowledged: acknowledged.get(&id).copied(),
            counts: followers.get(&id).copied(),
        };
        self.inner.network.peers().into_iter().map(status).collect()
    }

    pub(super) fn instant(&self, tick: Tick) -> Instant {
        Instant::now() + Duration::from_millis(tick.saturating_sub(self.now()))
    }
}

/// Where each member may be reached, the likeliest address first: what the memberships say, then what was told at the
/// start. A server that is no member yet knows nothing but the latter.
pub(super) fn addresses(
    hints: &BTreeMap<PeerId, String>,
    committed: &Membership,
    pending: Option<&Membership>,
) -> BTreeMap<PeerId, Vec<String>> {
    let memberships = || pending.into_iter().chain([committed]);
    let of = |id: PeerId| {
        let known = memberships().filter_map(|membership| membership.addresses.get(&id));
        let mut addresses: Vec<String> = Vec::new();
        for address in known.chain(hints.get(&id)) {
            if !addresses.contains(address) {
                addresses.push(address.clone());
            }
        }
        (id, addresses)
    };
    memberships().flat_map(Membership::members).map(of).filter(|(_, known)| !known.is_empty()).collect()
}

fn since_boot() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    #[allow(unsafe_code, reason = "no std clock counts suspended time")]
    // SAFETY: `time` is a valid timespec that outlives the call; CLOCK_BOOTTIME exists since Linux 2.6.39.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    assert_eq!(failed, 0, "CLOCK_BOOTTIME can be read");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
