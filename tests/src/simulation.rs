//! What the simulation of zab alone and the simulation of whole clusters share: the named invariants, and the
//! histories that they look at. The files are zab's.
#![allow(dead_code, reason = "each of the two uses its own part")]

#[path = "../../zab/tests/simulation/describe.rs"]
pub(crate) mod describe;
#[path = "../../zab/tests/simulation/history.rs"]
pub(crate) mod history;
#[path = "../../zab/tests/simulation/invariants/mod.rs"]
pub(crate) mod invariants;
#[path = "../../zab/tests/simulation/rng.rs"]
pub(crate) mod rng;
