//! The FUSE edge on a real mount: needs root and `/dev/fuse`. The daemon runs in a process of its own, so that it
//! can be killed, and every mount is taken away in every outcome.

mod files;
mod lifecycle;
mod locks;
mod memory;
mod mounted;
mod signals;

/// No test of its own: the process that serves the mounts of the others.
#[test]
fn daemon() {
    mounted::daemon_if_asked();
}
