//! The data server: chunk store and placement-group replication.
//!
//! | module | what |
//! |---|---|
//! | [`store`] | objects on disk: journal, extents, index |
//! | [`pg`] | the replica of a placement group, pure |
//! | [`driver`] | hands events to replicas and does what they want done |
//! | [`server`] | wires all of it |

pub mod config;
pub mod driver;
pub mod pg;
pub mod server;
pub mod store;

pub use config::DataServerConfig;
