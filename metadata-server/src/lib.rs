//! The metadata server: Zab-replicated namespace, sessions, locks and the cluster map.
//!
//! | module | what |
//! |---|---|
//! | [`state`] | the replicated state machine, pure: prep, apply, read, the placement planner |
//! | [`quorum`] | drives Zab: log, record, messages between metadata servers |
//! | [`disk_layer`] | the state's bottom layer on redb, checkpoints, snapshots |
//! | [`core`] | every decision: requests, sessions, expiry, placement; pure |
//! | [`backup`] | backups of everything, and clusters made from them |
//! | [`fsck`] | compares all rows of one revision and all objects; pure |
//! | [`node`] | the core between the quorum and the connections |
//! | [`trims`] | asks data servers to cut objects |
//! | [`server`] | wires all of it |

pub mod backup;
pub mod config;
pub mod core;
pub mod disk_layer;
pub mod fsck;
pub mod node;
pub mod quorum;
pub mod server;
pub mod state;
pub mod trims;

pub use config::MetadataServerConfig;
