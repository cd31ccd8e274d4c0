//! The client library and the FUSE mount.
//!
//! | module | what |
//! |---|---|
//! | [`meta`] | the session with the metadata cluster: leader, exactly-once changes, locks |
//! | [`data`] | reads and writes of chunks, routed by the cluster map |
//! | [`fs`] | what each operation of the kernel means |
//! | [`special`] | the directory `.zabfs` |
//! | [`fuse`] | the kernel's edge: mount, requests, replies |
//! | [`mount`], [`mount_options`] | one mount from start to end; how it is asked for |
//! | [`status_text`] | the state of the cluster as text |
//!
//! Everything runs on one thread, in a `LocalSet` of a `current_thread` runtime.

mod backoff;
pub mod data;
pub mod fs;
pub mod fuse;
pub mod map_holder;
pub mod meta;
pub mod mount;
pub mod mount_options;
mod os;
pub mod sequence;
pub mod special;
pub mod status_text;
#[cfg(test)]
mod testing;
