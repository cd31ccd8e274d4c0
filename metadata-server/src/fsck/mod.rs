//! The comparing half of `zabfs fsck`: a state machine over the rows of one revision and the lists of objects.
//!
//! | module | what |
//! |---|---|
//! | [`check`] | rows and objects in, suspects out |
//! | [`facts`] | what is remembered of one inode, and the judgement on it |
//! | [`objects`] | one file's objects against the file, looked at again |
//!
//! Rows may come in any order. What two tables say of the same thing is compared by sums over a hash of each thing, which
//! take no memory per thing: a sum that is not zero makes the inode a *suspect*, and the leader says what exactly is wrong
//! with it now ([`crate::state::examine`]). So nothing that is in flight is ever reported.
//!
//! **Memory** is bounded by looking at a part of the inodes at a time: a [`Part`] takes [`BYTES_PER_INODE`] for each of
//! its inodes, and 16 bytes for every directory of all parts, for cycles.

pub mod check;
pub mod facts;
pub mod objects;
#[cfg(test)]
mod tests;

pub use check::{BYTES_PER_INODE, Check, Checker, Counts, Part, Suspect, System};
pub use facts::Suspicion;
