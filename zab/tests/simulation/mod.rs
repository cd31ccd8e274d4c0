//! A whole quorum in one thread, from one seed: peers, links, disks, clocks, faults, workload and oracles.
#![allow(dead_code, reason = "each test binary uses its own part of the harness")]

pub(crate) mod describe;
pub(crate) mod disk;
pub(crate) mod facts;
pub(crate) mod faults;
pub(crate) mod history;
pub(crate) mod invariants;
pub(crate) mod membership;
pub(crate) mod network;
pub(crate) mod node;
pub(crate) mod reads;
pub(crate) mod rng;
pub(crate) mod world;
