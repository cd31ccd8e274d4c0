//! A cluster of real processes on this machine.

mod cluster;
mod cut_disk;
mod layout;
mod mounts;
mod netns;
mod ports;
mod process;
mod status;
mod wait;

pub use cluster::{Cluster, MountCall, Options, Server, ServerRole, Settings, Target};
pub use cut_disk::{CutDisk, Power, clean_up_cut_disk};
pub use layout::{Layout, log_tails};
pub use mounts::{detach, is_mounted, mounts_below};
pub use netns::Namespace;
pub use ports::{free_ports, is_free};
pub use process::{ProcessRef, Signal, spawn_logged};
pub use status::{DataServer, MetadataServer, Status};
pub use wait::{Timeout, wait_until};
