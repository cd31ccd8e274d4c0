//! Real-process clusters, workloads with checksums, and the tools that the process tests are made of.
//!
//! * [`harness`]: a cluster of real `zabfs` processes below one directory, its mounts, its faults
//! * [`workload`]: trees and files whose every byte is known, and comparisons with copies outside
//! * [`programs`]: running other people's programs with a deadline
//! * [`mutants`]: the known bugs that tests have to notice
//! * [`sim`]: whole metadata clusters in one thread, from one seed
//!
//! `scripts/cluster` is a thin shell over the same [`harness`], so what a person starts and what a test
//! starts are the same thing.

pub mod harness;
pub mod mutants;
pub mod programs;
pub mod sim;
mod simulation;
pub mod workload;
