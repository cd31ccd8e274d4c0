//! Zab atomic broadcast as a pure state machine.
//!
//! A [`Peer`] has no I/O, no clock, no randomness and no tasks: its driver hands in messages, ticks and
//! completions (`handle_*`), and takes out what to do (`poll_output`).
//!
//! ```text
//! Peer::new(config: Config, recovered: Recovered, now: Tick, seed: u64) -> Result<Peer, StartError>
//! handle_message(from: PeerId, message: Message, now: Tick)
//! handle_tick(now: Tick)                         next_deadline() -> Option<Tick>
//! handle_durable(token: u64, now: Tick)          handle_storage_failed()
//! handle_peer_disconnected(peer: PeerId, now: Tick)
//! propose(txn: Bytes, now: Tick) -> Result<Zxid, ProposeError>
//! change_membership(change: &MembershipChange, now: Tick) -> Result<Zxid, ChangeError>
//! read_index(request: u64, now: Tick) -> Result<(), ReadError>
//! lease_valid(now: Tick) -> bool
//! snapshot_started(to, session, zxid)            leader: the checkpoint is taken, the log from it is kept
//! snapshot_sent(to, session, SnapshotDescriptor, now)   leader: its last byte was written to the link
//! snapshot_failed(to, session, now)
//! snapshot_progress(from, now)                   follower: bytes arrive (keeps the synchronization alive)
//! snapshot_received(from, SnapshotDescriptor, now)      follower: complete, checksum verified, durable
//! compact(upto: Zxid)                            the driver's own checkpoint at `upto` is durable
//! step_down(now: Tick)                           a leader about to shut down lets the others elect at once
//! committed() delivered() last_zxid() role() leader() epoch() log_bytes() counters()  Display
//! poll_output() -> Option<Output>
//! ```
//! `seed` must differ between incarnations. Call `poll_output` until `None` after every other call, and execute the
//! outputs in their order; those with a token form one ordered stream to the disk (see [`Output`]).
//!
//! # The protocol, under its three sets of names
//!
//! | paper (DSN 2011) | ZooKeeper | here | what it means |
//! |---|---|---|---|
//! | (oracle) | Notification | [`Body::Notification`] | fast leader election: newest (current epoch, last zxid, id) |
//! | CEPOCH | FOLLOWERINFO | [`Body::FollowerInfo`] | "I want to follow you, and promised this epoch" |
//! | NEWEPOCH | LEADERINFO | [`Body::NewEpoch`] | "promise this one" |
//! | ACK-E | ACKEPOCH | [`Body::AckEpoch`] | the promise is on disk; this is my history |
//! | NEWLEADER (history) | DIFF, TRUNC, SNAP | [`Body::SyncFrom`], [`Body::Snapshot`], [`Body::Entries`] | make your history a prefix of mine |
//! | NEWLEADER | NEWLEADER | [`Body::NewLeader`] | you have all of it: adopt it and this epoch |
//! | ACK-LD, ACK | ACK | [`Body::Ack`] | on disk up to here; cumulative, and the answer to heartbeats |
//! | COMMIT-LD | UPTODATE | [`Body::UpToDate`] | a quorum adopted it: deliver, serve |
//! | PROPOSE | PROPOSAL | [`Body::Entries`] | append |
//! | COMMIT | COMMIT | [`Body::Commit`] | deliver up to here |
//! | | PING | [`Body::Heartbeat`] | rounds that prove leadership |
//!
//! # Every message in every phase
//!
//! A follower's phases are Joining, Guarded, Promising, Promised, Fetching, Installing, Syncing, Adopting, Synced,
//! Broadcast. "Leave" ends the session: the peer looks for a leader again, from what is on its disk. A message that is
//! not listed for a phase is counted in [`Counters`] and has no other effect; messages of another session, epoch or
//! directory are, in every phase.
//!
//! | message | acted on in | otherwise, within the session |
//! |---|---|---|
//! | Hello | all: a newer membership is learned, an older one answered | |
//! | Notification | Looking; answered by those who are settled | ignored |
//! | NewEpoch | Joining | ignored (a repetition) |
//! | SyncFrom, Snapshot | Promised | Leave |
//! | Entries | Syncing, Adopting, Synced, Broadcast, if they follow the end of the log | Leave |
//! | NewLeader | Syncing, if the log ends where it says | Leave |
//! | UpToDate | Synced | Leave |
//! | Commit | all: remembered, acted on from Broadcast on | |
//! | Heartbeat | all but Joining: answered; shows whether something was lost | Leave if it was |
//! | Leave | all but Looking | ignored |
//! | FollowerInfo | candidates and leaders | ignored while Looking, answered with Leave by followers |
//! | AckEpoch | discovery and later, once per session | ignored |
//! | Ack | sessions that were asked for a promise | Leave to strangers, and for impossible claims |
//!
//! # Invariants that the code relies on
//!
//! * A peer says nothing about its history that is not on its disk, and starts no role before the writes of the last
//!   one are done.
//! * Entries of one epoch are the same in every log, and so is all that stands before them.
//! * An epoch is promised to one candidate, and led by one incarnation of it.
//! * There is one way into the log (`Core::append`), one way to the state machine (`Core::deliver`), and one pump per
//!   follower that reads from the log.
//! * No votes, promises or acks count but those of the directory that the membership binds to the id.
//! * Whatever needs a quorum needs one of the committed membership *and* one of the newest in the log
//!   (`Core::is_quorum`, `Core::reached_by_quorum`); nothing counts voters in another way.

mod config;
mod core;
mod election;
mod follower;
mod invariant;
mod leader;
mod log;
mod membership;
mod message;
pub mod mutant;
mod output;
mod peer;
mod quorum;
mod record;
mod rounds;
mod session;
mod status;
mod storage;
mod zxid;

pub use crate::core::Counters;
pub use config::{Config, ConfigError, Tick};
pub use membership::{ChangeError, MEMBERS_MAX, Membership, MembershipChange, VOTERS_MAX};
pub use message::{Body, Message, Progress, Standing, Vote};
pub use output::{Output, Role};
pub use peer::{Peer, ProposeError, ReadError, StartError};
pub use record::{DataUuid, Entry, Payload, PeerId, Record, Recovered, SnapshotDescriptor, SnapshotRef};
pub use zxid::Zxid;
