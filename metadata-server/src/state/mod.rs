//! The replicated state machine: layers of state, transactions, and the two halves of every change.
//!
//! * [`prep`] turns a request into a [`txn::Txn`] on the leader; it may fail with an errno.
//! * [`machine::Machine::apply`] is the one function that changes committed state, on every replica.
//! * [`read`] answers what changes nothing, from committed state.
//!
//! Architecture invariant: nothing here does I/O (beyond reading the [`layers::Disk`] it is given), reads a
//! clock, draws a random number or knows tokio.

pub mod examine;
pub mod key;
pub mod layers;
pub mod machine;
pub mod open;
pub mod planner;
pub mod prep;
pub mod read;
pub mod record;
mod row_cache;
mod rows;
pub mod txn;
