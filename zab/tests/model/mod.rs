//! Zab as the paper describes it (Junqueira, Reed, Serafini: "Zab: High-performance broadcast for primary-backup
//! systems", DSN 2011), written down a second time and independently of `zab/src`, small enough to be explored
//! completely.
//!
//! | file | what it is |
//! |---|---|
//! | `state` | what servers hold, what is on its way between them |
//! | `protocol` | the steps, each with its guard; every step of every user goes through `Protocol::apply` |
//! | `mutation` | steps that are wrong in a known way, to check the checker |
//! | `properties` | the eight invariants, and situations that must be reachable |
//! | `explore` | exhaustive exploration with `stateright` |
//! | `refinement` | what the simulated peers did, as steps of the model |
//!
//! # What is abstract, and why that is sound
//!
//! "Sound" means: whatever the protocol over real links, disks and elections can do, the model can do too, up to
//! what no invariant can tell apart. The model may be able to do more.
//!
//! * **Elections.** Any voter may try to lead at any time (`Action::Candidate`), any server may leave its role at
//!   any time (`Action::Leave`). No vote is trusted; what an election chooses is some candidate.
//! * **The epoch of a candidate** is any number larger than its own promise, up to one more than the largest promise
//!   of all: every set of CEPOCH messages, stale ones included, leads to one of these.
//! * **Links.** What was sent remains receivable for ever, in any order, any number of times: a candidacy keeps what
//!   its leader sent (history, proposals, commit position), and what it was told (promises, acks). Loss is not
//!   receiving. Since a leader's history only grows and acks are cumulative, the newest message says all that older
//!   ones said; receiving an older one is the same as acting on less of the newest.
//! * **Waiting for a disk** is one step with what the write allows where nothing can be observed in between: a
//!   promise with ACK-E, a truncation with its cause, the current epoch with ACK-LD. A crash between is the crash
//!   before. Appends are not: entries are first in memory, become durable one by one, and a crash loses the rest.
//! * **Crashes** restart at once: who is down does nothing, which everybody may do at any time. A crash of a server
//!   with everything on disk is the same as leaving its role, so that only the others are counted.
//!
//! `explore` leaves out more (`Zab::reduced`), and `the_reductions_hide_nothing` compares with the model that does not:
//!
//! * **Eager steps** (`Protocol::eager`): the leader fixes its history, is established, commits and everybody
//!   delivers as soon as they may. None of these facts disables a step or repairs a violated invariant, so a state
//!   in which they hold can do whatever the same state without them can.
//! * **What followers have in memory** is durable at once: a follower that loses an entry in a crash is one that has
//!   not received it yet, since nothing was said about it. For the leader's own proposals this is different, and
//!   they wait for the disk until all crashes are used up.
//! * **An end is seen at once.** What a follower would receive of a leader that is gone, it could have received
//!   before the leader went: nothing in between depends on it, and a leader that hears more acks can only commit
//!   more. A promise to a candidate that is gone is not made at all: a server with the smaller promise can do what it
//!   can with the larger one.
//! * **Symmetry.** Ids mean nothing to the model (an election would use them to break ties), so that states which
//!   differ by a renaming of servers are one.
//! * **What nobody can act upon any more** (a candidacy that ended, acks of what is committed) is forgotten; what the
//!   invariants need of it is kept apart, in `state::Ghost`.
//!
//! States are told apart by a hash of 64 bits. Among n states the chance that two are confused is below n² / 2⁶⁵: one in
//! two million for four million states.
#![allow(dead_code, reason = "each user has its own part of the model")]

pub(crate) mod explore;
pub(crate) mod mutation;
pub(crate) mod properties;
pub(crate) mod protocol;
pub(crate) mod refinement;
pub(crate) mod state;
