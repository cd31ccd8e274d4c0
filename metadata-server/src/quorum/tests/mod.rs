//! Tests of the parts that touch the disk and the network.

mod crash_disk;
mod disk;
mod log;
pub(super) mod loopback;
mod record;
