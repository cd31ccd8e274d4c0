//! What the tests of the namespace share.

mod contents;
pub(crate) mod driver;
mod exactly_once;
mod hostile;
pub(crate) mod invariants;
mod listing;
mod locks;
pub(crate) mod model;
pub(crate) mod objects;
mod pools;
pub(crate) mod runs;
mod truncation;
pub(crate) mod world;
